//! Handshakes that go only one way.
//!
//! WireGuard takes a handshake only where the time in it rises. So a machine that comes back with its clock behind
//! what it was begins handshakes in vain, until its clock has caught up, while one that is begun towards it works at
//! once. It is the other side that can tell: the peer asks for a path again and again, and no session comes of it.
//! Then this side begins one, by a keep-alive. The peer itself sees that its probes are answered and its handshakes
//! are not, and says so.

use std::time::{Duration, Instant};

use super::{Live, Progress};
use crate::path::pace::doubled;

/// How long a peer may ask for a path without a session before this side begins one: WireGuard repeats an initiation
/// after five seconds, so the peer's own had its chance, and a second one.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long this side goes on beginning.
const BEGINS_FOR: Duration = Duration::from_secs(15);
/// How long until it does so again, doubled each time, and at most. WireGuard tries for 90 s, and whoever tries asks for
/// a path: with a shorter pause two machines that cannot talk would keep each other at it for ever.
const BEGINS_AGAIN: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3_600));
/// A peer that was not heard of for so long is not asking any more.
const ASKING: Duration = Duration::from_secs(30);
/// Packets that got no answer for so long: three handshakes, where one takes a second.
const ONE_WAY: Duration = Duration::from_secs(15);

/// How handshakes with a peer fare.
#[derive(Debug, Default)]
pub(in crate::path) struct Begin {
    /// When the peer's agent was last heard of.
    heard: Option<Instant>,
    /// When it last asked for a path.
    asked: Option<Instant>,
    /// Since when it asks for one while there is no session.
    asking_since: Option<Instant>,
    /// When this side last began a handshake for that.
    began: Option<Instant>,
    /// How often that was in vain.
    failures: u8,
    /// Whether it is beginning one.
    begins: bool,
    /// Since when packets go out, without a session and without an answer.
    unanswered_since: Option<Instant>,
}

/// A sign of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::path) enum Sign {
    /// Its agent answered.
    Answer,
    /// Its agent asks for a path.
    Question,
    /// The relay carried something, in whichever direction. While this side sends nothing, it came from the peer.
    Relayed,
}

impl Live {
    /// There is a sign of the peer.
    pub(in crate::path) fn handle_sign(&mut self, sign: Sign, in_session: bool, now: Instant) {
        let begin = &mut self.begin;
        let asks = match sign {
            Sign::Answer => false,
            Sign::Question => true,
            Sign::Relayed => begin.unanswered_since.is_none(),
        };
        if sign != Sign::Relayed {
            begin.heard = Some(now);
        }
        if in_session || !asks {
            return;
        }
        let before = begin.asked.replace(now);
        let goes_on = before.is_some_and(|at| now.saturating_duration_since(at) < ASKING);
        let since = match begin.asking_since.filter(|_| goes_on) {
            Some(since) => since,
            None => *begin.asking_since.insert(now),
        };
        let pause = doubled(BEGINS_AGAIN.0, begin.failures.saturating_sub(1), BEGINS_AGAIN.1);
        let may = begin.began.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        if may && now.saturating_duration_since(since) >= PATIENCE {
            (begin.began, begin.begins) = (Some(now), true);
            begin.failures = begin.failures.saturating_add(1);
        }
    }

    /// The peer has another key, so there is no session: this side begins one.
    pub(in crate::path) fn begin_anew(&mut self, now: Instant) {
        self.begin = Begin { heard: self.begin.heard, began: Some(now), begins: true, ..Begin::default() };
    }

    /// The kernel's counters were read.
    pub(super) fn judge_handshakes(&mut self, progress: Progress, now: Instant) {
        let begin = &mut self.begin;
        if progress.in_session {
            *begin = Begin { heard: begin.heard, ..Begin::default() };
            return;
        }
        begin.begins &= begin.began.is_some_and(|at| now.saturating_duration_since(at) < BEGINS_FOR);
        if progress.is_news() {
            begin.unanswered_since = None;
        } else if progress.sent {
            begin.unanswered_since.get_or_insert(now);
        }
    }

    /// Whether this side is beginning a handshake because the peer cannot.
    pub(in crate::path) fn begins(&self) -> bool {
        self.begin.begins
    }

    /// Whether the peer's agent is there, and its WireGuard answers nothing of ours.
    pub(in crate::path) fn goes_one_way(&self, now: Instant) -> bool {
        let begin = &self.begin;
        let past = |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) >= span);
        past(begin.unanswered_since, ONE_WAY) && begin.heard.is_some() && !past(begin.heard, ASKING)
    }
}
