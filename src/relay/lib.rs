//! The relay's shell: sockets and tasks around the relay protocol and STUN.
//!
//! [`Relay`] is the meeting point: every connection's task hands its bytes to the one [`derp::Server`] under a
//! lock, wakes the tasks whose queues filled, and writes what waits in its own. A task holds the lock for the
//! frames of one read or for one copy out, never while it waits for a socket. The same value serves a program
//! of its own and the coordinator's embedded relay.
//!
//! [`Cli`] is that program: `listen` accepts, `http` answers the small questions and hands over who asks for the
//! relay protocol, `verify` asks a coordinator whom to admit.
//!
//! The relay sees ciphertext and keys. It logs neither addresses nor keys above the debug level.
//!
//! [`derp::Server`]: warren_core::derp::Server

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod acme;
mod admission;
mod certificate;
mod cli;
mod clock;
mod connection;
#[doc(hidden)]
pub mod decoders;
mod dial;
mod error;
mod http;
mod listen;
mod mesh;
mod metrics;
mod reading;
mod serve;
mod settings;
mod stun;
mod tally;
mod validity;
mod verify;

pub use acme::{Acme, AcmeSettings, LETS_ENCRYPT};
pub use admission::{Admission, Applicant};
pub use certificate::{NAMELESS, SelfSigned};
pub use cli::Cli;
pub use connection::{Relay, RelayConfig};
pub use dial::{Stream, Target};
pub use error::RelayError;
pub use http::answer;
pub use metrics::register as register_metrics;
pub use stun::serve as serve_stun;
pub use validity::of as certificate_validity;

use std::path::Path;

use warren_core::types::NodePrivate;
use warren_shell::kept_key;

/// The relay's own key, from this file; the first start makes it. The error is a sentence.
pub fn kept_node_key(file: &Path) -> Result<NodePrivate, String> {
    kept_key(file, str::parse, || Ok(NodePrivate::from_random(rand::random()).expose_text()))
}
