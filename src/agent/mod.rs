//! The agent's shell: one loop that owns every core, dumb IO tasks, the local API, state on disk, health.

pub mod clock;
pub mod control_io;
pub mod local_api;

mod config;

mod health;
mod privilege;
mod state;

use thiserror::Error;

pub use config::Config;
pub use health::Health;
pub use privilege::keep_only_ours;
pub use state::{StateDir, StateError, StateFile};

/// The version that we show to people and to other machines.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the agent did not start.
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
}
