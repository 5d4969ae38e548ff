//! The whole wish, computed from scratch.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::netmap::{Netmap, Peer as MapPeer, Reason, Rejection, overlap};
use crate::types::{IpNet, Limit, OVERLAY_V4, OVERLAY_V6, in_overlay};

use super::allowance::Allowance;
use super::own;
use super::planner::Planner;
use super::prefs::{Host, Path, Paths, Prefs};
use super::served::widest;
use super::wish::{Desired, EndpointWish, Peer, Route, RouteTarget, Rule, RuleAction, RulePackets};

/// Subnets of all peers together; each is a kernel route and an allowed IP.
const ROUTES: Limit = Limit::new("subnet routes of peers", 16_384);

/// The metric of routes that carry packets. Not 0, which IPv6 turns into another number.
const METRIC: u32 = 100;
/// The metric of the routes that refuse what no other route takes.
const METRIC_LAST: u32 = 10_000;

/// What should be, and what of the map is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Everything of ours that should exist.
    pub desired: Desired,
    /// What this host does not take from the map, and why. The map's own faults are in
    /// [`Netmap::rejections`].
    pub left_out: Vec<Rejection>,
}

/// Computes the whole wish. A node that is off, or has no address, wishes for nothing.
///
/// Whoever does so again and again keeps a [`Planner`], which gives the same for less work.
pub fn desired(netmap: &Netmap, prefs: &Prefs, paths: &Paths, host: &Host) -> Wish {
    Planner::default().desired(netmap, prefs, paths, host)
}

/// A peer with the prefixes that this host takes from it.
pub(super) struct Accepted<'a> {
    pub(super) map: &'a MapPeer,
    pub(super) prefixes: Vec<IpNet>,
}

impl Accepted<'_> {
    /// The subnets, the overlay addresses left aside.
    pub(super) fn routes(&self) -> impl Iterator<Item = &IpNet> {
        self.prefixes.iter().filter(|prefix| !in_overlay(prefix.addr()))
    }
}

/// A peer as WireGuard should have it.
pub(super) fn wireguard_peer(allowed_ips: BTreeSet<IpNet>, path: Option<&Path>) -> Arc<Peer> {
    let endpoint = match path {
        None => EndpointWish::Leave,
        Some(path) if path.moves => EndpointWish::Move(path.endpoint),
        Some(path) => EndpointWish::Initial(path.endpoint),
    };
    Arc::new(Peer { allowed_ips, endpoint, keepalive: path.map_or(0, |path| path.keepalive) })
}

/// The map says what a peer may carry; here the host has its say.
pub(super) fn accepted_peers<'a>(
    netmap: &'a Netmap,
    prefs: &Prefs,
    host: &Host,
    left_out: &mut Vec<Rejection>,
) -> Vec<Accepted<'a>> {
    let clash = |prefix: &IpNet| host.networks.iter().find(|network| overlap(network, prefix)).map(IpNet::trunc);
    let addresses_may_clash = host.networks.iter().any(|network| in_overlay(network.addr()));
    let is_kept = |route: &'a IpNet| host.kept.iter().any(|kept| *route == IpNet::from(*kept)).then_some(route);
    let mut allowance = Allowance::default();
    let mut routes = 0;
    let mut accepted = Vec::with_capacity(netmap.peers().len());
    for peer in netmap.peers() {
        let mut prefixes = Vec::with_capacity(peer.addresses.len());
        for address in &peer.addresses {
            match addresses_may_clash.then(|| clash(address)).flatten() {
                Some(network) => left_out.push(peer.rejection("address", *address, Reason::HostNetwork(network))),
                None => prefixes.push(*address),
            }
        }
        for route in peer.routes.iter().filter(|_| prefs.accept_routes) {
            routes += 1;
            if let Some(network) = clash(route) {
                left_out.push(peer.rejection("route", *route, Reason::HostNetwork(network)));
            } else if let Err(error) = ROUTES.check(routes) {
                left_out.push(peer.rejection("route", *route, Reason::TooMany(error)));
            } else if let Err(reason) = allowance.take(route) {
                left_out.push(peer.rejection("route", *route, reason));
            } else if let Some(kept) = is_kept(route) {
                left_out.push(peer.rejection("route", *kept, Reason::InUse));
            } else {
                let within = kept_in(route, host).map(|kept| peer.rejection("address", kept, Reason::InUse));
                left_out.extend(within);
                prefixes.push(*route);
            }
        }
        for route in &peer.default_routes {
            left_out.push(peer.rejection("default route", *route, Reason::DefaultRoute));
        }
        accepted.push(Accepted { map: peer, prefixes });
    }
    accepted
}

/// The addresses within a route that stay the host's.
fn kept_in<'a>(route: &'a IpNet, host: &'a Host) -> impl Iterator<Item = IpNet> + 'a {
    host.kept.iter().filter(|kept| route.contains(*kept)).map(|kept| IpNet::from(*kept))
}

/// Our routing table.
///
/// The overlay is one route per family and not one per peer: WireGuard itself refuses with an ICMP error
/// what no peer owns, so the table stays the same however peers come and go. Beneath it lies an
/// unreachable route, so that overlay packets do not leak to the underlay while the link is missing. A
/// network of the host's own that lies inside the overlay range stays the host's. Where we have no address of
/// a family, its packets would leave with a foreign source and be refused, so they do not enter the tunnel.
pub(super) fn routes(addresses: &BTreeSet<IpNet>, host: &Host, peers: &[Accepted<'_>]) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    let is_ours = |prefix: &IpNet| addresses.iter().any(|address| address.addr().is_ipv4() == prefix.addr().is_ipv4());
    for overlay in [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)] {
        routes.insert(Route { destination: overlay, target: RouteTarget::Unreachable, metric: METRIC_LAST });
        if is_ours(&overlay) {
            routes.insert(Route { destination: overlay, target: RouteTarget::Tunnel, metric: METRIC });
        }
    }
    for network in host.networks.iter().filter(|network| in_overlay(network.addr())) {
        routes.insert(Route { destination: network.trunc(), target: RouteTarget::Throw, metric: METRIC });
    }
    for destination in peers.iter().flat_map(Accepted::routes).filter(|route| is_ours(route)) {
        for kept in kept_in(destination, host) {
            routes.insert(Route { destination: kept, target: RouteTarget::Throw, metric: METRIC });
        }
        routes.insert(Route { destination: *destination, target: RouteTarget::Tunnel, metric: METRIC });
    }
    routes
}

/// The host's own networks within the overlay's ranges, the widest of those that lie within each other.
pub(super) fn elsewhere(host: &Host) -> BTreeSet<IpNet> {
    widest(host.networks.iter().filter(|net| in_overlay(net.addr())).map(IpNet::trunc))
}

/// One rule a family, for all packets but our own outer ones. Those go on to whatever table the host has for them, and
/// cannot come back to ours where that one has no route.
pub(super) fn rules() -> BTreeSet<Rule> {
    let packets = RulePackets::NotMarked { mark: own::MARK_BYPASS, mask: u32::MAX };
    let rule = |ipv6| Rule { priority: own::RULE_OVERLAY, ipv6, packets, action: RuleAction::Ours };
    [false, true].map(rule).into()
}
