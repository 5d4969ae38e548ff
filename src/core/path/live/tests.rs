//! Discovery with one peer, whose part the test plays.

use super::super::{ACTIVE, Book, EndpointUpdate, Evidence, HEARTBEAT, PeerInfo, Ranking, Selected, TRUST, Via};
use super::*;
use crate::types::{DiscoPrivate, Timestamp};
use crate::wire::disco::{Message, SharedKey, sender};
use proptest::prelude::*;

const PEER: NodePublic = NodePublic::from_bytes([1; 32]);
const WE: NodePublic = NodePublic::from_bytes([2; 32]);
const HOME: RegionId = RegionId(900);
const RELAY: &str = "127.128.0.9:41742";
const FAR: &str = "203.0.113.5:41741";
const NEAR: &str = "10.0.0.5:41741";
const SECOND: Duration = Duration::from_secs(1);

/// A book with one peer, the peer's keys, and a clock.
struct Scene {
    book: Book,
    now: Instant,
    theirs: DiscoPrivate,
    shared: SharedKey,
    evidence: Evidence,
    told: Vec<SocketAddr>,
}

/// What the book sent, opened.
type Sent = Vec<(Target, Message)>;

impl Scene {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn new(told: &[&str]) -> Self {
        let (ours, theirs) = (DiscoPrivate::from_random([7; 32]), DiscoPrivate::from_random([8; 32]));
        let shared = SharedKey::new(&theirs, &ours.public());
        let now = Instant::now();
        let mut scene = Self {
            book: Book::new(ours, WE, [3; 32]),
            now,
            theirs,
            shared,
            evidence: Evidence { endpoint: Some(at(RELAY)), ..Evidence::default() },
            told: told.iter().map(|endpoint| at(endpoint)).collect(),
        };
        scene.map();
        scene.book.handle_own_endpoints(&[at("198.51.100.1:41741")], now);
        scene.look(0, 0);
        scene
    }

    fn map(&mut self) {
        let info = PeerInfo {
            key: PEER,
            disco: Some(self.theirs.public()),
            endpoints: &self.told,
            home: Some(HOME),
            relay: Some(at(RELAY)),
        };
        self.book.handle_peers([info].into_iter(), ranking(), self.now);
    }

    /// The kernel does what is wished, has this much traffic, and is looked at.
    fn look(&mut self, sent: u64, received: u64) {
        if let EndpointUpdate::Move(endpoint) = self.endpoint_update() {
            self.evidence.endpoint = Some(endpoint);
        }
        self.evidence.tx_bytes += sent;
        self.evidence.rx_bytes += received;
        self.book.handle_observed(&PEER, self.evidence, self.now, self.wall());
        self.book.handle_looked(self.now);
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn endpoint_update(&self) -> EndpointUpdate {
        self.book.endpoint_updates().next().map_or(EndpointUpdate::Leave, |(_, update)| update)
    }

    fn wakes(&mut self) {
        self.book.handle_initiation(&PEER, vec![1, 0, 0, 0], self.now);
        self.book.handle_timeout(self.now);
    }

    fn sent(&mut self) -> Sent {
        std::iter::from_fn(|| self.book.poll_transmit())
            .filter(|transmit| sender(&transmit.payload).is_ok())
            .map(|transmit| (transmit.to, self.shared.open(&transmit.payload).unwrap()))
            .collect()
    }

    fn hears(&mut self, via: Via, message: &Message) {
        let bytes = self.shared.seal(&self.theirs.public(), [5; 24], message);
        self.book.handle_datagram(via, &bytes, self.now);
    }

    /// The peer answers what was sent to it at this address.
    fn answers(&mut self, endpoint: &str) -> Sent {
        let sent = self.sent();
        for (to, message) in &sent {
            if let (Target::Udp { to, .. }, Message::Ping { transaction, .. }) = (to, message)
                && *to == at(endpoint)
            {
                let pong = Message::Pong { transaction: *transaction, source: at("198.51.100.1:41741") };
                self.hears(udp(endpoint), &pong);
            }
        }
        sent
    }

    /// Lets time pass, doing what is due when it is; the peer answers at an address or not, the kernel has traffic.
    fn passes(&mut self, span: Duration, answering: Option<&str>, (sent, received): (u64, u64)) -> Sent {
        let until = self.now + span;
        let mut all = Vec::new();
        while let Some(at) = self.book.poll_timeout()
            && at <= until
        {
            self.now = at.max(self.now);
            self.book.handle_timeout(self.now);
            while let Some(event) = self.book.poll_event() {
                if event == PathEvent::NeedsLook {
                    self.look(sent, received);
                }
            }
            all.extend(answering.map_or_else(Vec::new, |endpoint| self.answers(endpoint)));
            all.extend(self.sent());
        }
        self.now = until;
        all
    }

    fn goes_direct(&mut self) {
        self.wakes();
        self.answers(FAR);
        assert_eq!(self.direct(), Some(at(FAR)));
        self.look(0, 0);
    }

    fn direct(&self) -> Option<SocketAddr> {
        match self.book.path(&PEER).selected {
            Selected::Direct { endpoint, .. } => Some(endpoint),
            _ => None,
        }
    }
}

fn ranking() -> Ranking {
    Ranking::new(vec!["10.0.0.1/24".parse().unwrap()], ["192.168.7.0/24".parse().unwrap()])
}

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().unwrap()
}

fn udp(from: &str) -> Via {
    Via::Udp { from: at(from), local: Some("10.0.0.1".parse().unwrap()) }
}

fn pinged(sent: &Sent) -> Vec<SocketAddr> {
    let to = |(to, message): &(Target, Message)| match (to, message) {
        (Target::Udp { to, .. }, Message::Ping { .. }) => Some(*to),
        _ => None,
    };
    sent.iter().filter_map(to).collect()
}

fn ping(number: u8) -> Message {
    Message::Ping { transaction: TransactionId([number; 12]), node: Some(PEER), padding: 0 }
}

#[test]
fn an_idle_peer_rests_on_the_relay_and_costs_nothing() {
    let mut scene = Scene::new(&[FAR, NEAR]);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Initial(at(RELAY)));
    assert_eq!(scene.book.poll_timeout(), None);
    assert!(scene.sent().is_empty());
}

#[test]
fn the_kernel_s_first_packet_begins_the_search_at_all_candidates_and_calls_the_peer() {
    let mut scene = Scene::new(&[FAR, NEAR, "100.64.0.9:1", "192.168.7.9:1", "127.0.0.1:1"]);
    scene.wakes();
    let sent = scene.sent();
    assert_eq!(pinged(&sent), [at(NEAR), at(FAR)]);
    let called = sent.iter().find(|(to, _)| *to == Target::Relay { region: HOME, peer: PEER });
    assert!(matches!(called, Some((_, Message::CallMeMaybe { endpoints })) if endpoints.len() == 1));
}

#[test]
fn a_pong_moves_the_kernel_and_the_waiting_initiation_is_sent_there() {
    let mut scene = Scene::new(&[FAR]);
    scene.wakes();
    scene.answers(FAR);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Move(at(FAR)));
    let replayed = scene.book.poll_transmit().unwrap();
    assert_eq!((replayed.to, &replayed.payload[..]), (Target::Udp { to: at(FAR), from: None }, &[1, 0, 0, 0][..]));
    scene.look(0, 0);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Initial(at(FAR)));
}

#[test]
fn those_who_claim_a_peers_disco_key_keep_only_themselves_from_a_direct_path() {
    let mut scene = Scene::new(&[FAR]);
    let squatter = |n: u8| NodePublic::from_bytes(std::array::from_fn(|i| if i == 0 { n % 2 * 2 } else { n }));
    let told = [at(FAR)];
    let claim = |key| PeerInfo {
        key,
        disco: Some(DiscoPrivate::from_random([8; 32]).public()),
        endpoints: &told,
        home: Some(HOME),
        relay: Some(at(RELAY)),
    };
    // Before and after the peer in the order of keys.
    let peers = (10..30).map(squatter).chain([PEER]).map(claim);
    scene.book.handle_peers(peers, ranking(), scene.now);
    scene.sent();
    scene.hears(udp(FAR), &ping(1));
    assert!(scene.sent().iter().any(|(_, sent)| matches!(sent, Message::Pong { .. })), "its ping is answered");
    let call = Message::CallMeMaybe { endpoints: vec![at(NEAR)] };
    scene.hears(Via::Relay { region: HOME, from: PEER }, &call);
    scene.goes_direct();

    // What a squatter is told to have said is not taken for the peer's, nor the reverse.
    assert!(!matches!(scene.book.path(&squatter(10)).selected, Selected::Direct { .. }));
}

#[test]
fn a_pong_for_an_unsent_ping_or_from_elsewhere_proves_nothing() {
    let mut scene = Scene::new(&[FAR]);
    scene.wakes();
    let sent = scene.sent();
    let unsent = Message::Pong { transaction: TransactionId([9; 12]), source: at(FAR) };
    scene.hears(udp(FAR), &unsent);
    let Some((_, Message::Ping { transaction, .. })) = sent.first() else { panic!("no ping") };
    scene.hears(udp("203.0.113.66:1"), &Message::Pong { transaction: *transaction, source: at(FAR) });
    assert_eq!(scene.direct(), None);
    assert_eq!(pinged(&scene.sent()), [at("203.0.113.66:1")], "where it came from is asked itself");
}

#[test]
fn every_valid_ping_is_answered_the_way_it_came_and_its_source_is_probed() {
    let mut scene = Scene::new(&[]);
    scene.hears(udp(FAR), &ping(1));
    let sent = scene.sent();
    let local = Some("10.0.0.1".parse().unwrap());
    let pong = Message::Pong { transaction: TransactionId([1; 12]), source: at(FAR) };
    assert_eq!(sent[0], (Target::Udp { to: at(FAR), from: local }, pong));
    assert_eq!(pinged(&sent), [at(FAR)]);
    scene.hears(Via::Relay { region: HOME, from: PEER }, &ping(2));
    let pong = Message::Pong { transaction: TransactionId([2; 12]), source: at("127.3.3.40:900") };
    assert_eq!(scene.sent(), [(Target::Relay { region: HOME, peer: PEER }, pong)]);
}

/// Lets the peer answer small pings at an address, and large ones or not, for some time.
fn carries(scene: &mut Scene, span: Duration, large: bool) {
    let until = scene.now + span;
    while let Some(due) = scene.book.poll_timeout()
        && due <= until
    {
        scene.now = due.max(scene.now);
        scene.book.handle_timeout(scene.now);
        for (to, message) in scene.sent() {
            if let (Target::Udp { to, .. }, Message::Ping { transaction, padding, .. }) = (to, message)
                && to == at(FAR)
                && (padding == 0 || large)
            {
                scene.hears(udp(FAR), &Message::Pong { transaction, source: at("198.51.100.1:41741") });
            }
        }
    }
    scene.now = until;
}

#[test]
fn a_direct_path_is_asked_with_pings_as_large_as_packets_and_given_up_where_only_small_ones_are_answered() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    carries(&mut scene, 2 * SECOND, true);
    scene.look(1, 1);
    assert_eq!(scene.direct(), Some(at(FAR)));
    carries(&mut scene, 20 * SECOND, true);
    scene.look(1, 1);
    assert_eq!(scene.direct(), Some(at(FAR)));

    carries(&mut scene, 20 * SECOND, false);
    assert_eq!(scene.direct(), None, "small answers alone do not keep it");
    assert_eq!(scene.book.narrow().next(), Some((&PEER, &at(FAR))));
}

#[test]
fn pings_of_strangers_and_by_ways_that_no_path_may_take_are_not_answered() {
    let mut scene = Scene::new(&[]);
    for from in ["100.64.0.9:1", "192.168.7.9:1", "127.128.0.9:41742", "[fe80::1]:1"] {
        scene.hears(udp(from), &ping(1));
    }
    scene.hears(Via::Relay { region: HOME, from: WE }, &ping(1));
    let other = Message::Ping { transaction: TransactionId([1; 12]), node: Some(WE), padding: 0 };
    scene.hears(udp(FAR), &other);
    let stranger = DiscoPrivate::from_random([66; 32]);
    let ours = DiscoPrivate::from_random([7; 32]).public();
    let sealed = SharedKey::new(&stranger, &ours).seal(&stranger.public(), [1; 24], &ping(1));
    scene.book.handle_datagram(udp(FAR), &sealed, scene.now);
    assert!(scene.sent().is_empty());
    assert_eq!(scene.book.poll_timeout(), None);
}

#[test]
fn a_call_is_taken_only_through_the_relay_and_only_from_the_node_itself() {
    let mut scene = Scene::new(&[]);
    let call = Message::CallMeMaybe { endpoints: vec![at(FAR), at("100.64.0.9:1")] };
    scene.hears(udp("203.0.113.66:1"), &call);
    scene.hears(Via::Relay { region: HOME, from: WE }, &call);
    assert!(scene.sent().is_empty());
    scene.hears(Via::Relay { region: HOME, from: PEER }, &call);
    assert_eq!(pinged(&scene.sent()), [at(FAR)]);
}

#[test]
fn a_probe_alone_does_not_move_an_idle_peer() {
    let mut scene = Scene::new(&[FAR]);
    scene.hears(udp(FAR), &ping(1));
    scene.answers(FAR);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Initial(at(RELAY)));
    scene.book.handle_relayed(&PEER, scene.now);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Move(at(FAR)), "with traffic, what was found is used at once");
}

#[test]
fn a_direct_path_that_falls_silent_gives_way_to_the_relay_within_seven_seconds() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    scene.passes(Duration::from_secs(20), Some(FAR), (100, 100));
    assert_eq!(scene.direct(), Some(at(FAR)));
    scene.passes(Duration::from_secs(7), None, (100, 0));
    assert_eq!((scene.direct(), scene.endpoint_update()), (None, EndpointUpdate::Initial(at(RELAY))));
}

#[test]
fn a_direct_path_that_answers_stays_for_as_long_as_there_is_traffic_and_no_longer() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    let sent = scene.passes(Duration::from_secs(120), Some(FAR), (100, 0));
    assert_eq!(scene.direct(), None, "one-way traffic is answered by keep-alives, and there are none");
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    let sent_two_ways = scene.passes(Duration::from_secs(120), Some(FAR), (100, 100));
    assert_eq!(scene.direct(), Some(at(FAR)));
    assert!((46..56).contains(&pinged(&sent_two_ways).len()), "{}", pinged(&sent_two_ways).len());
    assert!(!sent.is_empty());
    scene.passes(ACTIVE + 3 * SECOND, Some(FAR), (0, 0));
    assert_eq!((scene.direct(), scene.endpoint_update()), (None, EndpointUpdate::Initial(at(RELAY))));
    scene.passes(120 * SECOND, Some(FAR), (0, 0));
    assert_eq!(scene.book.poll_timeout(), None);
}

#[test]
fn a_path_that_answers_probes_but_carries_nothing_is_left_alone_for_longer_and_longer() {
    let mut scene = Scene::new(&[FAR]);
    scene.wakes();
    let mut changes = Vec::new();
    let mut was = None;
    for second in 0..600 {
        scene.passes(SECOND, Some(FAR), (148, 0));
        if scene.direct() != was {
            was = scene.direct();
            changes.push(second);
        }
    }
    assert!(changes.len() <= 8 && changes.len() >= 4, "{changes:?}");
    let gaps: Vec<i32> = changes.chunks_exact(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap <= 9), "{changes:?}");
}

#[test]
fn an_address_on_our_link_wins_over_a_faster_one_elsewhere() {
    let mut scene = Scene::new(&[FAR, NEAR]);
    scene.wakes();
    let sent = scene.sent();
    for endpoint in [FAR, NEAR] {
        scene.now += Duration::from_millis(20);
        for (to, message) in &sent {
            if let (Target::Udp { to, .. }, Message::Ping { transaction, .. }) = (to, message)
                && *to == at(endpoint)
            {
                scene.hears(udp(endpoint), &Message::Pong { transaction: *transaction, source: at(FAR) });
            }
        }
        assert_eq!(scene.direct(), Some(at(endpoint)));
    }
}

#[test]
fn when_our_address_is_gone_the_relay_takes_over_at_once_and_other_paths_have_to_prove_themselves() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    scene.book.handle_links_lost(&["10.0.0.1/24".parse().unwrap()], scene.now);
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Move(at(RELAY)));
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    scene.book.handle_links_lost(&["10.9.9.9/24".parse().unwrap()], scene.now);
    scene.passes(SECOND, None, (100, 100));
    assert_eq!(scene.direct(), None);
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    scene.book.handle_links_lost(&["10.9.9.9/24".parse().unwrap()], scene.now);
    scene.passes(SECOND, Some(FAR), (100, 100));
    assert_eq!(scene.direct(), Some(at(FAR)));
}

#[test]
fn the_kernel_is_not_fought_where_it_followed_the_peer_but_never_left_on_a_foreign_loopback_address() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    for _ in 0..5 {
        scene.evidence.endpoint = Some(at("203.0.113.77:7"));
        scene.look(100, 100);
        assert_eq!(scene.endpoint_update(), EndpointUpdate::Initial(at("203.0.113.77:7")));
        scene.passes(10 * SECOND, Some("203.0.113.77:7"), (100, 100));
    }
    scene.evidence.endpoint = Some(at("127.128.0.77:41742"));
    scene.book.handle_observed(&PEER, scene.evidence, scene.now, scene.wall());
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Move(at("203.0.113.77:7")));
}

#[test]
fn where_the_kernel_followed_the_peer_is_believed_in_from_the_look_before_on() {
    let mut scene = Scene::new(&[FAR]);
    scene.goes_direct();
    scene.passes(20 * SECOND, Some(FAR), (100, 100));
    scene.look(100, 100);
    let looked = scene.now;
    scene.now += SECOND + SECOND / 2;
    scene.evidence.endpoint = Some(at("203.0.113.77:7"));
    scene.look(100, 100);
    assert_eq!(scene.direct(), Some(at("203.0.113.77:7")));
    scene.passes(looked + TRUST - scene.now, None, (100, 0));
    assert_eq!(scene.direct(), None, "what came by it may have come right after that look");
}

#[test]
fn after_a_restart_a_peer_in_session_stays_direct_and_is_asked_and_an_idle_one_goes_to_the_relay() {
    for (handshake, expected) in
        [(999_990, EndpointUpdate::Initial(at(FAR))), (999_000, EndpointUpdate::Move(at(RELAY)))]
    {
        let mut scene = Scene::new(&[]);
        scene.book = Book::new(DiscoPrivate::from_random([7; 32]), WE, [3; 32]);
        scene.map();
        scene.evidence.endpoint = Some(at(FAR));
        scene.evidence.last_handshake = Some(Timestamp::from_second(handshake).unwrap());
        scene.book.handle_observed(&PEER, scene.evidence, scene.now, scene.wall());
        scene.book.handle_looked(scene.now);
        assert_eq!(scene.endpoint_update(), expected);
        let sent = scene.passes(HEARTBEAT, None, (0, 0));
        assert_eq!(pinged(&sent).contains(&at(FAR)), handshake == 999_990);
        scene.passes(TRUST, None, (0, 0));
        assert_eq!(scene.direct(), None);
    }
}

#[test]
fn a_ping_for_people_says_which_way_the_answer_came_or_that_there_was_none() {
    let mut scene = Scene::new(&[]);
    scene.book.handle_ping(&PEER, 7, scene.now);
    let sent = scene.sent();
    let relay = Target::Relay { region: HOME, peer: PEER };
    let Some((_, Message::Ping { transaction, .. })) = sent.iter().find(|(to, _)| *to == relay) else {
        panic!("no ping through the relay: {sent:?}")
    };
    scene.now += Duration::from_millis(30);
    let pong = Message::Pong { transaction: *transaction, source: at("127.3.3.40:900") };
    scene.hears(Via::Relay { region: HOME, from: PEER }, &pong);
    let mut events: Vec<_> = std::iter::from_fn(|| scene.book.poll_event()).collect();
    events.retain(|event| matches!(event, PathEvent::PingDone { .. }));
    assert_eq!(events, [PathEvent::PingDone { id: 7, peer: PEER, answer: Some((relay, Duration::from_millis(30))) }]);

    scene.book.handle_ping(&PEER, 8, scene.now);
    let until = scene.now + 6 * SECOND;
    while let Some(at) = scene.book.poll_timeout()
        && at < until
    {
        scene.book.handle_timeout(at);
    }
    let events: Vec<_> = std::iter::from_fn(|| scene.book.poll_event()).collect();
    assert!(events.contains(&PathEvent::PingDone { id: 8, peer: PEER, answer: None }), "{events:?}");
}

/// What a liar may do.
#[derive(Clone, Debug)]
enum Lie {
    Call(Vec<u32>),
    Ping(u32),
    Pong(u8),
    Relay,
    Wait(u64),
}

fn lies() -> impl Strategy<Value = Vec<Lie>> {
    let lie = prop_oneof![
        prop::collection::vec(any::<u32>(), 0..70).prop_map(Lie::Call),
        any::<u32>().prop_map(Lie::Ping),
        any::<u8>().prop_map(Lie::Pong),
        Just(Lie::Relay),
        (1..2_000_u64).prop_map(Lie::Wait),
    ];
    prop::collection::vec(lie, 0..200)
}

/// An endpoint anywhere at all, forbidden ranges included.
fn anywhere(bits: u32) -> SocketAddr {
    let forbidden = ["127.0.0.1:1", "100.64.0.9:1", "192.168.7.9:1", "224.0.0.1:1", "169.254.0.1:1", "[fe80::1]:1"];
    match bits % 8 {
        few @ 0..6 => at(forbidden[few as usize]),
        _ => SocketAddr::from((bits.to_be_bytes(), (bits >> 8) as u16)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_liar_costs_bounded_probes_and_never_makes_us_probe_where_nobody_may_be(lies in lies()) {
        let mut scene = Scene::new(&[]);
        let begin = scene.now;
        let mut probes = 0;
        for lie in lies {
            let mut sent = Vec::new();
            match lie {
                Lie::Call(bits) => {
                    let endpoints = bits.into_iter().map(anywhere).collect();
                    scene.hears(Via::Relay { region: HOME, from: PEER }, &Message::CallMeMaybe { endpoints });
                }
                Lie::Ping(bits) => scene.hears(Via::Udp { from: anywhere(bits), local: None }, &ping(1)),
                Lie::Pong(number) => {
                    let pong = Message::Pong { transaction: TransactionId([number; 12]), source: at(FAR) };
                    scene.hears(udp(FAR), &pong);
                }
                Lie::Relay => scene.book.handle_relayed(&PEER, scene.now),
                Lie::Wait(millis) => sent = scene.passes(Duration::from_millis(millis), None, (0, 0)),
            }
            sent.extend(scene.sent());
            for endpoint in pinged(&sent) {
                prop_assert!(ranking().rank(endpoint).is_some(), "{endpoint} was probed");
                probes += 1;
            }
            prop_assert_eq!(scene.direct(), None);
        }
        let most = 64 + 4 * (scene.now.saturating_duration_since(begin).as_secs() + 1);
        prop_assert!(probes <= most, "{} probes, at most {}", probes, most);
    }
}
