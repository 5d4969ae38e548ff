//! Real programs across network namespaces, on a kernel with WireGuard.
//!
//! Each test builds its own hosts on a switch of its own ([`lab::Lab`]), starts the programs there as a user
//! would, and asks them and the kernel's own tools (`ip`, `wg`, `nft`, `ping`) what is true. `tests/vm/test.sh lab`
//! runs them; elsewhere, without root or WireGuard, each says `skipped` and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod devices;
mod drift;
mod exit_node;
mod ground;
mod host_names;
mod join;
mod lab;
mod lifecycle;
mod liveness;
mod matrix;
mod names;
mod narrow;
mod nat;
mod netcheck;
mod outage;
mod own_names;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "some of it serves the benches only")]
mod programs;
mod relay;
mod restart;
mod revocation;
mod rotation;
mod routers;
mod snapshot;
mod subnet_router;
mod theory;
mod train;
#[allow(dead_code, reason = "some of it serves the interop tests only")]
mod world;
