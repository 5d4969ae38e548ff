//! Who sees whom, and what of whom: the place of the policy.
//!
//! Nodes that see the same peers, each itself left out, form one [`ViewClass`]; what is told of a change is worked
//! out once for each class, not for each node. Where a policy is in force a class is a [`View`] of it, and peers
//! that carry routes may be shown differently to different classes ([`Visibility`]).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::entry::NodeState;
use super::few::Few;
use super::message::{Chunk, json};
use crate::policy::{Carried, Change, Compiled, NodeKind, RuleSet, SshKind, View};
use crate::registry::presence::INSIDE;
use crate::types::{NodeId, is_default_route};
use crate::wire::control::{RuleOrigin, match_all};

/// Who sees whom, by class, and what of the policy viewers have not been sent yet.
#[derive(Debug, Default)]
pub(super) struct Views {
    classes: BTreeMap<Arc<View>, ViewClass>,
    views: BTreeMap<ViewClass, Arc<View>>,
    /// The class that was given last; nothing where a policy never gave one.
    last: Option<ViewClass>,
    /// The classes of kinds, as long as nothing changes.
    kinds: BTreeMap<NodeKind, ViewClass>,
    /// The classes after a few changes, by the class before and who of the changed nodes is seen; for one flush.
    after: BTreeMap<(ViewClass, Vec<NodeId>), ViewClass>,
    /// The SSH rules of kinds of nodes, as long as nothing changes.
    ssh: BTreeMap<SshKind, SshRules>,
    /// What changed since viewers were last sent anything.
    stale: Change,
}

/// SSH rules as a field of a message.
#[derive(Clone, Debug)]
struct SshRules {
    /// Not zero.
    digest: u64,
    field: Arc<Chunk>,
}

/// Kinds of nodes whose SSH rules are kept written: those of many nodes are few kinds, and a text may name every node.
const SSH_KINDS: usize = 256;

/// Changed nodes up to which a view is worked out from the one before: each costs a look for every viewer.
const FEW: usize = 16;

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
pub(super) struct Visibility {
    /// Without its IPv4 address, which they have no use for.
    pub(super) without_ipv4: bool,
    /// With these routes; `None` for the routes that it was chosen for among all.
    pub(super) carried: Option<Carried>,
}

/// What a node was told of its packet filter and its SSH rules: digests, by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SentFilter {
    parts: Few<PartName, u64>,
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
    pub(super) viewers: Vec<NodeId>,
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

impl Views {
    /// Another policy is in force: everybody must be asked about anew. Views that the one before gave keep their classes,
    /// since viewers were sent them.
    pub(super) fn policy_changed(&mut self, rules: &Compiled) {
        self.forget_kinds();
        self.after.clear();
        self.stale = Change::everything(rules);
    }

    /// The policy says something else of some nodes.
    pub(super) fn changed(&mut self, change: &Change) {
        self.forget_kinds();
        self.stale.add(change);
    }

    fn forget_kinds(&mut self) {
        self.kinds.clear();
        self.ssh.clear();
    }

    /// The class that a viewer belongs to as things stand.
    pub(super) fn class(&mut self, rules: Option<&Compiled>, viewer: &NodeState) -> ViewClass {
        let Some(rules) = rules.filter(|_| !viewer.expired) else {
            return if viewer.expired { ViewClass::NOBODY } else { ViewClass::EVERYONE };
        };
        let id = viewer.record.id;
        let Some(kind) = rules.kind(id) else { return ViewClass::NOBODY };
        if let Some(class) = self.kinds.get(&kind) {
            return *class;
        }
        let class = self.class_of(rules.view(id));
        self.kinds.insert(kind, class);
        class
    }

    /// The class that a viewer of a class belongs to after a few other nodes changed: what [`Views::class`] finds, without
    /// a look at the rest of the network.
    pub(super) fn class_after(
        &mut self,
        rules: Option<&Compiled>,
        was: ViewClass,
        viewer: &NodeState,
        changed: &[NodeId],
    ) -> ViewClass {
        let found = match rules {
            Some(rules) if !viewer.expired => self.stepped(rules, was, viewer.record.id, changed),
            Some(_) | None => None,
        };
        found.unwrap_or_else(|| self.class(rules, viewer))
    }

    /// The class of a node that was in another before some others changed, none of them a router; nothing where it
    /// must be looked at anew.
    fn stepped(&mut self, rules: &Compiled, was: ViewClass, id: NodeId, changed: &[NodeId]) -> Option<ViewClass> {
        let before = self.views.get(&was).filter(|_| !changed.contains(&id))?;
        if changed.is_empty() {
            return Some(was);
        }
        let seen: Vec<NodeId> = changed.iter().copied().filter(|other| rules.sees(id, *other)).collect();
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
        let next = self.last.map_or(ViewClass::FIRST.0, |last| last.0.wrapping_add(1).max(ViewClass::FIRST.0));
        let (class, view) = (ViewClass(next), Arc::new(view));
        self.last = Some(class);
        self.views.insert(class, Arc::clone(&view));
        self.classes.insert(view, class);
        class
    }

    /// The view that a class is, where a policy gave it.
    pub(super) fn view(&self, class: ViewClass) -> Option<&Arc<View>> {
        self.views.get(&class)
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
    pub(super) fn visibility(&self, class: ViewClass, peer: &NodeState) -> Option<Visibility> {
        match class {
            ViewClass::NOBODY => None,
            ViewClass::EVERYONE => Some(Visibility::default()),
            class => {
                let view = self.view(class)?;
                view.peers.binary_search(&peer.record.id).ok()?;
                let carried = view.routers.get(&peer.record.id).filter(|carried| !is_usual(carried, peer)).cloned();
                Some(Visibility { without_ipv4: view.without_ipv4, carried })
            }
        }
    }

    /// Whether viewers of a class see a peer.
    pub(super) fn sees(&self, class: ViewClass, peer: NodeId) -> bool {
        match class {
            ViewClass::NOBODY => false,
            ViewClass::EVERYONE => true,
            class => self.view(class).is_some_and(|view| view.peers.binary_search(&peer).is_ok()),
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

    /// What a node of a class is to be sent of its filter after what it was sent, and has been sent from here on.
    pub(super) fn filter_news(
        &mut self,
        rules: Option<&Compiled>,
        class: ViewClass,
        id: NodeId,
        told: &mut SentFilter,
        extent: Extent<'_>,
    ) -> FilterNews {
        let mut news = FilterNews::default();
        if let Extent::First = extent {
            *told = SentFilter::default();
            // A client may remember parts from a stream before this one.
            news.drop("*");
        }
        let compiled = match rules {
            Some(rules) if class != ViewClass::NOBODY => rules,
            Some(_) | None => {
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
                told.update_parts(compiled, id, rules, &mut news);
                ssh
            }
            Extent::First | Extent::Whole => {
                let filter = compiled.filter(id);
                let parts: BTreeMap<_, _> =
                    compiled.parts(&filter).map(|part| (PartName(part.origin().cloned()), part)).collect();
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
            told.replace_ssh(self.ssh(compiled, id), &mut news);
        }
        news
    }

    /// The SSH rules of a node, written once for all nodes that have the same; nothing where the policy has none at all.
    fn ssh(&mut self, rules: &Compiled, id: NodeId) -> Option<SshRules> {
        if !rules.policy().has_ssh() {
            return None;
        }
        let kind = rules.ssh_kind(id);
        if let Some(written) = self.ssh.get(&kind) {
            return Some(written.clone());
        }
        let text = format!("\"SSHPolicy\":{}", json(&rules.ssh_policy(id, INSIDE)));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let written = SshRules { digest: hasher.finish().max(1), field: Chunk::of_text(&text) };
        if self.ssh.len() >= SSH_KINDS {
            self.ssh.clear();
        }
        self.ssh.insert(kind, written.clone());
        Some(written)
    }

    /// The nodes whose classes, and those whose filters, may be others since this was last asked. Nothing is stale from
    /// here on.
    pub(super) fn take_stale(&mut self, rules: Option<&Compiled>) -> Stale {
        self.after.clear();
        let Change { filters, peers, whole, ssh, rules: changed, alone } = std::mem::take(&mut self.stale);
        let Some(rules) = rules else { return Stale::default() };
        let nodes = |set| rules.nodes(set);
        Stale {
            viewers: nodes(&peers).collect(),
            filters: nodes(&filters).collect(),
            whole: nodes(&whole).collect(),
            ssh: nodes(&ssh).collect(),
            rules: changed,
            alone: alone.filter(|alone| alone.len() <= FEW).map(|alone| alone.into_iter().collect()),
        }
    }

    /// Forgets the view of a class that nobody is in.
    pub(super) fn forget(&mut self, class: ViewClass) {
        if let Some(view) = self.views.remove(&class) {
            self.classes.remove(&view);
        }
        self.kinds.retain(|_, known| *known != class);
        self.after.retain(|_, known| *known != class);
    }

    /// How many views there are.
    pub(super) fn count(&self) -> usize {
        self.views.len().max(1)
    }
}

impl SentFilter {
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
        self.parts = now.into();
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
fn is_usual(carried: &Carried, peer: &NodeState) -> bool {
    carried.subnets == peer.primary && carried.exits.iter().eq(peer.served().iter().filter(|r| is_default_route(r)))
}
