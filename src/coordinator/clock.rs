//! The one place of the coordinator that reads the clocks.
//!
//! The registry is told one time, which is that of the wall clock and runs evenly: it is moved on by the monotonic
//! clock, and taken from the wall clock again where that was set, which the registry is told ([`heed`]).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;

use warren_core::types::Timestamp;

/// A difference between the two clocks up to here is their drift, which is followed in steps of this size.
const DRIFT: Duration = Duration::from_secs(1);

static STEADY: Mutex<Option<Steady>> = Mutex::new(None);

/// The time, as the registry counts it.
pub(crate) fn now() -> Timestamp {
    steady(|steady, tick, _| steady.at(tick))
}

/// By how much the clock was set since the last time that this was asked.
pub(crate) fn heed() -> Option<SignedDuration> {
    steady(Steady::heed)
}

/// The monotonic clock.
#[allow(clippy::disallowed_methods, reason = "the coordinator's one reading of the monotonic clock")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

fn steady<T>(ask: impl FnOnce(&mut Steady, Instant, Timestamp) -> T) -> T {
    let (tick, wall) = (instant(), wall());
    let mut steady = STEADY.lock().unwrap_or_else(PoisonError::into_inner);
    ask(steady.get_or_insert(Steady { tick, wall }), tick, wall)
}

#[allow(clippy::disallowed_methods, reason = "the coordinator's one reading of the wall clock")]
fn wall() -> Timestamp {
    // A clock set before the year -9999 or after 9999 is the only way to fail.
    Timestamp::try_from(std::time::SystemTime::now()).unwrap_or_default()
}

/// Both clocks, read at one moment.
#[derive(Clone, Copy, Debug)]
struct Steady {
    tick: Instant,
    wall: Timestamp,
}

impl Steady {
    fn at(&self, tick: Instant) -> Timestamp {
        let passed = tick.saturating_duration_since(self.tick);
        self.wall.checked_add(passed).unwrap_or(Timestamp::MAX)
    }

    fn heed(&mut self, tick: Instant, wall: Timestamp) -> Option<SignedDuration> {
        let by = wall.duration_since(self.at(tick));
        if by.unsigned_abs() < DRIFT {
            return None;
        }
        *self = Self { tick, wall };
        Some(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_evenly_until_a_clock_that_was_set_is_heeded() {
        let (tick, wall): (Instant, Timestamp) = (instant(), "2026-01-01T00:00:00Z".parse().unwrap());
        let mut steady = Steady { tick, wall };
        let later = |seconds| tick + Duration::from_secs(seconds);
        let at = |seconds: i64| wall + SignedDuration::from_secs(seconds);
        assert_eq!(steady.at(later(10)), at(10));
        assert_eq!(steady.heed(later(10), at(10)), None);
        assert_eq!(steady.heed(later(10), at(10) + SignedDuration::from_millis(900)), None, "drift");

        let eight_hours = SignedDuration::from_hours(8);
        assert_eq!(steady.at(later(20)), at(20), "whatever the wall says");
        assert_eq!(steady.heed(later(20), at(20) - eight_hours), Some(-eight_hours));
        assert_eq!(steady.at(later(30)), at(30) - eight_hours);
        assert_eq!(steady.heed(later(30), at(30) - eight_hours), None);
        assert_eq!(steady.heed(later(40), at(40)), Some(eight_hours));
    }
}
