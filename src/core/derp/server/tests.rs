//! One relay and a handful of clients, driven by hand.

use proptest::prelude::*;

use super::*;
use crate::wire::derp::CLIENT_FRAME;

const PROBE: &[u8] = b"TS\xf0\x9f\x92\xac and the rest";

struct Relay {
    server: Server,
    now: Instant,
    wake: BTreeSet<ConnectionId>,
}

impl Relay {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn new(limits: Limits) -> Self {
        Self { server: Server::new(limits), now: Instant::now(), wake: BTreeSet::new() }
    }

    fn connect(&mut self, id: u64, client: NodePublic, is_mesh: bool) {
        let greeting = Greeting { client, is_mesh, is_prober: false, answers_pings: true };
        self.server.handle_connected(ConnectionId(id), &greeting, self.now, Duration::ZERO, &mut self.wake).unwrap();
    }

    fn say(&mut self, id: u64, frame: Frame<'_>) -> Result<(usize, Duration), DerpError> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.server.handle_bytes(ConnectionId(id), &bytes, self.now, &mut self.wake)
    }

    /// What the client reads next, each frame as it would print.
    fn heard(&mut self, id: u64) -> Vec<String> {
        let mut bytes = Vec::new();
        self.server.poll_transmit(ConnectionId(id), &mut bytes);
        let mut rest = bytes.as_slice();
        let mut frames = Vec::new();
        while let Some((kind, length)) = header(rest, CLIENT_FRAME).unwrap() {
            frames.push(format!("{:?}", Frame::decode(kind, &rest[HEADER_LEN..HEADER_LEN + length]).unwrap()));
            rest = &rest[HEADER_LEN + length..];
        }
        frames
    }
}

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn printed(frame: Frame<'_>) -> String {
    format!("{frame:?}")
}

#[test]
fn a_packet_reaches_the_key_it_names_and_says_from_whom() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.connect(2, key(2), false);
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"hello" }).unwrap();
    assert_eq!(relay.wake, [ConnectionId(2)].into());
    assert_eq!(relay.heard(2), [printed(Frame::RecvPacket { from: key(1), packet: b"hello" })]);
    assert!(relay.heard(1).is_empty());
}

#[test]
fn a_full_data_queue_drops_its_oldest_and_never_a_probe() {
    let mut relay = Relay::new(Limits { queue_depth: 2, ..Limits::default() });
    relay.connect(1, key(1), false);
    relay.connect(2, key(2), false);
    relay.say(1, Frame::SendPacket { to: key(2), packet: PROBE }).unwrap();
    for packet in [b"a", b"b", b"c"] {
        relay.say(1, Frame::SendPacket { to: key(2), packet }).unwrap();
    }
    let from = key(1);
    let expected = [PROBE, b"b", b"c"].map(|packet| printed(Frame::RecvPacket { from, packet }));
    assert_eq!(relay.heard(2), expected);
    assert_eq!(relay.server.counters().dropped_queue_full, 1);
}

#[test]
fn an_absent_peer_is_named_only_to_probes_and_at_a_limited_rate() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.say(1, Frame::SendPacket { to: key(9), packet: b"data" }).unwrap();
    assert!(relay.heard(1).is_empty());
    for _ in 0..10 {
        relay.say(1, Frame::SendPacket { to: key(9), packet: PROBE }).unwrap();
    }
    let gone = printed(Frame::PeerGone { peer: key(9), reason: GoneReason::NotHere });
    assert_eq!(relay.heard(1), vec![gone; 3]);
}

#[test]
fn whoever_heard_from_a_client_hears_that_it_left() {
    let mut relay = Relay::new(Limits::default());
    for n in 1..=3 {
        relay.connect(n.into(), key(n), false);
    }
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"x" }).unwrap();
    relay.heard(2);
    relay.server.handle_closed(ConnectionId(1), &mut relay.wake);
    assert_eq!(relay.heard(2), [printed(Frame::PeerGone { peer: key(1), reason: GoneReason::Disconnected })]);
    assert!(relay.heard(3).is_empty());
}

#[test]
fn of_two_connections_with_one_key_the_one_that_spoke_last_receives_and_both_are_told() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.connect(10, key(2), false);
    relay.connect(11, key(2), false);
    assert_eq!(relay.heard(10), [printed(Frame::Health(DUPLICATE))]);
    assert_eq!(relay.heard(11), [printed(Frame::Health(DUPLICATE))]);
    relay.say(10, Frame::NotePreferred(true)).unwrap();
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"x" }).unwrap();
    assert_eq!((relay.heard(10).len(), relay.heard(11).len()), (1, 0));
    relay.server.handle_closed(ConnectionId(10), &mut relay.wake);
    assert_eq!(relay.heard(11), [printed(Frame::Health(""))]);
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"x" }).unwrap();
    assert_eq!(relay.heard(11).len(), 1);
}

#[test]
fn a_sibling_watches_forwards_and_is_forwarded_to() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.connect(100, key(100), true);
    relay.heard(100);
    relay.say(100, Frame::WatchConns).unwrap();
    assert!(relay.heard(100).contains(&printed(Frame::PeerPresent(key(1)))));
    relay.say(100, Frame::ForwardPacket { from: key(50), to: key(1), packet: b"in" }).unwrap();
    assert_eq!(relay.heard(1), [printed(Frame::RecvPacket { from: key(50), packet: b"in" })]);

    relay.server.handle_linked(ConnectionId(200), key(100), relay.now, &mut relay.wake);
    assert_eq!(relay.heard(200), [printed(Frame::WatchConns)]);
    relay.say(200, Frame::PeerPresent(key(50))).unwrap();
    relay.say(1, Frame::SendPacket { to: key(50), packet: b"out" }).unwrap();
    assert_eq!(relay.heard(200), [printed(Frame::ForwardPacket { from: key(1), to: key(50), packet: b"out" })]);
    let gone = Frame::PeerGone { peer: key(50), reason: GoneReason::Disconnected };
    relay.say(200, gone).unwrap();
    assert_eq!(relay.heard(1), [printed(gone)]);
    relay.say(1, Frame::SendPacket { to: key(50), packet: b"out" }).unwrap();
    assert!(relay.heard(200).is_empty());
}

#[test]
fn with_a_link_goes_the_way_to_all_who_are_behind_it() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.server.handle_linked(ConnectionId(200), key(100), relay.now, &mut relay.wake);
    relay.connect(100, key(100), true);
    relay.say(200, Frame::PeerPresent(key(50))).unwrap();
    relay.say(100, Frame::ForwardPacket { from: key(50), to: key(1), packet: b"in" }).unwrap();
    relay.heard(1);
    assert_eq!(relay.server.remote_keys(), 1);
    relay.server.handle_closed(ConnectionId(200), &mut relay.wake);
    assert_eq!(relay.heard(1), [printed(Frame::PeerGone { peer: key(50), reason: GoneReason::Disconnected })]);
    assert_eq!(relay.server.remote_keys(), 0);
}

#[test]
fn readers_that_stopped_reading_cannot_fill_memory() {
    let limits = Limits { queued_bytes: 10_000, ..Limits::default() };
    let mut relay = Relay::new(limits);
    for n in 1..=20 {
        relay.connect(n.into(), key(n), false);
    }
    for n in 2..=20 {
        relay.say(1, Frame::SendPacket { to: key(n), packet: &[0; 1400] }).unwrap();
    }
    assert_eq!(relay.server.counters().dropped_memory, 13);
    assert_eq!(relay.heard(2).len(), 1);
    relay.say(1, Frame::SendPacket { to: key(20), packet: &[0; 1400] }).unwrap();
    assert_eq!(relay.heard(20).len(), 1);
    for n in 2..=20 {
        relay.server.handle_closed(ConnectionId(n), &mut relay.wake);
    }
    assert_eq!(relay.server.store.queued(), 0);
}

#[test]
fn packets_in_a_row_reach_each_key_in_their_order() {
    let mut relay = Relay::new(Limits::default());
    for n in 1..=3 {
        relay.connect(n.into(), key(n), false);
    }
    let mut bytes = Vec::new();
    for (to, packet) in [(2, b"a"), (2, b"b"), (3, b"c"), (2, b"d"), (9, b"e"), (3, b"f")] {
        Frame::SendPacket { to: key(to), packet }.encode(&mut bytes);
    }
    let whole = bytes.len();
    Frame::SendPacket { to: key(3), packet: b"cut" }.encode(&mut bytes);
    bytes.pop();
    let (taken, _) = relay.server.handle_bytes(ConnectionId(1), &bytes, relay.now, &mut relay.wake).unwrap();
    assert_eq!(taken, whole);
    let from = key(1);
    assert_eq!(relay.heard(2), [b"a", b"b", b"d"].map(|packet| printed(Frame::RecvPacket { from, packet })));
    assert_eq!(relay.heard(3), [b"c", b"f"].map(|packet| printed(Frame::RecvPacket { from, packet })));
    assert_eq!(relay.server.counters().dropped_unknown_peer, 1);
}

#[test]
fn an_ordinary_client_may_not_do_what_a_sibling_may() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    for frame in
        [Frame::WatchConns, Frame::ClosePeer(key(1)), Frame::ForwardPacket { from: key(1), to: key(1), packet: b"" }]
    {
        assert_eq!(relay.say(1, frame), Err(DerpError::NotAllowed), "{frame:?}");
    }
}

#[test]
fn a_ping_is_answered_and_a_quiet_client_is_kept_alive() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.say(1, Frame::Ping(*b"12345678")).unwrap();
    assert_eq!(relay.heard(1), [printed(Frame::Pong(*b"12345678"))]);
    relay.server.handle_timeout(relay.now + KEEP_ALIVE, &mut relay.wake);
    assert_eq!(relay.heard(1), [printed(Frame::KeepAlive)]);
}

#[test]
fn a_quiet_client_hears_from_us_before_the_proxies_in_between_give_up() {
    let (proxies, jitter) = (Duration::from_secs(60), Duration::from_secs(5));
    assert!(KEEP_ALIVE + jitter < proxies - Duration::from_secs(10));
}

#[test]
fn a_key_that_is_withdrawn_loses_all_its_connections_and_no_sibling_of_that_key() {
    let mut relay = Relay::new(Limits::default());
    for (id, of) in [(1, key(1)), (2, key(1)), (3, key(2))] {
        relay.connect(id, of, false);
    }
    relay.connect(4, key(1), true);
    relay.wake.clear();
    assert_eq!(relay.server.handle_withdrawn(&key(1), &mut relay.wake), 2);
    let open = [1, 2, 3, 4].map(|id| relay.server.contains(ConnectionId(id)));
    assert_eq!(open, [false, false, true, true]);
    assert!(relay.wake.contains(&ConnectionId(1)) && relay.wake.contains(&ConnectionId(2)), "to close their sockets");
    assert_eq!(relay.server.handle_withdrawn(&key(9), &mut relay.wake), 0);
}

#[test]
fn a_client_above_its_rate_is_paused_and_a_sibling_never_is() {
    let limits = Limits { bytes_per_second: 1000, burst_bytes: 100, ..Limits::default() };
    let mut relay = Relay::new(limits);
    relay.connect(1, key(1), false);
    relay.connect(2, key(2), true);
    let frame = Frame::SendPacket { to: key(9), packet: &[0; 1063] };
    assert_eq!(relay.say(1, frame), Ok((1100, Duration::from_secs(1))));
    assert_eq!(relay.say(2, frame), Ok((1100, Duration::ZERO)));
}

#[test]
fn a_flood_of_one_key_is_bounded() {
    let mut relay = Relay::new(Limits::default());
    for n in 0..CONNECTIONS_OF_KEY.most {
        relay.connect(n as u64, key(1), false);
    }
    let greeting = Greeting { client: key(1), is_mesh: false, is_prober: false, answers_pings: true };
    let one_more =
        relay.server.handle_connected(ConnectionId(99), &greeting, relay.now, Duration::ZERO, &mut relay.wake);
    assert!(matches!(one_more, Err(DerpError::Limit(_))));
    assert!(!relay.server.contains(ConnectionId(99)));
}

proptest! {
    #[test]
    fn any_bytes_end_at_most_their_own_connection(bytes in prop::collection::vec(any::<u8>(), 0..300), mesh: bool) {
        let mut relay = Relay::new(Limits::default());
        relay.connect(1, key(1), mesh);
        relay.connect(2, key(2), false);
        if relay.server.handle_bytes(ConnectionId(1), &bytes, relay.now, &mut relay.wake).is_err() {
            relay.server.handle_closed(ConnectionId(1), &mut relay.wake);
        }
        prop_assert!(relay.server.contains(ConnectionId(2)));
    }
}
