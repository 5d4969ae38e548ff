//! What a clock that is set means: periods go on by the time that passed, dates are judged anew.
//!
//! A grace, the wait for approval and the pace of flushes are periods. Their ends are kept as times of the one clock that
//! everything here is told; whoever tells it lets that clock run evenly and says when it is set. So a clock that is set
//! back by hours keeps no dead node online, and one that is set forward deletes no ephemeral node. A key's expiry is a
//! date: it comes when the calendar says so.

use jiff::SignedDuration;

use super::record::NodeRecord;
use super::state::State;
use crate::types::{NodeId, Timestamp};

impl State {
    /// The clock was set by this much, and it is `now`.
    pub fn handle_clock_set(&mut self, by: SignedDuration, now: Timestamp) {
        let move_on = |at: Timestamp| shift(at, by);
        self.directory.waiting_mut().move_on(move_on);
        self.presence.move_on(move_on);
        self.broadcast.move_on(move_on);
        self.judge_expiry(now);
        self.correct_last_seen(now);
    }

    /// Keys that expired by a wrong date are good again. Those that expire now have their timers.
    fn judge_expiry(&mut self, now: Timestamp) {
        let expired = self.directory.nodes().filter(|record| self.presence.is_expired(record.id));
        let revived: Vec<NodeId> =
            expired.filter(|record| !self.has_ended(record, now)).map(|record| record.id).collect();
        for id in revived {
            self.presence.set_expired(id, false);
            self.refresh(id);
        }
    }

    /// Nobody was seen in the future.
    fn correct_last_seen(&mut self, now: Timestamp) {
        let wrong = self.directory.nodes().filter(|record| record.last_seen.is_some_and(|at| at > now));
        let last_seen = Timestamp::from_second(now.as_second()).ok();
        let corrected: Vec<NodeRecord> =
            wrong.map(|record| NodeRecord { last_seen, ..record.as_ref().clone() }).collect();
        for record in corrected {
            self.put_unsaved(record, now);
        }
    }
}

fn shift(at: Timestamp, by: SignedDuration) -> Timestamp {
    let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(end)
}
