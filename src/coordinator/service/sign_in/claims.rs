//! What a provider says of somebody, once it is known that the provider says it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use warren_core::registry::{Arrival, Email};

use super::described::{Described, Person};

/// Groups that are looked at of one person; Microsoft leaves out more than 200.
const GROUPS: usize = 1_000;
/// The longest address that is kept.
const ADDRESS_BYTES: usize = 320;
/// Where an organisation is named by the claim `hd`: an account with an address of its domain may be anybody's.
const GOOGLE: &str = "https://accounts.google.com";

/// The claims that count here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    pub(super) sub: String,
    #[serde(default)]
    pub(super) email: Option<String>,
    #[serde(default)]
    email_verified: Option<Value>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    picture: Option<String>,
    #[serde(default)]
    hd: Option<String>,
    #[serde(default)]
    azp: Option<String>,
    #[serde(default)]
    aud: Value,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl Claims {
    /// Of several audiences, one must say that it is us who asked.
    pub(super) fn are_for(&self, client_id: &str) -> bool {
        let several = self.aud.as_array().is_some_and(|audiences| audiences.len() > 1);
        match self.azp.as_deref() {
            Some(party) => party == client_id,
            None => !several,
        }
    }

    /// These, completed by what the provider says elsewhere of the same person.
    pub(super) fn and(self, more: Self) -> Self {
        // An address goes with the word that it is theirs: never the one from here and the other from there.
        let (email, email_verified) = match &self.email {
            Some(_) => (self.email, self.email_verified),
            None => (more.email, more.email_verified),
        };
        let mut other = more.other;
        other.extend(self.other);
        Self {
            email,
            email_verified,
            name: self.name.or(more.name),
            picture: self.picture.or(more.picture),
            other,
            ..self
        }
    }

    /// Whether something is missing that the rules of this provider look at.
    pub(super) fn are_enough_for(&self, provider: &Described) -> bool {
        self.email.is_some() && (!provider.rules.has_groups() || self.other.contains_key(&provider.groups_claim))
    }

    /// Who it is that arrives.
    pub(super) fn arrival(self, provider: &Described) -> Arrival {
        let verified = match &self.email_verified {
            Some(Value::Bool(verified)) => *verified,
            Some(Value::String(text)) => text == "true",
            Some(_) => false,
            None => provider.trust_email,
        };
        let email = self.email.filter(|address| address.len() <= ADDRESS_BYTES);
        let email = email.map(|address| Email { address, verified });
        let groups: Vec<String> = match self.other.get(&provider.groups_claim) {
            Some(Value::Array(groups)) => {
                groups.iter().take(GROUPS).filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Some(_) | None => Vec::new(),
        };
        let organisation = (provider.issuer == GOOGLE).then(|| self.hd.map(|domain| domain.to_lowercase()));
        let (name, picture) = (self.name, self.picture);
        provider.arrival(Person { subject: self.sub, email, organisation, groups, name, picture })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warren_core::registry::{Rules, Welcome};

    use super::super::described::tests::described;
    use super::*;

    fn claims(value: Value) -> Claims {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_address_is_theirs_only_where_the_provider_says_so_itself() {
        let mut provider = described("https://idp.example.org");
        let is_verified = |provider: &Described, said: Value| {
            let claims = claims(json!({"sub": "1", "email": "ada@example.org"})).and(Claims::default());
            let claims = Claims { email_verified: Some(said).filter(|said| !said.is_null()), ..claims };
            claims.arrival(provider).identity.email.unwrap().verified
        };
        for (said, verified) in [(json!(true), true), (json!("true"), true), (json!(false), false), (json!(1), false)] {
            assert_eq!(is_verified(&provider, said), verified);
        }
        assert!(!is_verified(&provider, Value::Null));
        provider.trust_email = true;
        assert!(is_verified(&provider, Value::Null) && !is_verified(&provider, json!(false)));
        let mixed = claims(json!({"sub": "1", "email": "a@example.org"}))
            .and(claims(json!({"sub": "1", "email": "b@example.org", "email_verified": true})));
        assert_eq!((mixed.email.as_deref(), mixed.email_verified), (Some("a@example.org"), None));
    }

    #[test]
    fn an_organisation_of_google_is_what_google_says_and_not_a_part_of_an_address() {
        let mut provider = described(GOOGLE);
        provider.rules = Rules::new(&["example.org".to_owned()], &[], &[], Some(false)).unwrap();
        let welcome = |value: Value| claims(value).arrival(&provider).welcome;
        let private = json!({"sub": "1", "email": "ada@example.org", "email_verified": true});
        assert_eq!(welcome(private), Welcome::Refused);
        let of_it = json!({"sub": "1", "email": "ada@sub.example.org", "email_verified": true, "hd": "Example.org"});
        assert_eq!(welcome(of_it), Welcome::Welcome);
    }

    #[test]
    fn of_several_audiences_the_one_who_asked_is_named() {
        for (value, ours) in [
            (json!({"aud": "us"}), true),
            (json!({"aud": ["us"]}), true),
            (json!({"aud": ["us", "them"]}), false),
            (json!({"aud": ["us", "them"], "azp": "us"}), true),
            (json!({"aud": ["us", "them"], "azp": "them"}), false),
            (json!({"aud": "us", "azp": "them"}), false),
        ] {
            assert_eq!(claims(value.clone()).are_for("us"), ours, "{value}");
        }
    }

    #[test]
    fn groups_of_another_shape_are_none() {
        let mut provider = described("https://idp.example.org");
        provider.rules = Rules::new(&[], &[], &["ops".to_owned()], None).unwrap();
        for (groups, welcome) in [
            (json!(["dev", "ops"]), Welcome::Welcome),
            (json!("ops"), Welcome::Refused),
            (json!([1, ["ops"], null]), Welcome::Refused),
            (json!({"ops": true}), Welcome::Refused),
        ] {
            assert_eq!(claims(json!({"sub": "1", "groups": groups})).arrival(&provider).welcome, welcome, "{groups}");
        }
    }
}
