//! A load generator for relays: clients in pairs, one of each sending to the other over the real protocol.
//!
//! `make bench NAME=relay` measures our own, started for it. Any server that speaks the protocol can be measured the
//! same way, where it admits strangers:
//!
//! ```text
//! cargo bench --bench relay -- --server http://127.0.0.1:3340 --process 4242
//! ```
//!
//! A sender has only so many packets under way, so nothing is lost where queues hold that many and figures say what
//! arrives. The generator needs processor time too: what the relay itself costs is packets by the second of its own
//! processor time, which is what one core can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "relay_load/client.rs"]
mod client;
#[path = "relay_load/measure.rs"]
mod measure;
#[path = "../common/program.rs"]
mod program;
#[path = "relay_load/server.rs"]
mod server;
mod sockets;
mod table;
mod usage;

use std::time::Duration;

use clap::Parser;
use http::Uri;

use self::measure::{PACKET, connect, idle_clients, load};
use self::server::OwnRelay;
use self::table::{Limit, row};
use self::usage::Usage;

/// What the design asks of one core.
const PACKETS_PER_CORE: f64 = 400_000.0;
/// What an idle client may cost without TLS.
const IDLE_KIB: f64 = 24.0;

/// Loads a relay with clients and measures it.
#[derive(Parser)]
struct Options {
    /// The relay to measure, http or https; ours, started for it, where this is left out
    #[arg(long)]
    server: Option<Uri>,
    /// The hash of its certificate as in a map (`sha256-raw:…`), where it is pinned
    #[arg(long)]
    pin: Option<String>,
    /// Its process on this machine, for the processor time and memory it takes
    #[arg(long)]
    process: Option<u32>,
    /// How many clients at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    clients: u32,
    /// Packets that one sender has under way; fewer than the relay queues for one client
    #[arg(long, default_value_t = 64)]
    window: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Set by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    sockets::allow_many();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the runtime");
    match &options.server {
        Some(server) => {
            let usage = options.process.map(Usage);
            runtime.block_on(measure(server, options.pin.as_deref(), usage, "", &options));
        }
        None => {
            let plain = OwnRelay::start(false);
            runtime.block_on(measure(&plain.url, None, Some(plain.usage()), "", &options));
            let tls = OwnRelay::start(true);
            runtime.block_on(measure(&tls.url, Some(&tls.pin), Some(tls.usage()), ", TLS", &options));
        }
    }
}

async fn measure(server: &Uri, pin: Option<&str>, usage: Option<Usage>, how: &str, options: &Options) {
    let has_limits = how.is_empty() && options.server.is_none();
    let idle = idle_clients(server, pin, usage, options.clients).await;
    if let Some(kib) = idle {
        let limit = if has_limits { Limit::AtMost(IDLE_KIB) } else { Limit::None };
        row(&format!("relay{how}: memory of an idle client"), kib, "KiB", limit);
    }
    for clients in [2, options.clients] {
        let pairs = clients / 2;
        let flows = u64::from(pairs);
        let window = (options.window / flows).clamp(8.min(options.window), options.window);
        let pairs = connect(server, pin, pairs, window).await;
        let time = Duration::from_secs(options.seconds);
        let figures = load(pairs, usage, time).await;
        let what = format!("relay{how}: {PACKET}-byte packets over {clients} clients");
        row(&what, figures.packets / time.as_secs_f64(), "/s", Limit::None);
        if figures.lost > 0.0 {
            row(&format!("{what}, lost"), figures.lost, "", Limit::None);
        }
        if let Some(busy) = figures.busy {
            let limit = if has_limits { Limit::AtLeast(PACKETS_PER_CORE) } else { Limit::None };
            row(&format!("{what}, on one core"), figures.packets / busy.as_secs_f64(), "/s", limit);
            row(&format!("{what}, processor time"), busy.as_secs_f64() * 1e6 / figures.packets, "us each", Limit::None);
        }
    }
}
