//! The coordinator's shell: HTTP, Noise and map-stream IO, the store, administration.
//!
//! ```text
//! listen (limits, TLS) ──> site ──> face/{node, relay, sign_in, health} ──┐
//! unix socket ──> face/admin_socket ───────────────────────────────────────┤ an actor and what they ask
//!                                                                         v
//!                                                   service (requests to commands, views)
//!                                                                         v
//!                          hub: the one task that owns registry::State and the store
//!                                                                         │ one bounded queue per map stream
//! node <── face/node/map_body (zstd, keep-alives) <───────────────────────┘
//! ```
//!
//! What is decided is decided in [`warren_core::registry`]. Here nothing waits for a slow node, no answer is given
//! before what it says is on disk, and what strangers may cost is written down in `limits`.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod admin;
mod backup;
mod cli;
mod clock;
mod config;
#[doc(hidden)]
pub mod decoders;
mod doctor;
mod ending;
mod face;
mod hub;
mod limits;
mod listen;
mod metrics;
mod policy_cli;
mod relay;
mod reload;
mod serve;
mod service;
mod site;
mod state_dir;
pub mod store;

pub use cli::Cli;
