//! Which way to reach each peer.
//!
//! [`Book`] knows, per peer, the endpoints that the map names, ranked: on a link of ours first, then global
//! addresses, then private ones of other places. It has one source of truth about the data path: what the kernel
//! reports of handshakes and byte counters. A peer whose handshakes succeed stays where it is; one to which packets
//! go without a handshake is moved to its next candidate, at most once in [`PATIENCE`].
//!
//! Candidates inside the overlay, or inside a subnet that somebody advertises and that is not a link of ours, are
//! never used: a tunnel must not run through itself.

pub mod netcheck;
pub mod portmap;

mod book;
mod rank;
mod view;

pub use book::Book;
pub use rank::Ground;
pub use view::{Event, Evidence, PathView, PeerInfo, Target, Transmit, Via, Way, Wish};

use std::time::Duration;

/// How long packets may go to an endpoint without a handshake before the next one is tried: WireGuard repeats an
/// initiation every five seconds, so each candidate gets one, and time for the answer.
pub const PATIENCE: Duration = Duration::from_secs(6);
/// The age at which WireGuard itself gives a session up (`REJECT_AFTER_TIME`).
pub const SESSION: Duration = Duration::from_secs(180);
/// How often the kernel is asked about peers without a session. Each look reads all peers, so the pace falls with
/// their number: once per this and thousand peers.
pub const LOOK: Duration = Duration::from_secs(2);
