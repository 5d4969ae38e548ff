//! The words in which [`Book`](super::Book) is spoken to, and answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::types::{DiscoPublic, NodePublic, RegionId, Timestamp};

/// What the map says of a peer, as far as its path is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo<'a> {
    /// Its WireGuard key.
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

/// The way a probe came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// As a datagram to WireGuard's port.
    Udp {
        /// Its source.
        from: SocketAddr,
        /// The address of ours that it was sent to, where that is known.
        local: Option<IpAddr>,
    },
    /// Through a relay.
    Relay {
        /// Through which.
        region: RegionId,
        /// From whom, as the relay says.
        from: NodePublic,
    },
}

/// Where a packet is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// As a datagram from WireGuard's port.
    Udp {
        /// Its destination.
        to: SocketAddr,
        /// The address of ours that it must come from: where a probe is answered. `None` leaves it to the routes.
        from: Option<IpAddr>,
    },
    /// Through a relay.
    Relay {
        /// Through which.
        region: RegionId,
        /// To whom.
        peer: NodePublic,
    },
}

/// A packet to be sent: a probe, or an initiation of the kernel that is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: Target,
    /// The whole payload.
    pub payload: Vec<u8>,
}

/// What the book has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The path to a peer, or what the kernel should have as its endpoint, is another one.
    PathChanged {
        /// Whose.
        peer: NodePublic,
    },
    /// A ping that was asked for has come to its end.
    PingDone {
        /// Which.
        id: u64,
        /// Who was pinged.
        peer: NodePublic,
        /// The way the first answer took, and how long it was on it; `None` when none came in time.
        answer: Option<(Target, Duration)>,
    },
    /// The kernel should be looked at: [`Book::handle_observed`](super::Book::handle_observed) of every peer, then
    /// [`Book::handle_looked`](super::Book::handle_looked).
    NeedsLook,
    /// Our own endpoints should be found out anew, and told by
    /// [`Book::handle_own_endpoints`](super::Book::handle_own_endpoints).
    NeedsFreshEndpoints,
}

/// The way that packets to a peer take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// There is none.
    #[default]
    None,
    /// Through the relay region where it listens.
    Relay {
        /// Which.
        region: RegionId,
    },
    /// Straight to it.
    Direct {
        /// Its address.
        endpoint: SocketAddr,
        /// The address of ours that its packets come to, where that is known.
        local: Option<IpAddr>,
        /// Of the last probe that it answered there.
        latency: Option<Duration>,
        /// Since when this is the way.
        since: Instant,
    },
}

/// What is known of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathView {
    /// The way that its packets take.
    pub way: Way,
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
    /// Bytes received from it, by whichever way.
    pub rx_bytes: u64,
    /// Bytes sent to it, handshake attempts included.
    pub tx_bytes: u64,
}

/// What should become of the kernel's endpoint of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// It is right, or we know nothing better.
    #[default]
    Leave,
    /// Use this if there is none.
    Initial(SocketAddr),
    /// Use this in place of what is there.
    Move(SocketAddr),
}
