//! A policy against a network: which rules concern which nodes.
//!
//! A rule becomes a [`Flow`]: the nodes it lets in ([`Sources`], shared by all rules with the same `src`) and
//! the nodes whose filter it is part of. Both are bit sets over the node table. When a node comes, goes or
//! changes, its own selectors are looked up again and the sets are rebuilt from the index; what a node is
//! *sent* is worked out when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::types::{NodeId, UserId};
use crate::wire::control::{CapMap, RuleOrigin};

use super::document::{Policy, Rule};
use super::index::{Index, NodeEntry, SelectorId, Touched};
use super::nodeset::NodeSet;
use super::ports::{PortRange, Protocol};
use super::roles::Roles;
use super::selector::{Autogroup, Selector};
use super::sources::{SourceList, Sources};
use super::topology::{Node, Topology, User};

/// A policy compiled against a network.
#[derive(Clone, Debug)]
pub struct Compiled {
    policy: Arc<Policy>,
    pub(super) index: Index,
    pub(super) flows: Vec<Flow>,
    lists: Vec<SourceList>,
    sources: Vec<Arc<Sources>>,
    pub(super) roles: Roles,
}

/// The nodes whose outputs a change may have altered; all others are as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Ask for the packet filter and SSH rules of these again.
    pub filters: NodeSet,
    /// Ask for the peers of these again.
    pub peers: NodeSet,
    /// Of `filters`, those of which any rule may be another. The others ask only for `rules`.
    pub whole: NodeSet,
    /// Of `filters`, those that ask for their SSH rules.
    pub ssh: NodeSet,
    /// The rules that let in others than before.
    pub rules: RuleSet,
    /// The nodes that changed themselves, where whom others see changed by these alone. `None` where it may have
    /// changed by more: a router came, went or changed, or everything did.
    pub alone: Option<BTreeSet<NodeId>>,
}

/// Some rules of a policy: those whose part of a filter is to be asked for again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet(pub(super) NodeSet);

impl Default for Change {
    fn default() -> Self {
        let none = NodeSet::default;
        let (filters, peers, whole, ssh) = (none(), none(), none(), none());
        Self { filters, peers, whole, ssh, rules: RuleSet::default(), alone: Some(BTreeSet::new()) }
    }
}

impl Change {
    /// Everything about every node that is known.
    pub fn everything(compiled: &Compiled) -> Self {
        let everybody = compiled.everybody().clone();
        let (filters, peers, ssh) = (everybody.clone(), everybody.clone(), everybody.clone());
        Self { filters, peers, ssh, whole: everybody, rules: RuleSet::default(), alone: None }
    }

    /// Takes another change as having happened too.
    pub fn add(&mut self, other: &Self) {
        self.filters.unite(&other.filters);
        self.peers.unite(&other.peers);
        self.whole.unite(&other.whole);
        self.ssh.unite(&other.ssh);
        self.rules.0.unite(&other.rules.0);
        match (&mut self.alone, &other.alone) {
            (Some(alone), Some(more)) => alone.extend(more),
            (alone, _) => *alone = None,
        }
    }
}

/// One rule, in numbers.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    /// Which rule of the policy; none for what holds without being written.
    pub(super) origin: Option<Arc<RuleOrigin>>,
    list: usize,
    pub(super) targets: Vec<SelectorId>,
    pub(super) opens: Vec<FlowOpen>,
    pub(super) app: CapMap,
    /// The tags of the routers that alone may carry this.
    pub(super) via: Option<Vec<SelectorId>>,
    /// Whether each source user's own nodes are a destination.
    pub(super) to_self: bool,
    /// The nodes whose filter this is part of, those of `to_self` aside.
    pub(super) concerned: NodeSet,
}

#[derive(Clone, Debug)]
pub(super) struct FlowOpen {
    pub(super) targets: Vec<SelectorId>,
    pub(super) protocol: Option<Protocol>,
    pub(super) ports: Vec<PortRange>,
}

/// Capabilities that give another one in return: who may use a relay is in turn its target.
const COMPANION_CAPS: &[(&str, &str)] = &[
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

impl Compiled {
    /// Compiles a policy. Total: what a policy names and the network lacks selects nothing.
    pub fn new(policy: Arc<Policy>, topology: Topology) -> Self {
        let mut index = Index::new(&policy, topology.users);
        let mut compiler = Compiler { index: &index, lists: BTreeMap::new(), flows: Vec::new() };
        match &policy.rules {
            Some(rules) => rules.iter().for_each(|rule| compiler.rule(rule)),
            None => compiler.allow_all(),
        }
        let Compiler { lists, mut flows, .. } = compiler;
        let mut ordered: Vec<_> = lists.into_iter().collect();
        ordered.sort_by_key(|(_, number)| *number);
        for (id, node) in topology.nodes {
            index.insert(id, node, &policy);
        }
        let lists: Vec<_> = ordered.into_iter().map(|(list, _)| list).collect();
        let sources = lists.iter().map(|list| Arc::new(Sources::new(list, &index))).collect();
        for flow in &mut flows {
            flow.concerned = flow.find_concerned(&index);
        }
        let roles = Roles::new(flows.iter().map(|flow| (flow.list, flow.to_self)));
        let mut compiled = Self { policy, index, flows, lists, sources, roles };
        let nobody = NodeSet::default();
        for (number, sources) in compiled.sources.iter().enumerate() {
            compiled.roles.move_list(number, &nobody, &sources.reach);
        }
        for (number, flow) in compiled.flows.iter().enumerate() {
            compiled.roles.move_flow(number, &nobody, &flow.concerned);
        }
        compiled
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same, to be kept elsewhere.
    pub fn shared_policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The users that are known.
    pub fn users(&self) -> &BTreeMap<UserId, User> {
        self.index.users()
    }

    /// Adds a node, or replaces what was known of it.
    pub fn upsert(&mut self, id: NodeId, node: Node) -> Change {
        let mut change = Change::default();
        self.note(id, &mut change);
        let before = self.index.slot(id);
        let had: Vec<_> = self.place_of(id).map(|place| place.addresses.clone()).unwrap_or_default();
        let touched = self.index.insert(id, node, &self.policy);
        // Only where the node has other addresses does a list change that it stays in.
        let moved = self
            .index
            .slot(id)
            .filter(|slot| before != Some(*slot) || self.index.place(*slot).is_none_or(|place| place.addresses != had));
        self.refresh(&touched, moved, &mut change);
        self.note(id, &mut change);
        self.reach_gateways(&mut change);
        change
    }

    /// Removes a node.
    pub fn remove(&mut self, id: NodeId) -> Change {
        let mut change = Change::default();
        let Some(slot) = self.index.slot(id) else { return change };
        self.note(id, &mut change);
        self.reach_gateways(&mut change);
        let touched = self.index.remove(id);
        self.refresh(&touched, None, &mut change);
        self.reach_gateways(&mut change);
        let sets = [&mut change.filters, &mut change.peers, &mut change.whole, &mut change.ssh];
        sets.into_iter().for_each(|set| set.remove(slot));
        change
    }

    /// The nodes in a set, in no particular order.
    pub fn nodes<'c>(&'c self, set: &'c NodeSet) -> impl Iterator<Item = NodeId> + 'c {
        set.iter().filter_map(|slot| self.index.place(slot)).map(|place| place.id)
    }

    /// The nodes that are known.
    pub fn everybody(&self) -> &NodeSet {
        &self.index.everyone
    }

    /// Adds a user, or replaces what was known of them.
    pub fn put_user(&mut self, id: UserId, user: User) -> Change {
        let mut change = Change::default();
        if self.index.users().get(&id) == Some(&user) {
            return change;
        }
        let owned: Vec<_> = self.index.owned.get(&id).map(|owned| self.nodes(owned).collect()).unwrap_or_default();
        self.index.put_user(id, user, &self.policy);
        for node in owned {
            if let Some(place) = self.place_of(node) {
                change.add(&self.upsert(node, place.node.clone()));
            }
        }
        change
    }

    /// Forgets a user who has no nodes.
    pub fn remove_user(&mut self, id: UserId) {
        self.index.remove_user(id);
    }

    /// What is known of a node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.place_of(id).map(|place| &place.node)
    }

    /// What the policy was compiled against.
    pub fn topology(&self) -> Topology {
        let places = self.index.places.iter().flatten();
        let nodes = places.map(|place| (place.id, place.node.clone())).collect();
        Topology { users: self.index.users().clone(), nodes }
    }

    /// Rebuilds the sets of the rules that use a touched selector. `moved` is a node that has other addresses than
    /// before.
    fn refresh(&mut self, touched: &Touched, moved: Option<usize>, change: &mut Change) {
        for (number, (list, sources)) in self.lists.iter().zip(&mut self.sources).enumerate() {
            if !touched.any_of(&list.selectors) {
                continue;
            }
            let new = Sources::new(list, &self.index);
            let is_same_content = new.content() == sources.content();
            if is_same_content && new.reach == sources.reach && !moved.is_some_and(|slot| new.names(slot)) {
                continue;
            }
            self.roles.move_list(number, &sources.reach, &new.reach);
            if !is_same_content || moved.is_some_and(|slot| new.names(slot)) {
                for flow in self.roles.of_list(number) {
                    change.filters.unite(&self.flows[*flow].concerned);
                    mark_rule(&self.flows, *flow, &mut change.rules);
                }
            }
            *sources = Arc::new(new);
        }
        for (number, flow) in self.flows.iter_mut().enumerate() {
            if flow.is_touched(touched) {
                let new = flow.find_concerned(&self.index);
                self.roles.move_flow(number, &flow.concerned, &new);
                flow.concerned = new;
            }
        }
    }

    /// Adds whoever shares a rule with the node, as things stand. What others see of a router may change with
    /// every other router of the same route.
    fn note(&self, id: NodeId, change: &mut Change) {
        let Some((slot, place)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) else {
            return;
        };
        if place.node.is_device() || self.devices_behind(id).next().is_some() {
            *change = Change::everything(self);
            return;
        }
        let mut routers = NodeSet::from_iter([slot]);
        place.subnets().filter_map(|route| self.index.routes.get(route)).for_each(|same| routers.unite(same));
        match &mut change.alone {
            Some(alone) if place.routes.is_empty() => drop(alone.insert(id)),
            alone => *alone = None,
        }
        change.whole.insert(slot);
        change.ssh.unite(&self.ssh_targets_of(slot));
        change.ssh.insert(slot);
        change.filters.unite(&change.ssh);
        change.peers.unite(&routers);
        for router in routers.iter() {
            self.flows_from(router).for_each(|flow| change.peers.unite(&flow.concerned));
            self.flows_to(router).for_each(|flow| change.peers.unite(&self.sources_of(flow).reach));
        }
        let own = self.index.owned.get(&place.node.user).filter(|_| !place.node.is_tagged());
        let Some(own) = own else { return };
        let from_own =
            self.roles.to_self().iter().filter(|flow| self.sources_of(&self.flows[*flow]).reach.contains(slot));
        for flow in from_own {
            change.filters.unite(own);
            change.peers.unite(own);
            mark_rule(&self.flows, flow, &mut change.rules);
        }
    }

    /// The flows that a node is a source of, in no particular order.
    pub(super) fn flows_from(&self, slot: usize) -> impl Iterator<Item = &Flow> {
        self.roles.from(slot).map(|number| &self.flows[number])
    }

    /// The flows that are part of a node's filter, those about users' own nodes aside.
    pub(super) fn flows_to(&self, slot: usize) -> impl Iterator<Item = &Flow> {
        self.roles.to(slot).map(|number| &self.flows[number])
    }

    /// The flows that are about each user's own nodes.
    pub(super) fn flows_to_self(&self) -> impl Iterator<Item = &Flow> {
        self.roles.to_self().iter().map(|number| &self.flows[number])
    }

    pub(super) fn sources_of(&self, flow: &Flow) -> &Arc<Sources> {
        &self.sources[flow.list]
    }

    pub(super) fn list_of(&self, flow: &Flow) -> &SourceList {
        &self.lists[flow.list]
    }

    pub(super) fn place_of(&self, id: NodeId) -> Option<&NodeEntry> {
        self.index.place(self.index.slot(id)?)
    }

    pub(super) fn means_user(&self, selector: &Selector, user: UserId) -> bool {
        self.index.means_user(selector, user)
    }

    /// Whether a selector of the policy means a node.
    pub(super) fn means(&self, selector: &Selector, id: NodeId) -> bool {
        let number = self.index.number(selector);
        number.zip(self.index.slot(id)).is_some_and(|(number, slot)| self.index.selected(number).contains(slot))
    }
}

/// Adds a flow to those of changed rules, and the other flows of its rule: a part of a filter is of one rule as a
/// whole.
fn mark_rule(flows: &[Flow], flow: usize, rules: &mut RuleSet) {
    let origin = &flows[flow].origin;
    let is_same = |number: &usize| flows.get(*number).is_some_and(|flow| flow.origin == *origin);
    let before = (0..flow).rev().take_while(is_same);
    let after = (flow..).take_while(is_same);
    before.chain(after).for_each(|number| rules.0.insert(number));
}

impl Flow {
    fn is_touched(&self, touched: &Touched) -> bool {
        let via = self.via.as_deref().unwrap_or_default();
        touched.exits || touched.any_of(&self.targets) || touched.any_of(via)
    }

    /// The nodes that are, or carry traffic to, one of the destinations.
    fn find_concerned(&self, index: &Index) -> NodeSet {
        let mut concerned = NodeSet::default();
        for target in &self.targets {
            match (index.selector(*target), &self.via) {
                (Selector::Auto(Autogroup::Internet), _) => concerned.unite(&index.exits),
                (Selector::Net(_) | Selector::Set(_), Some(_)) => concerned.unite(index.behind(*target)),
                (_, Some(_)) => {}
                (selector, None) => {
                    concerned.unite(index.selected(*target));
                    concerned.unite(index.behind(*target));
                    if is_internet(selector) {
                        concerned.unite(&index.exits);
                    }
                }
            }
        }
        if let Some(tags) = &self.via {
            let mut routers = NodeSet::default();
            tags.iter().for_each(|tag| routers.unite(index.selected(*tag)));
            concerned.intersect(&routers);
        }
        concerned
    }
}

/// Whether a selector is of addresses on the internet alone: those an exit node carries.
fn is_internet(selector: &Selector) -> bool {
    matches!(selector, Selector::Net(net) if super::internet::contains(net))
}

/// Turns rules into flows while numbers are given out.
struct Compiler<'i> {
    index: &'i Index,
    lists: BTreeMap<SourceList, usize>,
    flows: Vec<Flow>,
}

impl Compiler<'_> {
    /// What a policy without `acls` and `grants` says.
    fn allow_all(&mut self) {
        let any = self.numbers(&[Selector::Any]);
        let open = FlowOpen { targets: any.clone(), protocol: None, ports: vec![PortRange::ALL] };
        self.flow(None, any.clone(), Vec::new(), any, vec![open], CapMap::new(), None);
    }

    fn rule(&mut self, rule: &Rule) {
        if rule.sources.is_empty() || rule.targets.is_empty() {
            return;
        }
        let sources = self.numbers(&rule.sources);
        let targets = self.numbers(&rule.targets);
        let opens = rule.opens.iter().map(|open| FlowOpen {
            targets: self.numbers(&open.targets),
            protocol: open.protocol,
            ports: open.ports.clone(),
        });
        let opens = opens.collect();
        let via = (!rule.via.is_empty()).then(|| self.numbers(&rule.via));
        let origin = Some(&rule.origin);
        let others: Vec<_> = rule.targets.iter().filter(|target| !is_self(target)).cloned().collect();
        if via.is_none() && !others.is_empty() {
            let others = self.numbers(&others);
            for app in companions(&rule.app) {
                self.flow(origin, others.clone(), Vec::new(), sources.clone(), Vec::new(), app, None);
            }
        }
        self.flow(origin, sources, rule.postures.clone(), targets, opens, rule.app.clone(), via);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a flow, each once")]
    fn flow(
        &mut self,
        origin: Option<&Arc<RuleOrigin>>,
        sources: Vec<SelectorId>,
        postures: Vec<String>,
        targets: Vec<SelectorId>,
        opens: Vec<FlowOpen>,
        app: CapMap,
        via: Option<Vec<SelectorId>>,
    ) {
        let next = self.lists.len();
        let list = *self.lists.entry(SourceList { selectors: sources, postures }).or_insert(next);
        let to_self = targets.iter().any(|target| is_self(self.index.selector(*target)));
        let origin = origin.cloned();
        self.flows.push(Flow { origin, list, targets, opens, app, via, to_self, concerned: NodeSet::default() });
    }

    /// The numbers of selectors in order, each once.
    fn numbers(&mut self, selectors: &[Selector]) -> Vec<SelectorId> {
        let numbers: BTreeSet<_> = selectors.iter().filter_map(|selector| self.index.number(selector)).collect();
        numbers.into_iter().collect()
    }
}

fn is_self(target: &Selector) -> bool {
    *target == Selector::Auto(Autogroup::SelfNodes)
}

/// What the receivers of some capabilities give in return, each by itself.
pub(super) fn companions(app: &CapMap) -> impl Iterator<Item = CapMap> + '_ {
    let given = COMPANION_CAPS.iter().filter(|(capability, _)| app.contains_key(*capability));
    given.map(|(_, companion)| CapMap::from([((*companion).to_owned(), None)]))
}
