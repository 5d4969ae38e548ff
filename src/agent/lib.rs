//! The agent's shell: one loop that owns every core, dumb IO tasks, the local API, state on disk, health.
//!
//! ```text
//!   coordinator <─> control_io ─┐                       ┌─> pipes::disk    (state files)
//!        warren <─> local_api ──┤                       │
//!    interfaces ──> pipes ──────┼──> run: node::Engine ─┼─> pipes::kernel  (observe, apply)
//!        kernel ──> pipes ──────┤   (one task, by value)├─> control_io, local_api
//!        probes ──> network ────┤          outward ─────├─> network        (probes out)
//!        relays <─> relay_pump ─┘                       └─> netcheck_io    (names, gateways, HTTPS)
//! ```
//!
//! [`Engine`](warren_core::node::Engine) decides and waits for nothing; [`run`] waits and decides nothing; `outward`
//! hands what is to be done to the pipe that does it. The kernel's objects outlive the agent: it can be killed at any
//! moment, and the next one looks, compares, and goes on.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

pub mod cli;
pub mod clock;
pub mod control_io;
#[doc(hidden)]
pub mod decoders;
pub mod derp_io;
pub mod local_api;
pub mod netcheck_io;
pub mod relay_pump;
pub mod relay_tls;

mod calls;
mod cleanup;
mod config;
mod dns_helper;
mod doh;
mod exit_names;
mod firewall_flags;
mod host;
mod host_pipe;
mod logging;
mod name_server;
mod network;
mod outward;
mod own_names;
mod pipes;
mod portmap_io;
mod privilege;
mod readiness;
mod resolver_io;
mod resolvers;
mod run;
mod serve;
mod state;

use thiserror::Error;

pub use cleanup::cleanup;
pub use config::Config;
pub use dns_helper::serve_dns_helper;
pub use logging::init as init_logging;
pub use network::{DatagramSender, Missing, Network};
pub use run::{Parts, load, run};
pub use serve::serve;
pub use state::{StateDir, StateError};

use warren_core::plan::KernelError;
use warren_shell::DirectoryLockError;

pub use warren_core::node::VERSION;

/// Why the agent did not start, or ended.
#[derive(Debug, Error)]
pub enum StartError {
    /// Giving up what we do not need failed.
    #[error("give up capabilities: {0}")]
    Privilege(String),
    /// We lack what we do need.
    #[error("{0} missing: start warrend through its systemd unit, or as root")]
    Missing(String),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another program has the state directory.
    #[error(transparent)]
    Locked(#[from] DirectoryLockError),
    /// The kernel cannot be talked to.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The local socket cannot be made.
    #[error("listen on {path}: {reason}")]
    Socket {
        path: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The runtime or its signals cannot be set up.
    #[error("start: {0}")]
    Io(#[from] std::io::Error),
    /// Clean-up did not come to an end.
    #[error("clean up: {0} steps are left: {1}")]
    Unclean(usize, String),
}
