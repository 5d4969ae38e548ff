//! What this host knows of its own network: where it can be reached, which relay is its home, what its NAT does.
//!
//! One *look* at a time asks the STUN servers of the relay map, from WireGuard's own port, where our packets seem to
//! come from: all regions in a full look, the home and the nearest ones in a short one. Where no answer comes back,
//! UDP counts as blocked, and the relays' HTTPS latency decides. A look is begun by news (another map, other links, a
//! caller's wish) and, while tunnels are in use, every [`ACTIVE_EVERY`]; an idle node looks once an [`IDLE_EVERY`].
//!
//! Believed is only an answer to a question of the present look, from the address that was asked. The home region stays
//! until another is clearly nearer or it cannot be connected; while the map has a usable region there always is one.
//! A relay map is somebody else's: counts are bounded by the names in [`limit`].

mod news;
mod report;

use std::ops::Range;
use std::time::Duration;

pub use news::{Action, Config, Event, Gateway, HttpsTarget, News};
pub use report::{Endpoint, MappingReport, RegionReport, Report};

/// While tunnels are in use, a short look begins this long after the last one: within the 30 s for which careless NATs
/// keep a mapping. Official clients pace themselves the same.
pub const ACTIVE_EVERY: Range<Duration> = Duration::from_secs(20)..Duration::from_secs(26);
/// While tunnels are in use, a look is a full one when the last full one is older than this.
pub const FULL_EVERY: Duration = Duration::from_secs(5 * 60);
/// While no tunnel is in use: often enough that a relay that went away or a new address is known within a while, seldom
/// enough that ten thousand idle nodes are a few packets a second to a STUN server.
pub const IDLE_EVERY: Range<Duration> = Duration::from_secs(54 * 60)..Duration::from_secs(66 * 60);

/// How much of a relay map is used.
pub mod limit {
    /// Regions that are measured; those with the lowest numbers.
    pub const REGIONS: usize = 128;
    /// Nodes of a region that are asked.
    pub const NODES: usize = 3;
    /// Addresses of one name and family that are kept.
    pub const ADDRESSES: usize = 4;
    /// Endpoints that are told to others.
    pub const ENDPOINTS: usize = 64;
}
