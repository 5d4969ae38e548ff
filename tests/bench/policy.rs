//! The policy compiler on a large network: 10,000 nodes, 1,000 rules, 500 groups.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod large;
mod table;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use large::{NODES, TAGS, USERS};
use table::{Limit, row};
use warren_core::policy::{Compiled, Node, Policy, Role, Topology, User};
use warren_core::types::{NodeId, UserId};

fn main() {
    let text = large::policy(1_000);
    let started = Instant::now();
    let policy = Arc::new(Policy::parse(text.as_bytes()).unwrap());
    row("policy: parse 1,000 rules and 500 groups", milliseconds(started), "ms", Limit::None);

    let topology = topology();
    let before = resident();
    let started = Instant::now();
    let mut compiled = Compiled::new(policy.clone(), topology);
    row("policy: compile the sets of 10,000 nodes", milliseconds(started), "ms", Limit::None);
    let ids: Vec<_> = (1..=NODES).map(NodeId).collect();
    let filters: Vec<_> = ids.iter().map(|id| compiled.filter(*id)).collect();
    let peers: usize = ids.iter().map(|id| black_box(compiled.peers(*id)).len()).sum();
    row("policy: full compile, every node's filter and peers", milliseconds(started) / 1000.0, "s", Limit::AtMost(2.0));
    row("policy: memory held by the result", (resident() - before) / 1024.0, "MiB", Limit::AtMost(1024.0));
    row("policy: peers seen by a node, on average", peers as f64 / NODES as f64, "", Limit::None);
    drop(filters);

    let started = Instant::now();
    let entries: usize = ids.iter().map(|id| black_box(compiled.packet_filter(*id)).len()).sum();
    row("policy: every node's filter in wire form", milliseconds(started), "ms", Limit::None);
    row("policy: wire rules of a node, on average", entries as f64 / NODES as f64, "", Limit::None);

    let mut worst: f64 = 0.0;
    for number in 0..50 {
        let id = NodeId(NODES + 1 + number);
        let started = Instant::now();
        black_box(compiled.upsert(id, node(id.0)));
        worst = worst.max(milliseconds(started));
    }
    row("policy: one node joins, the worst of 50", worst, "ms", Limit::AtMost(5.0));
    let mut worst: f64 = 0.0;
    for number in 1..50 {
        let retagged = Node { tags: vec![format!("tag:t{}", number % TAGS)], ..node(number) };
        let started = Instant::now();
        black_box(compiled.upsert(NodeId(number), retagged));
        worst = worst.max(milliseconds(started));
    }
    row("policy: one node changes tags, the worst of 50", worst, "ms", Limit::AtMost(5.0));
}

fn milliseconds(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1000.0
}

/// Resident memory in KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn topology() -> Topology {
    let user = |number| User { login: format!("user{number}@example.com"), role: Role::Member };
    Topology {
        users: (0..USERS).map(|number| (UserId(number), user(number))).collect(),
        nodes: (1..=NODES).map(|number| (NodeId(number), node(number))).collect::<BTreeMap<_, _>>(),
    }
}

/// Six of ten nodes are people's, the others are tagged; every hundredth serves a subnet.
fn node(number: u64) -> Node {
    let low = u32::try_from(number).unwrap();
    let addresses: Vec<IpAddr> = vec![
        Ipv4Addr::from(0x6440_0000 + low).into(),
        Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0000 + u128::from(low)).into(),
    ];
    let tags = if number % 10 < 6 { Vec::new() } else { vec![format!("tag:t{}", number * 17 % TAGS)] };
    let mut node =
        Node { name: format!("n{number}"), user: UserId(number % USERS), tags, addresses, ..Node::default() };
    if number % 100 == 99 {
        let route = format!("10.{}.0.0/16", number / 100).parse().unwrap();
        node.tags.push("tag:t0".to_owned());
        node.advertised.push(route);
        node.primary.push(route);
    }
    node
}
