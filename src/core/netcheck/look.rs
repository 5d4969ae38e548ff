//! One look: which servers are asked when, and what they answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::relays::{Family, Relays, is_usable};
use super::{RegionReport, Report};
use crate::types::RegionId;
use crate::wire::stun::TransactionId;

/// How long STUN answers are waited for.
pub(super) const STUN_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where the last look found UDP blocked and only the endpoints are wanted.
pub(super) const BLOCKED_TIMEOUT: Duration = Duration::from_secs(1);
/// In a full look without any STUN answer by then, the relays are asked over HTTPS.
const SILENCE: Duration = Duration::from_secs(1);
/// How long HTTPS may take.
const HTTPS_TIMEOUT: Duration = Duration::from_secs(5);
/// Once an answer over HTTPS is there, the others have this long.
const HTTPS_GRACE: Duration = Duration::from_secs(1);
/// How long a captive portal is waited for.
const CAPTIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The distance of questions in a full look: nothing is known, and an answer is wanted soon.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The same in a short one, where no latency is known.
const RETRY: Duration = Duration::from_millis(200);
/// Questions to a region in a full look. The last comes late, past a short outage.
const FULL_TRIES: [Duration; 4] =
    [Duration::ZERO, FIRST_RETRY, Duration::from_millis(200), Duration::from_millis(1_000)];
/// Questions to the home in a short look, to one of the two nearest, and to another.
const HOME_TRIES: u32 = 4;
const NEAR_TRIES: u32 = 2;
const FAR_TRIES: u32 = 1;
/// Regions of a short look beside the home.
const NEAREST: usize = 3;
/// Answers of this many regions are enough to stop waiting for slow ones.
const ENOUGH: usize = 3;
/// The others then have at least this long.
const LEAST_GRACE: Duration = Duration::from_millis(50);

type Key = (RegionId, Family);

/// A look under way.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) full: bool,
    began: Instant,
    timeout: Duration,
    sets: BTreeMap<Key, Set>,
    sent: BTreeMap<TransactionId, Sent>,
    pub(super) answers: Answers,
    /// No answer of a slow region is waited for beyond this.
    enough_at: Option<Instant>,
    https: Option<Https>,
}

/// The questions to a region in one family.
#[derive(Debug)]
struct Set {
    /// When the next questions are due.
    tries: Vec<Instant>,
    asked: u32,
    answered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    key: Key,
    to: SocketAddr,
    at: Instant,
}

#[derive(Debug)]
struct Https {
    began: Instant,
    waiting: BTreeSet<RegionId>,
    answered_at: Option<Instant>,
    captive: bool,
}

/// What STUN servers said.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    pub(super) latency: BTreeMap<Key, Duration>,
    /// By family, our address as the nearest server saw it.
    nearest: BTreeMap<Family, (Duration, SocketAddr)>,
    /// Our address as each server saw it.
    mapped: BTreeMap<SocketAddr, SocketAddr>,
}

/// Which families this host has addresses of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Families {
    fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

impl Look {
    /// Asks every region.
    pub(super) fn full(relays: &Relays, families: Families, home: Option<RegionId>, now: Instant) -> Self {
        let mut look = Self::empty(true, STUN_TIMEOUT, now);
        for region in relays.measured(home) {
            for family in Family::BOTH.into_iter().filter(|family| families.has(*family)) {
                look.ask((region, family), FULL_TRIES.iter().map(|delay| now + *delay).collect());
            }
        }
        look
    }

    /// Asks the home and the nearest regions.
    pub(super) fn short(
        relays: &Relays,
        families: Families,
        report: &Report,
        home: Option<RegionId>,
        now: Instant,
    ) -> Self {
        let timeout = if report.udp { STUN_TIMEOUT } else { BLOCKED_TIMEOUT };
        let mut look = Self::empty(false, timeout, now);
        let latency = |id: RegionId| report.regions.get(&id).and_then(RegionReport::latency);
        let mut order = relays.measured(home);
        order.sort_by_key(|id| (latency(*id).is_none(), latency(*id), *id));
        for (rank, region) in order.iter().enumerate().filter(|(rank, id)| *rank < NEAREST || home == Some(**id)) {
            let tries = match rank {
                _ if home == Some(*region) => HOME_TRIES,
                0 | 1 => NEAR_TRIES,
                _ => FAR_TRIES,
            };
            let pause = latency(*region).map_or(RETRY, |latency| (latency * 6 / 5).clamp(FIRST_RETRY, RETRY));
            for family in Family::BOTH.into_iter().filter(|family| families.has(*family)) {
                look.ask((*region, family), (0..tries).map(|n| now + pause * n).collect());
            }
        }
        look
    }

    fn empty(full: bool, timeout: Duration, began: Instant) -> Self {
        Self {
            full,
            began,
            timeout,
            sets: BTreeMap::new(),
            sent: BTreeMap::new(),
            answers: Answers::default(),
            enough_at: None,
            https: None,
        }
    }

    fn ask(&mut self, key: Key, tries: Vec<Instant>) {
        self.sets.insert(key, Set { tries, asked: 0, answered: false });
    }

    /// A name was found: questions whose time passed without an address are due at once.
    pub(super) fn handle_resolved(&mut self, relays: &Relays, now: Instant) {
        for ((region, family), set) in &mut self.sets {
            if set.asked == 0 && set.tries.is_empty() && !relays.stun_servers(*region, *family).is_empty() {
                set.tries = FULL_TRIES.iter().map(|delay| now + *delay).collect();
            }
        }
    }

    /// The questions that are due, each to the next node of its region. `draw` makes transaction numbers.
    pub(super) fn take_due(
        &mut self,
        relays: &Relays,
        now: Instant,
        mut draw: impl FnMut() -> TransactionId,
    ) -> Vec<(SocketAddr, TransactionId)> {
        let mut due = Vec::new();
        for (key, set) in &mut self.sets {
            let before = set.tries.len();
            set.tries.retain(|at| *at > now);
            if before == set.tries.len() {
                continue;
            }
            let servers = relays.stun_servers(key.0, key.1);
            let Some(to) = servers.get(set.asked as usize % servers.len().max(1)).copied() else { continue };
            if set.answered && !self.answers.would_learn_from(*key, to) {
                continue;
            }
            set.asked += 1;
            let transaction = draw();
            self.sent.insert(transaction, Sent { key: *key, to, at: now });
            due.push((to, transaction));
        }
        due
    }

    /// Takes an answer, where it belongs to a question of ours and comes from whom we asked.
    pub(super) fn handle_answer(
        &mut self,
        relays: &Relays,
        from: SocketAddr,
        transaction: TransactionId,
        mapped: SocketAddr,
        now: Instant,
    ) -> bool {
        let Some(sent) = self.sent.get(&transaction).copied().filter(|sent| sent.to == from) else { return false };
        if Family::of(mapped.ip()) != sent.key.1 || !is_plausible(mapped, from) {
            return false;
        }
        self.sent.remove(&transaction);
        if let Some(set) = self.sets.get_mut(&sent.key) {
            set.answered = true;
        }
        self.answers.add(sent.key, sent.to, mapped, now.duration_since(sent.at));
        self.drop_idle_tries(relays);
        self.judge_patience(now);
        true
    }

    /// Questions whose answers would tell nothing new are not asked.
    fn drop_idle_tries(&mut self, relays: &Relays) {
        for (key, set) in self.sets.iter_mut().filter(|(_, set)| set.answered) {
            let servers = relays.stun_servers(key.0, key.1);
            if !servers.iter().any(|server| self.answers.would_learn_from(*key, *server)) {
                set.tries.clear();
            }
        }
    }

    fn judge_patience(&mut self, now: Instant) {
        let regions: BTreeSet<RegionId> = self.sets.keys().map(|(region, _)| *region).collect();
        if self.enough_at.is_none() && self.answers.regions().len() >= ENOUGH.min(regions.len()) {
            let slowest = self.answers.latency.values().max().copied().unwrap_or_default();
            let grace = if self.full { slowest * 2 } else { slowest };
            self.enough_at = Some(now + grace.max(LEAST_GRACE));
        }
    }

    // ---- where UDP is blocked ----

    /// Whether it is time to ask over HTTPS; true once.
    pub(super) fn begins_https(&mut self, now: Instant) -> bool {
        let begins = self.https_due().is_some_and(|due| due <= now);
        if begins {
            let waiting = BTreeSet::new();
            self.https = Some(Https { began: now, waiting, answered_at: None, captive: false });
        }
        begins
    }

    fn https_due(&self) -> Option<Instant> {
        let is_due = self.full && self.answers.is_empty() && self.https.is_none();
        is_due.then(|| if self.sets.is_empty() { self.began } else { self.began + SILENCE })
    }

    pub(super) fn wait_for_https(&mut self, region: RegionId) {
        if let Some(https) = &mut self.https {
            https.waiting.insert(region);
        }
    }

    pub(super) fn wait_for_captive(&mut self) {
        if let Some(https) = &mut self.https {
            https.captive = true;
        }
    }

    /// Whether an answer over HTTPS was waited for.
    pub(super) fn handle_https(&mut self, region: RegionId, answered: bool, now: Instant) -> bool {
        let Some(https) = &mut self.https else { return false };
        let waited = https.waiting.remove(&region);
        if waited && answered {
            https.answered_at.get_or_insert(now);
        }
        waited
    }

    /// Whether word of a captive portal was waited for.
    pub(super) fn handle_captive(&mut self) -> bool {
        self.https.as_mut().is_some_and(|https| std::mem::take(&mut https.captive))
    }

    // ---- its end ----

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends_at().is_none_or(|end| end <= now)
    }

    /// When something is to be done next.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let tries = self.sets.values().flat_map(|set| &set.tries).min().copied();
        [tries, self.https_due(), self.ends_at()].into_iter().flatten().min()
    }

    /// When it ends if nothing more comes; nothing for "at once".
    fn ends_at(&self) -> Option<Instant> {
        let all_answered = self.sets.values().all(|set| set.answered && set.tries.is_empty());
        let timeout = self.began + self.timeout;
        let stun = (!all_answered).then(|| self.enough_at.map_or(timeout, |enough| enough.min(timeout)));
        let https = self.https.as_ref().filter(|_| self.answers.is_empty()).and_then(Https::ends_at);
        stun.max(https).max(self.https_due())
    }
}

impl Https {
    fn ends_at(&self) -> Option<Instant> {
        let captive = self.captive.then(|| self.began + CAPTIVE_TIMEOUT);
        let all = (!self.waiting.is_empty()).then(|| {
            let grace = self.answered_at.map(|at| at + HTTPS_GRACE);
            grace.unwrap_or(self.began + HTTPS_TIMEOUT).min(self.began + HTTPS_TIMEOUT)
        });
        all.max(captive)
    }
}

impl Answers {
    fn add(&mut self, key: Key, server: SocketAddr, mapped: SocketAddr, latency: Duration) {
        let shortest = self.latency.entry(key).or_insert(latency);
        *shortest = latency.min(*shortest);
        let nearest = self.nearest.entry(key.1).or_insert((latency, mapped));
        if latency < nearest.0 {
            *nearest = (latency, mapped);
        }
        self.mapped.insert(server, mapped);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.latency.is_empty()
    }

    /// Whether one more answer would tell more: of another server, as long as it is not known how our NAT maps.
    fn would_learn_from(&self, key: Key, server: SocketAddr) -> bool {
        key.1 == Family::V4 && self.mapping_varies().is_none() && !self.mapped.contains_key(&server)
    }

    /// Whether servers at different addresses see us differently; unknown from fewer than two.
    pub(super) fn mapping_varies(&self) -> Option<bool> {
        let mut v4 = self.mapped.iter().filter(|(server, _)| server.is_ipv4());
        let (first_server, first) = v4.next()?;
        let others = v4.filter(|(server, _)| server.ip() != first_server.ip());
        others.map(|(_, mapped)| mapped != first).reduce(|varies, differs| varies || differs)
    }

    pub(super) fn regions(&self) -> BTreeSet<RegionId> {
        self.latency.keys().map(|(region, _)| *region).collect()
    }

    /// How many servers saw us at each address.
    pub(super) fn seen(&self) -> BTreeMap<SocketAddr, u32> {
        let mut seen = BTreeMap::new();
        for mapped in self.mapped.values() {
            *seen.entry(*mapped).or_default() += 1;
        }
        seen
    }

    pub(super) fn global(&self, family: Family) -> Option<SocketAddr> {
        self.nearest.get(&family).map(|(_, mapped)| *mapped)
    }
}

/// Whether we can be where a server says that it sees us.
fn is_plausible(mapped: SocketAddr, server: SocketAddr) -> bool {
    let local = mapped.ip().is_loopback() && !server.ip().is_loopback();
    mapped.port() != 0 && is_usable(mapped.ip()) && !local
}
