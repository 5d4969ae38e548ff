//! How often somebody may do something: a token bucket per asker, in bounded memory.
//!
//! A handshake costs us a few elliptic-curve multiplications and is free to whoever asks for it, so it is
//! counted before it is done. IPv6 is counted by /64, which is what one site has. Loopback is not counted:
//! behind a proxy on the same machine every node comes from there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use warren_core::types::{Fill, FillRate};

/// Askers whose rate is remembered; when full, the least busy are forgotten.
const RATED: usize = 16 * 1024;

/// Buckets by asker. One that is not in it has a full bucket.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: FillRate,
    buckets: BTreeMap<K, Fill>,
}

/// Buckets by address.
#[derive(Debug)]
pub struct Rates(Buckets<IpAddr>);

/// Seconds of the rate that may come at once.
const BURST_SECONDS: u32 = 10;

impl Rates {
    /// Every address may come `rate` times a second, and ten seconds' worth at once; 0 for no limit.
    pub fn new(rate: u32) -> Self {
        Self::with_burst(f64::from(rate), rate.saturating_mul(BURST_SECONDS))
    }

    /// The same with a burst of one's own.
    pub fn with_burst(rate: f64, burst: u32) -> Self {
        Self(Buckets::new(rate, burst))
    }

    /// Every address may come so often from here on.
    pub fn set(&mut self, rate: u32) {
        *self = Self::new(rate);
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = site(from);
        if address.is_loopback() {
            return Ok(());
        }
        self.0.take(address, now)
    }
}

impl<K: Copy + Ord> Buckets<K> {
    /// Everybody may come `rate` times a second, and `burst` times at once; 0 for no limit.
    pub fn new(rate: f64, burst: u32) -> Self {
        Self { rate: FillRate::new(rate, f64::from(burst)), buckets: BTreeMap::new() }
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, asker: K, now: Instant) -> Result<(), Duration> {
        if self.rate.is_endless() {
            return Ok(());
        }
        if self.buckets.len() >= RATED && !self.buckets.contains_key(&asker) {
            self.forget(now);
        }
        let rate = self.rate;
        rate.take(self.buckets.entry(asker).or_insert_with(|| rate.full(now)), 1.0, now)
    }

    /// Forgets the full buckets, which say nothing; if there are none, everything but the emptiest half.
    fn forget(&mut self, now: Instant) {
        let rate = self.rate;
        self.buckets.retain(|_, bucket| !rate.is_full(bucket, now));
        if self.buckets.len() >= RATED {
            let mut tokens: Vec<f64> = self.buckets.values().map(|bucket| rate.tokens(bucket, now)).collect();
            tokens.sort_by(f64::total_cmp);
            let median = tokens[tokens.len() / 2];
            self.buckets.retain(|_, bucket| rate.tokens(bucket, now) < median);
        }
    }
}

/// What counts as one asker.
pub(super) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        canonical @ (IpAddr::V4(_) | IpAddr::V6(_)) => canonical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_gets_its_burst_and_then_its_rate() {
        let (mut rates, now) = (Rates::new(2), origin());
        for _ in 0..20 {
            assert_eq!(rates.take(ip("192.0.2.1"), now), Ok(()));
        }
        assert_eq!(rates.take(ip("192.0.2.1"), now), Err(Duration::from_millis(500)));
        assert_eq!(rates.take(ip("192.0.2.2"), now), Ok(()), "another address has its own bucket");
        let later = now + Duration::from_millis(500);
        assert_eq!(rates.take(ip("192.0.2.1"), later), Ok(()));
        assert!(rates.take(ip("192.0.2.1"), later).is_err());
    }

    #[test]
    fn a_site_is_one_ipv6_64_and_loopback_is_not_counted() {
        let (mut rates, now) = (Rates::new(1), origin());
        for host in 0..10 {
            assert!(rates.take(ip(&format!("2001:db8::{host:x}")), now).is_ok());
            assert!(rates.take(ip("::1"), now).is_ok() && rates.take(ip("::ffff:127.0.0.1"), now).is_ok());
        }
        assert!(rates.take(ip("2001:db8::ffff"), now).is_err());
        assert!(rates.take(ip("::1"), now).is_ok());
    }

    #[test]
    fn a_flood_of_addresses_stays_within_the_bound() {
        let (mut rates, now) = (Rates::new(1), origin());
        for number in 0..u32::try_from(RATED).unwrap() * 3 {
            let _ = rates.take(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), now);
        }
        assert!(rates.0.buckets.len() <= RATED);
    }
}
