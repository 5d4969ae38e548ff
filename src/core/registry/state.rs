//! The state as a whole: what is known, who is there and what nodes are sent, and what a change of one means for the others.
//!
//! [`Directory`], [`Presence`] and [`Broadcast`] do not change each other. Whatever concerns more than one of them is done
//! here, always in the same order: the record, the policy's word on it, who routes what, what there is to show.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::broadcast::{Broadcast, NodeState, Source};
use super::config::{Config, limit};
use super::directory::Directory;
use super::people::Identity;
use super::presence::{Graces, Presence, RouteView, SessionId};
use super::record::{BrowserSession, Change, KeyRecord, NodeRecord, Pending, Records, Settings, UserRecord};
use super::refusal::Refusal;
use super::session::Output;
use super::snapshot::CheckedPolicy;
use crate::types::{
    CapabilityVersion, IpNet, MachinePublic, NodeId, NodePublic, PendingCode, Ticket, Timestamp, UserId, UserStatus,
    is_default_route,
};

/// The coordinator's model. See the module's documentation for how it is used.
#[derive(Debug)]
pub struct State {
    pub(super) config: Config,
    pub(super) directory: Directory,
    pub(super) presence: Presence,
    pub(super) broadcast: Broadcast,
    /// A policy that was compiled elsewhere and is about to be set.
    pub(super) staged: Option<CheckedPolicy>,
    pub(super) outputs: VecDeque<Output>,
}

/// A node, for administrators.
#[derive(Clone, Debug)]
pub struct NodeView<'a> {
    /// The durable facts.
    pub record: &'a Arc<NodeRecord>,
    /// Whether it follows its map.
    pub online: bool,
    /// Whether its key is past its time.
    pub expired: bool,
    /// Whether two machines were found to use its key, some time.
    pub two_machines: bool,
    /// The subnets that it is the one router of.
    pub primary_routes: Vec<IpNet>,
}

impl State {
    /// A network without users or nodes.
    pub fn new(config: Config) -> Self {
        let graces = Graces { offline: config.offline_grace, ephemeral: config.ephemeral_timeout };
        Self {
            config,
            directory: Directory::default(),
            presence: Presence::new(graces),
            broadcast: Broadcast::default(),
            staged: None,
            outputs: VecDeque::new(),
        }
    }

    /// The state that a store's records describe. Nobody is online yet.
    pub fn restore(config: Config, records: Records, now: Timestamp) -> Self {
        let mut state = Self::new(config);
        state.directory.raise(records.counters);
        let users = records.users.into_iter().map(Change::User);
        let keys = records.keys.into_iter().map(Change::Key);
        let nodes = records.nodes.into_iter().map(|node| Change::Node(Arc::new(node)));
        let freed = records.freed.into_iter().map(|(host, at)| Change::HostFreed(host, at));
        state.apply(users.chain(keys).chain(nodes).chain(freed).collect(), now);
        let pending = records.pending.into_iter().map(|pending| Change::Pending(Box::new(pending)));
        let tokens = records.tokens.into_iter().map(Change::Token);
        let clients = records.clients.into_iter().map(Change::Client);
        let sessions = records.sessions.into_iter().map(Change::Session);
        let settings = [Change::Settings(records.settings)].into_iter();
        state.apply(pending.chain(tokens).chain(clients).chain(sessions).chain(settings).collect(), now);
        let waiting = state.directory.waiting_mut();
        records.rejected.into_iter().for_each(|(machine, until)| waiting.reject(machine, until));
        records.policies.into_iter().for_each(|policy| state.directory.keep_policy(Arc::new(policy)));
        state.enforce();
        state.broadcast.forget_changes();
        state
    }

    /// Makes committed changes true. What they mean for connected nodes comes out of
    /// [`State::poll_output`] after the next [`State::handle_timeout`].
    pub fn apply(&mut self, changes: Vec<Change>, now: Timestamp) {
        for change in changes {
            match change {
                Change::Counters(counters) => self.directory.raise(counters),
                Change::User(user) => self.put_user(user, now),
                Change::UserGone(id) => {
                    if self.directory.remove_user(id) {
                        self.policy_on_user(id);
                    }
                }
                Change::Key(key) => self.directory.put_key(key),
                Change::KeyUsed(id, at) => {
                    if let Some(key) = self.directory.key(id) {
                        let used = KeyRecord { used: Some(at), ..key.clone() };
                        self.directory.put_key(used);
                    }
                }
                Change::KeyGone(id) => self.directory.remove_key(id),
                Change::Node(record) => self.put_node(record, now),
                Change::NodeFields(id, _, fields) => {
                    if let Some(record) = self.directory.node(id) {
                        let next = fields.applied_to(record);
                        self.put_node(Arc::new(next), now);
                    }
                }
                // Whoever reported it knows, as does who changed the keys.
                Change::NodeReport(_) | Change::ServerKeys(..) => {}
                Change::NodeGone(id) => self.remove_node(id),
                Change::HostFreed(host, at) => self.directory.free_host(host, at),
                Change::HostReady(host) => self.directory.give_back_host(host),
                Change::Policy(policy) => {
                    self.directory.keep_policy(policy);
                    self.enforce();
                }
                Change::PolicyGone(version) => self.directory.forget_policy(version),
                Change::Pending(pending) => self.directory.waiting_mut().put(*pending),
                Change::PendingGone(code) => self.settle_pending(&code),
                Change::Rejected(code, until) => self.reject_pending(&code, until),
                Change::Forgiven(machine) => self.directory.waiting_mut().forgive(&machine),
                Change::Token(token) => self.directory.put_token(token),
                Change::TokenGone(id) => self.directory.access_mut().remove_token(id),
                Change::Client(client) => self.directory.put_client(client),
                Change::ClientGone(id) => self.directory.access_mut().remove_client(id),
                Change::Session(session) => self.directory.access_mut().put_session(session),
                Change::SessionGone(id) => self.directory.access_mut().remove_session(&id),
                Change::Settings(settings) => self.directory.set(settings),
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

    // ---- to be looked at ----

    /// What the owner decided.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it knows nobody and nothing: of a network that has just begun.
    pub fn is_empty(&self) -> bool {
        self.directory.is_empty()
    }

    /// The users, by number.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &UserRecord> {
        self.directory.users()
    }

    /// The user whom a provider calls so.
    pub fn user_with(&self, identity: &Identity) -> Option<&UserRecord> {
        self.directory.user_with(identity)
    }

    /// The browsers in which a user is signed in.
    pub fn sessions_of(&self, user: UserId) -> impl Iterator<Item = &BrowserSession> {
        self.directory.access().sessions_of(user)
    }

    /// The browsers in which somebody is signed in.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = &BrowserSession> {
        self.directory.access().sessions()
    }

    /// The machines that were turned away, each with until when.
    pub fn rejected(&self) -> impl Iterator<Item = (MachinePublic, Timestamp)> + '_ {
        self.directory.waiting().rejected().iter().map(|(machine, until)| (*machine, *until))
    }

    /// What holds for the whole network.
    pub const fn settings(&self) -> &Settings {
        self.directory.settings()
    }

    /// The pre-authentication keys, by number.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &KeyRecord> {
        self.directory.keys()
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeView<'_>> {
        self.directory.nodes().map(|record| self.view(record))
    }

    /// The machines that wait for approval.
    pub fn pending_list(&self) -> impl ExactSizeIterator<Item = &Pending> {
        self.directory.waiting().all()
    }

    /// The machine that waits under a code.
    pub fn pending(&self, code: &PendingCode) -> Option<&Pending> {
        self.directory.waiting().get(code)
    }

    /// The machine whose page is at this ticket.
    pub fn pending_with(&self, ticket: &Ticket) -> Option<&Pending> {
        self.pending(&ticket.code()).filter(|pending| pending.ticket == *ticket)
    }

    /// A node by number.
    pub fn node(&self, id: NodeId) -> Option<NodeView<'_>> {
        self.directory.node(id).map(|record| self.view(record))
    }

    /// A node by node key: what a relay asks before it admits a client.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<NodeView<'_>> {
        self.node(self.directory.node_by_key(key)?)
    }

    fn view<'a>(&self, record: &'a Arc<NodeRecord>) -> NodeView<'a> {
        let standing = self.presence.standing(record.id);
        NodeView {
            record,
            online: self.presence.is_online(record.id),
            expired: standing.expired,
            two_machines: self.presence.were_two(record.id),
            primary_routes: standing.primary,
        }
    }

    /// The nodes whose key two machines use, as far as can be told.
    pub fn two_machines(&self, now: Timestamp) -> impl Iterator<Item = NodeId> + '_ {
        self.presence.two_machines(now)
    }

    /// How often a node's word was passed on later than it came, because it had come too often.
    pub const fn held_back(&self) -> u64 {
        self.presence.held_back()
    }

    /// The host numbers that may not be given again yet, each with when it was freed.
    pub fn freed(&self) -> impl Iterator<Item = (u32, Timestamp)> + '_ {
        self.directory.freed_hosts()
    }

    /// The routes that are offered or approved, by node.
    pub fn routes(&self) -> impl Iterator<Item = RouteView> + '_ {
        self.directory.nodes().flat_map(|record| {
            let all: BTreeSet<IpNet> = record.status.routes.iter().chain(&record.approved_routes).copied().collect();
            let primary = self.presence.standing(record.id).primary;
            let served = self.directory.grants(record.id).map(|grants| grants.routes.as_slice()).unwrap_or_default();
            all.into_iter().map(move |prefix| RouteView {
                prefix,
                node: record.id,
                offered: record.status.routes.contains(&prefix),
                approved: record.approved_routes.contains(&prefix) || served.contains(&prefix),
                // Of exit nodes there is no first: each is used by those who choose it.
                primary: primary.contains(&prefix) || is_default_route(&prefix) && served.contains(&prefix),
            })
        })
    }

    pub(super) const fn source(&self) -> Source<'_> {
        Source { directory: &self.directory, config: &self.config }
    }

    // ---- what follows from a change ----

    fn put_user(&mut self, user: UserRecord, now: Timestamp) {
        let (id, status) = (user.id, user.status);
        let was = self.directory.put_user(user);
        self.broadcast.user_changed(id);
        self.policy_on_user(id);
        let Some(was) = was else { return };
        let own: Vec<NodeId> = self.nodes_of_user(id).map(|record| record.id).collect();
        if was.status != status {
            own.iter().for_each(|id| self.owner_changed(*id, now));
        }
        self.judge_all(&own);
    }

    /// The owner of a node is suspended, or is not any more. Whom it was shown to learns that with whatever else changes.
    fn owner_changed(&mut self, id: NodeId, now: Timestamp) {
        let Some(record) = self.directory.node(id).cloned() else { return };
        let suspended = self.is_suspended(&record);
        if self.presence.put_node(&record, suspended, now) {
            self.outputs.push_back(Output::Withdrawn { key: record.key });
        }
        if suspended {
            self.let_go(id, now);
        }
    }

    /// A node that may see nobody any more is told that its key has ended, and its stream ends.
    fn let_go(&mut self, id: NodeId, now: Timestamp) {
        let Some(session) = self.presence.session_of(id) else { return };
        if let Some(message) = self.broadcast.goodbye_to(&self.source(), id) {
            self.outputs.push_back(Output::Send { sessions: vec![session], message });
        }
        self.outputs.push_back(Output::Close { session });
        self.close(session, now);
    }

    /// Whether a node rests because its user does. One with tags belongs to its tags, and goes on.
    pub(super) fn is_suspended(&self, record: &NodeRecord) -> bool {
        let owner = record.user.filter(|_| record.tags.is_empty()).and_then(|id| self.directory.user(id));
        owner.is_some_and(|user| user.status != UserStatus::Active)
    }

    /// Whether a node's key is good for nothing at the moment.
    pub(super) fn has_ended(&self, record: &NodeRecord, now: Timestamp) -> bool {
        record.is_expired(now) || self.is_suspended(record)
    }

    fn policy_on_user(&mut self, id: UserId) {
        if let Some(change) = self.directory.judge_user(id) {
            self.broadcast.policy_says(&change);
        }
    }

    /// A node is, from here on, this, and the store knows.
    fn put_node(&mut self, record: Arc<NodeRecord>, now: Timestamp) {
        let old = self.directory.put_node(Arc::clone(&record));
        self.node_changed(old, &record, now);
    }

    /// A node is, from here on, this, and the store is told at leisure.
    pub(super) fn put_unsaved(&mut self, record: NodeRecord, now: Timestamp) {
        let record = Arc::new(record);
        let old = self.directory.put_unsaved(Arc::clone(&record));
        self.node_changed(old, &record, now);
    }

    fn node_changed(&mut self, old: Option<Arc<NodeRecord>>, record: &NodeRecord, now: Timestamp) {
        let id = record.id;
        let rekeyed = old.as_ref().filter(|old| old.key != record.key);
        if let Some(old) = rekeyed {
            self.outputs.push_back(Output::Withdrawn { key: old.key });
        }
        if self.presence.put_node(record, self.is_suspended(record), now) && old.is_some() {
            self.outputs.push_back(Output::Withdrawn { key: record.key });
        }
        self.refresh(id);
        if self.is_suspended(record) {
            self.let_go(id, now);
        }
        // The stream was opened with the old key.
        if let (true, Some(session)) = (rekeyed.is_some(), self.presence.session_of(id)) {
            self.outputs.push_back(Output::Close { session });
            self.close(session, now);
        }
    }

    fn remove_node(&mut self, id: NodeId) {
        let Some(record) = self.directory.node(id).cloned() else { return };
        if let Some(session) = self.presence.session_of(id) {
            if let Some(message) = self.broadcast.goodbye_to(&self.source(), id) {
                self.outputs.push_back(Output::Send { sessions: vec![session], message });
            }
            self.broadcast.close(session);
            self.outputs.push_back(Output::Close { session });
        }
        let (_, elected) = self.presence.remove_node(id);
        self.outputs.push_back(Output::Withdrawn { key: record.key });
        self.broadcast.hide(id);
        if let Some(change) = self.directory.judge_gone(id) {
            self.broadcast.policy_says(&change);
        }
        self.directory.remove_node(id);
        self.refresh_elected(elected);
    }

    /// Something about a node is another: the policy says its word, routers are elected, and what there is to show is shown.
    pub(super) fn refresh(&mut self, id: NodeId) {
        self.judge(id);
        self.elect(id);
        self.show(id);
    }

    /// Asks about nodes where the answers may differ from those before: of another policy, or of another user. All are
    /// asked before routers are elected, so that none is elected for a route that it has just lost.
    pub(super) fn judge_all(&mut self, ids: &[NodeId]) {
        ids.iter().for_each(|id| self.judge(*id));
        for id in ids {
            self.elect(*id);
            self.show(*id);
        }
    }

    fn judge(&mut self, id: NodeId) {
        let standing = self.presence.standing(id);
        if let Some(change) = self.directory.judge(id, &standing) {
            self.broadcast.policy_says(&change);
        }
    }

    /// Elects routers for the subnets that a node served before and serves from here on.
    pub(super) fn elect(&mut self, id: NodeId) {
        let expired = self.presence.is_expired(id);
        // Exit routes have no primary router.
        let served = self.directory.grants(id).filter(|_| !expired).map(|grants| grants.routes.iter());
        let subnets = served.into_iter().flatten().filter(|route| !is_default_route(route)).copied().collect();
        let elected = self.presence.serve(id, subnets);
        self.refresh_elected(elected);
    }

    fn refresh_elected(&mut self, elected: BTreeSet<NodeId>) {
        for id in elected {
            self.judge(id);
            self.show(id);
        }
    }

    fn show(&mut self, id: NodeId) {
        let (Some(record), Some(grants)) = (self.directory.node(id), self.directory.grants(id)) else { return };
        let standing = self.presence.standing(id);
        let record = match self.is_suspended(record) {
            // Whoever goes by dates must not take it for good either.
            true => Arc::new(record.ended(Timestamp::UNIX_EPOCH)),
            false => Arc::clone(record),
        };
        self.broadcast.show(NodeState {
            record,
            online: self.presence.is_online(id),
            expired: standing.expired,
            primary: standing.primary,
            grants: Arc::clone(grants),
        });
    }

    // ---- machines that wait ----

    pub(super) fn settle_pending(&mut self, code: &PendingCode) {
        if self.directory.waiting_mut().remove(code).is_some() {
            self.outputs.push_back(Output::Settled { code: code.clone() });
        }
    }

    fn reject_pending(&mut self, code: &PendingCode, until: Timestamp) {
        let Some(machine) = self.pending(code).map(|pending| pending.machine) else { return };
        self.settle_pending(code);
        // There is room again in some minutes; until then who was turned away is asked about once more.
        if limit::PENDING.check(self.directory.waiting().rejected().len() + 1).is_ok() {
            self.directory.waiting_mut().reject(machine, until);
        }
    }

    pub(super) fn end_stream(&mut self, session: SessionId) {
        self.broadcast.close(session);
        self.outputs.push_back(Output::Close { session });
    }
}

#[cfg(test)]
impl State {
    pub(super) fn raise(&mut self, to: super::Counters) {
        self.directory.raise(to);
    }

    /// What a stream that begins now is sent.
    pub(super) fn full_map(&mut self, id: NodeId, now: Timestamp) -> Option<super::MapMessage> {
        let source = Source { directory: &self.directory, config: &self.config };
        self.broadcast.full_map_of(&source, id, now)
    }
}
