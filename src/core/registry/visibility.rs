//! Who sees whom, and what of whom: the place of the policy.
//!
//! Nodes that see the same peers, each itself left out, form one [`ViewClass`]; what is told of a change is worked
//! out once for each class, not for each node. Where a policy is in force a class is a [`View`] of it, and peers
//! that carry routes may be shown differently to different classes ([`Sight`]).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gate::{Gate, SshRules};
use super::message::{Chunk, json};
use super::view::{Given, Shown};
use crate::policy::{Carried, Compiled, RuleSet, View};
use crate::types::{NodeId, UserId, is_default_route};
use crate::wire::control::{RuleOrigin, match_all};

/// Who sees whom, and what their packet filters admit.
#[derive(Debug, Default)]
pub(super) enum Visibility {
    /// Nobody ever set a policy: every node sees every other and may reach it on any port.
    #[default]
    Everyone,
    /// What the policy says.
    Policy(Box<Gate>),
}

/// The name of a set of viewers who see the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ViewClass(pub(super) u32);

impl ViewClass {
    /// Sees nobody and admits nobody: a node whose key has expired.
    pub(super) const NOBODY: Self = Self(0);
    pub(super) const EVERYONE: Self = Self(1);
    /// The first that a policy may give.
    pub(super) const FIRST: Self = Self(2);
}

/// How viewers are shown a peer that they see.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sight {
    /// Without its IPv4 address, which they have no use for.
    pub(super) without_ipv4: bool,
    /// With these routes; `None` for the routes that it was chosen for among all.
    pub(super) carried: Option<Carried>,
}

/// What a node was told of its packet filter and its SSH rules: digests, by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ToldFilter {
    parts: BTreeMap<PartName, u64>,
    /// Zero where it was told none.
    ssh: u64,
}

/// A part of a packet filter, by the name of the rule that it is of; `None` for what no rule stands behind.
#[derive(Clone, Debug)]
struct PartName(Option<Arc<RuleOrigin>>);

impl PartName {
    fn text(&self) -> &str {
        self.0.as_ref().map_or(UNWRITTEN, |origin| &origin.reference)
    }
}

impl PartialEq for PartName {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PartName {}

impl PartialOrd for PartName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PartName {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => Ordering::Equal,
            (a, b) => a.as_ref().map(|a| &a.reference).cmp(&b.as_ref().map(|b| &b.reference)),
        }
    }
}

/// What a node is to be told of its packet filter and its SSH rules.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterNews {
    /// `PacketFilters` without its braces: parts that came or changed, and `null` for those that went.
    pub(super) parts: String,
    /// The SSH rules, where they changed: the field `SSHPolicy`.
    pub(super) ssh: Option<Arc<Chunk>>,
}

impl FilterNews {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.ssh.is_none()
    }

    /// Adds a part: what `write` appends, a JSON list.
    fn add(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        if !self.parts.is_empty() {
            self.parts.push(',');
        }
        self.parts.push_str(&json(&name));
        self.parts.push(':');
        write(&mut self.parts);
    }

    fn drop(&mut self, name: &str) {
        self.add(name, |text| text.push_str("null"));
    }
}

/// How much of its filter a node is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent<'r> {
    /// All of it. Whatever its client remembers is forgotten.
    First,
    /// All of it; what it was told is known.
    Whole,
    /// What comes from some rules, and where `ssh` says so the SSH rules.
    Rules { rules: &'r RuleSet, ssh: bool },
}

/// The nodes to ask about again.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Their classes.
    pub(super) viewers: Vec<NodeId>,
    /// Their filters.
    pub(super) filters: Vec<NodeId>,
    /// Of those, the ones that may have changed in any part.
    pub(super) whole: BTreeSet<NodeId>,
    /// Of those, the ones whose SSH rules may have changed.
    pub(super) ssh: BTreeSet<NodeId>,
    /// The rules that may have changed in the filters of the others.
    pub(super) rules: RuleSet,
    /// The nodes by which alone the views of others changed, where that is so and they are few.
    pub(super) alone: Option<Vec<NodeId>>,
}

/// The part that holds without a rule of a policy.
const UNWRITTEN: &str = "base";

impl Visibility {
    /// The class that a viewer belongs to as things stand.
    pub(super) fn class(&mut self, viewer: &Shown) -> ViewClass {
        match self {
            _ if viewer.expired => ViewClass::NOBODY,
            Self::Everyone => ViewClass::EVERYONE,
            Self::Policy(gate) => gate.class(viewer.record.id),
        }
    }

    /// The class that a viewer of a class belongs to after a few other nodes changed: what [`Visibility::class`] finds,
    /// without a look at the rest of the network.
    pub(super) fn class_after(&mut self, was: ViewClass, viewer: &Shown, changed: &[NodeId]) -> ViewClass {
        match self {
            Self::Policy(gate) if !viewer.expired => {
                gate.class_after(was, viewer.record.id, changed).unwrap_or_else(|| gate.class(viewer.record.id))
            }
            _ => self.class(viewer),
        }
    }

    /// The view that a class is, where a policy gave it.
    pub(super) fn view(&self, class: ViewClass) -> Option<&Arc<View>> {
        match self {
            Self::Everyone => None,
            Self::Policy(gate) => gate.view(class),
        }
    }

    /// Whom viewers of a class see, by number; `None` for everybody.
    pub(super) fn peers(&self, class: ViewClass) -> Option<&[NodeId]> {
        match class {
            ViewClass::NOBODY => Some(&[]),
            class => self.view(class).map(|view| view.peers.as_slice()),
        }
    }

    /// How viewers of a class are shown a peer; `None` where they do not see it. That nobody is a peer of itself
    /// is the caller's business.
    pub(super) fn sight(&self, class: ViewClass, peer: &Shown) -> Option<Sight> {
        match class {
            ViewClass::NOBODY => None,
            ViewClass::EVERYONE => Some(Sight::default()),
            class => {
                let view = self.view(class)?;
                view.peers.binary_search(&peer.record.id).ok()?;
                let carried = view.routers.get(&peer.record.id).filter(|carried| !is_usual(carried, peer)).cloned();
                Some(Sight { without_ipv4: view.without_ipv4, carried })
            }
        }
    }

    /// Whether viewers of a class see a peer.
    pub(super) fn sees(&self, class: ViewClass, peer: &Shown) -> bool {
        match class {
            ViewClass::NOBODY => false,
            ViewClass::EVERYONE => true,
            class => self.view(class).is_some_and(|view| view.peers.binary_search(&peer.record.id).is_ok()),
        }
    }

    /// The peers that two classes see differently; `None` where that may be any.
    pub(super) fn between(&self, old: ViewClass, new: ViewClass) -> Option<BTreeSet<NodeId>> {
        if old == new {
            return Some(BTreeSet::new());
        }
        let old = self.view(old)?;
        if new == ViewClass::NOBODY {
            return Some(old.peers.iter().copied().collect());
        }
        let new = self.view(new)?;
        if old.without_ipv4 != new.without_ipv4 {
            return Some(old.peers.iter().chain(&new.peers).copied().collect());
        }
        let mut between = BTreeSet::new();
        let (mut olds, mut news) = (old.peers.as_slice(), new.peers.as_slice());
        while let Some(least) = olds.first().into_iter().chain(news.first()).min() {
            let (in_old, in_new) = (olds.first() == Some(least), news.first() == Some(least));
            if in_old != in_new {
                between.insert(*least);
            }
            (olds, news) = (&olds[usize::from(in_old)..], &news[usize::from(in_new)..]);
        }
        let routers = old.routers.iter().chain(&new.routers);
        let rerouted = routers.filter(|(id, _)| old.routers.get(id) != new.routers.get(id)).map(|(id, _)| id);
        between.extend(rerouted);
        Some(between)
    }

    /// What a node of a class is to be told of its filter after what it was told, and which it has been told from here on.
    pub(super) fn filter_news(
        &mut self,
        class: ViewClass,
        id: NodeId,
        told: &mut ToldFilter,
        extent: Extent<'_>,
    ) -> FilterNews {
        let mut news = FilterNews::default();
        if let Extent::First = extent {
            *told = ToldFilter::default();
            // A client may remember parts from a stream before this one.
            news.drop("*");
        }
        let gate = match self {
            Self::Policy(gate) if class != ViewClass::NOBODY => gate,
            _ => {
                let (digest, rules) = if class == ViewClass::NOBODY { (0, Vec::new()) } else { (1, match_all()) };
                let unwritten = BTreeMap::from([(PartName(None), digest)]);
                told.replace_parts(unwritten, &mut news, |news, name| {
                    news.add(name.text(), |text| text.push_str(&json(&rules)));
                });
                told.replace_ssh(None, &mut news);
                return news;
            }
        };
        let with_ssh = match extent {
            Extent::Rules { rules, ssh } => {
                told.update_parts(gate.compiled(), id, rules, &mut news);
                ssh
            }
            Extent::First | Extent::Whole => {
                let filter = gate.compiled().filter(id);
                let parts: BTreeMap<_, _> =
                    gate.compiled().parts(&filter).map(|part| (PartName(part.origin().cloned()), part)).collect();
                let digests = parts.iter().map(|(name, part)| (name.clone(), part.digest())).collect();
                told.replace_parts(digests, &mut news, |news, name| {
                    if let Some(part) = parts.get(name) {
                        news.add(name.text(), |text| part.write_rules(text));
                    }
                });
                true
            }
        };
        if with_ssh {
            told.replace_ssh(gate.ssh(id), &mut news);
        }
        news
    }

    /// The nodes whose classes, and those whose filters, may be others since this was last asked.
    pub(super) fn take_stale(&mut self) -> Stale {
        match self {
            Self::Everyone => Stale::default(),
            Self::Policy(gate) => gate.take_stale(),
        }
    }

    /// Forgets the view of a class that nobody is in.
    pub(super) fn forget(&mut self, class: ViewClass) {
        if let Self::Policy(gate) = self {
            gate.forget(class);
        }
    }

    /// How many views there are.
    pub(super) fn views(&self) -> usize {
        match self {
            Self::Everyone => 1,
            Self::Policy(gate) => gate.views(),
        }
    }

    /// A node is, from here on, this; what it has by the policy, or for want of one, comes back.
    pub(super) fn put_node(&mut self, shown: &Shown) -> Given {
        match self {
            Self::Everyone => Given { routes: shown.record.served_routes().collect(), ..Given::default() },
            Self::Policy(gate) => gate.put_node(shown),
        }
    }

    pub(super) fn remove_node(&mut self, id: NodeId) {
        if let Self::Policy(gate) = self {
            gate.remove_node(id);
        }
    }

    /// A user is, from here on, called this.
    pub(super) fn put_user(&mut self, id: UserId, login: &str, role: crate::policy::Role) {
        if let Self::Policy(gate) = self {
            gate.put_user(id, login, role);
        }
    }

    pub(super) fn remove_user(&mut self, id: UserId) {
        if let Self::Policy(gate) = self {
            gate.remove_user(id);
        }
    }
}

impl ToldFilter {
    /// The parts are, from here on, these; `write` adds one that came or changed.
    fn replace_parts(
        &mut self,
        now: BTreeMap<PartName, u64>,
        news: &mut FilterNews,
        mut write: impl FnMut(&mut FilterNews, &PartName),
    ) {
        for (name, digest) in &now {
            if self.parts.get(name) != Some(digest) {
                write(news, name);
            }
        }
        for gone in self.parts.keys().filter(|name| !now.contains_key(*name)) {
            news.drop(gone.text());
        }
        self.parts = now;
    }

    /// The parts of some rules are, from here on, those that the policy gives.
    fn update_parts(&mut self, compiled: &Compiled, id: NodeId, rules: &RuleSet, news: &mut FilterNews) {
        let filter = compiled.filter_of(id, rules);
        let mut gone: BTreeSet<_> = compiled.rules_of(id, rules).map(|origin| PartName(origin.cloned())).collect();
        for part in compiled.parts(&filter) {
            let (name, digest) = (PartName(part.origin().cloned()), part.digest());
            gone.remove(&name);
            if self.parts.get(&name) != Some(&digest) {
                news.add(name.text(), |text| part.write_rules(text));
                self.parts.insert(name, digest);
            }
        }
        for name in gone {
            if self.parts.remove(&name).is_some() {
                news.drop(name.text());
            }
        }
    }

    /// The SSH rules are, from here on, these.
    fn replace_ssh(&mut self, rules: Option<SshRules>, news: &mut FilterNews) {
        let digest = rules.as_ref().map_or(0, |rules| rules.digest);
        if digest != self.ssh {
            let none = || Chunk::of_text("\"SSHPolicy\":{\"rules\":[]}");
            news.ssh = Some(rules.map_or_else(none, |rules| rules.field));
        }
        self.ssh = digest;
    }
}

/// Whether the routes are those that the peer was chosen for among all.
fn is_usual(carried: &Carried, peer: &Shown) -> bool {
    carried.subnets == peer.primary && carried.exits.iter().eq(peer.routes().iter().filter(|r| is_default_route(r)))
}
