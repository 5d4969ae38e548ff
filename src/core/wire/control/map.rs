//! The map: what a node asks for, and the stream of what it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{CapMap, DerpMap, DnsConfig, FilterRule, Hostinfo, Listed, Node, UserProfile, limit, time};
use crate::types::text::{clean_maybe_texts, clean_text};
use crate::types::{CapabilityVersion, DiscoPublic, Limit, NodeId, NodePublic, RegionId, bounded_vec};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapRequest {
    pub version: CapabilityVersion,
    /// `zstd` or empty.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub compress: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_alive: bool,
    pub node_key: NodePublic,
    pub disco_key: DiscoPublic,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
    #[serde(alias = "HostInfo", skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub map_session_handle: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub map_session_seq: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::ENDPOINTS }>")]
    pub endpoints: Vec<SocketAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::ENDPOINTS }>")]
    pub endpoint_types: Vec<EndpointType>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub omit_peers: bool,
}

/// How a node learned of one of its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointType(pub i32);

impl EndpointType {
    pub const LOCAL: Self = Self(1);
    pub const STUN: Self = Self(2);
    pub const PORT_MAPPED: Self = Self(3);
    pub const STUN4_LOCAL_PORT: Self = Self(4);
    pub const EXPLICIT: Self = Self(5);
}

/// One message of the map stream. Absent means unchanged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapResponse {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub map_session_handle: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_alive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// The full list; replaces what was known.
    #[serde(skip_serializing_if = "Listed::is_empty")]
    pub peers: Listed<Node>,
    #[serde(skip_serializing_if = "Listed::is_empty")]
    pub peers_changed: Listed<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::PEERS }>")]
    pub peers_removed: Vec<NodeId>,
    #[serde(skip_serializing_if = "Listed::is_empty")]
    pub peers_changed_patch: Listed<PeerChange>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub online_change: BTreeMap<NodeId, bool>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub domain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect_services: Option<bool>,
    /// The filter named `base`, as older servers send it; an empty list blocks all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Named parts; null deletes one, `"*": null` deletes all first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub packet_filters: BTreeMap<String, Option<Vec<FilterRule>>>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::PEERS }>")]
    pub user_profiles: Vec<UserProfile>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "clean_maybe_texts::<_, { limit::SMALL }, { limit::TEXT }>"
    )]
    pub health: Option<Vec<String>>,
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
    #[serde(
        rename = "PopBrowserURL",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::TEXT }>"
    )]
    pub pop_browser_url: String,
}

impl MapResponse {
    /// Reads a message. One of more parts than any map has is refused before memory is asked for them.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let (objects, values) = parts(json);
        OBJECTS.check(objects).and(VALUES.check(values)).map_err(|error| error.to_string())?;
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }
}

const OBJECTS: Limit = Limit::new("objects in a map message", limit::OBJECTS);
const VALUES: Limit = Limit::new("values in a map message", limit::VALUES);

/// Objects, and values of any kind, as far as they can be counted without reading them.
fn parts(json: &[u8]) -> (usize, usize) {
    let (mut objects, mut values) = (0, 0);
    let (mut in_text, mut is_escaped) = (false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' => (objects, values) = (objects + 1, values + 1),
            b'[' | b',' => values += 1,
            _ => {}
        }
    }
    (objects, values)
}

/// A change of some fields of a known peer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerChange {
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    #[serde(rename = "DERPRegion", skip_serializing_if = "is_default")]
    pub derp_region: RegionId,
    #[serde(skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<CapMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<SocketAddr>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub key_expiry: Option<Timestamp>,
}

/// The coordinator asks whether we are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingRequest {
    #[serde(rename = "URL", deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub url: String,
    #[serde(rename = "URLIsNoise", skip_serializing_if = "std::ops::Not::not")]
    pub url_is_noise: bool,
    /// Comma-separated; empty for a plain HEAD request.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub types: String,
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<std::net::IpAddr>,
}

/// Instructions of the coordinator; most of them are not its business and are not read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Debug {
    #[serde(skip_serializing_if = "is_default")]
    pub sleep_seconds: f64,
    #[serde(rename = "DisableLogTail", skip_serializing_if = "std::ops::Not::not")]
    pub disable_log_tail: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
