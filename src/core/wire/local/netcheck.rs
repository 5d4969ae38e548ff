//! What this host knows of its own network.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::types::RegionId;

/// The answer to `netcheck`. The names and units are those of `tailscale netcheck --format=json`, up to
/// `CaptivePortal`; latencies are nanoseconds by region, and an unknown address is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetcheckReport {
    /// When this was asked.
    pub now: Option<Timestamp>,
    #[serde(rename = "UDP")]
    pub udp: bool,
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    #[serde(rename = "IPv4")]
    pub ipv4: bool,
    #[serde(rename = "IPv6CanSend")]
    pub ipv6_can_send: bool,
    #[serde(rename = "IPv4CanSend")]
    pub ipv4_can_send: bool,
    #[serde(rename = "OSHasIPv6")]
    pub os_has_ipv6: bool,
    /// Absent where fewer than two servers answered.
    #[serde(rename = "MappingVariesByDestIP")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// Absent where it was not tried; so the next two.
    #[serde(rename = "UPnP")]
    pub upnp: Option<bool>,
    #[serde(rename = "PMP")]
    pub pmp: Option<bool>,
    #[serde(rename = "PCP")]
    pub pcp: Option<bool>,
    /// The home region; 0 for none.
    #[serde(rename = "PreferredDERP")]
    pub preferred_derp: RegionId,
    pub region_latency: BTreeMap<RegionId, i64>,
    pub region_v4_latency: BTreeMap<RegionId, i64>,
    pub region_v6_latency: BTreeMap<RegionId, i64>,
    pub global_v4_counters: BTreeMap<SocketAddr, u32>,
    pub global_v6_counters: BTreeMap<SocketAddr, u32>,
    pub global_v4: String,
    pub global_v6: String,
    pub captive_portal: Option<bool>,
    /// The address and port that the gateway forwards to us.
    pub port_mapped: String,
    /// Every region that was looked for.
    pub regions: BTreeMap<RegionId, NetcheckRegion>,
}

/// What a region is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetcheckRegion {
    pub code: String,
    pub name: String,
}
