//! Which node is meant by which selector.
//!
//! Each distinct selector of a policy has a number. Placing a node in the table finds the selectors that mean
//! it, without looking at any other node; so one node more costs the same in a small network and a large one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::types::{IpNet, NodeId, Role, UserId, is_default_route};

use super::document::Policy;
use super::login::canonical_login;
use super::nodeset::NodeSet;
use super::selector::{Autogroup, Selector};
use super::topology::{Node, User, is_subnet, overlaps};

/// The number of a selector.
pub(super) type SelectorId = usize;

/// A node with what the policy makes of it.
#[derive(Clone, Debug)]
pub(super) struct NodeEntry {
    pub(super) id: NodeId,
    pub(super) node: Node,
    /// The addresses it goes by: without IPv4 where the policy disables that.
    pub(super) addresses: Vec<IpAddr>,
    /// The advertised routes that are approved, by hand or by the policy.
    pub(super) routes: Vec<IpNet>,
    /// The selectors that mean the node, by ownership or by address.
    pub(super) selected: Vec<SelectorId>,
    /// The selectors of addresses that lie behind the node's subnet routes.
    pub(super) behind: Vec<SelectorId>,
    /// The postures that the node meets.
    pub(super) postures: Vec<usize>,
}

impl NodeEntry {
    /// Whether traffic to the internet may leave through the node.
    pub(super) fn is_exit(&self) -> bool {
        self.routes.iter().any(is_default_route)
    }

    pub(super) fn subnets(&self) -> impl Iterator<Item = &IpNet> {
        self.routes.iter().filter(|route| is_subnet(route))
    }

    /// Whether `address` is one of the node's.
    pub(super) fn has_address_in(&self, net: &IpNet) -> bool {
        self.addresses.iter().any(|address| net.contains(address))
    }
}

/// The selectors whose nodes, or whose nodes' addresses, a change may have altered.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    selectors: BTreeSet<SelectorId>,
    /// Whether the change was of an exit node.
    pub(super) exits: bool,
}

impl Touched {
    pub(super) fn any_of(&self, selectors: &[SelectorId]) -> bool {
        selectors.iter().any(|selector| self.selectors.contains(selector))
    }

    fn add(&mut self, place: &NodeEntry) {
        self.selectors.extend(place.selected.iter().chain(&place.behind));
        self.exits |= place.is_exit();
    }
}

/// The node table, and a set of slots for each selector.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    selectors: Vec<Selector>,
    numbers: BTreeMap<Selector, SelectorId>,
    /// The selectors of addresses, each with its prefixes.
    address_selectors: Vec<(SelectorId, Vec<IpNet>)>,
    /// For each user the selectors that mean them.
    user_selectors: BTreeMap<UserId, Vec<SelectorId>>,
    users: BTreeMap<UserId, User>,
    pub(super) posture_names: Vec<String>,

    /// Boxed, so that making room for one more moves pointers and not nodes.
    pub(super) places: Vec<Option<Box<NodeEntry>>>,
    free: Vec<usize>,
    slots: BTreeMap<NodeId, usize>,
    selected: Vec<NodeSet>,
    behind: Vec<NodeSet>,
    posture_sets: Vec<NodeSet>,
    pub(super) everyone: NodeSet,
    pub(super) exits: NodeSet,
    /// The nodes that speak nothing but WireGuard.
    pub(super) devices: NodeSet,
    /// Untagged nodes by user.
    pub(super) owned: BTreeMap<UserId, NodeSet>,
    /// Approved subnet routes, each with the nodes that serve it.
    pub(super) routes: BTreeMap<IpNet, NodeSet>,
    pub(super) by_address: BTreeMap<IpAddr, usize>,
}

impl Index {
    pub(super) fn new(policy: &Policy, users: BTreeMap<UserId, User>) -> Self {
        let mut index = Self { users, ..Self::default() };
        index.posture_names = policy.postures.keys().cloned().collect();
        index.posture_sets = vec![NodeSet::default(); index.posture_names.len()];
        for selector in policy.selectors().chain([&Selector::Any]) {
            index.intern(selector, policy);
        }
        let directory = Directory::new(&index.users);
        for (number, selector) in index.selectors.iter().enumerate() {
            for user in directory.users(selector, policy) {
                index.user_selectors.entry(user).or_default().push(number);
            }
        }
        index
    }

    fn intern(&mut self, selector: &Selector, policy: &Policy) {
        if self.numbers.contains_key(selector) {
            return;
        }
        let number = self.selectors.len();
        match selector {
            Selector::Net(net) => self.address_selectors.push((number, vec![*net])),
            Selector::Set(name) => {
                let nets = policy.sets.get(name).cloned().unwrap_or_default();
                self.address_selectors.push((number, nets));
            }
            Selector::Any
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_) => {}
        }
        self.selectors.push(selector.clone());
        self.numbers.insert(selector.clone(), number);
        self.selected.push(NodeSet::default());
        self.behind.push(NodeSet::default());
    }

    /// Whether a selector means a user, and so the user's untagged nodes.
    pub(super) fn means_user(&self, selector: &Selector, user: UserId) -> bool {
        let means = self.user_selectors.get(&user);
        self.number(selector).zip(means).is_some_and(|(number, means)| means.contains(&number))
    }

    /// The number of a selector; those that the policy does not use have none.
    pub(super) fn number(&self, selector: &Selector) -> Option<SelectorId> {
        self.numbers.get(selector).copied()
    }

    pub(super) fn selector(&self, number: SelectorId) -> &Selector {
        &self.selectors[number]
    }

    /// The selectors with the nodes they mean.
    pub(super) fn named(&self) -> impl Iterator<Item = (&Selector, &NodeSet)> {
        self.selectors.iter().zip(&self.selected)
    }

    /// The nodes that a selector means.
    pub(super) fn selected(&self, number: SelectorId) -> &NodeSet {
        &self.selected[number]
    }

    /// The nodes with an approved route to addresses that the selector means.
    pub(super) fn behind(&self, number: SelectorId) -> &NodeSet {
        &self.behind[number]
    }

    /// The prefixes of a selector of addresses.
    pub(super) fn prefixes(&self, number: SelectorId) -> &[IpNet] {
        let found = self.address_selectors.binary_search_by_key(&number, |(number, _)| *number);
        found.ok().and_then(|found| self.address_selectors.get(found)).map_or(&[], |(_, nets)| nets)
    }

    /// The nodes with an address in `prefix`.
    pub(super) fn slots_in(&self, prefix: &IpNet) -> impl Iterator<Item = usize> + '_ {
        self.by_address.range(prefix.network()..=prefix.broadcast()).map(|(_, slot)| *slot)
    }

    pub(super) fn posture(&self, name: &str) -> Option<&NodeSet> {
        let number = self.posture_names.iter().position(|known| known == name)?;
        self.posture_sets.get(number)
    }

    pub(super) fn slot(&self, id: NodeId) -> Option<usize> {
        self.slots.get(&id).copied()
    }

    pub(super) fn place(&self, slot: usize) -> Option<&NodeEntry> {
        self.places.get(slot)?.as_deref()
    }

    pub(super) fn users(&self) -> &BTreeMap<UserId, User> {
        &self.users
    }

    /// Adds or replaces a user. Their nodes must be put in again.
    pub(super) fn put_user(&mut self, id: UserId, user: User, policy: &Policy) {
        let alone = BTreeMap::from([(id, user)]);
        let directory = Directory::new(&alone);
        let means = |(_, selector): &(SelectorId, &Selector)| directory.users(selector, policy).contains(&id);
        let means: Vec<_> = self.selectors.iter().enumerate().filter(means).map(|(number, _)| number).collect();
        self.user_selectors.insert(id, means);
        self.users.extend(alone);
    }

    pub(super) fn remove_user(&mut self, id: UserId) {
        self.user_selectors.remove(&id);
        self.users.remove(&id);
    }

    /// Puts a node into the table, in its old slot if it had one: the one that was freed last.
    pub(super) fn insert(&mut self, id: NodeId, node: Node, policy: &Policy) -> Touched {
        let mut touched = self.remove(id);
        let place = self.examine(id, node, policy);
        let slot = self.free.pop().unwrap_or(self.places.len());
        if slot == self.places.len() {
            self.places.push(None);
        }
        self.slots.insert(id, slot);
        self.everyone.insert(slot);
        place.selected.iter().for_each(|number| self.selected[*number].insert(slot));
        place.behind.iter().for_each(|number| self.behind[*number].insert(slot));
        place.postures.iter().for_each(|number| self.posture_sets[*number].insert(slot));
        if place.is_exit() {
            self.exits.insert(slot);
        }
        if place.node.is_device() {
            self.devices.insert(slot);
        }
        if !place.node.is_tagged() {
            self.owned.entry(place.node.user).or_default().insert(slot);
        }
        for route in place.subnets() {
            self.routes.entry(*route).or_default().insert(slot);
        }
        self.by_address.extend(place.addresses.iter().map(|address| (*address, slot)));
        touched.add(&place);
        self.places[slot] = Some(Box::new(place));
        touched
    }

    /// Takes a node out; its slot becomes free.
    pub(super) fn remove(&mut self, id: NodeId) -> Touched {
        let mut touched = Touched::default();
        let Some(slot) = self.slots.remove(&id) else { return touched };
        let Some(place) = self.places.get_mut(slot).and_then(Option::take) else { return touched };
        self.free.push(slot);
        self.everyone.remove(slot);
        self.exits.remove(slot);
        self.devices.remove(slot);
        place.selected.iter().for_each(|number| self.selected[*number].remove(slot));
        place.behind.iter().for_each(|number| self.behind[*number].remove(slot));
        place.postures.iter().for_each(|number| self.posture_sets[*number].remove(slot));
        if let Some(owned) = self.owned.get_mut(&place.node.user) {
            owned.remove(slot);
        }
        for route in place.subnets() {
            if let Some(carriers) = self.routes.get_mut(route) {
                carriers.remove(slot);
            }
        }
        self.routes.retain(|_, carriers| !carriers.is_empty());
        for address in &place.addresses {
            self.by_address.remove(address);
        }
        touched.add(&place);
        touched
    }

    fn examine(&self, id: NodeId, node: Node, policy: &Policy) -> NodeEntry {
        let mut selected: BTreeSet<SelectorId> = self.owner_selectors(&node).collect();
        for (number, nets) in &self.address_selectors {
            if nets.iter().any(|net| node.addresses.iter().any(|address| net.contains(address))) {
                selected.insert(*number);
            }
        }
        let means = |selector: &Selector| self.number(selector).is_some_and(|number| selected.contains(&number));
        let routes = policy.approved(&node, means);
        let mut addresses = node.addresses.clone();
        if policy.disables_ipv4(means) {
            addresses.retain(IpAddr::is_ipv6);
        }
        let is_behind = |nets: &[IpNet]| {
            routes.iter().filter(|route| is_subnet(route)).any(|route| nets.iter().any(|net| overlaps(net, route)))
        };
        let behind = self.address_selectors.iter().filter(|(_, nets)| is_behind(nets)).map(|(number, _)| *number);
        let postures = policy.postures.values().enumerate().filter(|(_, posture)| posture.holds(&node.attributes));
        NodeEntry {
            behind: behind.collect(),
            postures: postures.map(|(number, _)| number).collect(),
            selected: selected.into_iter().collect(),
            id,
            node,
            addresses,
            routes,
        }
    }

    /// The selectors that mean the node because of who owns it.
    fn owner_selectors<'i>(&'i self, node: &'i Node) -> impl Iterator<Item = SelectorId> + 'i {
        let tags = node.tags.iter().map(|tag| Selector::Tag(tag.clone()));
        let general = if node.is_tagged() { Autogroup::Tagged } else { Autogroup::Member };
        let general = [Selector::Any, Selector::Auto(general), Selector::Auto(Autogroup::DangerAll)];
        let user = self.user_selectors.get(&node.user).filter(|_| !node.is_tagged());
        tags.chain(general).filter_map(|selector| self.number(&selector)).chain(user.into_iter().flatten().copied())
    }
}

/// Users by what policies call them.
struct Directory<'u> {
    users: &'u BTreeMap<UserId, User>,
    by_login: BTreeMap<String, Vec<UserId>>,
    by_domain: BTreeMap<String, Vec<UserId>>,
}

impl<'u> Directory<'u> {
    fn new(users: &'u BTreeMap<UserId, User>) -> Self {
        let mut directory = Self { users, by_login: BTreeMap::new(), by_domain: BTreeMap::new() };
        for (id, user) in users {
            let Some(login) = canonical_login(&user.login) else { continue };
            if let Some((_, domain)) = login.rsplit_once('@') {
                directory.by_domain.entry(domain.to_owned()).or_default().push(*id);
            }
            directory.by_login.entry(login).or_default().push(*id);
        }
        directory
    }

    /// The users that a selector means.
    fn users(&self, selector: &Selector, policy: &Policy) -> BTreeSet<UserId> {
        let found = |map: &BTreeMap<String, Vec<UserId>>, name: &str| map.get(name).cloned().unwrap_or_default();
        let with_role = |least: Role| self.users.iter().filter(move |(_, user)| user.role >= least).map(|(id, _)| *id);
        match selector {
            Selector::User(name) => {
                let login = canonical_login(name);
                login.map(|login| found(&self.by_login, &login)).into_iter().flatten().collect()
            }
            Selector::Domain(domain) => found(&self.by_domain, &domain.to_lowercase()).into_iter().collect(),
            Selector::Group(name) => {
                let members = policy.groups.get(name).map(Vec::as_slice).unwrap_or_default();
                members.iter().flat_map(|member| self.users(member, policy)).collect()
            }
            Selector::Auto(Autogroup::Admin) => with_role(Role::Admin).collect(),
            Selector::Auto(Autogroup::Owner) => with_role(Role::Owner).collect(),
            Selector::Any | Selector::Net(_) | Selector::Set(_) | Selector::Tag(_) | Selector::Auto(_) => {
                BTreeSet::new()
            }
        }
    }
}
