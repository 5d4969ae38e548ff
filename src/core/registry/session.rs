//! Nodes that follow their map, and what time brings: going offline, expiry, clean-up.
//!
//! All deadlines are times of the one clock that the shell tells, which runs evenly; what it means where that is set says
//! `clock_set`.

use std::sync::Arc;
use std::time::Duration;

use super::actor::Actor;
use super::commands::{Command, Decision};
use super::fanout::FullMap;
use super::liveness::Asking;
use super::member::{Member, subnets};
use super::message::MapMessage;
use super::record::{Change, PendingCode};
use super::refusal::MapRefusal;
use super::state::State;
use super::update::accept_version;
use super::view::Shown;
use super::visibility::{ToldFilter, ViewClass};
use crate::types::{CapabilityVersion, MachinePublic, NodeId, NodePublic, Timestamp};

/// One map stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A stream that was opened, and its first message: the full map.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The stream.
    pub session: SessionId,
    /// The full map.
    pub message: Arc<MapMessage>,
}

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send one message to many.
    Send {
        /// To these, in no particular order.
        sessions: Vec<SessionId>,
        /// This.
        message: Arc<MapMessage>,
    },
    /// End a stream, after whatever was sent to it before.
    Close {
        /// This one.
        session: SessionId,
    },
    /// A machine waits no longer: ask [`State::register`] again on behalf of whoever held its request.
    Settled {
        /// The code it waited under.
        code: PendingCode,
    },
    /// Tell the operator.
    Noticed(Notice),
    /// A node key is good for nothing from here on: whoever admitted it to something has to end that.
    Withdrawn {
        /// The key.
        key: NodePublic,
    },
}

/// What an operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A node follows its map no more, though its connection stands.
    Silent(NodeId),
    /// Two machines use one node's key.
    TwoMachines(NodeId),
    /// A node claims the disco key of another, and is not told to anybody by it.
    DiscoTaken {
        /// Who claims it.
        node: NodeId,
        /// Whose it is.
        holder: NodeId,
    },
}

/// A stream and what its node was told.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: NodeId,
    /// How the node was shown to itself, where the stream was opened since the last flush: then its full
    /// map lies between what others were last told and what they will be told next.
    pub(super) opened_as: Option<Shown>,
    /// Whom it sees, as it was last told.
    pub(super) class: ViewClass,
    /// What it lets in, as it was last told.
    pub(super) filter: ToldFilter,
    /// Whether it is still there.
    pub(super) asking: Asking,
}

/// What a deadline is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Its stream closed and did not come back.
    Offline(NodeId),
    /// Its key is past its time.
    Expire(NodeId),
    /// Nobody approved it.
    Pending(PendingCode),
    /// It was turned away, and may ask again.
    Rejected(MachinePublic),
    /// What it said of itself may be passed on.
    Say(NodeId),
    /// It is to be asked, or judged, whether it is there.
    Ask(SessionId),
}

impl State {
    /// A node begins to follow its map. An older stream of the same node ends.
    pub fn open(&mut self, id: NodeId, version: CapabilityVersion, now: Timestamp) -> Result<Opened, MapRefusal> {
        accept_version(version)?;
        if self.policy_fault.is_some() {
            return Err(MapRefusal::NoPolicy);
        }
        let Some(member) = self.members.get_mut(&id) else { return Err(MapRefusal::Unknown) };
        if member.twins.handle_opened(member.session.is_some(), now) {
            self.outputs.push_back(Output::Noticed(Notice::TwoMachines(id)));
        }
        let was_silent = std::mem::take(&mut member.is_silent);
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let older = member.session.replace(session);
        let offline_at = member.offline_at.take();
        if let Some(older) = older {
            self.forget_session(older);
            self.outputs.push_back(Output::Close { session: older });
        }
        if let Some(at) = offline_at {
            self.timers.remove(&(at, Timer::Offline(id)));
        }
        if !self.members.get(&id).is_some_and(|member| member.shown.online) {
            self.alter(id, |shown| shown.online = true);
            self.plan_reaping(id, now);
        }
        if was_silent {
            let served = self.members.get(&id).map(|member| subnets(&member.shown)).unwrap_or_default();
            self.elect(id, &served);
        }
        let opened_as = self.members.get(&id).map(|member| member.shown.clone());
        let FullMap { message, class, filter } = self.full_map(id, now).ok_or(MapRefusal::Unknown)?;
        let asking = Asking::new(self.first_asked_at(id, session, now));
        self.timers.insert((asking.at, Timer::Ask(session)));
        self.sessions.insert(session, Session { node: id, opened_as, class, filter, asking });
        self.viewers.entry(class).or_default().insert(session);
        self.fanout.opened.insert(session);
        Ok(Opened { session, message: Arc::new(message) })
    }

    /// A machine asked something as the node with this key, or for it: it is about to come back, so that the deadline of
    /// an ephemeral node that is away begins anew.
    pub fn heard(&mut self, machine: MachinePublic, key: &NodePublic, now: Timestamp) {
        let Some(member) = self.by_key.get(key).and_then(|id| self.members.get_mut(id)) else { return };
        if member.shown.record.machine == machine
            && let Some(at) = member.reap_at.take()
        {
            let id = member.id();
            self.reaps.remove(&(at, id));
            self.plan_reaping(id, now);
        }
    }

    /// A stream ended. Unless the node comes back soon, its peers will be told.
    pub fn close(&mut self, session: SessionId, now: Timestamp) {
        let Some(Session { node: id, .. }) = self.forget_session(session) else { return };
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.session == Some(session) {
            member.session = None;
            let at = add(now, self.config.offline_grace);
            member.offline_at = Some(at);
            self.timers.insert((at, Timer::Offline(id)));
        }
    }

    /// Nobody listens there any more.
    pub(super) fn forget_session(&mut self, number: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&number)?;
        self.fanout.opened.remove(&number);
        self.timers.remove(&(session.asking.at, Timer::Ask(number)));
        self.leave_class(number, session.class);
        Some(session)
    }

    pub(super) fn leave_class(&mut self, number: SessionId, class: ViewClass) {
        if let Some(viewers) = self.viewers.get_mut(&class) {
            viewers.remove(&number);
            if viewers.is_empty() {
                self.viewers.remove(&class);
                self.fanout.left.insert(class);
            }
        }
    }

    /// The coordinator stops: whoever is online was seen until this moment.
    pub fn stop(&mut self, now: Timestamp) {
        let online: Vec<NodeId> = self.members.values().filter(|member| member.shown.online).map(Member::id).collect();
        for id in online {
            self.saw_last(id, now);
        }
    }

    /// How long a node may be away from here on: until it counts as offline, and until it is deleted if it is ephemeral.
    pub fn set_graces(&mut self, offline: Duration, ephemeral: Duration) {
        (self.config.offline_grace, self.config.ephemeral_timeout) = (offline, ephemeral);
    }

    /// What must be done for good because of the time: see `cleanup`.
    pub fn due(&self, now: Timestamp) -> Decision<()> {
        self.by(&Actor::COORDINATOR, now).decided(Command::CleanUp, (), self.due_changes(now))
    }

    /// When [`State::due`] has something next.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.next_cleanup()
    }

    /// What time brings by itself; and tells connected nodes of changes, if it is time for that.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        // It was for the command before; the network may change from here on.
        self.ready = None;
        let due: Vec<_> = self.timers.iter().take_while(|(at, _)| *at <= now).cloned().collect();
        for (at, timer) in due {
            match &timer {
                Timer::Offline(id) => self.went_offline(*id, at),
                Timer::Expire(id) => self.alter(*id, |shown| shown.expired = true),
                Timer::Pending(code) => self.settle_pending(code),
                Timer::Rejected(machine) => {
                    self.rejected.remove(machine);
                }
                Timer::Say(id) => self.say_held(*id, now),
                Timer::Ask(session) => self.ask(*session, now),
            }
            self.timers.remove(&(at, timer));
        }
        self.ask_contested(now);
        if self.fanout.is_due(now) {
            self.flush(now);
        }
    }

    /// When [`State::handle_timeout`] wants to be called again.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.fanout.due()).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Records that changed and may be saved at leisure; the caller has them from here on.
    pub fn take_unsaved(&mut self) -> Vec<Change> {
        let ids = std::mem::take(&mut self.unsaved);
        ids.iter().filter_map(|id| self.members.get(id)).map(|m| Change::Node(Arc::clone(&m.shown.record))).collect()
    }

    /// How many records [`State::take_unsaved`] would give.
    pub fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    /// Saving failed: give these out again next time.
    pub fn put_back_unsaved(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Node(record) = change
                && self.members.contains_key(&record.id)
            {
                self.unsaved.insert(record.id);
            }
        }
    }

    fn went_offline(&mut self, id: NodeId, at: Timestamp) {
        let grace = self.config.offline_grace;
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.session.is_some() {
            return;
        }
        member.offline_at = None;
        self.saw_last(id, subtract(at, grace));
        self.plan_reaping(id, at);
    }

    /// A node is offline, and was last seen then.
    fn saw_last(&mut self, id: NodeId, at: Timestamp) {
        self.unsaved.insert(id);
        self.alter(id, |shown| {
            shown.online = false;
            // To the second: nobody needs more, and it is in every peer's map.
            Arc::make_mut(&mut shown.record).last_seen = Timestamp::from_second(at.as_second()).ok();
        });
    }
}

/// A later time; the end of time where there is none.
pub(super) fn add(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn subtract(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_sub(duration).unwrap_or(Timestamp::MIN)
}
