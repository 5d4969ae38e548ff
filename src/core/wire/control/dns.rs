//! What a node should do with names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limit;
use crate::types::bounded_vec;
use crate::types::text::{clean_text, clean_texts};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::DNS }>")]
    pub resolvers: Vec<Resolver>,
    /// Suffix to resolvers; an empty or null list means that the node answers by itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, Option<Vec<Resolver>>>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::DNS }>")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::DNS }, { limit::TEXT }>"
    )]
    pub domains: Vec<String>,
    /// Whether names of nodes are answered (MagicDNS).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub proxied: bool,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::DNS }, { limit::TEXT }>"
    )]
    pub cert_domains: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::DNS }>")]
    pub extra_records: Vec<DnsRecord>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::DNS }, { limit::TEXT }>"
    )]
    pub exit_node_filtered_set: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resolver {
    #[serde(deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub addr: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>")]
    pub bootstrap_resolution: Vec<std::net::IpAddr>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_with_exit_node: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsRecord {
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub r#type: String,
    #[serde(deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub value: String,
}
