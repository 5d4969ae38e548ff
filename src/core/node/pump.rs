//! What the agent and its relay pump tell each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::types::{NodePrivate, NodePublic, RegionId};
use crate::wire::control::DerpMap;
use crate::wire::local::RelayCounters;

/// What the pump is told. Each is the whole wish for what it names.
#[derive(Debug)]
pub enum PumpCommand {
    /// Where the relays are.
    Regions(Arc<DerpMap>),
    /// Which region's relay is kept connected, so that others find us there.
    Home(Option<RegionId>),
    /// How to reach a peer; none where it is no peer any more. Say so before the kernel is told.
    Peer {
        key: NodePublic,
        /// `None` where it is to be forgotten.
        entry: Option<PumpPeer>,
    },
    /// Send this probe to a peer by this region.
    Disco {
        region: RegionId,
        peer: NodePublic,
        /// A probe, sealed.
        payload: Vec<u8>,
    },
    /// Who we are, from here on. Without, nothing is connected.
    Key(Option<NodePrivate>),
    /// Addresses or routes of this host changed.
    Rebind,
}

/// How to reach a peer, and how to hand in what comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PumpPeer {
    /// Its loopback address, as [`relay_address`](crate::plan::own::relay_address) gives it.
    pub loopback: Ipv4Addr,
    /// The region that it calls its home.
    pub region: Option<RegionId>,
    /// Its direct path while there is one: what a relay brings is given this source, so that it does not move the
    /// kernel's endpoint.
    pub direct: Option<Direct>,
}

/// A direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// The address of ours that the path uses, where it is known.
    pub local: Option<IpAddr>,
}

/// What the pump tells.
#[derive(Debug)]
pub enum PumpNews {
    /// A probe came over a relay, from a peer that the pump knows.
    Disco {
        region: RegionId,
        /// From whom, as the relay says.
        from: NodePublic,
        /// A probe, sealed.
        payload: Vec<u8>,
    },
    /// The kernel begins a handshake with a peer by the relay. The packet has been sent there; it may be sent again
    /// on a direct path.
    Initiation {
        peer: NodePublic,
        /// WireGuard's first message, as the kernel sent it.
        packet: Vec<u8>,
    },
    /// Packets pass between WireGuard and this peer by a relay. Said once a second at most.
    Traffic { peer: NodePublic },
    /// How the connection to a region stands.
    Region { region: RegionId, state: RegionState },
    /// What a relay says is wrong with our connection; empty once it is right again.
    Health {
        region: RegionId,
        /// In the relay's words.
        text: String,
    },
}

/// How the connection to a region stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionState {
    /// It is being made.
    Trying,
    /// Packets flow.
    Connected,
    /// It cannot be made, or broke; why. It is tried again if it is wanted.
    Failed(String),
    /// Nobody wants it.
    Closed,
}

/// What a pump has done and lost. Bytes are of WireGuard's and DISCO's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpCounters {
    /// Packets given to relays.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Packets taken from relays and handed in.
    pub received: u64,
    pub received_bytes: u64,
    /// Of those, with a direct path's source.
    pub received_forged: u64,
    /// From the kernel to a loopback address that is no peer's, or from a relay in the name of no peer.
    pub dropped_unknown_peer: u64,
    /// To a peer that no relay is known for, or whose relay cannot be reached.
    pub dropped_no_relay: u64,
    /// Newer ones came before the line to the relay was free.
    pub dropped_queue_full: u64,
    /// The relay's terms do not allow so many.
    pub dropped_rate: u64,
    /// Neither WireGuard's nor DISCO's, or too long.
    pub dropped_malformed: u64,
    /// The kernel did not take them.
    pub dropped_not_injected: u64,
    /// Probes and initiations that the loop had no time for.
    pub dropped_loop_busy: u64,
    /// From the kernel, before the pump could take them.
    pub dropped_socket_full: u64,
}

impl PumpCounters {
    /// The same for people and monitors.
    pub(super) fn told(&self) -> RelayCounters {
        RelayCounters {
            sent: self.sent,
            sent_bytes: self.sent_bytes,
            received: self.received,
            received_bytes: self.received_bytes,
            received_while_direct: self.received_forged,
            dropped_unknown_peer: self.dropped_unknown_peer,
            dropped_no_relay: self.dropped_no_relay,
            dropped_queue_full: self.dropped_queue_full,
            dropped_rate: self.dropped_rate,
            dropped_malformed: self.dropped_malformed,
            dropped_not_injected: self.dropped_not_injected,
            dropped_loop_busy: self.dropped_loop_busy,
            dropped_socket_full: self.dropped_socket_full,
        }
    }
}
