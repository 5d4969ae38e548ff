//! Who may become a user by signing in: what the operator says of each provider, and nothing else.

use super::people::{Email, canonical_email};

/// Domains in which anybody may have an address: a rule that names one would let in the world.
const PUBLIC: &[&str] = &[
    "aol.com",
    "fastmail.com",
    "free.fr",
    "gmail.com",
    "gmx.com",
    "gmx.de",
    "gmx.net",
    "googlemail.com",
    "hey.com",
    "hotmail.com",
    "hotmail.de",
    "icloud.com",
    "laposte.net",
    "live.com",
    "mac.com",
    "mail.com",
    "mail.ru",
    "mailbox.org",
    "me.com",
    "msn.com",
    "naver.com",
    "orange.fr",
    "outlook.com",
    "outlook.de",
    "pm.me",
    "posteo.de",
    "proton.me",
    "protonmail.com",
    "qq.com",
    "t-online.de",
    "tuta.com",
    "tutanota.com",
    "web.de",
    "yahoo.com",
    "yahoo.de",
    "yandex.com",
    "yandex.ru",
    "ymail.com",
    "zoho.com",
    "163.com",
    "126.com",
];

/// Whom an operator lets in by one provider. Nobody, where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    domains: Vec<String>,
    users: Vec<String>,
    groups: Vec<String>,
    /// Whoever comes by a rule needs somebody's approval; where nothing is said, those who come by a domain.
    approval: Option<bool>,
}

/// Whether somebody who signs in for the first time may become a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Welcome {
    Refused,
    /// Once somebody approved them.
    WithApproval,
    Welcome,
}

impl Rules {
    /// The rules that these texts make; the error says which of them makes none.
    pub fn new(
        domains: &[String],
        users: &[String],
        groups: &[String],
        approval: Option<bool>,
    ) -> Result<Self, String> {
        let domain = |text: &String| {
            let domain = text.to_lowercase();
            match canonical_email(&format!("a@{domain}")) {
                None => Err(format!("{text:?} is no domain of addresses")),
                Some(_) if PUBLIC.contains(&domain.as_str()) => {
                    Err(format!("anybody may have an address at {domain}; name users instead"))
                }
                Some(_) => Ok(domain),
            }
        };
        let user = |text: &String| canonical_email(text).ok_or_else(|| format!("{text:?} is no address"));
        let domains = domains.iter().map(domain).collect::<Result<_, _>>()?;
        let users = users.iter().map(user).collect::<Result<_, _>>()?;
        Ok(Self { domains, users, groups: groups.to_vec(), approval })
    }

    /// Whether it matters which groups somebody is in.
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// What the rules say of somebody with this address, of this organisation, in these groups. An address that the
    /// provider does not vouch for is as good as none.
    pub fn of(&self, email: Option<&Email>, domain: Option<&str>, groups: &[String]) -> Welcome {
        let email = email.filter(|email| email.verified).and_then(|email| canonical_email(&email.address));
        let is_named = email.as_ref().is_some_and(|email| self.users.contains(email));
        let of_group = self.groups.iter().any(|group| groups.contains(group));
        let of_domain = domain.is_some_and(|domain| self.domains.iter().any(|known| known == domain));
        match (is_named || of_group, of_domain) {
            (false, false) => Welcome::Refused,
            (by_name, _) if self.approval.unwrap_or(!by_name) => Welcome::WithApproval,
            (true | false, _) => Welcome::Welcome,
        }
    }
}

/// The domain of an address that the provider vouches for.
pub fn domain_of(email: &Email) -> Option<String> {
    let email = Some(email).filter(|email| email.verified).and_then(|email| canonical_email(&email.address))?;
    email.split_once('@').map(|(_, domain)| domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn of(rules: &Rules, address: &str, verified: bool, groups: &[&str]) -> Welcome {
        let email = Email { address: address.to_owned(), verified };
        rules.of(Some(&email), domain_of(&email).as_deref(), &texts(groups))
    }

    #[test]
    fn nobody_comes_in_where_nothing_is_said() {
        let rules = Rules::new(&[], &[], &[], Some(false)).unwrap();
        assert_eq!(of(&rules, "ada@example.org", true, &["ops"]), Welcome::Refused);
        assert_eq!(rules.of(None, None, &[]), Welcome::Refused);
    }

    #[test]
    fn an_address_counts_only_where_it_is_vouched_for_and_has_one_reading() {
        let rules = Rules::new(&texts(&["Example.org"]), &texts(&["Bob@other.net"]), &[], None).unwrap();
        for (address, verified, expected) in [
            ("ada@example.org", true, Welcome::WithApproval),
            ("ADA@EXAMPLE.ORG", true, Welcome::WithApproval),
            ("ada@example.org", false, Welcome::Refused),
            ("ada@example.org.", true, Welcome::Refused),
            ("ada@evil.example.org", true, Welcome::Refused),
            ("ada@evilexample.org", true, Welcome::Refused),
            ("ada@exаmple.org", true, Welcome::Refused),
            ("ada@example.org@evil.net", true, Welcome::Refused),
            ("bob@other.net", true, Welcome::Welcome),
            ("bob+x@other.net", true, Welcome::Refused),
            ("bob@other.net", false, Welcome::Refused),
        ] {
            assert_eq!(of(&rules, address, verified, &[]), expected, "{address} {verified}");
        }
    }

    #[test]
    fn a_group_is_compared_as_it_is_and_approval_is_what_the_operator_says() {
        let rules = Rules::new(&texts(&["example.org"]), &[], &texts(&["ops"]), None).unwrap();
        assert_eq!(of(&rules, "ada@other.net", false, &["dev", "ops"]), Welcome::Welcome);
        assert_eq!(of(&rules, "ada@other.net", true, &["Ops"]), Welcome::Refused);
        let asks = Rules { approval: Some(true), ..rules.clone() };
        assert_eq!(of(&asks, "ada@other.net", true, &["ops"]), Welcome::WithApproval);
        let open = Rules { approval: Some(false), ..rules };
        assert_eq!(of(&open, "ada@example.org", true, &[]), Welcome::Welcome);
    }

    #[test]
    fn a_rule_that_would_let_in_the_world_is_none() {
        for bad in ["gmail.com", "Outlook.com", "localhost", "", "*.example.org", "example.org.", "a b.org"] {
            assert!(Rules::new(&texts(&[bad]), &[], &[], None).is_err(), "{bad}");
        }
        assert!(Rules::new(&[], &texts(&["ada"]), &[], None).is_err());
    }
}
