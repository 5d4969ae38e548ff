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
#[path = "../common/program.rs"]
mod program;
#[path = "relay_load/server.rs"]
mod server;
mod sockets;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use http::Uri;

use self::client::{Client, Pair};
use self::server::{OwnRelay, Usage};
use self::table::{Limit, row};

/// What the design asks of one core.
const PACKETS_PER_CORE: f64 = 400_000.0;
/// What an idle client may cost without TLS.
const IDLE_KIB: f64 = 24.0;
/// Ciphertext of a full packet in the tunnel.
const PACKET: usize = 1400;

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

/// What each client costs that is connected and says nothing.
async fn idle_clients(server: &Uri, pin: Option<&str>, usage: Option<Usage>, count: u32) -> Option<f64> {
    let usage = usage?;
    // Memory that the first clients bring about is the relay's own.
    let first = connect(server, pin, 8, 1).await;
    let before = usage.memory_kib();
    let clients = connect(server, pin, count / 2, 1).await;
    let grown = usage.memory_kib().saturating_sub(before);
    drop((first, clients));
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    Some(grown as f64 / f64::from(count))
}

async fn connect(server: &Uri, pin: Option<&str>, pairs: u32, window: u64) -> Vec<Pair> {
    let mut connected = Vec::new();
    for _ in 0..pairs {
        let from = Client::connect(server, pin).await;
        let to = Client::connect(server, pin).await;
        connected.push(Pair { from, to, window });
    }
    connected
}

struct Figures {
    packets: f64,
    lost: f64,
    /// Processor time of the relay.
    busy: Option<Duration>,
}

async fn load(pairs: Vec<Pair>, usage: Option<Usage>, time: Duration) -> Figures {
    let arrived = Arc::new(AtomicU64::new(0));
    let lost = Arc::new(AtomicU64::new(0));
    let ending = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = pairs.into_iter().map(|pair| pair.start(PACKET, &arrived, &lost, &ending)).collect();
    // The first second is for buffers to grow.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (packets, busy) = (arrived.load(Ordering::Relaxed), usage.map(Usage::busy));
    tokio::time::sleep(time).await;
    let packets = arrived.load(Ordering::Relaxed) - packets;
    let busy = usage.map(Usage::busy).zip(busy).map(|(after, before)| after - before);
    ending.store(true, Ordering::Relaxed);
    running.into_iter().flatten().for_each(|task| task.abort());
    #[allow(clippy::cast_precision_loss, reason = "millions")]
    Figures { packets: packets as f64, lost: lost.load(Ordering::Relaxed) as f64, busy }
}
