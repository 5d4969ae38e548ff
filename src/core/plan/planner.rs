//! The wish, kept in step with what it is made of.
//!
//! In a network of 10,000 nodes some node changes all the time, and nearly always it is a peer with
//! addresses alone. Then two addresses and one peer of the wish differ, and only those are made anew. All
//! else that changes (our own node, the preferences, the packet filter, subnets) has the whole wish made
//! from scratch. The result is the same either way, which a property test holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::netmap::{Netmap, PacketFilter, Peer, Rejection};
use crate::types::{IpNet, NodeId, NodePublic, RESOLVER_ADDRESSES, in_overlay, is_default_route};

use super::classes::{Classes, Sources};
use super::desired::{Desired, Device, RouteTarget};
use super::exit_names;
use super::firewall::{ClassId, Firewall, Lacks, SourceNat};
use super::forwarding::Forwarding;
use super::from_map::{Accepted, accepted_peers, beside_exit, by_exit, elsewhere, routes, rules, wireguard_peer};
use super::own;
use super::prefs::{ExitNode, Host, Path, Paths, Prefs};
use super::served::{Served, widest};
use super::union::union;

/// With more changed peers than this it is cheaper to start from scratch.
const FEW: usize = 1_000;

/// What should be, and what of the map is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// Everything of ours that should exist.
    pub desired: Desired,
    /// What this host does not take from the map, and why. The map's own faults are in
    /// [`Netmap::rejections`].
    pub left_out: Vec<Rejection>,
}

/// Computes the whole wish. A node that is off, or has no address, wishes for nothing; but for one whose exit node is
/// wanted all the same, as where its key has run out: there nothing leaves.
///
/// Whoever does so again and again keeps a [`Planner`], which gives the same for less work.
pub fn desired(netmap: &Netmap, prefs: &Prefs, paths: &Paths, host: &Host) -> Derived {
    Planner::default().desired(netmap, prefs, paths, host)
}

/// Computes the wish as [`desired`] does, and remembers enough to do less the next time.
#[derive(Debug, Default)]
pub struct Planner {
    made: Option<Made>,
}

impl Planner {
    /// Computes the whole wish.
    pub fn desired(&mut self, netmap: &Netmap, prefs: &Prefs, paths: &Paths, host: &Host) -> Derived {
        let made = self.made.take();
        if !prefs.want_running || netmap.addresses().is_empty() {
            return prefs.exit_node.map_or_else(Derived::default, |exit| closed(exit, host));
        }
        let frame = Frame {
            prefs: prefs.clone(),
            host: host.clone(),
            addresses: netmap.addresses().iter().copied().collect(),
            approved: netmap.approved_routes(),
            filter: Arc::clone(netmap.filter()),
        };
        let updated = made.filter(|made| made.frame == frame).and_then(|made| made.updated(netmap, paths));
        let made = updated.unwrap_or_else(|| Made::from_scratch(frame, netmap, paths));
        let wish = made.wish.clone();
        self.made = Some(made);
        wish
    }
}

/// Nothing leaves, and there is no tunnel.
fn closed(exit: ExitNode, host: &Host) -> Derived {
    let firewall = Firewall { beside_exit: Some(beside_exit(exit, host)), ..Firewall::default() };
    let desired = Desired {
        routes: routes(&BTreeSet::new(), host, Some(exit), &[]),
        rules: rules(host, Some(exit)),
        firewall: Some(Arc::new(firewall)),
        device: None,
        forwarding: Forwarding::default(),
    };
    Derived { desired, left_out: Vec::new() }
}

/// What every part of the wish depends on.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    prefs: Prefs,
    host: Host,
    addresses: Vec<IpNet>,
    approved: BTreeSet<IpNet>,
    filter: Arc<PacketFilter>,
}

/// A wish, and what it was made of.
#[derive(Debug)]
struct Made {
    frame: Frame,
    peers: BTreeMap<NodeId, Arc<Peer>>,
    paths: BTreeMap<NodePublic, Path>,
    classes: Classes,
    /// How many sources each class has.
    uses: BTreeMap<ClassId, usize>,
    /// Whether packets of devices are passed on: then the addresses of all peers are served.
    is_gateway: bool,
    wish: Derived,
}

impl Made {
    fn from_scratch(frame: Frame, netmap: &Netmap, paths: &Paths) -> Self {
        let Frame { prefs, host, approved, .. } = &frame;
        let mut left_out = Vec::new();
        let accepted = accepted_peers(netmap, prefs, host, &mut left_out);
        let mut served = Served::of(netmap.addresses(), &prefs.advertise_routes, approved, &host.networks);
        let own: BTreeSet<IpNet> = netmap.addresses().iter().copied().collect();
        let asked_for = host.resolver_port.map(|port| exit_names::rules(netmap.filter(), &served, &own, port));
        let is_gateway = accepted.iter().any(|peer| peer.map.is_device());
        let carries = served.is_more_than(netmap.addresses()).then_some(match prefs.keep_sources {
            true => SourceNat::ToInternet,
            false => SourceNat::All,
        });
        let forwarding = Forwarding::of(&served, netmap.addresses(), host);
        if is_gateway {
            served.pass_on(accepted.iter().flat_map(|peer| peer.in_overlay()));
        }
        let mut classes = Classes::of(netmap.filter(), &asked_for.unwrap_or_default(), &served);
        let Sources { hosts, subnets } = match prefs.shields_up {
            true => Sources::default(),
            false => classes.sources(&accepted),
        };
        let mut uses = BTreeMap::new();
        for class in hosts.iter().map(|(_, class)| class).chain(subnets.iter().map(|(_, class)| class)) {
            *uses.entry(*class).or_default() += 1;
        }
        let routes = routes(netmap.addresses(), host, prefs.exit_node, &accepted);
        let tunnelled: BTreeSet<IpNet> =
            routes.iter().filter(|route| route.target == RouteTarget::Tunnel).map(|route| route.destination).collect();
        let (defaults, tunnelled): (Vec<IpNet>, Vec<IpNet>) = tunnelled.into_iter().partition(is_default_route);
        let thrown = routes.iter().filter(|route| route.target == RouteTarget::Throw).map(|route| route.destination);
        let thrown: Vec<IpNet> = thrown.collect();
        let firewall = Firewall {
            carries,
            served,
            tunnelled: widest(tunnelled.into_iter()),
            by_exit: by_exit(&defaults, &thrown),
            beside_exit: prefs.exit_node.map(|exit| beside_exit(exit, host)),
            classes: uses.keys().map(|id| (*id, classes.get(*id))).collect(),
            hosts: hosts.into_iter().collect(),
            subnets: subnets.into_iter().collect(),
            elsewhere: elsewhere(host),
            probes: host.probes,
            resolver_port: host.resolver_port,
            options: prefs.firewall,
            lacks: Lacks::default(),
        };
        let peer = |peer: &Accepted<'_>| {
            let key = peer.map.key();
            let allowed_ips = peer.prefixes.iter().chain(&peer.everything).copied().collect();
            (key, wireguard_peer(allowed_ips, paths.chosen.get(&key)))
        };
        let resolver = RESOLVER_ADDRESSES.map(IpNet::from).into_iter().filter(|_| host.resolver_port.is_some());
        let device = Device {
            private_key: host.key.clone(),
            listen_port: prefs.listen_port,
            fwmark: own::MARK_BYPASS,
            mtu: own::MTU,
            addresses: netmap.addresses().iter().copied().chain(resolver).collect(),
            peers: accepted.iter().map(peer).collect(),
        };
        let rules = rules(host, prefs.exit_node);
        let desired = Desired { routes, device: Some(device), rules, firewall: Some(Arc::new(firewall)), forwarding };
        let wish = Derived { desired, left_out };
        let (peers, paths) = (netmap.peer_map().clone(), paths.chosen.clone());
        Self { frame, peers, paths, classes, uses, is_gateway, wish }
    }

    /// Brings the wish up to date, if all that changed is peers with addresses alone, and paths.
    fn updated(mut self, netmap: &Netmap, paths: &Paths) -> Option<Self> {
        let mut changed = Vec::new();
        for (id, before, after) in union(&self.peers, netmap.peer_map()) {
            let is_same = before.zip(after).is_some_and(|(before, after)| Arc::ptr_eq(before, after));
            if !is_same {
                changed.push((*id, before.cloned(), after.cloned()));
            }
        }
        let moved = union(&self.paths, &paths.chosen).filter(|(_, before, after)| before != after);
        let moved: Vec<NodePublic> = moved.map(|(key, _, _)| *key).collect();
        if changed.len() + moved.len() > FEW {
            return None;
        }
        let differing = changed.iter().map(|(_, before, after)| (before.as_deref(), after.as_deref()));
        let differing: Vec<_> = differing.filter(|(before, after)| differ(*before, *after)).collect();
        if !differing.is_empty() {
            self.replace_peers(&differing, paths)?;
        }
        for key in moved {
            self.replace_path(key, paths.chosen.get(&key));
        }
        for (id, _, after) in changed {
            match after {
                Some(after) => self.peers.insert(id, after),
                None => self.peers.remove(&id),
            };
        }
        Some(self)
    }

    /// All that goes, goes first: keys and addresses may pass from one peer to another.
    fn replace_peers(&mut self, peers: &[(Option<&Peer>, Option<&Peer>)], paths: &Paths) -> Option<()> {
        let desired = &mut self.wish.desired;
        let (Some(device), Some(firewall)) = (&mut desired.device, &mut desired.firewall) else { return None };
        let holds_overlay = |prefix: &IpNet| in_overlay(prefix.addr());
        let are_plain =
            peers.iter().all(|(before, after)| [before, after].into_iter().flatten().all(|peer| is_plain(peer)));
        let Host { networks, routes, .. } = &self.frame.host;
        let overlaps = firewall.subnets.keys().chain(networks).chain(routes).any(holds_overlay);
        if !are_plain || overlaps || self.is_gateway {
            return None;
        }
        let firewall = Arc::make_mut(firewall);
        for before in peers.iter().filter_map(|(before, _)| *before) {
            device.peers.remove(&before.key());
            for class in before.addresses.iter().filter_map(|address| firewall.hosts.remove(&address.addr())) {
                let uses = self.uses.entry(class).or_default();
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.uses.remove(&class);
                    firewall.classes.remove(&class);
                }
            }
        }
        for after in peers.iter().filter_map(|(_, after)| *after) {
            let allowed_ips = after.addresses.iter().copied().collect();
            device.peers.insert(after.key(), wireguard_peer(allowed_ips, paths.chosen.get(&after.key())));
            for address in after.addresses.iter().filter(|_| !self.frame.prefs.shields_up) {
                let Some(class) = self.classes.source(address.addr(), after) else { continue };
                firewall.hosts.insert(address.addr(), class);
                firewall.classes.entry(class).or_insert_with(|| self.classes.get(class));
                *self.uses.entry(class).or_default() += 1;
            }
        }
        Some(())
    }

    fn replace_path(&mut self, key: NodePublic, path: Option<&Path>) {
        match path {
            Some(path) => self.paths.insert(key, *path),
            None => self.paths.remove(&key),
        };
        if let Some(peer) = self.wish.desired.device.as_mut().and_then(|device| device.peers.get_mut(&key)) {
            *peer = wireguard_peer(peer.allowed_ips.clone(), path);
        }
    }
}

/// Whether a peer is addresses alone, so that it touches neither routes nor other peers' sources.
fn is_plain(peer: &Peer) -> bool {
    peer.routes.is_empty() && peer.default_routes.is_empty() && !peer.is_device()
}

/// Whether two states of a peer differ in anything that the wish is made of. Most changes do not: a peer comes
/// online, or has new endpoints.
fn differ(before: Option<&Peer>, after: Option<&Peer>) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return true };
    before.key() != after.key()
        || before.addresses != after.addresses
        || before.routes != after.routes
        || before.default_routes != after.default_routes
        || before.node.name != after.node.name
        || before.may_open() != after.may_open()
        || before.is_device() != after.is_device()
        || !before.node.cap_map.keys().eq(after.node.cap_map.keys())
}
