//! An exit node on real WireGuard: what leaves by it, what leaves beside it, and what goes on as it was.
//!
//! ```text
//! us ──veth── world, which is router, far server and exit node in one, and counts what comes by the cable
//!  └─WireGuard─┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use warren_core::netmap::Netmap;
use warren_core::plan::{Desired, ExitNode, Host, Path, Paths, Prefs, desired};
use warren_core::types::{EXIT_ROUTES, NodeId, Timestamp};
use warren_core::wire::control::{MapResponse, Node, match_all};
use warren_linux::LinuxKernel;

use crate::common::*;
use crate::neighbour::Neighbour;

/// How long a packet that is dropped is waited for.
const SILENCE: Duration = Duration::from_millis(1_500);
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:9::9"];
/// Our own addresses on the cable, and the world's.
const KNOWN_BY: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const ROUTER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const OVERLAY: [&str; 2] = ["100.64.0.1", "fd7a:115c:a1e0::1"];
const SSH: u16 = 22;

#[test]
fn all_goes_by_the_exit_node_and_nothing_beside_it_whatever_is_lost() {
    in_namespace(Needs::WireGuard, || async {
        let scene = Scene::build().with_exit_node();
        let mut kernel = sharing();
        converge(&mut kernel, &wish(None)).await;
        assert!(FAR.iter().all(|far| connect(far, 80).is_some()), "before, all goes as it did");
        let mut sessions = FAR.map(|far| Session::open(&scene, far));

        converge(&mut kernel, &wish(Some(WITHOUT_LAN))).await;
        for mode in [0, 1, 2] {
            sh(&format!("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wan.rp_filter={mode}"));
            let before = scene.leaked();
            sessions.iter_mut().for_each(Session::goes_on);
            for (far, overlay) in FAR.iter().zip(OVERLAY) {
                let stream = connect(far, 80).unwrap_or_else(|| panic!("no way to {far} with rp_filter {mode}"));
                assert_eq!(stream.local_addr().unwrap().ip(), overlay.parse::<IpAddr>().unwrap());
                Session::open(&scene, far).goes_on();
            }
            // The router asks anew for our address.
            scene.world.sh("ip neigh flush dev wan; ip -6 neigh flush dev wan");
            sessions.iter_mut().for_each(Session::goes_on);
            scene.nothing_leaves_elsewhere();
            assert_eq!(scene.leaked() - before, 0, "rp_filter {mode}");
        }

        // With somebody else's rule before ours, the firewall holds.
        let before = scene.leaked();
        sh("ip rule add pref 1000 lookup main && ip -6 rule add pref 1000 lookup main");
        scene.nothing_gets_far();
        sh("ip rule del pref 1000 && ip -6 rule del pref 1000");
        // With nobody there, with no link, without routes and rules: nothing leaves, and sessions go on.
        converge(&mut kernel, &wish(Some(ExitNode { peer: None, allow_lan: false }))).await;
        scene.nothing_gets_far();
        sessions.iter_mut().for_each(Session::goes_on);
        sh("ip link del warren0");
        scene.nothing_gets_far();
        sessions.iter_mut().for_each(Session::goes_on);
        sh(
            "ip route flush table 22337; ip -6 route flush table 22337; ip rule del pref 5310; ip -6 rule del pref 5310",
        );
        scene.nothing_gets_far();
        sessions.iter_mut().for_each(Session::goes_on);
        assert_eq!(scene.leaked() - before, 0);

        // It is put back, and the networks that we are attached to are reached where that is wished.
        let nothing = converge(&mut kernel, &wish(Some(WITHOUT_LAN))).await;
        assert!(!nothing.is_empty());
        assert!(ROUTER.iter().all(|router| connect(router, 80).is_none()));
        converge(&mut kernel, &wish(Some(ExitNode { allow_lan: true, ..WITHOUT_LAN }))).await;
        assert!(ROUTER.iter().all(|router| connect(router, 80).is_some()));
        sessions.iter_mut().for_each(Session::goes_on);

        // On the way back nothing is left.
        converge(&mut kernel, &wish(None)).await;
        sessions.iter_mut().for_each(Session::goes_on);
        converge(&mut kernel, &Desired::default()).await;
        sessions.iter_mut().for_each(Session::goes_on);
        assert!(FAR.iter().all(|far| connect(far, 80).is_some()));
        assert_eq!(sh("ip rule show | grep -c 53 || true").trim(), "0");
    });
}

/// A machine whose key has run out, or that its coordinator forgot: there is no tunnel, and nothing leaves in clear.
#[test]
fn where_there_is_no_network_nothing_leaves_and_sessions_go_on() {
    in_namespace(Needs::Namespace, || async {
        let scene = Scene::build();
        let mut kernel = LinuxKernel::new().unwrap();
        let mut sessions = FAR.map(|far| Session::open(&scene, far));
        let closed = planned(&Netmap::default(), Some(ExitNode::default()));
        assert!(closed.device.is_none());
        converge(&mut kernel, &closed).await;
        sessions.iter_mut().for_each(Session::is_spoken_to);
        for mode in [0, 1, 2] {
            sh(&format!("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wan.rp_filter={mode}"));
            let before = scene.leaked();
            scene.nothing_gets_far();
            for far in FAR {
                Session::open(&scene, far).goes_on();
            }
            sessions.iter_mut().for_each(Session::goes_on);
            scene.world.sh("ip neigh flush dev wan; ip -6 neigh flush dev wan");
            sessions.iter_mut().for_each(Session::goes_on);
            assert_eq!(scene.leaked() - before, 0, "rp_filter {mode}");
        }
        converge(&mut kernel, &Desired::default()).await;
        sessions.iter_mut().for_each(Session::goes_on);
        assert!(FAR.iter().all(|far| connect(far, 80).is_some()));
    });
}

/// A machine that has been told of its exit node before it ever knew conntrack: what its sessions send next, they send
/// again once the other side has said something.
#[test]
fn a_session_older_than_everything_of_ours_goes_on_once_its_other_side_speaks() {
    in_namespace(Needs::WireGuard, || async {
        let scene = Scene::build().with_exit_node();
        let mut sessions = FAR.map(|far| Session::open(&scene, far));
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &wish(Some(WITHOUT_LAN))).await;
        for session in &mut sessions {
            session.us.write_all(b"output").unwrap();
            session.is_spoken_to();
            session.goes_on();
        }
    });
}

const WITHOUT_LAN: ExitNode = ExitNode { peer: Some(NodeId(2)), allow_lan: false };

fn wish(exit_node: Option<ExitNode>) -> Desired {
    let node = |number: u8| Node {
        id: NodeId(number.into()),
        key: private(number).public(),
        addresses: nets(&[&format!("100.64.0.{number}/32"), &format!("fd7a:115c:a1e0::{number}/128")]),
        ..Node::default()
    };
    let mut exit = node(2);
    exit.allowed_ips = Some(exit.addresses.iter().copied().chain(EXIT_ROUTES).collect());
    let message = MapResponse {
        node: Some(node(1)),
        peers: vec![exit].into(),
        packet_filter: Some(match_all()),
        ..MapResponse::default()
    };
    let mut map = Netmap::default();
    map.replace(message, Timestamp::UNIX_EPOCH);
    planned(&map, exit_node)
}

fn planned(map: &Netmap, exit_node: Option<ExitNode>) -> Desired {
    let host = Host {
        key: private(1),
        networks: nets(&["192.0.2.1/24", "2001:db8::1/64"]),
        guests: BTreeSet::new(),
        links: BTreeMap::new(),
        routes: BTreeSet::new(),
        kept: BTreeSet::new(),
        probes: None,
        resolver_port: None,
    };
    let prefs = Prefs { want_running: true, exit_node, ..Prefs::default() };
    let path = Path { endpoint: "192.0.2.2:41741".parse().unwrap(), moves: true, keepalive: 0 };
    let paths = Paths { chosen: BTreeMap::from([(private(2).public(), path)]) };
    desired(map, &prefs, &paths, &host).desired
}

struct Scene {
    world: Neighbour,
    ssh: TcpListener,
    _listeners: Vec<TcpListener>,
}

impl Scene {
    fn build() -> Self {
        let world = Neighbour::beside("warren-test-world", "wan");
        sh("ip addr add 192.0.2.1/24 dev wan && ip addr add 2001:db8::1/64 dev wan nodad");
        world.sh("ip addr add 192.0.2.2/24 dev wan && ip addr add 2001:db8::2/64 dev wan nodad");
        sh("ip route add default via 192.0.2.2 && ip -6 route add default via 2001:db8::2");
        world.sh("ip addr add 198.51.100.9/32 dev lo && ip addr add 2001:db8:9::9/128 dev lo nodad");
        world.sh("nft 'table inet cap { counter leaked { }; chain in { type filter hook prerouting priority -400; \
             iifname != \"wan\" accept; udp dport 41741 accept; tcp sport 22 accept; \
             icmpv6 type { 133, 134, 135, 136, 137, 143 } accept; counter name leaked; }; }'");
        // Neighbours of IPv6 answer a while after their link came up.
        world.sh("ping -c 1 -w 30 -I 2001:db8:9::9 2001:db8::1");
        let listeners = world.within(|| vec![TcpListener::bind((IpAddr::from([0u16; 8]), 80)).unwrap()]);
        let ssh = TcpListener::bind((IpAddr::from([0u16; 8]), SSH)).unwrap();
        Self { world, ssh, _listeners: listeners }
    }

    fn with_exit_node(self) -> Self {
        let world = &self.world;
        let secret = data_encoding::BASE64.encode(private(2).expose_bytes());
        world.sh(&format!(
            "ip link add wg0 type wireguard && echo {secret} | wg set wg0 private-key /dev/stdin listen-port 41741 \
             peer {} endpoint 192.0.2.1:41741 allowed-ips 100.64.0.1/32,fd7a:115c:a1e0::1/128 && ip link set wg0 up",
            private(1).public().base64(),
        ));
        world.sh("ip addr add 100.64.0.2/32 dev wg0 && ip addr add fd7a:115c:a1e0::2/128 dev wg0 nodad");
        world.sh("ip route add 100.64.0.1/32 dev wg0 && ip -6 route add fd7a:115c:a1e0::1/128 dev wg0");
        self
    }

    /// Packets that came by the cable and are neither WireGuard's, nor answers of a session, nor neighbours' talk.
    fn leaked(&self) -> u64 {
        let listing = self.world.sh("nft -j list counter inet cap leaked");
        let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
        listing["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    }

    /// Whatever a program does about it: choose an address, a link, or speak to everybody.
    fn nothing_leaves_elsewhere(&self) {
        for (far, from) in FAR.iter().zip(KNOWN_BY) {
            assert!(connect_from(Some(from), far, 80).is_none(), "{from} to {far}");
            let bound = UdpSocket::bind((from, 0)).unwrap();
            let _ = bound.send_to(b"secret", (*far, 9));
        }
        let of_link = UdpSocket::bind("0.0.0.0:0").unwrap();
        nix::sys::socket::setsockopt(&of_link, nix::sys::socket::sockopt::BindToDevice, &"wan".into()).unwrap();
        for to in [FAR[0], ROUTER[0], "224.0.0.251"] {
            let _ = of_link.send_to(b"secret", (to, 9));
        }
        assert!(ROUTER.iter().all(|router| connect(router, 80).is_none()));
    }

    fn nothing_gets_far(&self) {
        self.nothing_leaves_elsewhere();
        assert!(FAR.iter().all(|far| connect(far, 80).is_none()));
    }
}

/// A session that somebody far away has with us.
struct Session {
    us: TcpStream,
    them: TcpStream,
}

impl Session {
    fn open(scene: &Scene, far: &'static str) -> Self {
        let known_by = KNOWN_BY[usize::from(far.contains(':'))];
        let them = scene.world.within(move || connect_from(Some(far), known_by, SSH)).unwrap();
        let (us, _) = scene.ssh.accept().unwrap();
        for stream in [&us, &them] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        Self { us, them }
    }

    /// We speak first, as a program that prints something.
    fn goes_on(&mut self) {
        self.us.write_all(b"output").unwrap();
        self.them.read_exact(&mut [0; 6]).unwrap();
        self.is_spoken_to();
    }

    fn is_spoken_to(&mut self) {
        self.them.write_all(b"typed").unwrap();
        self.us.read_exact(&mut [0; 5]).unwrap();
    }
}

fn connect(to: &str, port: u16) -> Option<TcpStream> {
    connect_from(None, to, port)
}

fn connect_from(from: Option<&str>, to: &str, port: u16) -> Option<TcpStream> {
    let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), port).into();
    let client = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    if let Some(from) = from {
        client.bind(&SocketAddr::from((from.parse::<IpAddr>().unwrap(), 0)).into()).unwrap();
    }
    client.connect_timeout(&to.into(), SILENCE).is_ok().then(|| client.into())
}
