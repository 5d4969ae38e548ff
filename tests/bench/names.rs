//! Figures of the resolver of a node with 10,000 peers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod nodes;
mod table;

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nodes::node;
use table::{Limit, row};
use warren_core::dns::{self, Outcome, QueryId, Server, Transport};
use warren_core::netmap::Netmap;
use warren_core::types::Timestamp;
use warren_core::wire::control::{DnsConfig, MapResponse};

const PEERS: u64 = 10_000;
/// Runs of which the fastest counts.
const RUNS: usize = 21;
/// Questions that are asked one after the other.
const QUESTIONS: u64 = 100_000;
/// How long a socket is silent before it is looked whether the bench has ended.
const GLANCE: Duration = Duration::from_millis(200);

fn main() {
    if std::env::args().any(|argument| argument == "memory") {
        return println!("{}", memory_of_names());
    }
    renames();
    answers();
    let child = Command::new(std::env::current_exe().unwrap()).arg("memory").output().unwrap();
    let memory: f64 = String::from_utf8(child.stdout).unwrap().trim().parse().unwrap();
    row("names of 10,000 nodes, memory", memory, "MiB", Limit::AtMost(8.0));
}

fn map() -> Netmap {
    let peers: Vec<_> = (1..=PEERS).map(node).collect();
    let dns = DnsConfig { proxied: true, ..DnsConfig::default() };
    let message =
        MapResponse { node: Some(node(0)), peers: peers.into(), dns_config: Some(dns), ..MapResponse::default() };
    let mut map = Netmap::default();
    map.replace(message, Timestamp::UNIX_EPOCH);
    map
}

fn server(map: &Netmap) -> Server {
    let mut server = Server::new([7; 32]);
    server.update(map, &[]);
    server
}

/// A name that changes, from the map to the answer.
fn renames() {
    let mut map = map();
    let mut server = server(&map);
    let mut fastest = Duration::MAX;
    for run in 0..RUNS {
        let mut renamed = node(7);
        renamed.name = format!("renamed-{run}.example.com.");
        let message = MapResponse { peers_changed: vec![renamed].into(), ..MapResponse::default() };
        map.apply(message, Timestamp::UNIX_EPOCH);
        let begin = Instant::now();
        server.update(&map, &[]);
        fastest = fastest.min(begin.elapsed());
        let question = question(&format!("renamed-{run}.example.com"));
        assert!(matches!(answer(&mut server, &question), bytes if bytes[3] & 15 == 0), "it is found");
    }
    row("10,000 names: one is another, in the resolver", fastest.as_secs_f64() * 1e3, "ms", Limit::AtMost(1.0));
}

fn question(name: &str) -> Vec<u8> {
    dns::question(name, dns::record_type("A").unwrap(), 9).unwrap()
}

fn answer(server: &mut Server, question: &[u8]) -> Vec<u8> {
    match server.handle_query(Instant::now(), QueryId(1), Transport::Udp, question) {
        Outcome::Answer(bytes) => bytes,
        Outcome::Later | Outcome::Silence => panic!("others are asked"),
    }
}

/// Answers by one thread over the loopback, to one client that waits for each and to four at once.
fn answers() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(GLANCE)).unwrap();
    let at = socket.local_addr().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let serving = std::thread::spawn(move || {
        let mut server = server(&map());
        let (mut buffer, mut answered, begin) = ([0; 4097], 0_u64, processor_time());
        while !ends.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            socket.send_to(&answer(&mut server, &buffer[..length]), from).unwrap();
            answered += 1;
        }
        answered as f64 / (processor_time() - begin).as_secs_f64()
    });
    let ask = move |questions: u64| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(at).unwrap();
        let mut took: Vec<Duration> = Vec::new();
        let mut buffer = [0; 1500];
        for number in 0..questions {
            let question = question(&format!("node-{}.example.com", 1 + number % PEERS));
            let begin = Instant::now();
            client.send(&question).unwrap();
            client.recv(&mut buffer).unwrap();
            took.push(begin.elapsed());
        }
        took
    };
    // The server makes its map first.
    ask(1);
    let mut took = ask(QUESTIONS);
    took.sort();
    let slow = took[took.len() * 99 / 100];
    let clients: Vec<_> = (0..4).map(|_| std::thread::spawn(move || ask(QUESTIONS))).collect();
    for client in clients {
        client.join().unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    let rate = serving.join().unwrap();
    row("names: answers of a core, with the socket", rate, "/s", Limit::AtLeast(50_000.0));
    row("names: one in a hundred takes longer", slow.as_secs_f64() * 1e3, "ms", Limit::AtMost(1.0));
}

/// What this thread has had of a processor, so that other programs on the machine do not count.
fn processor_time() -> Duration {
    std::thread::yield_now();
    let counters = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(counters.split_whitespace().next().unwrap().parse().unwrap())
}

/// How much larger this process is with a resolver than without.
fn memory_of_names() -> f64 {
    let map = map();
    let before = resident();
    let server = server(&map);
    let after = resident();
    drop(server);
    (after - before) / 1024.0
}

/// KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
