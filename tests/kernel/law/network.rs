//! Random networks under random policies, from the policy's text on: the coordinator's model makes the map, the
//! agent's reads it, and the planner plans for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use warren_core::netmap::Netmap;
use warren_core::plan::{Desired, Host, Paths, Prefs, Protocol, desired};
use warren_core::policy::Protocol as PolicyProtocol;
use warren_core::registry::{
    Actor, Attributes, Change, Config, NodeRecord, NodeStatus, Output, PolicyRecord, Records, SessionId, State,
    UserRecord,
};
use warren_core::types::{
    CapabilityVersion, DiscoPublic, IpNet, MachinePublic, NodeId, StableNodeId, Timestamp, UserId, is_default_route,
};

use super::packet::{Load, Probe};
use super::scene::{PEERS, key};

pub(crate) const US: NodeId = NodeId(1);

/// Names that policies use; ours among them.
const NAMES: &str = r#"
    "groups": {"group:a": ["u1@x.org"], "group:b": ["u1@x.org", "u2@x.org"]},
    "hosts": {"lan": "192.168.7.0/24", "lan6": "fd00:7::/64", "site": "10.1.0.0/16", "us": "100.64.0.1"},
    "ipsets": {"ipset:s": ["10.2.0.0/16", "192.168.7.8/30", "100.64.0.2"]},
    "tagOwners": {"tag:a": [], "tag:b": []},
    "postures": {"posture:fit": ["node:os == 'linux'"]},
"#;
const SOURCES: [&str; 20] = [
    "*",
    "*",
    "*",
    "u1@x.org",
    "u2@x.org",
    "group:a",
    "group:b",
    "user:*@x.org",
    "tag:a",
    "tag:b",
    "autogroup:member",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:tagged",
    "autogroup:danger-all",
    "site",
    "10.1.2.0/24",
    "fd00:1::/64",
    "ipset:s",
    "100.64.0.3",
];
const TARGETS: [&str; 16] = [
    "*",
    "*",
    "*",
    "*",
    "u1@x.org",
    "group:b",
    "tag:a",
    "tag:b",
    "autogroup:member",
    "autogroup:tagged",
    "lan",
    "lan6",
    "us",
    "ipset:s",
    "192.168.7.9",
    "10.0.0.0/8",
];
const PORTS: [&str; 14] = [
    "*",
    "*",
    "*",
    "22",
    "80-443",
    "tcp:22",
    "tcp:1000-2000",
    "udp:53",
    "udp:*",
    "sctp:22",
    "icmp:*",
    "gre:*",
    "89:*",
    "esp:*",
];
const OUR_ROUTES: [&str; 3] = ["192.168.7.0/24", "fd00:7::/64", "192.168.7.128/25"];
const THEIR_ROUTES: [&str; 5] = ["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd00:1::/64", "10.1.2.3/32"];

/// Of the networks that we may carry, our own address in them among others.
const OF_LAN_V4: [&str; 3] = ["192.168.7.1", "192.168.7.9", "192.168.7.200"];
const OF_LAN_V6: [&str; 2] = ["fd00:7::1", "fd00:7::9"];
/// Ours and served to nobody, nobody's, and other peers'.
const ELSEWHERE_V4: [&str; 4] = ["172.16.0.1", "203.0.113.9", "100.64.0.3", "10.1.2.3"];
const ELSEWHERE_V6: [&str; 2] = ["fd00:9::9", "fd7a:115c:a1e0::3"];

/// A node, ours or a peer's.
#[derive(Clone, Debug)]
pub(crate) struct NodeSpec {
    user: u64,
    tags: Vec<&'static str>,
    routes: Vec<&'static str>,
    linux: bool,
}

/// What all is made of.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) policy: String,
    us: NodeSpec,
    peers: Vec<NodeSpec>,
    shields_up: bool,
    accept_routes: bool,
}

/// A coordinator and a node that follows it.
pub(crate) struct Network {
    state: State,
    session: SessionId,
    map: Netmap,
    world: World,
    now: Timestamp,
}

impl Network {
    pub(crate) fn new(world: World) -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut state = State::restore(Config::default(), records(&world, now), now);
        for number in 2..=world.peers.len() as u64 + 1 {
            state.open(NodeId(number), CapabilityVersion::CURRENT, now).unwrap();
        }
        let opened = state.open(US, CapabilityVersion::CURRENT, now).unwrap();
        let mut map = Netmap::default();
        map.replace(serde_json::from_slice(&opened.message.plain()).unwrap(), now);
        let mut network = Self { state, session: opened.session, map, world, now };
        network.hear();
        network
    }

    /// The network becomes another: its policy is set, its nodes change, and the node hears what it is told.
    pub(crate) fn become_other(&mut self, world: World) {
        let records = records(&world, self.now);
        let stay: BTreeSet<NodeId> = records.nodes.iter().map(|node| node.id).collect();
        let gone: Vec<NodeId> = self.state.nodes().map(|node| node.record.id).filter(|id| !stay.contains(id)).collect();
        let mut changes: Vec<Change> = gone.into_iter().map(Change::NodeGone).collect();
        let come: Vec<NodeId> = stay.into_iter().filter(|id| self.state.node(*id).is_none()).collect();
        changes.extend(records.nodes.into_iter().map(|node| Change::Node(Arc::new(node))));
        self.state.apply(changes, self.now);
        let decision = self.state.by(&Actor::COORDINATOR, self.now).set_policy(&world.policy, "ada", None).unwrap();
        self.state.apply(decision.changes, self.now);
        for id in come {
            self.state.open(id, CapabilityVersion::CURRENT, self.now).unwrap();
        }
        self.world = world;
        self.hear();
    }

    /// What a failure shows.
    pub(crate) fn describe(&self) -> String {
        format!("{:#?}", self.world)
    }

    fn hear(&mut self) {
        self.now += Duration::from_secs(1);
        self.state.handle_timeout(self.now);
        while let Some(output) = self.state.poll_output() {
            if let Output::Send { sessions, message } = output
                && sessions.contains(&self.session)
            {
                self.map.apply(serde_json::from_slice(&message.plain()).unwrap(), self.now);
            }
        }
    }

    pub(crate) fn wish(&self) -> Desired {
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
        desired(&self.map, &self.prefs(), &Paths::default(), &host).desired
    }

    fn prefs(&self) -> Prefs {
        Prefs {
            want_running: true,
            accept_routes: self.world.accept_routes,
            advertise_routes: self.our_routes(),
            shields_up: self.world.shields_up,
            ..Prefs::default()
        }
    }

    fn our_routes(&self) -> BTreeSet<IpNet> {
        self.world.us.routes.iter().map(|route| route.parse().unwrap()).collect()
    }

    /// What the policy says, by names and addresses, of a packet that a peer sends to us. Neither the packet filter nor
    /// the map is asked.
    pub(crate) fn policy_allows(&self, peer: u8, probe: &Probe) -> bool {
        let compiled = self.state.compiled().unwrap();
        let packet = probe.packet();
        let mut served = compiled.addresses(US).iter().map(|address| IpNet::from(*address)).chain(self.our_routes());
        if self.owner(packet.source) != Some(node_of(peer)) || !served.any(|net| net.contains(&packet.destination)) {
            return false;
        }
        if probe.is_answer() {
            return false;
        }
        let access = compiled.access(packet.source, packet.destination);
        let allowed = access.iter().any(|access| match packet.protocol {
            // ICMP tells whether there is anything to reach, so it follows any right at all.
            Protocol::ICMP if packet.destination.is_ipv4() => true,
            Protocol::ICMPV6 if packet.destination.is_ipv6() => true,
            Protocol::ICMP | Protocol::ICMPV6 => false,
            protocol => access.allows(PolicyProtocol(protocol.0), Some(packet.port)),
        });
        allowed && !self.world.shields_up
    }

    /// Whose an address is, of those that the policy lets us see: its node's, or that of the router of the narrowest
    /// subnet around it.
    fn owner(&self, address: IpAddr) -> Option<NodeId> {
        let compiled = self.state.compiled().unwrap();
        let peers = compiled.peers(US);
        // A node without addresses of a family is told none of its peers' either.
        let knows = compiled.addresses(US).iter().any(|own| own.is_ipv4() == address.is_ipv4());
        let is_its_own = |id| knows && compiled.addresses(id).contains(&address);
        if let Some(peer) = peers.iter().find(|peer| is_its_own(peer.id)) {
            return Some(peer.id);
        }
        let routes = peers.iter().flat_map(|peer| peer.subnets.iter().map(move |route| (route, peer.id)));
        let around = routes.filter(|(route, _)| self.world.accept_routes && route.contains(&address));
        around.max_by_key(|(route, _)| route.prefix_len()).map(|(_, id)| id)
    }
}

/// The peer that a number of the scene stands for.
pub(crate) fn node_of(peer: u8) -> NodeId {
    NodeId(u64::from(peer) + 1)
}

fn records(world: &World, now: Timestamp) -> Records {
    let user = |id: u64, login: &str| UserRecord::new(UserId(id), login.parse().unwrap(), now);
    let policy = PolicyRecord { version: 1, text: world.policy.as_str().into(), by: "ada".to_owned(), at: now };
    let nodes = [&world.us].into_iter().chain(&world.peers);
    Records {
        users: vec![user(1, "u1@x.org"), user(2, "u2@x.org"), user(3, "u3@y.org")],
        nodes: (0..).zip(nodes).map(|(peer, node)| record(peer, node, now)).collect(),
        policies: vec![policy],
        ..Records::default()
    }
}

fn record(peer: u8, spec: &NodeSpec, created: Timestamp) -> NodeRecord {
    let NodeId(number) = node_of(peer);
    let routes: Vec<IpNet> = spec.routes.iter().map(|route| route.parse().unwrap()).collect();
    let os = if spec.linux { "linux" } else { "macOS" };
    assert!(!routes.iter().any(is_default_route));
    NodeRecord {
        id: NodeId(number),
        stable_id: StableNodeId(format!("n{number}")),
        user: Some(UserId(spec.user)),
        machine: MachinePublic::from_bytes([peer + 1; 32]),
        key: key(peer).public(),
        key_expiry: None,
        expiry_disabled: false,
        logged_out: false,
        ipv4: Ipv4Addr::from(0x6440_0000 + number as u32),
        ipv6: Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0000 + u128::from(number)),
        label: format!("n{number}").parse().unwrap(),
        label_fixed: false,
        tags: spec.tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        ephemeral: false,
        created,
        last_seen: Some(created),
        admitted_by: None,
        approved: true,
        attributes: Attributes::new(),
        approved_routes: routes.clone(),
        gateway: None,
        version: 0,
        status: NodeStatus {
            disco: DiscoPublic::from_bytes([peer + 100; 32]),
            cap: CapabilityVersion::CURRENT,
            routes,
            hostinfo: Arc::from(format!(r#"{{"OS":"{os}","Hostname":"n{number}"}}"#)),
            ..NodeStatus::default()
        },
    }
}

// ---- chance ----

pub(crate) fn world() -> impl Strategy<Value = World> {
    let peers = prop::collection::vec(node(&THEIR_ROUTES, 0), 3..=usize::from(PEERS));
    let flags = (prop::bool::weighted(0.08), prop::bool::weighted(0.8));
    (policy(), node(&OUR_ROUTES, 1), peers, flags).prop_map(|(policy, us, peers, (shields_up, accept_routes))| World {
        policy,
        us,
        peers,
        shields_up,
        accept_routes,
    })
}

/// Two networks of which the second is what becomes of the first: another policy, other nodes, or both.
pub(crate) fn change() -> impl Strategy<Value = (World, World)> {
    (world(), world(), select(vec![(true, false), (false, true), (true, true)])).prop_map(
        |(from, other, (policy, nodes))| {
            let to = match (policy, nodes) {
                (true, false) => World { policy: other.policy, ..from.clone() },
                (false, true) => World { policy: from.policy.clone(), ..other },
                _ => other,
            };
            (from, to)
        },
    )
}

fn node(routes: &'static [&'static str], least: usize) -> impl Strategy<Value = NodeSpec> {
    let tags = prop_oneof![3 => Just(vec![]), 2 => subsequence(vec!["tag:a", "tag:b"], 1..=2)];
    (1_u64..4, tags, subsequence(routes, least..=2), any::<bool>()).prop_map(|(user, tags, routes, linux)| NodeSpec {
        user,
        tags,
        routes,
        linux,
    })
}

fn policy() -> impl Strategy<Value = String> {
    let some = |list: &'static [&'static str]| prop::collection::vec(select(list), 1..4);
    let fit = select(vec!["", "", r#", "srcPosture": ["posture:fit"]"#]);
    let grant = (some(&SOURCES), some(&TARGETS), some(&PORTS), fit)
        .prop_map(|(from, to, ports, fit)| format!(r#"{{"src": {from:?}, "dst": {to:?}, "ip": {ports:?}{fit}}}"#));
    let own = Just(r#"{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["8080"]}"#.to_owned());
    let protocol = select(vec![("", "22,80"), ("", "*"), ("tcp", "443"), ("udp", "53"), ("gre", "*"), ("icmp", "*")]);
    let acl = (some(&SOURCES), some(&TARGETS), protocol).prop_map(|(from, to, (protocol, ports))| {
        let to: Vec<String> = to.into_iter().map(|to| format!("{to}:{ports}")).collect();
        let protocol = if protocol.is_empty() { String::new() } else { format!(r#", "proto": "{protocol}""#) };
        format!(r#"{{"action": "accept", "src": {from:?}, "dst": {to:?}{protocol}}}"#)
    });
    let grants = prop::collection::vec(prop_oneof![5 => grant, 1 => own], 1..5);
    let no_ipv4 = select(vec!["", "", "", r#""nodeAttrs": [{"target": ["tag:a"], "attr": ["disable-ipv4"]}],"#]);
    (grants, prop::collection::vec(acl, 0..4), no_ipv4).prop_map(|(grants, acls, attributes)| {
        format!("{{{NAMES} {attributes} \"grants\": [{}], \"acls\": [{}]}}", grants.join(", "), acls.join(", "))
    })
}

/// Packets, each with the peer that sends it: mostly whose the source is, sometimes another.
pub(crate) fn probes(count: usize) -> impl Strategy<Value = Vec<(u8, Probe)>> {
    prop::collection::vec(probe(), count)
}

fn probe() -> impl Strategy<Value = (u8, Probe)> {
    let v4 = (select(sources(true)), to("100.64.0.1", &OF_LAN_V4, &ELSEWHERE_V4));
    let v6 = (select(sources(false)), to("fd7a:115c:a1e0::1", &OF_LAN_V6, &ELSEWHERE_V6));
    (prop_oneof![3 => v4, 2 => v6], load(), prop::option::weighted(0.1, 1..=PEERS)).prop_map(
        |(((owner, source), destination), load, other)| {
            (other.unwrap_or(owner), Probe { source, destination: destination.parse().unwrap(), load })
        },
    )
}

/// Mostly ourselves, often a network that we may carry.
fn to(
    us: &'static str,
    lan: &'static [&'static str],
    elsewhere: &'static [&'static str],
) -> impl Strategy<Value = &'static str> {
    prop_oneof![5 => Just(us), 4 => select(lan), 1 => select(elsewhere)]
}

/// Addresses of each peer and behind it, and of nobody.
fn sources(ipv4: bool) -> Vec<(u8, IpAddr)> {
    let own = (1..=PEERS).map(|peer| {
        let NodeId(number) = node_of(peer);
        (peer, if ipv4 { format!("100.64.0.{number}") } else { format!("fd7a:115c:a1e0::{number:x}") })
    });
    let behind = match ipv4 {
        true => vec!["10.1.2.3", "10.1.2.77", "10.1.9.9", "10.2.3.4", "100.64.0.99"],
        false => vec!["fd00:1::5", "fd00:2::5"],
    };
    let behind =
        behind.into_iter().flat_map(|address| (1..=PEERS).step_by(2).map(move |peer| (peer, address.to_owned())));
    own.clone().chain(own).chain(behind).map(|(peer, address)| (peer, address.parse().unwrap())).collect()
}

fn load() -> impl Strategy<Value = Load> {
    let port = || select(vec![22_u16, 53, 80, 443, 444, 1_000, 2_000, 2_001, 8_080, 1, 65_535]);
    // Neither extension headers of IPv6 nor what the kernel itself acts upon before any filter.
    let other = select(vec![2_u8, 47, 50, 89, 103, 115, 254]);
    prop_oneof![
        6 => port().prop_map(Load::Tcp),
        4 => port().prop_map(Load::Udp),
        1 => port().prop_map(Load::Sctp),
        3 => select(vec![0_u8, 3, 5, 8, 11, 12, 13, 1, 2, 4, 128, 129, 135, 144]).prop_map(Load::Icmp),
        2 => (other, select(vec![0_usize, 3, 8, 40])).prop_map(|(protocol, length)| Load::Other(protocol, length)),
    ]
}
