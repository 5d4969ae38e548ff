//! The nouns: one type per key role, identifier and unit, parsed at the edge.
//!
//! A value of one of these types is valid by construction; whoever holds it need not look again.
//! Keys of different roles are different types, so a machine key can never stand where a node key
//! belongs. Private keys print as `[redacted]` and have no `Display`.

mod bucket;
mod fingerprint;
mod gather;
mod id;
mod key;
mod limits;
mod name;
mod net;
mod role;
mod span;
pub mod text;
mod ticket;
mod traffic;

pub use bucket::{Fill, FillRate, TokenBucket};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use gather::Gather;
pub use id::{CapabilityVersion, NodeId, RegionId, StableNodeId, UserId};
pub use key::{
    ChallengePublic, DiscoPrivate, DiscoPublic, KeyError, MachinePrivate, MachinePublic, NodePrivate, NodePublic,
};
pub use limits::{Limit, LimitError, bounded_map, bounded_vec};
pub use name::{HostLabel, NameError};
pub use net::{
    EXIT_ROUTES, NEVER_ROUTED, OVERLAY_V4, OVERLAY_V6, RESOLVER_ADDRESSES, SITES_V6, SOMEWHERE, in_overlay,
    is_default_route, may_be_routed, why_not_routed,
};
pub use role::{Role, RoleError, UserStatus, UserStatusError};
pub use span::{DurationError, Lifetime, parse_duration};
pub use ticket::{PendingCode, Ticket, TicketError};
pub use traffic::{Traffic, TrafficError};

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use jiff::Timestamp;
