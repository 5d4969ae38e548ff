//! What a node says of itself.
//!
//! The reference server reads names in any case, and the official Rust client writes some in another than the official
//! agent: those are the aliases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limit;
use crate::types::text::{clean_text, clean_texts};
use crate::types::{IpNet, RegionId, bounded_vec};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Hostinfo {
    #[serde(
        rename = "IPNVersion",
        alias = "IpnVersion",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub ipn_version: String,
    #[serde(
        rename = "BackendLogID",
        alias = "BackendLogId",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub backend_log_id: String,
    #[serde(
        rename = "OS",
        alias = "Os",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub os: String,
    #[serde(
        rename = "OSVersion",
        alias = "OsVersion",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub os_version: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub distro: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub distro_version: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub distro_code_name: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub app: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub package: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub device_model: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub hostname: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shields_up: bool,
    /// Whether it updates itself, or lets administrators update it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allows_update: bool,
    /// Whether its state is encrypted where it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_encrypted: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sharee_node: bool,
    #[serde(rename = "NoLogsNoSupport", skip_serializing_if = "std::ops::Not::not")]
    pub no_logs_no_support: bool,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub machine: String,
    #[serde(
        rename = "GoArch",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub go_arch: String,
    #[serde(
        rename = "GoVersion",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub go_version: String,
    /// Subnets this node offers to route, 0.0.0.0/0 and ::/0 for an exit node.
    #[serde(
        rename = "RoutableIPs",
        alias = "RoutableIps",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded_vec::<_, _, { limit::PREFIXES }>"
    )]
    pub routable_ips: Vec<IpNet>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::TAGS }, { limit::TEXT }>"
    )]
    pub request_tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded_vec::<_, _, { limit::SMALL }>")]
    pub services: Vec<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
    #[serde(
        rename = "sshHostKeys",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "clean_texts::<_, { limit::SMALL }, { limit::TEXT }>"
    )]
    pub ssh_host_keys: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace_router: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_connector: Option<bool>,
    #[serde(
        rename = "ExitNodeID",
        alias = "ExitNodeId",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "clean_text::<_, { limit::NAME }>"
    )]
    pub exit_node_id: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    #[serde(deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub proto: String,
    pub port: u16,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::TEXT }>")]
    pub description: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetInfo {
    #[serde(rename = "MappingVariesByDestIP", alias = "MappingVariesByDestIp")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    #[serde(rename = "WorkingIPv6", alias = "WorkingIpv6")]
    pub working_ipv6: Option<bool>,
    #[serde(rename = "OSHasIPv6", alias = "OsHasIpv6")]
    pub os_has_ipv6: Option<bool>,
    #[serde(rename = "WorkingUDP", alias = "WorkingUdp")]
    pub working_udp: Option<bool>,
    #[serde(rename = "WorkingICMPv4", alias = "WorkingIcmpv4")]
    pub working_icmpv4: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub have_port_map: bool,
    #[serde(rename = "UPnP", alias = "Upnp")]
    pub upnp: Option<bool>,
    #[serde(rename = "PMP", alias = "Pmp")]
    pub pmp: Option<bool>,
    #[serde(rename = "PCP", alias = "Pcp")]
    pub pcp: Option<bool>,
    #[serde(rename = "PreferredDERP", alias = "PreferredDerp")]
    pub preferred_derp: RegionId,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub link_type: String,
    /// Seconds to each relay, by region and family: `900-v4`.
    #[serde(rename = "DERPLatency", alias = "DerpLatency", skip_serializing_if = "BTreeMap::is_empty")]
    pub derp_latency: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "clean_text::<_, { limit::NAME }>")]
    pub firewall_mode: String,
}

#[cfg(test)]
mod tests {
    use crate::types::RegionId;
    use crate::wire::control::MapRequest;

    #[test]
    fn the_names_of_the_official_rust_client_are_understood() {
        let request: MapRequest = serde_json::from_str(
            r#"{ "Version": 130, "HostInfo": { "IpnVersion": "0.6.1", "App": "tailscale-rs", "Hostname": "echo",
                "NetInfo": { "PreferredDerp": 900, "DerpLatency": { "900-v4": 0.000237333 } } }, "OmitPeers": true }"#,
        )
        .unwrap();
        let hostinfo = request.hostinfo.unwrap();
        assert_eq!((&*hostinfo.ipn_version, &*hostinfo.hostname), ("0.6.1", "echo"));
        let network = hostinfo.net_info.unwrap();
        assert_eq!((network.preferred_derp, network.derp_latency.len()), (RegionId(900), 1));
    }
}
