//! People: users, whom a provider says they are, and the browsers that they are signed in with.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::presence::add;
use super::refusal::Refusal;
use crate::policy::{BAD_LOGIN, Role, canonical_login};
use crate::types::{Lifetime, Limit, Timestamp, UserId, UserStatus};

/// Someone whom nodes belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserRecord {
    pub id: UserId,
    /// The unique login name.
    pub name: UserName,
    /// The name for people; may be empty.
    pub display_name: String,
    /// Where a picture of theirs is; may be empty.
    pub picture: String,
    /// What the user may do to the network itself.
    pub role: Role,
    pub status: UserStatus,
    /// Whom providers say they are. An identity is one user's.
    pub identities: Vec<Identity>,
    /// Whoever signs in so first becomes this user.
    pub invitation: Option<Invitation>,
    /// How long the keys of their nodes last, where that is not the network's word.
    pub key_lifetime: Option<Lifetime>,
    /// When it was made.
    pub created: Timestamp,
}

/// Who somebody is to a provider. The three parts are compared byte by byte, and never joined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Identity {
    pub provider: ProviderName,
    pub issuer: String,
    pub subject: String,
    /// The operator's word made it this user's, and no rule of the provider.
    pub invited: bool,
    /// The address that the provider named last, for people to look at.
    pub email: Option<Email>,
}

/// An address, as a provider said it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Email {
    pub address: String,
    /// The provider says that it is theirs.
    pub verified: bool,
}

/// Who may become a user that somebody made for them: the first who signs in with this address, verified, at this provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Invitation {
    pub provider: ProviderName,
    /// As [`canonical_email`] writes it.
    pub email: String,
}

/// What the operator calls a provider: letters, digits and hyphens, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderName(String);

/// A browser in which a user is signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    pub id: BrowserSessionId,
    pub user: UserId,
    /// When they showed last who they are, at a provider.
    pub signed_in: Timestamp,
    /// When it was used last.
    pub seen: Timestamp,
    /// From when on it is good for nothing, used or not.
    pub expires: Timestamp,
    /// Where they signed in from.
    pub address: IpAddr,
    /// What the browser calls itself.
    pub agent: String,
}

/// SHA-256 of the secret that the browser holds: enough to find the session, and of no use to whoever reads it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BrowserSessionId(pub [u8; 32]);

impl BrowserSession {
    /// How long a browser stays signed in that is not used.
    pub const IDLE: Duration = Duration::from_secs(8 * 60 * 60);

    /// When it is good for nothing any more, if it is not used before.
    pub fn ends_at(&self) -> Timestamp {
        self.expires.min(add(self.seen, Self::IDLE))
    }
}

impl UserRecord {
    /// A member of whom nothing else is known.
    pub fn new(id: UserId, name: UserName, created: Timestamp) -> Self {
        Self {
            id,
            name,
            display_name: String::new(),
            picture: String::new(),
            role: Role::Member,
            status: UserStatus::Active,
            identities: Vec::new(),
            invitation: None,
            key_lifetime: None,
            created,
        }
    }
}

impl Identity {
    /// Whether both are the same person to the same provider.
    pub fn is(&self, other: &Self) -> bool {
        (&self.provider, &self.issuer, &self.subject) == (&other.provider, &other.issuer, &other.subject)
    }
}

/// The one form of an address, to compare: in lower case. None where it is no address, or one that two people might read
/// differently: with a final dot, in quotes, or with letters that are not ASCII in its domain.
pub fn canonical_email(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let (local, domain) = text.split_once('@')?;
    let is_local = !local.is_empty()
        && local.len() <= 64
        && local.chars().all(|c| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c));
    let labels = || domain.split('.');
    let is_label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    (is_local && domain.len() <= 253 && labels().count() > 1 && labels().all(is_label)).then_some(text)
}

impl ProviderName {
    const MAX: usize = 32;

    /// As people type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProviderName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let is_part = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
        match (1..=Self::MAX).contains(&text.len()) && text.chars().all(is_part) && !text.starts_with('-') {
            true => Ok(Self(text.to_owned())),
            false => {
                Err(Refusal::invalid("the name of a provider is up to 32 letters, digits and hyphens, in lower case"))
            }
        }
    }
}

impl TryFrom<String> for ProviderName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<ProviderName> for String {
    fn from(name: ProviderName) -> Self {
        name.0
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BrowserSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A user's login name, in its one form: `me` for `me@` and `Me` too. At most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    const MAX: Limit = Limit::new("characters in a user name", 255);

    /// A name as an older release kept it; [`settled_names`](super::settled_names) gives it its one form.
    pub fn kept(text: String) -> Self {
        Self(text)
    }

    /// As people type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::MAX.check(text.len())?;
        let name = canonical_login(text).ok_or_else(|| Refusal::invalid(BAD_LOGIN))?;
        Self::MAX.check(name.len())?;
        Ok(Self(name))
    }
}

impl TryFrom<String> for UserName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form_or_none() {
        for (text, form) in [
            ("Ada@Example.org", Some("ada@example.org")),
            ("ada+vpn@example.org", Some("ada+vpn@example.org")),
            ("ada@example.org.", None),
            ("ada@@example.org", None),
            ("\"ada b\"@example.org", None),
            ("ada@localhost", None),
            ("ada@exаmple.org", None),
            ("ada@münchen.de", None),
            ("ada@xn--mnchen-3ya.de", Some("ada@xn--mnchen-3ya.de")),
            ("ada@example.org\0", None),
            ("@example.org", None),
            ("ada", None),
        ] {
            assert_eq!(canonical_email(text).as_deref(), form, "{text}");
        }
    }

    #[test]
    fn names_of_providers_are_parsed_strictly() {
        for good in ["google", "our-keycloak", "a1"] {
            assert!(good.parse::<ProviderName>().is_ok(), "{good}");
        }
        for bad in ["", "Google", "a b", "-a", "a/b", "ä", &"x".repeat(33)] {
            assert!(bad.parse::<ProviderName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_identity_is_three_texts_that_are_never_joined() {
        let identity = |issuer: &str, subject: &str| Identity {
            provider: "p".parse().unwrap(),
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            invited: false,
            email: None,
        };
        let one = identity("https://a", "b/c");
        assert!(one.is(&Identity { email: Some(Email { address: "x".to_owned(), verified: true }), ..one.clone() }));
        for other in [identity("https://a/b", "c"), identity("https://a/", "b/c"), identity("https://a", "B/c")] {
            assert!(!one.is(&other), "{other:?}");
        }
    }
}
