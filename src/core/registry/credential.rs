//! What machines and programs show to be let in: pre-authentication keys, tokens, and the clients that ask for tokens.
//!
//! Of each secret a hash is kept. The secrets are 256 random bits, so they cannot be guessed from their hash, and a slow
//! hash would only slow down the coordinator.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::actor::Who;
use super::cleanup::SPENT_KEPT;
use super::presence::add;
use super::record::Tag;
use super::refusal::Refusal;
use crate::types::{Timestamp, UserId};

/// A pre-authentication key: admits nodes without a person present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// The number; also the readable part of the key's text.
    pub id: KeyId,
    /// Whose nodes it admits.
    pub user: UserId,
    /// SHA-256 of the secret.
    #[serde(skip)]
    pub secret_hash: [u8; 32],
    /// What it is for, for people; may be empty.
    pub description: String,
    /// Who made it; nobody knows of those that are older than this field.
    pub creator: Option<Who>,
    /// Admits more than one node.
    pub reusable: bool,
    /// Its nodes are deleted some time after they go offline.
    pub ephemeral: bool,
    /// Its nodes need nobody's approval, where nodes do.
    pub pre_approved: bool,
    /// Its nodes are owned by these tags.
    pub tags: Vec<Tag>,
    /// Lets nodes in again whose node key ended after it was made; without this a reusable key does not.
    pub readmits: bool,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it admits nobody.
    pub expires: Option<Timestamp>,
    /// When it last admitted a node.
    pub used: Option<Timestamp>,
    /// When somebody ended it for good; it is kept for a while, to be looked at.
    pub revoked: Option<Timestamp>,
}

/// A pre-authentication key's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub u64);

/// What a program shows to give commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenRecord {
    pub id: TokenId,
    pub holder: TokenHolder,
    #[serde(skip)]
    pub secret_hash: [u8; 32],
    pub description: String,
    pub creator: Option<Who>,
    /// What it may be used for; what its holder may not do, it may not do either.
    pub scopes: Vec<Scope>,
    /// Those that nodes and keys which it makes must have.
    pub tags: Vec<Tag>,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub revoked: Option<Timestamp>,
}

/// On whose behalf a token speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenHolder {
    User(UserId),
    Client(ClientId),
}

/// A token's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u64);

/// A program that asks for tokens by a secret of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientRecord {
    pub id: ClientId,
    #[serde(skip)]
    pub secret_hash: [u8; 32],
    pub description: String,
    pub creator: Option<Who>,
    /// The most that its tokens may be used for.
    pub scopes: Vec<Scope>,
    /// Those that nodes and keys which its tokens make must have.
    pub tags: Vec<Tag>,
    pub created: Timestamp,
    pub revoked: Option<Timestamp>,
}

/// A client's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

/// What a token may be used for: to look at a subject, or to change it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope {
    pub subject: Subject,
    pub may_change: bool,
}

macro_rules! subjects {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// What scopes are about, by the names of the official programming interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Subject {
            $($name),+
        }

        impl Subject {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As the interface spells it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }
        }
    };
}

subjects! {
    All = "all",
    AuthKeys = "auth_keys",
    OauthKeys = "oauth_keys",
    FederatedKeys = "federated_keys",
    ApiAccessTokens = "api_access_tokens",
    Devices = "devices:core",
    DeviceRoutes = "devices:routes",
    DeviceAttributes = "devices:posture_attributes",
    DeviceInvites = "device_invites",
    Dns = "dns",
    PolicyFile = "policy_file",
    Users = "users",
    Webhooks = "webhooks",
    Services = "services",
    FeatureSettings = "feature_settings",
    NetworkingSettings = "networking_settings",
    AccountSettings = "account_settings",
    LogStreaming = "log_streaming",
    ConfigurationLogs = "logs:configuration",
    NetworkLogs = "logs:network",
}

impl KeyRecord {
    /// When it is forgotten: some time after it admits nobody any more; `None` while nothing ends it.
    pub(super) fn forgotten_at(&self) -> Option<Timestamp> {
        let used = self.used.filter(|_| !self.reusable);
        used.into_iter().chain(self.expires).chain(self.revoked).min().map(|at| add(at, SPENT_KEPT))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.subject.name())?;
        f.write_str(if self.may_change { "" } else { ":read" })
    }
}

impl FromStr for Scope {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (name, may_change) = text.strip_suffix(":read").map_or((text, true), |name| (name, false));
        let subject = Subject::ALL.iter().copied().find(|subject| subject.name() == name);
        let subject = subject.ok_or_else(|| Refusal::invalid(format!("there is no scope `{text}`")))?;
        Ok(Self { subject, may_change })
    }
}

impl TryFrom<String> for Scope {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reads_back_from_its_name_and_others_there_are_none() {
        for subject in Subject::ALL {
            for may_change in [false, true] {
                let scope = Scope { subject: *subject, may_change };
                assert_eq!(scope.to_string().parse(), Ok(scope));
            }
        }
        for bad in ["", ":read", "devices", "all:write", "ALL", "dns:read:read"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
