//! Who sees whom, and what of whom: the place of the policy.
//!
//! Nodes that see the same peers, each itself left out, form one [`ViewClass`]; what is told of a change is worked
//! out once for each class, not for each node. Where a policy is in force a class is a [`View`] of it, and peers
//! that carry routes may be shown differently to different classes ([`Sight`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gate::Gate;
use super::view::{Given, Shown};
use crate::policy::{Carried, View};
use crate::types::{NodeId, UserId, is_default_route};
use crate::wire::control::{FilterRule, RuleOrigin, match_all};

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

/// A part of a packet filter, by the rule that it is of; `None` for what no rule stands behind.
type PartName = Option<Arc<str>>;

/// What a node is to be told of its packet filter and its SSH rules.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterNews {
    /// Parts that came or changed, and `None` for those that went.
    pub(super) parts: BTreeMap<String, Option<Vec<FilterRule>>>,
    /// The SSH rules as text, where they changed.
    pub(super) ssh: Option<String>,
}

impl FilterNews {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.ssh.is_none()
    }
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

    /// The view that a class is, where a policy gave it.
    pub(super) fn view(&self, class: ViewClass) -> Option<&Arc<View>> {
        match self {
            Self::Everyone => None,
            Self::Policy(gate) => gate.view(class),
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
        let lost = old.peers.iter().filter(|peer| new.peers.binary_search(peer).is_err());
        let gained = new.peers.iter().filter(|peer| old.peers.binary_search(peer).is_err());
        let routers = old.routers.iter().chain(&new.routers);
        let rerouted = routers.filter(|(id, _)| old.routers.get(id) != new.routers.get(id)).map(|(id, _)| id);
        Some(lost.chain(gained).chain(rerouted).copied().collect())
    }

    /// What a node of a class is to be told of its filter after what it was told; everything where it was told
    /// nothing.
    pub(super) fn filter_news(
        &self,
        class: ViewClass,
        id: NodeId,
        told: Option<&ToldFilter>,
    ) -> (ToldFilter, FilterNews) {
        let nothing = ToldFilter::default();
        let before = told.unwrap_or(&nothing);
        let (mut now, mut news) = (ToldFilter::default(), FilterNews::default());
        let mut part = |origin: Option<&Arc<RuleOrigin>>, digest: u64, rules: &dyn Fn() -> Vec<FilterRule>| {
            let name: PartName = origin.map(|origin| origin.reference.as_str().into());
            if before.parts.get(&name) != Some(&digest) {
                news.parts.insert(text_of(&name), Some(rules()));
            }
            now.parts.insert(name, digest);
        };
        match (class, self) {
            (ViewClass::NOBODY, _) => part(None, 0, &Vec::new),
            (_, Self::Everyone) => part(None, 1, &match_all),
            (_, Self::Policy(gate)) => {
                let filter = gate.compiled().filter(id);
                for one in gate.compiled().parts(&filter) {
                    part(one.origin(), one.digest(), &|| one.rules());
                }
            }
        }
        let gone = before.parts.keys().filter(|name| !now.parts.contains_key(*name));
        news.parts.extend(gone.map(|name| (text_of(name), None)));
        if told.is_none() {
            // A client may remember parts from a stream before this one.
            news.parts.insert("*".to_owned(), None);
        }
        if let (false, Self::Policy(gate)) = (class == ViewClass::NOBODY, self) {
            (now.ssh, news.ssh) = gate.ssh(id);
        }
        if now.ssh == before.ssh {
            news.ssh = None;
        } else if now.ssh == 0 {
            news.ssh = Some("{\"rules\":[]}".to_owned());
        }
        (now, news)
    }

    /// The nodes whose classes, and those whose filters, may be others since this was last asked.
    pub(super) fn take_stale(&mut self) -> (Vec<NodeId>, Vec<NodeId>) {
        match self {
            Self::Everyone => (Vec::new(), Vec::new()),
            Self::Policy(gate) => gate.take_stale(),
        }
    }

    /// Forgets the views of classes that nobody is in.
    pub(super) fn retain(&mut self, is_used: impl Fn(ViewClass) -> bool) {
        if let Self::Policy(gate) = self {
            gate.retain(is_used);
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

fn text_of(name: &PartName) -> String {
    name.as_deref().unwrap_or(UNWRITTEN).to_owned()
}

/// Whether the routes are those that the peer was chosen for among all.
fn is_usual(carried: &Carried, peer: &Shown) -> bool {
    carried.subnets == peer.primary && carried.exits.iter().eq(peer.routes().iter().filter(|r| is_default_route(r)))
}
