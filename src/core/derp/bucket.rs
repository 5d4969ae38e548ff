//! A token bucket: how much may pass, and how long to wait for more.

use std::time::{Duration, Instant};

/// Fills at a steady rate up to its burst; taking from it may go below zero, and then one waits.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let burst = burst as f64;
        Self { per_second: per_second as f64, burst, tokens: burst, filled: now }
    }

    /// Takes one token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.take(1, now)
    }

    /// Takes `amount` if there is so much, and nothing otherwise.
    pub fn take(&mut self, amount: usize, now: Instant) -> bool {
        self.fill(now);
        let taken = self.tokens >= amount as f64;
        if taken {
            self.tokens -= amount as f64;
        }
        taken
    }

    /// Takes `amount` and says how long to pause before taking more.
    pub fn pace(&mut self, amount: usize, now: Instant) -> Duration {
        self.fill(now);
        self.tokens -= amount as f64;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / self.per_second) }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_burst_passes_and_then_one_token_a_period() {
        let start = origin();
        let mut bucket = Bucket::new(1, 3, start);
        assert_eq!([0; 4].map(|_| bucket.allow(start)), [true, true, true, false]);
        assert!(bucket.allow(start + Duration::from_secs(1)));
        assert!(!bucket.allow(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_sender_above_the_rate_pauses_until_it_is_back_at_it() {
        let start = origin();
        let mut bucket = Bucket::new(1000, 500, start);
        assert_eq!(bucket.pace(500, start), Duration::ZERO);
        assert_eq!(bucket.pace(500, start), Duration::from_millis(500));
        assert_eq!(bucket.pace(0, start + Duration::from_millis(500)), Duration::ZERO);
    }
}
