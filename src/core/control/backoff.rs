//! How long to wait before asking again.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// The first wait, before chance: short, for a coordinator that was only restarted.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait, before chance. Ten thousand nodes then ask a coordinator that is down 170 times a second.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest wait that a coordinator may impose.
const LONGEST_IMPOSED: Duration = Duration::from_secs(3600);

/// Doubling waits, each between a half and one and a half of its nominal length, so that nodes which lost their
/// coordinator together do not come back together.
pub(super) struct Backoff {
    failures: u32,
    chance: Chance,
}

impl Backoff {
    pub(super) const fn new(seed: u64) -> Self {
        Self { failures: 0, chance: Chance(seed) }
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let nominal = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.spread(nominal)
    }

    /// Forgets the failures.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait that a coordinator asked for, within reason; five to ten seconds where it did not say how long.
    pub(super) fn imposed(&mut self, asked: Option<Duration>) -> Duration {
        match asked {
            Some(asked) if !asked.is_zero() && asked <= LONGEST_IMPOSED => asked,
            _ => Duration::from_secs(5) + Duration::from_secs(5).mul_f64(self.chance.next()),
        }
    }

    /// A wait around `nominal`.
    pub(super) fn spread(&mut self, nominal: Duration) -> Duration {
        nominal.mul_f64(0.5 + self.chance.next())
    }
}

/// Reads a `Retry-After` header: seconds, or a date.
pub fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = header.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(header.trim()).ok()?;
    date.duration_since(now).try_into().ok()
}

/// Numbers from a seed (SplitMix64): good enough to spread waits, and for nothing secret.
struct Chance(u64);

impl Chance {
    /// From 0 up to 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_to_a_longest_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(7);
        for nominal in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let wait = backoff.next().as_secs_f64();
            assert!((nominal * 0.5..nominal * 1.5).contains(&wait), "{wait} for {nominal}");
        }
        backoff.reset();
        assert!(backoff.next() < Duration::from_millis(750));
    }

    #[test]
    fn a_wait_that_the_coordinator_asks_for_is_kept_within_reason() {
        let mut backoff = Backoff::new(7);
        assert_eq!(backoff.imposed(Some(Duration::from_secs(30))), Duration::from_secs(30));
        for asked in [None, Some(Duration::ZERO), Some(Duration::from_secs(4000))] {
            assert!((5.0..10.0).contains(&backoff.imposed(asked).as_secs_f64()));
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:27:30Z".parse().unwrap();
        for (header, seconds) in [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(header, now), seconds.map(Duration::from_secs), "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_a_wait_or_none(header in ".{0,40}", seed in any::<u64>()) {
            let wait = Backoff::new(seed).imposed(retry_after(&header, Timestamp::UNIX_EPOCH));
            prop_assert!(wait <= LONGEST_IMPOSED && !wait.is_zero());
        }
    }
}
