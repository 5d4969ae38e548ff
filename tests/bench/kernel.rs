//! Figures that need root and WireGuard: throughput beside a tunnel made by hand, and an agent with many peers.
//! `tests/bench/run.sh kernel` runs it where both are.
//!
//! In a virtual machine without hardware support all figures are slow alike, so only ratios between two set-ups of
//! the same boot mean something there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

#[allow(dead_code, reason = "shared with the lab's tests")]
#[path = "../lab/lab.rs"]
mod lab;
#[path = "../common/program.rs"]
mod program;
#[allow(dead_code, reason = "shared with the lab's tests")]
#[path = "../lab/programs.rs"]
mod programs;
mod table;
mod throughput;

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use lab::within;
use programs::{Agent, Joined};
use serde_json::{Value, json};
use table::{Limit, median, row};
use throughput::megabits;

/// Rounds of one measurement of each kind. A machine's speed wanders, so the two of a round are compared with each
/// other, and the median of all rounds counts.
const ROUNDS: usize = 15;
/// An agent whose memory has not changed for so long is idle.
const SETTLED: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("sink") => throughput::sink(),
        Some("source") => throughput::source(&arguments[2]),
        Some("peers") => many_peers(),
        _ => {
            compare_tunnels();
            many_peers();
        }
    }
}

/// The agent's tunnel and one made with `wg`, on the same hosts, by turns.
fn compare_tunnels() {
    let Some(Joined { alice, bob, coordinator: _coordinator, lab }) = Joined::new() else { return };
    lab.tunnel_by_hand((&alice.host, "192.0.2.1"), (&bob.host, "192.0.2.2"));
    let overlay = bob.ip(4);

    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(megabits(&alice.host, &bob.host, &overlay));
        by_hand.push(megabits(&alice.host, &bob.host, "192.0.2.2"));
    }
    let ratios = ours.iter().zip(&by_hand).map(|(ours, by_hand)| ours / by_hand).collect();

    row("throughput of the agent's tunnel", median(ours), "Mbit/s", Limit::None);
    row("throughput of a tunnel made by hand", median(by_hand), "Mbit/s", Limit::None);
    row("ratio of the two", median(ratios), "", Limit::AtLeast(0.97));
}

/// An agent that comes up on a stored map, as after a reboot with the coordinator away.
fn many_peers() {
    let Some(Joined { mut alice, bob, mut coordinator, lab: _lab }) = Joined::new() else { return };
    drop(bob);
    coordinator.kill();
    for (peers, most_mebibytes) in [(10, 16.0), (10_000, 64.0)] {
        alice.stop();
        alice.cleanup();
        store_peers(&alice, peers);
        let started = Instant::now();
        alice.start_again();
        within(Duration::from_secs(300), "the kernel to hold the map", || {
            // There is no link yet at first.
            let held = alice.host.try_run("wg show warren0 peers").stdout.split(|byte| *byte == b'\n').count() - 1;
            (held == peers && alice.status().warren.converged).then_some(())
        });
        let took = started.elapsed().as_secs_f64();
        // It looks again once or twice, and gives back what that left behind: on a slow machine that takes its time.
        let mut last = (Instant::now(), 0);
        within(Duration::from_secs(300), "the agent to be idle", || {
            let resident = alice.memory("VmRSS");
            if resident != last.1 {
                last = (Instant::now(), resident);
            }
            (last.0.elapsed() > SETTLED).then_some(())
        });
        let resident = alice.memory("VmRSS") as f64 / 1024.0;
        row(&format!("from start of the agent to {peers} peers in the kernel"), took, "s", Limit::None);
        row(&format!("memory of the agent with {peers} peers"), resident, "MiB", Limit::AtMost(most_mebibytes));
        let own = alice.memory("RssAnon") as f64 / 1024.0;
        row(&format!("the same without its program, {peers} peers"), own, "MiB", Limit::None);
    }
}

/// Makes the map that an agent has stored one of so many peers, all like the first.
fn store_peers(agent: &Agent, count: usize) {
    let file = agent.state_dir().join("map.json");
    let stored = fs::read_to_string(&file).unwrap();
    let (header, map) = stored.split_once('\n').unwrap();
    let mut map: Value = serde_json::from_str(map).unwrap();
    let peer = map["Peers"][0].clone();
    map["Peers"] = (1..=count).map(|number| numbered(&peer, number)).collect();
    // Written over the old file, which keeps its owner and mode.
    fs::write(&file, format!("{header}\n{map}")).unwrap();
}

fn numbered(peer: &Value, number: usize) -> Value {
    let mut peer = peer.clone();
    let addresses =
        json!([format!("100.65.{}.{}/32", number / 256, number % 256), format!("fd7a:115c:a1e0::1:{number:x}/128"),]);
    for (field, value) in [
        ("ID", json!(1000 + number)),
        ("StableID", json!(format!("n{number}"))),
        ("Name", json!(format!("peer{number}.warren.internal."))),
        ("Key", json!(format!("nodekey:{:064x}", 1000 + number))),
        ("Addresses", addresses.clone()),
        ("AllowedIPs", addresses),
    ] {
        peer[field] = value;
    }
    peer
}
