//! Attempts to sign in that went to a provider and are not back yet: in memory, bounded, each good once and not for long.
//!
//! The time comes in as an argument.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use warren_core::types::{Limit, Ticket};

use super::provider::{Asked, Known};

/// How long somebody may take at their provider: time to find a second factor.
pub(super) const ATTEMPT_TIME: Duration = Duration::from_secs(10 * 60);
/// Attempts under way: as many as there may be machines that wait. The oldest where most are makes room.
pub(super) const ATTEMPTS: Limit = Limit::new("attempts to sign in", 1_000);
/// Of them at one address (or IPv6 /64), with several tabs each; the oldest makes room.
pub(super) const ATTEMPTS_OF_SITE: Limit = Limit::new("attempts to sign in at one address", 32);

/// One attempt.
#[derive(Clone)]
pub(super) struct Attempt {
    /// The machine whose page it began at.
    pub(super) ticket: Ticket,
    pub(super) provider: Arc<Known>,
    /// Of what the browser holds that began it.
    pub(super) browser: [u8; 32],
    /// What the provider's answer is checked against; nothing once it came. Who comes meanwhile waits for its end.
    pub(super) asked: Arc<Mutex<Option<Asked>>>,
    pub(super) site: IpAddr,
    pub(super) until: Instant,
}

/// All of them, by the state that comes back.
#[derive(Default)]
pub(super) struct Attempts {
    by_state: BTreeMap<String, Attempt>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Attempts {
    pub(super) fn begin(&mut self, state: String, attempt: Attempt, now: Instant) {
        self.forget_old(now);
        // Behind a proxy of this host anybody may come.
        let of_site = || self.of_site(attempt.site).count();
        if !attempt.site.is_loopback() && ATTEMPTS_OF_SITE.check(of_site() + 1).is_err() {
            self.drop_oldest_of(attempt.site);
        } else if ATTEMPTS.check(self.order.len() + 1).is_err()
            && let Some(site) = self.where_most_are()
        {
            self.drop_oldest_of(site);
        }
        self.order.push_back(state.clone());
        self.by_state.insert(state, attempt);
    }

    /// The attempt that this state is of, if this browser began it.
    pub(super) fn find(&self, state: &str, browser: Option<[u8; 32]>, now: Instant) -> Option<Attempt> {
        let attempt = self.by_state.get(state).filter(|attempt| attempt.until > now)?;
        (Some(attempt.browser) == browser).then(|| attempt.clone())
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front()
            && self.by_state.get(oldest).is_none_or(|attempt| attempt.until <= now)
        {
            self.by_state.remove(oldest);
            self.order.pop_front();
        }
    }

    fn of_site(&self, site: IpAddr) -> impl Iterator<Item = &String> {
        let is_there = move |state: &&String| self.by_state.get(*state).is_some_and(|attempt| attempt.site == site);
        self.order.iter().filter(is_there)
    }

    fn drop_oldest_of(&mut self, site: IpAddr) {
        let Some(oldest) = self.of_site(site).next().cloned() else { return };
        self.by_state.remove(&oldest);
        self.order.retain(|state| *state != oldest);
    }

    fn where_most_are(&self) -> Option<IpAddr> {
        let mut sites: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for attempt in self.by_state.values() {
            *sites.entry(attempt.site).or_default() += 1;
        }
        sites.into_iter().max_by_key(|(_, count)| *count).map(|(site, _)| site)
    }
}

#[cfg(test)]
mod tests {
    use super::super::described;
    use super::*;
    use crate::clock;

    fn attempt(site: [u8; 4], browser: u8, until: Instant) -> Attempt {
        let provider = Arc::new(Known::new(described::tests::described("https://idp.example.org")).unwrap());
        let (ticket, asked) = (Ticket::from_random([1; 16]), Arc::new(Mutex::new(None)));
        Attempt { ticket, provider, browser: [browser; 32], asked, site: site.into(), until }
    }

    fn is_there(attempts: &Attempts, state: &str, now: Instant) -> bool {
        attempts.find(state, Some([1; 32]), now).is_some()
    }

    #[test]
    fn an_attempt_is_the_browsers_that_began_it_and_ends() {
        let (mut attempts, now) = (Attempts::default(), clock::instant());
        attempts.begin("state".to_owned(), attempt([192, 0, 2, 1], 1, now + ATTEMPT_TIME), now);
        assert!(is_there(&attempts, "state", now));
        for (state, browser) in [("state", None), ("state", Some([2; 32])), ("other", Some([1; 32]))] {
            assert!(attempts.find(state, browser, now).is_none());
        }
        assert!(!is_there(&attempts, "state", now + ATTEMPT_TIME));
    }

    #[test]
    fn attempts_of_one_address_push_out_their_own_and_many_addresses_those_where_most_are() {
        let (mut attempts, now) = (Attempts::default(), clock::instant());
        let one = attempt([192, 0, 2, 1], 1, now + ATTEMPT_TIME);
        attempts.begin("mine".to_owned(), one.clone(), now);
        for number in 0..100 {
            let other = Attempt { site: [192, 0, 2, 2].into(), ..one.clone() };
            attempts.begin(format!("flood {number}"), other, now);
        }
        assert!(is_there(&attempts, "mine", now) && !is_there(&attempts, "flood 67", now));
        assert_eq!(attempts.by_state.len(), 1 + 32);
        for number in 0..2_000_u32 {
            let site = std::net::Ipv4Addr::from(0x0a00_0000 + number % 500).into();
            attempts.begin(format!("many {number}"), Attempt { site, ..one.clone() }, now);
        }
        assert!(is_there(&attempts, "mine", now) && attempts.by_state.len() <= 1_000);
        assert_eq!(attempts.by_state.len(), attempts.order.len());
        attempts.begin("late".to_owned(), one, now + ATTEMPT_TIME);
        assert_eq!(attempts.by_state.len(), 1, "what is over is forgotten");
    }
}
