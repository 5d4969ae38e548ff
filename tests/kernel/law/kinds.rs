//! Kinds of packets and kinds of peers: what is taken of each, and what the table counts and logs of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use warren_core::netmap::Netmap;
use warren_core::plan::{Desired, FirewallOptions, Host, Kernel, Paths, Prefs, desired};
use warren_core::types::{NodeId, Timestamp};
use warren_core::wire::control::{FilterRule, MapResponse, NetPortRange, Node, Ports};

use super::Kernels;
use super::log::Log;
use super::packet::{Before, Load, Probe};
use super::scene::{LAN, Scene, Tunnel, key};
use crate::common::*;

const GUEST: &str = "example.com/guest";
const US: &str = "100.64.0.1";
const US_V6: &str = "fd7a:115c:a1e0::1";
const OF_LAN: &str = "192.168.7.9";
const OF_LAN_V6: &str = "fd00:7::9";
const UNSERVED: &str = "172.16.0.1";

/// What becomes of a packet: it is taken, or dropped and counted by this reason.
const TAKEN: &str = "";
const ANSWER: &str = "denied_answer_to_nothing";
const UNKNOWN: &str = "denied_unknown_source";
const POLICY: &str = "denied_by_policy";
const FOREIGN: &str = "denied_foreign_destination";
const SPOOFED: &str = "denied_spoofed_source";
const UNASKED: &str = "denied_unasked_into_overlay";

/// Who sends, from and to which address, what, and what becomes of it.
type Row = (u8, &'static str, &'static str, Load, &'static str);

/// Peer 1 may open port 22; peer 2 GRE, and SCTP by port; peer 3 nothing; peer 4 holds a capability and carries a
/// network; peer 5 is jailed. All but the third have a right to port 8080.
fn wish(prefs: Prefs) -> Desired {
    let node = |peer: u8| Node {
        id: NodeId(u64::from(peer) + 1),
        key: key(peer).public(),
        addresses: nets(&[&format!("100.64.0.{}/32", peer + 1), &format!("fd7a:115c:a1e0::{}/128", peer + 1)]),
        primary_routes: if peer == 0 { nets(&["192.168.7.0/24", "fd00:7::/64"]) } else { Vec::new() },
        ..Node::default()
    };
    let mut peers: Vec<Node> = (1..=5).map(node).collect();
    peers[3].cap_map.insert(GUEST.to_owned(), None);
    peers[3].allowed_ips = Some([peers[3].addresses.clone(), nets(&["10.4.0.0/16"])].concat());
    peers[4].is_jailed = true;
    let rule = |sources: &[&str], ports: &[(u16, u16)], protocols: &[i32]| {
        let to = |destination: &'static str| {
            let ports = ports.iter().map(|(first, last)| Ports { first: *first, last: *last });
            ports.map(move |ports| NetPortRange { ip: destination.to_owned(), ports })
        };
        FilterRule {
            src_ips: sources.iter().map(|source| (*source).to_owned()).collect(),
            dst_ports: [US, US_V6, "192.168.7.0/24", "fd00:7::/64"].into_iter().flat_map(to).collect(),
            ip_proto: protocols.to_vec(),
            ..FilterRule::default()
        }
    };
    let all = (0, u16::MAX);
    let filter = vec![
        rule(&["100.64.0.2", "fd7a:115c:a1e0::2"], &[(22, 22)], &[]),
        rule(&["100.64.0.3", "fd7a:115c:a1e0::3"], &[all], &[47]),
        rule(&["100.64.0.3", "fd7a:115c:a1e0::3"], &[(80, 90)], &[50, 132]),
        rule(&["cap:example.com/guest"], &[(443, 443)], &[6]),
        rule(&["100.64.0.2-100.64.0.3", "100.64.0.5-100.64.0.6", "10.4.0.0/24"], &[(8_080, 8_080)], &[]),
    ];
    let mut map = Netmap::default();
    let message =
        MapResponse { node: Some(node(0)), peers: peers.into(), packet_filter: Some(filter), ..MapResponse::default() };
    map.replace(message, Timestamp::UNIX_EPOCH);
    let host = Host {
        key: key(0),
        networks: BTreeSet::new(),
        guests: BTreeSet::new(),
        links: BTreeMap::new(),
        routes: BTreeSet::new(),
        kept: BTreeSet::new(),
        probes: None,
        resolver_port: None,
    };
    desired(&map, &prefs, &Paths::default(), &host).desired
}

fn prefs() -> Prefs {
    let advertise_routes = nets(&["192.168.7.0/24", "fd00:7::/64"]);
    Prefs { want_running: true, accept_routes: true, advertise_routes, ..Prefs::default() }
}

/// Sends the packets one after the other and compares what became of them, and what was counted.
async fn expect(scene: &Scene, kernels: &mut Kernels, rows: &[Row]) {
    let probes: Vec<_> = rows.iter().map(|(peer, from, to, load, _)| (*peer, Probe::new(from, to, *load))).collect();
    let before = denied(kernels).await;
    let taken = scene.taken(probes.iter().map(|(peer, probe)| (*peer, probe, true)));
    let after = denied(kernels).await;

    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for ((peer, from, to, load, outcome), taken) in rows.iter().zip(taken) {
        assert_eq!(taken, *outcome == TAKEN, "peer {peer}, {from} to {to}: {load:?}");
        if *outcome != TAKEN {
            *expected.entry((*outcome).to_owned()).or_default() += 1;
        }
    }
    let more = after.into_iter().map(|(reason, count)| (reason.clone(), count - before[&reason]));
    assert_eq!(more.filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>(), expected);
}

async fn denied(kernels: &mut Kernels) -> BTreeMap<String, u64> {
    let figures = kernels.real.figures().await.unwrap();
    figures.denied.into_iter().map(|(reason, count)| (reason, count.packets)).collect()
}

#[test]
fn each_kind_of_packet_from_each_kind_of_sender_is_taken_or_counted_and_logged() {
    in_namespace(Needs::Namespace, || async {
        let scene = Scene::build(Tunnel::Cable);
        let mut kernels = Kernels::new(Tunnel::Cable);
        kernels.converge(&wish(prefs())).await;
        protocols(&scene, &mut kernels).await;
        icmp(&scene, &mut kernels).await;
        peers(&scene, &mut kernels).await;
        fragments(&scene, &kernels);

        // With shields up nobody opens anything, and answers pass as before.
        kernels.converge(&wish(Prefs { shields_up: true, ..prefs() })).await;
        let rows = [
            (1, "100.64.0.2", US, Load::Tcp(22), UNKNOWN),
            (1, "100.64.0.2", US, Load::Icmp(8), UNKNOWN),
            (1, "100.64.0.2", US, Load::Icmp(0), ANSWER),
            (2, "fd7a:115c:a1e0::3", OF_LAN_V6, Load::Other(47, 8), UNKNOWN),
            (2, "fd7a:115c:a1e0::3", OF_LAN_V6, Load::Icmp(1), ANSWER),
        ];
        expect(&scene, &mut kernels, &rows).await;
        assert!(answer_is_taken(&scene, 1, "100.64.0.2"));

        elsewhere(&scene, &mut kernels).await;
        errors(&scene, &mut kernels).await;
        exit_node(&scene, &mut kernels).await;
        log(&scene, &mut kernels).await;
    });
}

/// No protocol listed stands for TCP, UDP and ICMP. A protocol without ports follows from a rule that lists it for
/// all ports, however short its packets are.
async fn protocols(scene: &Scene, kernels: &mut Kernels) {
    let mut rows = Vec::new();
    for (one, two, us, lan) in
        [("100.64.0.2", "100.64.0.3", US, OF_LAN), ("fd7a:115c:a1e0::2", "fd7a:115c:a1e0::3", US_V6, OF_LAN_V6)]
    {
        rows.extend([
            (1, one, us, Load::Tcp(22), TAKEN),
            (1, one, lan, Load::Udp(22), TAKEN),
            (1, one, us, Load::Tcp(23), POLICY),
            (1, one, lan, Load::Udp(21), POLICY),
            (1, one, us, Load::Sctp(22), POLICY),
            (1, one, us, Load::Other(47, 40), POLICY),
            (1, one, us, Load::Other(254, 0), POLICY),
            (2, two, us, Load::Other(47, 40), TAKEN),
            (2, two, lan, Load::Other(47, 3), TAKEN),
            (2, two, us, Load::Other(47, 0), TAKEN),
            (2, two, us, Load::Other(50, 40), POLICY),
            (2, two, lan, Load::Other(89, 40), POLICY),
            (2, two, us, Load::Sctp(80), TAKEN),
            (2, two, us, Load::Sctp(91), POLICY),
            (2, two, us, Load::Tcp(80), POLICY),
        ]);
    }
    // The other family's ICMP is a protocol like any other.
    rows.push((1, "100.64.0.2", US, Load::Other(58, 8), POLICY));
    rows.push((1, "fd7a:115c:a1e0::2", US_V6, Load::Other(1, 8), POLICY));
    // What lies before the ports does not hide them, and where the sender prescribes the way, it names the first stop
    // alone.
    rows.push((1, "fd7a:115c:a1e0::2", US_V6, Load::Behind(Before::Options, 22), TAKEN));
    rows.push((1, "fd7a:115c:a1e0::2", US_V6, Load::Behind(Before::Options, 23), POLICY));
    rows.push((1, "fd7a:115c:a1e0::2", US_V6, Load::Behind(Before::Way, 22), FOREIGN));
    rows.push((1, "100.64.0.2", US, Load::Behind(Before::Options, 22), FOREIGN));
    rows.push((1, "100.64.0.2", US, Load::Behind(Before::Way, 22), FOREIGN));
    rows.push((1, "100.64.0.2", UNSERVED, Load::Tcp(22), FOREIGN));
    expect(scene, kernels, &rows).await;
}

/// Answers and errors about nothing pass from nobody; other ICMP from those who have any right to the destination. To
/// what is not served nothing passes.
async fn icmp(scene: &Scene, kernels: &mut Kernels) {
    let mut rows = Vec::new();
    for kind in [0, 3, 4, 5, 11, 12] {
        rows.push((3, "100.64.0.4", US, Load::Icmp(kind), ANSWER));
        rows.push((1, "100.64.0.2", OF_LAN, Load::Icmp(kind), ANSWER));
        rows.push((1, "100.64.0.2", UNSERVED, Load::Icmp(kind), FOREIGN));
    }
    for kind in [8, 13, 17] {
        rows.push((3, "100.64.0.4", US, Load::Icmp(kind), UNKNOWN));
        rows.push((1, "100.64.0.2", US, Load::Icmp(kind), TAKEN));
    }
    for kind in [1, 2, 3, 4, 129, 133, 134, 135, 136, 137] {
        rows.push((3, "fd7a:115c:a1e0::4", US_V6, Load::Icmp(kind), ANSWER));
        rows.push((3, "fd7a:115c:a1e0::4", "fd00:9::9", Load::Icmp(kind), FOREIGN));
    }
    for kind in [128, 144] {
        rows.push((3, "fd7a:115c:a1e0::4", US_V6, Load::Icmp(kind), UNKNOWN));
        rows.push((1, "fd7a:115c:a1e0::2", OF_LAN_V6, Load::Icmp(kind), TAKEN));
    }
    expect(scene, kernels, &rows).await;
}

/// A capability is its holder's, and not what is behind it; who is jailed only answers.
async fn peers(scene: &Scene, kernels: &mut Kernels) {
    let rows = [
        (4, "100.64.0.5", US, Load::Tcp(443), TAKEN),
        (4, "fd7a:115c:a1e0::5", OF_LAN_V6, Load::Tcp(443), TAKEN),
        (4, "100.64.0.5", US, Load::Udp(443), POLICY),
        (4, "10.4.0.9", US, Load::Tcp(443), POLICY),
        (4, "10.4.0.9", US, Load::Tcp(8_080), TAKEN),
        (4, "10.4.1.9", US, Load::Tcp(443), UNKNOWN),
        (1, "100.64.0.2", US, Load::Tcp(443), POLICY),
        (3, "100.64.0.4", US, Load::Tcp(443), UNKNOWN),
        (5, "100.64.0.6", US, Load::Tcp(8_080), UNKNOWN),
        (5, "100.64.0.6", US, Load::Icmp(8), UNKNOWN),
        (5, "100.64.0.6", US, Load::Icmp(0), ANSWER),
    ];
    expect(scene, kernels, &rows).await;
    assert!(answer_is_taken(scene, 5, "100.64.0.6"));
}

/// We ask a peer, and it answers from the port that we asked.
fn answer_is_taken(scene: &Scene, peer: u8, address: &'static str) -> bool {
    let asking = UdpSocket::bind((US, 0)).unwrap();
    let port = asking.local_addr().unwrap().port();
    let answer = Probe::new(address, US, Load::Udp(port));
    asking.send_to(b"question", (address, answer.source_port(1))).unwrap();
    scene.taken([(peer, &answer, true)]) == [true]
}

/// Connection tracking puts a packet together before it is judged, so that all of it meets what its ports say.
fn fragments(scene: &Scene, kernels: &Kernels) {
    let probes = [
        (1, Probe::new("100.64.0.2", US, Load::Udp(22)), true),
        (1, Probe::new("100.64.0.2", US, Load::Udp(23)), false),
        (1, Probe::new("100.64.0.2", OF_LAN, Load::Udp(22)), true),
        (1, Probe::new("100.64.0.2", UNSERVED, Load::Udp(22)), false),
        (1, Probe::new("fd7a:115c:a1e0::2", US_V6, Load::Udp(22)), true),
        (1, Probe::new("fd7a:115c:a1e0::2", US_V6, Load::Udp(23)), false),
        (1, Probe::new("fd7a:115c:a1e0::2", OF_LAN_V6, Load::Icmp(128)), true),
        (3, Probe::new("fd7a:115c:a1e0::4", OF_LAN_V6, Load::Icmp(128)), false),
        (2, Probe::new("100.64.0.3", US, Load::Other(47, 40)), true),
        (2, Probe::new("100.64.0.3", US, Load::Other(50, 40)), false),
    ];
    assert!(probes.iter().all(|(peer, probe, expected)| kernels.admits(*peer, probe) == *expected));
    let taken = scene.taken_in_fragments(probes.iter().map(|(peer, probe, _)| (*peer, probe, true)));
    assert_eq!(taken, probes.map(|(.., expected)| expected));
}

/// What comes elsewhere than by the tunnel opens only what the operator allows.
async fn elsewhere(scene: &Scene, kernels: &mut Kernels) {
    sh("ip route add 100.99.0.0/24 dev lan");
    let rows = |spoofed, unasked| {
        [
            (LAN, "100.64.0.2", US, Load::Tcp(22), spoofed),
            (LAN, "fd7a:115c:a1e0::2", US_V6, Load::Icmp(128), spoofed),
            (LAN, "100.64.0.99", OF_LAN, Load::Udp(22), spoofed),
            // A provider's use of the range, to which a route leads.
            (LAN, "100.99.0.9", US, Load::Tcp(22), TAKEN),
            (LAN, OF_LAN, "100.64.0.2", Load::Tcp(22), unasked),
            (LAN, OF_LAN, "100.64.0.2", Load::Icmp(8), unasked),
            (LAN, OF_LAN_V6, "fd7a:115c:a1e0::4", Load::Udp(53), unasked),
            // Our own address for those beside us: what does not come from the overlay is not ours to judge.
            (LAN, OF_LAN, US, Load::Tcp(22), TAKEN),
            // By the tunnel all is as ever.
            (1, "100.64.0.2", US, Load::Tcp(22), TAKEN),
            (1, "100.64.0.2", US, Load::Tcp(23), POLICY),
        ]
    };
    for (shared_range, lan_may_open) in [(false, false), (true, false), (false, true)] {
        let firewall = FirewallOptions { shared_range, lan_may_open, ..FirewallOptions::default() };
        kernels.converge(&wish(Prefs { firewall, ..prefs() })).await;
        let spoofed = if shared_range { TAKEN } else { SPOOFED };
        let unasked = if lan_may_open { TAKEN } else { UNASKED };
        expect(scene, kernels, &rows(spoofed, unasked)).await;
    }
}

/// An error passes where it is about a packet that this side sent to a peer, and to no other flow of this host.
async fn errors(scene: &Scene, kernels: &mut Kernels) {
    kernels.converge(&wish(prefs())).await;
    let flow = |from: &str, to: &str| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"question", (to, 53)).unwrap();
        let to: IpAddr = to.parse().unwrap();
        (socket.local_addr().unwrap(), (to, 53).into())
    };
    let ours = [flow(US, "100.64.0.2"), flow(US_V6, "fd7a:115c:a1e0::2")];
    let near = [flow("192.168.7.1", OF_LAN), flow("fd00:7::1", OF_LAN_V6)];
    let unserved = flow("172.16.0.1", OF_LAN);
    let mut rows = Vec::new();
    for (peer, source) in [(1, "100.64.0.2"), (3, "100.64.0.4")] {
        for (kind, outcome) in [(3, TAKEN), (11, TAKEN), (12, TAKEN), (4, ANSWER), (5, ANSWER)] {
            rows.push((peer, source, US, Load::Error(kind, ours[0]), outcome));
        }
        // The resolver of the host's own network, whatever the peer may open here.
        rows.push((peer, source, "192.168.7.1", Load::Error(3, near[0]), ANSWER));
        rows.push((peer, source, US, Load::Error(3, near[0]), ANSWER));
        rows.push((peer, source, "172.16.0.1", Load::Error(3, unserved), FOREIGN));
        rows.push((peer, source, US, Load::Error(3, unserved), ANSWER));
    }
    for (peer, source) in [(1, "fd7a:115c:a1e0::2"), (3, "fd7a:115c:a1e0::4")] {
        for (kind, outcome) in [(1, TAKEN), (2, TAKEN), (3, TAKEN), (4, TAKEN), (137, ANSWER)] {
            rows.push((peer, source, US_V6, Load::Error(kind, ours[1]), outcome));
        }
        rows.push((peer, source, "fd00:7::1", Load::Error(1, near[1]), ANSWER));
        rows.push((peer, source, US_V6, Load::Error(1, near[1]), ANSWER));
    }
    // Nor does the network that we carry end what we have with a peer.
    rows.push((LAN, OF_LAN, "100.64.0.2", Load::Error(3, (ours[0].1, ours[0].0)), UNASKED));
    expect(scene, kernels, &rows).await;
}

/// An exit node opens the internet, and neither itself nor what is around it.
async fn exit_node(scene: &Scene, kernels: &mut Kernels) {
    // Addresses that the agent does not see.
    sh("ip addr add 9.9.9.9/32 dev lo && ip addr add 2620:fe::9/128 dev lo nodad");
    let default = ["0.0.0.0/0", "::/0"];
    let lan = ["192.168.7.0/24", "fd00:7::/64"];
    let all = [default, lan].concat();
    for (offered, approved, internet, of_lan) in [
        (default.as_slice(), all.as_slice(), TAKEN, FOREIGN),
        (&all, &all, TAKEN, TAKEN),
        (&all, &default, TAKEN, FOREIGN),
        (&all, &lan, FOREIGN, TAKEN),
        (&all, &[], FOREIGN, FOREIGN),
    ] {
        kernels.converge(&offering(offered, approved)).await;
        expect(scene, kernels, &beyond(internet, of_lan)).await;
    }
}

/// What an agent wants that offers these routes, of which the coordinator approved those; its policy lets everything in.
fn offering(offered: &[&str], approved: &[&str]) -> Desired {
    let mut ours = Node { id: NodeId(1), key: key(0).public(), ..Node::default() };
    ours.addresses = nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    ours.allowed_ips = Some([ours.addresses.clone(), nets(approved)].concat());
    let addresses = nets(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]);
    let peer = Node { id: NodeId(2), key: key(1).public(), addresses, ..Node::default() };
    let mut map = Netmap::default();
    let message = MapResponse {
        node: Some(ours),
        peers: vec![peer].into(),
        packet_filter: Some(warren_core::wire::control::match_all()),
        ..MapResponse::default()
    };
    map.replace(message, Timestamp::UNIX_EPOCH);
    let prefs = Prefs { want_running: true, advertise_routes: nets(offered), ..Prefs::default() };
    let networks = nets(&["192.168.7.1/24", "fd00:7::1/64"]);
    let (routes, kept) = (BTreeSet::new(), BTreeSet::new());
    desired(
        &map,
        &prefs,
        &Paths::default(),
        &Host {
            key: key(0),
            networks,
            guests: BTreeSet::new(),
            links: BTreeMap::new(),
            routes,
            kept,
            probes: None,
            resolver_port: None,
        },
    )
    .desired
}

/// What a peer may reach through this node, given what becomes of packets to the internet and to the node's own network.
fn beyond(internet: &'static str, lan: &'static str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (to, outcome) in [
        (US, TAKEN),
        ("8.8.8.8", internet),
        ("9.9.9.10", internet),
        // The host by its other addresses, the page of its router, a cloud's metadata, a neighbour of the overlay.
        ("192.168.7.1", lan),
        ("192.168.7.9", lan),
        ("9.9.9.9", FOREIGN),
        ("172.16.0.1", FOREIGN),
        ("10.4.4.4", FOREIGN),
        ("169.254.169.254", FOREIGN),
        ("100.64.0.9", FOREIGN),
        ("203.0.113.9", FOREIGN),
    ] {
        rows.push((1, "100.64.0.2", to, Load::Tcp(80), outcome));
        rows.push((1, "100.64.0.2", to, Load::Icmp(8), outcome));
    }
    for (to, outcome) in [
        (US_V6, TAKEN),
        ("2600::9", internet),
        ("fd00:7::1", lan),
        ("fd00:7::9", lan),
        ("2620:fe::9", FOREIGN),
        ("64:ff9b::a9fe:a9fe", FOREIGN),
        ("fd00:ec2::254", FOREIGN),
    ] {
        rows.push((1, "fd7a:115c:a1e0::2", to, Load::Udp(53), outcome));
    }
    rows
}

/// The group that denials are logged to.
const GROUP: u16 = 5_741;
/// More than a burst, and than the limit lets through while they are sent.
const FLOOD: u16 = 400;

/// Denials are logged with their reason, and a flood of them is not.
async fn log(scene: &Scene, kernels: &mut Kernels) {
    let firewall = FirewallOptions { log_denied: Some(GROUP), ..FirewallOptions::default() };
    kernels.converge(&wish(Prefs { firewall, ..prefs() })).await;
    let log = Log::open(GROUP);

    let begun = Instant::now();
    let flood = Probe::new("100.64.0.2", US, Load::Tcp(23));
    scene.taken((0..FLOOD).map(|_| (1, &flood, true)));
    let lasted = begun.elapsed();
    let others: [Row; 5] = [
        (3, "100.64.0.4", US, Load::Tcp(22), UNKNOWN),
        (1, "fd7a:115c:a1e0::2", "fd00:9::9", Load::Udp(22), FOREIGN),
        (LAN, "100.64.0.2", US, Load::Udp(22), SPOOFED),
        (LAN, OF_LAN, "100.64.0.2", Load::Udp(22), UNASKED),
        (1, "100.64.0.2", US, Load::Tcp(22), TAKEN),
    ];
    expect(scene, kernels, &others).await;

    let logged = log.read_until(others.iter().filter(|row| row.4 != TAKEN).count(), |prefix| !prefix.contains(POLICY));
    for (.., outcome) in others.iter().filter(|row| row.4 != TAKEN) {
        assert_eq!(logged.get(&format!("warren {outcome} ")), Some(&1), "{logged:?}");
    }
    let flood = logged[&format!("warren {POLICY} ")];
    // A burst of 20, and 10 a second.
    let most = 21 + 10 * (lasted.as_secs() + 1);
    assert!(flood >= 20 && flood <= most, "{flood} in {lasted:?}");
    assert!(flood < u64::from(FLOOD) || most > u64::from(FLOOD), "no limit was seen");
    assert_eq!(logged.len(), others.len(), "nothing else is logged: {logged:?}");
}
