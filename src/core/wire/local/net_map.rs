//! What the coordinator has told, as `debug` with the action `current-netmap` shows it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::types::{MachinePublic, NodePublic, UserId};
use crate::wire::control::{DerpMap, DnsConfig, Node, UserProfile};

/// The map, borrowed: it is only ever written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetMapReply<'a, P: Serialize> {
    pub self_node: Option<&'a Node>,
    pub node_key: NodePublic,
    pub machine_key: MachinePublic,
    pub name: &'a str,
    pub domain: &'a str,
    pub peers: P,
    #[serde(rename = "DNS")]
    pub dns: &'a DnsConfig,
    #[serde(rename = "DERPMap")]
    pub derp_map: &'a DerpMap,
    pub user_profiles: BTreeMap<UserId, &'a UserProfile>,
    #[serde(rename = "TKAEnabled")]
    pub tka_enabled: bool,
}
