//! Warren beside the programs that do the same: a coordinator beside Headscale, a relay beside derper, and, where
//! WireGuard is (`beside tunnels`), a tunnel beside tailscaled's and one made by hand. One table of ratios.
//!
//! The others are taken from `WARREN_INTEROP_BIN` or `PATH`; the row of one that is missing says so. Both of a row get
//! the same load on the same machine, one after the other. `beside coordinators` and `beside relays` are parts of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for reading")]

#[path = "relay_load/client.rs"]
mod client;
#[path = "beside/coordinators.rs"]
mod coordinators;
#[path = "../common/foreign.rs"]
mod foreign;
#[allow(dead_code, reason = "shared with the lab's tests")]
#[path = "../lab/lab.rs"]
mod lab;
mod load;
#[path = "relay_load/measure.rs"]
mod measure;
mod own;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "shared with the lab's tests")]
#[path = "../lab/programs.rs"]
mod programs;
#[path = "beside/relays.rs"]
mod relays;
#[path = "relay_load/server.rs"]
mod server;
mod sockets;
mod table;
mod throughput;
#[allow(dead_code, reason = "shared with the lab's tests")]
#[path = "../lab/train.rs"]
mod train;
#[path = "beside/tunnels.rs"]
mod tunnels;
mod usage;

use std::env;
use std::net::TcpListener;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("sink") => throughput::sink(),
        Some("source") => throughput::source(&arguments[2]),
        Some("tunnels") => tunnels::compare(),
        Some("coordinators") => servers(coordinators::compare()),
        Some("relays") => servers(relays::compare()),
        // Cargo passes `--bench`.
        _ => {
            table::versus_head();
            servers(async {
                coordinators::compare().await;
                relays::compare().await;
            });
            tunnels::say_what_is_missing();
        }
    }
}

fn servers(compare: impl Future<Output = ()>) {
    sockets::allow_many();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the runtime").block_on(compare);
}

/// A port of the loopback that nothing holds.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
