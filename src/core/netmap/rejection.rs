//! What was left out of a map, and why.

use std::fmt;

use thiserror::Error;

use crate::types::{IpNet, LimitError, NodeId, Timestamp};
use crate::wire::control::{Node, Unreadable};

/// One entry of the map that is not used. The rest of the map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which entry: "route 10.0.0.0/8 of peer 7 (alpha.example.)".
    pub object: String,
    /// What is wrong with it.
    pub reason: Reason,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is left out: {}", self.object, self.reason)
    }
}

/// What is wrong with an entry of the map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// A peer has our number.
    #[error("its number is this node's own")]
    OwnNumber,
    /// A peer has our node key.
    #[error("its key is this node's own; if this disk was cloned, log out and in again on one of the two")]
    OwnKey,
    /// A peer has our address.
    #[error("the address is this node's own; whoever runs the coordinator can give one of the two another")]
    OwnAddress,
    /// A peer without a node key.
    #[error("it has no node key")]
    NoKey,
    /// Another peer has the key.
    #[error("peer {0} has the same node key")]
    KeyTaken(NodeId),
    /// A peer with no usable address.
    #[error("it has no address in 100.64.0.0/10 or fd7a:115c:a1e0::/48")]
    NoAddress,
    /// A peer that speaks WireGuard alone, at an endpoint of its own.
    #[error("it speaks plain WireGuard only, and is not behind this node")]
    PlainWireGuard,
    /// An address that is no host prefix of the overlay.
    #[error("an address is a single one of 100.64.0.0/10 or fd7a:115c:a1e0::/48")]
    NotOverlay,
    /// Another peer has the prefix.
    #[error("peer {0} has it already; only one peer can carry it")]
    PrefixTaken(NodeId),
    /// A subnet inside the overlay, or one that covers part of it.
    #[error("it covers addresses of the overlay, which belong to one peer each")]
    CoversOverlay,
    /// The address that answers DNS on every node.
    #[error("the address is the resolver's, on every node")]
    ResolverAddress,
    /// Loopback, link-local, multicast, reserved.
    #[error("it covers {0}, which is never routed")]
    NeverRouted(IpNet),
    /// A default route without an exit node being chosen.
    #[error("all traffic goes to a peer only where it was chosen as exit node")]
    DefaultRoute,
    /// A prefix that this host is directly attached to.
    #[error("this host is itself on {0}; change the route, or the host's own network")]
    HostNetwork(IpNet),
    /// A route to more of the public addresses than anybody's own network has.
    #[error(
        "a route to public addresses is a /{0} or longer; all of the internet goes to a peer only where it was chosen as exit node"
    )]
    TooWide(u8),
    /// The same by many routes together.
    #[error(
        "with the others it is more of the internet than the networks of a few organisations have; all of it goes to a peer only where it was chosen as exit node"
    )]
    TooMuchOfInternet,
    /// An address within a route that the host itself depends on.
    #[error(
        "this host asks it for names, or it is the coordinator's or a relay's, so packets to it go on as they did; `warrend --route-resolvers` lets peers carry those to name servers"
    )]
    InUse,
    /// A prefix to which this host has a route of its own.
    #[error("this host has a route of its own to {0}, which stays; remove that, or change the peer's")]
    HostRoute(IpNet),
    /// A prefix in which too many networks of this host lie.
    #[error("more networks of this host lie in it than can be left out of it; narrower routes would do")]
    TooManyHoles,
    /// Too many.
    #[error("{0}")]
    TooMany(LimitError),
    /// An entry that is not what the protocol says it is.
    #[error("it cannot be read: {0}; the agent may be older than the coordinator")]
    Malformed(String),
    /// A text that is none of the forms of the packet filter.
    #[error("it is neither an address, a prefix, a range, `*` nor a capability")]
    Unreadable,
    /// A port range that ends before it begins.
    #[error("the range ends before it begins")]
    NoPorts,
    /// A protocol number outside 1 to 255.
    #[error("an IP protocol is a number from 1 to 255")]
    NoProtocol,
}

impl Rejection {
    /// About an entry that could not be read at all.
    pub(super) fn unreadable(entry: Unreadable) -> Self {
        Self { object: format!("peer {}", entry.id), reason: Reason::Malformed(entry.reason) }
    }

    /// About a whole peer.
    pub(super) fn peer(node: &Node, reason: Reason) -> Self {
        Self { object: describe(node), reason }
    }

    /// About a prefix of a peer.
    pub(super) fn prefix(what: &str, prefix: IpNet, node: &Node, reason: Reason) -> Self {
        Self { object: format!("{what} {prefix} of {}", describe(node)), reason }
    }
}

/// How people are told of a node. Its name comes from outside, so control characters are escaped.
pub(super) fn describe(node: &Node) -> String {
    let name: String = node.name.trim_end_matches('.').chars().take(80).collect();
    format!("peer {} ({})", node.id, name.escape_debug())
}

/// Whether a time is set and reached.
pub(super) fn is_past(time: Option<Timestamp>, now: Timestamp) -> bool {
    time.is_some_and(|time| time <= now)
}
