//! Two pumps and a relay between two sockets that stand for WireGuard.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_agent::relay_pump::{self, Pump, PumpConfig, ToPump};
use warren_core::node::{Direct, PumpCommand, PumpCounters, PumpNews, PumpPeer, RegionState};
use warren_core::types::{NodePrivate, NodePublic, RegionId};
use warren_core::wire::control::{DerpMap, DerpNode, DerpRegion};

use crate::server::{PATIENCE, Server};

const HOME: RegionId = RegionId(900);
const OTHER: RegionId = RegionId(901);

/// Runs in a network namespace of its own, if we may make one.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: no new namespace: {error}");
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(PATIENCE * 4, test()).await.unwrap() });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn private(n: u8) -> NodePrivate {
    NodePrivate::from_random([n; 32])
}

fn loopback(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 128, 0, n)
}

fn map(relays: &[(RegionId, SocketAddr)]) -> Arc<DerpMap> {
    let region = |address: SocketAddr| DerpRegion {
        nodes: vec![DerpNode {
            host_name: "127.0.0.1".to_owned(),
            ipv4: "127.0.0.1".to_owned(),
            ipv6: "none".to_owned(),
            derp_port: address.port().into(),
            insecure_for_tests: true,
            ..DerpNode::default()
        }],
        ..DerpRegion::default()
    };
    let regions: BTreeMap<_, _> = relays.iter().map(|(id, address)| (*id, Some(region(*address)))).collect();
    Arc::new(DerpMap { regions, ..DerpMap::default() })
}

fn initiation() -> Vec<u8> {
    packet(1, 148)
}

fn packet(kind: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![kind; length];
    packet[1..4].fill(0);
    packet
}

/// A node: its pump, and the socket that stands for its WireGuard.
struct Node {
    n: u8,
    pump: Pump,
    wireguard: UdpSocket,
}

impl Node {
    async fn start(n: u8, map: &Arc<DerpMap>) -> Self {
        let wireguard = UdpSocket::bind("127.0.0.1:0").unwrap();
        wireguard.set_read_timeout(Some(PATIENCE)).unwrap();
        let wireguard_port = wireguard.local_addr().unwrap().port();
        let config = PumpConfig { dialler: warren_shell::Dialler::new(None), wireguard_port, relay_port: 41742 };
        let node = Self { n, pump: relay_pump::spawn(&config).unwrap(), wireguard };
        node.tell(PumpCommand::Key(Some(private(n)))).await;
        node.tell(PumpCommand::Regions(Arc::clone(map))).await;
        node.tell(PumpCommand::Home(Some(HOME))).await;
        node
    }

    /// The same, connected.
    async fn join(n: u8, map: &Arc<DerpMap>) -> Self {
        let mut node = Self::start(n, map).await;
        node.until_connected(HOME).await;
        node
    }

    async fn tell(&self, command: PumpCommand) {
        self.pump.commands.send(ToPump::Command(command)).await.unwrap();
    }

    async fn knows(&self, n: u8, region: Option<RegionId>, direct: Option<Direct>) {
        let entry = Some(PumpPeer { loopback: loopback(n), region, direct });
        self.tell(PumpCommand::Peer { key: private(n).public(), entry }).await;
    }

    async fn news(&mut self) -> PumpNews {
        timeout(PATIENCE, self.pump.news.recv()).await.unwrap().unwrap()
    }

    /// The next news that this reads.
    async fn hears<T>(&mut self, read: impl Fn(PumpNews) -> Option<T>) -> T {
        loop {
            if let Some(heard) = read(self.news().await) {
                return heard;
            }
        }
    }

    /// Until a probe to itself has been there and back.
    async fn until_connected(&mut self, region: RegionId) {
        let peer = self.key();
        let is_connected = |news| match news {
            PumpNews::Region { region, state: RegionState::Connected } => Some(region),
            _ => None,
        };
        while self.hears(is_connected).await != region {}
        self.knows(self.n, None, None).await;
        self.tell(PumpCommand::Disco { region, peer, payload: b"TS\xf0\x9f\x92\xac".to_vec() }).await;
        self.hears(|news| matches!(news, PumpNews::Disco { from, .. } if from == peer).then_some(())).await;
        self.tell(PumpCommand::Peer { key: peer, entry: None }).await;
    }

    /// WireGuard sends to a peer by its loopback address.
    fn send(&self, to: u8, packet: &[u8]) {
        self.wireguard.send_to(packet, (loopback(to), self.pump.relay_port)).unwrap();
    }

    /// What WireGuard received, and from where.
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 1 << 16];
        let (length, from) = self.wireguard.recv_from(&mut buffer).unwrap();
        buffer.truncate(length);
        (buffer, from)
    }

    async fn counters(&self) -> PumpCounters {
        let (answer, counters) = oneshot::channel();
        self.pump.commands.send(ToPump::Counters(answer)).await.unwrap();
        counters.await.unwrap()
    }

    fn key(&self) -> NodePublic {
        private(self.n).public()
    }
}

async fn pair(map: &Arc<DerpMap>) -> (Node, Node) {
    let (alice, bob) = (Node::join(1, map).await, Node::join(2, map).await);
    alice.knows(2, Some(HOME), None).await;
    bob.knows(1, Some(HOME), None).await;
    // An answer comes after what was asked for before it.
    alice.counters().await;
    bob.counters().await;
    (alice, bob)
}

#[test]
fn packets_pass_from_one_wireguard_to_the_other_and_back() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let (mut alice, bob) = pair(&map(&[(HOME, relay.address)])).await;
        assert_ne!(alice.pump.relay_port, bob.pump.relay_port, "the second takes another port");

        alice.send(2, &initiation());
        assert_eq!(bob.receive(), (initiation(), (loopback(1), bob.pump.relay_port).into()));
        let heard = alice
            .hears(|news| match news {
                PumpNews::Initiation { peer, packet } => Some((peer, packet)),
                _ => None,
            })
            .await;
        assert_eq!(heard, (bob.key(), initiation()));
        alice.hears(|news| matches!(news, PumpNews::Traffic { peer } if peer == bob.key()).then_some(())).await;

        // In pieces of many packets, of which the last is shorter.
        for length in [1312, 1312, 1312, 32, 9000, 64] {
            bob.send(1, &packet(4, length));
        }
        for length in [1312, 1312, 1312, 32, 9000, 64] {
            assert_eq!(alice.receive(), (packet(4, length), (loopback(2), alice.pump.relay_port).into()));
        }
        let counters = alice.counters().await;
        assert_eq!((counters.received, counters.received_forged, counters.dropped_not_injected), (6, 0, 0));
    });
}

#[test]
fn what_comes_late_from_a_direct_peer_comes_from_its_direct_endpoint() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let (alice, bob) = pair(&map(&[(HOME, relay.address)])).await;
        let endpoint: SocketAddr = "203.0.113.9:41741".parse().unwrap();
        alice.knows(2, Some(HOME), Some(Direct { endpoint, local: None })).await;
        alice.counters().await;

        bob.send(1, &packet(4, 1312));

        assert_eq!(alice.receive(), (packet(4, 1312), endpoint));
        assert_eq!(alice.counters().await.received_forged, 1);
        alice.knows(2, Some(HOME), None).await;
        alice.counters().await;
        bob.send(1, &packet(4, 64));
        assert_eq!(alice.receive().1, (loopback(2), alice.pump.relay_port).into());
    });
}

#[test]
fn probes_go_to_the_loop_and_what_is_nobodys_goes_nowhere() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let (alice, mut bob) = pair(&map(&[(HOME, relay.address)])).await;
        let probe = b"TS\xf0\x9f\x92\xacprobe".to_vec();

        // To a loopback address that is nobody's, and not WireGuard's.
        alice.send(7, &initiation());
        alice.send(2, b"rubbish");
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&initiation(), (loopback(2), alice.pump.relay_port)).unwrap();
        // A stranger to bob, by the relay: neither its packets nor its probes.
        let stranger = Node::join(3, &map(&[(HOME, relay.address)])).await;
        stranger.knows(2, Some(HOME), None).await;
        stranger.counters().await;
        stranger.tell(PumpCommand::Disco { region: HOME, peer: bob.key(), payload: probe.clone() }).await;
        stranger.send(2, &initiation());
        alice.tell(PumpCommand::Disco { region: HOME, peer: bob.key(), payload: probe.clone() }).await;

        let heard = bob
            .hears(|news| match news {
                PumpNews::Disco { region, from, payload } => Some((region, from, payload)),
                _ => None,
            })
            .await;
        assert_eq!(heard, (HOME, alice.key(), probe));
        alice.send(2, &packet(4, 32));
        assert_eq!(bob.receive().0, packet(4, 32), "and nothing before it");
        let counters = alice.counters().await;
        assert_eq!((counters.dropped_unknown_peer, counters.dropped_malformed), (1, 1));
        // They come by a connection of their own, so maybe later.
        while bob.counters().await.dropped_unknown_peer < 2 {}
    });
}

#[test]
fn a_relay_that_ends_is_told_and_the_next_one_found() {
    in_namespace(|| async {
        let mut relay = Server::start(&["--open"]);
        let (mut alice, mut bob) = pair(&map(&[(HOME, relay.address)])).await;
        let is_failed = |news| match news {
            PumpNews::Region { state: RegionState::Failed(reason), .. } => Some(reason),
            _ => None,
        };

        relay.signal(Signal::SIGTERM);
        relay.wait();
        assert!(!alice.hears(is_failed).await.is_empty());
        let relay = Server::start(&["--open"]);
        for node in [&mut alice, &mut bob] {
            node.tell(PumpCommand::Regions(map(&[(HOME, relay.address)]))).await;
            node.until_connected(HOME).await;
        }
        alice.send(2, &packet(4, 32));
        assert_eq!(bob.receive().0, packet(4, 32));
    });
}

#[test]
fn what_wireguard_sends_before_the_pump_is_told_of_peers_waits() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let map = map(&[(HOME, relay.address)]);
        let bob = Node::join(2, &map).await;
        bob.knows(1, Some(HOME), None).await;
        let alice = Node::start(1, &map).await;
        alice.send(2, &initiation());
        alice.counters().await;
        alice.knows(2, Some(HOME), None).await;
        assert_eq!(bob.receive().0, initiation());
        assert_eq!(alice.counters().await.dropped_unknown_peer, 0);
    });
}

#[test]
fn what_is_sent_while_a_relay_starts_anew_arrives() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let next = Server::start(&["--open"]);
        let (mut alice, mut bob) = pair(&map(&[(HOME, relay.address)])).await;
        relay.signal(Signal::SIGTERM);
        let is_failed = |news| matches!(news, PumpNews::Region { state: RegionState::Failed(_), .. }).then_some(());
        alice.hears(is_failed).await;
        bob.hears(is_failed).await;
        let before = alice.counters().await;
        for length in 32..64 {
            alice.send(2, &packet(4, length));
        }
        while alice.counters().await.sent < before.sent + 32 {
            tokio::task::yield_now().await;
        }

        for node in [&mut bob, &mut alice] {
            node.tell(PumpCommand::Regions(map(&[(HOME, next.address)]))).await;
            let is_connected =
                |news| matches!(news, PumpNews::Region { state: RegionState::Connected, .. }).then_some(());
            node.hears(is_connected).await;
        }
        for length in 32..64 {
            assert_eq!(bob.receive().0, packet(4, length));
        }
        assert_eq!(alice.counters().await.dropped_no_relay, before.dropped_no_relay);
    });
}

#[test]
fn a_peer_is_reached_by_its_own_region_and_answered_where_it_was_heard() {
    in_namespace(|| async {
        let relays = [Server::start(&["--open"]), Server::start(&["--open"])];
        let map = map(&[(HOME, relays[0].address), (OTHER, relays[1].address)]);
        let (mut alice, mut bob) = (Node::join(1, &map).await, Node::start(2, &map).await);
        bob.tell(PumpCommand::Home(Some(OTHER))).await;
        bob.until_connected(OTHER).await;
        alice.knows(2, Some(OTHER), None).await;
        // Bob does not know where alice's home is.
        bob.knows(1, None, None).await;
        bob.counters().await;

        alice.counters().await;
        alice.send(2, &initiation());
        assert_eq!(bob.receive().0, initiation());
        bob.send(1, &packet(2, 92));
        assert_eq!(alice.receive().0, packet(2, 92));
        let region = alice.hears(|news| match news {
            PumpNews::Region { region, state: RegionState::Connected } => Some(region),
            _ => None,
        });
        assert_eq!(region.await, OTHER);
    });
}

#[test]
fn another_key_is_another_client() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let (mut alice, bob) = pair(&map(&[(HOME, relay.address)])).await;
        bob.knows(5, Some(HOME), None).await;
        bob.counters().await;
        alice.n = 5;
        alice.tell(PumpCommand::Key(Some(private(5)))).await;
        alice.until_connected(HOME).await;
        alice.send(2, &initiation());
        assert_eq!(bob.receive().1, (loopback(5), bob.pump.relay_port).into());
        alice.tell(PumpCommand::Key(None)).await;
        let is_closed = |news| matches!(news, PumpNews::Region { state: RegionState::Closed, .. }).then_some(());
        alice.hears(is_closed).await;
    });
}

#[test]
fn a_network_change_leaves_a_connection_that_works() {
    in_namespace(|| async {
        let relay = Server::start(&["--open"]);
        let (mut alice, bob) = pair(&map(&[(HOME, relay.address)])).await;
        alice.tell(PumpCommand::Rebind).await;
        bob.send(1, &packet(4, 64));
        assert_eq!(alice.receive().0, packet(4, 64));
        let news = alice.hears(|news| match news {
            PumpNews::Region { state, .. } => Some(Some(state)),
            PumpNews::Traffic { .. } => Some(None),
            _ => None,
        });
        assert_eq!(news.await, None, "nothing was said of the region");
    });
}
