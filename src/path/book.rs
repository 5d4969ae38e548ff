//! What is known of the way to each peer, and what to do about it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Event, Evidence, Ground, LOOK, PATIENCE, PathView, PeerInfo, SESSION, Transmit, Via, Way, Wish};
use crate::types::{DiscoPrivate, IpNet, NodePublic, Timestamp};

/// The ways to all peers.
#[derive(Debug)]
pub struct Book {
    node: NodePublic,
    peers: BTreeMap<NodePublic, Track>,
    ground: Ground,
    own_endpoints: Vec<SocketAddr>,
    /// Counts the maps, to tell the peers of the last one from those before.
    round: u64,
    look_at: Option<Instant>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

#[derive(Debug, Default)]
struct Track {
    round: u64,
    /// The endpoints that the map names.
    told: Box<[SocketAddr]>,
    /// The usable ones of them, best first.
    candidates: Box<[SocketAddr]>,
    wish: Wish,
    last_handshake: Option<Timestamp>,
    alive: bool,
    tx_bytes: u64,
    /// Since when packets go to the present endpoint without a handshake.
    tried_since: Option<Instant>,
}

impl Book {
    /// A book without peers. Our probes are sealed with the disco key and say the node key; all chance comes from the
    /// seed.
    pub fn new(_disco: DiscoPrivate, node: NodePublic, _seed: [u8; 32]) -> Self {
        Self {
            node,
            peers: BTreeMap::new(),
            ground: Ground::default(),
            own_endpoints: Vec::new(),
            round: 0,
            look_at: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Our node key, as it is after a login.
    pub fn handle_own_key(&mut self, node: NodePublic) {
        self.node = node;
    }

    /// Takes what the map says of all peers; a peer that is not named is forgotten.
    ///
    /// Only what changed is ranked anew, so that a change of one peer among thousands costs little.
    pub fn handle_peers<'a>(&mut self, peers: impl Iterator<Item = PeerInfo<'a>>, ground: Ground, _now: Instant) {
        let moved = self.ground != ground;
        self.ground = ground;
        self.round += 1;
        for PeerInfo { key, endpoints, .. } in peers {
            let track = self.peers.entry(key).or_default();
            track.round = self.round;
            if moved || *track.told != *endpoints {
                track.told = endpoints.into();
                track.set_candidates(self.ground.candidates(endpoints));
            }
        }
        self.peers.retain(|_, track| track.round == self.round);
    }

    /// Our own endpoints, best first, as they are known at this moment: what a peer is told to probe.
    pub fn handle_own_endpoints(&mut self, endpoints: &[SocketAddr], _now: Instant) {
        self.own_endpoints = endpoints.to_vec();
    }

    /// A datagram that looks like a probe has come.
    pub fn handle_datagram(&mut self, _via: Via, _bytes: &[u8], _now: Instant) {}

    /// The kernel began a handshake with a relayed peer; the packet is on its way through the relay.
    pub fn handle_initiation(&mut self, _peer: &NodePublic, _packet: Vec<u8>, _now: Instant) {}

    /// The relay carried something to or from a peer after a pause. It need not be told more often than once a second.
    pub fn handle_relayed(&mut self, _peer: &NodePublic, _now: Instant) {}

    /// Takes what the kernel says of a peer.
    pub fn handle_observed(&mut self, key: &NodePublic, evidence: Evidence, now: Instant, wall: Timestamp) {
        let Some(track) = self.peers.get_mut(key) else { return };
        let before = track.wish;
        track.handle_observed(evidence, now, wall);
        if track.wish != before {
            self.events.push_back(Event::PathChanged { peer: *key });
        }
    }

    /// The kernel has been looked at; the next look is due later.
    pub fn handle_looked(&mut self, now: Instant) {
        let undecided = self.peers.values().any(|track| !track.alive && track.candidates.len() > 1);
        let share = u32::try_from(self.peers.len() / 1_000).unwrap_or(u32::MAX).saturating_add(1);
        self.look_at = undecided.then(|| now + LOOK.saturating_mul(share));
    }

    /// Somebody wants to know how a peer is reached: it ends in [`Event::PingDone`] with this number.
    pub fn handle_ping(&mut self, peer: &NodePublic, id: u64, _now: Instant) {
        self.events.push_back(Event::PingDone { id, peer: *peer, answer: None });
    }

    /// Addresses of ours, each with its on-link prefix, are gone: paths over them end at once.
    pub fn handle_links_lost(&mut self, _removed: &[IpNet], _now: Instant) {}

    /// The time that [`Book::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            self.events.push_back(Event::NeedsLook);
        }
    }

    /// When to call [`Book::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What should become of each peer's endpoint, where we have a wish.
    pub fn wishes(&self) -> impl Iterator<Item = (NodePublic, Wish)> + '_ {
        self.peers.iter().filter(|(_, track)| track.wish != Wish::Leave).map(|(key, track)| (*key, track.wish))
    }

    /// The path to a peer.
    pub fn path(&self, _key: &NodePublic) -> PathView {
        PathView { way: Way::None, active: false }
    }
}

impl Track {
    fn set_candidates(&mut self, candidates: Vec<SocketAddr>) {
        if *candidates == *self.candidates {
            return;
        }
        self.candidates = candidates.into();
        self.tried_since = None;
        if !self.alive {
            self.wish = self.candidates.first().map_or(Wish::Leave, |best| Wish::Initial(*best));
        }
    }

    fn handle_observed(&mut self, evidence: Evidence, now: Instant, wall: Timestamp) {
        let progress = evidence.last_handshake > self.last_handshake;
        let tried = evidence.tx_bytes > self.tx_bytes;
        self.last_handshake = evidence.last_handshake;
        self.tx_bytes = evidence.tx_bytes;
        self.alive = progress || evidence.last_handshake.is_some_and(|then| age(then, wall) < SESSION);

        if let (Wish::Move(target), Some(endpoint)) = (self.wish, evidence.endpoint)
            && target == endpoint
        {
            self.wish = Wish::Initial(target);
        }
        if self.alive {
            self.tried_since = None;
            self.wish = evidence.endpoint.map_or(self.wish, Wish::Initial);
        } else if let Some(endpoint) = evidence.endpoint {
            self.consider(endpoint, tried, now);
        }
    }

    /// Decides whether a peer without a session stays at its endpoint.
    fn consider(&mut self, endpoint: SocketAddr, tried: bool, now: Instant) {
        let Some(place) = self.candidates.iter().position(|candidate| *candidate == endpoint) else {
            if let Some(best) = self.candidates.first() {
                self.wish = Wish::Move(*best);
            }
            return;
        };
        match self.tried_since {
            None if tried => self.tried_since = Some(now),
            Some(since) if tried && now.saturating_duration_since(since) >= PATIENCE => {
                let next = self.candidates[(place + 1) % self.candidates.len()];
                if next != endpoint {
                    self.wish = Wish::Move(next);
                }
                self.tried_since = Some(now);
            }
            _ => {}
        }
    }
}

/// How long ago, by the wall clock; a time in the future is no time ago.
fn age(then: Timestamp, wall: Timestamp) -> std::time::Duration {
    wall.duration_since(then).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PEER: NodePublic = NodePublic::from_bytes([1; 32]);

    /// A book with one peer that has these endpoints, and a clock that the test moves.
    struct Scene {
        book: Book,
        start: Instant,
        elapsed: Duration,
        tx_bytes: u64,
        endpoint: Option<SocketAddr>,
    }

    impl Scene {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
        fn new(endpoints: &[&str]) -> Self {
            let mut scene = Self {
                book: Book::new(DiscoPrivate::from_random([1; 32]), NodePublic::from_bytes([9; 32]), [1; 32]),
                start: Instant::now(),
                elapsed: Duration::ZERO,
                tx_bytes: 0,
                endpoint: None,
            };
            scene.map_says(endpoints);
            scene
        }

        fn map_says(&mut self, endpoints: &[&str]) {
            let endpoints: Vec<SocketAddr> = endpoints.iter().map(|e| e.parse().unwrap()).collect();
            let ground = Ground::new(vec!["10.0.0.1/24".parse().unwrap()], []);
            self.book.handle_peers([peer(PEER, &endpoints)].into_iter(), ground, self.start);
        }

        /// The kernel does what is wished; then packets are sent (or not), and the kernel is looked at.
        fn look(&mut self, seconds: u64, sends: bool, handshake: Option<u64>) -> Wish {
            match self.wish() {
                Wish::Initial(endpoint) => self.endpoint = self.endpoint.or(Some(endpoint)),
                Wish::Move(endpoint) => self.endpoint = Some(endpoint),
                Wish::Leave => {}
            }
            self.elapsed += Duration::from_secs(seconds);
            self.tx_bytes += if sends { 148 } else { 0 };
            let at = |seconds: u64| Timestamp::from_second(1_000_000 + i64::try_from(seconds).unwrap()).unwrap();
            let evidence = Evidence {
                endpoint: self.endpoint,
                last_handshake: handshake.map(at),
                tx_bytes: self.tx_bytes,
                rx_bytes: 0,
            };
            self.book.handle_observed(&PEER, evidence, self.start + self.elapsed, at(self.elapsed.as_secs()));
            self.book.handle_looked(self.start + self.elapsed);
            self.wish()
        }

        fn wish(&self) -> Wish {
            self.book.wishes().next().map_or(Wish::Leave, |(_, wish)| wish)
        }
    }

    fn peer(key: NodePublic, endpoints: &[SocketAddr]) -> PeerInfo<'_> {
        PeerInfo { key, disco: None, endpoints, home: None, relay: None }
    }

    fn at(endpoint: &str) -> SocketAddr {
        endpoint.parse().unwrap()
    }

    #[test]
    fn a_new_peer_starts_at_its_best_endpoint() {
        assert_eq!(Scene::new(&["203.0.113.5:1", "10.0.0.5:1"]).wish(), Wish::Initial(at("10.0.0.5:1")));
        assert_eq!(Scene::new(&[]).wish(), Wish::Leave);
    }

    #[test]
    fn an_endpoint_that_is_tried_in_vain_gives_way_to_the_next_and_the_last_to_the_first() {
        let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);

        assert_eq!(scene.look(2, true, None), Wish::Initial(at("10.0.0.5:1")));
        assert_eq!(scene.look(5, true, None), Wish::Initial(at("10.0.0.5:1")));
        assert_eq!(scene.look(1, true, None), Wish::Move(at("203.0.113.5:1")));
        assert_eq!(scene.look(5, true, None), Wish::Initial(at("203.0.113.5:1")));
        assert_eq!(scene.look(1, true, None), Wish::Move(at("10.0.0.5:1")));
    }

    #[test]
    fn an_idle_peer_is_left_where_it_is() {
        let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);
        for _ in 0..100 {
            assert_eq!(scene.look(2, false, None), Wish::Initial(at("10.0.0.5:1")));
        }
    }

    #[test]
    fn a_peer_with_a_session_stays_where_it_roamed_to() {
        let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);
        scene.look(2, true, None);
        scene.endpoint = Some(at("198.51.100.9:7"));

        for _ in 0..10 {
            assert_eq!(scene.look(2, true, Some(3)), Wish::Initial(at("198.51.100.9:7")));
        }
        assert_eq!(scene.book.poll_timeout(), None, "nothing is left to find out");
    }

    #[test]
    fn a_peer_whose_session_ended_is_sought_at_the_maps_endpoints_again() {
        let mut scene = Scene::new(&["10.0.0.5:1"]);
        scene.endpoint = Some(at("198.51.100.9:7"));
        scene.look(2, true, Some(1));

        assert_eq!(scene.look(200, true, Some(1)), Wish::Move(at("10.0.0.5:1")));
    }

    #[test]
    fn new_endpoints_of_a_peer_without_a_session_replace_the_old_one() {
        let mut scene = Scene::new(&["10.0.0.5:1"]);
        scene.look(2, true, None);
        scene.map_says(&["10.0.0.77:1"]);

        assert_eq!(scene.look(2, false, None), Wish::Move(at("10.0.0.77:1")));
    }

    #[test]
    fn a_peer_that_left_the_map_is_forgotten() {
        let mut scene = Scene::new(&["10.0.0.5:1"]);
        scene.book.handle_peers(std::iter::empty(), Ground::default(), scene.start);
        assert_eq!(scene.wish(), Wish::Leave);
        scene.book.handle_observed(&PEER, Evidence::default(), scene.start, Timestamp::UNIX_EPOCH);
        assert_eq!(scene.book.poll_event(), None);
    }

    #[test]
    fn the_kernel_is_asked_less_often_the_more_peers_there_are() {
        let mut book = Scene::new(&[]).book;
        let ground = Ground::new(vec!["10.0.0.1/24".parse().unwrap()], []);
        let endpoints = [at("10.0.0.5:1"), at("203.0.113.5:1")];
        let key =
            |n: u16| NodePublic::from_bytes(std::array::from_fn(|i| n.to_le_bytes().get(i).copied().unwrap_or(9)));
        let start = Scene::new(&[]).start;

        book.handle_peers((0..10_000).map(|n| peer(key(n), &endpoints)), ground, start);
        book.handle_looked(start);

        assert_eq!(book.poll_timeout(), Some(start + Duration::from_secs(22)));
    }
}
