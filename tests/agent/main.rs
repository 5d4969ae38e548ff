//! The agent as a whole: its loop, its state directory and its local socket, on a kernel that is a value.
//!
//! The socket is driven by `tslocal`, a client of Tailscale's LocalAPI that we did not write, and by our own command
//! line. What needs a real kernel is in `tests/lab`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod calls;
mod ether;
mod identity;
mod joining;
mod local_api;
mod netcheck;
mod paths;
#[path = "../common/place.rs"]
mod place;
#[path = "../common/program.rs"]
mod program;
mod scene;
#[allow(dead_code, reason = "the coordinator's own tests use the rest")]
#[path = "../coordinator/server.rs"]
mod server;
mod state;
mod why;
