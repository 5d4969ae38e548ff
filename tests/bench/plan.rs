//! Figures of the deciding half with 10,000 peers: from the bytes of a map message to the plan.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod nodes;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nodes::{node, v4};
use table::{Limit, row};
use warren_core::netmap::Netmap;
use warren_core::plan::{
    Derived, Desired, DesiredEndpoint, Host, Observed, ObservedDevice, ObservedFirewall, ObservedLink, ObservedPeer,
    Path, Paths, Planner, Prefs, diff,
};
use warren_core::types::{IpNet, NodeId, NodePrivate, Timestamp};
use warren_core::wire::control::{FilterRule, MapResponse, NetPortRange, Node, Ports, match_all};
use warren_core::wire::map_stream::{MapStreamDecoder, Packing};

const PEERS: u64 = 10_000;
/// Runs of which the fastest counts.
const RUNS: usize = 21;

fn main() {
    if std::env::args().any(|argument| argument == "memory") {
        return println!("{}", peak_of_one_plan());
    }
    one_rule();
    many_rules();
}

/// Everyone may reach everyone.
fn one_rule() {
    let bytes = message(match_all());
    let time = fastest(|| timed(|| drop(plan_from(&bytes))));
    row("10,000 peers: full map message to plan", time, "ms", Limit::AtMost(100.0));
    row("10,000 peers: the same, peak memory", peak_in_a_child(&bytes), "MiB", Limit::AtMost(64.0));

    let (mut map, mut wish) = plan_from(&bytes);
    let mut planner = Planner::default();
    let observed = as_observed(&wish.desired);
    let time = fastest(|| timed(|| drop(diff(&wish.desired, &observed))));
    row("10,000 peers: a look that finds nothing to do", time, "ms", Limit::None);
    let paths = paths(&map);
    let mut steps = 0;
    let time = fastest(|| {
        let node = node(PEERS + 1);
        let removed = MapResponse { peers_removed: vec![node.id], ..MapResponse::default() };
        let changed = MapResponse { peers_changed: vec![node].into(), ..MapResponse::default() };
        let took = timed(|| {
            map.apply(changed, Timestamp::UNIX_EPOCH);
            wish = wish_by(&mut planner, &map, &paths);
            steps = diff(&wish.desired, &observed).steps.len();
        });
        map.apply(removed, Timestamp::UNIX_EPOCH);
        took
    });
    assert_eq!(steps, 2, "one peer and the firewall");
    row("10,000 peers: one-peer delta to plan", time, "ms", Limit::AtMost(2.0));
}

/// A policy of 500 rules for groups of 20 to 2,000 nodes.
fn many_rules() {
    let rules = (1..=500_u64).map(|number| {
        let members = (0..20 + number * 3).map(|member| v4((member * 37 + number * 101) % PEERS).to_string());
        let port = u16::try_from(1_000 + number % 40).unwrap();
        let dst_ports = vec![NetPortRange { ip: "*".to_owned(), ports: Ports { first: port, last: port } }];
        FilterRule { src_ips: members.collect(), dst_ports, ..FilterRule::default() }
    });
    let bytes = message(rules.collect());
    let time = fastest(|| timed(|| drop(plan_from(&bytes))));
    row("10,000 peers, 500 policy rules: full map message to plan", time, "ms", Limit::None);
}

fn plan_from(bytes: &[u8]) -> (Netmap, Derived) {
    let mut decoder = MapStreamDecoder::new(Packing::Zstd);
    let json = decoder.next(&mut &bytes[..]).unwrap().unwrap();
    let message: MapResponse = serde_json::from_slice(&json).unwrap();
    drop(json);
    let mut map = Netmap::default();
    map.replace(message, Timestamp::UNIX_EPOCH);
    let wish = wish_of(&map, &paths(&map));
    let plan = diff(&wish.desired, &Observed::default());
    assert!(plan.steps.len() > map.peers().len());
    (map, wish)
}

fn wish_of(map: &Netmap, paths: &Paths) -> Derived {
    wish_by(&mut Planner::default(), map, paths)
}

fn wish_by(planner: &mut Planner, map: &Netmap, paths: &Paths) -> Derived {
    let prefs = Prefs { want_running: true, accept_routes: true, ..Prefs::default() };
    let host = Host {
        key: NodePrivate::from_random([9; 32]),
        networks: BTreeSet::new(),
        guests: BTreeSet::new(),
        links: BTreeMap::new(),
        routes: BTreeSet::new(),
        kept: BTreeSet::new(),
        probes: None,
        resolver_port: None,
    };
    planner.desired(map, &prefs, paths, &host)
}

fn paths(map: &Netmap) -> Paths {
    let first = |node: &Node| Path { endpoint: node.endpoints[0], moves: false, keepalive: 0 };
    Paths { chosen: map.peers().map(|peer| (peer.key(), first(&peer.node))).collect() }
}

/// What a kernel holds that has everything as desired.
fn as_observed(desired: &Desired) -> Observed {
    let device = desired.device.as_ref().unwrap();
    let link =
        ObservedLink { index: 1, is_wireguard: true, up: true, mtu: device.mtu, addresses: device.addresses.clone() };
    let peers = device.peers.iter().map(|(key, peer)| {
        let endpoint = match peer.endpoint {
            DesiredEndpoint::Initial(endpoint) | DesiredEndpoint::Move(endpoint) => Some(endpoint),
            DesiredEndpoint::Leave => None,
        };
        (*key, ObservedPeer { allowed_ips: peer.allowed_ips.clone(), endpoint, ..ObservedPeer::default() })
    });
    Observed {
        link: Some(link),
        device: Some(ObservedDevice {
            private_key: Some(device.private_key.clone()),
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            peers: peers.collect(),
        }),
        routes: desired.routes.clone(),
        rules: desired.rules.iter().copied().collect(),
        firewall: ObservedFirewall::Table(Arc::new(desired.firewall.as_deref().unwrap().clone())),
        flows_judged: true,
        ..Observed::default()
    }
}

/// The full map of 10,000 peers, as it arrives.
fn message(filter: Vec<FilterRule>) -> Vec<u8> {
    let response = MapResponse {
        node: Some(Node { addresses: vec![IpNet::from(v4(PEERS * 2))], id: NodeId(PEERS * 2), ..node(PEERS * 2) }),
        peers: (0..PEERS).map(node).collect(),
        packet_filters: BTreeMap::from([("base".to_owned(), Some(filter))]),
        domain: "example.com".to_owned(),
        ..MapResponse::default()
    };
    let frame = zstd::encode_all(&serde_json::to_vec(&response).unwrap()[..], 3).unwrap();
    let mut bytes = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

/// The fastest of several runs, in milliseconds.
fn fastest(run: impl FnMut() -> Duration) -> f64 {
    let fastest = std::iter::repeat_with(run).take(RUNS).min();
    fastest.unwrap_or_default().as_secs_f64() * 1000.0
}

fn timed(run: impl FnOnce()) -> Duration {
    let begin = processor_time();
    run();
    processor_time().saturating_sub(begin)
}

/// What this thread has had of a processor, so that other programs on the machine do not count. The kernel counts up
/// to the last time it looked, so it is made to look.
fn processor_time() -> Duration {
    std::thread::yield_now();
    let counters = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(counters.split_whitespace().next().unwrap().parse().unwrap())
}

/// The peak of a process that does nothing else than read one message and plan.
fn peak_in_a_child(bytes: &[u8]) -> f64 {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program).arg("memory").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// What the kernel says was the most that this process ever had in memory, in MiB.
fn peak_of_one_plan() -> f64 {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).unwrap();
    drop(plan_from(&bytes));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
