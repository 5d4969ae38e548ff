//! Programs that other people wrote, against ours.
//!
//! The official client engine joins our coordinator, and clients made for its local socket talk to our agent. They
//! come with `tests/vm/setup.sh`. Programs that it does not install have to be on `PATH` or in the folder that
//! `WARREN_INTEROP_BIN` names: their tests are ignored unless they are asked for. They run where the lab runs
//! (`tests/vm/test.sh interop`), which sets `WARREN_REQUIRE_INTEROP`: a test that lacks its program fails then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/foreign.rs"]
mod elsewhere;
#[allow(dead_code, reason = "shared with the lab's own tests")]
#[path = "../lab/lab.rs"]
mod lab;
#[allow(dead_code, reason = "shared with the lab's own tests")]
#[path = "../lab/nat.rs"]
mod nat;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "shared with the lab's own tests")]
#[path = "../lab/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the lab's own tests")]
#[path = "../lab/train.rs"]
mod train;
#[allow(dead_code, reason = "shared with the lab's own tests")]
#[path = "../lab/world.rs"]
mod world;

mod caddytail;
mod foreign;
mod headscale;
mod local_socket;
mod paths;
mod policy;
mod rust_client;
mod session;
mod tailscaled;
mod web;
