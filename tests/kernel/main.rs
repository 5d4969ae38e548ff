//! `LinuxKernel` on a real kernel, each test in a network namespace of its own.
//!
//! What it did is judged by the system's own tools: `wg`, `ip -j`, `nft -j`. Run as root by
//! `tests/vm/test.sh kernel`, which finds a kernel with WireGuard.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "what is awaited happens in the kernel, in real time")]

mod common;
mod device;
mod drift;
mod exit_node;
mod firewall;
mod flows;
mod foreign;
mod forwarding;
mod gateway;
mod law;
mod neighbour;
mod owned;
mod packets;
mod paths;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "the relay's own tests use the rest")]
#[path = "../relay/server.rs"]
mod relay;
mod repair;
mod routing;
mod two_agents;
mod user;
mod whole;
