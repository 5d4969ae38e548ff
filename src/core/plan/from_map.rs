//! What of the map becomes peers, routes and rules of this host.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::netmap::{Netmap, Peer, Reason, Rejection, overlap};
use crate::types::{EXIT_ROUTES, IpNet, Limit, OVERLAY_V4, OVERLAY_V6, in_overlay};

use super::allowance::Allowance;
use super::allowed_ips::AllowedIps;
use super::carve::carve;
use super::desired::{DesiredEndpoint, PeerConfig, Route, RouteTarget, Rule, RuleAction, RulePackets};
use super::own;
use super::prefs::{ExitNode, Host, Path, Prefs};
use super::served::widest;

/// Subnets of all peers together; each is a kernel route and an allowed IP.
const ROUTES: Limit = Limit::new("subnet routes of peers", 16_384);

/// Prefixes that one subnet of a peer may be cut into: a host with a hundred bridges in 10.0.0.0/8 needs some hundreds.
const PIECES: usize = 1_024;

/// Addresses of the host's own that have a rule: each is asked of every packet.
const KNOWN_BY: usize = 256;

/// The metric of routes that carry packets. Not 0, which IPv6 turns into another number.
const METRIC: u32 = 100;
/// The metric of the routes that refuse what no other route takes.
const METRIC_LAST: u32 = 10_000;

/// A peer with the prefixes that this host takes from it.
pub(super) struct Accepted<'a> {
    pub(super) map: &'a Peer,
    /// What it may send from and is sent to: its addresses, and its subnets without what of them is this host's own.
    pub(super) prefixes: Vec<IpNet>,
    /// The subnets whole.
    pub(super) subnets: Vec<IpNet>,
    /// Everything, where it is our exit node. What it sends from there has no rights but to answer.
    pub(super) everything: Vec<IpNet>,
}

impl Accepted<'_> {
    /// Its own addresses, and those of devices behind it.
    pub(super) fn in_overlay(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.iter().copied().filter(in_overlay_alone)
    }
}

/// A peer as WireGuard should have it.
pub(super) fn wireguard_peer(allowed_ips: AllowedIps, path: Option<&Path>) -> Arc<PeerConfig> {
    let endpoint = match path {
        None => DesiredEndpoint::Leave,
        Some(path) if path.moves => DesiredEndpoint::Move(path.endpoint),
        Some(path) => DesiredEndpoint::Initial(path.endpoint),
    };
    Arc::new(PeerConfig { allowed_ips, endpoint, keepalive: path.map_or(0, |path| path.keepalive) })
}

/// The map says what a peer may carry; here the host has its say.
pub(super) fn accepted_peers<'a>(
    netmap: &'a Netmap,
    prefs: &Prefs,
    host: &Host,
    left_out: &mut Vec<Rejection>,
) -> Vec<Accepted<'a>> {
    let local = Local::of(host);
    // Devices behind a peer are of the overlay as it is itself, and asked of nobody.
    let subnets_of =
        |peer: &'a Peer| peer.routes.iter().filter(|route| prefs.accept_routes && !in_overlay_alone(route));
    let all: BTreeSet<IpNet> = netmap.peers().flat_map(|peer| subnets_of(peer)).copied().collect();
    let is_kept = |route: &IpNet| host.kept.iter().any(|kept| *route == IpNet::from(*kept));
    let mut allowance = Allowance::default();
    let mut routes = 0;
    let mut accepted = Vec::with_capacity(netmap.peers().len());
    for peer in netmap.peers() {
        let mut prefixes = Vec::with_capacity(peer.addresses.len());
        let mut subnets = Vec::new();
        for address in peer.addresses.iter().chain(peer.devices()) {
            match local.in_overlay.iter().find(|network| network.contains(address)) {
                Some(network) => left_out.push(peer.rejection("address", *address, Reason::HostNetwork(*network))),
                None => prefixes.push(*address),
            }
        }
        for route in subnets_of(peer) {
            let taken = local.without(route, &all).and_then(|pieces| {
                routes += pieces.len();
                ROUTES.check(routes).map_err(Reason::TooMany)?;
                allowance.take(route)?;
                if is_kept(route) { Err(Reason::InUse) } else { Ok(pieces) }
            });
            match taken {
                Ok(pieces) => {
                    left_out.extend(kept_in(route, host).map(|kept| peer.rejection("address", kept, Reason::InUse)));
                    prefixes.extend(pieces);
                    subnets.push(*route);
                }
                Err(reason) => left_out.push(peer.rejection("route", *route, reason)),
            }
        }
        let is_exit = prefs.exit_node.is_some_and(|exit| exit.peer == Some(peer.node.id));
        let (everything, others): (Vec<IpNet>, Vec<IpNet>) = peer.default_routes.iter().partition(|_| is_exit);
        left_out.extend(others.into_iter().map(|route| peer.rejection("default route", route, Reason::DefaultRoute)));
        accepted.push(Accepted { map: peer, prefixes, subnets, everything });
    }
    accepted
}

/// Whether a route leads to a single node.
fn in_overlay_alone(route: &IpNet) -> bool {
    route.prefix_len() == route.max_prefix_len() && in_overlay(route.addr())
}

/// The addresses within a route that stay the host's.
fn kept_in<'a>(route: &'a IpNet, host: &'a Host) -> impl Iterator<Item = IpNet> + 'a {
    host.kept.iter().filter(|kept| route.contains(*kept)).map(|kept| IpNet::from(*kept))
}

/// What of the address space is this host's own.
struct Local<'a> {
    host: &'a Host,
    /// What of it holds addresses of the overlay.
    in_overlay: Vec<IpNet>,
}

impl<'a> Local<'a> {
    fn of(host: &'a Host) -> Self {
        let attached = host.networks.iter().filter(|network| [V4, V6].iter().any(|range| overlap(range, network)));
        let routed = host.routes.iter().filter(|route| is_within_overlay(route));
        let in_overlay = attached.chain(routed).map(IpNet::trunc).collect();
        Self { host, in_overlay }
    }

    /// What a peer may carry of a subnet: what lies in it and is this host's own is left out of it. So are then the
    /// narrower ones of peers, or a piece of this one might be a piece of theirs.
    fn without(&self, subnet: &IpNet, all: &BTreeSet<IpNet>) -> Result<Vec<IpNet>, Reason> {
        if let Some(network) = self.host.networks.iter().find(|network| network.contains(subnet)) {
            return Err(Reason::HostNetwork(network.trunc()));
        }
        if let Some(route) = self.host.routes.get(subnet) {
            return Err(Reason::HostRoute(*route));
        }
        let mut holes = self.holes(subnet);
        if !holes.is_empty() {
            // What lies in a prefix follows it.
            let narrower = all.range(*subnet..).take_while(|other| subnet.contains(*other));
            holes.extend(narrower.filter(|other| *other != subnet));
        }
        carve(*subnet, &holes, PIECES).ok_or(Reason::TooManyHoles)
    }

    /// What of this host's own lies in a prefix.
    fn holes(&self, around: &IpNet) -> Vec<IpNet> {
        let own = self.host.networks.iter().map(IpNet::trunc).chain(self.host.routes.iter().copied());
        own.filter(|own| around.contains(own) && own != around).collect()
    }
}

const V4: IpNet = IpNet::V4(OVERLAY_V4);
const V6: IpNet = IpNet::V6(OVERLAY_V6);

/// Whether a network is a part of the overlay's ranges. One as wide is another's use of the whole, which cannot be.
fn is_within_overlay(network: &IpNet) -> bool {
    [V4, V6].iter().any(|range| range.contains(network) && range != network)
}

/// Our routing table.
///
/// The overlay is one route per family and not one per peer: WireGuard itself refuses with an ICMP error
/// what no peer owns, so the table stays the same however peers come and go. Beneath it lies an
/// unreachable route, so that overlay packets do not leak to the underlay while the link is missing. A
/// network of the host's own that lies inside the overlay range, or inside a peer's subnet, stays the host's. Where we have no address of
/// a family, its packets would leave with a foreign source and be refused, so they do not enter the tunnel.
///
/// With an exit node, so is everything. The way into the tunnel stays whoever is behind it, and nobody: then WireGuard
/// refuses. What the host is attached to is always thrown, or the kernel would not answer its router's questions for
/// our address (ARP) once it checks the ways back; the firewall says what of it is reached.
pub(super) fn routes(
    addresses: &BTreeSet<IpNet>,
    host: &Host,
    exit: Option<ExitNode>,
    peers: &[Accepted<'_>],
) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    let is_ours = |prefix: &IpNet| addresses.iter().any(|address| address.addr().is_ipv4() == prefix.addr().is_ipv4());
    for whole in [V4, V6].into_iter().chain(EXIT_ROUTES.into_iter().filter(|_| exit.is_some())) {
        routes.insert(Route { destination: whole, target: RouteTarget::Unreachable, metric: METRIC_LAST });
        if is_ours(&whole) {
            routes.insert(Route { destination: whole, target: RouteTarget::Tunnel, metric: METRIC });
        }
    }
    let local = Local::of(host);
    let mut throws: BTreeSet<IpNet> = elsewhere(host);
    throws.extend(host.networks.iter().map(IpNet::trunc).filter(|_| exit.is_some()));
    for destination in peers.iter().flat_map(|peer| &peer.subnets).filter(|route| is_ours(route)) {
        throws.extend(kept_in(destination, host));
        routes.insert(Route { destination: *destination, target: RouteTarget::Tunnel, metric: METRIC });
        throws.extend(local.holes(destination));
    }
    let throw = |destination| Route { destination, target: RouteTarget::Throw, metric: METRIC };
    routes.extend(throws.into_iter().map(throw));
    routes
}

/// The host's own networks within the overlay's ranges, the widest of those that lie within each other.
pub(super) fn elsewhere(host: &Host) -> BTreeSet<IpNet> {
    let attached = host.networks.iter().filter(|network| in_overlay(network.addr()));
    let routed = host.routes.iter().filter(|route| is_within_overlay(route));
    widest(attached.chain(routed).map(IpNet::trunc))
}

/// What of everything leads into the tunnel and is not thrown. Nothing where that is too many pieces: then errors
/// about what goes there are not heard.
pub(super) fn by_exit(defaults: &[IpNet], thrown: &[IpNet]) -> BTreeSet<IpNet> {
    defaults.iter().flat_map(|all| carve(*all, thrown, PIECES).unwrap_or_default()).collect()
}

/// The networks that are reached beside an exit node: the host's guests, and where it is wished what it is attached to.
pub(super) fn beside_exit(exit: ExitNode, host: &Host) -> BTreeSet<IpNet> {
    let beside = if exit.allow_lan { &host.networks } else { &host.guests };
    widest(beside.iter().map(IpNet::trunc))
}

/// One rule a family, for all packets but our own outer ones. Those go on to whatever table the host has for them, and
/// cannot come back to ours where that one has no route.
///
/// With an exit node, what is sent from an address that others know this host by goes on there as well: answers to what
/// came in, for which the kernel looks for a way before any firewall could mark them. Of IPv4 it asks the same rules, with
/// that address as the sender's, whether what comes in comes by its way back (`rp_filter`), so that it is right without
/// any setting of the kernel. What of it may leave is the firewall's to say.
pub(super) fn rules(host: &Host, exit: Option<ExitNode>) -> BTreeSet<Rule> {
    let packets = RulePackets::NotMarked { mark: own::MARK_BYPASS, mask: u32::MAX };
    let rule = |ipv6| Rule { priority: own::RULE_OVERLAY, ipv6, packets, action: RuleAction::Ours };
    let mut rules: BTreeSet<Rule> = [false, true].map(rule).into();
    let known_by = host.networks.difference(&host.guests).map(IpNet::addr).filter(|address| !in_overlay(*address));
    for address in known_by.filter(|_| exit.is_some()).take(KNOWN_BY) {
        let of = |priority, packets, action| Rule { priority, ipv6: address.is_ipv6(), packets, action };
        rules.insert(of(own::RULE_FROM_HOST, RulePackets::From(address), RuleAction::Beyond));
        rules.insert(of(own::RULE_BEYOND, RulePackets::All, RuleAction::Nothing));
    }
    rules
}
