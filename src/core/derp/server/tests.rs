//! One relay and a handful of clients, driven by hand.

use proptest::prelude::*;

use super::held::{ALL_BYTES, HOLD, KEY_BYTES, KEYS, SENDER_BYTES};
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
    relay.server.handle_closed(ConnectionId(1), relay.now, &mut relay.wake);
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
    relay.server.handle_closed(ConnectionId(10), relay.now, &mut relay.wake);
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
    relay.server.handle_closed(ConnectionId(200), relay.now, &mut relay.wake);
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
        relay.server.handle_closed(ConnectionId(n), relay.now, &mut relay.wake);
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
    assert_eq!(relay.server.handle_withdrawn(&key(1), relay.now, &mut relay.wake), 2);
    let open = [1, 2, 3, 4].map(|id| relay.server.contains(ConnectionId(id)));
    assert_eq!(open, [false, false, true, true]);
    assert!(relay.wake.contains(&ConnectionId(1)) && relay.wake.contains(&ConnectionId(2)), "to close their sockets");
    assert_eq!(relay.server.handle_withdrawn(&key(9), relay.now, &mut relay.wake), 0);
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

fn numbered(number: u32) -> NodePublic {
    let mut bytes = [0xaa; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

#[test]
fn data_for_a_key_that_just_left_is_the_first_it_gets_when_it_is_back() {
    let mut relay = Relay::new(Limits::default());
    relay.connect(1, key(1), false);
    relay.connect(2, key(2), false);
    relay.server.handle_closed(ConnectionId(2), relay.now, &mut relay.wake);
    for packet in [b"a".as_slice(), PROBE, b"b"] {
        relay.say(1, Frame::SendPacket { to: key(2), packet }).unwrap();
    }
    let gone = printed(Frame::PeerGone { peer: key(2), reason: GoneReason::NotHere });
    assert_eq!(relay.heard(1), [gone], "a probe is answered");
    assert_eq!(relay.server.counters().packets_out, 0);

    relay.now += HOLD - Duration::from_millis(1);
    relay.wake.clear();
    relay.connect(3, key(2), false);
    assert!(relay.wake.contains(&ConnectionId(3)));
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"c" }).unwrap();
    let from = key(1);
    assert_eq!(relay.heard(3), [b"a", b"b", b"c"].map(|packet| printed(Frame::RecvPacket { from, packet })));
    let Counters { packets_out, bytes_out, dropped_unknown_peer, .. } = relay.server.counters();
    assert_eq!((packets_out, bytes_out, dropped_unknown_peer), (3, 3, 1));
    assert_eq!((relay.server.held.extent(), relay.server.store.queued()), ((0, 0), 0));
}

#[test]
fn nobody_is_waited_for_longer_and_what_waited_is_lost_and_counted() {
    let mut relay = Relay::new(Limits::default());
    for n in 1..=3 {
        relay.connect(n.into(), key(n), false);
    }
    for n in 2..=3 {
        relay.server.handle_closed(ConnectionId(n.into()), relay.now, &mut relay.wake);
        relay.say(1, Frame::SendPacket { to: key(n), packet: b"x" }).unwrap();
    }
    relay.now += HOLD;
    relay.connect(4, key(2), false);
    assert!(relay.heard(4).is_empty());
    relay.say(1, Frame::SendPacket { to: key(3), packet: b"late" }).unwrap();
    relay.server.handle_timeout(relay.now, &mut relay.wake);
    assert_eq!((relay.server.held.extent(), relay.server.store.queued()), ((0, 0), 0));
    assert_eq!(relay.server.counters().dropped_unknown_peer, 3);
}

#[test]
fn a_key_that_is_withdrawn_is_not_waited_for() {
    let mut relay = Relay::new(Limits::default());
    for n in 1..=3 {
        relay.connect(n.into(), key(n), false);
    }
    relay.server.handle_closed(ConnectionId(2), relay.now, &mut relay.wake);
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"x" }).unwrap();
    for withdrawn in [key(2), key(3)] {
        relay.server.handle_withdrawn(&withdrawn, relay.now, &mut relay.wake);
        relay.say(1, Frame::SendPacket { to: withdrawn, packet: b"x" }).unwrap();
    }
    assert_eq!((relay.server.held.extent(), relay.server.store.queued()), ((0, 0), 0));
}

#[test]
fn a_relay_that_has_just_begun_waits_for_whomever_its_clients_send_to() {
    let mut relay = Relay::new(Limits::default());
    relay.server.handle_opened(relay.now);
    relay.connect(1, key(1), false);
    relay.say(1, Frame::SendPacket { to: key(2), packet: b"x" }).unwrap();
    relay.connect(2, key(2), false);
    assert_eq!(relay.heard(2), [printed(Frame::RecvPacket { from: key(1), packet: b"x" })]);
    relay.now += HOLD;
    relay.say(1, Frame::SendPacket { to: key(3), packet: b"x" }).unwrap();
    assert_eq!(relay.server.held.extent(), (0, 0));
}

#[test]
fn what_waits_for_those_who_are_away_is_bounded_for_a_key_a_sender_and_as_a_whole() {
    let mut relay = Relay::new(Limits::default());
    relay.server.handle_opened(relay.now);
    let (packet, framed) = ([0; 4000], 4037);
    for sender in 0..2 {
        relay.connect(sender.into(), key(sender), false);
        for _ in 0..50 {
            relay.say(sender.into(), Frame::SendPacket { to: key(99), packet: &packet }).unwrap();
        }
    }
    let (_, bytes) = relay.server.held.extent();
    assert!((KEY_BYTES - framed..=KEY_BYTES).contains(&bytes), "two senders fill a key and no more: {bytes}");

    let senders = (2 * ALL_BYTES as u64 / SENDER_BYTES) as u32;
    let mut most = 0;
    for sender in 0..senders {
        relay.connect(u64::from(1000 + sender), numbered(sender), false);
        let before = relay.server.held.extent().1;
        for peer in 0..40 {
            let to = numbered(1_000_000 + 40 * sender + peer);
            relay.say(u64::from(1000 + sender), Frame::SendPacket { to, packet: &packet }).unwrap();
        }
        most = most.max(relay.server.held.extent().1 - before);
    }
    assert!((SENDER_BYTES / 2..=SENDER_BYTES).contains(&(most as u64)), "of one sender: {most}");
    let (keys, bytes) = relay.server.held.extent();
    assert!(bytes <= ALL_BYTES && keys <= KEYS, "{bytes} bytes for {keys} keys");
    assert!(bytes > ALL_BYTES / 2 || keys == KEYS, "{bytes} bytes for {keys} keys");
    assert_eq!(relay.server.store.queued(), bytes);
    relay.server.handle_timeout(relay.now + HOLD, &mut relay.wake);
    assert_eq!((relay.server.held.extent(), relay.server.store.queued()), ((0, 0), 0));
}

#[test]
fn keys_that_leave_one_after_another_are_bounded() {
    let mut relay = Relay::new(Limits::default());
    for number in 0..2 * KEYS as u32 {
        relay.connect(number.into(), numbered(number), false);
        relay.server.handle_closed(ConnectionId(number.into()), relay.now, &mut relay.wake);
    }
    assert_eq!(relay.server.held.extent(), (KEYS, 0));
}

proptest! {
    #[test]
    fn all_bytes_that_wait_are_given_back(steps in prop::collection::vec((0..5_u8, 0..4_u8, 0..4_u8, 0..3000_u64), 0..80)) {
        let mut relay = Relay::new(Limits { queue_depth: 3, queued_bytes: 20_000, ..Limits::default() });
        relay.server.handle_opened(relay.now);
        let mut open = [None; 4];
        for (number, (what, a, b, amount)) in steps.into_iter().enumerate() {
            match (what, open[usize::from(a)]) {
                (0, None) => {
                    relay.connect(number as u64, key(a), false);
                    open[usize::from(a)] = Some(number as u64);
                }
                (0 | 1, Some(id)) => {
                    relay.server.handle_closed(ConnectionId(id), relay.now, &mut relay.wake);
                    open[usize::from(a)] = None;
                }
                (2 | 3, Some(id)) => {
                    relay.say(id, Frame::SendPacket { to: key(b), packet: &vec![0; amount as usize] }).unwrap();
                }
                (3, None) => drop(relay.server.handle_withdrawn(&key(a), relay.now, &mut relay.wake)),
                _ => {
                    relay.now += Duration::from_millis(amount);
                    relay.server.handle_timeout(relay.now, &mut relay.wake);
                }
            }
            relay.server.held.extent();
        }
        for id in open.into_iter().flatten() {
            relay.heard(id);
            relay.server.handle_closed(ConnectionId(id), relay.now, &mut relay.wake);
        }
        relay.server.handle_timeout(relay.now + HOLD, &mut relay.wake);
        prop_assert_eq!((relay.server.held.extent(), relay.server.store.queued()), ((0, 0), 0));
    }

    #[test]
    fn any_bytes_end_at_most_their_own_connection(bytes in prop::collection::vec(any::<u8>(), 0..300), mesh: bool) {
        let mut relay = Relay::new(Limits::default());
        relay.connect(1, key(1), mesh);
        relay.connect(2, key(2), false);
        if relay.server.handle_bytes(ConnectionId(1), &bytes, relay.now, &mut relay.wake).is_err() {
            relay.server.handle_closed(ConnectionId(1), relay.now, &mut relay.wake);
        }
        prop_assert!(relay.server.contains(ConnectionId(2)));
    }
}
