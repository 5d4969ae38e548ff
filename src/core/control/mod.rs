//! Client half of the control protocol: log-in, map poll, re-key, back-off.
//!
//! [`Session`] decides what to ask the coordinator and when; it never asks itself. The shell carries each
//! [`Transmit`] out over the secure channel and hands whatever comes back in as [`Received`]. Time is an argument
//! of every call, chance is a seed.
//!
//! ```text
//! Stopped ── start ──> Registering ── let in ──> Ready ── update taken ──> Streaming: maps, pings, updates
//!                       │       ^                  │                          │
//!              AuthURL: ask     │                  └───────── failed ─────────┤
//!              again, until     └──── Waiting <───────────────────────────────┘
//!              approved          then register (a client error) or stream
//! ```
//!
//! Invariants: at most one registration, one update and one stream are under way; an answer to an abandoned request
//! is ignored; the stream opens only after the coordinator took an update, so it never describes us by old facts;
//! every wait ends by itself.

mod backoff;
mod message;
mod pin;
mod server_url;
mod session;

pub use backoff::retry_after;
pub use message::{AuthKey, Failure, Login, Received, Reply, RequestId, SessionEvent, Setup, Transmit, limit};
pub use pin::Pin;
pub use server_url::{Scheme, ServerUrl, ServerUrlError};
pub use session::{REQUEST_TIMEOUT, Session};
