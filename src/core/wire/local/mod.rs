//! The JSON of the agent's local socket, both ends.
//!
//! Two sets of messages share the socket. Those under [`path::TAILSCALE`] have the names and shapes of Tailscale's
//! LocalAPI (ipn, ipnstate and client/local in tailscale/tailscale hold the reference), so that programs written for
//! that socket work here; fields that we have nothing to say about are left out where readers allow it. Those under
//! [`path::WARREN`] are our own and are kept small.

mod acl;
mod dns_query;
mod dns_status;
mod net_map;
mod netcheck;
mod notify;
mod own;
mod ping;
mod prefs;
mod profile;
mod relays;
mod status;

pub use acl::{AclReply, AclRule, DeniedCount, WhyQuestion, WhyReply};
pub use dns_query::DnsReply;
pub use dns_status::{DnsRoute, DnsStatusReply};
pub use net_map::NetMapReply;
pub use netcheck::{NetcheckRegion, NetcheckReport};
pub use notify::{HealthState, HealthWarning, Mask, Notify, PeerPath, StartOptions};
pub use own::{HealthEntry, HealthReply, PlanReply, Severity, VersionReply};
pub use ping::{PingKind, PingReply};
pub use prefs::{AppConnector, AutoUpdate, MaskedPrefs, Prefs, PrefsError};
pub use profile::{LoginProfile, NetworkProfile};
pub use relays::{RelayCounters, RelaysReply};
pub use status::{AgentStatus, BackendState, PeerStatus, Status, TailnetStatus, WhoIs};

/// Where each call lives, and the host name that clients put into a request.
pub mod path {
    /// What the `Host` header says when it is not empty.
    pub const HOST: &str = "local-tailscaled.sock";
    /// The prefix of the calls that Tailscale's clients know.
    pub const TAILSCALE: &str = "/localapi/v0/";
    /// The prefix of our own calls.
    pub const WARREN: &str = "/warren/v0/";
    /// Where the agent listens unless told otherwise.
    pub const SOCKET: &str = "/run/warren/warrend.sock";
}

/// Limits on what a client may send.
pub mod limit {
    /// Bytes of a request body. The largest is a set of preferences with its advertised routes.
    pub const BODY: usize = 256 * 1024;
    /// Subnets that one node may offer.
    pub const ROUTES: usize = 4_096;
    /// Tags that one node may ask for.
    pub const TAGS: usize = 256;
}
