//! What is known for good: users, pre-authentication keys, nodes, the policy, and how they are found.
//!
//! It knows nothing of who is connected. What a node may do by the policy depends on two things that it does not know,
//! whether the node's key is past its time and which subnets it is the one router of; whoever knows them asks
//! ([`Directory::judge`]).

mod access;
mod address;
mod nodes;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::people::Identity;
use super::record::{
    ClientRecord, Counters, KeyId, KeyRecord, NodeRecord, PolicyRecord, Settings, TokenRecord, UserName, UserRecord,
};
use super::waiting::Waiting;
use crate::policy::Compiled;
use crate::types::{DiscoPublic, HostLabel, MachinePublic, NodeId, NodePublic, Timestamp, UserId};

pub(super) use access::Access;
pub(super) use nodes::host_number;
pub(super) use rules::{Grants, PolicyFacts, node_of};

/// Whom tagged nodes belong to: the number that clients know for "no person".
pub(super) const TAGGED: UserId = UserId(2_147_455_555);

/// The records, and what they are found by.
#[derive(Debug, Default)]
pub(super) struct Directory {
    counters: Counters,
    users: BTreeMap<UserId, UserRecord>,
    user_names: BTreeMap<UserName, UserId>,
    keys: BTreeMap<KeyId, KeyRecord>,
    /// When keys that admit nobody any more are forgotten.
    spent: BTreeSet<(Timestamp, KeyId)>,
    nodes: BTreeMap<NodeId, Row>,
    by_key: BTreeMap<NodePublic, NodeId>,
    by_machine: BTreeSet<(MachinePublic, NodeId)>,
    /// Who says to hold which disco key.
    by_disco: BTreeSet<(DiscoPublic, NodeId)>,
    labels: BTreeMap<HostLabel, NodeId>,
    /// The host numbers in use.
    hosts: BTreeSet<u32>,
    /// The host numbers that may not be given again yet, by when they were freed.
    freed: BTreeSet<(Timestamp, u32)>,
    freed_hosts: BTreeMap<u32, Timestamp>,
    /// Nodes whose record the store does not have yet.
    unsaved: BTreeSet<NodeId>,
    /// Machines that wait to be let in.
    waiting: Waiting,
    /// Who is signed in, and what programs show.
    access: Access,
    settings: Settings,
    identities: BTreeMap<(String, String, String), UserId>,
    /// The versions of the policy that are kept; the last is in force.
    policies: BTreeMap<u64, Arc<PolicyRecord>>,
    /// Why the last version is not in force: it cannot be read.
    policy_fault: Option<String>,
    /// The policy in force, against the nodes there are; nothing while nobody ever set one.
    rules: Option<Box<Compiled>>,
}

/// A node, and what it has by the policy.
#[derive(Debug)]
struct Row {
    record: Arc<NodeRecord>,
    grants: Arc<Grants>,
}

impl Directory {
    /// Whether nobody and nothing is known: of a network that has just begun.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.nodes.is_empty() && self.keys.is_empty() && self.policies.is_empty()
    }

    // ---- counters ----

    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn raise(&mut self, to: Counters) {
        self.counters = Counters {
            user: self.counters.user.max(to.user),
            key: self.counters.key.max(to.key),
            token: self.counters.token.max(to.token),
            client: self.counters.client.max(to.client),
            node: self.counters.node.max(to.node),
            host: self.counters.host.max(to.host),
        };
    }

    // ---- users ----

    pub(super) fn users(&self) -> impl ExactSizeIterator<Item = &UserRecord> {
        self.users.values()
    }

    pub(super) fn user(&self, id: UserId) -> Option<&UserRecord> {
        self.users.get(&id)
    }

    pub(super) fn user_named(&self, name: &UserName) -> Option<UserId> {
        self.user_names.get(name).copied()
    }

    /// A user is, from here on, this; gives the one that was there.
    pub(super) fn put_user(&mut self, user: UserRecord) -> Option<UserRecord> {
        self.counters.user = self.counters.user.max(user.id.0);
        self.forget_names_of(user.id);
        self.user_names.insert(user.name.clone(), user.id);
        self.identities.extend(user.identities.iter().map(|identity| (key_of(identity), user.id)));
        self.users.insert(user.id, user)
    }

    pub(super) fn remove_user(&mut self, id: UserId) -> bool {
        self.forget_names_of(id);
        self.users.remove(&id).is_some()
    }

    /// Who somebody is here whom a provider calls so.
    pub(super) fn user_with(&self, identity: &Identity) -> Option<&UserRecord> {
        self.users.get(self.identities.get(&key_of(identity))?)
    }

    fn forget_names_of(&mut self, id: UserId) {
        let Some(old) = self.users.get(&id) else { return };
        self.user_names.remove(&old.name);
        for identity in &old.identities {
            self.identities.remove(&key_of(identity));
        }
    }

    // ---- pre-authentication keys ----

    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &KeyRecord> {
        self.keys.values()
    }

    pub(super) fn key(&self, id: KeyId) -> Option<&KeyRecord> {
        self.keys.get(&id)
    }

    /// When keys that admit nobody any more are forgotten, and which.
    pub(super) fn spent(&self) -> impl Iterator<Item = (Timestamp, KeyId)> + '_ {
        self.spent.iter().copied()
    }

    pub(super) fn put_key(&mut self, key: KeyRecord) {
        self.counters.key = self.counters.key.max(key.id.0);
        self.remove_key(key.id);
        self.spent.extend(key.forgotten_at().map(|at| (at, key.id)));
        self.keys.insert(key.id, key);
    }

    pub(super) fn remove_key(&mut self, id: KeyId) {
        if let Some(at) = self.keys.remove(&id).as_ref().and_then(KeyRecord::forgotten_at) {
            self.spent.remove(&(at, id));
        }
    }

    // ---- machines that wait, who is signed in, and what holds for all ----

    pub(super) const fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    pub(super) const fn waiting_mut(&mut self) -> &mut Waiting {
        &mut self.waiting
    }

    pub(super) const fn access(&self) -> &Access {
        &self.access
    }

    pub(super) const fn access_mut(&mut self) -> &mut Access {
        &mut self.access
    }

    pub(super) fn put_token(&mut self, token: TokenRecord) {
        self.counters.token = self.counters.token.max(token.id.0);
        self.access.put_token(token);
    }

    pub(super) fn put_client(&mut self, client: ClientRecord) {
        self.counters.client = self.counters.client.max(client.id.0);
        self.access.put_client(client);
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }
}

/// The three parts by which a provider's person is found, side by side.
fn key_of(identity: &Identity) -> (String, String, String) {
    (identity.provider.to_string(), identity.issuer.clone(), identity.subject.clone())
}
