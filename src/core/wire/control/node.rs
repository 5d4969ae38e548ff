//! A node as others see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Hostinfo, limit, time};
use crate::types::text::{clean_text, clean_texts};
use crate::types::{
    CapabilityVersion, DiscoPublic, IpNet, MachinePublic, NodeId, NodePublic, RegionId, StableNodeId, UserId,
    bounded_vec,
};

/// Capabilities by name, each with arguments.
pub type CapMap = BTreeMap<String, Option<Vec<Box<RawValue>>>>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: NodeId,
    #[serde(rename = "StableID")]
    pub stable_id: StableNodeId,
    /// The full DNS name with a final dot.
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub name: String,
    pub user: UserId,
    pub key: NodePublic,
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub key_expiry: Option<Timestamp>,
    pub machine: MachinePublic,
    pub disco_key: DiscoPublic,
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::PREFIXES }>")]
    pub addresses: Vec<IpNet>,
    /// Absent means the same as `addresses`.
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::ENDPOINTS }>")]
    pub endpoints: Vec<SocketAddr>,
    /// `127.3.3.40:REGION`, as clients before version 111 read it.
    #[serde(
        rename = "DERP",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub legacy_derp: String,
    #[serde(rename = "HomeDERP", skip_serializing_if = "is_default")]
    pub home_derp: RegionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub created: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::TAGS }, { limit::TEXT }>"
    )]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::PREFIXES }>")]
    pub primary_routes: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub machine_authorized: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: CapMap,
    #[serde(rename = "UnsignedPeerAPIOnly", skip_serializing_if = "std::ops::Not::not")]
    pub unsigned_peer_api_only: bool,
    #[serde(rename = "IsWireGuardOnly", skip_serializing_if = "std::ops::Not::not")]
    pub is_wireguard_only: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_jailed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

/// Who a node belongs to, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UserProfile {
    #[serde(rename = "ID")]
    pub id: UserId,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub login_name: String,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub display_name: String,
    #[serde(
        rename = "ProfilePicURL",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::TEXT }>"
    )]
    pub profile_pic_url: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
