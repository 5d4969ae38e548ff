//! The state of this node and what it knows of its peers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::{Fingerprint, IpNet, NodeId, NodePublic, StableNodeId, UserId};
use crate::wire::control::{CapMap, Node, UserProfile, time};

/// How far the agent has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// Nothing is known yet.
    #[default]
    NoState,
    /// A person or a key has to let this node in.
    NeedsLogin,
    /// The coordinator knows the node but has not approved it.
    NeedsMachineAuth,
    /// Turned off by the operator.
    Stopped,
    /// On its way: no map yet, or the kernel does not hold it yet.
    Starting,
    /// The kernel holds what the map says.
    Running,
}

impl BackendState {
    const ALL: [(Self, &'static str, u8); 6] = [
        (Self::NoState, "NoState", 0),
        (Self::NeedsLogin, "NeedsLogin", 2),
        (Self::NeedsMachineAuth, "NeedsMachineAuth", 3),
        (Self::Stopped, "Stopped", 4),
        (Self::Starting, "Starting", 5),
        (Self::Running, "Running", 6),
    ];

    /// The name that a status shows.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(state, ..)| *state == self).map_or("NoState", |(_, name, _)| name)
    }

    /// The number that a notice carries.
    pub fn number(self) -> u8 {
        Self::ALL.iter().find(|(state, ..)| *state == self).map_or(0, |(.., number)| *number)
    }

    /// The state that a notice names.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|(.., n)| *n == number).map(|(state, ..)| *state)
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for BackendState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for BackendState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let known = Self::ALL.iter().find(|(_, name, _)| *name == text);
        known.map(|(state, ..)| *state).ok_or_else(|| serde::de::Error::custom(format!("no state is called `{text}`")))
    }
}

/// The peers are a map in memory; whoever writes a large one may give something that makes them one by one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Status<P: Default = BTreeMap<NodePublic, PeerStatus>> {
    pub version: String,
    /// Always true: the tunnel is the kernel's.
    #[serde(rename = "TUN")]
    pub tun: bool,
    pub backend_state: BackendState,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub have_node_key: bool,
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    #[serde(rename = "Self")]
    pub this: PeerStatus,
    pub health: Vec<String>,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    pub current_tailnet: Option<TailnetStatus>,
    pub cert_domains: Vec<String>,
    pub peer: P,
    pub user: BTreeMap<UserId, UserProfile>,
    /// What other agents' status does not have.
    pub warren: AgentStatus,
}

/// What only our status says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentStatus {
    pub coordinator: String,
    /// The short form of its key, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coordinator_key: Option<Fingerprint>,
    /// Whether the map stream is open at this moment.
    pub coordinator_connected: bool,
    /// When the map was last confirmed by the coordinator.
    pub map_time: Option<Timestamp>,
    /// Seconds since then; absent where there is no map.
    pub map_age_seconds: Option<i64>,
    /// Whether the kernel holds the whole wish.
    pub converged: bool,
    /// The UDP port of the outer packets.
    pub listen_port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TailnetStatus {
    pub name: String,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    #[serde(rename = "MagicDNSEnabled")]
    pub magic_dns_enabled: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerStatus {
    #[serde(rename = "ID")]
    pub id: StableNodeId,
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    pub public_key: NodePublic,
    pub host_name: String,
    /// With a final dot.
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    #[serde(rename = "OS")]
    pub os: String,
    #[serde(rename = "UserID")]
    pub user_id: UserId,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<IpNet>,
    /// Where the peer says that it can be reached.
    pub addrs: Vec<SocketAddr>,
    /// Where its packets go at this moment; empty where that is nowhere.
    pub cur_addr: String,
    pub relay: String,
    pub peer_relay: String,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    #[serde(with = "time")]
    pub created: Option<Timestamp>,
    #[serde(with = "time")]
    pub last_write: Option<Timestamp>,
    #[serde(with = "time")]
    pub last_seen: Option<Timestamp>,
    #[serde(with = "time")]
    pub last_handshake: Option<Timestamp>,
    /// Connected to the coordinator.
    pub online: bool,
    pub exit_node: bool,
    pub exit_node_option: bool,
    /// The tunnel to it is in use.
    pub active: bool,
    #[serde(rename = "PeerAPIURL")]
    pub peer_api_url: Vec<String>,
    pub taildrop_target: i64,
    pub no_file_sharing_reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: CapMap,
    pub in_network_map: bool,
    pub in_magic_sock: bool,
    /// In the kernel's list of peers.
    pub in_engine: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Timestamp>,
}

/// Whose an overlay address or node key is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WhoIs {
    pub node: Node,
    pub user_profile: UserProfile,
    pub cap_map: CapMap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_the_protocols_name_and_number() {
        for (state, name, number) in BackendState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<BackendState>(&format!("\"{name}\"")).unwrap(), state);
            assert_eq!(BackendState::from_number(number), Some(state));
        }
        assert!(serde_json::from_str::<BackendState>("\"Sleeping\"").is_err());
    }

    #[test]
    fn a_time_that_is_not_known_is_written_as_the_year_one() {
        let json = serde_json::to_value(PeerStatus::default()).unwrap();
        assert_eq!(json["LastHandshake"], "0001-01-01T00:00:00Z");
    }

    #[test]
    fn a_status_reads_back_what_it_wrote() {
        let key: NodePublic =
            "nodekey:8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a".parse().unwrap();
        let peer = PeerStatus { public_key: key, host_name: "web".into(), ..PeerStatus::default() };
        let status: Status = Status {
            peer: [(key, peer)].into(),
            user: [(UserId(7), UserProfile::default())].into(),
            ..Status::default()
        };

        let read: Status = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();

        assert_eq!(read.peer[&key].host_name, "web");
        assert!(read.user.contains_key(&UserId(7)));
    }
}
