//! A policy in force: what it says of the nodes there are, and what of that connected nodes do not know yet.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::message::{Chunk, json};
use super::view::{Given, Shown, TAGGED};
use super::visibility::{Stale, ViewClass};
use crate::policy::{Attribute, Change, Compiled, Kind, Node, Policy, Role, SshKind, User, View};
use crate::types::{NodeId, UserId};
use crate::wire::control::Hostinfo;

/// A policy, compiled against the network, and the views it gives.
#[derive(Debug)]
pub(super) struct Gate {
    compiled: Compiled,
    classes: BTreeMap<Arc<View>, ViewClass>,
    views: BTreeMap<ViewClass, Arc<View>>,
    next: ViewClass,
    /// The classes of kinds, as long as nothing changes.
    kinds: BTreeMap<Kind, ViewClass>,
    /// The classes after a few changes, by the class before and who of the changed nodes is seen; for one flush.
    after: BTreeMap<(ViewClass, Vec<NodeId>), ViewClass>,
    /// The SSH rules of kinds of nodes, as long as nothing changes.
    ssh: BTreeMap<SshKind, SshRules>,
    /// What changed since connected nodes were last told.
    stale: Change,
}

/// SSH rules as a field of a message.
#[derive(Clone, Debug)]
pub(super) struct SshRules {
    /// Not zero.
    pub(super) digest: u64,
    pub(super) field: Arc<Chunk>,
}

/// Where nodes ask about SSH sessions that are held, and answer whether they are there: the path counts, for the request
/// goes inside the channel that they have to us.
pub(super) const INSIDE: &str = "https://unused";

/// Kinds of nodes whose SSH rules are kept written: those of many nodes are few kinds, and a text may name every node.
const SSH_KINDS: usize = 256;

/// Changed nodes up to which a view is worked out from the one before: each costs a look for every viewer.
const FEW: usize = 16;

impl Gate {
    /// Puts a policy in force. Views that `before` gave keep their classes, since connected nodes were told
    /// them; everybody must be told anew.
    pub(super) fn new(compiled: Compiled, before: Option<Self>) -> Self {
        let stale = Change::everything(&compiled);
        let (kinds, after, ssh, next) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), ViewClass::FIRST);
        match before {
            Some(before) => Self { compiled, kinds, after, ssh, stale, ..before },
            None => {
                let (classes, views) = (BTreeMap::new(), BTreeMap::new());
                Self { compiled, classes, views, next, kinds, after, ssh, stale }
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
        self.ssh.clear();
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

    /// The SSH rules of a node, written once for all nodes that have the same; nothing where the policy has none at all.
    pub(super) fn ssh(&mut self, id: NodeId) -> Option<SshRules> {
        if !self.compiled.policy().has_ssh() {
            return None;
        }
        let kind = self.compiled.ssh_kind(id);
        if let Some(rules) = self.ssh.get(&kind) {
            return Some(rules.clone());
        }
        let text = format!("\"SSHPolicy\":{}", json(&self.compiled.ssh_policy(id, INSIDE)));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let rules = SshRules { digest: hasher.finish().max(1), field: Chunk::of_text(&text) };
        if self.ssh.len() >= SSH_KINDS {
            self.ssh.clear();
        }
        self.ssh.insert(kind, rules.clone());
        Some(rules)
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
        user: record.user.unwrap_or(TAGGED),
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
    let texts = known.map(|(name, text)| (name.to_owned(), Attribute::Text(text)));
    let flags = [("node:tsAutoUpdate", Some(info.allows_update)), ("node:tsStateEncrypted", info.state_encrypted)];
    let flags = flags.into_iter().filter_map(|(name, flag)| Some((name.to_owned(), Attribute::Bool(flag?))));
    texts.chain(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_may_look_at_what_a_node_reports_of_its_system_and_its_client() {
        let info = r#"{"IPNVersion": "1.90.9-t1-g2", "OS": "Linux", "OSVersion": "6.12", "StateEncrypted": true}"#;
        let found = attributes(&serde_json::from_str(info).unwrap());
        let text = |text: &str| Attribute::Text(text.to_owned());
        let expected = [
            ("node:os", text("linux")),
            ("node:osVersion", text("6.12")),
            ("node:tsAutoUpdate", Attribute::Bool(false)),
            ("node:tsReleaseTrack", text("stable")),
            ("node:tsStateEncrypted", Attribute::Bool(true)),
            ("node:tsVersion", text("1.90.9")),
        ];
        assert_eq!(found, expected.map(|(name, attribute)| (name.to_owned(), attribute)).into());
    }
}
