//! What Warren decides: no clock, no randomness, no sockets, no files, no `async`; time and chance come in as arguments.
//!
//! The manifest names no runtime, system interface or source of chance, so that purity is the compiler's business;
//! which module may name which is `tests/tidy.rs`'s.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

pub mod control;
pub mod derp;
pub mod dns;
pub mod hostfirewall;
pub mod netcheck;
pub mod netmap;
pub mod node;
pub mod path;
pub mod plan;
pub mod policy;
pub mod registry;
pub mod types;
pub mod wire;
