//! Whether nodes that follow their map are still there: asked within the channel, because a connection that stands says
//! nothing of the machine at its other end, least of all through a proxy.
//!
//! Model: a stream is asked by a [`PingRequest`] in a message of its own and answers by a request. Where a subnet has a
//! router in waiting, its routers are asked every few seconds, so that the one in use is replaced within 15 s whatever
//! became of it; all others are asked once a minute. A client that has never answered is judged by its connection alone,
//! so a router that has a rival is asked at once whether it does. An answer that is late because we were is waited for
//! once more.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Presence, SessionId, Timer, add};
use crate::types::{NodeId, Timestamp};
use crate::wire::control::PingRequest;

/// Where nodes ask about SSH sessions that are held, and answer whether they are there: the path counts, for the request
/// goes inside the channel that they have to us.
pub(in crate::registry) const INSIDE: &str = "https://unused";

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

/// The ping of one stream that is open, or the next one.
#[derive(Debug)]
pub(super) struct PingState {
    /// When there is something to do: to ask, or to judge.
    pub(super) at: Timestamp,
    /// The question that is open.
    open: Option<i64>,
    /// Whether its deadline was put off already, because we were late ourselves.
    is_put_off: bool,
}

impl PingState {
    pub(super) const fn new(at: Timestamp) -> Self {
        Self { at, open: None, is_put_off: false }
    }
}

/// What is due with a stream.
pub(in crate::registry) enum PingDue {
    /// Nothing yet.
    Later,
    /// To ask its node this.
    Ask(PingId),
    /// To give its node up, which does not answer any more.
    Silent(NodeId),
}

impl Presence {
    /// A node answered a question. It counts only from the machine that was asked, which is `is_its` to say.
    pub(in crate::registry) fn pong(&mut self, ping: PingId, now: Timestamp, is_its: impl Fn(NodeId) -> bool) {
        let Some(stream) = self.streams.get_mut(&ping.session) else { return };
        let id = stream.node;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if is_its(id) && stream.asking.open == Some(ping.number) {
            stream.asking.open = None;
            node.answers = true;
            let at = self.next_asked_at(id, now);
            self.ask_at(ping.session, at);
        }
    }

    /// When a stream that begins now is first asked: those that came together are not asked together.
    pub(super) fn first_asked_at(&self, id: NodeId, session: SessionId, now: Timestamp) -> Timestamp {
        let every = self.pace_of(id).every;
        if every == OFTEN.every && !self.answers(id) {
            return now;
        }
        let seconds = every.as_secs() / 2;
        add(now, every.saturating_sub(Duration::from_secs(session.0 % seconds.max(1))))
    }

    /// When a node that answers now is asked next.
    fn next_asked_at(&self, id: NodeId, now: Timestamp) -> Timestamp {
        add(now, self.pace_of(id).every)
    }

    /// Nodes that have become routers, or whose subnet has another router from here on, are asked at the new pace.
    pub(in crate::registry) fn ask_contested(&mut self, now: Timestamp) {
        for id in std::mem::take(&mut self.contested) {
            let at = if self.answers(id) { self.next_asked_at(id, now) } else { now };
            let Some(session) = self.session_of(id) else { continue };
            let asking = self.streams.get(&session).map(|stream| &stream.asking);
            if asking.is_some_and(|asking| asking.open.is_none() && at < asking.at) {
                self.ask_at(session, at);
            }
        }
    }

    /// The time has come to ask a stream, or to judge it.
    pub(in crate::registry) fn ask(&mut self, session: SessionId, now: Timestamp) -> PingDue {
        let Some(id) = self.streams.get(&session).map(|stream| stream.node) else { return PingDue::Later };
        let pace = self.pace_of(id);
        let Some(node) = self.nodes.get_mut(&id) else { return PingDue::Later };
        node.clones.handle_time(now);
        let answers = node.answers;
        let Some(stream) = self.streams.get_mut(&session) else { return PingDue::Later };
        let asking = &mut stream.asking;
        if asking.open.is_some() && answers {
            let is_late = now > add(asking.at, LATE);
            if !is_late || std::mem::replace(&mut asking.is_put_off, true) {
                node.is_silent = true;
                return PingDue::Silent(id);
            }
            self.ask_at(session, add(now, pace.within));
            return PingDue::Later;
        }
        let ping = PingId { session, number: now.as_millisecond() };
        (asking.open, asking.is_put_off) = (Some(ping.number), false);
        self.ask_at(session, add(now, if answers { pace.within } else { pace.every }));
        PingDue::Ask(ping)
    }

    /// Whether its client is known to answer.
    fn answers(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.answers)
    }

    fn pace_of(&self, id: NodeId) -> Pace {
        let Some(node) = self.nodes.get(&id) else { return SELDOM };
        let has_other = node.serves.iter().any(|prefix| self.routes.servers(prefix).nth(1).is_some());
        if has_other { OFTEN } else { SELDOM }
    }

    fn ask_at(&mut self, session: SessionId, at: Timestamp) {
        let Some(stream) = self.streams.get_mut(&session) else { return };
        let before = std::mem::replace(&mut stream.asking.at, at);
        self.timers.remove(&(before, Timer::Ask(session)));
        self.timers.insert((at, Timer::Ask(session)));
    }
}

impl PingId {
    /// The question, as it is sent.
    pub(in crate::registry) fn request(self) -> PingRequest {
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
