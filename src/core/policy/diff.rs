//! What changes between two policies on one network: who gains and who loses access to what.
//!
//! Nodes that are the same to both policies are compared once. Ports are cut where any rule's ports begin or end, so
//! that a rule that was split, merged or moved is no difference. Answers are bounded: a policy may connect every
//! node to every other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::types::{IpNet, NodeId};

use super::compile::Compiled;
use super::document::Policy;
use super::filter::{Destination, Permission};
use super::nodeset::NodeSet;
use super::peers::NodeKind;
use super::ports::{PortRange, Protocol};
use super::selector::{Autogroup, Selector};
use super::sources::show;
use super::topology::Topology;

/// Rows of one list; what is left out is counted.
const ROWS: usize = 100;
/// Names in one cell.
const NAMES: usize = 8;

/// The difference between two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What the new policy opens.
    pub gained: Vec<Row>,
    /// What it closes.
    pub lost: Vec<Row>,
    /// How many pairs of nodes gain something.
    pub pairs_gaining: usize,
    /// How many lose something.
    pub pairs_losing: usize,
    /// Rows of either list that were left out.
    pub left_out: usize,
    /// What else changes, a sentence each: routes, SSH, attributes.
    pub notes: Vec<String>,
}

/// Some sources, some targets, and what changes from each to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Groups, tags, users, nodes and prefixes.
    pub sources: Vec<String>,
    /// The same for targets; `ROUTE via NODE` for what lies behind a router.
    pub targets: Vec<String>,
    /// Protocols with ports, and capabilities.
    pub access: Vec<String>,
}

impl Difference {
    /// Compares two policies on a network.
    pub fn between(old: &Arc<Policy>, new: &Arc<Policy>, topology: &Topology) -> Self {
        // Compiled afresh, both number the nodes alike.
        let old = Compiled::new(Arc::clone(old), topology.clone());
        let new = Compiled::new(Arc::clone(new), topology.clone());
        let mut kinds: BTreeMap<(Option<NodeKind>, Option<NodeKind>), NodeSet> = BTreeMap::new();
        for id in topology.nodes.keys() {
            let slot = new.index.slot(*id).into_iter();
            let same = kinds.entry((old.kind(*id), new.kind(*id))).or_default();
            slot.for_each(|slot| same.insert(slot));
        }
        let mut comparison = Comparison { old: &old, new: &new, gained: Found::default(), lost: Found::default() };
        for targets in kinds.values() {
            comparison.compare(targets);
        }
        let Comparison { gained, lost, .. } = comparison;
        let (pairs_gaining, pairs_losing) = (gained.pairs(), lost.pairs());
        let mut difference =
            Self { gained: gained.rows(&new), lost: lost.rows(&old), pairs_gaining, pairs_losing, ..Self::default() };
        for rows in [&mut difference.gained, &mut difference.lost] {
            difference.left_out += rows.len().saturating_sub(ROWS);
            rows.truncate(ROWS);
        }
        difference.notes = notes(&old, &new, kinds.values());
        difference
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty() && self.notes.is_empty()
    }
}

/// Where access leads: to the node itself, or to a prefix behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Node,
    Behind(IpNet),
}

/// What access is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Service {
    Ports(Protocol, PortRange),
    Capability(String),
}

/// Who has some access.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Actors {
    nodes: NodeSet,
    nets: BTreeSet<IpNet>,
    world: bool,
}

/// What one policy opens on a node.
type Opened = BTreeMap<(Scope, Service), Actors>;

struct Comparison<'c> {
    old: &'c Compiled,
    new: &'c Compiled,
    gained: Found,
    lost: Found,
}

/// Differences of one sort; those that are alike for several targets are one.
#[derive(Default)]
struct Found {
    by_target: BTreeMap<(Actors, BTreeSet<Service>, Scope), NodeSet>,
}

impl Comparison<'_> {
    /// Compares what nodes of one kind let in.
    fn compare(&mut self, targets: &NodeSet) {
        let Some((slot, id)) = targets.iter().find_map(|slot| Some((slot, self.new.index.place(slot)?.id))) else {
            return;
        };
        let (old, new) = (opened(self.old, id), opened(self.new, id));
        let cuts = cuts(old.keys().chain(new.keys()));
        let (old, new) = (cut(old, &cuts), cut(new, &cuts));
        for (found, more, less) in [(&mut self.gained, &new, &old), (&mut self.lost, &old, &new)] {
            let mut by_who: BTreeMap<(Actors, Scope), BTreeSet<Service>> = BTreeMap::new();
            for ((place, service), who) in more {
                let nobody = Actors::default();
                let mut who = who.without(less.get(&(*place, service.clone())).unwrap_or(&nobody));
                if targets.iter().count() == 1 {
                    who.nodes.remove(slot);
                }
                if who != nobody {
                    by_who.entry((who, *place)).or_default().insert(service.clone());
                }
            }
            for ((who, place), services) in by_who {
                found.by_target.entry((who, services, place)).or_default().unite(targets);
            }
        }
    }
}

impl Actors {
    fn without(&self, other: &Self) -> Self {
        Self {
            nodes: self.nodes.iter().filter(|slot| !other.nodes.contains(*slot)).collect(),
            nets: self.nets.difference(&other.nets).copied().collect(),
            world: self.world && !other.world,
        }
    }

    fn add(&mut self, other: &Self) {
        self.nodes.unite(&other.nodes);
        self.nets.extend(&other.nets);
        self.world |= other.world;
    }
}

fn opened(compiled: &Compiled, id: NodeId) -> Opened {
    let mut opened = Opened::new();
    let own: BTreeSet<IpNet> = compiled.addresses(id).iter().map(|address| IpNet::from(*address)).collect();
    let place = |net: &IpNet| if own.contains(net) { Scope::Node } else { Scope::Behind(*net) };
    for opening in &compiled.filter(id).openings {
        let who = opening.sources.who(&compiled.index);
        let who = Actors { nodes: who.0, nets: who.1, world: who.2 };
        let mut add = |place, service| opened.entry((place, service)).or_default().add(&who);
        match &opening.what {
            Permission::Ports(protocol, ports) => {
                for (destination, range) in ports {
                    let place = match destination {
                        Destination::Any => Scope::Node,
                        Destination::Net(net) => place(net),
                    };
                    for protocol in protocol.map_or_else(|| Protocol::DEFAULT.to_vec(), |one| vec![one]) {
                        let range = if protocol.has_ports() { *range } else { PortRange::ALL };
                        add(place, Service::Ports(protocol, range));
                    }
                }
            }
            Permission::Capabilities(destinations, given) => {
                let names = given.names();
                let services = names.map(|name| Service::Capability(name.to_owned()));
                services.for_each(|service| {
                    destinations.iter().for_each(|net| add(place(net), service.clone()));
                });
            }
        }
    }
    opened
}

/// Where ports of each place and protocol begin anew.
fn cuts<'o>(keys: impl Iterator<Item = &'o (Scope, Service)>) -> BTreeMap<(Scope, Protocol), BTreeSet<u32>> {
    let mut cuts: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for (place, service) in keys {
        if let Service::Ports(protocol, range) = service {
            cuts.entry((*place, *protocol)).or_default().extend([u32::from(range.first), u32::from(range.last) + 1]);
        }
    }
    cuts
}

/// The same, with no range of ports across a cut.
fn cut(opened: Opened, cuts: &BTreeMap<(Scope, Protocol), BTreeSet<u32>>) -> Opened {
    let mut pieces = Opened::new();
    for ((place, service), who) in opened {
        let Service::Ports(protocol, range) = &service else {
            pieces.entry((place, service)).or_default().add(&who);
            continue;
        };
        let (first, end) = (u32::from(range.first), u32::from(range.last) + 1);
        let inside = cuts.get(&(place, *protocol)).into_iter().flat_map(|cuts| cuts.range(first + 1..end));
        let mut begin = first;
        for next in inside.copied().chain([end]) {
            let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            let piece = PortRange { first: port(begin), last: port(next - 1) };
            pieces.entry((place, Service::Ports(*protocol, piece))).or_default().add(&who);
            begin = next;
        }
    }
    pieces
}

impl Found {
    /// How many pairs of nodes are concerned.
    fn pairs(&self) -> usize {
        let mut by_target: BTreeMap<usize, NodeSet> = BTreeMap::new();
        for ((who, ..), targets) in &self.by_target {
            targets.iter().for_each(|target| by_target.entry(target).or_default().unite(&who.nodes));
        }
        let others = |(target, sources): (usize, NodeSet)| sources.iter().filter(|source| *source != target).count();
        by_target.into_iter().map(others).sum()
    }

    fn rows(self, compiled: &Compiled) -> Vec<Row> {
        let row = |((who, services, place), targets): ((Actors, BTreeSet<Service>, Scope), NodeSet)| {
            let mut sources = names(compiled, &who.nodes);
            sources.extend(who.nets.iter().take(NAMES).map(show));
            sources.extend(Some("any address".to_owned()).filter(|_| who.world));
            let mut names = names(compiled, &targets);
            if let Scope::Behind(net) = place {
                names.iter_mut().for_each(|name| *name = format!("{} via {name}", show(&net)));
            }
            Row { sources, targets: names, access: access(&services) }
        };
        self.by_target.into_iter().map(row).collect()
    }
}

/// What a set of nodes is called: by one name of the policy if there is such, else by the names of the nodes.
fn names(compiled: &Compiled, nodes: &NodeSet) -> Vec<String> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let count = nodes.iter().count();
    let named =
        compiled.index.named().find(|(selector, selected)| count > 1 && *selected == nodes && is_name(selector));
    if let Some((selector, _)) = named {
        return vec![selector.to_string()];
    }
    let places = nodes.iter().filter_map(|slot| compiled.index.place(slot));
    let mut names: Vec<String> = places.take(NAMES).map(|place| place.node.name.clone()).collect();
    if count > NAMES {
        names.push(format!("{} more", count - NAMES));
    }
    names
}

fn is_name(selector: &Selector) -> bool {
    !matches!(selector, Selector::Net(_) | Selector::Set(_) | Selector::Auto(Autogroup::DangerAll))
}

/// Services as text. What is open in each of the usual protocols is written without any.
fn access(services: &BTreeSet<Service>) -> Vec<String> {
    let (mut ranges, mut capabilities) = (BTreeMap::<Protocol, Vec<PortRange>>::new(), Vec::new());
    for service in services {
        match service {
            Service::Ports(protocol, range) => match ranges.entry(*protocol).or_default().last_mut() {
                Some(last) if last.last.checked_add(1) == Some(range.first) => last.last = range.last,
                _ => ranges.entry(*protocol).or_default().push(*range),
            },
            Service::Capability(name) => capabilities.push(format!("capability {name}")),
        }
    }
    let [tcp, udp, icmp, icmp6] = Protocol::DEFAULT.map(|protocol| ranges.get(&protocol).cloned());
    let mut access = Vec::new();
    if let (Some(tcp), true) = (&tcp, tcp == udp && icmp.is_some() && icmp6.is_some()) {
        Protocol::DEFAULT.iter().for_each(|protocol| drop(ranges.remove(protocol)));
        access.extend(tcp.iter().map(|range| format!("port {range}")));
    }
    for (protocol, ranges) in &ranges {
        match protocol.has_ports() {
            true => access.extend(ranges.iter().map(|range| format!("{protocol}/{range}"))),
            false => access.push(protocol.to_string()),
        }
    }
    access.extend(capabilities);
    access
}

/// What changes besides access.
fn notes<'k>(old: &Compiled, new: &Compiled, kinds: impl Iterator<Item = &'k NodeSet>) -> Vec<String> {
    let (mut approved, mut withdrawn, mut ssh, mut attributes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let has_ssh = old.policy().has_ssh() || new.policy().has_ssh();
    for kind in kinds {
        let mut places = kind.iter().filter_map(|slot| new.index.place(slot)).peekable();
        let Some(id) = places.peek().map(|place| place.id) else { continue };
        let names: Vec<&String> = places.map(|place| &place.node.name).collect();
        let (before, after) = (old.approved_routes(id), new.approved_routes(id));
        for (list, more, less) in [(&mut approved, after, before), (&mut withdrawn, before, after)] {
            let routes = more.iter().filter(|route| !less.contains(route));
            list.extend(routes.flat_map(|route| names.iter().map(move |name| format!("{} on {name}", show(route)))));
        }
        if has_ssh && old.ssh_policy(id, "") != new.ssh_policy(id, "") {
            ssh.extend(names.iter().map(|name| (*name).clone()));
        }
        let told = |compiled: &Compiled| format!("{:?} {:?}", compiled.attributes(id), compiled.addresses(id));
        if told(old) != told(new) {
            attributes.extend(names.into_iter().cloned());
        }
    }
    let lists = [
        ("routes are approved", approved),
        ("routes are not approved any more", withdrawn),
        ("other SSH rules hold", ssh),
        ("other attributes are given", attributes),
    ];
    let note = |(what, mut names): (&str, Vec<String>)| {
        let more = names.len().saturating_sub(NAMES);
        names.truncate(NAMES);
        let more = if more > 0 { format!(", {more} more") } else { String::new() };
        format!("{what}: {}{more}", names.join(", "))
    };
    lists.into_iter().filter(|(_, names)| !names.is_empty()).map(note).collect()
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("*"),
            Self { first, last } if first == last => first.fmt(f),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Net(net) => f.write_str(&show(net)),
            Self::Domain(domain) => write!(f, "user:*@{domain}"),
            Self::Auto(group) => f.write_str(group.name()),
            Self::Set(name) | Self::User(name) | Self::Group(name) | Self::Tag(name) => f.write_str(name),
        }
    }
}
