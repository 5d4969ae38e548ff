//! Probes on WireGuard's port, and a tunnel by a relay: what the agent puts around the kernel's data path.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use warren_agent::relay_pump::{self, Pump, PumpConfig, ToPump};
use warren_core::node::{Direct, PumpCommand, PumpCounters, PumpNews, PumpPeer, RegionState};
use warren_core::plan::{Firewall, FirewallStep, Probes, Step, own};
use warren_core::types::{NodePrivate, NodePublic, RegionId};
use warren_core::wire::control::{DerpMap, DerpNode, DerpRegion};
use warren_linux::LinuxKernel;
use warren_linux::packet::{Batch, Datagram, Injector, LoopbackSocket, ProbeSocket, UdpSender};

use crate::common::*;
use crate::packets::{Network, PEER, US, counted, policy};
use crate::relay::Server;

const PROBES: Probes = Probes { wireguard_port: 41741, probe_port: own::PROBE_PORT, relay_port: own::RELAY_PORT };
const DISCO: &[u8] = b"TS\xf0\x9f\x92\xac and what is sealed";
/// A binding response as far as its magic cookie.
const STUN: &[u8] = &[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4];
const REGION: RegionId = RegionId(900);

async fn next(socket: &mut ProbeSocket) -> Datagram {
    timeout(PATIENCE, socket.recv()).await.unwrap().unwrap()
}

fn datagram(from: &str, local: &str, payload: &[u8]) -> Datagram {
    Datagram { from: from.parse().unwrap(), local: Some(local.parse().unwrap()), payload: payload.to_vec() }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Needs no WireGuard: another socket stands at its port. An ordinary user runs it as well.
#[test]
fn what_the_agent_sends_and_receives_itself_is_what_it_should_be() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        let probes = Probes { wireguard_port: 51820, ..PROBES };
        let firewall = Firewall { probes: Some(probes), ..Firewall::default() };
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(Arc::new(firewall)))]).await;
        let mut arriving = ProbeSocket::bind(own::PROBE_PORT).unwrap();
        let mut sender = UdpSender::open(7777, Some(own::MARK_BYPASS)).unwrap();
        let tunnels = ["127.0.0.1:51820", "[::1]:51820"].map(|at| UdpSocket::bind(at).unwrap());
        tunnels.iter().for_each(|tunnel| tunnel.set_read_timeout(Some(PATIENCE)).unwrap());

        // Probes are diverted, with their true source and at the address they came to; everything else is not.
        for payload in [DISCO, STUN] {
            for (to, local, from) in
                [("127.0.0.1:51820", "127.0.0.1", "127.0.0.1:7777"), ("[::1]:51820", "::1", "[::1]:7777")]
            {
                sender.send(address(to), None, payload).unwrap();
                assert_eq!(next(&mut arriving).await, datagram(from, local, payload));
            }
        }
        sender.send(address("127.0.0.1:51820"), Some("127.0.0.5".parse().unwrap()), DISCO).unwrap();
        assert_eq!(next(&mut arriving).await, datagram("127.0.0.5:7777", "127.0.0.1", DISCO));
        let mut buffer = [0; 2048];
        for tunnel in &tunnels {
            sender.send(tunnel.local_addr().unwrap(), None, &[4; 1312]).unwrap();
            assert_eq!(tunnel.recv(&mut buffer).unwrap(), 1312, "a checksum that the kernel takes");
        }
        // What comes to the probe port by itself is dropped.
        sender.send(address("127.0.0.1:41743"), None, DISCO).unwrap();
        assert_eq!(counted("denied_undiverted_probe"), 1);

        // In the name of another.
        let mut injector = Injector::open(51820, Some(own::MARK_BYPASS)).unwrap();
        injector.inject(address("203.0.113.9:1234"), None, &[4; 64]).unwrap();
        assert_eq!(tunnels[0].recv_from(&mut buffer).unwrap(), (64, address("203.0.113.9:1234")));
        let local = Some("::1".parse().unwrap());
        injector.inject(address("[2001:db8::9]:1234"), local, &[4; 65]).unwrap();
        assert_eq!(tunnels[1].recv_from(&mut buffer).unwrap(), (65, address("[2001:db8::9]:1234")));

        // By the loopback, both ways.
        let relay = LoopbackSocket::bind(own::RELAY_PORT).unwrap();
        assert_eq!(relay.port(), own::RELAY_PORT);
        let relay = relay.listen(51820).unwrap();
        tunnels[0].send_to(&[1; 148], "127.128.3.4:41742").unwrap();
        let mut batch = Batch::new();
        timeout(PATIENCE, relay.recv(&mut batch)).await.unwrap().unwrap();
        let taken: Vec<_> = relay.packets(&batch).collect();
        assert_eq!(taken, [("127.128.3.4".parse().unwrap(), [1; 148].as_slice())]);
        relay.send("127.128.3.4".parse().unwrap(), &[4; 250], 100).unwrap();
        for length in [100, 100, 50] {
            assert_eq!(tunnels[0].recv_from(&mut buffer).unwrap(), (length, address("127.128.3.4:41742")));
        }
        assert_eq!(relay.dropped(), 0);
        apply(&mut kernel, [Step::Firewall(FirewallStep::Delete)]).await;
    });
}

#[test]
fn probes_reach_the_agent_on_wireguards_port_and_the_tunnel_goes_on_beside_them() {
    in_namespace(Needs::WireGuard, || async {
        let net = Scene::build().await;
        let mut arriving = ProbeSocket::bind(own::PROBE_PORT).unwrap();

        for payload in [DISCO, STUN] {
            for (from, to) in [("192.0.2.2", "192.0.2.1"), ("fd00:1::2", "fd00:1::1")] {
                assert!(net.network.peer.pings(PEER, US));
                // From the port that the other side's WireGuard has.
                net.network.peer.within(move || {
                    let mut sender = UdpSender::open(41741, Some(own::MARK_BYPASS)).unwrap();
                    let to = SocketAddr::new(to.parse().unwrap(), 41741);
                    sender.send(to, None, payload).unwrap();
                });
                let from = SocketAddr::new(from.parse().unwrap(), 41741).to_string();
                assert_eq!(next(&mut arriving).await, datagram(&from, to, payload));
            }
        }
        assert!(net.network.peer.pings(PEER, US));

        // Straight to the probe port, from outside.
        net.network.peer.within(|| {
            let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
            socket.send_to(DISCO, ("192.0.2.1", own::PROBE_PORT)).unwrap();
        });
        within_patience(|| counted("denied_undiverted_probe") == 1);
        // A host whose own filter closes WireGuard's port is not probed either.
        sh("nft add table inet host && nft add chain inet host input '{ type filter hook input priority 0; }'");
        sh("nft add rule inet host input udp dport 41741 drop");
        net.network.peer.within(|| {
            let mut sender = UdpSender::open(41741, None).unwrap();
            sender.send("192.0.2.1:41741".parse().unwrap(), None, DISCO).unwrap();
        });
        assert!(timeout(Duration::from_secs(2), arriving.recv()).await.is_err());
    });
}

#[test]
fn a_tunnel_by_a_relay_carries_everything_and_stays_on_its_loopback_addresses() {
    in_namespace(Needs::WireGuard, || async {
        let scene = Scene::relayed().await;

        assert!(scene.network.peer.pings(PEER, US));
        // Enough for packets to come in one piece.
        assert_eq!(transfer(&scene.network, 1 << 20), 1 << 20);

        assert_eq!(scene.endpoint(), "127.128.0.2:41742");
        let counters = scene.us.counters().await;
        assert!(counters.received > 100 && counters.received_forged == 0, "{counters:?}");
        // Every packet of a piece came out of the tunnel; a handful are handshakes and keep-alives.
        let link = json("ip -j -s link show warren0");
        let came = link[0]["stats64"]["rx"]["packets"].as_u64().unwrap();
        assert!(came + 16 >= counters.received, "{came} of {counters:?}");
        assert_eq!(counters.dropped_not_injected + counters.dropped_malformed, 0, "{counters:?}");
        // Neither a connection to track nor one to translate.
        let tracked = sh("conntrack -L -p udp 2>/dev/null || true");
        assert!(!tracked.contains("port=41742"), "{tracked}");
    });
}

#[test]
fn what_comes_late_by_a_relay_does_not_move_a_direct_peer() {
    in_namespace(Needs::WireGuard, || async {
        let scene = Scene::relayed().await;
        assert!(scene.network.peer.pings(PEER, US), "there is a session");
        for (ours, theirs) in [("192.0.2.1:41741", "192.0.2.2:41741"), ("[fd00:1::1]:41741", "[fd00:1::2]:41741")] {
            let local = address(ours).ip();
            scene
                .us
                .knows(
                    &scene.them.key,
                    scene.them.loopback,
                    Some(Direct { endpoint: address(theirs), local: Some(local) }),
                )
                .await;
            sh(&format!("wg set warren0 peer {} endpoint {theirs}", scene.them.key.base64()));
            let before = scene.us.counters().await.received_forged;
            for _ in 0..3 {
                // They send by the relay, and our answer brings them here.
                scene.them_by_relay();
                assert!(scene.network.peer.pings(PEER, US));
                assert_eq!(scene.endpoint(), theirs);
            }
            assert!(scene.us.counters().await.received_forged >= before + 3);
            let seen = scene.network.peer.sh("wg show wg0 endpoints");
            assert!(seen.contains(ours), "answers came from the right address: {seen}");
        }
        // The other way round it would have moved, and that is how it goes back.
        scene.us.knows(&scene.them.key, scene.them.loopback, None).await;
        scene.them_by_relay();
        assert!(scene.network.peer.pings(PEER, US));
        assert_eq!(scene.endpoint(), "127.128.0.2:41742");
    });
}

/// Two hosts with WireGuard, our table on ours, the strictest source validation, and where asked a relay and a pump
/// on each.
struct Scene {
    network: Network,
    _kernel: LinuxKernel,
    us: Side,
    them: Side,
    _relay: Option<Server>,
}

/// One host's pump.
struct Side {
    key: NodePublic,
    loopback: &'static str,
    pump: Option<Pump>,
}

impl Scene {
    async fn build() -> Self {
        let network = Network::build();
        sh("ip addr add fd00:1::1/64 dev wan nodad");
        network.peer.sh("ip addr add fd00:1::2/64 dev wan nodad");
        for interface in ["all", "lo", "wan"] {
            sh(&format!("echo 1 > /proc/sys/net/ipv4/conf/{interface}/rp_filter"));
        }
        let mut kernel = LinuxKernel::new().unwrap();
        let firewall = Firewall { probes: Some(PROBES), ..policy() };
        converge(&mut kernel, &network.wish(firewall)).await;
        let us = Side { key: private(1).public(), loopback: "127.128.0.1", pump: None };
        let them = Side { key: network.peer_key, loopback: "127.128.0.2", pump: None };
        Self { network, _kernel: kernel, us, them, _relay: None }
    }

    /// The same, with both sides sending by a relay.
    async fn relayed() -> Self {
        let mut scene = Self::build().await;
        let relay = Server::start(&["--open", "--listen", "192.0.2.1:0"]);
        let node = DerpNode {
            host_name: "192.0.2.1".to_owned(),
            ipv6: "none".to_owned(),
            derp_port: relay.address.port().into(),
            insecure_for_tests: true,
            ..DerpNode::default()
        };
        let region = DerpRegion { nodes: vec![node], ..DerpRegion::default() };
        let map = Arc::new(DerpMap { regions: [(REGION, Some(region))].into(), ..DerpMap::default() });
        let start = || {
            relay_pump::spawn(&PumpConfig {
                dialler: warren_shell::Dialler::new(Some(own::MARK_BYPASS)),
                wireguard_port: 41741,
                relay_port: own::RELAY_PORT,
            })
            .unwrap()
        };
        scene.us.pump = Some(start());
        scene.them.pump = Some(scene.network.peer.within(start));
        scene.us.join(private(1), &map).await;
        scene.them.join(private(2), &map).await;
        scene.us.knows(&scene.them.key, scene.them.loopback, None).await;
        scene.them.knows(&scene.us.key, scene.us.loopback, None).await;
        sh(&format!("wg set warren0 peer {} endpoint 127.128.0.2:41742", scene.them.key.base64()));
        scene.them_by_relay();
        scene._relay = Some(relay);
        scene
    }

    /// Their kernel sends by the relay from here on.
    fn them_by_relay(&self) {
        self.network.peer.sh(&format!("wg set wg0 peer {} endpoint 127.128.0.1:41742", self.us.key.base64()));
    }

    /// Where our kernel sends to them.
    fn endpoint(&self) -> String {
        let shown = sh("wg show warren0 endpoints");
        shown.split_whitespace().nth(1).unwrap().to_owned()
    }
}

impl Side {
    async fn tell(&self, command: PumpCommand) {
        self.ask(ToPump::Command(command)).await;
    }

    async fn ask(&self, asked: ToPump) {
        self.pump.as_ref().unwrap().commands.send(asked).await.unwrap();
    }

    /// Connects, until a probe to itself has been there and back.
    async fn join(&mut self, key: NodePrivate, map: &Arc<DerpMap>) {
        let peer = key.public();
        self.tell(PumpCommand::Key(Some(key))).await;
        self.tell(PumpCommand::Regions(Arc::clone(map))).await;
        self.tell(PumpCommand::Home(Some(REGION))).await;
        self.hears(|news| matches!(news, PumpNews::Region { state: RegionState::Connected, .. })).await;
        self.knows(&peer, self.loopback, None).await;
        self.tell(PumpCommand::Disco { region: REGION, peer, payload: DISCO.to_vec() }).await;
        self.hears(|news| matches!(news, PumpNews::Disco { from, .. } if *from == peer)).await;
        self.tell(PumpCommand::Peer { key: peer, entry: None }).await;
    }

    async fn hears(&mut self, what: impl Fn(&PumpNews) -> bool) {
        let news = &mut self.pump.as_mut().unwrap().news;
        while !what(&timeout(PATIENCE, news.recv()).await.unwrap().unwrap()) {}
    }

    async fn knows(&self, key: &NodePublic, loopback: &str, direct: Option<Direct>) {
        let entry = PumpPeer { loopback: loopback.parse().unwrap(), region: Some(REGION), direct };
        self.tell(PumpCommand::Peer { key: *key, entry: Some(entry) }).await;
        // An answer comes after what was asked for before it.
        self.counters().await;
    }

    async fn counters(&self) -> PumpCounters {
        let (answer, counters) = tokio::sync::oneshot::channel();
        self.ask(ToPump::Counters(answer)).await;
        counters.await.unwrap()
    }
}

/// Sends so many bytes by TCP from their address to port 80 of ours, and says how many arrived.
fn transfer(network: &Network, bytes: usize) -> usize {
    let listener = network.listeners[0].try_clone().unwrap();
    let arrived = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    network.peer.within(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(PEER.parse().unwrap(), 0).into()).unwrap();
        socket.connect_timeout(&SocketAddr::new(US.parse().unwrap(), 80).into(), PATIENCE).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        std::net::TcpStream::from(socket).write_all(&vec![7; bytes]).unwrap();
    });
    usize::try_from(arrived.join().unwrap()).unwrap()
}

/// Looks until it is so.
fn within_patience(is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "it did not come to be");
        std::thread::yield_now();
    }
}
