//! The client against the server, both in memory.

use std::collections::BTreeSet;

use super::*;
use crate::derp::{ConnectionId, Handshake, Limits, Server};

#[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
fn origin() -> Instant {
    Instant::now()
}

fn private(n: u8) -> NodePrivate {
    NodePrivate::from_random([n; 32])
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A relay, and clients that are connected to it.
struct Scene {
    now: Instant,
    key: NodePrivate,
    server: Server,
    wake: BTreeSet<ConnectionId>,
    clients: Vec<Client>,
    /// What came to each client and is not read.
    inbox: Vec<Vec<u8>>,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let server = Server::new(limits);
        let (wake, clients, inbox) = (BTreeSet::new(), Vec::new(), Vec::new());
        Self { now: origin(), key: private(0), server, wake, clients, inbox }
    }

    /// Adds a client that has been through the introductions.
    fn join(&mut self, bytes_per_second: u64) -> usize {
        let index = self.clients.len();
        let mut client = Client::new(private(index as u8 + 1), [9; 24], index == 0, self.now);
        let handshake = Handshake::new(&self.key, None);
        assert_eq!(client.handle_bytes(&handshake.hello(), self.now), Ok(Some((45, None))));
        let mut said = Vec::new();
        client.poll_transmit(&mut said);
        let (greeting, taken) = handshake.read(&said).unwrap().unwrap();
        assert_eq!(greeting.client, private(index as u8 + 1).public());
        let id = ConnectionId(index as u64);
        self.server.handle_connected(id, &greeting, self.now, seconds(0), &mut self.wake).unwrap();
        self.server.handle_bytes(id, &said[taken..], self.now, &mut self.wake).unwrap();
        let welcome = handshake.welcome(&greeting.client, [7; 24], bytes_per_second, 1).unwrap();
        assert_eq!(client.handle_bytes(&welcome, self.now), Ok(Some((welcome.len(), Some(ClientEvent::Ready)))));
        self.clients.push(client);
        self.inbox.push(Vec::new());
        index
    }

    /// Carries everything that waits, both ways.
    fn carry(&mut self) {
        for index in 0..self.clients.len() {
            let mut said = Vec::new();
            self.clients[index].poll_transmit(&mut said);
            self.server.handle_bytes(ConnectionId(index as u64), &said, self.now, &mut self.wake).unwrap();
        }
        for index in 0..self.clients.len() {
            self.server.poll_transmit(ConnectionId(index as u64), &mut self.inbox[index]);
        }
    }

    /// What a client reads, as text.
    fn read(&mut self, index: usize) -> Vec<String> {
        let mut events = Vec::new();
        let bytes = std::mem::take(&mut self.inbox[index]);
        let mut rest = bytes.as_slice();
        while let Some((taken, event)) = self.clients[index].handle_bytes(rest, self.now).unwrap() {
            events.extend(event.map(|event| format!("{event:?}")));
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
        events
    }

    fn send(&mut self, from: usize, to: u8, packet: &[u8]) {
        self.clients[from].send(&private(to).public(), packet, self.now);
    }
}

#[test]
fn what_one_client_sends_the_other_receives() {
    let mut scene = Scene::new(Limits::default());
    let (alice, bob) = (scene.join(0), scene.join(0));

    scene.send(alice, 2, b"hello");
    scene.carry();

    let from = private(1).public();
    assert_eq!(scene.read(bob), [format!("{:?}", ClientEvent::Packet { from, payload: b"hello" })]);
    assert_eq!(scene.server.connected(), (2, 1), "the first calls this its home");
    scene.clients[bob].set_home(true);
    scene.clients[bob].set_home(true);
    scene.carry();
    assert_eq!(scene.server.connected(), (2, 2));
}

#[test]
fn what_is_sent_before_the_introductions_waits_for_their_end() {
    let now = origin();
    let mut client = Client::new(private(1), [9; 24], false, now);
    client.send(&private(2).public(), b"early", now);
    let mut out = Vec::new();
    client.poll_transmit(&mut out);
    assert!(out.is_empty());

    let (server, key) = (private(0), private(1).public());
    let handshake = Handshake::new(&server, None);
    client.handle_bytes(&handshake.hello(), now).unwrap();
    client.poll_transmit(&mut out);
    let introduction = out.len();
    client.handle_bytes(&handshake.welcome(&key, [7; 24], 0, 0).unwrap(), now).unwrap();
    client.poll_transmit(&mut out);
    assert!(out[introduction..].ends_with(b"early"));
}

#[test]
fn a_frame_is_read_once_it_is_whole() {
    let mut scene = Scene::new(Limits::default());
    let (alice, bob) = (scene.join(0), scene.join(0));
    scene.send(alice, 2, b"hello");
    scene.carry();
    let bytes = std::mem::take(&mut scene.inbox[bob]);
    for cut in 0..bytes.len() {
        assert_eq!(scene.clients[bob].handle_bytes(&bytes[..cut], scene.now), Ok(None));
    }
    assert!(scene.clients[bob].handle_bytes(&bytes, scene.now).unwrap().is_some());
}

#[test]
fn a_peer_that_is_not_there_and_a_restart_are_told() {
    let mut scene = Scene::new(Limits::default());
    let alice = scene.join(0);

    let probe = [disco::MAGIC.as_slice(), b"ping"].concat();
    scene.send(alice, 7, &probe);
    scene.carry();
    let peer = private(7).public();
    assert_eq!(scene.read(alice), [format!("{:?}", ClientEvent::PeerGone { peer, reason: GoneReason::NotHere })]);

    scene.server.handle_shutdown(seconds(2), seconds(30), &mut scene.wake);
    scene.carry();
    let told = ClientEvent::Restarting { reconnect_in: seconds(2), try_for: seconds(30) };
    assert_eq!(scene.read(alice), [format!("{told:?}")]);
}

#[test]
fn a_full_queue_loses_the_oldest_and_probes_pass_a_tunnel_that_fills_it() {
    let mut scene = Scene::new(Limits { queue_depth: 1000, ..Limits::default() });
    let (alice, bob) = (scene.join(0), scene.join(0));
    for number in 0..DATA_DEPTH + 3 {
        scene.send(alice, 2, format!("{number}.").as_bytes());
    }
    scene.send(alice, 2, &[disco::MAGIC.as_slice(), b"ping"].concat());
    assert_eq!(scene.clients[alice].drops().queue_full, 3);
    scene.carry();
    let events = scene.read(bob);
    assert_eq!(events.len(), DATA_DEPTH + 1);
    let oldest = format!("{:?}", ClientEvent::Packet { from: private(1).public(), payload: b"3." });
    assert_eq!(events[1], oldest, "behind the probe");
}

#[test]
fn the_relays_terms_are_kept_by_dropping() {
    let mut scene = Scene::new(Limits::default());
    let (alice, bob) = (scene.join(10_000), scene.join(0));
    // The bucket holds one packet of any length.
    scene.send(alice, 2, &[0; MAX_PACKET]);
    scene.send(alice, 2, &[0; 5_000]);
    assert_eq!(scene.clients[alice].drops(), ClientDrops { rate: 1, ..ClientDrops::default() });
    scene.now += seconds(1);
    scene.send(alice, 2, &[0; 5_000]);
    scene.send(alice, 2, &[0; MAX_PACKET + 1]);
    assert_eq!(scene.clients[alice].drops(), ClientDrops { rate: 1, too_long: 1, queue_full: 0 });
    scene.carry();
    assert_eq!(scene.read(bob).len(), 2);
}

#[test]
fn a_relay_that_does_not_answer_what_is_sent_is_left_within_seven_seconds() {
    let mut scene = Scene::new(Limits::default());
    let alice = scene.join(0);
    let begun = scene.now;
    scene.send(alice, 2, b"hello");

    let client = &mut scene.clients[alice];
    assert_eq!(client.poll_timeout(), begun + UNANSWERED);
    assert_eq!(client.handle_timeout(begun + UNANSWERED), Ok(()));
    let mut out = Vec::new();
    client.poll_transmit(&mut out);
    assert!(out.windows(8).any(|bytes| bytes == b"are here"));
    assert_eq!(client.poll_timeout(), begun + seconds(7));
    assert_eq!(client.handle_timeout(begun + seconds(7)), Err(ClientError::Silent));
}

#[test]
fn a_relay_that_answers_is_kept() {
    let mut scene = Scene::new(Limits::default());
    let (alice, bob) = (scene.join(0), scene.join(0));
    let begun = scene.now;
    // The home is asked after half a minute, another waits for the relay's own keep-alive.
    assert_eq!(scene.clients[alice].poll_timeout(), begun + HOME_SILENCE);
    assert_eq!(scene.clients[bob].poll_timeout(), begun + SILENCE);
    scene.now += HOME_SILENCE;
    scene.clients[alice].handle_timeout(scene.now).unwrap();
    scene.carry();
    assert_eq!(scene.read(alice), [""; 0], "a pong says nothing more");
    assert_eq!(scene.clients[alice].poll_timeout(), scene.now + HOME_SILENCE);

    scene.clients[bob].handle_network_changed(scene.now);
    assert_eq!(scene.clients[bob].poll_timeout(), scene.now + PONG);
    scene.carry();
    scene.read(bob);
    assert_eq!(scene.clients[bob].poll_timeout(), scene.now + SILENCE);
    assert_eq!(scene.clients[bob].handle_timeout(scene.now + SILENCE), Err(ClientError::Silent));
}

#[test]
fn a_server_that_is_no_relay_or_not_the_one_it_says_is_left() {
    let now = origin();
    let new = || Client::new(private(1), [9; 24], false, now);
    assert!(new().handle_bytes(b"HTTP/1.1 200 OK", now).unwrap_err().to_string().contains("frame"));
    let mut keep_alive = Vec::new();
    Frame::KeepAlive.encode(&mut keep_alive);
    assert_eq!(new().handle_bytes(&keep_alive, now), Err(DerpError::Magic.into()));

    let (server, liar) = (private(0), private(8));
    let mut client = new();
    client.handle_bytes(&Handshake::new(&server, None).hello(), now).unwrap();
    let terms = Handshake::new(&liar, None).welcome(&private(1).public(), [7; 24], 0, 0).unwrap();
    assert_eq!(client.handle_bytes(&terms, now), Err(DerpError::Sealed.into()));
    assert_eq!(new().handle_timeout(now + LOGIN), Err(ClientError::Login));
}

#[test]
fn a_server_that_pings_without_end_costs_bounded_memory() {
    let mut scene = Scene::new(Limits::default());
    let alice = scene.join(0);
    let mut ping = Vec::new();
    Frame::Ping(*b"12345678").encode(&mut ping);
    for _ in 0..100_000 {
        scene.clients[alice].handle_bytes(&ping, scene.now).unwrap();
    }
    let mut out = Vec::new();
    scene.clients[alice].poll_transmit(&mut out);
    assert!(out.len() <= CONTROL_BYTES + 13 && out.starts_with(&[FrameType::PONG.0]));
}

#[test]
fn data_that_was_not_sent_waits_for_the_next_connection_and_probes_do_not() {
    let mut scene = Scene::new(Limits::default());
    let alice = scene.join(0);
    let probe = [&disco::MAGIC[..], b" and the rest"].concat();
    let ended = &mut scene.clients[alice];
    for packet in [b"a".as_slice(), &probe, b"b"] {
        ended.send(&private(1).public(), packet, scene.now);
    }
    let mut next = ended.again([9; 24], scene.now);
    assert_eq!((ended.waiting(), next.waiting(), next.is_ready()), (1, 2, false));
    let mut out = Vec::new();
    next.poll_transmit(&mut out);
    assert!(out.is_empty(), "nothing goes before it is let in");
}
