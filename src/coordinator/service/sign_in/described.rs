//! A provider, as the operator described it.

use openidconnect::ClientSecret;
use warren_core::registry::{ProviderName, Rules};

/// Where a provider is, who we are to it, and whom it lets in.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) name: ProviderName,
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn described(issuer: &str) -> Described {
        Described {
            name: "corp".parse().unwrap(),
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
