//! How fast: token buckets in a few bytes, and pauses that grow.

use std::time::{Duration, Instant};

/// Tenths of a second since the book's first day: a time in four bytes, good for thirteen years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

impl Tick {
    pub(super) fn new(origin: Instant, now: Instant) -> Self {
        let tenths = now.saturating_duration_since(origin).as_millis() / 100;
        Self(u32::try_from(tenths).unwrap_or(u32::MAX))
    }

    pub(super) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u32::try_from(span.as_millis() / 100).unwrap_or(u32::MAX)))
    }

    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::from(self.0.saturating_sub(earlier.0)) * 100)
    }
}

/// A token bucket. It counts what was taken, so that a new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// In tenths of a token.
    taken: u32,
    filled: Tick,
}

impl Bucket {
    /// Takes a token if there is one of `burst`, where `per_second` come back.
    pub(super) fn take(&mut self, burst: u32, per_second: u32, now: Tick) -> bool {
        let tenths = now.0.saturating_sub(self.filled.0);
        self.taken = self.taken.saturating_sub(tenths.saturating_mul(per_second));
        self.filled = now;
        let allowed = self.taken.saturating_add(10) <= burst.saturating_mul(10);
        if allowed {
            self.taken += 10;
        }
        allowed
    }
}

/// A pause that doubles with every strike, up to a longest.
pub(super) fn doubled(first: Duration, strikes: u8, longest: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(u32::from(strikes)).unwrap_or(u32::MAX)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_pace() {
        let mut bucket = Bucket::default();
        let given = |bucket: &mut Bucket, at: u32| (0..100).filter(|_| bucket.take(8, 2, Tick(at))).count();
        assert_eq!(given(&mut bucket, 0), 8);
        assert_eq!(given(&mut bucket, 4), 0);
        assert_eq!(given(&mut bucket, 10), 2);
        assert_eq!(given(&mut bucket, 1_000), 8);
    }

    #[test]
    fn a_pause_doubles_up_to_the_longest() {
        let pause = |strikes| doubled(Duration::from_secs(2), strikes, Duration::from_secs(60)).as_secs();
        assert_eq!([pause(0), pause(1), pause(4), pause(5), pause(40)], [2, 4, 32, 60, 60]);
    }
}
