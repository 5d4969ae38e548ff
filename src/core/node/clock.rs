//! What time it is: by the clock that only runs forward, by the one on the wall, and by the coordinator's.

use std::time::Instant;

use crate::types::Timestamp;

/// One reading of both clocks: the one that only runs forward, for intervals, and the one on the wall, for times that
/// people and other machines see.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub tick: Instant,
    /// For people and other machines.
    pub wall: Timestamp,
}

/// The coordinator's time. What it says of times (when keys run out) is judged by its own clock as far as that is known:
/// the one on this wall may be years off, and jump.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoordinatorClock {
    told: Option<(Timestamp, Instant)>,
}

/// A coordinator's clock that is out of this is none: its keys would all be past, or would never be.
const EARLIEST: Timestamp = Timestamp::constant(1_735_689_600, 0);
const LATEST: Timestamp = Timestamp::constant(4_102_444_800, 0);

impl CoordinatorClock {
    /// The coordinator said what time it is.
    pub fn handle_told(&mut self, at: Timestamp, now: Now) {
        if (EARLIEST..LATEST).contains(&at) {
            self.told = Some((at, now.tick));
        }
    }

    /// What time it is there; by this wall where it did not say.
    pub fn time(&self, now: Now) -> Timestamp {
        let since = |(at, tick): (Timestamp, Instant)| at.checked_add(now.tick.saturating_duration_since(tick)).ok();
        self.told.and_then(since).unwrap_or(now.wall)
    }

    /// By how much this wall's clock is ahead, in seconds.
    pub fn seconds_ahead(&self, now: Now) -> i64 {
        now.wall.duration_since(self.time(now)).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn start_of_test() -> Now {
        Now { tick: Instant::now(), wall: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn times_are_judged_by_the_coordinators_clock_whatever_the_wall_says() {
        let mut clock = CoordinatorClock::default();
        let (start, at) = (start_of_test(), |text: &str| text.parse::<Timestamp>().unwrap());
        let on_wall = |text: &str, seconds| Now { tick: start.tick + Duration::from_secs(seconds), wall: at(text) };
        assert_eq!(clock.time(on_wall("2031-01-01T00:00:00Z", 0)), at("2031-01-01T00:00:00Z"));

        clock.handle_told(at("2030-01-01T00:00:00Z"), on_wall("2031-01-01T00:00:00Z", 0));
        for wall in ["2031-01-01T00:00:10Z", "1999-01-01T00:00:00Z", "2030-01-01T00:00:10Z"] {
            assert_eq!(clock.time(on_wall(wall, 10)), at("2030-01-01T00:00:10Z"), "{wall}");
        }
        assert_eq!(clock.seconds_ahead(on_wall("2029-12-31T23:00:00Z", 0)), -3_600);

        for nonsense in ["1970-01-01T00:00:00Z", "9999-01-01T00:00:00Z"] {
            clock.handle_told(at(nonsense), on_wall("2030-01-01T00:00:00Z", 0));
            assert_eq!(clock.time(on_wall("2030-01-01T00:00:00Z", 5)), at("2030-01-01T00:00:05Z"), "{nonsense}");
        }
    }
}
