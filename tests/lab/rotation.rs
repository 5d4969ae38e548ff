//! Another node key under traffic.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{PATIENCE, eventually};
use crate::programs::Joined;
use crate::snapshot::Watch;
use crate::train::PathWatch;

/// One write of the stream and the next: it is there to be broken, not to fill the machine.
const PACE: Duration = Duration::from_millis(1);
/// The port of the stream.
const PORT: u16 = 2_222;

#[test]
fn another_key_on_either_side_costs_no_ping_of_a_train_at_10_ms_and_no_byte_of_a_stream() {
    let Some(Joined { alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let watch = PathWatch::start(&from.host, &to.ip(4));
        from.host.ping(&to.ip(4));
        watch.wait_until_direct(PATIENCE);
    }
    let before = [&alice, &bob].map(|agent| agent.status().this.public_key);
    let address = bob.ip(4);
    let listener = bob.host.namespace.inside(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    let reader = bob.host.namespace.spawn_inside(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all).unwrap()
    });
    let end = Arc::new(AtomicBool::new(false));
    let (ended, there): (_, SocketAddr) = (Arc::clone(&end), format!("{address}:{PORT}").parse().unwrap());
    let writer = alice.host.namespace.spawn_inside(move || {
        let mut stream = TcpStream::connect(there).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut written = 0_u64;
        while !ended.load(Ordering::Relaxed) {
            stream.write_all(&written.to_le_bytes()).unwrap();
            written += 1;
            std::thread::park_timeout(PACE);
        }
        written
    });
    let mut pinging =
        Watch::start(alice.host.command(["ping", "-n", "-i", "0.01", "-c", "1500", "-W", "10", &address]));
    pinging.wait_for_lines(200, "bytes from");
    alice.warren("rotate-keys");
    pinging.wait_for_lines(300, "bytes from");
    bob.warren("rotate-keys");
    let summary = pinging.finish();
    end.store(true, Ordering::Relaxed);
    let (written, read) = (writer.join().unwrap(), reader.join().unwrap());

    assert!(summary.contains("1500 packets transmitted, 1500 received"), "{}", &summary[summary.len() - 300..]);
    let numbers = read.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
    assert!(numbers.eq(0..written), "what was written arrives in order");
    for (agent, before) in [&alice, &bob].into_iter().zip(before) {
        assert_ne!(agent.status().this.public_key, before);
        eventually("the agent to hold the whole wish", || agent.status().warren.converged.then_some(()));
    }
}
