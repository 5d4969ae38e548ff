//! A load generator for coordinators: many nodes over the real protocol.
//!
//! `make bench NAME=coordinator` measures our own, started for it. Any server that speaks the protocol can be
//! measured the same way:
//!
//! ```text
//! cargo bench --bench coordinator -- --server http://127.0.0.1:8080 --auth-key KEY --nodes 1000
//! ```
//!
//! The key must be reusable. Figures: how long the nodes take to join and all know each other, and how long one
//! node's new endpoint takes to reach all others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod load;
mod own;
#[path = "../common/program.rs"]
mod program;
mod sockets;
mod table;
#[allow(dead_code, reason = "other benches ask for processor time too")]
mod usage;

use std::time::Duration;

use clap::Parser;
use warren_core::control::{AuthKey, ServerUrl};

use self::load::{Nodes, now};
use self::own::OwnCoordinator;
use self::table::{Limit, row};

/// Loads a coordinator with nodes and measures it.
#[derive(Parser)]
struct Options {
    /// The coordinator to measure; ours, started for it, where this is left out
    #[arg(long, requires = "auth_key")]
    server: Option<ServerUrl>,
    /// A reusable key of that coordinator
    #[arg(long)]
    auth_key: Option<String>,
    /// How many nodes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..))]
    nodes: u16,
    /// How many endpoint changes to measure
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Set by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    sockets::allow_many();
    let own = options.server.is_none().then(OwnCoordinator::start);
    let (server, key) = match (&own, options.server) {
        (Some(own), _) => (own.server.clone(), own.key.clone()),
        (None, Some(server)) => (server, AuthKey::new(options.auth_key.unwrap_or_default())),
        (None, None) => unreachable!("one of the two is there"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the runtime");
    runtime.block_on(measure(&server, &key, options.nodes.into(), options.rounds, own.as_ref()));
}

async fn measure(server: &ServerUrl, key: &AuthKey, count: usize, rounds: u16, own: Option<&OwnCoordinator>) {
    let idle = own.map(|own| own.usage().memory_kib());
    let begun = now();
    let mut nodes = Nodes::start(server, key, count);
    let joined = nodes.join().await.unwrap();
    row("failures while joining", f64::from(joined.failures), "", Limit::None);
    row(&format!("{count} nodes join"), joined.last.as_secs_f64(), "s", Limit::None);
    row(&format!("{count} nodes all know each other"), begun.elapsed().as_secs_f64(), "s", Limit::None);
    if let (Some(own), Some(idle)) = (own, idle) {
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let per_node = own.usage().memory_kib().saturating_sub(idle) as f64 / count as f64;
        row("coordinator's memory per connected node", per_node, "KiB", Limit::None);
    }

    let mut reached = Vec::new();
    let mut all = Vec::new();
    for round in 0..rounds {
        let times = nodes.spread(usize::from(round) % count, 2 + round).await.unwrap();
        all.push(*times.last().expect("there is another node"));
        reached.extend(times);
    }
    for times in [&mut reached, &mut all] {
        times.sort_unstable();
    }
    for (what, times) in [("one other", &reached), ("all others", &all)] {
        row(&format!("a new endpoint reaches {what}, median"), millis(at(times, 50)), "ms", Limit::None);
        row(&format!("a new endpoint reaches {what}, 99 of 100"), millis(at(times, 99)), "ms", Limit::None);
    }
}

/// The value below which so many of a hundred lie.
fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
