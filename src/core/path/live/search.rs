//! The search for a direct path, and the choice among those that answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::candidate::Candidate;
use super::super::common::Common;
use super::super::direct::Direct;
use super::super::pace::doubled;
use super::super::rank::Class;
use super::super::{DWELL, HEARTBEAT, INITIATION_LIFE, PATIENCE, Target, Transmit, UPGRADE, predict};
use super::{Failure, Live, PeerId, Ping};
use crate::wire::disco::Message;

/// Probes of candidates, per peer.
const PROBE_BURST: u32 = 64;
const PROBES_PER_SECOND: u32 = 4;
/// Pings remembered until they are answered.
const MAX_PINGS: usize = 96;
/// The pauses between the rounds of a search; the last one is kept to.
const SEARCH_PAUSES: [Duration; 7] = [
    Duration::from_millis(500),
    Duration::from_millis(1_500),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    UPGRADE,
];
/// How long a path that fell silent is left alone, doubled each time, and at most.
const BAN_SILENT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// The same for one that answered probes but carried nothing.
const BAN_USELESS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// After a failure all direct paths of the peer are left alone, doubled each time, and at most.
const HOLD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// A path that lasted this long clears what was held against it.
const LASTING: Duration = Duration::from_secs(120);
/// From this latency on a direct path is good enough not to look for a better one.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// A path of the same class is better if it is faster by this and by a fifth.
const FASTER: Duration = Duration::from_millis(5);

impl Live {
    // ---- searching ----

    pub(super) fn begin_search(&mut self, now: Instant) {
        self.rounds = 0;
        self.search_at = Some(now);
    }

    /// One round: a ping to every candidate, and the request to do the same.
    pub(super) fn search(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        let current = self.direct.as_ref().map(|direct| direct.endpoint);
        if self.is_good_enough() {
            return;
        }
        let wanted = |c: &&Candidate| Some(c.endpoint) != current && !c.is_banned(now);
        let wanted: Vec<_> = self.candidates.iter().filter(wanted).map(|candidate| candidate.endpoint).collect();
        for endpoint in wanted {
            self.probe(endpoint, who, common, now);
        }
        if current.is_some() {
            self.search_at = Some(now + UPGRADE);
            return;
        }
        if self.rounds > 0 {
            let known = self.candidates.iter().map(|candidate| (candidate.endpoint, candidate.rank));
            for endpoint in predict::guesses(known, self.rounds - 1) {
                self.probe(endpoint, who, common, now);
            }
        }
        self.call(who, common, now);
        let pause = SEARCH_PAUSES[usize::from(self.rounds).min(SEARCH_PAUSES.len() - 1)];
        self.search_at = Some(now + pause + common.part_of(pause / 10));
        self.rounds = self.rounds.saturating_add(1);
    }

    fn is_good_enough(&self) -> bool {
        let Some(direct) = &self.direct else { return false };
        direct.class == Class::OnLink || direct.latency.is_some_and(|latency| latency <= GOOD_ENOUGH)
    }

    /// Asks the peer through the relay to probe us.
    pub(super) fn call(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        let Some(region) = who.region else { return };
        self.call_again = !common.endpoints_are_fresh(now);
        if !common.own_endpoints.is_empty() {
            let call = Message::CallMeMaybe { endpoints: common.own_endpoints.clone() };
            common.send(&who.disco, Target::Relay { region, peer: who.key }, &call);
        }
    }

    /// Pings a candidate, if the limits allow it.
    pub(super) fn probe(&mut self, endpoint: SocketAddr, who: &PeerId, common: &mut Common, now: Instant) {
        let tick = common.tick(now);
        if !self.probes.take(PROBE_BURST, PROBES_PER_SECOND, tick) || !common.may_probe(now) {
            return;
        }
        let candidate = self.candidates.get_mut(endpoint);
        let full = candidate.is_some_and(|candidate| {
            candidate.pinged = Some(now);
            candidate.narrow
        });
        self.ping(Target::Udp { to: endpoint, from: None }, (None, full), who, common, now);
    }

    /// Asks whether the direct path carries packets of full size, once more with a small ping to compare with, and gives it
    /// up where it does not. Without a relay there is nothing to go to instead.
    pub(super) fn ask_full(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        let Some(direct) = &mut self.direct else { return };
        let (endpoint, again) = (direct.endpoint, direct.is_full_missing());
        if direct.handle_full_due(now) {
            common.narrow.insert(who.key, endpoint);
            if who.region.is_some() {
                self.fail(Failure::Narrow, who, common, now);
            }
            return;
        }
        let to = Target::Udp { to: endpoint, from: None };
        self.ping(to, (None, true), who, common, now);
        if again {
            self.ping(to, (None, false), who, common, now);
        }
    }

    pub(in crate::path) fn ping_direct(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        let Some(direct) = &mut self.direct else { return };
        direct.handle_pinged(now);
        let to = direct.endpoint;
        self.ping(Target::Udp { to, from: None }, (None, false), who, common, now);
    }

    /// Sends a ping: for whoever asked, and of which size.
    pub(super) fn ping(
        &mut self,
        to: Target,
        (ask, full): (Option<u64>, bool),
        who: &PeerId,
        common: &mut Common,
        now: Instant,
    ) {
        if self.pings.len() >= MAX_PINGS {
            self.pings.remove(0);
        }
        let transaction = common.ping(&who.disco, to, full);
        self.pings.push(Ping { transaction, to, at: now, ask, full });
    }

    // ---- choosing ----

    /// A candidate answered: is it better than what we have?
    pub(super) fn consider(&mut self, endpoint: SocketAddr, who: &PeerId, common: &mut Common, now: Instant) {
        let Some(candidate) = self.candidates.get(endpoint) else { return };
        let Some(latency) = candidate.verified(now) else { return };
        let better = match &self.direct {
            None => (self.is_active(now) && self.hold_until.is_none_or(|until| until <= now)) || who.region.is_none(),
            Some(_) if self.steady_until.is_some_and(|until| now < until) => false,
            Some(direct) if candidate.class() != direct.class => candidate.class() < direct.class,
            Some(direct) => {
                now.saturating_duration_since(direct.since) >= DWELL
                    && direct.latency.is_some_and(|old| latency + FASTER < old && latency < old * 4 / 5)
            }
        };
        if better {
            self.promote(endpoint, common, now);
        }
    }

    pub(super) fn promote_best(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        if let Some(endpoint) = self.candidates.best(now).map(|best| best.endpoint) {
            self.consider(endpoint, who, common, now);
        }
    }

    fn promote(&mut self, endpoint: SocketAddr, common: &mut Common, now: Instant) {
        let Some(candidate) = self.candidates.get(endpoint) else { return };
        let mut direct = Direct::new(endpoint, candidate.class(), now);
        direct.expect(self.received);
        direct.local = candidate.local;
        direct.latency = candidate.answered.map(|(_, latency)| latency);
        direct.ping_at = now + HEARTBEAT;
        let was_relayed = self.direct.replace(direct).is_none();
        if was_relayed {
            if let Some((payload, at)) = self.initiation.take()
                && now.saturating_duration_since(at) < INITIATION_LIFE
            {
                common.transmit(Transmit { to: Target::Udp { to: endpoint, from: None }, payload });
            }
            common.want_look(now + PATIENCE);
        }
        self.search_at = Some(now + UPGRADE);
    }

    /// The direct path has failed: the next best, or the relay.
    pub(super) fn fail(&mut self, failure: Failure, who: &PeerId, common: &mut Common, now: Instant) {
        let Some(direct) = self.direct.take() else { return };
        let lasted = now.saturating_duration_since(direct.since);
        let candidate = self.candidates.get_mut(direct.endpoint);
        if failure == Failure::Displaced {
            candidate.into_iter().for_each(|candidate| candidate.answered = None);
        } else {
            if let Some(candidate) = candidate {
                if lasted >= LASTING && failure == Failure::Silent {
                    candidate.pardon();
                }
                candidate.narrow |= failure == Failure::Narrow;
                let (first, longest) = if failure == Failure::Silent { BAN_SILENT } else { BAN_USELESS };
                candidate.ban(first, longest, now);
            }
            self.failures = if lasted >= LASTING { 0 } else { self.failures };
            self.hold_until = Some(now + doubled(HOLD.0, self.failures, HOLD.1));
            self.failures = self.failures.saturating_add(1);
        }
        common.forget_freshness();
        self.begin_search(now);
        self.promote_best(who, common, now);
    }
}
