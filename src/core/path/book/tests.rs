//! Peers without probes: their endpoints are tried in turn.

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
        let ranking = Ranking::new(vec!["10.0.0.1/24".parse().unwrap()], []);
        self.book.handle_peers([peer(PEER, &endpoints)].into_iter(), ranking, self.start);
    }

    /// The kernel does what is wished; then packets are sent (or not), and the kernel is looked at.
    fn look(&mut self, seconds: u64, sends: bool, handshake: Option<u64>) -> EndpointUpdate {
        match self.endpoint_update() {
            EndpointUpdate::Initial(endpoint) => self.endpoint = self.endpoint.or(Some(endpoint)),
            EndpointUpdate::Move(endpoint) => self.endpoint = Some(endpoint),
            EndpointUpdate::Leave => {}
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
        self.endpoint_update()
    }

    fn endpoint_update(&self) -> EndpointUpdate {
        self.book.endpoint_updates().next().map_or(EndpointUpdate::Leave, |(_, update)| update)
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
    assert_eq!(
        Scene::new(&["203.0.113.5:1", "10.0.0.5:1"]).endpoint_update(),
        EndpointUpdate::Initial(at("10.0.0.5:1"))
    );
    assert_eq!(Scene::new(&[]).endpoint_update(), EndpointUpdate::Leave);
}

#[test]
fn an_endpoint_that_is_tried_in_vain_gives_way_to_the_next_and_the_last_to_the_first() {
    let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);

    assert_eq!(scene.look(2, true, None), EndpointUpdate::Initial(at("10.0.0.5:1")));
    assert_eq!(scene.look(5, true, None), EndpointUpdate::Initial(at("10.0.0.5:1")));
    assert_eq!(scene.look(1, true, None), EndpointUpdate::Move(at("203.0.113.5:1")));
    assert_eq!(scene.look(5, true, None), EndpointUpdate::Initial(at("203.0.113.5:1")));
    assert_eq!(scene.look(1, true, None), EndpointUpdate::Move(at("10.0.0.5:1")));
}

#[test]
fn an_idle_peer_is_left_where_it_is() {
    let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);
    for _ in 0..100 {
        assert_eq!(scene.look(2, false, None), EndpointUpdate::Initial(at("10.0.0.5:1")));
    }
}

#[test]
fn a_peer_with_a_session_stays_where_it_roamed_to() {
    let mut scene = Scene::new(&["10.0.0.5:1", "203.0.113.5:1"]);
    scene.look(2, true, None);
    scene.endpoint = Some(at("198.51.100.9:7"));

    for _ in 0..10 {
        assert_eq!(scene.look(2, true, Some(3)), EndpointUpdate::Initial(at("198.51.100.9:7")));
    }
    assert_eq!(scene.book.poll_timeout(), None, "nothing is left to find out");
}

#[test]
fn a_peer_whose_session_ended_is_sought_at_the_maps_endpoints_again() {
    let mut scene = Scene::new(&["10.0.0.5:1"]);
    scene.endpoint = Some(at("198.51.100.9:7"));
    scene.look(2, true, Some(1));

    assert_eq!(scene.look(200, true, Some(1)), EndpointUpdate::Move(at("10.0.0.5:1")));
}

#[test]
fn new_endpoints_of_a_peer_without_a_session_replace_the_old_one() {
    let mut scene = Scene::new(&["10.0.0.5:1"]);
    scene.look(2, true, None);
    scene.map_says(&["10.0.0.77:1"]);

    assert_eq!(scene.endpoint_update(), EndpointUpdate::Move(at("10.0.0.77:1")));
    assert_eq!(scene.look(2, false, None), EndpointUpdate::Initial(at("10.0.0.77:1")));
}

#[test]
fn a_peer_that_left_the_map_is_forgotten() {
    let mut scene = Scene::new(&["10.0.0.5:1"]);
    scene.book.handle_peers(std::iter::empty(), Ranking::default(), scene.start);
    while scene.book.poll_event().is_some() {}
    assert_eq!(scene.endpoint_update(), EndpointUpdate::Leave);
    scene.book.handle_observed(&PEER, Evidence::default(), scene.start, Timestamp::UNIX_EPOCH);
    assert_eq!(scene.book.poll_event(), None);
}

#[test]
fn the_kernel_is_asked_less_often_the_more_peers_there_are() {
    let mut book = Scene::new(&[]).book;
    let ranking = Ranking::new(vec!["10.0.0.1/24".parse().unwrap()], []);
    let endpoints = [at("10.0.0.5:1"), at("203.0.113.5:1")];
    let key = |n: u16| NodePublic::from_bytes(std::array::from_fn(|i| n.to_le_bytes().get(i).copied().unwrap_or(9)));
    let start = Scene::new(&[]).start;

    book.handle_peers((0..10_000).map(|n| peer(key(n), &endpoints)), ranking, start);
    book.handle_looked(start);

    assert_eq!(book.poll_timeout(), Some(start + Duration::from_secs(22)));
}
