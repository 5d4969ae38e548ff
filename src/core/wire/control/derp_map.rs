//! Where the relays are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limit;
use crate::types::text::clean_text;
use crate::types::{RegionId, bounded_map, bounded_vec};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpMap {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_params: Option<DerpHomeParams>,
    #[serde(deserialize_with = "bounded_map::<_, _, _, { limit::DERP_REGIONS }>")]
    pub regions: BTreeMap<RegionId, Option<DerpRegion>>,
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "std::ops::Not::not")]
    pub omit_default_regions: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpHomeParams {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub region_score: BTreeMap<RegionId, f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpRegion {
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub region_code: String,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub region_name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub avoid: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_measure_no_home: bool,
    #[serde(deserialize_with = "bounded_vec::<_, _, { limit::DERP_NODES }>")]
    pub nodes: Vec<DerpNode>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpNode {
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub name: String,
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub host_name: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub cert_name: String,
    /// An address, empty for "look it up", or `none`.
    #[serde(
        rename = "IPv4",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub ipv4: String,
    #[serde(
        rename = "IPv6",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub ipv6: String,
    /// 0 for 3478, -1 for none.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    #[serde(rename = "STUNOnly", skip_serializing_if = "std::ops::Not::not")]
    pub stun_only: bool,
    /// 0 for 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_zero")]
    pub derp_port: i32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_for_tests: bool,
    #[serde(
        rename = "STUNTestIP",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub stun_test_ip: String,
    #[serde(rename = "CanPort80", skip_serializing_if = "std::ops::Not::not")]
    pub can_port80: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}
