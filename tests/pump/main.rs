//! The agent's way to relays, against the real `warren-relay`: connections as any user may make them, and the pump
//! in a network namespace of its own, which root has to make.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connections;
mod packets;
#[path = "../common/place.rs"]
mod place;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "the relay's own tests use the rest")]
#[path = "../relay/server.rs"]
mod server;
