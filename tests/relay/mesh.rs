//! Several relays as one region.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use warren_core::wire::derp::Frame;

use crate::client::Client;
use crate::place::place;
use crate::server::Server;

fn start(listen: SocketAddr, key: &std::path::Path, peers: &str) -> Server {
    let listen = listen.to_string();
    Server::start(&["--open", "--listen", &listen, "--mesh-key-file", key.to_str().unwrap(), "--mesh-peer", peers])
}

/// Sends until it arrives: who is where gets about in its own time.
fn reaches(from: &mut Client, to: &mut Client, packet: &[u8]) {
    let peer = to.key.public();
    let reader = std::thread::scope(|scope| {
        let reading = scope.spawn(|| to.packet());
        while !reading.is_finished() {
            from.say(Frame::SendPacket { to: peer, packet });
            from.settle();
        }
        reading.join().unwrap()
    });
    assert_eq!(reader, packet);
}

#[test]
fn clients_of_two_relays_reach_each_other_also_after_one_was_restarted() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "ab".repeat(32) + "\n").unwrap();
    let (first, second) = (place(), place());
    let all = format!("http://{first},http://{second}/derp");
    let one_relay = start(first, key.path(), &all);
    let mut other_relay = start(second, key.path(), &all);
    let (mut one, mut two) = (Client::joined(first, 2), Client::joined(second, 3));
    reaches(&mut one, &mut two, b"there");
    reaches(&mut two, &mut one, b"and back");

    other_relay.signal(Signal::SIGTERM);
    assert!(other_relay.wait().success());
    other_relay.restart();
    let mut two = Client::joined(second, 3);
    reaches(&mut one, &mut two, b"again");
    drop(one_relay);
}

#[test]
fn who_has_another_secret_is_no_relay_of_the_region() {
    let keys = [tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap()];
    std::fs::write(keys[0].path(), "ab".repeat(32)).unwrap();
    std::fs::write(keys[1].path(), "ac".repeat(32)).unwrap();
    let (first, second) = (place(), place());
    let _one = start(first, keys[0].path(), &format!("http://{second}"));
    let _two = start(second, keys[1].path(), &format!("http://{first}"));
    let (mut one, two) = (Client::joined(first, 2), Client::joined(second, 3));
    // A probe to a key that is nowhere is answered so.
    one.say(Frame::SendPacket { to: two.key.public(), packet: b"TS\xf0\x9f\x92\xac" });
    let (kind, body) = one.frame().unwrap();
    assert!(matches!(Frame::decode(kind, &body), Ok(Frame::PeerGone { .. })), "{kind:?}");
}
