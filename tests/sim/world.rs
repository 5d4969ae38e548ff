//! Small random networks, in which everything that can clash soon does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use warren_core::netmap::Netmap;
use warren_core::plan::{
    Ability, Desired, ExitNode, Host, ModelKernel, Observed, ObservedFirewall, ObservedPeer, Packet, Path, Paths,
    Prefs, Protocol, Route, RouteTarget, Rule, RuleAction, RulePackets, desired, diff, own,
};
use warren_core::types::{IpNet, NodeId, NodePrivate, NodePublic, Timestamp};
use warren_core::wire::control::{FilterRule, MapResponse, NetPortRange, Node, Ports, match_all};

/// What peers carry: nested, so that the longest prefix matters.
const ROUTES: [&str; 8] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "fd00:1::/64", "10.1.0.0/17", "0.0.0.0/0", "::/0"];
const SOURCES: [&str; 8] = [
    "*",
    "100.64.0.1",
    "100.64.0.2-100.64.0.4",
    "10.0.0.0/8",
    "10.1.2.0/25",
    "fd00::/16",
    "cap:example.com/guest",
    "fd7a:115c:a1e0::/120",
];
const DESTINATIONS: [&str; 7] =
    ["*", "100.64.0.100", "192.168.7.0/24", "192.168.7.9", "fd7a:115c:a1e0::64", "8.0.0.0/7", "192.168.0.0/16"];
const CAPABILITY: &str = "example.com/guest";

/// All that the wish depends on.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) peers: Vec<PeerSpec>,
    pub(crate) filter: Vec<FilterRule>,
    pub(crate) prefs: Prefs,
    pub(crate) own_key: u8,
    pub(crate) own_address: u8,
    pub(crate) networks: BTreeSet<IpNet>,
    /// Those of them that end on the host itself.
    pub(crate) guests: BTreeSet<IpNet>,
    /// Addresses that the host depends on.
    pub(crate) kept: BTreeSet<IpAddr>,
    pub(crate) routes: BTreeSet<IpNet>,
    /// By which links the host reaches what.
    pub(crate) links: BTreeMap<IpNet, BTreeSet<String>>,
    /// What the coordinator lets us carry.
    pub(crate) approved: BTreeSet<IpNet>,
}

#[derive(Clone, Debug)]
pub(crate) struct PeerSpec {
    pub(crate) id: u8,
    pub(crate) key: u8,
    pub(crate) address: u8,
    pub(crate) routes: Vec<&'static str>,
    pub(crate) jailed: bool,
    pub(crate) guest: bool,
    /// Speaks nothing but WireGuard, behind this node.
    pub(crate) device: bool,
    pub(crate) path: Option<(u8, bool)>,
}

impl World {
    pub(crate) fn netmap(&self) -> Netmap {
        let ours = Node {
            id: NodeId(1_000),
            key: private_key(self.own_key).public(),
            addresses: addresses(self.own_address),
            allowed_ips: Some(addresses(self.own_address).into_iter().chain(self.approved.clone()).collect()),
            ..Node::default()
        };
        let peers = self.peers.iter().map(PeerSpec::node).collect();
        let packet_filter = Some(self.filter.clone());
        let mut map = Netmap::default();
        let message = MapResponse { node: Some(ours), peers, packet_filter, ..MapResponse::default() };
        map.replace(message, Timestamp::UNIX_EPOCH);
        map
    }

    pub(crate) fn wish(&self) -> Desired {
        desired(&self.netmap(), &self.prefs, &self.paths(), &self.host()).desired
    }

    pub(crate) fn host(&self) -> Host {
        let (networks, routes, kept) = (self.networks.clone(), self.routes.clone(), self.kept.clone());
        let guests = self.guests.clone();
        Host {
            key: private_key(self.own_key),
            networks,
            guests,
            links: self.links.clone(),
            routes,
            kept,
            probes: None,
            resolver_port: None,
        }
    }

    /// Of peers with one key the lower number's path counts, as it does for the key.
    pub(crate) fn paths(&self) -> Paths {
        let mut chosen = BTreeMap::new();
        let by_number: BTreeMap<u8, &PeerSpec> = self.peers.iter().map(|peer| (peer.id, peer)).collect();
        for peer in by_number.into_values() {
            if let Some((port, moves)) = peer.path {
                let path = Path { endpoint: endpoint(port), moves, keepalive: u16::from(port) };
                chosen.entry(public_key(peer.key)).or_insert(path);
            }
        }
        Paths { chosen }
    }
}

impl PeerSpec {
    fn node(&self) -> Node {
        let addresses = addresses(self.address);
        let routes = self.routes.iter().map(|route| route.parse().unwrap());
        Node {
            id: NodeId(self.id.into()),
            key: public_key(self.key),
            allowed_ips: Some(addresses.iter().copied().chain(routes).collect()),
            addresses,
            is_jailed: self.jailed,
            is_wireguard_only: self.device,
            cap_map: if self.guest { BTreeMap::from([(CAPABILITY.to_owned(), None)]) } else { BTreeMap::new() },
            ..Node::default()
        }
    }
}

/// Peers 1 and 2, one of them with a subnet; everybody may do everything.
pub(crate) fn small_world() -> World {
    let peer = |id| PeerSpec {
        id,
        key: id,
        address: id,
        routes: vec![],
        jailed: false,
        guest: false,
        device: false,
        path: None,
    };
    World {
        peers: vec![peer(1), PeerSpec { routes: vec!["10.1.2.0/24"], ..peer(2) }],
        filter: match_all(),
        prefs: Prefs { want_running: true, accept_routes: true, ..Prefs::default() },
        own_key: 0,
        own_address: 100,
        networks: BTreeSet::new(),
        guests: BTreeSet::new(),
        kept: BTreeSet::new(),
        routes: BTreeSet::new(),
        links: BTreeMap::new(),
        approved: BTreeSet::from(["192.168.7.0/24".parse().unwrap()]),
    }
}

pub(crate) fn private_key(number: u8) -> NodePrivate {
    NodePrivate::from_random([number; 32])
}

/// Peer keys lie in no particular order, and none is our own.
pub(crate) fn public_key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number.wrapping_mul(151).wrapping_add(7); 32])
}

pub(crate) fn addresses(number: u8) -> Vec<IpNet> {
    vec![format!("100.64.0.{number}/32").parse().unwrap(), format!("fd7a:115c:a1e0::{number:x}/128").parse().unwrap()]
}

fn endpoint(port: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port.into()))
}

/// Every packet that tells two policies of these worlds apart, roughly.
pub(crate) fn packets() -> Vec<Packet> {
    let sources =
        ["100.64.0.1", "100.64.0.2", "100.64.0.5", "10.1.2.3", "10.1.2.200", "10.1.200.1", "10.9.9.9", "fd00:1::1"];
    let sources = sources.into_iter().chain(["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"]);
    let destinations =
        ["100.64.0.100", "100.64.0.101", "100.64.0.2", "192.168.7.9", "192.168.7.10", "fd7a:115c:a1e0::64"];
    let destinations = destinations.into_iter().chain(["8.8.8.8", "8.8.9.9", "192.168.8.1", "169.254.169.254"]);
    let kinds = [(Protocol::TCP, 22), (Protocol::TCP, 80), (Protocol::ICMP, 0), (Protocol(47), 0)];
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut packets = Vec::new();
    for source in sources {
        for destination in destinations.clone() {
            for (protocol, port) in kinds {
                let (source, destination) = (address(source), address(destination));
                let protocol = if protocol.is_icmp() { Protocol::icmp_of(destination) } else { protocol };
                packets.push(Packet { source, destination, protocol, port });
            }
        }
    }
    packets
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let prefs = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.95), exit_node(), any::<bool>());
    let networks =
        prop::option::weighted(0.2, select(vec!["10.1.2.77/24", "172.16.0.1/16", "100.64.0.6/28", "8.8.8.1/24"]));
    let own = (0_u8..2, 100_u8..102);
    let routes = || subsequence(vec!["192.168.7.0/24", "0.0.0.0/0", "::/0"], 0..=3).prop_map(nets);
    let gateways = subsequence(vec!["10.1.2.128/25", "10.1.0.0/16", "100.64.0.4/32", "fd00:1::/80"], 0..3);
    let gateways = prop_oneof![2 => Just(Vec::new()), 1 => gateways];
    let bridges = prop::option::weighted(0.3, Just("172.17.0.1/16"));
    let networks = (networks, bridges, gateways);
    (vec(peer(), 0..6), vec(rule(), 0..4), prefs, own, networks, (routes(), routes())).prop_map(
        |(peers, filter, prefs, (own_key, own_address), (networks, bridges, gateways), (advertised, approved))| {
            let (accept_routes, shields_up, want_running, exit_node, keep_sources) = prefs;
            let advertise_routes = advertised;
            let prefs = Prefs {
                want_running,
                accept_routes,
                advertise_routes,
                keep_sources,
                exit_node,
                shields_up,
                ..Prefs::default()
            };
            let guests: BTreeSet<IpNet> = bridges.into_iter().map(|network: &str| network.parse().unwrap()).collect();
            let networks = networks.into_iter().map(|network: &str| network.parse().unwrap());
            let networks = networks.chain(guests.clone()).collect();
            let routes = gateways.into_iter().map(|route: &str| route.parse().unwrap()).collect();
            let kept = BTreeSet::new();
            World {
                peers: distinct(peers),
                filter,
                prefs,
                own_key,
                own_address,
                networks,
                guests,
                links: links(),
                routes,
                kept,
                approved,
            }
        },
    )
}

fn links() -> BTreeMap<IpNet, BTreeSet<String>> {
    let links = [("192.168.7.0/24", "lan"), ("0.0.0.0/0", "wan"), ("::/0", "wan")];
    links.map(|(net, link)| (net.parse().unwrap(), BTreeSet::from([link.to_owned()]))).into()
}

/// Mostly none is wanted; of those that are, some are no peer or no exit node.
fn exit_node() -> impl Strategy<Value = Option<ExitNode>> {
    let exit = (prop::option::weighted(0.8, 1_u64..6), any::<bool>());
    prop::option::weighted(0.4, exit.prop_map(|(peer, allow_lan)| ExitNode { peer: peer.map(NodeId), allow_lan }))
}

fn nets(texts: Vec<&str>) -> BTreeSet<IpNet> {
    texts.into_iter().map(|text| text.parse().unwrap()).collect()
}

/// One node a number: a message that holds two of one number depends on their order.
fn distinct(peers: Vec<PeerSpec>) -> Vec<PeerSpec> {
    let by_number: BTreeMap<u8, PeerSpec> = peers.into_iter().map(|peer| (peer.id, peer)).collect();
    by_number.into_values().collect()
}

fn peer() -> impl Strategy<Value = PeerSpec> {
    let routes = subsequence(ROUTES.to_vec(), 0..3);
    let path = prop::option::of((1_u8..4, any::<bool>()));
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.3), prop::bool::weighted(0.1));
    (1_u8..6, 1_u8..6, 1_u8..6, routes, flags, path).prop_map(|(id, key, address, routes, flags, path)| {
        let (jailed, guest, device) = flags;
        PeerSpec { id, key, address, routes, jailed, guest, device, path }
    })
}

fn rule() -> impl Strategy<Value = FilterRule> {
    let ports = select(vec![Ports { first: 0, last: 65_535 }, Ports { first: 22, last: 22 }]);
    let destination =
        (select(DESTINATIONS.to_vec()), ports).prop_map(|(ip, ports)| NetPortRange { ip: ip.to_owned(), ports });
    let protocols = select(vec![vec![], vec![6], vec![47], vec![17, 1]]);
    (subsequence(SOURCES.to_vec(), 1..3), vec(destination, 1..3), protocols).prop_map(
        |(sources, dst_ports, ip_proto)| FilterRule {
            src_ips: sources.into_iter().map(str::to_owned).collect(),
            dst_ports,
            ip_proto,
            ..FilterRule::default()
        },
    )
}

/// A kernel as it may be found: part of a plan carried out, then other people's commands.
pub(crate) fn kernel() -> impl Strategy<Value = ModelKernel> {
    let history = (world(), world(), any::<prop::sample::Index>(), any::<bool>());
    let lost = prop_oneof![2 => Just(Vec::new()), 1 => subsequence(Ability::ALL.to_vec(), 1..4)];
    (history, lost, vec(command(), 0..5)).prop_map(|((first, second, stop, empty), lost, commands)| {
        let mut kernel = ModelKernel::default();
        if !empty {
            converge(&mut kernel, &first.wish());
            let steps = diff(&second.wish(), &kernel.state).steps;
            for step in &steps[..stop.index(steps.len() + 1)] {
                kernel.carry_out(step).unwrap();
            }
        }
        lost.iter().for_each(|ability| kernel.lose(*ability));
        commands.iter().for_each(|command| command.run(&mut kernel));
        kernel
    })
}

/// Carries out the whole plan for a wish.
pub(crate) fn converge(kernel: &mut ModelKernel, wish: &Desired) {
    for step in diff(wish, &kernel.state).steps {
        kernel.carry_out(&step).unwrap();
    }
}

/// What somebody else may do to our objects.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    DeleteLink,
    LinkDown,
    RemovePeer(u8),
    AddPeer { key: u8, allowed_ip: &'static str },
    MovePeer { key: u8, port: u8 },
    FlushRoutes,
    AddRoute { destination: &'static str, target: RouteTarget },
    FlushRules,
    DuplicateRules,
    OlderRules,
    AddRule(u32),
    DeleteTable,
    AlterTable,
    AddAddress(u8),
    SetMark(u32),
    Litter,
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let allowed_ip = || select(vec!["10.1.0.0/16", "10.1.2.0/24", "100.64.0.2/32", "100.64.0.9/32", "0.0.0.0/0"]);
    let target = select(vec![RouteTarget::Unreachable, RouteTarget::Throw]);
    let route = (select(vec!["100.64.0.0/10", "10.0.0.0/8", "198.51.100.0/24"]), target);
    prop_oneof![
        Just(Command::DeleteLink),
        Just(Command::LinkDown),
        (1_u8..8).prop_map(Command::RemovePeer),
        ((1_u8..8), allowed_ip()).prop_map(|(key, allowed_ip)| Command::AddPeer { key, allowed_ip }),
        ((1_u8..6), (1_u8..4)).prop_map(|(key, port)| Command::MovePeer { key, port }),
        Just(Command::FlushRoutes),
        route.prop_map(|(destination, target)| Command::AddRoute { destination, target }),
        Just(Command::FlushRules),
        Just(Command::DuplicateRules),
        Just(Command::OlderRules),
        (own::RULE_FIRST..own::RULE_LAST).prop_map(Command::AddRule),
        Just(Command::DeleteTable),
        Just(Command::AlterTable),
        (0_u8..200).prop_map(Command::AddAddress),
        any::<u32>().prop_map(Command::SetMark),
        Just(Command::Litter),
    ]
}

impl Command {
    pub(crate) fn run(&self, kernel: &mut ModelKernel) {
        match self {
            Self::DeleteLink => kernel.delete_link(),
            Self::LinkDown => kernel.set_link_down(),
            other => other.change(&mut kernel.state),
        }
    }

    fn change(&self, state: &mut Observed) {
        let device = state.device.as_mut();
        match self {
            Self::DeleteLink | Self::LinkDown => {}
            Self::RemovePeer(key) => drop(device.map(|device| device.peers.remove(&public_key(*key)))),
            Self::AddPeer { key, allowed_ip } => {
                let Some(device) = device else { return };
                let allowed_ip = allowed_ip.parse().unwrap();
                for peer in device.peers.values_mut() {
                    peer.allowed_ips.remove(&allowed_ip);
                }
                let peer = device.peers.entry(public_key(*key)).or_insert_with(ObservedPeer::default);
                peer.allowed_ips.insert(allowed_ip);
            }
            Self::MovePeer { key, port } => {
                let Some(peer) = device.and_then(|device| device.peers.get_mut(&public_key(*key))) else { return };
                peer.endpoint = Some(endpoint(*port));
            }
            Self::FlushRoutes => state.routes.clear(),
            Self::AddRoute { destination, target } => {
                let destination = destination.parse().unwrap();
                state.routes.insert(Route { destination, target: *target, metric: 100 });
            }
            Self::FlushRules => state.rules.clear(),
            Self::DuplicateRules => state.rules.extend(state.rules.clone()),
            Self::OlderRules => state.rules = older_rules(),
            Self::AddRule(priority) => {
                let action = RuleAction::Ours;
                let packets = RulePackets::All;
                state.rules.push(Rule { priority: *priority, ipv6: priority % 2 == 0, packets, action });
            }
            Self::DeleteTable => {
                state.firewall = ObservedFirewall::Absent;
                state.flows_judged = false;
            }
            Self::AlterTable => {
                state.firewall = ObservedFirewall::Altered("a rule of somebody else's".to_owned());
                state.flows_judged = false;
            }
            Self::AddAddress(number) => {
                let Some(link) = &mut state.link else { return };
                link.addresses.extend(addresses(*number));
            }
            Self::SetMark(mark) => drop(device.map(|device| device.fwmark = *mark)),
            Self::Litter => state.strange.push("route 203.0.113.0/24 via 192.0.2.1 table 22337".to_owned()),
        }
    }
}

/// The rules of an earlier version of ours: two a family.
pub(crate) fn older_rules() -> Vec<Rule> {
    let marked = RulePackets::Marked { mark: 0x0500_0000, mask: 0x0f00_0000 };
    let of_family = |ipv6| {
        [
            Rule { priority: 5300, ipv6, packets: marked, action: RuleAction::Main },
            Rule { priority: 5310, ipv6, packets: RulePackets::All, action: RuleAction::Ours },
        ]
    };
    [false, true].into_iter().flat_map(of_family).collect()
}

/// The firewall that is in force, if it is one of ours.
pub(crate) fn firewall(kernel: &ModelKernel) -> Option<Arc<warren_core::plan::Firewall>> {
    match &kernel.state.firewall {
        ObservedFirewall::Table(firewall) => Some(Arc::clone(firewall)),
        ObservedFirewall::Absent | ObservedFirewall::Altered(_) => None,
    }
}
