//! The packet filter of one node: its part of every rule that concerns it, and nothing of the others.
//!
//! A destination that names nodes becomes the node's own addresses. A destination of addresses stays the prefix
//! that was written, for the node that has one of them or carries a route to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodeId};
use crate::wire::control::{CapGrant, CapMap, FilterRule, NetPortRange, RuleOrigin};

use super::compile::{Compiled, Flow, companions};
use super::index::{Place, SelectorId};
use super::internet;
use super::ports::{PortRange, Protocol};
use super::selector::{Autogroup, Selector};
use super::sources::{Content, Sources, show};
use super::topology::overlaps;

/// The packet filter of one node, before it is written out.
#[derive(Debug, Default)]
pub struct Filter {
    openings: Vec<Opening>,
    grants: Vec<Grant>,
}

/// Ports opened to some sources.
#[derive(Debug)]
struct Opening {
    origin: Option<Arc<RuleOrigin>>,
    sources: Arc<Sources>,
    protocol: Option<Protocol>,
    ports: BTreeSet<(Destination, PortRange)>,
}

/// Capabilities given to some sources.
#[derive(Debug)]
struct Grant {
    origin: Option<Arc<RuleOrigin>>,
    sources: Arc<Sources>,
    destinations: BTreeSet<IpNet>,
    app: CapMap,
}

/// What packets may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    /// Anything that reaches the node.
    Any,
    Net(IpNet),
}

impl Compiled {
    /// The node's packet filter as one list, in which what has the same sources and protocol is joined, whatever
    /// rules it comes from. An empty one lets nothing in.
    pub fn packet_filter(&self, id: NodeId) -> Vec<FilterRule> {
        let filter = self.build_filter(id, Form::Joined);
        let openings = filter.openings.iter().map(|opening| self.opening_rule(opening));
        openings.chain(filter.grants.iter().map(|grant| self.grant_rule(grant))).collect()
    }

    /// The node's packet filter in parts, one for each rule of the policy, by the rule's name; each part says
    /// where it comes from. Together they let in what [`Compiled::packet_filter`] does.
    pub fn filter_parts(&self, id: NodeId) -> BTreeMap<String, Vec<FilterRule>> {
        let filter = self.build_filter(id, Form::ByRule);
        let mut parts: BTreeMap<String, Vec<FilterRule>> = BTreeMap::new();
        let mut add = |origin: &Option<Arc<RuleOrigin>>, rule: FilterRule| {
            let name = origin.as_ref().map_or(UNWRITTEN, |origin| origin.reference.as_str());
            let rule = FilterRule { origin: origin.as_deref().cloned(), ..rule };
            parts.entry(name.to_owned()).or_default().push(rule);
        };
        filter.openings.iter().for_each(|opening| add(&opening.origin, self.opening_rule(opening)));
        filter.grants.iter().for_each(|grant| add(&grant.origin, self.grant_rule(grant)));
        parts
    }

    fn opening_rule(&self, opening: &Opening) -> FilterRule {
        FilterRule {
            src_ips: opening.sources.wire(&self.index).to_vec(),
            dst_ports: opening.ports.iter().map(net_ports).collect(),
            ip_proto: opening.protocol.iter().map(|protocol| i32::from(protocol.0)).collect(),
            ..FilterRule::default()
        }
    }

    fn grant_rule(&self, grant: &Grant) -> FilterRule {
        FilterRule {
            src_ips: grant.sources.wire(&self.index).to_vec(),
            cap_grant: vec![CapGrant {
                dsts: grant.destinations.iter().copied().collect(),
                caps: Vec::new(),
                cap_map: grant.app.clone(),
            }],
            ..FilterRule::default()
        }
    }

    /// The capabilities that `address` has on the node.
    pub fn capabilities(&self, id: NodeId, address: IpAddr) -> CapMap {
        let mut map = CapMap::new();
        let filter = self.filter(id);
        for grant in filter.grants.iter().filter(|grant| grant.sources.admit(address, &self.index)) {
            for (name, arguments) in &grant.app {
                let known = map.entry(name.clone()).or_insert(None);
                if let Some(arguments) = arguments {
                    known.get_or_insert_with(Vec::new).extend(arguments.iter().cloned());
                }
            }
        }
        map
    }

    /// The node's packet filter.
    pub fn filter(&self, id: NodeId) -> Filter {
        self.build_filter(id, Form::Joined)
    }

    fn build_filter(&self, id: NodeId, form: Form) -> Filter {
        let mut builder = Builder { form, ..Builder::default() };
        let Some((slot, place)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) else {
            return Filter::default();
        };
        for flow in &self.flows {
            builder.origin = flow.origin.as_ref();
            if flow.concerned.contains(slot) {
                let sources = self.sources_of(flow);
                for open in &flow.opens {
                    let destinations = self.destinations(flow, &open.targets, place, slot);
                    builder.open(sources, open.protocol, &open.ports, &destinations);
                }
                if !flow.app.is_empty() && flow.via.is_none() {
                    builder.grant(sources, self.granted(flow, place, slot), &flow.app);
                }
            }
            if flow.to_self && !place.node.is_tagged() {
                self.filter_self(flow, place, slot, &mut builder);
            }
        }
        builder.filter
    }

    /// The part of a rule that is about each user's own nodes.
    fn filter_self(&self, flow: &Flow, place: &Place, slot: usize, builder: &mut Builder<'_>) {
        let Some(own) = self.index.owned.get(&place.node.user) else { return };
        let from = self.sources_of(flow).reach.intersection(own);
        if from.is_empty() {
            return;
        }
        let is_source = from.contains(slot);
        let sources = Arc::new(Sources::of_nodes(from));
        let destinations: Vec<_> = own_nets(place).map(Destination::Net).collect();
        for open in &flow.opens {
            if open.targets.iter().any(|target| self.is_self(*target)) {
                builder.open(&sources, open.protocol, &open.ports, &destinations);
            }
        }
        if !flow.app.is_empty() {
            builder.grant(&sources, own_nets(place).collect(), &flow.app);
            for app in companions(&flow.app).filter(|_| is_source) {
                builder.grant(&Arc::new(Sources::of_nodes(own.clone())), own_nets(place).collect(), &app);
            }
        }
    }

    fn is_self(&self, target: SelectorId) -> bool {
        *self.index.selector(target) == Selector::Auto(Autogroup::SelfNodes)
    }

    /// What some targets of a rule are on this node.
    fn destinations(&self, flow: &Flow, targets: &[SelectorId], place: &Place, slot: usize) -> Vec<Destination> {
        let mut destinations = Vec::new();
        let via = flow.via.is_some();
        for target in targets {
            let selected = || self.index.selected(*target).contains(slot);
            match self.index.selector(*target) {
                Selector::Any if !via => destinations.push(Destination::Any),
                Selector::Auto(Autogroup::Internet) if place.is_exit() => {
                    destinations.extend(internet::prefixes().into_iter().map(Destination::Net));
                }
                Selector::Net(_) | Selector::Set(_) => {
                    let nets = self.index.prefixes(*target).iter();
                    let carried = nets.filter(|net| carries(place, net, via));
                    destinations.extend(carried.copied().map(Destination::Net));
                }
                _ if !via && selected() => destinations.extend(own_nets(place).map(Destination::Net)),
                _ => {}
            }
        }
        destinations
    }

    /// Where capabilities of a rule are given on this node: its own addresses, and prefixes it routes to.
    fn granted(&self, flow: &Flow, place: &Place, slot: usize) -> BTreeSet<IpNet> {
        let mut granted = BTreeSet::new();
        for target in &flow.targets {
            let nets = self.index.prefixes(*target);
            if nets.is_empty() && self.index.selected(*target).contains(slot) {
                granted.extend(own_nets(place));
            }
            for net in nets {
                granted.extend(own_nets(place).filter(|own| net.contains(own)));
                granted.extend(Some(*net).filter(|net| is_behind(place, net)));
            }
        }
        granted
    }
}

fn own_nets(place: &Place) -> impl Iterator<Item = IpNet> + '_ {
    place.addresses.iter().map(|address| IpNet::from(*address))
}

fn is_behind(place: &Place, net: &IpNet) -> bool {
    place.subnets().any(|route| overlaps(route, net))
}

/// Whether packets to `net` arrive at the node; those steered to it come by its routes alone.
fn carries(place: &Place, net: &IpNet, via: bool) -> bool {
    let direct = || place.has_address_in(net) || place.is_exit() && internet::contains(net);
    is_behind(place, net) || !via && direct()
}

fn net_ports((destination, ports): &(Destination, PortRange)) -> NetPortRange {
    let ip = match destination {
        Destination::Any => "*".to_owned(),
        Destination::Net(net) => show(net),
    };
    NetPortRange { ip, ports: (*ports).into() }
}

/// The part of a filter that no rule of a policy stands behind.
const UNWRITTEN: &str = "base";

/// Whether what is alike in several rules becomes one.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Joined,
    ByRule,
}

/// Gathers a filter, joining what has the same sources and protocol.
#[derive(Default)]
struct Builder<'c> {
    form: Form,
    filter: Filter,
    /// The rule that is being added.
    origin: Option<&'c Arc<RuleOrigin>>,
    known: BTreeMap<(Option<&'c RuleOrigin>, Content, Option<Protocol>), usize>,
}

impl Builder<'_> {
    fn open(
        &mut self,
        sources: &Arc<Sources>,
        protocol: Option<Protocol>,
        ports: &[PortRange],
        destinations: &[Destination],
    ) {
        if sources.is_empty() || destinations.is_empty() {
            return;
        }
        let next = self.filter.openings.len();
        let origin = self.origin.map(Arc::as_ref).filter(|_| self.form == Form::ByRule);
        let index = *self.known.entry((origin, sources.content().clone(), protocol)).or_insert(next);
        if index == next {
            let origin = self.origin.cloned();
            self.filter.openings.push(Opening { origin, sources: sources.clone(), protocol, ports: BTreeSet::new() });
        }
        if let Some(opening) = self.filter.openings.get_mut(index) {
            let pairs = destinations.iter().flat_map(|to| ports.iter().map(|range| (*to, *range)));
            opening.ports.extend(pairs);
        }
    }

    /// Capabilities are given even to sources that are nobody at present.
    fn grant(&mut self, sources: &Arc<Sources>, destinations: BTreeSet<IpNet>, app: &CapMap) {
        if !destinations.is_empty() {
            let origin = self.origin.cloned();
            self.filter.grants.push(Grant { origin, sources: sources.clone(), destinations, app: app.clone() });
        }
    }
}
