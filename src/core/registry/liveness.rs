//! Whether nodes that follow their map are still there: asked within the channel, because a connection that stands says
//! nothing of the machine at its other end, least of all through a proxy.
//!
//! Model: a stream is asked by a [`PingRequest`] in a message of its own and answers by a request. Where a subnet has a
//! router in waiting, its routers are asked every few seconds, so that the one in use is replaced within 15 s whatever
//! became of it; all others are asked once a minute. A client that has never answered is judged by its connection alone.
//! An answer that is late because we were is waited for once more.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::gate::INSIDE;
use super::member::subnets;
use super::message::Builder;
use super::session::{Notice, Output, SessionId, Timer, add};
use super::state::State;
use crate::types::{MachinePublic, NodeId, Timestamp};
use crate::wire::control::PingRequest;

/// How often routers are asked where another one waits, and how long they may take.
const OFTEN: Pace = Pace { every: Duration::from_secs(4), within: Duration::from_secs(3) };
/// The same for all others.
const SELDOM: Pace = Pace { every: Duration::from_secs(60), within: Duration::from_secs(20) };
/// Where we look at a deadline later than this, the answer may wait in front of us.
const LATE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Pace {
    every: Duration,
    within: Duration,
}

/// One question, as its address names it: to which stream, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingId {
    session: SessionId,
    number: i64,
}

/// How it goes with the questions to one stream.
#[derive(Debug)]
pub(super) struct Asking {
    /// When there is something to do: to ask, or to judge.
    pub(super) at: Timestamp,
    /// The question that is open.
    open: Option<i64>,
    /// Whether its deadline was put off already, because we were late ourselves.
    is_put_off: bool,
}

impl Asking {
    pub(super) const fn new(at: Timestamp) -> Self {
        Self { at, open: None, is_put_off: false }
    }
}

impl State {
    /// A node answered a question. It counts only from the machine that was asked.
    pub fn pong(&mut self, machine: MachinePublic, ping: PingId, now: Timestamp) {
        let Some(session) = self.sessions.get_mut(&ping.session) else { return };
        let id = session.node;
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.shown.record.machine == machine && session.asking.open == Some(ping.number) {
            session.asking.open = None;
            member.answers = true;
            let at = self.next_asked_at(id, now);
            self.ask_at(ping.session, at);
        }
    }

    /// When a stream that begins now is first asked: those that came together are not asked together.
    pub(super) fn first_asked_at(&self, id: NodeId, session: SessionId, now: Timestamp) -> Timestamp {
        let every = self.pace_of(id).every;
        let seconds = every.as_secs() / 2;
        add(now, every.saturating_sub(Duration::from_secs(session.0 % seconds.max(1))))
    }

    /// When a node that answers now is asked next.
    fn next_asked_at(&self, id: NodeId, now: Timestamp) -> Timestamp {
        add(now, self.pace_of(id).every)
    }

    /// Nodes that have become routers, or whose subnet has another router from here on, are asked at the new pace.
    pub(super) fn ask_contested(&mut self, now: Timestamp) {
        for id in std::mem::take(&mut self.contested) {
            let at = self.next_asked_at(id, now);
            let Some(number) = self.members.get(&id).and_then(|member| member.session) else { continue };
            let asking = self.sessions.get(&number).map(|session| &session.asking);
            if asking.is_some_and(|asking| asking.open.is_none() && at < asking.at) {
                self.ask_at(number, at);
            }
        }
    }

    /// The time has come to ask a stream, or to judge it.
    pub(super) fn ask(&mut self, number: SessionId, now: Timestamp) {
        let Some(id) = self.sessions.get(&number).map(|session| session.node) else { return };
        let pace = self.pace_of(id);
        let Some(member) = self.members.get_mut(&id) else { return };
        member.twins.handle_time(now);
        let answers = member.answers;
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let asking = &mut session.asking;
        if asking.open.is_some() && answers {
            let is_late = now > add(asking.at, LATE);
            if !is_late || std::mem::replace(&mut asking.is_put_off, true) {
                return self.fell_silent(id, number, now);
            }
            return self.ask_at(number, add(now, pace.within));
        }
        let ping = PingId { session: number, number: now.as_millisecond() };
        (asking.open, asking.is_put_off) = (Some(ping.number), false);
        self.ask_at(number, add(now, if answers { pace.within } else { pace.every }));
        // Clients do not take such a message for news of the network.
        let mut builder = Builder::new(&self.fanout.comma);
        builder.field("KeepAlive", &true);
        builder.field("PingRequest", &ping.request());
        self.outputs.push_back(Output::Send { sessions: vec![number], message: Arc::new(builder.finish()) });
    }

    /// A node does not answer any more: another routes in its place from here on, and its stream ends as if it had.
    fn fell_silent(&mut self, id: NodeId, number: SessionId, now: Timestamp) {
        if let Some(member) = self.members.get_mut(&id) {
            member.is_silent = true;
            let served = subnets(&member.shown);
            self.elect(id, &served);
        }
        self.outputs.push_back(Output::Noticed(Notice::Silent(id)));
        self.outputs.push_back(Output::Close { session: number });
        self.close(number, now);
    }

    fn pace_of(&self, id: NodeId) -> Pace {
        let Some(member) = self.members.get(&id) else { return SELDOM };
        let has_other = subnets(&member.shown).iter().any(|prefix| self.routes.servers(prefix).nth(1).is_some());
        if has_other { OFTEN } else { SELDOM }
    }

    fn ask_at(&mut self, number: SessionId, at: Timestamp) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let before = std::mem::replace(&mut session.asking.at, at);
        self.timers.remove(&(before, Timer::Ask(number)));
        self.timers.insert((at, Timer::Ask(number)));
    }
}

impl PingId {
    fn request(self) -> PingRequest {
        let url = format!("{INSIDE}/machine/ping-response?id={self}");
        PingRequest { url, url_is_noise: true, ..PingRequest::default() }
    }
}

impl fmt::Display for PingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session.0, self.number)
    }
}

impl FromStr for PingId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (session, number) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { session: SessionId(session.parse()?), number: number.parse()? })
    }
}
