//! A peer with which something is going on: its candidates, the probes under way, the direct path if there is one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::candidate::{Candidate, Candidates, Origin};
use super::common::Common;
use super::direct::{Direct, Progress};
use super::pace::{Bucket, doubled};
use super::{ACTIVE, PASSIVE, PING_TIMEOUT, PathEvent, Target, UPGRADE};
use crate::types::{DiscoPublic, NodePublic, RegionId};
use crate::wire::disco::TransactionId;

/// We are told at least this often that the relay carries something.
const RELAYED: Duration = Duration::from_millis(1_500);
/// Questions of people under way.
const MAX_ASKS: usize = 16;
/// A ping in this time before is not repeated because the peer pinged us.
const PINGED_BACK: Duration = Duration::from_millis(300);
/// After the kernel followed the peer away from our choice, we leave it there: doubled each time, and at most.
const STEADY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// By which keys a peer is known, and where it listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerId {
    pub(super) key: NodePublic,
    pub(super) disco: DiscoPublic,
    /// Where it listens, if there is a relay path to it.
    pub(super) region: Option<RegionId>,
}

/// Why a direct path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No pongs, and nothing from the kernel.
    Silent,
    /// Pongs, but WireGuard got nothing through.
    Useless,
    /// Pongs, but none to pings as large as packets are.
    Narrow,
    /// Not its fault: the address it used is gone.
    Displaced,
}

pub(super) mod begin;
mod search;

#[derive(Debug)]
struct Ping {
    transaction: TransactionId,
    to: Target,
    at: Instant,
    ask: Option<u64>,
    full: bool,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) candidates: Candidates,
    pub(super) direct: Option<Direct>,
    /// Looks that found the kernel elsewhere although it was to be moved.
    pub(super) misses: u8,
    /// When the kernel last had traffic, as far as is known.
    traffic: Option<Instant>,
    /// When the peer last sent a probe.
    called: Instant,
    /// When the kernel last received anything.
    received: Option<Instant>,
    /// When the relay last carried something for this peer.
    relayed: Option<Instant>,
    pings: Vec<Ping>,
    probes: Bucket,
    asks: Vec<(u64, Instant)>,
    initiation: Option<(Vec<u8>, Instant)>,
    search_at: Option<Instant>,
    rounds: u16,
    /// Our endpoints were not fresh when we called; call again once they are.
    call_again: bool,
    failures: u8,
    hold_until: Option<Instant>,
    roams: u8,
    steady_until: Option<Instant>,
    begin: begin::Begin,
    /// The entry in the book's list of deadlines.
    pub(super) deadline: Option<Instant>,
}

impl Live {
    pub(super) fn new(banned: Box<[Candidate]>, probes: Bucket, now: Instant) -> Self {
        Self {
            candidates: Candidates::with_banned(banned),
            direct: None,
            misses: 0,
            traffic: None,
            called: now,
            received: None,
            relayed: None,
            pings: Vec::new(),
            probes,
            asks: Vec::new(),
            initiation: None,
            search_at: None,
            rounds: 0,
            call_again: false,
            failures: 0,
            hold_until: None,
            roams: 0,
            steady_until: None,
            begin: begin::Begin::default(),
            deadline: None,
        }
    }

    pub(super) fn probes(&self) -> Bucket {
        self.probes
    }

    // ---- what happens ----

    /// The kernel has traffic with the peer.
    pub(super) fn handle_traffic(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        let was_active = self.is_active(now);
        self.traffic = Some(now);
        if !was_active && self.direct.is_none() {
            self.begin_search(now);
            self.promote_best(who, common, now);
        }
    }

    /// The peer goes by another key: pongs that are under way are for the old one.
    pub(super) fn handle_other_key(&mut self, now: Instant) {
        self.pings.clear();
        self.initiation = None;
        self.begin_anew(now);
    }

    /// The relay carried something. Where the path is direct, the peer does not trust it: it has to prove itself.
    pub(super) fn handle_relayed(&mut self, now: Instant) {
        self.relayed = Some(now);
        if let Some(direct) = &mut self.direct {
            direct.doubt(now);
        }
    }

    /// The kernel wants a handshake: the packet is sent again on the direct path, if one is found soon.
    pub(super) fn handle_initiation(&mut self, packet: Vec<u8>, now: Instant) {
        self.initiation = Some((packet, now));
    }

    /// A valid ping came by UDP from an address that may be a candidate.
    pub(super) fn handle_pinged(&mut self, from: SocketAddr, who: &PeerId, common: &mut Common, now: Instant) {
        self.called = now;
        let Some(candidate) = self.candidates.see(from, &common.ranking, now) else { return };
        let is_news = !candidate.is_banned(now)
            && candidate.verified(now).is_none()
            && !candidate.was_pinged_within(PINGED_BACK, now);
        if is_news && self.direct.as_ref().is_none_or(|direct| candidate.class() < direct.class) {
            self.probe(from, who, common, now);
        }
    }

    /// The peer asks through the relay to be probed at these addresses.
    pub(super) fn handle_call(&mut self, endpoints: Vec<SocketAddr>, who: &PeerId, common: &mut Common, now: Instant) {
        self.called = now;
        self.candidates.replace(Origin::Called, endpoints.iter().copied(), &common.ranking, now);
        let wanted = |candidate: &&Candidate| {
            endpoints.contains(&candidate.endpoint)
                && !candidate.is_banned(now)
                && !candidate.was_pinged_within(PINGED_BACK, now)
        };
        let wanted: Vec<_> = self.candidates.iter().filter(wanted).map(|candidate| candidate.endpoint).collect();
        for endpoint in wanted {
            self.probe(endpoint, who, common, now);
        }
    }

    /// Whether a pong answers a ping of ours to this peer, and was taken.
    pub(super) fn handle_pong(
        &mut self,
        transaction: TransactionId,
        from: Target,
        who: &PeerId,
        common: &mut Common,
        now: Instant,
    ) -> bool {
        let Some(place) = self.pings.iter().position(|ping| ping.transaction == transaction) else { return false };
        let to = self.pings[place].to;
        let local = match (from, to) {
            (Target::Udp { to: from, from: local }, Target::Udp { to, .. }) if from == to => local,
            (Target::Relay { peer, .. }, Target::Relay { .. }) if peer == who.key => None,
            // It came from elsewhere: that is worth a ping of its own, but proves nothing of where we asked.
            (Target::Udp { to: from, .. }, Target::Udp { .. }) => {
                self.handle_pinged(from, who, common, now);
                return true;
            }
            _ => return true,
        };
        let ping = self.pings.swap_remove(place);
        let latency = now.saturating_duration_since(ping.at);
        if let Some(id) = ping.ask {
            self.asks.retain(|(ask, _)| *ask != id);
            common.tell(PathEvent::PingDone { id, peer: who.key, answer: Some((to, latency)) });
        }
        let Target::Udp { to: endpoint, .. } = to else { return true };
        self.called = now;
        if let Some(candidate) = self.candidates.see(endpoint, &common.ranking, now) {
            candidate.narrow &= !ping.full;
            candidate.local = local.or(candidate.local);
            if !candidate.narrow {
                candidate.answered = Some((now, latency));
            }
        }
        match &mut self.direct {
            Some(direct) if direct.endpoint == endpoint && ping.full => {
                direct.handle_full_pong(now);
                common.narrow.remove(&who.key);
            }
            Some(direct) if direct.endpoint == endpoint => direct.handle_pong(ping.at, local, now),
            _ => self.consider(endpoint, who, common, now),
        }
        true
    }

    pub(super) fn has_pinged(&self, transaction: TransactionId) -> bool {
        self.pings.iter().any(|ping| ping.transaction == transaction)
    }

    /// Somebody wants to know how the peer is reached.
    pub(super) fn handle_ask(&mut self, id: u64, who: &PeerId, common: &mut Common, now: Instant) {
        let relay = who.region.map(|region| Target::Relay { region, peer: who.key });
        let direct = self.direct.as_ref().map(|direct| Target::Udp { to: direct.endpoint, from: None });
        let targets: Vec<Target> = match direct.or(relay) {
            Some(target) => vec![target],
            None => self.candidates.iter().map(|c| Target::Udp { to: c.endpoint, from: None }).collect(),
        };
        if self.asks.len() >= MAX_ASKS || targets.is_empty() {
            return common.tell(PathEvent::PingDone { id, peer: who.key, answer: None });
        }
        self.asks.push((id, now + PING_TIMEOUT));
        for target in targets {
            self.ping(target, (Some(id), false), who, common, now);
        }
    }

    /// The kernel's counters were read; `before` is when they were read the time before.
    pub(super) fn handle_progress(
        &mut self,
        progress: Progress,
        before: Option<Instant>,
        who: &PeerId,
        common: &mut Common,
        now: Instant,
    ) {
        if progress.received {
            self.received = Some(now);
        }
        if progress.handshake {
            self.initiation = None;
        }
        self.judge_handshakes(progress, now);
        let (Some(direct), Some(before)) = (&mut self.direct, before) else { return };
        let by_relay = self.relayed.is_some_and(|at| at + RELAYED >= before);
        if direct.handle_progress(progress, before, by_relay, now) {
            self.fail(Failure::Useless, who, common, now);
        }
    }

    /// Our own endpoints are known anew: whoever was called with old ones is called again.
    pub(super) fn handle_own_endpoints(&mut self, who: &PeerId, common: &mut Common, now: Instant) {
        if std::mem::take(&mut self.call_again) && self.direct.is_none() {
            self.call(who, common, now);
        }
    }

    /// The map was read anew: its endpoints, and whether the host stands elsewhere or the peer has another disco key.
    pub(super) fn handle_map(
        &mut self,
        told: impl Iterator<Item = SocketAddr>,
        (moved, restarted): (bool, bool),
        who: &PeerId,
        common: &mut Common,
        now: Instant,
    ) {
        if moved {
            self.candidates.rank_anew(&common.ranking);
        }
        self.candidates.replace(Origin::Told, told, &common.ranking, now);
        if restarted {
            self.pings.clear();
        }
        if let Some(direct) = &mut self.direct {
            match common.ranking.rank(direct.endpoint) {
                Some(rank) => direct.class = rank.class(),
                None => return self.fail(Failure::Displaced, who, common, now),
            }
            if restarted {
                direct.ping_at = now;
            }
        }
        if self.is_active(now) {
            self.begin_search(now);
        }
    }

    /// Addresses of ours are gone.
    pub(super) fn handle_links_lost(
        &mut self,
        uses_lost: impl Fn(&Direct) -> bool,
        within: Duration,
        who: &PeerId,
        common: &mut Common,
        now: Instant,
    ) {
        let active = self.is_active(now);
        match &mut self.direct {
            Some(direct) if uses_lost(direct) => self.fail(Failure::Displaced, who, common, now),
            Some(direct) => direct.hurry(within, now),
            None if active => self.begin_search(now),
            None => {}
        }
    }

    /// The kernel follows the peer to another address than ours, since the look at `looked`; it is kept.
    pub(super) fn adopt(&mut self, endpoint: SocketAddr, looked: Option<Instant>, common: &mut Common, now: Instant) {
        let Some(candidate) = self.candidates.see(endpoint, &common.ranking, now) else { return };
        let class = candidate.class();
        if self.direct.is_some() {
            self.steady_until = Some(now + doubled(STEADY.0, self.roams, STEADY.1));
            self.roams = self.roams.saturating_add(1);
        }
        self.direct = Some(Direct::adopted(endpoint, class, looked, now));
        self.search_at = Some(now + UPGRADE);
    }

    // ---- the passing of time ----

    /// Whether there was traffic of late.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.traffic.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE)
    }

    /// When all this may be forgotten.
    fn ends_at(&self) -> Instant {
        let asks = self.asks.iter().map(|(_, until)| *until);
        let traffic = self.traffic.map(|at| at + ACTIVE);
        traffic.into_iter().chain(asks).fold(self.called + PASSIVE, Instant::max)
    }

    /// Does what is due; whether there is reason to go on.
    pub(super) fn handle_timeout(&mut self, who: &PeerId, common: &mut Common, now: Instant) -> bool {
        for (id, _) in self.asks.extract_if(.., |(_, until)| *until <= now) {
            common.tell(PathEvent::PingDone { id, peer: who.key, answer: None });
        }
        if self.ends_at() <= now {
            return false;
        }
        self.pings.retain(|ping| now.saturating_duration_since(ping.at) < PING_TIMEOUT);
        let active = self.is_active(now);
        if !active {
            self.traffic = None;
            // Without a relay there is nothing to go back to.
            self.direct = self.direct.take().filter(|_| who.region.is_none());
        }
        if let Some(direct) = &self.direct {
            if direct.dies_at() <= now {
                self.fail(Failure::Silent, who, common, now);
            } else if direct.ping_at <= now {
                if direct.is_doubtful(now) {
                    common.want_look(now);
                }
                self.ping_direct(who, common, now);
            }
        }
        if self.direct.as_ref().is_some_and(|direct| direct.full_at <= now) {
            self.ask_full(who, common, now);
        }
        if self.hold_until.is_some_and(|at| at <= now) {
            self.hold_until = None;
            self.promote_best(who, common, now);
        }
        if self.search_at.is_some_and(|at| at <= now) {
            self.search_at = None;
            if active || who.region.is_none() {
                self.search(who, common, now);
            }
        }
        true
    }

    /// When [`Live::handle_timeout`] has something to do.
    pub(super) fn next_timeout(&self) -> Instant {
        let direct = self.direct.as_ref().map(|direct| direct.dies_at().min(direct.ping_at).min(direct.full_at));
        let asks = self.asks.iter().map(|(_, until)| *until);
        let traffic = self.traffic.filter(|_| self.direct.is_some()).map(|at| at + ACTIVE);
        let planned = self.search_at.into_iter().chain(self.hold_until);
        direct.into_iter().chain(asks).chain(traffic).chain(planned).fold(self.ends_at(), Instant::min)
    }
}

#[cfg(test)]
mod tests;
