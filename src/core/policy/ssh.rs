//! SSH: who may log in to a node, as whom, and whether they must prove themselves first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::types::{NodeId, UserId};

use super::compile::Compiled;
use super::document::{CheckPeriod, SshRule};
use super::index::NodeEntry;
use super::nodeset::NodeSet;
use super::selector::{Autogroup, Selector};

/// What a node's SSH server is to allow, in wire form; rules that ask for a check come first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SshPolicy {
    /// The first rule that matches decides.
    pub rules: Vec<SshAccess>,
}

/// Some sources, and the accounts open to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SshAccess {
    pub principals: Vec<SshPrincipal>,
    /// Requested account to local account: `*` is any, `=` the same name, empty none.
    pub ssh_users: BTreeMap<String, String>,
    /// What happens then.
    pub action: SshAction,
    /// The environment variables that may be passed on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept_env: Vec<String>,
}

/// A source of an SSH connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SshPrincipal {
    /// One of its overlay addresses.
    #[serde(rename = "nodeIP")]
    pub node_ip: IpAddr,
}

/// Accepting at once, or asking the coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SshAction {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accept: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reject: bool,
    /// What the user at the other end is told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The coordinator's address that decides on a session; the server fills in the `$` names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hold_and_delegate: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_agent_forwarding: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_local_port_forwarding: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_remote_port_forwarding: bool,
}

/// The path at the coordinator that decides on a held session.
const DELEGATE: &str = "/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER";

impl Compiled {
    /// What the node's SSH server is to allow; `coordinator` is the base of the address it may ask at.
    pub fn ssh_policy(&self, id: NodeId, coordinator: &str) -> SshPolicy {
        let mut rules = Vec::new();
        if let Some((slot, place)) = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?))) {
            for rule in &self.policy().ssh {
                SshCompiler::new(self, rule, coordinator).rules_for(slot, place, &mut rules);
            }
        }
        rules.sort_by_key(|rule| rule.action.accept);
        SshPolicy { rules }
    }

    /// What the node is to the SSH rules.
    pub fn ssh_kind(&self, id: NodeId) -> SshKind {
        let found = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?)));
        let Some((slot, place)) = found else { return SshKind::default() };
        let owner = Some(place.node.user).filter(|_| !place.node.is_tagged());
        let part = |rule: &SshRule| {
            let to_self = owner.filter(|_| rule.targets.iter().any(is_self));
            let is_target = self.is_any_of(&rule.targets, slot);
            let has_own_account = rule.users.iter().any(|user| local_part_domain(&user.value).is_some());
            let by_own_account = !is_target && has_own_account && self.is_any_of(&rule.sources, slot);
            (to_self, is_target, by_own_account.then_some((owner, id)))
        };
        SshKind(self.policy().ssh.iter().map(part).collect())
    }

    /// Whether one of some selectors means a node.
    fn is_any_of(&self, selectors: &[Selector], slot: usize) -> bool {
        let mut numbers = selectors.iter().filter_map(|selector| self.index.number(selector));
        numbers.any(|number| self.index.selected(number).contains(slot))
    }

    /// The nodes whose SSH rules name the node as a source.
    pub(super) fn ssh_targets_of(&self, slot: usize) -> NodeSet {
        let place = self.index.place(slot).filter(|place| !place.node.is_tagged());
        let own = place.and_then(|place| self.index.owned.get(&place.node.user));
        let mut targets = NodeSet::default();
        for rule in self.policy().ssh.iter().filter(|rule| self.is_any_of(&rule.sources, slot)) {
            targets.unite(&self.nodes_of(&rule.targets));
            own.into_iter().for_each(|own| targets.unite(own));
        }
        targets
    }

    /// How recent a login the first rule with a check asks for, between two nodes.
    pub fn ssh_check_period(&self, source: NodeId, target: NodeId) -> Option<CheckPeriod> {
        let (source, target) = (self.index.slot(source)?, self.index.slot(target)?);
        let matches = |rule: &&SshRule| {
            let compiler = SshCompiler::new(self, rule, "");
            compiler.sources.contains(source) && compiler.reaches(source, target)
        };
        self.policy().ssh.iter().filter(|rule| rule.check.is_some()).find(matches)?.check
    }
}

/// What a node is to the SSH rules of a policy: nodes of one kind have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SshKind(Vec<SshKindPart>);

/// For one rule: whose nodes it is among, where the rule is about each user's own; whether it is a target; and who it is
/// as a source that may reach itself.
type SshKindPart = (Option<UserId>, bool, Option<(Option<UserId>, NodeId)>);

struct SshCompiler<'c> {
    compiled: &'c Compiled,
    rule: &'c SshRule,
    sources: NodeSet,
    action: SshAction,
    users: BTreeMap<String, String>,
    domains: BTreeSet<&'c str>,
}

impl<'c> SshCompiler<'c> {
    fn new(compiled: &'c Compiled, rule: &'c SshRule, coordinator: &str) -> Self {
        let action = match rule.check {
            Some(_) => SshAction { hold_and_delegate: format!("{coordinator}{DELEGATE}"), ..SshAction::default() },
            None => SshAction {
                accept: true,
                allow_agent_forwarding: true,
                allow_local_port_forwarding: true,
                allow_remote_port_forwarding: true,
                ..SshAction::default()
            },
        };
        let mut users = BTreeMap::from([("root".to_owned(), String::new())]);
        let mut domains = BTreeSet::new();
        for user in &rule.users {
            if let Some(domain) = local_part_domain(&user.value) {
                domains.insert(domain);
            } else if user.value == Autogroup::NonRoot.name() {
                users.insert("*".to_owned(), "=".to_owned());
            } else {
                users.insert(user.value.clone(), user.value.clone());
            }
        }
        let sources = compiled.nodes_of(&rule.sources);
        Self { compiled, rule, sources, action, users, domains }
    }

    fn rules_for(&self, slot: usize, place: &NodeEntry, rules: &mut Vec<SshAccess>) {
        let owner = (!place.node.is_tagged()).then_some(place.node.user);
        if let Some(owner) = owner.filter(|_| self.is_to_self()) {
            self.push(&self.owned_sources(owner), Some(owner), rules);
        }
        if self.rule.targets.iter().all(is_self) {
            return;
        }
        if self.compiled.nodes_of(&self.rule.targets).contains(slot) {
            self.rules_for_target(rules);
        } else if !self.domains.is_empty() && self.sources.contains(slot) {
            // A source may always reach itself under its own name.
            let own = owner.map_or_else(|| NodeSet::from_iter([slot]), |owner| self.owned_sources(owner));
            self.push(&own, owner, rules);
        }
    }

    /// With accounts that differ from user to user each user has rules of their own.
    fn rules_for_target(&self, rules: &mut Vec<SshAccess>) {
        if self.domains.is_empty() {
            return self.push(&self.sources, None, rules);
        }
        let mut tagged = self.sources.clone();
        for (user, owned) in &self.compiled.index.owned {
            owned.iter().for_each(|slot| tagged.remove(slot));
            self.push(&self.sources.intersection(owned), Some(*user), rules);
        }
        self.push(&tagged, None, rules);
    }

    fn push(&self, sources: &NodeSet, user: Option<UserId>, rules: &mut Vec<SshAccess>) {
        let places = sources.iter().filter_map(|slot| self.compiled.index.place(slot));
        let addresses = places.flat_map(|place| &place.addresses);
        let principals: BTreeSet<_> = addresses.map(|address| SshPrincipal { node_ip: *address }).collect();
        if principals.is_empty() {
            return;
        }
        let local = user.and_then(|user| self.local_account(user)).map(|name| BTreeMap::from([(name.clone(), name)]));
        for ssh_users in [Some(self.users.clone()), local].into_iter().flatten() {
            rules.push(SshAccess {
                principals: principals.iter().cloned().collect(),
                ssh_users,
                action: self.action.clone(),
                accept_env: self.rule.accept_env.clone(),
            });
        }
    }

    /// The account that a user has by their own name.
    fn local_account(&self, user: UserId) -> Option<String> {
        let user = self.compiled.index.users().get(&user)?;
        let named = user.domain().is_some_and(|domain| self.domains.contains(domain));
        user.local_part().filter(|_| named).map(str::to_owned)
    }

    fn owned_sources(&self, user: UserId) -> NodeSet {
        let owned = self.compiled.index.owned.get(&user);
        owned.map(|owned| self.sources.intersection(owned)).unwrap_or_default()
    }

    fn is_to_self(&self) -> bool {
        self.rule.targets.iter().any(is_self)
    }

    fn reaches(&self, source: usize, target: usize) -> bool {
        let same_owner = || self.compiled.index.owned.values().any(|own| own.contains(source) && own.contains(target));
        self.compiled.nodes_of(&self.rule.targets).contains(target) || self.is_to_self() && same_owner()
    }
}

fn is_self(target: &Selector) -> bool {
    *target == Selector::Auto(Autogroup::SelfNodes)
}

/// The domain of `localpart:*@DOMAIN`; anything else is the name of an account.
pub(super) fn local_part_domain(user: &str) -> Option<&str> {
    user.strip_prefix("localpart:*@").filter(|domain| !domain.is_empty())
}
