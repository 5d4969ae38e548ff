//! Our own call `relays`: how the connections to relays stand, and what passed through them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::RegionId;

/// The answer to `relays`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RelaysReply {
    /// Where others find us; 0 for nowhere.
    pub home: RegionId,
    /// How the connection to each region stands that is, or was, wanted: `connected`, `trying`, `closed`, or why not.
    pub regions: BTreeMap<RegionId, String>,
    pub counters: RelayCounters,
}

/// What passed through relays since the agent started, and what was lost on the way. Bytes are of WireGuard's and
/// DISCO's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RelayCounters {
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
    /// Of those received, the ones that came while the peer was reached directly.
    pub received_while_direct: u64,
    pub dropped_unknown_peer: u64,
    pub dropped_no_relay: u64,
    pub dropped_queue_full: u64,
    pub dropped_rate: u64,
    pub dropped_malformed: u64,
    pub dropped_not_injected: u64,
    pub dropped_loop_busy: u64,
    pub dropped_socket_full: u64,
}

impl RelayCounters {
    /// What was lost, by reason.
    pub fn drops(&self) -> [(&'static str, u64); 8] {
        [
            ("from or to nobody we know", self.dropped_unknown_peer),
            ("no relay is known or reached", self.dropped_no_relay),
            ("the line to the relay was full", self.dropped_queue_full),
            ("the relay's terms allow no more", self.dropped_rate),
            ("malformed", self.dropped_malformed),
            ("the kernel took no more", self.dropped_not_injected),
            ("the agent was busy", self.dropped_loop_busy),
            ("the loopback socket was full", self.dropped_socket_full),
        ]
    }
}
