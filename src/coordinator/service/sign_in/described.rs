//! A provider, as the operator described it.

use openidconnect::ClientSecret;
use serde::{Deserialize, Serialize};
use warren_core::registry::{Arrival, Email, Identity, ProviderName, Rules, domain_of};

/// Where a provider is, who we are to it, and whom it lets in.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) name: ProviderName,
    pub(crate) kind: Kind,
    /// What people call it.
    pub(crate) title: String,
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: Option<ClientSecret>,
    pub(crate) scopes: Vec<String>,
    /// Other audiences that its tokens may name besides us.
    pub(crate) trusted_audiences: Vec<String>,
    pub(crate) groups_claim: String,
    /// An address is theirs where it does not say whether it is.
    pub(crate) trust_email: bool,
    pub(crate) rules: Rules,
}

/// What a provider speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    #[default]
    Oidc,
    /// GitHub's own OAuth 2.0.
    Github,
}

/// Somebody, as a provider names them, by whatever it speaks.
#[derive(Debug, Default)]
pub(super) struct Person {
    pub(super) subject: String,
    pub(super) email: Option<Email>,
    /// Their organisation, where the provider says that and it is not the domain of their address.
    pub(super) organisation: Option<Option<String>>,
    pub(super) groups: Vec<String>,
    pub(super) name: Option<String>,
    pub(super) picture: Option<String>,
}

impl Described {
    /// Who it is that arrives.
    pub(super) fn arrival(&self, person: Person) -> Arrival {
        let Person { subject, email, organisation, groups, name, picture } = person;
        let domain = organisation.unwrap_or_else(|| email.as_ref().and_then(domain_of));
        let welcome = self.rules.of(email.as_ref(), domain.as_deref(), &groups);
        let (provider, issuer) = (self.name.clone(), self.issuer.clone());
        Arrival {
            identity: Identity { provider, issuer, subject, invited: false, email },
            display_name: name.unwrap_or_default(),
            picture: picture.unwrap_or_default(),
            welcome,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn described(issuer: &str) -> Described {
        Described {
            name: "corp".parse().unwrap(),
            kind: Kind::Oidc,
            title: "Corp".to_owned(),
            issuer: issuer.to_owned(),
            client_id: "warren".to_owned(),
            client_secret: None,
            scopes: Vec::new(),
            trusted_audiences: Vec::new(),
            groups_claim: "groups".to_owned(),
            trust_email: false,
            rules: Rules::default(),
        }
    }

    #[test]
    fn the_secret_of_a_provider_is_not_printed() {
        let described = Described {
            client_secret: Some(ClientSecret::new("hunter2".to_owned())),
            ..described("https://idp.example.org")
        };
        assert!(!format!("{described:?}").contains("hunter2"));
    }
}
