//! Figures of the coordinator's model with 10,000 nodes: full maps, deltas, a restart's storm, memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for reading")]

mod large;
mod table;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use table::{Limit, row};
use warren_core::registry::{
    Actor, Attributes, Change, Config, Counters, MapMessage, NodeRecord, NodeStatus, Output, Records, State, UserRecord,
};
use warren_core::types::{
    CapabilityVersion, DiscoPublic, MachinePublic, NodeId, NodePublic, RegionId, StableNodeId, Timestamp, UserId,
};
use warren_core::wire::control::MapRequest;

const NODES: u32 = 10_000;

fn main() {
    let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let before = resident();
    let mut state = State::restore(Config::default(), records(), now);

    let begun = Instant::now();
    let first = state.open(NodeId(1), CapabilityVersion::CURRENT, now).unwrap().message;
    row("10,000 nodes: first full map, put together", millis(begun), "ms", Limit::None);
    let begun = Instant::now();
    let frames = compress(&first);
    row("10,000 nodes: first full map, compressed", millis(begun), "ms", Limit::None);
    row("10,000 nodes: a full map, compressed, size", frames.len() as f64 / 1024.0, "KiB", Limit::None);
    row("10,000 nodes: a full map, plain, size", first.plain().len() as f64 / 1024.0, "KiB", Limit::None);

    let begun = Instant::now();
    let second = state.open(NodeId(5_000), CapabilityVersion::CURRENT, now).unwrap().message;
    compress(&second);
    row("10,000 nodes: next full map, put together and compressed", millis(begun), "ms", Limit::None);

    let begun = Instant::now();
    for number in 1..=NODES {
        let message = state.open(NodeId(number.into()), CapabilityVersion::CURRENT, now).unwrap().message;
        compress(&message);
        // A thousand streams a second.
        now += Duration::from_millis(1);
        state.handle_timeout(now);
        while state.poll_output().is_some() {}
    }
    row("10,000 nodes come back after a restart, all work", begun.elapsed().as_secs_f64(), "s", Limit::None);
    now += Duration::from_secs(1);
    state.handle_timeout(now);
    while state.poll_output().is_some() {}
    row("10,000 nodes connected: memory of a node", (resident() - before) / f64::from(NODES), "KiB", Limit::None);

    let mut worst = 0.0_f64;
    for round in 1..=20 {
        now += Duration::from_secs(1);
        let begun = Instant::now();
        say(&mut state, round, now);
        let mut told = 0;
        while let Some(output) = state.poll_output() {
            if let Output::Send { sessions, message } = output {
                compress(&message);
                told += sessions.len();
            }
        }
        worst = worst.max(millis(begun));
        assert_eq!(told, NODES as usize - 1, "all others are told");
    }
    row("10,000 streams: a new endpoint handed to all, worst of 20", worst, "ms", Limit::None);
    drop(state);
    under_policy();
}

/// A network with a policy: it is set, it is edited, a node joins, a node is tagged; and everyone is told.
fn under_policy() {
    let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut records = records();
    records.users = (0..large::USERS).map(user).collect();
    for node in &mut records.nodes {
        let number = node.id.0;
        node.user = Some(UserId(number % large::USERS + 1));
        if number % 10 >= 6 {
            node.tags = vec![format!("tag:t{}", number * 17 % large::TAGS).parse().unwrap()];
        }
        if number % 100 == 99 {
            node.tags.push("tag:t0".parse().unwrap());
            node.status.routes = vec![format!("10.{}.0.0/16", number / 100).parse().unwrap()];
        }
    }
    let mut state = State::restore(Config::default(), records, now);
    for number in 1..=NODES {
        state.open(NodeId(number.into()), CapabilityVersion::CURRENT, now).unwrap();
    }
    let mut measure = |name: &str, limit, change: &mut dyn FnMut(&mut State, Timestamp)| {
        now += Duration::from_secs(1);
        let begun = Instant::now();
        change(&mut state, now);
        let decided = millis(begun);
        state.handle_timeout(now);
        let outputs: Vec<Output> = std::iter::from_fn(|| state.poll_output()).collect();
        row(&format!("policy: {name}"), millis(begun), "ms", limit);
        let (mut bytes, mut messages) = (0, 0);
        for output in outputs {
            if let Output::Send { sessions, message } = output {
                bytes += compress(&message).len() * sessions.len();
                messages += sessions.len();
            }
        }
        row("    and compressed, by one thread of those that do that", millis(begun), "ms", Limit::None);
        row("    of that until it is decided", decided, "ms", Limit::None);
        row("    nodes told", messages as f64, "", Limit::None);
        row("    bytes sent", bytes as f64 / 1024.0, "KiB", Limit::None);
    };
    let set = |state: &mut State, text: &str, now| {
        // The program does this besides the task that owns the state.
        let begun = Instant::now();
        let ready = state.snapshot().compile(text).unwrap();
        row("policy: compiled, while everything else goes on", millis(begun), "ms", Limit::None);
        state.stage_policy(ready).unwrap();
        let decision = state.by(&Actor::COORDINATOR, now).set_policy(text, "ada", None).unwrap();
        state.apply(decision.changes, now);
    };
    let text = large::policy(1_000);
    measure("1,000 rules where none were, every node told", Limit::None, &mut |state, now| set(state, &text, now));
    let edited = text.replace("tag:t102:80,443", "tag:t102:80,443,22");
    measure("an edit of the rules for one tag, every affected node told", Limit::AtMost(1_000.0), &mut |state, now| {
        set(state, &edited, now);
    });
    let most = edited.replace(":80,443", ":80,8443");
    measure("an edit of six rules of ten, every node told", Limit::AtMost(1_000.0), &mut |state, now| {
        set(state, &most, now);
    });
    one_node_changes(&mut state, now);
}

/// A node joins, and a node is tagged, twenty times.
fn one_node_changes(state: &mut State, mut now: Timestamp) {
    let (mut worst, mut told) = ((0.0_f64, 0.0_f64), 0);
    for number in 1..=20 {
        told += now_and_told(state, &mut now, &mut worst.0, |state| {
            let id = NODES + number;
            let mut record = node(id, Timestamp::UNIX_EPOCH);
            record.user = Some(UserId(u64::from(id) % large::USERS + 1));
            state.apply(vec![Change::Node(Arc::new(record))], Timestamp::UNIX_EPOCH);
        });
        now_and_told(state, &mut now, &mut worst.1, |state| {
            let tag = format!("tag:t{number}").parse().unwrap();
            let changes = state
                .by(&Actor::COORDINATOR, Timestamp::UNIX_EPOCH)
                .set_tags(NodeId(u64::from(number) * 7), &[tag])
                .unwrap()
                .changes;
            state.apply(changes, Timestamp::UNIX_EPOCH);
        });
    }
    row("policy: one node joins, those it concerns told, worst of 20", worst.0, "ms", Limit::AtMost(5.0));
    row("    nodes told, on average", f64::from(told) / 20.0, "", Limit::None);
    row("policy: one node is tagged, those it concerns told, worst of 20", worst.1, "ms", Limit::AtMost(5.0));
}

/// The longest that a change takes until all messages are put together.
fn now_and_told(state: &mut State, now: &mut Timestamp, worst: &mut f64, change: impl FnOnce(&mut State)) -> u32 {
    *now += Duration::from_secs(1);
    let begun = Instant::now();
    change(state);
    state.handle_timeout(*now);
    *worst = worst.max(millis(begun));
    let mut told = 0;
    while let Some(output) = state.poll_output() {
        if let Output::Send { sessions, .. } = output {
            told += u32::try_from(sessions.len()).unwrap();
        }
    }
    told
}

fn user(number: u64) -> UserRecord {
    let created = Timestamp::UNIX_EPOCH;
    let name = format!("user{number}@example.com").parse().unwrap();
    UserRecord::new(UserId(number + 1), name, created)
}

/// A node has a new endpoint.
fn say(state: &mut State, round: u8, now: Timestamp) {
    let (machine, key) = keys(7);
    let endpoints = vec![([192, 0, 2, round], 41641).into()];
    let version = CapabilityVersion::CURRENT;
    let request = MapRequest { version, node_key: key, endpoints, ..MapRequest::default() };
    state.update(machine, &request, now).unwrap();
    state.handle_timeout(now);
}

/// What an IO task does with a message.
fn compress(message: &MapMessage) -> Vec<u8> {
    let mut out = Vec::new();
    let frame = |text: &[u8], out: &mut Vec<u8>| -> std::io::Result<()> {
        out.extend(zstd::bulk::compress(text, 1)?);
        Ok(())
    };
    message.write_zstd(&mut out, frame).unwrap();
    out
}

fn records() -> Records {
    let created = Timestamp::UNIX_EPOCH;
    let user = UserRecord::new(UserId(1), "ada".parse().unwrap(), created);
    Records {
        counters: Counters::default(),
        users: vec![user],
        keys: Vec::new(),
        nodes: (1..=NODES).map(|number| node(number, created)).collect(),
        policies: Vec::new(),
        ..Records::default()
    }
}

fn node(number: u32, created: Timestamp) -> NodeRecord {
    let (machine, key) = keys(number);
    let hostinfo = format!(
        r#"{{"IPNVersion":"1.90.9","OS":"linux","OSVersion":"6.12.0","Distro":"debian","Hostname":"host-{number}","GoArch":"amd64","Services":[{{"Proto":"peerapi4","Port":40000}},{{"Proto":"peerapi6","Port":40000}}]}}"#
    );
    NodeRecord {
        id: NodeId(number.into()),
        stable_id: StableNodeId(format!("n{number:016}")),
        user: Some(UserId(1)),
        machine,
        key,
        key_expiry: None,
        expiry_disabled: false,
        logged_out: false,
        ipv4: Ipv4Addr::from(0x6440_0000 + number),
        ipv6: Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0000 + u128::from(number)),
        label: format!("host-{number}").parse().unwrap(),
        label_fixed: false,
        tags: Vec::new(),
        ephemeral: false,
        created,
        last_seen: Some(created),
        admitted_by: None,
        approved: true,
        attributes: Attributes::new(),
        approved_routes: Vec::new(),
        gateway: None,
        version: 0,
        status: NodeStatus {
            disco: DiscoPublic::from_bytes(*keys(NODES + number).1.as_bytes()),
            endpoints: vec![([10, 0, 0, 1], 41641).into(), (Ipv4Addr::from(0xcb00_7100 + number), 41641).into()],
            home_derp: RegionId(1),
            cap: CapabilityVersion::CURRENT,
            routes: Vec::new(),
            hostinfo: Arc::from(hostinfo),
        },
    }
}

/// Keys that compress as badly as real ones.
fn keys(number: u32) -> (MachinePublic, NodePublic) {
    let mut word = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::array::from_fn(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()[3]
    });
    (MachinePublic::from_bytes(bytes.map(u8::reverse_bits)), NodePublic::from_bytes(bytes))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Memory of this program, in KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
