//! A policy in force: what it says of the nodes there are, and what of that connected nodes do not know yet.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::message::json;
use super::view::{Given, Shown};
use super::visibility::{Stale, ViewClass};
use crate::policy::{Attribute, Change, Compiled, Kind, Node, Policy, Role, User, View};
use crate::types::{NodeId, UserId};
use crate::wire::control::Hostinfo;

/// A policy, compiled against the network, and the views it gives.
#[derive(Debug)]
pub(super) struct Gate {
    compiled: Compiled,
    /// Where nodes ask about SSH sessions that are held.
    server_url: String,
    classes: BTreeMap<Arc<View>, ViewClass>,
    views: BTreeMap<ViewClass, Arc<View>>,
    next: ViewClass,
    /// The classes of kinds, as long as nothing changes.
    kinds: BTreeMap<Kind, ViewClass>,
    /// The classes after a few changes, by the class before and who of the changed nodes is seen; for one flush.
    after: BTreeMap<(ViewClass, Vec<NodeId>), ViewClass>,
    /// What changed since connected nodes were last told.
    stale: Change,
}

/// Changed nodes up to which a view is worked out from the one before: each costs a look for every viewer.
const FEW: usize = 16;

impl Gate {
    /// Puts a policy in force. Views that `before` gave keep their classes, since connected nodes were told
    /// them; everybody must be told anew.
    pub(super) fn new(compiled: Compiled, server_url: String, before: Option<Self>) -> Self {
        let stale = Change::everything(&compiled);
        let (kinds, after, next) = (BTreeMap::new(), BTreeMap::new(), ViewClass::FIRST);
        match before {
            Some(before) => Self { compiled, server_url, kinds, after, stale, ..before },
            None => {
                let (classes, views) = (BTreeMap::new(), BTreeMap::new());
                Self { compiled, server_url, classes, views, next, kinds, after, stale }
            }
        }
    }

    pub(super) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The class of a node that is no exception.
    pub(super) fn class(&mut self, id: NodeId) -> ViewClass {
        let Some(kind) = self.compiled.kind(id) else { return ViewClass::NOBODY };
        if let Some(class) = self.kinds.get(&kind) {
            return *class;
        }
        let class = self.class_of(self.compiled.view(id));
        self.kinds.insert(kind, class);
        class
    }

    /// The class of a node that was in another before some others changed, none of them a router; nothing where it
    /// must be looked at anew.
    pub(super) fn class_after(&mut self, was: ViewClass, id: NodeId, changed: &[NodeId]) -> Option<ViewClass> {
        let before = self.views.get(&was).filter(|_| !changed.contains(&id))?;
        if changed.is_empty() {
            return Some(was);
        }
        let seen: Vec<NodeId> = changed.iter().copied().filter(|other| self.compiled.sees(id, *other)).collect();
        if let Some(class) = self.after.get(&(was, seen.clone())) {
            return Some(*class);
        }
        let mut peers: Vec<NodeId> = before.peers.iter().filter(|peer| !changed.contains(peer)).copied().collect();
        peers.extend(&seen);
        peers.sort_unstable();
        let view = View { peers, without_ipv4: before.without_ipv4, routers: before.routers.clone() };
        let class = self.class_of(view);
        self.after.insert((was, seen), class);
        Some(class)
    }

    fn class_of(&mut self, view: View) -> ViewClass {
        if let Some(class) = self.classes.get(&view) {
            return *class;
        }
        let (class, view) = (self.next, Arc::new(view));
        self.next = ViewClass(class.0.wrapping_add(1).max(ViewClass::FIRST.0));
        self.views.insert(class, Arc::clone(&view));
        self.classes.insert(view, class);
        class
    }

    pub(super) fn view(&self, class: ViewClass) -> Option<&Arc<View>> {
        self.views.get(&class)
    }

    /// What to ask about again. Nothing is stale from here on.
    pub(super) fn take_stale(&mut self) -> Stale {
        self.after.clear();
        let Change { filters, peers, whole, ssh, rules, alone } = std::mem::take(&mut self.stale);
        let nodes = |set| self.compiled.nodes(set);
        Stale {
            viewers: nodes(&peers).collect(),
            filters: nodes(&filters).collect(),
            whole: nodes(&whole).collect(),
            ssh: nodes(&ssh).collect(),
            rules,
            alone: alone.filter(|alone| alone.len() <= FEW).map(|alone| alone.into_iter().collect()),
        }
    }

    /// Forgets a class that nobody was told.
    pub(super) fn forget(&mut self, class: ViewClass) {
        if let Some(view) = self.views.remove(&class) {
            self.classes.remove(&view);
        }
        self.kinds.retain(|_, known| *known != class);
        self.after.retain(|_, known| *known != class);
    }

    /// How many views there are.
    pub(super) fn views(&self) -> usize {
        self.views.len()
    }

    /// A node is, from here on, this; what the policy gives it comes back.
    pub(super) fn put_node(&mut self, shown: &Shown) -> Given {
        let id = shown.record.id;
        let node = self.node_of(shown);
        if self.compiled.node(id) != Some(&node) {
            let change = self.compiled.upsert(id, node);
            self.changed(&change);
        }
        self.given(id)
    }

    pub(super) fn remove_node(&mut self, id: NodeId) {
        let change = self.compiled.remove(id);
        self.changed(&change);
    }

    pub(super) fn put_user(&mut self, id: UserId, login: &str, role: Role) {
        let change = self.compiled.put_user(id, User { login: login.to_owned(), role });
        self.changed(&change);
    }

    pub(super) fn remove_user(&mut self, id: UserId) {
        self.compiled.remove_user(id);
    }

    fn changed(&mut self, change: &Change) {
        self.kinds.clear();
        self.stale.add(change);
    }

    /// What the policy gives to a node.
    pub(super) fn given(&self, id: NodeId) -> Given {
        let addresses = self.compiled.addresses(id);
        let attributes = self.compiled.attributes(id);
        Given {
            routes: self.compiled.approved_routes(id).to_vec(),
            without_ipv4: !addresses.iter().any(std::net::IpAddr::is_ipv4),
            attributes: if attributes.is_empty() { Arc::from("") } else { json(&attributes).into() },
        }
    }

    /// The SSH rules of a node as text with their digest; zero where the policy has none at all.
    pub(super) fn ssh(&self, id: NodeId) -> (u64, Option<String>) {
        if !self.compiled.policy().has_ssh() {
            return (0, None);
        }
        let text = json(&self.compiled.ssh_policy(id, &self.server_url));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        (hasher.finish().max(1), Some(text))
    }

    fn node_of(&self, shown: &Shown) -> Node {
        node_of(shown, self.compiled.policy())
    }
}

/// A node the way policies see it. One whose key is past its time serves no routes.
pub(super) fn node_of(shown: &Shown, policy: &Policy) -> Node {
    let record = &shown.record;
    let (advertised, primary) = match shown.expired {
        true => (Vec::new(), Vec::new()),
        false => (record.said.routes.clone(), shown.primary.clone()),
    };
    Node {
        name: record.label.to_string(),
        user: record.user,
        tags: record.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
        addresses: vec![record.ipv4.into(), record.ipv6.into()],
        advertised,
        approved: record.approved_routes.clone(),
        primary,
        attributes: if policy.has_postures() { attributes(&record.hostinfo()) } else { BTreeMap::new() },
    }
}

/// What posture conditions may look at, as far as a node reports it.
fn attributes(info: &Hostinfo) -> BTreeMap<String, Attribute> {
    let version = info.ipn_version.split(['-', '+']).next().unwrap_or_default();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u64>().ok());
    // Of the official client's versions those with an odd second number are trials.
    let track = minor.map(|minor| if minor % 2 == 0 { "stable" } else { "unstable" });
    let texts = [
        ("node:os", info.os.to_lowercase()),
        ("node:osVersion", info.os_version.clone()),
        ("node:tsVersion", version.to_owned()),
        ("node:tsReleaseTrack", track.unwrap_or_default().to_owned()),
        ("node:distro", info.distro.to_lowercase()),
        ("node:distroVersion", info.distro_version.clone()),
    ];
    let known = texts.into_iter().filter(|(_, text)| !text.is_empty());
    known.map(|(name, text)| (name.to_owned(), Attribute::Text(text))).collect()
}
