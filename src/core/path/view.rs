//! The words in which [`Book`](super::Book) is spoken to, and answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::types::{DiscoPublic, NodePublic, RegionId, Timestamp};

/// What the map says of a peer, as far as its path is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo<'a> {
    /// Its node key, which WireGuard knows it by.
    pub key: NodePublic,
    /// The key of its probes. Without one there is no discovery: its endpoints are tried in turn.
    pub disco: Option<DiscoPublic>,
    /// Where it says that it may be reached.
    pub endpoints: &'a [SocketAddr],
    /// The relay region where it listens.
    pub home: Option<RegionId>,
    /// The loopback endpoint that stands for the relay towards it. Without it, or without a home, it has no relay
    /// path.
    pub relay: Option<SocketAddr>,
}

/// How a probe came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// As a datagram to WireGuard's port.
    Udp {
        /// The datagram's source.
        from: SocketAddr,
        /// The address of ours that it was sent to, where that is known.
        local: Option<IpAddr>,
    },
    /// Through a relay.
    Relay {
        /// The region of the relay.
        region: RegionId,
        /// The sender's node key, as the relay says.
        from: NodePublic,
    },
}

/// Where a packet is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// As a datagram from WireGuard's port.
    Udp {
        /// The datagram's destination.
        to: SocketAddr,
        /// The address of ours that it must come from: where a probe is answered. `None` leaves it to the routes.
        from: Option<IpAddr>,
    },
    /// Through a relay.
    Relay {
        /// The region of the relay.
        region: RegionId,
        /// The recipient's node key.
        peer: NodePublic,
    },
}

/// A packet to be sent: a probe, or an initiation of the kernel that is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// By UDP or a relay, and to whom.
    pub to: Target,
    /// The datagram's whole content, sealed already.
    pub payload: Vec<u8>,
}

/// What the book has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// The path to a peer, or what the kernel should have as its endpoint, is another one.
    PathChanged {
        /// The node key of the peer.
        peer: NodePublic,
    },
    /// A ping that was asked for has come to its end.
    PingDone {
        /// The number that the ping was asked for with.
        id: u64,
        /// The node key of the peer that was pinged.
        peer: NodePublic,
        /// The path that the first answer took, and the round trip on it; `None` when none came in time.
        answer: Option<(Target, Duration)>,
    },
    /// The kernel should be looked at: [`Book::handle_observed`](super::Book::handle_observed) of every peer, then
    /// [`Book::handle_looked`](super::Book::handle_looked).
    NeedsLook,
    /// Our own endpoints should be found out anew, and told by
    /// [`Book::handle_own_endpoints`](super::Book::handle_own_endpoints).
    NeedsFreshEndpoints,
}

/// The path selected for the packets to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selected {
    /// There is none.
    #[default]
    None,
    /// Through the relay region where it listens.
    Relay {
        /// The region where the peer listens.
        region: RegionId,
    },
    /// Straight to it.
    Direct {
        /// Where outer packets go.
        endpoint: SocketAddr,
        /// The address of ours that its packets come to, where that is known.
        local: Option<IpAddr>,
        /// Round trip of the last probe that it answered there.
        latency: Option<Duration>,
        /// Since when this path is selected.
        since: Instant,
    },
}

/// What is known of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathView {
    /// The path that its packets take.
    pub selected: Selected,
    /// Whether there was traffic of late, so that the path is kept. Handshakes that get no answer are none.
    pub active: bool,
}

/// What the kernel says of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Where its packets go.
    pub endpoint: Option<SocketAddr>,
    /// When its last handshake was completed.
    pub last_handshake: Option<Timestamp>,
    /// Bytes received from it, by whichever path.
    pub rx_bytes: u64,
    /// Bytes sent to it, handshake attempts included.
    pub tx_bytes: u64,
}

/// What should become of the kernel's endpoint of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointUpdate {
    /// It is right, or we know nothing better.
    #[default]
    Leave,
    /// Use this if there is none.
    Initial(SocketAddr),
    /// Use this in place of what is there.
    Move(SocketAddr),
}
