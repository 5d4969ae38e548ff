//! The JSON messages of the control protocol, both ends.
//!
//! The names are the protocol's own (tailcfg.go in tailscale/tailscale holds the reference and its history);
//! fields that neither our agent nor our coordinator reads are left out, and unknown ones are ignored. In a
//! [`MapResponse`] an absent field means "unchanged" and an empty list means "none", so every list there is
//! an `Option`. Every list has a limit, checked before memory is asked for.

mod derp_map;
mod dns;
mod filter;
mod hostinfo;
mod listed;
mod map;
mod node;
mod register;
pub(in crate::wire) mod time;

pub use derp_map::{DerpHomeParams, DerpMap, DerpNode, DerpRegion};
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter::{CapGrant, FilterRule, NetPortRange, Ports, RuleOrigin, match_all};
pub use hostinfo::{Hostinfo, NetInfo, Service};
pub use listed::{Listed, Unreadable};
pub use map::{Debug, EndpointType, MapRequest, MapResponse, PeerChange, PingRequest};
pub use node::{CapMap, Node, UserProfile};
pub use register::{
    Login, OverTlsPublicKeys, ROTATES_NODE_KEYS, RegisterAuth, RegisterRequest, RegisterResponse, ServerKey, User,
};

/// Limits on what one message may hold.
pub mod limit {
    /// Objects, and values of any kind, in one map message. One of two bytes may become two hundred in memory, so
    /// the bytes of a message bound neither. 20,000 peers have some 10 and 60 each, 500,000 entries of a packet filter
    /// two and four.
    pub const OBJECTS: usize = 1_500_000;
    /// See [`OBJECTS`].
    pub const VALUES: usize = 4_000_000;
    /// Peers in a map: the network we are built for, with room.
    pub const PEERS: usize = 20_000;
    /// Addresses, allowed IPs or routes of one node. A gateway may serve many subnets.
    pub const PREFIXES: usize = 4_096;
    /// Endpoints of one node: interfaces × (local, STUN, port-mapped).
    pub const ENDPOINTS: usize = 256;
    /// Rules in one packet filter.
    pub const RULES: usize = 100_000;
    /// Sources or destinations of one rule.
    pub const RULE_ENTRIES: usize = 100_000;
    /// Tags of one node.
    pub const TAGS: usize = 256;
    /// Resolvers, domains or records in a DNS configuration.
    pub const DNS: usize = 10_000;
    /// Relay regions.
    pub const DERP_REGIONS: usize = 1_000;
    /// Relay nodes of a region.
    pub const DERP_NODES: usize = 64;
    /// Bytes of a name, an address or a version: the longest name of DNS.
    pub const NAME: usize = 255;
    /// Bytes of a sentence or a URL.
    pub const TEXT: usize = 2_048;
    /// Health lines, services and other small lists.
    pub const SMALL: usize = 256;
}
