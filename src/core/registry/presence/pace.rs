//! How often what a node says of itself is passed on: each time it goes to everybody who sees the node.
//!
//! A node that moves says so a few times in a row, and is heard at once. One that never stops is heard every few seconds,
//! with what it said last.

use std::time::Duration;

use super::add;
use crate::types::Timestamp;

/// Changes that are passed on at once.
const BURST: u32 = 20;
/// One more each time this has passed.
const EVERY: Duration = Duration::from_secs(2);

/// One node's pace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When it may say so much at once again as if it had said nothing.
    rested: Option<Timestamp>,
}

impl Pace {
    /// The clock was set.
    pub(super) fn move_on(&mut self, move_on: impl Fn(Timestamp) -> Timestamp) {
        self.rested = self.rested.map(move_on);
    }

    /// Whether a change may be passed on now, which counts, or when it may.
    pub(super) fn take(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        let most = EVERY.saturating_mul(BURST);
        // A clock that was set back must not keep a node silent.
        let rested = self.rested.unwrap_or(now).clamp(now, add(now, most));
        let next = add(rested, EVERY);
        if next <= add(now, most) {
            self.rested = Some(next);
            return Ok(());
        }
        Err(next.checked_sub(most).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_change_every_two_seconds_whatever_the_clock_does() {
        let (mut pace, now) = (Pace::default(), Timestamp::from_second(1_000_000).unwrap());
        for _ in 0..BURST {
            assert_eq!(pace.take(now), Ok(()));
        }
        assert_eq!(pace.take(now), Err(add(now, EVERY)));
        assert_eq!(pace.take(add(now, EVERY)), Ok(()));
        assert!(pace.take(add(now, EVERY)).is_err());
        let back = now.checked_sub(Duration::from_secs(3_600)).unwrap();
        assert_eq!(pace.take(back), Err(add(back, EVERY)));
    }
}
