//! The packet filter: which sources may open what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::limit;
use crate::types::{IpNet, bounded_vec};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Each an address, a prefix, a range `a-b`, `*`, or `cap:NAME`.
    #[serde(rename = "SrcIPs", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub src_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub dst_ports: Vec<NetPortRange>,
    /// Protocol numbers; none listed means TCP, UDP, ICMP and ICMPv6.
    #[serde(
        rename = "IPProto",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>"
    )]
    pub ip_proto: Vec<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::RULE_ENTRIES }>")]
    pub cap_grant: Vec<CapGrant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// An address, a prefix, a range `a-b`, or `*`.
    #[serde(rename = "IP")]
    pub ip: String,
    pub ports: Ports,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CapGrant {
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::PREFIXES }>")]
    pub dsts: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>")]
    pub caps: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Option<Vec<Box<RawValue>>>>,
}

/// The filter that admits everyone to everything.
pub fn match_all() -> Vec<FilterRule> {
    vec![FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: Ports { first: 0, last: u16::MAX } }],
        ..FilterRule::default()
    }]
}
