//! Who is there: the streams of nodes, deadlines, and who routes which subnet. Nothing of it outlives the process.
//!
//! All deadlines are times of the one clock that the shell tells, which runs evenly; what it means where that is set says
//! `clock_set`. It knows of a node what it needs for that ([`NodePresence`]), and neither records nor messages.

mod clones;
mod liveness;
mod pace;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::directory::PolicyFacts;
use super::record::{NodeRecord, NodeStatus};
use crate::types::{DiscoPublic, IpNet, NodeId, Timestamp};
use clones::CloneDetector;
use liveness::PingState;
use pace::Pace;
use routes::Routes;

pub(super) use clones::PUT_OFF;
pub use liveness::PingId;
pub(super) use liveness::{INSIDE, PingDue};
pub use routes::RouteView;

/// One map stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// How long a node may be away: until it counts as offline, and until it is deleted if it is ephemeral.
#[derive(Clone, Copy, Debug)]
pub(super) struct Graces {
    pub(super) offline: Duration,
    pub(super) ephemeral: Duration,
}

/// Who is there, and what is due when.
#[derive(Debug)]
pub(super) struct Presence {
    /// Boxed, because a map keeps room for nearly two of what it holds by value.
    nodes: BTreeMap<NodeId, Box<NodePresence>>,
    streams: BTreeMap<SessionId, Stream>,
    last_session: u64,
    timers: BTreeSet<(Timestamp, Timer)>,
    /// When ephemeral nodes that are offline are deleted. Apart from the timers, because a deletion must
    /// be committed first.
    reaps: BTreeSet<(Timestamp, NodeId)>,
    routes: Routes,
    /// Nodes whose subnets have other routers than before.
    contested: BTreeSet<NodeId>,
    /// How often a node's word was passed on later than it came.
    held_back: u64,
    graces: Graces,
}

/// A node, as far as it is there.
#[derive(Debug, Default)]
struct NodePresence {
    /// Whether it follows its map, or did a moment ago.
    online: bool,
    /// Whether its key is past its time.
    expired: bool,
    key_expiry: Option<Timestamp>,
    ephemeral: bool,
    /// The subnets that it serves.
    serves: BTreeSet<IpNet>,
    session: Option<SessionId>,
    /// When peers are told that it is offline, after its stream closed.
    offline_at: Option<Timestamp>,
    /// When it is deleted for being ephemeral and offline.
    reap_at: Option<Timestamp>,
    /// How often its word is passed on.
    pace: Pace,
    /// What it said last and has yet to be passed on.
    held: Option<Box<NodeStatus>>,
    /// Whether it is one machine.
    clones: CloneDetector,
    /// Whether its client answers when it is asked whether it is there.
    answers: bool,
    /// It did not the last time, and has not come back since.
    is_silent: bool,
}

/// A stream, and how it goes with the questions to it.
#[derive(Debug)]
struct Stream {
    node: NodeId,
    asking: PingState,
}

/// What a deadline is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Its stream closed and did not come back.
    Offline(NodeId),
    /// Its key is past its time.
    Expire(NodeId),
    /// What it said of itself may be passed on.
    Say(NodeId),
    /// It is to be asked, or judged, whether it is there.
    Ask(SessionId),
}

/// A stream that begins.
pub(super) struct Opening {
    pub(super) session: SessionId,
    /// The stream that it takes the place of.
    pub(super) older: Option<SessionId>,
    /// The node was offline.
    pub(super) came: bool,
    /// It did not answer the last time, so that another may route in its place.
    pub(super) was_silent: bool,
    /// That gives a second machine with its key away.
    pub(super) is_second: bool,
}

impl Presence {
    pub(super) fn new(graces: Graces) -> Self {
        Self {
            nodes: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_session: 0,
            timers: BTreeSet::new(),
            reaps: BTreeSet::new(),
            routes: Routes::default(),
            contested: BTreeSet::new(),
            held_back: 0,
            graces,
        }
    }

    pub(super) const fn set_graces(&mut self, graces: Graces) {
        self.graces = graces;
    }

    // ---- nodes ----

    /// A node is, from here on, this, and its owner suspended or not. `true` where its key is good no more and was before.
    pub(super) fn put_node(&mut self, record: &NodeRecord, suspended: bool, now: Timestamp) -> bool {
        let id = record.id;
        let expired = suspended || record.is_expired(now);
        let node = self.nodes.entry(id).or_default();
        if node.key_expiry != record.ends_at()
            && let Some(at) = node.key_expiry
        {
            self.timers.remove(&(at, Timer::Expire(id)));
        }
        if let Some(at) = record.ends_at().filter(|_| !expired) {
            self.timers.insert((at, Timer::Expire(id)));
        }
        let was = std::mem::replace(&mut node.expired, expired);
        (node.key_expiry, node.ephemeral) = (record.ends_at(), record.ephemeral);
        self.plan_reaping(id, now);
        expired && !was
    }

    /// A node is there no more. Gives its stream, and the nodes that route other subnets than before.
    pub(super) fn remove_node(&mut self, id: NodeId) -> (Option<SessionId>, BTreeSet<NodeId>) {
        let Some(node) = self.nodes.get(&id) else { return (None, BTreeSet::new()) };
        let session = node.session;
        if let Some(session) = session {
            self.forget(session);
        }
        let elected = self.serve(id, BTreeSet::new());
        let Some(node) = self.nodes.remove(&id) else { return (session, elected) };
        let expiry = node.key_expiry.map(|at| (at, Timer::Expire(id)));
        let offline = node.offline_at.map(|at| (at, Timer::Offline(id)));
        for timer in expiry.into_iter().chain(offline) {
            self.timers.remove(&timer);
        }
        if let Some(at) = node.reap_at {
            self.reaps.remove(&(at, id));
        }
        (session, elected)
    }

    /// Its key is past its time, or is not after all. `false` where that is no news.
    pub(super) fn set_expired(&mut self, id: NodeId, expired: bool) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let was = std::mem::replace(&mut node.expired, expired);
        if let Some(at) = node.key_expiry.filter(|_| !expired) {
            self.timers.insert((at, Timer::Expire(id)));
        }
        was != expired
    }

    pub(super) fn is_expired(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.expired)
    }

    pub(super) fn is_online(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.online)
    }

    /// The nodes that are online.
    pub(super) fn online(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, node)| node.online).map(|(id, _)| *id)
    }

    /// What the policy asks about a node.
    pub(super) fn standing(&self, id: NodeId) -> PolicyFacts {
        let Some(node) = self.nodes.get(&id) else { return PolicyFacts::default() };
        let primary = node.serves.iter().filter(|prefix| self.routes.primary(prefix) == Some(id));
        PolicyFacts { expired: node.expired, primary: primary.copied().collect() }
    }

    /// A node serves these subnets from here on; routers of those and of the ones that it served are elected anew. Gives the
    /// nodes that route others than before.
    pub(super) fn serve(&mut self, id: NodeId, subnets: BTreeSet<IpNet>) -> BTreeSet<NodeId> {
        let Some(node) = self.nodes.get_mut(&id) else { return BTreeSet::new() };
        let before = std::mem::replace(&mut node.serves, subnets);
        if node.serves.is_empty() && before.is_empty() {
            return BTreeSet::new();
        }
        let serves = node.serves.clone();
        let nodes = &self.nodes;
        let is_online = |id: NodeId| nodes.get(&id).is_some_and(|node| node.online && !node.is_silent);
        let changed = self.routes.set(id, &before, &serves, is_online);
        for prefix in before.union(&serves) {
            self.contested.extend(self.routes.servers(prefix));
        }
        changed
    }

    // ---- streams ----

    /// A node begins to follow its map.
    pub(super) fn open(&mut self, id: NodeId, now: Timestamp) -> Option<Opening> {
        let node = self.nodes.get_mut(&id)?;
        let is_second = node.clones.handle_opened(node.session.is_some(), now);
        let was_silent = std::mem::take(&mut node.is_silent);
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let older = node.session.replace(session);
        let came = !std::mem::replace(&mut node.online, true);
        if let Some(at) = node.offline_at.take() {
            self.timers.remove(&(at, Timer::Offline(id)));
        }
        if let Some(older) = older {
            self.forget(older);
        }
        if came {
            self.plan_reaping(id, now);
        }
        let asking = PingState::new(self.first_asked_at(id, session, now));
        self.timers.insert((asking.at, Timer::Ask(session)));
        self.streams.insert(session, Stream { node: id, asking });
        Some(Opening { session, older, came, was_silent, is_second })
    }

    /// A stream ended. Unless the node comes back soon, its peers will be told.
    pub(super) fn close(&mut self, session: SessionId, now: Timestamp) {
        let Some(id) = self.forget(session) else { return };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.session == Some(session) {
            node.session = None;
            let at = add(now, self.graces.offline);
            node.offline_at = Some(at);
            self.timers.insert((at, Timer::Offline(id)));
        }
    }

    /// Nobody listens there any more. Gives whose stream it was.
    fn forget(&mut self, session: SessionId) -> Option<NodeId> {
        let stream = self.streams.remove(&session)?;
        self.timers.remove(&(stream.asking.at, Timer::Ask(session)));
        Some(stream.node)
    }

    pub(super) fn session_of(&self, id: NodeId) -> Option<SessionId> {
        self.nodes.get(&id)?.session
    }

    /// A node's stream closed and did not come back until now. Gives when it was last there.
    pub(super) fn went_offline(&mut self, id: NodeId, at: Timestamp) -> Option<Timestamp> {
        let node = self.nodes.get_mut(&id).filter(|node| node.session.is_none())?;
        node.offline_at = None;
        node.online = false;
        self.plan_reaping(id, at);
        Some(subtract(at, self.graces.offline))
    }

    /// The server stops, and nobody is online any more.
    pub(super) fn set_offline(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.online = false;
        }
    }

    // ---- ephemeral nodes ----

    /// A node asked something: it is about to come back, so that the deadline of an ephemeral one begins anew.
    pub(super) fn heard(&mut self, id: NodeId, now: Timestamp) {
        if let Some(at) = self.nodes.get_mut(&id).and_then(|node| node.reap_at.take()) {
            self.reaps.remove(&(at, id));
            self.plan_reaping(id, now);
        }
    }

    /// Sets or lifts the deadline by which an ephemeral node must be back.
    fn plan_reaping(&mut self, id: NodeId, now: Timestamp) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let wanted = node.ephemeral && !node.online;
        match node.reap_at {
            Some(at) if !wanted => {
                node.reap_at = None;
                self.reaps.remove(&(at, id));
            }
            None if wanted => {
                let at = add(now, self.graces.ephemeral);
                node.reap_at = Some(at);
                self.reaps.insert((at, id));
            }
            Some(_) | None => {}
        }
    }

    /// When ephemeral nodes that are offline are to be deleted.
    pub(super) fn reaps(&self) -> impl Iterator<Item = (Timestamp, NodeId)> + '_ {
        self.reaps.iter().copied()
    }

    // ---- what nodes say ----

    /// A message of a node came, with this disco key. `true` where that gives a second machine with its key away.
    pub(super) fn hear(&mut self, id: NodeId, disco: DiscoPublic, now: Timestamp) -> bool {
        self.nodes.get_mut(&id).is_some_and(|node| node.clones.hear(disco, now))
    }

    /// Whether a message with this disco key is to be put off, because another machine follows the map.
    pub(super) fn puts_off(&self, id: NodeId, disco: &DiscoPublic, now: Timestamp) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.session.is_some() && node.clones.puts_off(disco, now))
    }

    /// What a node said last and has yet to be passed on.
    pub(super) fn held(&self, id: NodeId) -> Option<&NodeStatus> {
        self.nodes.get(&id)?.held.as_deref()
    }

    /// Gives what a node says back if it may be passed on now, and keeps it until it may otherwise.
    pub(super) fn pace(&mut self, id: NodeId, status: NodeStatus, now: Timestamp) -> Option<NodeStatus> {
        let node = self.nodes.get_mut(&id)?;
        if node.held.is_none() {
            let Err(at) = node.pace.take(now) else { return Some(status) };
            self.timers.insert((at, Timer::Say(id)));
        }
        self.held_back += 1;
        node.held = Some(Box::new(status));
        None
    }

    /// What was held may be passed on.
    pub(super) fn take_held(&mut self, id: NodeId, now: Timestamp) -> Option<NodeStatus> {
        let node = self.nodes.get_mut(&id)?;
        let status = node.held.take()?;
        let _ = node.pace.take(now);
        Some(*status)
    }

    /// How often a node's word was passed on later than it came, because it had come too often.
    pub(super) const fn held_back(&self) -> u64 {
        self.held_back
    }

    /// The nodes whose key two machines use, as far as can be told.
    pub(super) fn two_machines(&self, now: Timestamp) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(move |(_, node)| node.clones.are_two(now)).map(|(id, _)| *id)
    }

    /// Whether two machines were found to use a node's key, some time.
    pub(super) fn were_two(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.clones.were_two())
    }

    // ---- time ----

    /// What is due, the first first. It is nobody's business here any more.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<(Timestamp, Timer)> {
        let mut due = Vec::new();
        while let Some(first) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.timers.remove(&first);
            due.push(first);
        }
        due
    }

    /// When [`Presence::take_due`] has something next.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The clock was set: periods go on by the time that passed, dates stay.
    pub(super) fn move_on(&mut self, move_on: impl Fn(Timestamp) -> Timestamp + Copy) {
        for node in self.nodes.values_mut() {
            node.offline_at = node.offline_at.map(move_on);
            node.reap_at = node.reap_at.map(move_on);
            node.pace.move_on(move_on);
            node.clones.move_on(move_on);
        }
        self.streams.values_mut().for_each(|stream| stream.asking.at = move_on(stream.asking.at));
        self.reaps = self.reaps.iter().map(|(at, id)| (move_on(*at), *id)).collect();
        let moved = std::mem::take(&mut self.timers).into_iter().map(|(at, timer)| match timer {
            Timer::Offline(_) | Timer::Say(_) | Timer::Ask(_) => (move_on(at), timer),
            Timer::Expire(_) => (at, timer),
        });
        self.timers = moved.collect();
    }
}

/// A later time; the end of time where there is none.
pub(super) fn add(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn subtract(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_sub(duration).unwrap_or(Timestamp::MIN)
}
