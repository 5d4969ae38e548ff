//! Figures of an agent with 10,000 peers on a kernel that is a value: what it takes of memory, and of a processor while
//! nothing goes on. `tests/bench/kernel.rs` has the memory with the real kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod nodes;
mod table;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nodes::node;
use serde_json::json;
use table::{Limit, row};
use tokio::sync::{mpsc, oneshot};
use warren_agent::cli::Client;
use warren_agent::local_api::{self, Operators};
use warren_agent::{Network, Parts, StateDir, load, run};
use warren_core::node::{Networks, Settings, StateFile};
use warren_core::plan::ModelKernel;
use warren_core::types::{MachinePrivate, NodeId, NodePrivate, RegionId};
use warren_core::wire::control::{MapResponse, Node, match_all};
use warren_core::wire::local::Prefs;

const PEERS: u64 = 10_000;
/// How long it takes to be idle.
const SETTLED: Duration = Duration::from_secs(20);
/// How long an agent that has settled is watched: two looks at the host, and several of everything faster.
const WATCHED: Duration = Duration::from_secs(60);

fn main() {
    if let Some(root) = std::env::args().nth(1).filter(|argument| argument.starts_with('/')) {
        return agent(Path::new(&root));
    }
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    // A process of its own, so that what made the map does not count.
    let child = Command::new(std::env::current_exe().unwrap()).arg(root.path()).status().unwrap();
    assert!(child.success());
}

/// An agent that comes up on a stored map, its coordinator away.
fn agent(root: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build().unwrap();
    runtime.block_on(async {
        let dir = StateDir::open(&root.join("state")).unwrap();
        let settings = Settings { port: 41_741, relay_port: Some(41_742), ..Settings::default() };
        let engine = load(settings, &dir).unwrap();
        row("10,000 peers: memory once the map is read", memory("VmRSS"), "MiB", Limit::None);
        let (networks_in, networks) = mpsc::channel(1);
        let all: std::collections::BTreeSet<_> = ["192.0.2.7/24".parse().unwrap()].into();
        networks_in.send(Networks { live: all.clone(), all, ..Networks::default() }).await.unwrap();
        let socket = root.join("socket");
        let (_stop, stopped) = oneshot::channel();
        let parts = Parts {
            engine,
            dir,
            kernel: ModelKernel::default(),
            networks,
            network: Network::default(),
            socket: local_api::bind(&socket).unwrap(),
            operators: Operators::new("no-such-group"),
            dialler: warren_shell::Dialler::new(None),
            stop: stopped,
        };
        tokio::spawn(run(parts));
        let client = Client::new(&socket);
        while !client.status(false).await.unwrap().warren.converged {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The map is written once more in the first seconds, and what that leaves behind is given back.
        tokio::time::sleep(SETTLED).await;
        row("10,000 peers: memory of the agent", memory("VmRSS"), "MiB", Limit::AtMost(64.0));
        row("10,000 peers: without its program", memory("RssAnon"), "MiB", Limit::None);
        row("10,000 peers: peak memory of the agent", memory("VmHWM"), "MiB", Limit::None);

        let before = processor_time();
        tokio::time::sleep(WATCHED).await;
        let share = (processor_time() - before).as_secs_f64() / WATCHED.as_secs_f64();
        row("10,000 idle peers: share of a processor", share * 100.0, "%", Limit::AtMost(0.1));
    });
}

/// A state directory as an agent leaves it behind. The coordinator's address leads nowhere.
fn store(root: &Path) {
    let (node_key, machine_key) = (NodePrivate::from_random([9; 32]), MachinePrivate::from_random([8; 32]));
    let number = PEERS * 2;
    let map = MapResponse {
        node: Some(Node { id: NodeId(number), key: node_key.public(), ..node(number) }),
        peers: (0..PEERS).map(|number| Node { home_derp: RegionId(900), ..node(number) }).collect(),
        domain: "example.com".to_owned(),
        packet_filters: [("base".to_owned(), Some(match_all()))].into(),
        ..MapResponse::default()
    };
    let header = json!({ "Confirmed": "2026-01-01T00:00:00Z", "NodeKey": node_key.public() });
    let prefs = Prefs { control_url: "http://127.0.0.1:9".to_owned(), want_running: true, ..Prefs::initial() };
    let state = StateDir::open(&root.join("state")).unwrap();
    for (file, content) in [
        (StateFile::MachineKey, machine_key.expose_text().as_bytes().to_vec()),
        (StateFile::NodeKey, node_key.expose_text().as_bytes().to_vec()),
        (StateFile::Prefs, serde_json::to_vec(&prefs).unwrap()),
        (StateFile::Map, format!("{header}\n{}", serde_json::to_string(&map).unwrap()).into_bytes()),
    ] {
        state.save(file, &content).unwrap();
    }
}

/// A line of the kernel's account of this process, in MiB.
fn memory(line: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')).unwrap();
    value.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// What this process has had of a processor, its helpers included.
fn processor_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let microseconds = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Duration::from_micros(microseconds(usage.user_time()) + microseconds(usage.system_time()))
}
