//! The packet filter of one node: its part of every rule that concerns it, and nothing of the others.
//!
//! A destination that names nodes becomes the node's own addresses. A destination of addresses stays the prefix
//! that was written, for the node that has one of them or carries a route to them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodeId};
use crate::wire::control::{CapGrant, CapMap, FilterRule, NetPortRange, RuleOrigin};

use super::compile::{Compiled, Flow, RuleSet, companions};
use super::index::{NodeEntry, SelectorId};
use super::internet;
use super::nodeset::NodeSet;
use super::ports::{PortRange, Protocol};
use super::selector::{Autogroup, Selector};
use super::sources::{Content, Sources, show};
use super::topology::overlaps;

/// The packet filter of one node, before it is written out: what each rule of the policy opens on it.
#[derive(Debug, Default)]
pub struct Filter {
    pub(super) openings: Vec<Opening>,
}

/// What is opened to some sources.
#[derive(Debug)]
pub(super) struct Opening {
    origin: Option<Arc<RuleOrigin>>,
    pub(super) sources: Arc<Sources>,
    pub(super) what: Permission,
}

/// Ports or capabilities.
#[derive(Debug, Hash)]
pub(super) enum Permission {
    Ports(Option<Protocol>, BTreeSet<(Destination, PortRange)>),
    Capabilities(BTreeSet<IpNet>, Capabilities),
}

/// Capabilities, which are part of their rule's text and so known by its name.
#[derive(Debug)]
pub(super) struct Capabilities(CapMap);

impl Opening {
    /// Whether ports that are opened to some sources go with these.
    fn joins(&self, sources: &Arc<Sources>, protocol: Option<Protocol>) -> bool {
        let is_same = || Arc::ptr_eq(&self.sources, sources) || self.sources.content() == sources.content();
        matches!(&self.what, Permission::Ports(own, _) if *own == protocol) && is_same()
    }
}

impl Capabilities {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Hash for Capabilities {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.keys().for_each(|name| name.hash(state));
    }
}

/// What packets may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Destination {
    /// Anything that reaches the node.
    Any,
    Net(IpNet),
}

/// What one rule of the policy opens on a node: a part of its packet filter.
#[derive(Clone, Copy, Debug)]
pub struct FilterPart<'f> {
    compiled: &'f Compiled,
    openings: &'f [Opening],
}

impl Compiled {
    /// The node's packet filter as one list, in which what has the same sources and protocol is joined, whatever
    /// rules it comes from. An empty one lets nothing in.
    pub fn packet_filter(&self, id: NodeId) -> Vec<FilterRule> {
        self.build_filter(id, Form::Joined, None).openings.iter().map(|opening| self.rule_of(opening)).collect()
    }

    /// The node's packet filter, rule by rule of the policy. Together its parts let in what
    /// [`Compiled::packet_filter`] does.
    pub fn filter(&self, id: NodeId) -> Filter {
        self.build_filter(id, Form::ByRule, None)
    }

    /// The parts of the node's packet filter that come from some of the rules.
    pub fn filter_of(&self, id: NodeId, rules: &RuleSet) -> Filter {
        self.build_filter(id, Form::ByRule, Some(rules))
    }

    /// Those of the rules that may be part of the node's packet filter, in order; none for what holds without being
    /// written.
    pub fn rules_of<'c>(
        &'c self,
        id: NodeId,
        rules: &RuleSet,
    ) -> impl Iterator<Item = Option<&'c Arc<RuleOrigin>>> + use<'c> {
        let flows = self.index.slot(id).map(|slot| self.rules_at(slot, id).intersection(&rules.0));
        let flows: Vec<usize> = flows.iter().flat_map(NodeSet::iter).collect();
        flows.into_iter().map(|number| self.flows[number].origin.as_ref())
    }

    /// The parts of a filter, one for each rule of the policy that opens anything, in the order of the policy.
    pub fn parts<'f>(&'f self, filter: &'f Filter) -> impl Iterator<Item = FilterPart<'f>> {
        let parts = filter.openings.chunk_by(|a, b| a.origin == b.origin);
        parts.map(|openings| FilterPart { compiled: self, openings })
    }

    fn rule_of(&self, opening: &Opening) -> FilterRule {
        FilterRule { src_ips: opening.sources.wire(&self.index), ..Self::rule_without_sources(opening) }
    }

    fn rule_without_sources(opening: &Opening) -> FilterRule {
        let mut rule = FilterRule::default();
        match &opening.what {
            Permission::Ports(protocol, ports) => {
                rule.dst_ports = ports.iter().map(net_ports).collect();
                rule.ip_proto = protocol.iter().map(|protocol| i32::from(protocol.0)).collect();
            }
            Permission::Capabilities(destinations, Capabilities(app)) => {
                let dsts = destinations.iter().copied().collect();
                rule.cap_grant = vec![CapGrant { dsts, caps: Vec::new(), cap_map: app.clone() }];
            }
        }
        rule
    }

    /// The capabilities that `address` has on the node.
    pub fn capabilities(&self, id: NodeId, address: IpAddr) -> CapMap {
        let mut map = CapMap::new();
        let filter = self.filter(id);
        for opening in filter.openings.iter().filter(|opening| opening.sources.admit(address, &self.index)) {
            let Permission::Capabilities(_, Capabilities(app)) = &opening.what else { continue };
            for (name, arguments) in app {
                let known = map.entry(name.clone()).or_insert(None);
                if let Some(arguments) = arguments {
                    known.get_or_insert_with(Vec::new).extend(arguments.iter().cloned());
                }
            }
        }
        map
    }

    fn build_filter(&self, id: NodeId, form: Form, rules: Option<&RuleSet>) -> Filter {
        let mut builder = Builder { form, ..Builder::default() };
        let Some((slot, place)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) else {
            return Filter::default();
        };
        let mut flows = self.rules_at(slot, id);
        if let Some(rules) = rules {
            flows.intersect(&rules.0);
        }
        let devices: Vec<(usize, &NodeEntry)> = self.devices_behind(id).collect();
        for flow in flows.iter().map(|number| &self.flows[number]) {
            builder.begin(flow.origin.as_ref());
            self.filter_flow(flow, place, slot, &mut builder);
            for (slot, device) in &devices {
                self.filter_flow(flow, device, *slot, &mut builder);
                self.filter_from_device(flow, device, *slot, &mut builder);
            }
        }
        builder.filter
    }

    /// What a rule opens on a node.
    fn filter_flow(&self, flow: &Flow, place: &NodeEntry, slot: usize, builder: &mut Builder<'_>) {
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
        let own = self.own_nodes(place);
        if flow.to_self && own.iter().any(|own| self.sources_of(flow).reach.contains(*own)) {
            self.filter_self(flow, place, slot, &own, builder);
        }
    }

    /// The untagged nodes of a node's user, if it is one of them.
    fn own_nodes(&self, place: &NodeEntry) -> Vec<usize> {
        let own = self.index.owned.get(&place.node.user).filter(|_| !place.node.is_tagged());
        own.into_iter().flat_map(NodeSet::iter).collect()
    }

    /// What a gateway passes on from a device: what the rule opens to it on other nodes. They enforce it once more.
    fn filter_from_device(&self, flow: &Flow, device: &NodeEntry, slot: usize, builder: &mut Builder<'_>) {
        if !self.sources_of(flow).reach.contains(slot) {
            return;
        }
        let sources = Arc::new(Sources::of_nodes(NodeSet::from_iter([slot])));
        let places = |slots: &NodeSet| slots.iter().filter_map(|slot| Some((slot, self.index.place(slot)?))).collect();
        let concerned: Vec<(usize, &NodeEntry)> = places(&flow.concerned);
        let own: Vec<usize> = if flow.to_self { self.own_nodes(device) } else { Vec::new() };
        for open in &flow.opens {
            let by_rule = concerned.iter().flat_map(|(to, place)| self.destinations(flow, &open.targets, place, *to));
            let to_self = open.targets.iter().any(|target| self.is_self(*target));
            let own = own.iter().filter(|_| to_self).filter_map(|own| self.index.place(*own));
            let to_own = own.flat_map(own_nets).map(Destination::Net);
            let destinations: BTreeSet<Destination> = by_rule.chain(to_own).collect();
            builder.open(&sources, open.protocol, &open.ports, &destinations.into_iter().collect::<Vec<_>>());
        }
    }

    /// The part of a rule that is about each user's own nodes.
    fn filter_self(&self, flow: &Flow, place: &NodeEntry, slot: usize, own: &[usize], builder: &mut Builder<'_>) {
        let reach = &self.sources_of(flow).reach;
        let from: NodeSet = own.iter().copied().filter(|own| reach.contains(*own)).collect();
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
                let own = own.iter().copied().collect();
                builder.grant(&Arc::new(Sources::of_nodes(own)), own_nets(place).collect(), &app);
            }
        }
    }

    fn is_self(&self, target: SelectorId) -> bool {
        *self.index.selector(target) == Selector::Auto(Autogroup::SelfNodes)
    }

    /// What some targets of a rule are on this node.
    fn destinations(&self, flow: &Flow, targets: &[SelectorId], place: &NodeEntry, slot: usize) -> Vec<Destination> {
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
                Selector::Any
                | Selector::User(_)
                | Selector::Domain(_)
                | Selector::Group(_)
                | Selector::Tag(_)
                | Selector::Auto(_) => {}
            }
        }
        destinations
    }

    /// Where capabilities of a rule are given on this node: its own addresses, and prefixes it routes to.
    fn granted(&self, flow: &Flow, place: &NodeEntry, slot: usize) -> BTreeSet<IpNet> {
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

fn own_nets(place: &NodeEntry) -> impl Iterator<Item = IpNet> + '_ {
    place.addresses.iter().map(|address| IpNet::from(*address))
}

fn is_behind(place: &NodeEntry, net: &IpNet) -> bool {
    place.subnets().any(|route| overlaps(route, net))
}

/// Whether packets to `net` arrive at the node; those steered to it come by its routes alone.
fn carries(place: &NodeEntry, net: &IpNet, via: bool) -> bool {
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
    /// Where its openings begin.
    begin: usize,
    /// The openings by what joins them, where those of other rules are joined too.
    known: BTreeMap<(Content, Option<Protocol>), usize>,
}

impl<'c> Builder<'c> {
    fn begin(&mut self, origin: Option<&'c Arc<RuleOrigin>>) {
        if self.origin != origin {
            self.begin = self.filter.openings.len();
        }
        self.origin = origin;
    }

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
        let index = match self.form {
            Form::Joined => *self.known.entry((sources.content().clone(), protocol)).or_insert(next),
            Form::ByRule => {
                let of_rule = self.filter.openings.get(self.begin..).unwrap_or_default();
                let joins = of_rule.iter().position(|opening| opening.joins(sources, protocol));
                joins.map_or(next, |index| self.begin + index)
            }
        };
        if index == next {
            self.push(sources, Permission::Ports(protocol, BTreeSet::new()));
        }
        if let Some(Opening { what: Permission::Ports(_, opened), .. }) = self.filter.openings.get_mut(index) {
            opened.extend(destinations.iter().flat_map(|to| ports.iter().map(|range| (*to, *range))));
        }
    }

    /// Capabilities are given even to sources that are nobody at present.
    fn grant(&mut self, sources: &Arc<Sources>, destinations: BTreeSet<IpNet>, app: &CapMap) {
        if !destinations.is_empty() {
            self.push(sources, Permission::Capabilities(destinations, Capabilities(app.clone())));
        }
    }

    fn push(&mut self, sources: &Arc<Sources>, what: Permission) {
        self.filter.openings.push(Opening { origin: self.origin.cloned(), sources: sources.clone(), what });
    }
}

impl FilterPart<'_> {
    /// The rule; none for what holds without being written.
    pub fn origin(&self) -> Option<&Arc<RuleOrigin>> {
        self.openings.first()?.origin.as_ref()
    }

    /// A number that two parts of one rule share only when they are equal, chance aside.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Opening { origin, sources, what } in self.openings {
            (origin, sources.digest(&self.compiled.index), what).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Appends the rules in wire form: a JSON list.
    pub fn write_rules(&self, json: &mut String) {
        const NO_SOURCES: &str = "{\"SrcIPs\":[]";
        json.push('[');
        for (index, opening) in self.openings.iter().enumerate() {
            json.push_str(if index == 0 { "" } else { "," });
            let origin = opening.origin.as_deref().cloned();
            let rule = FilterRule { origin, ..Compiled::rule_without_sources(opening) };
            let text = serde_json::to_string(&rule).unwrap_or_default();
            if let Some(rest) = text.strip_prefix(NO_SOURCES) {
                json.push_str("{\"SrcIPs\":");
                json.push_str(opening.sources.wire_text(&self.compiled.index));
                json.push_str(rest);
            }
        }
        json.push(']');
    }

    /// The rules, in wire form.
    pub fn rules(&self) -> Vec<FilterRule> {
        let rule = |opening: &Opening| FilterRule {
            origin: opening.origin.as_deref().cloned(),
            ..self.compiled.rule_of(opening)
        };
        self.openings.iter().map(rule).collect()
    }
}
