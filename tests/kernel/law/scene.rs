//! Where packets are sent and what became of them is seen.
//!
//! ```text
//!  outside ──cable, or WireGuard── us: warren0 ──> input    own addresses, and one that nobody serves
//!                                              └─> forward  lan: the network we carry, and all else
//! ```
//!
//! What comes out of the tunnel is noted before our table sees it, by the number in each packet; and again where the
//! host would hand it to a program or to a network, after all our chains. There it is dropped: nothing answers, and
//! no flow ever begins, so that one packet tells nothing to the next.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::packet::Probe;
use crate::common::*;
use crate::neighbour::Neighbour;

/// Peers that can send.
pub(crate) const PEERS: u8 = 5;
/// Sends from the network that we carry, in a peer's place.
pub(crate) const LAN: u8 = PEERS + 1;

/// Stands for WireGuard, or is it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// One cable with the name of our link. Whose a source is must be judged before a packet is sent.
    Cable,
    /// A device for each peer.
    WireGuard,
}

pub(crate) struct Scene {
    outside: Neighbour,
    _lan: Neighbour,
    tunnel: Tunnel,
    /// What each peer sends from, in both families; last the network that we carry.
    senders: Vec<[Socket; 2]>,
}

/// What became of packets, by their numbers.
#[derive(Debug, Default)]
struct Fate {
    came: BTreeSet<u16>,
    taken: BTreeSet<u16>,
}

impl Scene {
    /// Builds it around the test's namespace.
    pub(crate) fn build(tunnel: Tunnel) -> Self {
        sh("echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        sh("for each in all default; do echo 0 >/proc/sys/net/ipv4/conf/$each/rp_filter; done");
        let outside = Neighbour::beside("warren-law-outside", if tunnel == Tunnel::Cable { "warren0" } else { "wan" });
        let lan = Neighbour::beside("warren-law-lan", "lan");
        quieten(&outside);
        quieten(&lan);
        silent_cable(&lan, "lan");
        sh("ip addr add 192.168.7.1/24 dev lan && ip addr add fd00:7::1/64 dev lan nodad");
        sh("ip addr add 172.16.0.1/32 dev lo && ip route add default dev lan && ip -6 route add default dev lan");
        let mut senders = match tunnel {
            Tunnel::Cable => cable(&outside),
            Tunnel::WireGuard => wireguard(&outside),
        };
        senders.push(lan.within(|| raw_sockets("lan")));
        note_packets();
        Self { outside, _lan: lan, tunnel, senders }
    }

    /// Sends each of these as the peer that it is with, and says which the host took. All that are said to come must
    /// come, and no other.
    pub(crate) fn taken<'a>(&self, probes: impl IntoIterator<Item = (u8, &'a Probe, bool)>) -> Vec<bool> {
        let probes: Vec<_> = (1_u16..).zip(probes).collect();
        self.taken_of(&probes, |probe, number| vec![probe.bytes(number)])
    }

    /// The same with each in two fragments.
    pub(crate) fn taken_in_fragments<'a>(&self, probes: impl IntoIterator<Item = (u8, &'a Probe, bool)>) -> Vec<bool> {
        let probes: Vec<_> = (1_u16..).zip(probes).collect();
        self.taken_of(&probes, |probe, number| probe.fragments(number).to_vec())
    }

    fn taken_of(&self, probes: &[(u16, (u8, &Probe, bool))], bytes: impl Fn(&Probe, u16) -> Vec<Vec<u8>>) -> Vec<bool> {
        sh("nft 'flush set inet law came; flush set inet law taken'");
        if self.tunnel == Tunnel::WireGuard {
            new_sessions(&self.outside);
        }
        // Packets of one peer come in their order, so those that come end the wait for those that must not.
        let (coming, refused): (Vec<_>, Vec<_>) = probes.iter().partition(|(_, (_, _, comes))| *comes);
        for (number, (peer, probe, comes)) in refused.iter().chain(&coming) {
            if *comes || self.tunnel == Tunnel::WireGuard {
                bytes(probe, *number).iter().for_each(|bytes| self.send(*peer, probe, bytes));
            }
        }
        let expected: BTreeSet<u16> = coming.iter().map(|(number, _)| *number).collect();
        let begun = Instant::now();
        let mut fate = fate();
        while !fate.came.is_superset(&expected) {
            let missing: Vec<_> = coming.iter().filter(|(number, _)| !fate.came.contains(number)).collect();
            assert!(begun.elapsed() < PATIENCE, "did not come: {missing:?}");
            fate = self::fate();
        }
        let sneaked: Vec<_> =
            probes.iter().filter(|(number, (.., comes))| !comes && fate.came.contains(number)).collect();
        assert!(sneaked.is_empty(), "WireGuard let in what is not the peer's: {sneaked:?}");
        probes.iter().map(|(number, _)| fate.taken.contains(number)).collect()
    }

    /// Sends one packet, and does not ask what became of it.
    fn send(&self, peer: u8, probe: &Probe, bytes: &[u8]) {
        let to = SocketAddr::from((probe.destination, 0)).into();
        let [v4, v6] = &self.senders[usize::from(peer)];
        let socket = if probe.destination.is_ipv4() { v4 } else { v6 };
        socket.send_to(bytes, &to).unwrap_or_else(|error| panic!("peer {peer} sends {probe:?}: {error}"));
    }
}

/// The key of a peer that sends by WireGuard; 0 is our own.
pub(crate) fn key(peer: u8) -> warren_core::types::NodePrivate {
    private(100 + peer)
}

/// Nothing is sent but probes: what a kernel says of itself to its neighbours has another hop limit than they have.
fn quieten(neighbour: &Neighbour) {
    neighbour.sh("nft add table ip6 quiet && nft add chain ip6 quiet output '{ type filter hook output priority 0; }'");
    neighbour.sh("nft add rule ip6 quiet output ip6 hoplimit != 64 drop");
}

/// No neighbour discovery: both ends have one address, which is then the destination of every frame.
fn silent_cable(neighbour: &Neighbour, name: &str) {
    let link = format!("ip link set {name} arp off address 02:00:00:00:00:01");
    sh(&link);
    neighbour.sh(&format!("{link} && ip route add default dev {name} && ip -6 route add default dev {name}"));
}

fn cable(outside: &Neighbour) -> Vec<[Socket; 2]> {
    silent_cable(outside, "warren0");
    sh("ip addr add 100.64.0.1/32 dev warren0 && ip addr add fd7a:115c:a1e0::1/128 dev warren0 nodad");
    sh("ip route add 100.64.0.0/10 dev warren0 && ip route add fd7a:115c:a1e0::/48 dev warren0");
    outside.within(|| (0..=PEERS).map(|_| raw_sockets("warren0")).collect())
}

/// A device for each peer, all with one address of the underlay.
fn wireguard(outside: &Neighbour) -> Vec<[Socket; 2]> {
    sh("ip addr add 192.0.2.1/24 dev wan");
    outside.sh("ip addr add 192.0.2.2/24 dev wan");
    for peer in 0..=PEERS {
        let secret = data_encoding::BASE64.encode(key(peer).expose_bytes());
        let port = 50_000 + u16::from(peer);
        outside.sh(&format!(
            "ip link add wg{peer} type wireguard && echo {secret} | wg set wg{peer} private-key /dev/stdin \
             listen-port {port} && ip link set wg{peer} up && ip route add default dev wg{peer} metric 1{peer} && \
             ip -6 route add default dev wg{peer} metric 1{peer}",
        ));
    }
    outside.within(|| (0..=PEERS).map(|peer| raw_sockets(&format!("wg{peer}"))).collect())
}

/// A peer that we removed does not know; it would go on with its old session for a while.
fn new_sessions(outside: &Neighbour) {
    let us = key(0).public().base64();
    outside.sh(&format!(
        "for each in $(seq 1 {PEERS}); do wg set wg$each peer {us} remove && wg set wg$each peer {us} \
         endpoint 192.0.2.1:41741 allowed-ips 0.0.0.0/0,::/0; done"
    ));
}

/// They send what they are given, IP header and all, into this device.
fn raw_sockets(device: &str) -> [Socket; 2] {
    [Domain::IPV4, Domain::IPV6].map(|domain| {
        // IPPROTO_RAW: with a header of the program's own (raw(7)).
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
        socket.bind_device(Some(device.as_bytes())).unwrap();
        socket
    })
}

/// After connection tracking and before our table; and after all chains of ours where packets end.
fn note_packets() {
    let rules = |set: &str, verdict: &str| {
        let rule = |family, bits| {
            format!("iifname {{ warren0, lan }} meta nfproto {family} add @{set} {{ @nh,{bits},16 }} {verdict}\n")
        };
        rule("ipv4", 32) + &rule("ipv6", 16)
    };
    let set = |name: &str| format!("set {name} {{ typeof ip id; flags dynamic; size 65535; }}\n");
    let chain = |hook: &str, priority: i32, rules: String| {
        format!("chain {hook} {{\ntype filter hook {hook} priority {priority};\n{rules}}}\n")
    };
    let table = [
        set("came"),
        set("taken"),
        chain("prerouting", -120, rules("came", "")),
        chain("input", 300, rules("taken", "drop")),
        chain("forward", 300, rules("taken", "drop")),
    ];
    sh(&format!("nft 'table inet law {{\n{}}}'", table.concat()));
}

fn fate() -> Fate {
    let listing = json("nft -j list table inet law");
    let numbers = |name: &str| {
        let objects = listing["nftables"].as_array().unwrap().iter();
        let set = objects.map(|object| &object["set"]).find(|set| set["name"] == name).unwrap();
        let elements = set["elem"].as_array().into_iter().flatten();
        elements.map(|element| number(element).unwrap_or_else(|| panic!("{element}"))).collect()
    };
    Fate { came: numbers("came"), taken: numbers("taken") }
}

fn number(element: &Value) -> Option<u16> {
    let value = if element.is_object() { &element["elem"]["val"] } else { element };
    u16::try_from(value.as_u64()?).ok()
}
