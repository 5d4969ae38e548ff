//! What a clock that is set means: periods go on by the time that passed, dates are judged anew.
//!
//! A grace, the wait for approval and the pace of flushes are periods. Their ends are kept as times of the one clock that
//! everything here is told; whoever tells it lets that clock run evenly and says when it is set. So a clock that is set
//! back by hours keeps no dead node online, and one that is set forward deletes no ephemeral node. A key's expiry is a
//! date: it comes when the calendar says so.

use std::sync::Arc;

use jiff::SignedDuration;

use super::session::Timer;
use super::state::State;
use crate::types::{NodeId, Timestamp};

impl State {
    /// The clock was set by this much, and it is `now`.
    pub fn handle_clock_set(&mut self, by: SignedDuration, now: Timestamp) {
        let move_on = |at: Timestamp| shift(at, by);
        for pending in self.pending.values_mut() {
            pending.expires = move_on(pending.expires);
        }
        self.rejected.values_mut().for_each(|until| *until = move_on(*until));
        for member in self.members.values_mut() {
            member.offline_at = member.offline_at.map(move_on);
            member.reap_at = member.reap_at.map(move_on);
            member.pace.move_on(move_on);
            member.twins.move_on(move_on);
        }
        self.sessions.values_mut().for_each(|session| session.asking.at = move_on(session.asking.at));
        self.reaps = self.reaps.iter().map(|(at, id)| (move_on(*at), *id)).collect();
        self.timers = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|(at, timer)| match timer {
                Timer::Offline(_) | Timer::Pending(_) | Timer::Rejected(_) | Timer::Say(_) | Timer::Ask(_) => {
                    (move_on(at), timer)
                }
                Timer::Expire(_) => (at, timer),
            })
            .collect();
        self.fanout.last_flush = self.fanout.last_flush.map(move_on);
        self.judge_expiry(now);
        self.correct_last_seen(now);
    }

    /// Keys that expired by a wrong date are good again. Those that expire now have their timers.
    fn judge_expiry(&mut self, now: Timestamp) {
        let wrong = |member: &&super::member::Member| member.shown.expired && !member.shown.record.is_expired(now);
        let revived: Vec<NodeId> = self.members.values().filter(wrong).map(super::member::Member::id).collect();
        for id in revived {
            self.alter(id, |shown| shown.expired = false);
            let expiry = self.members.get(&id).and_then(|member| member.shown.record.key_expiry);
            self.timers.extend(expiry.map(|at| (at, Timer::Expire(id))));
        }
    }

    /// Nobody was seen in the future.
    fn correct_last_seen(&mut self, now: Timestamp) {
        let wrong = |member: &&super::member::Member| member.shown.record.last_seen.is_some_and(|at| at > now);
        let wrong: Vec<NodeId> = self.members.values().filter(wrong).map(super::member::Member::id).collect();
        for id in wrong {
            self.unsaved.insert(id);
            self.alter(id, |shown| {
                Arc::make_mut(&mut shown.record).last_seen = Timestamp::from_second(now.as_second()).ok();
            });
        }
    }
}

fn shift(at: Timestamp, by: SignedDuration) -> Timestamp {
    let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(end)
}
