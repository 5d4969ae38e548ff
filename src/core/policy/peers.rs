//! Whom a node sees, and which routes it may use through whom.
//!
//! Two nodes see each other when a rule lets either reach the other, or anything behind the other. A route is
//! shown where a rule opens an address of it to the viewer, where packets from behind it may reach the viewer,
//! and to those who serve the same route themselves. One node carries a route for a viewer: the one that was
//! chosen among all, unless a rule steers the viewer through others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::types::{IpNet, Ipv4Net, NodeId, UserId};
use crate::wire::control::CapMap;

use super::compile::{Compiled, Flow};
use super::devices::Seen;
use super::index::{NodeEntry, SelectorId};
use super::nodeset::NodeSet;
use super::selector::{Autogroup, Selector};
use super::topology::{is_subnet, overlaps};

/// Another node as one node is to see it.
#[derive(Clone, Debug)]
pub struct VisiblePeer {
    pub id: NodeId,
    /// Its addresses, as far as the viewer can use them.
    pub addresses: Vec<IpAddr>,
    /// The subnet routes it carries for the viewer.
    pub subnets: Vec<IpNet>,
    /// The exit routes that the viewer may send internet traffic to.
    pub exit_routes: Vec<IpNet>,
    /// What others are told of the peer, for its `CapMap` as a peer.
    pub capabilities: CapMap,
}

impl VisiblePeer {
    /// Addresses and routes: the `AllowedIPs` of the wire form.
    pub fn allowed_ips(&self) -> impl Iterator<Item = IpNet> + '_ {
        let addresses = self.addresses.iter().map(|address| IpNet::from(*address));
        addresses.chain(self.subnets.iter().copied()).chain(self.exit_routes.iter().copied())
    }
}

/// What a node sees: one value for all nodes that see the same, though each of them leaves itself out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct View {
    /// Whom, by number. The viewer is among them where others like it are.
    pub peers: Vec<NodeId>,
    /// Whether the viewers have no use for IPv4 addresses.
    pub without_ipv4: bool,
    /// What the routers among the peers carry for the viewers; perhaps nothing.
    pub routers: BTreeMap<NodeId, Carried>,
}

/// The routes that one node carries for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carried {
    pub subnets: Vec<IpNet>,
    /// Exit routes.
    pub exits: Vec<IpNet>,
}

/// What a node is to the policy. Nodes of one kind see the same, and the same nodes see them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKind {
    selected: Vec<SelectorId>,
    behind: Vec<SelectorId>,
    postures: Vec<usize>,
    /// Counts only where a rule is about each user's own nodes.
    owner: Option<UserId>,
    routes: Vec<IpNet>,
    without_ipv4: bool,
    /// The devices that it stands before.
    devices: Vec<NodeId>,
}

impl Compiled {
    /// What the node is to the policy.
    pub fn kind(&self, id: NodeId) -> Option<NodeKind> {
        let place = self.place_of(id)?;
        let to_self = !self.roles.to_self().is_empty();
        Some(NodeKind {
            selected: place.selected.clone(),
            behind: place.behind.clone(),
            postures: place.postures.clone(),
            owner: Some(place.node.user).filter(|_| to_self && !place.node.is_tagged()),
            routes: place.routes.clone(),
            without_ipv4: lacks_ipv4(place),
            devices: self.devices_behind(id).map(|(_, device)| device.id).collect(),
        })
    }

    /// What nodes of the node's kind see.
    pub fn view(&self, id: NodeId) -> View {
        let Some((slot, viewer)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) else {
            return View::default();
        };
        let Seen { visible, passed_on } = self.seen(slot, viewer);
        let mut carried = self.carried(slot, &visible);
        carried.extend(passed_on);
        let exits = self.open_exits(slot);
        let places = || visible.iter().filter_map(|peer| Some((peer, self.index.place(peer)?)));
        let mut peers: Vec<_> = places().map(|(_, place)| place.id).collect();
        peers.sort_unstable();
        let carries = |slot| carried_through(slot, &carried).next().is_some();
        let routers = places().filter(|(slot, place)| !place.routes.is_empty() || carries(*slot));
        let routers = routers.map(|(peer, place)| (place.id, carried_by(peer, place, &carried, &exits)));
        View { peers, without_ipv4: lacks_ipv4(viewer), routers: routers.collect() }
    }

    /// The nodes that the node sees, with what it may use of them, by number.
    pub fn peers(&self, id: NodeId) -> Vec<VisiblePeer> {
        let Some((slot, viewer)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) else {
            return Vec::new();
        };
        let Seen { mut visible, passed_on } = self.seen(slot, viewer);
        visible.remove(slot);
        let mut carried = self.carried(slot, &visible);
        carried.extend(passed_on);
        let exits = self.open_exits(slot);
        let peers = visible.iter().filter_map(|peer| Some((peer, self.index.place(peer)?)));
        let mut peers: Vec<_> = peers
            .map(|(peer, place)| {
                let Carried { subnets, exits } = carried_by(peer, place, &carried, &exits);
                let (addresses, capabilities) = (usable(viewer, place), peer_capabilities(place));
                VisiblePeer { id: place.id, addresses, subnets, exit_routes: exits, capabilities }
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }

    /// Whether two nodes see each other.
    pub fn sees(&self, viewer: NodeId, peer: NodeId) -> bool {
        let slots = self.index.slot(viewer).zip(self.index.slot(peer));
        let sees = |viewer: usize, peer: usize| match self.index.devices.is_empty() {
            true => self.connects(viewer, peer),
            false => self.index.place(viewer).is_some_and(|place| self.seen(viewer, place).visible.contains(peer)),
        };
        slots.is_some_and(|(viewer, peer)| viewer != peer && sees(viewer, peer))
    }

    /// Whether `peer` is among those that [`Compiled::related`] finds, without finding them.
    fn connects(&self, slot: usize, peer: usize) -> bool {
        let place = |slot: usize| self.index.place(slot).map(|place| &place.node).filter(|node| !node.is_tagged());
        let is_own = place(slot).zip(place(peer)).is_some_and(|(a, b)| a.user == b.user);
        let to_self = |flow: &Flow| {
            let reach = &self.sources_of(flow).reach;
            reach.contains(slot) || reach.contains(peer)
        };
        self.flows_from(slot).any(|flow| flow.concerned.contains(peer))
            || self.flows_to(slot).any(|flow| self.sources_of(flow).reach.contains(peer))
            || is_own && self.flows_to_self().any(to_self)
    }

    /// Whom a node shares a rule with; itself as well where the others of its kind do.
    pub(super) fn related(&self, slot: usize, viewer: &NodeEntry) -> NodeSet {
        let mut visible = NodeSet::default();
        let own = self.index.owned.get(&viewer.node.user).filter(|_| !viewer.node.is_tagged());
        let own: Vec<usize> = own.into_iter().flat_map(NodeSet::iter).collect();
        self.flows_to(slot).for_each(|flow| visible.unite(&self.sources_of(flow).reach));
        self.flows_from(slot).for_each(|flow| visible.unite(&flow.concerned));
        for flow in self.flows_to_self().filter(|_| !own.is_empty()) {
            let reach = &self.sources_of(flow).reach;
            let is_source = reach.contains(slot);
            own.iter().filter(|own| is_source || reach.contains(**own)).for_each(|own| visible.insert(*own));
        }
        visible
    }

    /// The subnet routes that the viewer may use, each with the one node that carries it.
    fn carried(&self, slot: usize, visible: &NodeSet) -> BTreeSet<(usize, IpNet)> {
        let outward: Vec<&Flow> = self.flows_from(slot).filter(|flow| self.opens_addresses(flow)).collect();
        let inward = self.flows_to(slot).map(|flow| self.sources_of(flow));
        let inward: Vec<_> = inward.filter(|sources| sources.has_routes()).collect();
        let mut carried = BTreeSet::new();
        for (route, carriers) in &self.index.routes {
            let chosen = self.chosen(route, carriers).filter(|chosen| visible.contains(*chosen));
            let carrier = if carriers.contains(slot) {
                chosen
            } else {
                let open = self.open_carriers(&outward, route, carriers);
                let comes_from = || inward.iter().any(|sources| sources.admit_route(route));
                let first = || open.iter().min_by_key(|slot| self.index.place(*slot).map(|place| place.id));
                chosen.filter(|chosen| open.contains(*chosen) || comes_from()).or_else(first)
            };
            carried.extend(carrier.map(|carrier| (carrier, *route)));
        }
        carried
    }

    /// Whether a rule is about addresses that are not nodes.
    fn opens_addresses(&self, flow: &Flow) -> bool {
        let is_address = |target: &usize| {
            matches!(self.index.selector(*target), Selector::Any | Selector::Net(_) | Selector::Set(_))
        };
        flow.targets.iter().any(is_address)
    }

    /// The carriers through which some rules open an address of the route.
    fn open_carriers(&self, rules: &[&Flow], route: &IpNet, carriers: &NodeSet) -> NodeSet {
        let mut open = NodeSet::default();
        for flow in rules {
            let covers = |target: &usize| match self.index.selector(*target) {
                Selector::Any => flow.via.is_none(),
                Selector::Net(_)
                | Selector::Set(_)
                | Selector::User(_)
                | Selector::Domain(_)
                | Selector::Group(_)
                | Selector::Tag(_)
                | Selector::Auto(_) => self.index.prefixes(*target).iter().any(|net| overlaps(net, route)),
            };
            if flow.targets.iter().any(covers) {
                open.unite(&flow.concerned.intersection(carriers));
            }
        }
        open
    }

    /// The carrier that was chosen for everybody; of several the one that came first.
    fn chosen(&self, route: &IpNet, carriers: &NodeSet) -> Option<usize> {
        let places = carriers.iter().filter_map(|slot| Some((slot, self.index.place(slot)?)));
        let chosen = places.filter(|(_, place)| place.node.primary.contains(route));
        chosen.min_by_key(|(_, place)| place.id).map(|(slot, _)| slot)
    }

    /// The exit nodes that a rule opens the internet through.
    fn open_exits(&self, slot: usize) -> NodeSet {
        let mut open = NodeSet::default();
        for flow in self.flows_from(slot) {
            let is_internet = |target: &usize| match self.index.selector(*target) {
                Selector::Any => flow.via.is_none(),
                selector @ (Selector::Net(_)
                | Selector::Set(_)
                | Selector::User(_)
                | Selector::Domain(_)
                | Selector::Group(_)
                | Selector::Tag(_)
                | Selector::Auto(_)) => *selector == Selector::Auto(Autogroup::Internet),
            };
            if flow.targets.iter().any(is_internet) {
                open.unite(&flow.concerned.intersection(&self.index.exits));
            }
        }
        open
    }
}

fn carried_by(slot: usize, place: &NodeEntry, carried: &BTreeSet<(usize, IpNet)>, exits: &NodeSet) -> Carried {
    let is_exit = |route: &&IpNet| !is_subnet(route) && exits.contains(slot);
    Carried {
        subnets: carried_through(slot, carried).collect(),
        exits: place.routes.iter().filter(is_exit).copied().collect(),
    }
}

/// The routes of one carrier.
fn carried_through(slot: usize, carried: &BTreeSet<(usize, IpNet)>) -> impl Iterator<Item = IpNet> + '_ {
    let from = (slot, IpNet::V4(Ipv4Net::default()));
    carried.range(from..).take_while(move |(carrier, _)| *carrier == slot).map(|(_, net)| *net)
}

fn lacks_ipv4(place: &NodeEntry) -> bool {
    !place.addresses.iter().any(IpAddr::is_ipv4)
}

/// A viewer without an IPv4 address has no use for those of others.
fn usable(viewer: &NodeEntry, peer: &NodeEntry) -> Vec<IpAddr> {
    let without_ipv4 = lacks_ipv4(viewer);
    peer.addresses.iter().filter(|address| address.is_ipv6() || !without_ipv4).copied().collect()
}

/// Exit nodes are suggested to those who see them.
fn peer_capabilities(peer: &NodeEntry) -> CapMap {
    let suggested = peer.is_exit().then(|| ("suggest-exit-node".to_owned(), None));
    suggested.into_iter().collect()
}
