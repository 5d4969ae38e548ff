//! The network as policies see it at one moment, apart from the state, so that the task that owns the state need not wait
//! while a policy is compiled.
//!
//! What was compiled meanwhile comes back as a [`CheckedPolicy`] and is brought up to date with whatever changed since: that is
//! little, and costs little.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::directory::{PolicyFacts, node_of};
use super::record::NodeRecord;
use super::refusal::Refusal;
use super::state::State;
use crate::policy::{Compiled, Difference, Policy, Topology, User};
use crate::types::{NodeId, UserId};

/// The network at one moment, and the policy in force.
#[derive(Clone, Debug)]
pub struct Snapshot {
    users: BTreeMap<UserId, User>,
    nodes: Vec<(Arc<NodeRecord>, PolicyFacts)>,
    policy: Option<Arc<Policy>>,
}

/// A policy that can be put in force: it passed its own tests.
#[derive(Debug)]
pub struct CheckedPolicy {
    pub(super) text: Arc<str>,
    pub(super) compiled: Compiled,
    /// Which of its tests could not be asked of the network itself, in words.
    pub(super) notes: Vec<String>,
}

impl CheckedPolicy {
    /// The text that was compiled.
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }
}

impl Snapshot {
    /// A policy against the network; refused if it cannot be read or fails its own tests.
    pub fn compile(&self, text: &str) -> Result<CheckedPolicy, Refusal> {
        let policy = Policy::parse(text.as_bytes()).map_err(|errors| Refusal::invalid(errors.to_string()))?;
        let topology = self.topology(&policy);
        let compiled = Compiled::new(Arc::new(policy), topology);
        let notes = compiled.check_so_far().map_err(|errors| Refusal::invalid(errors.to_string()))?;
        Ok(CheckedPolicy { text: text.into(), compiled, notes })
    }

    /// Who would gain and lose what by a policy.
    pub fn difference(&self, text: &str) -> Result<Difference, Refusal> {
        let new = self.compile(text)?.compiled;
        let old = self.policy.clone().unwrap_or_else(|| Arc::new(Policy::allow_all()));
        Ok(Difference::between(&old, new.shared_policy(), &new.topology()))
    }

    pub(super) fn topology(&self, policy: &Policy) -> Topology {
        let nodes = self.nodes.iter().map(|(record, standing)| (record.id, node_of(record, standing, policy)));
        Topology { users: self.users.clone(), nodes: nodes.collect() }
    }
}

impl State {
    /// The network as it is.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            users: self.directory.policy_users(),
            nodes: self
                .directory
                .nodes()
                .map(|record| (Arc::clone(record), self.presence.standing(record.id)))
                .collect(),
            policy: self.compiled().map(|compiled| Arc::clone(compiled.shared_policy())),
        }
    }

    /// Takes a policy that was compiled elsewhere, for the [`State::set_policy`] that follows. Refused if it fails its own
    /// tests since the network changed.
    pub fn stage_policy(&mut self, mut checked: CheckedPolicy) -> Result<(), Refusal> {
        self.staged = None;
        if self.catch_up(&mut checked.compiled) {
            let notes = checked.compiled.check_so_far();
            checked.notes = notes.map_err(|errors| Refusal::invalid(errors.to_string()))?;
        }
        self.staged = Some(checked);
        Ok(())
    }

    /// Forgets the staged policy: the command that it was for has been carried out, or was not.
    pub fn unstage_policy(&mut self) {
        self.staged = None;
    }

    /// Which tests of the policy that is about to be set could not be asked of the network itself, in words.
    pub fn staged_notes(&self) -> Vec<String> {
        self.staged.as_ref().map(|checked| checked.notes.clone()).unwrap_or_default()
    }

    /// Tells a policy of the network as it is, and says whether it knew another.
    pub(super) fn catch_up(&self, compiled: &mut Compiled) -> bool {
        let mut changed = false;
        let users = self.directory.policy_users();
        if *compiled.users() != users {
            changed = true;
            let gone: Vec<UserId> = compiled.users().keys().filter(|id| !users.contains_key(id)).copied().collect();
            users.into_iter().for_each(|(id, user)| drop(compiled.put_user(id, user)));
            gone.into_iter().for_each(|id| compiled.remove_user(id));
        }
        let policy = Arc::clone(compiled.shared_policy());
        for record in self.directory.nodes() {
            let (id, node) = (record.id, node_of(record, &self.presence.standing(record.id), &policy));
            if compiled.node(id) != Some(&node) {
                changed = true;
                drop(compiled.upsert(id, node));
            }
        }
        let known: Vec<NodeId> = compiled.nodes(compiled.everybody()).collect();
        for id in known.into_iter().filter(|id| self.directory.node(*id).is_none()) {
            changed = true;
            drop(compiled.remove(id));
        }
        changed
    }
}
