//! Joining: what a node sends to register, and the answer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Hostinfo, limit, time};
use crate::types::text::clean_text;
use crate::types::{CapabilityVersion, MachinePublic, NodePublic, UserId};

/// The answer to `GET /key`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OverTlsPublicKeys {
    pub legacy_public_key: MachinePublic,
    /// The coordinator's Noise key.
    pub public_key: MachinePublic,
}

/// The answer to our own question [`ServerKey::PATH`], asked within the secure channel: under the key that it was opened
/// with, the coordinator says which key it goes by from here on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServerKey {
    pub key: MachinePublic,
}

impl ServerKey {
    /// Where it is asked for. Other coordinators know no such path.
    pub const PATH: &'static str = "/machine/warren/server-key";
}

/// The capability by which a coordinator says that it understands [`RegisterRequest::rotation`].
pub const ROTATES_NODE_KEYS: &str = "warren-rotates-node-keys";

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterRequest {
    pub version: CapabilityVersion,
    pub node_key: NodePublic,
    pub old_node_key: NodePublic,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// In the past: log out.
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub expiry: Option<Timestamp>,
    /// The `AuthURL` of an earlier answer: wait until that is approved.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub followup: String,
    pub hostinfo: Option<Hostinfo>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Our own: the node key takes the old one's place, and nothing else changes. Other coordinators take it for a new
    /// sign-in.
    #[serde(rename = "WarrenRotation", skip_serializing_if = "std::ops::Not::not")]
    pub rotation: bool,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub tailnet: String,
}

/// Proof that the node may join. The key is a secret: this has no `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterAuth {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_key: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterResponse {
    pub user: User,
    pub login: Login,
    pub node_key_expired: bool,
    pub machine_authorized: bool,
    /// Where a person approves this node; empty when it is in.
    #[serde(rename = "AuthURL", deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub auth_url: String,
    /// Written also when empty: the official Rust client does not read an answer without it.
    #[serde(deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub error: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct User {
    #[serde(rename = "ID")]
    pub id: UserId,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub display_name: String,
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub created: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Login {
    #[serde(rename = "ID")]
    pub id: UserId,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub provider: String,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub login_name: String,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub display_name: String,
}
