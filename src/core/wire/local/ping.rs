//! The call `ping` and its answer.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::RegionId;

/// Which way a ping goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PingKind {
    /// A path probe, outside the tunnel: the answer tells which way it came.
    #[default]
    Disco,
    /// An ICMP echo through the tunnel, as `ping` sends it.
    Icmp,
}

impl PingKind {
    /// The name that requests and flags use; the official clients write the second in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Icmp => "ICMP",
        }
    }

    /// Reads the name, in whatever case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Disco, Self::Icmp].into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for PingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What came of a ping (`ipnstate.PingResult`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingReply {
    /// The address that was asked about.
    #[serde(rename = "IP")]
    pub ip: String,
    /// The overlay address of the node that has it.
    #[serde(rename = "NodeIP")]
    pub node_ip: String,
    /// The first label of that node's name.
    pub node_name: String,
    /// Why there is no answer; empty where there is one.
    pub err: String,
    pub latency_seconds: f64,
    /// `address:port`, where the answer came directly.
    pub endpoint: String,
    pub peer_relay: String,
    /// The region whose relay brought the answer; 0 where none did.
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: RegionId,
    #[serde(rename = "DERPRegionCode")]
    pub derp_region_code: String,
    /// The address is this node's own.
    #[serde(rename = "IsLocalIP", skip_serializing_if = "std::ops::Not::not")]
    pub is_local_ip: bool,
    /// Which way packets of programs take, where it is not the tunnel, and what to do; ours alone.
    #[serde(rename = "WarrenAstray", skip_serializing_if = "String::is_empty")]
    pub astray: String,
}

impl PingReply {
    /// An answer that says why there is none.
    pub fn failed(ip: IpAddr, reason: impl Into<String>) -> Self {
        Self { ip: ip.to_string(), err: reason.into(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_protocols_names() {
        let reply = PingReply {
            ip: "100.64.0.2".to_owned(),
            latency_seconds: 0.25,
            derp_region_id: RegionId(901),
            derp_region_code: "warren".to_owned(),
            ..PingReply::default()
        };
        assert_eq!(
            serde_json::to_string(&reply).unwrap(),
            r#"{"IP":"100.64.0.2","NodeIP":"","NodeName":"","Err":"","LatencySeconds":0.25,"Endpoint":"","PeerRelay":"","DERPRegionID":901,"DERPRegionCode":"warren"}"#
        );
    }

    #[test]
    fn a_kind_is_read_in_any_case_and_an_unknown_one_is_none() {
        assert_eq!(
            ["disco", "ICMP", "icmp", "TSMP"].map(PingKind::from_name),
            [Some(PingKind::Disco), Some(PingKind::Icmp), Some(PingKind::Icmp), None]
        );
    }
}
