//! Token buckets: how much may pass, and how long to wait for more.

use std::time::{Duration, Instant};

/// How fast buckets fill, and how much fits in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FillRate {
    per_second: f64,
    burst: f64,
}

/// What one bucket holds. Taking from it may go below nothing, and then one waits.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    tokens: f64,
    at: Instant,
}

/// A bucket with its own rate.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: FillRate,
    fill: Fill,
}

impl FillRate {
    /// So many tokens a second, and so many at once; no tokens a second are no limit.
    pub const fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst }
    }

    /// Whether there is no limit.
    pub fn is_endless(&self) -> bool {
        self.per_second <= 0.0
    }

    /// A bucket that nothing was taken from.
    pub const fn full(&self, now: Instant) -> Fill {
        Fill { tokens: self.burst, at: now }
    }

    /// What a bucket holds by now.
    pub fn tokens(&self, fill: &Fill, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(fill.at).as_secs_f64() * self.per_second;
        (fill.tokens + gained).min(self.burst)
    }

    /// Whether a bucket is as one that nothing was taken from.
    pub fn is_full(&self, fill: &Fill, now: Instant) -> bool {
        self.tokens(fill, now) >= self.burst
    }

    /// Takes so many tokens if there are as many, or says how long until there are.
    pub fn take(&self, fill: &mut Fill, amount: f64, now: Instant) -> Result<(), Duration> {
        let tokens = self.tokens(fill, now);
        *fill = Fill { tokens, at: now };
        if tokens < amount {
            return Err(Duration::from_secs_f64((amount - tokens) / self.per_second));
        }
        fill.tokens -= amount;
        Ok(())
    }
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let rate = FillRate::new(per_second as f64, burst as f64);
        Self { rate, fill: rate.full(now) }
    }

    /// Takes one token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.take(1, now)
    }

    /// Takes `amount` if there is so much, and nothing otherwise.
    pub fn take(&mut self, amount: usize, now: Instant) -> bool {
        self.rate.take(&mut self.fill, amount as f64, now).is_ok()
    }

    /// Takes `amount` and says how long to pause before taking more.
    pub fn pace(&mut self, amount: usize, now: Instant) -> Duration {
        let tokens = self.rate.tokens(&self.fill, now) - amount as f64;
        self.fill = Fill { tokens, at: now };
        if tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-tokens / self.rate.per_second) }
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
        let mut bucket = TokenBucket::new(1, 3, start);
        assert_eq!([0; 4].map(|_| bucket.allow(start)), [true, true, true, false]);
        assert!(bucket.allow(start + Duration::from_secs(1)));
        assert!(!bucket.allow(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_sender_above_the_rate_pauses_until_it_is_back_at_it() {
        let start = origin();
        let mut bucket = TokenBucket::new(1000, 500, start);
        assert_eq!(bucket.pace(500, start), Duration::ZERO);
        assert_eq!(bucket.pace(500, start), Duration::from_millis(500));
        assert_eq!(bucket.pace(0, start + Duration::from_millis(500)), Duration::ZERO);
    }
}
