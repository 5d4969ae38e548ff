//! Which way to reach each peer.
//!
//! [`Book`] starts and rests every peer on its relay: the loopback endpoint behind which the pump sits, so that the
//! first packet of an idle peer wakes the search. While the peer is active it is searched for: every candidate (what the
//! map names, what the peer calls through the relay, where probes come from, guesses at a NAT's next port) is pinged,
//! and the peer is asked through the relay to do the same, so that both sides' NATs let the other in.
//!
//! - A pong *promotes*: nothing else makes a direct path, but for the kernel itself having followed the peer
//!   (roaming), which is kept and not fought.
//! - Distress *demotes*: no pong for [`TRUST`] while nothing comes in either, or WireGuard getting nothing through
//!   although pongs come. What failed is left alone for a pause that doubles.
//! - A direct path that carries small packets and none of [`FULL_SIZE`] is given up too, and asked with large pings from
//!   then on.
//! - Among candidates that answer, the class decides (on a link of ours, then global, then private addresses of other
//!   places), then latency, if it is better by a fifth and 5 ms, and not within [`DWELL`] of the last change.
//! - Whoever is idle for [`ACTIVE`] goes back to the relay, and costs a few hundred bytes and nothing else.
//!
//! Everything that a peer can make us do is limited: candidates of each source, probes per peer and in all, secrets
//! computed for strangers. A peer without a disco key is not probed; without a relay either, its endpoints are tried in
//! turn, each for [`PATIENCE`].
//!
//! Candidates inside the overlay, or inside a subnet that somebody advertises and that is not a link of ours, are
//! never used, and pings from there are not answered: a tunnel must not run through itself.

mod book;
mod candidate;
mod common;
mod direct;
mod live;
mod pace;
mod packed;
mod peer;
mod predict;
mod rank;
mod secrets;
mod view;

pub use book::Book;
pub use rank::Ranking;
pub use view::{EndpointUpdate, Evidence, PathEvent, PathView, PeerInfo, Selected, Target, Transmit, Via};

use std::time::Duration;

/// How long packets may go to an endpoint without a handshake before the next one is tried: WireGuard repeats an
/// initiation every five seconds, so each candidate gets one, and time for the answer.
pub const PATIENCE: Duration = Duration::from_secs(6);
/// The age at which WireGuard itself gives a session up (`REJECT_AFTER_TIME`).
pub const SESSION: Duration = Duration::from_secs(180);
/// How often the kernel is asked while a peer is active, or is tried without probes. Each look reads all peers, so the
/// pace falls with their number: once per this and thousand peers.
pub const LOOK: Duration = Duration::from_secs(2);
/// How long after its last traffic a peer's path is kept, as official clients do.
pub const ACTIVE: Duration = Duration::from_secs(45);
/// How long a direct path is believed in after the last sign that it works, as official clients do.
pub const TRUST: Duration = Duration::from_millis(6_500);
/// The pause between pings on a direct path that answers, as official clients do.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How soon a direct path falls back when a link of ours has gone and it does not prove itself.
pub const LINK_LOST: Duration = Duration::from_millis(900);
/// The least time between changes from one direct path to another of its class.
pub const DWELL: Duration = Duration::from_secs(15);
/// How often a better path is looked for.
pub const UPGRADE: Duration = Duration::from_secs(60);
/// The pause between pings on a direct path that does not answer: several may be lost before it is given up.
const PING_AGAIN: Duration = Duration::from_secs(1);
/// The same when a link of ours has gone.
const PING_URGENT: Duration = Duration::from_millis(200);
/// The payload of a WireGuard packet as large as the tunnel makes them: of 1,280 bytes, with its header and its seal. A
/// direct path has to carry it; the relay does.
pub const FULL_SIZE: usize = 1_280 + 32;
/// How often a direct path is asked whether it carries packets of that size.
const FULL_EVERY: Duration = Duration::from_secs(15);
/// The pause before that is asked again where no answer came, from then on with a small ping beside it; how many answers
/// have to be missing, and how many to small pings must have come, before the path is believed to be too narrow.
const FULL_AGAIN: Duration = Duration::from_millis(500);
const FULL_TRIES: u8 = 6;
const FULL_SMALL: u8 = FULL_TRIES - 2;
/// A pong after this is none.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer that probes us is remembered although we have no traffic with it.
const PASSIVE: Duration = Duration::from_secs(15);
/// WireGuard repeats an initiation after this; the old one is worth nothing then.
const INITIATION_LIFE: Duration = Duration::from_secs(5);
/// The age up to which our own endpoints may be told to a peer as they are, as official clients do.
const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
