//! The state itself: its parts, and the one place where they change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::address;
use super::config::Config;
use super::fanout::Fanout;
use super::member::{Member, NodeView, online_in, subnets};
use super::outlook::Ready;
use super::record::{
    Change, Counters, KeyId, KeyRecord, NodeRecord, Pending, PendingCode, PolicyRecord, Records, UserName, UserRecord,
};
use super::refusal::Refusal;
use super::routes::{RouteView, Routes};
use super::session::{Output, Session, SessionId, Timer, add};
use super::view::Shown;
use super::visibility::{ViewClass, Visibility};
use crate::types::{
    CapabilityVersion, DiscoPublic, HostLabel, IpNet, MachinePublic, NodeId, NodePublic, Timestamp, UserId,
    is_default_route,
};

/// The coordinator's model. See the module's documentation for how it is used.
#[derive(Debug)]
pub struct State {
    pub(super) config: Config,
    pub(super) visibility: Visibility,
    /// The versions of the policy that are kept; the last is in force.
    pub(super) policies: BTreeMap<u64, Arc<PolicyRecord>>,
    /// Why the last version is not in force: it cannot be read.
    pub(super) policy_fault: Option<String>,
    /// A policy that was compiled elsewhere and is about to be set.
    pub(super) ready: Option<Ready>,
    pub(super) counters: Counters,
    pub(super) users: BTreeMap<UserId, UserRecord>,
    pub(super) user_names: BTreeMap<UserName, UserId>,
    pub(super) keys: BTreeMap<KeyId, KeyRecord>,
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) by_key: BTreeMap<NodePublic, NodeId>,
    pub(super) by_machine: BTreeSet<(MachinePublic, NodeId)>,
    pub(super) labels: BTreeMap<HostLabel, NodeId>,
    /// The host numbers in use.
    pub(super) hosts: BTreeSet<u32>,
    /// The host numbers that may not be given again yet, by when they were freed.
    pub(super) freed: BTreeSet<(Timestamp, u32)>,
    pub(super) freed_hosts: BTreeMap<u32, Timestamp>,
    /// When keys that admit nobody any more are forgotten.
    pub(super) spent: BTreeSet<(Timestamp, KeyId)>,
    pub(super) routes: Routes,
    pub(super) pending: BTreeMap<PendingCode, Pending>,
    /// Machines that an administrator turned away, and until when.
    pub(super) rejected: BTreeMap<MachinePublic, Timestamp>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// The sessions of each class.
    pub(super) viewers: BTreeMap<ViewClass, BTreeSet<SessionId>>,
    pub(super) last_session: u64,
    pub(super) timers: BTreeSet<(Timestamp, Timer)>,
    /// When ephemeral nodes that are offline are deleted. Apart from the timers, because a deletion must
    /// be committed first.
    pub(super) reaps: BTreeSet<(Timestamp, NodeId)>,
    /// Nodes whose record the store does not have yet.
    pub(super) unsaved: BTreeSet<NodeId>,
    pub(super) fanout: Fanout,
    pub(super) outputs: VecDeque<Output>,
    /// Who says to hold which disco key.
    pub(super) by_disco: BTreeSet<(DiscoPublic, NodeId)>,
    /// Nodes whose subnets have other routers than before.
    pub(super) contested: BTreeSet<NodeId>,
    /// How often a node's word was passed on later than it came.
    pub(super) held_back: u64,
}

impl State {
    /// A network without users or nodes.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            visibility: Visibility::default(),
            policies: BTreeMap::new(),
            policy_fault: None,
            ready: None,
            counters: Counters::default(),
            users: BTreeMap::new(),
            user_names: BTreeMap::new(),
            keys: BTreeMap::new(),
            members: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_machine: BTreeSet::new(),
            labels: BTreeMap::new(),
            hosts: BTreeSet::new(),
            freed: BTreeSet::new(),
            freed_hosts: BTreeMap::new(),
            spent: BTreeSet::new(),
            routes: Routes::default(),
            pending: BTreeMap::new(),
            rejected: BTreeMap::new(),
            sessions: BTreeMap::new(),
            viewers: BTreeMap::new(),
            last_session: 0,
            timers: BTreeSet::new(),
            reaps: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            fanout: Fanout::default(),
            outputs: VecDeque::new(),
            by_disco: BTreeSet::new(),
            contested: BTreeSet::new(),
            held_back: 0,
        }
    }

    /// The state that a store's records describe. Nobody is online yet.
    pub fn restore(config: Config, records: Records, now: Timestamp) -> Self {
        let mut state = Self::new(config);
        state.raise(records.counters);
        let users = records.users.into_iter().map(Change::User);
        let keys = records.keys.into_iter().map(Change::Key);
        let nodes = records.nodes.into_iter().map(|node| Change::Node(Arc::new(node)));
        let freed = records.freed.into_iter().map(|(host, at)| Change::HostFreed(host, at));
        state.apply(users.chain(keys).chain(nodes).chain(freed).collect(), now);
        state.policies = records.policies.into_iter().map(|policy| (policy.version, Arc::new(policy))).collect();
        state.enforce();
        // Nobody listens yet.
        state.fanout.forget_changes();
        state
    }

    /// Makes committed changes true. What they mean for connected nodes comes out of
    /// [`State::poll_output`] after the next [`State::handle_timeout`].
    pub fn apply(&mut self, changes: Vec<Change>, now: Timestamp) {
        for change in changes {
            match change {
                Change::Counters(counters) => self.raise(counters),
                Change::User(user) => self.put_user(user),
                Change::UserGone(id) => self.remove_user(id),
                Change::Key(key) => {
                    self.counters.key = self.counters.key.max(key.id.0);
                    self.put_key(key);
                }
                Change::KeyUsed(id, at) => {
                    if let Some(key) = self.keys.get(&id) {
                        self.put_key(KeyRecord { used: Some(at), ..key.clone() });
                    }
                }
                Change::KeyGone(id) => self.remove_key(id),
                Change::Node(record) => self.put_node(record, now),
                Change::NodeGone(id) => self.remove_node(id),
                Change::HostFreed(host, at) => self.free_host(host, at),
                Change::HostReady(host) => self.give_back_host(host),
                Change::Policy(policy) => self.put_policy(policy),
                Change::PolicyGone(version) => {
                    self.policies.remove(&version);
                }
                Change::Pending(pending) => {
                    self.timers.insert((pending.expires, Timer::Pending(pending.code.clone())));
                    self.pending.insert(pending.code.clone(), pending);
                }
                Change::PendingGone(code) => self.settle_pending(&code),
                Change::Rejected(code, until) => self.reject_pending(&code, until),
            }
        }
    }

    /// Whether a client is new enough; the error is for its user.
    pub fn check_version(version: CapabilityVersion) -> Result<(), Refusal> {
        if version >= CapabilityVersion::OLDEST_SERVED {
            return Ok(());
        }
        Err(Refusal::invalid(format!(
            "this client is too old: it speaks version {version} of the control protocol, and version {} (client \
             release 1.80) or newer is needed; please update it",
            CapabilityVersion::OLDEST_SERVED
        )))
    }

    /// What the owner decided.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it knows nobody and nothing: of a network that has just begun.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.members.is_empty() && self.keys.is_empty() && self.policies.is_empty()
    }

    /// The users, by number.
    pub fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.users.values()
    }

    /// The pre-authentication keys, by number.
    pub fn keys(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.values()
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.members.values().map(Member::view)
    }

    /// The machines that wait for approval.
    pub fn pending_list(&self) -> impl Iterator<Item = &Pending> {
        self.pending.values()
    }

    /// The machine that waits under a code.
    pub fn pending(&self, code: &PendingCode) -> Option<&Pending> {
        self.pending.get(code)
    }

    /// A node by number.
    pub fn node(&self, id: NodeId) -> Option<NodeView<'_>> {
        self.members.get(&id).map(Member::view)
    }

    /// A node by node key: what a relay asks before it admits a client.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<NodeView<'_>> {
        self.node(*self.by_key.get(key)?)
    }

    /// The nodes whose key two machines use, as far as can be told.
    pub fn two_machines(&self, now: Timestamp) -> impl Iterator<Item = NodeId> + '_ {
        self.members.values().filter(move |member| member.twins.are_two(now)).map(Member::id)
    }

    /// How often a node's word was passed on later than it came, because it had come too often.
    pub const fn held_back(&self) -> u64 {
        self.held_back
    }

    /// The routes that are offered or approved, by node.
    pub fn routes(&self) -> impl Iterator<Item = RouteView> + '_ {
        self.members.values().flat_map(|member| {
            let record = &member.shown.record;
            let all: BTreeSet<IpNet> = record.said.routes.iter().chain(&record.approved_routes).copied().collect();
            all.into_iter().map(|prefix| RouteView {
                prefix,
                node: record.id,
                offered: record.said.routes.contains(&prefix),
                approved: record.approved_routes.contains(&prefix) || member.shown.routes().contains(&prefix),
                // Of exit nodes there is no first: each is used by those who choose it.
                primary: member.shown.primary.contains(&prefix)
                    || is_default_route(&prefix) && member.shown.routes().contains(&prefix),
            })
        })
    }

    // ---- where the parts change ----

    fn raise(&mut self, to: Counters) {
        self.counters = Counters {
            user: self.counters.user.max(to.user),
            key: self.counters.key.max(to.key),
            node: self.counters.node.max(to.node),
            host: self.counters.host.max(to.host),
        };
    }

    fn put_user(&mut self, user: UserRecord) {
        self.counters.user = self.counters.user.max(user.id.0);
        if let Some(old) = self.users.get(&user.id) {
            self.user_names.remove(&old.name);
        }
        self.fanout.user_changed(user.id);
        self.user_names.insert(user.name.clone(), user.id);
        self.visibility.put_user(user.id, user.name.as_str(), user.role);
        let id = user.id;
        if self.users.insert(id, user).is_some() {
            let own = self.members.iter().filter(|(_, member)| member.shown.record.user == Some(id));
            self.judge_anew(&own.map(|(id, _)| *id).collect::<Vec<_>>());
        }
    }

    fn remove_user(&mut self, id: UserId) {
        if let Some(user) = self.users.remove(&id) {
            self.user_names.remove(&user.name);
            self.visibility.remove_user(id);
        }
    }

    /// A node is, from here on, this.
    pub(super) fn put_node(&mut self, record: Arc<NodeRecord>, now: Timestamp) {
        let id = record.id;
        self.counters.node = self.counters.node.max(id.0);
        self.counters.host = self.counters.host.max(address::host_of(record.ipv4));
        self.by_key.insert(record.key, id);
        self.by_machine.insert((record.machine, id));
        self.labels.insert(record.label.clone(), id);
        self.by_disco.insert((record.said.disco, id));
        self.hosts.insert(address::host_of(record.ipv4));
        let expired = record.is_expired(now);
        if let Some(expiry) = record.key_expiry.filter(|_| !expired) {
            self.timers.insert((expiry, Timer::Expire(id)));
        }
        match self.members.get(&id).map(|member| Arc::clone(&member.shown.record)) {
            None => {
                let given = Arc::default();
                let shown = Shown { record, online: false, expired, primary: Vec::new(), given };
                self.fanout.touch(id, None);
                self.fanout.owners_changed();
                self.members.insert(id, Member::new(shown));
                self.judge(id);
                self.elect(id, &BTreeSet::new());
            }
            Some(old) => {
                self.unindex(&old, &record);
                let rekeyed = old.key != record.key;
                self.alter(id, |shown| {
                    shown.record = record;
                    shown.expired = expired;
                });
                // The stream was opened with the old key.
                if let (true, Some(session)) = (rekeyed, self.members.get(&id).and_then(|member| member.session)) {
                    self.outputs.push_back(Output::Close { session });
                    self.close(session, now);
                }
            }
        }
        self.plan_reaping(id, now);
    }

    fn remove_node(&mut self, id: NodeId) {
        self.unsaved.remove(&id);
        let Some(member) = self.members.get(&id) else { return };
        if let Some(session) = member.session {
            self.say_goodbye(id, session);
        }
        let Some(member) = self.members.remove(&id) else { return };
        let record = &member.shown.record;
        self.by_key.remove(&record.key);
        self.by_machine.remove(&(record.machine, id));
        self.labels.remove(&record.label);
        self.by_disco.remove(&(record.said.disco, id));
        self.hosts.remove(&address::host_of(record.ipv4));
        self.outputs.push_back(Output::Withdrawn { key: record.key });
        self.forget_timers(&member);
        self.fanout.touch(id, Some(&member.shown));
        self.fanout.owners_changed();
        self.visibility.remove_node(id);
        let before = subnets(&member.shown);
        let changed = self.routes.set(id, &before, &BTreeSet::new(), online_in(&self.members));
        self.refresh_primary(changed);
    }

    /// Changes what is shown of a node, and whatever follows from it.
    pub(super) fn alter(&mut self, id: NodeId, change: impl FnOnce(&mut Shown)) {
        let Some(member) = self.members.get_mut(&id) else { return };
        self.fanout.touch(id, Some(&member.shown));
        member.entries.clear();
        let before = subnets(&member.shown);
        let record = Arc::clone(&member.shown.record);
        let seen_as = (member.shown.expired, record.owner());
        change(&mut member.shown);
        let is_other = member.shown.expired != seen_as.0 || !Arc::ptr_eq(&member.shown.record, &record);
        if is_other {
            self.judge(id);
        }
        let Some(member) = self.members.get(&id) else { return };
        if seen_as != (member.shown.expired, member.shown.record.owner()) {
            self.fanout.owners_changed();
        }
        if member.shown.expired && !seen_as.0 {
            self.outputs.push_back(Output::Withdrawn { key: member.shown.record.key });
        }
        self.elect(id, &before);
    }

    /// Asks the policy about a node anew; what is shown of it must have been touched.
    fn judge(&mut self, id: NodeId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let given = self.visibility.put_node(&member.shown);
        if *member.shown.given != given {
            member.shown.given = Arc::new(given);
        }
    }

    /// Asks about nodes where the answers may differ from those before: of another policy, or of another user. All are
    /// asked before routers are elected, so that none is elected for a route that it has just lost.
    pub(super) fn judge_anew(&mut self, ids: &[NodeId]) {
        let shown = |id: &NodeId| Some((*id, self.members.get(id)?.shown.clone()));
        let before: Vec<(NodeId, Shown)> = ids.iter().filter_map(shown).collect();
        before.iter().for_each(|(id, _)| self.judge(*id));
        let mut changed = Vec::new();
        for (id, shown) in before {
            let Some(member) = self.members.get_mut(&id) else { continue };
            if member.shown.given != shown.given {
                self.fanout.touch(id, Some(&shown));
                member.entries.clear();
                changed.push((id, subnets(&shown)));
            }
        }
        for (id, subnets) in changed {
            self.elect(id, &subnets);
        }
    }

    /// Elects routers for the subnets that a node served before and serves from here on.
    pub(super) fn elect(&mut self, id: NodeId, before: &BTreeSet<IpNet>) {
        let Some(member) = self.members.get(&id) else { return };
        let serves = subnets(&member.shown);
        if serves.is_empty() && before.is_empty() {
            return;
        }
        let changed = self.routes.set(id, before, &serves, online_in(&self.members));
        for prefix in before.union(&serves) {
            self.contested.extend(self.routes.servers(prefix));
        }
        self.refresh_primary(changed);
    }

    fn refresh_primary(&mut self, nodes: BTreeSet<NodeId>) {
        for id in nodes {
            let Some(member) = self.members.get_mut(&id) else { continue };
            self.fanout.touch(id, Some(&member.shown));
            member.entries.clear();
            member.shown.primary =
                subnets(&member.shown).into_iter().filter(|prefix| self.routes.primary(prefix) == Some(id)).collect();
            self.judge(id);
        }
    }

    fn unindex(&mut self, old: &NodeRecord, new: &NodeRecord) {
        if old.key != new.key {
            self.by_key.remove(&old.key);
            self.outputs.push_back(Output::Withdrawn { key: old.key });
        }
        if old.said.disco != new.said.disco {
            self.by_disco.remove(&(old.said.disco, old.id));
        }
        if old.label != new.label {
            self.labels.remove(&old.label);
        }
        if old.machine != new.machine {
            self.by_machine.remove(&(old.machine, old.id));
        }
        if let Some(expiry) = old.key_expiry.filter(|_| old.key_expiry != new.key_expiry) {
            self.timers.remove(&(expiry, Timer::Expire(old.id)));
        }
    }

    fn forget_timers(&mut self, member: &Member) {
        let id = member.id();
        let timers = [
            member.shown.record.key_expiry.map(|at| (at, Timer::Expire(id))),
            member.offline_at.map(|at| (at, Timer::Offline(id))),
        ];
        for timer in timers.into_iter().flatten() {
            self.timers.remove(&timer);
        }
        if let Some(at) = member.reap_at {
            self.reaps.remove(&(at, id));
        }
    }

    /// Sets or lifts the deadline by which an ephemeral node must be back.
    pub(super) fn plan_reaping(&mut self, id: NodeId, now: Timestamp) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let wanted = member.shown.record.ephemeral && !member.shown.online;
        match member.reap_at {
            Some(at) if !wanted => {
                member.reap_at = None;
                self.reaps.remove(&(at, id));
            }
            None if wanted => {
                let at = add(now, self.config.ephemeral_timeout);
                member.reap_at = Some(at);
                self.reaps.insert((at, id));
            }
            _ => {}
        }
    }

    pub(super) fn settle_pending(&mut self, code: &PendingCode) {
        if let Some(pending) = self.pending.remove(code) {
            self.timers.remove(&(pending.expires, Timer::Pending(code.clone())));
            self.outputs.push_back(Output::Settled { code: code.clone() });
        }
    }
}
