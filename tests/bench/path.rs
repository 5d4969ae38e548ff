//! Figures of path discovery with 10,000 peers: what an idle one costs, and what a look at all of them does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use table::{Limit, row};
use warren_core::path::{Book, Evidence, PeerInfo, Ranking, Via};
use warren_core::types::{DiscoPrivate, DiscoPublic, NodePublic, RegionId, Timestamp};
use warren_core::wire::disco::{Message, SharedKey, TransactionId};

const PEERS: u32 = 10_000;
/// Runs of which the fastest counts.
const RUNS: usize = 21;

fn main() {
    let now = Instant::now();
    let told: Vec<[SocketAddr; 3]> = (0..PEERS).map(endpoints).collect();
    let before = resident();
    let mut book = Book::new(DiscoPrivate::from_random([7; 32]), NodePublic::from_bytes([9; 32]), [1; 32]);
    map(&mut book, &told, now);
    look(&mut book, 0, now);
    let each = (resident() - before) * 1024.0 / f64::from(PEERS);
    row("10,000 idle peers: memory of each in the book", each, "B", Limit::AtMost(600.0));

    let time = fastest(|| map(&mut book, &told, now));
    row("10,000 idle peers: a map in which nothing changed", time, "ms", Limit::AtMost(20.0));
    let time = fastest(|| look(&mut book, 0, now));
    row("10,000 idle peers: a look at the kernel's counters", time, "ms", Limit::AtMost(20.0));
    let timers = f64::from(u8::from(book.poll_timeout().is_some()));
    row("10,000 idle peers: timers", timers, "", Limit::AtMost(0.0));
    let probes = f64::from(u8::from(book.poll_transmit().is_some()));
    row("10,000 idle peers: probes", probes, "", Limit::AtMost(0.0));
    answer(&mut book, now);
}

/// A ping that comes is opened, and answered.
fn answer(book: &mut Book, now: Instant) {
    let theirs = DiscoPrivate::from_random([8; 32]);
    let shared = SharedKey::new(&theirs, &DiscoPrivate::from_random([7; 32]).public());
    let info = PeerInfo { disco: Some(theirs.public()), ..info(PEERS, &[]) };
    book.handle_peers([info].into_iter(), ranking(), now);
    let message = Message::Ping { transaction: TransactionId([1; 12]), node: Some(info.key), padding: 0 };
    let ping = shared.seal(&theirs.public(), [2; 24], &message);
    let from = SocketAddr::from(([203, 0, 113, 5], 41_741));
    let time = fastest(|| {
        for _ in 0..1_000 {
            book.handle_datagram(Via::Udp { from, local: None }, &ping, now);
            while book.poll_transmit().is_some() {}
        }
    });
    row("a ping is opened and answered", time, "us", Limit::AtMost(50.0));
}

fn map(book: &mut Book, told: &[[SocketAddr; 3]], now: Instant) {
    book.handle_peers((0..PEERS).map(|number| info(number, &told[number as usize])), ranking(), now);
    while book.poll_event().is_some() {}
}

fn look(book: &mut Book, tx_bytes: u64, now: Instant) {
    for number in 0..PEERS {
        let evidence = Evidence { endpoint: Some(loopback(number)), tx_bytes, ..Evidence::default() };
        book.handle_observed(&key(number), evidence, now, Timestamp::UNIX_EPOCH);
    }
    book.handle_looked(now);
}

fn info(number: u32, endpoints: &[SocketAddr]) -> PeerInfo<'_> {
    let disco = DiscoPublic::from_bytes(*key(number + PEERS * 2).as_bytes());
    let (home, relay) = (Some(RegionId(900)), Some(loopback(number)));
    PeerInfo { key: key(number), disco: Some(disco), endpoints, home, relay }
}

fn ranking() -> Ranking {
    Ranking::new(vec!["198.51.100.1/24".parse().unwrap()], [])
}

fn endpoints(number: u32) -> [SocketAddr; 3] {
    let at = |port| SocketAddr::new(Ipv4Addr::from_bits(0xc612_0000 + number).into(), port);
    [at(41_641), at(50_000), at(50_001)]
}

fn loopback(number: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x7f80_0001 + number).into(), 41_742)
}

/// Bytes in no order, as those of keys are.
fn key(number: u32) -> NodePublic {
    let mut bytes = [0; 32];
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = (u64::from(number) + 1 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        chunk.copy_from_slice(&word.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
    }
    NodePublic::from_bytes(bytes)
}

/// The fastest of several runs, in milliseconds.
fn fastest(mut run: impl FnMut()) -> f64 {
    let timed = || {
        let begin = Instant::now();
        run();
        begin.elapsed()
    };
    let fastest: Option<Duration> = std::iter::repeat_with(timed).take(RUNS).min();
    fastest.unwrap_or_default().as_secs_f64() * 1000.0
}

/// What this process has in memory, in KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
