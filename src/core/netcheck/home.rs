//! Which relay region is home.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::FULL_EVERY;
use super::relays::Relays;
use crate::types::RegionId;

/// Another region has to be nearer by at least this, so that two regions a few milliseconds away do not take turns.
pub(super) const ABSOLUTE_GAIN: Duration = Duration::from_millis(10);
/// A region that sent a relay frame this short a while ago is there, whatever STUN says.
const ALIVE: Duration = Duration::from_secs(8);
/// How long measurements count: a full look and the time it takes.
const HISTORY_AGE: Duration = FULL_EVERY.saturating_add(Duration::from_secs(8));
/// Looks that are remembered; more only come when callers ask without pause.
const HISTORY: usize = 32;
/// How long a region that could not be connected is passed over at first; doubled each time, up to [`FAILED_MOST`].
const FAILED_FIRST: Duration = Duration::from_secs(60);
const FAILED_MOST: Duration = Duration::from_secs(15 * 60);
/// Where all regions have failed, one is tried again when its last failure is older than this share of its pause: it may be
/// back, while the one that has just failed is not. Not sooner, or nodes without any relay would tell of a new home all the time.
const TRIED_AGAIN: u32 = 4;

/// The present home, and what speaks for and against each region.
#[derive(Debug, Default)]
pub(super) struct Home {
    current: Option<RegionId>,
    history: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    alive: BTreeMap<RegionId, Instant>,
    failed: BTreeMap<RegionId, Failure>,
}

#[derive(Debug)]
struct Failure {
    /// When it may be tried where all have failed.
    again: Instant,
    until: Instant,
    pause: Duration,
}

impl Home {
    pub(super) fn current(&self) -> Option<RegionId> {
        self.current
    }

    /// Whether anything is known of any region's distance.
    pub(super) fn is_measured(&self) -> bool {
        self.history.iter().any(|(_, latencies)| !latencies.is_empty())
    }

    /// The region sent something over its relay connection.
    pub(super) fn handle_alive(&mut self, region: RegionId, now: Instant) {
        self.alive.insert(region, now);
        self.failed.remove(&region);
    }

    /// The region could not be connected, or the connection ended.
    pub(super) fn handle_failed(&mut self, region: RegionId, now: Instant) {
        self.alive.remove(&region);
        let Some(failure) = self.failed.get_mut(&region) else {
            // It worked until this moment, so whether another is back is worth finding out at once.
            self.failed.values_mut().for_each(|other| other.again = now);
            let (until, again) = (now + FAILED_FIRST, now + FAILED_FIRST / TRIED_AGAIN);
            self.failed.insert(region, Failure { again, until, pause: FAILED_FIRST });
            return;
        };
        if failure.until <= now {
            failure.pause = (failure.pause * 2).min(FAILED_MOST);
            failure.until = now + failure.pause;
        }
        failure.again = now + failure.pause / TRIED_AGAIN;
    }

    /// What was measured and failed elsewhere says nothing here.
    pub(super) fn handle_moved(&mut self) {
        self.history.clear();
        self.alive.clear();
        self.failed.clear();
    }

    /// Takes what a look measured.
    pub(super) fn handle_latencies(&mut self, latencies: BTreeMap<RegionId, Duration>, now: Instant) {
        self.history.retain(|(at, _)| now.duration_since(*at) < HISTORY_AGE);
        self.history.truncate(HISTORY - 1);
        self.history.push_front((now, latencies));
    }

    /// Chooses anew; whether the home changed.
    pub(super) fn choose(&mut self, relays: &Relays, now: Instant) -> bool {
        self.alive.retain(|region, _| relays.region(*region).is_some());
        self.failed.retain(|region, _| relays.region(*region).is_some());
        let chosen = self.best(relays, now);
        std::mem::replace(&mut self.current, chosen) != chosen
    }

    fn best(&self, relays: &Relays, now: Instant) -> Option<RegionId> {
        let candidates = self.candidates(relays, now);
        let current = self.current.filter(|current| candidates.contains(current));
        let measured = candidates.iter().filter_map(|id| Some((self.recent(relays, *id)?, *id)));
        let Some((best, nearest)) = measured.min() else {
            return current.or(candidates.first().copied());
        };
        match current.and_then(|current| Some((current, self.standing(relays, current, now)?))) {
            Some((current, latency)) if !is_clear_gain(latency, best) => Some(current),
            _ => Some(nearest),
        }
    }

    /// The regions to choose from: without those to avoid, and without those that failed, as far as others are left.
    fn candidates(&self, relays: &Relays, now: Instant) -> Vec<RegionId> {
        let failed = |id: &RegionId| self.failed.get(id).is_some_and(|failure| failure.until > now);
        let of = |avoid: bool| -> Vec<RegionId> {
            relays.regions().filter(|(_, r)| r.relays() && r.avoid() == avoid).map(|(id, _)| id).collect()
        };
        let mut all = of(false);
        if all.is_empty() {
            all = of(true);
        }
        let sound: Vec<RegionId> = all.iter().copied().filter(|id| !failed(id)).collect();
        if !sound.is_empty() {
            return sound;
        }
        let rested = |id: &RegionId| self.failed.get(id).is_none_or(|failure| now >= failure.again);
        let rested: Vec<RegionId> = all.iter().copied().filter(rested).collect();
        if rested.is_empty() { all } else { rested }
    }

    /// The best measurement of late, of a region that the last look reached.
    fn recent(&self, relays: &Relays, region: RegionId) -> Option<Duration> {
        let reached = self.history.front().is_some_and(|(_, latencies)| latencies.contains_key(&region));
        let best = self.history.iter().filter_map(|(_, latencies)| latencies.get(&region)).min().filter(|_| reached)?;
        Some(relays.region(region)?.scored(*best))
    }

    /// What the present home's distance counts for; nothing where it does not answer any more.
    fn standing(&self, relays: &Relays, region: RegionId, now: Instant) -> Option<Duration> {
        let latest = self.history.front().and_then(|(_, latencies)| latencies.get(&region));
        if let Some(latency) = latest {
            return Some(relays.region(region)?.scored(*latency));
        }
        let alive = self.alive.get(&region).is_some_and(|at| now.duration_since(*at) <= ALIVE);
        alive.then_some(Duration::ZERO)
    }
}

/// Whether going from one latency to another is worth a move: at least [`ABSOLUTE_GAIN`], and at least a third.
fn is_clear_gain(from: Duration, to: Duration) -> bool {
    from.saturating_sub(to) >= ABSOLUTE_GAIN && to.saturating_mul(3) <= from.saturating_mul(2)
}
