//! The coordinator's shell: HTTP, Noise and map-stream IO, the store, administration.
//!
//! ```text
//! listen (limits, TLS) ──> http (/key, /verify, pages) ──┐
//!        └─ /ts2021 ──> noise ──> HTTP/2 ──> machine ────┤ asks, each with a place for its answer
//! unix socket ──> admin ─────────────────────────────────┤
//!                                                        v
//!                          hub: the one task that owns registry::State and the store
//!                                                        │ one bounded queue per map stream
//! node <── map_body (zstd, keep-alives) <────────────────┘
//! ```
//!
//! What is decided is decided in [`warren_core::registry`]. Here nothing waits for a slow node, no answer is given
//! before what it says is on disk, and what strangers may cost is written down in `limits`.

#![forbid(unsafe_code)]

mod admin;
mod backup;
mod cli;
mod clock;
mod config;
#[doc(hidden)]
pub mod decoders;
mod doctor;
mod ending;
mod http;
mod hub;
mod limits;
mod listen;
mod machine;
mod machines;
mod map_body;
mod metrics;
mod noise;
mod page;
mod policy_cli;
mod relay;
mod relay_map;
mod reload;
mod serve;
mod server_key;
mod state_dir;
pub mod store;

pub use cli::Cli;
pub use config::{ConfigError, DEFAULT_FILE, Options, Places, RelayPlace, RelaySettings, Settings, StunListen};
