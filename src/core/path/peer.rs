//! One peer: what the map and the kernel say of it, and where its packets should go.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::candidate::{Candidate, Origin};
use super::common::Common;
use super::direct::Progress;
use super::live::begin::Sign;
use super::live::{Live, PeerId};
use super::pace::{Bucket, Tick};
use super::packed::Packed;
use super::{EndpointUpdate, Evidence, PATIENCE, PathView, PeerInfo, SESSION, Selected};
use crate::types::{DiscoPublic, NodePublic, RegionId, Timestamp};

/// Looks that may find the kernel elsewhere than it was moved before the kernel is believed to follow the peer.
const MISSES: u8 = 2;

#[derive(Debug, Default)]
pub(super) struct PeerState {
    pub(super) round: u32,
    pub(super) disco: Option<DiscoPublic>,
    /// Where it listens, if there is a relay path to it.
    home: Option<RegionId>,
    /// The endpoints that the map names.
    told: Packed,
    /// Where its packets go while there is no direct path: the loopback endpoint that stands for the relay, or, without
    /// one, the endpoint that is tried.
    rest: Option<SocketAddr>,
    /// The kernel has to be moved to where it should be, and was not seen there yet.
    moving: bool,
    seen: Seen,
    /// Since when packets go to the present endpoint without a handshake.
    tried_since: Option<Tick>,
    probes: Bucket,
    /// What is not to be tried for a while.
    banned: Box<[Candidate]>,
    pub(super) live: Option<Box<Live>>,
}

/// What the kernel said last.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    known: bool,
    /// Its last handshake is so young that there is a session.
    alive: bool,
    /// Until when that is so, unless there is another one.
    alive_until: Option<Tick>,
    /// In milliseconds since 1970; 0 for none.
    last_handshake: i64,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Seen {
    /// How old a handshake is, the wall says once; from then on it is known, whatever becomes of that clock.
    fn update(&mut self, evidence: &Evidence, now: Tick, wall: Timestamp) -> Progress {
        let last_handshake = evidence.last_handshake.map_or(0, Timestamp::as_millisecond);
        let handshake = self.known && last_handshake != 0 && last_handshake != self.last_handshake;
        let left = |then| SESSION.saturating_sub(age(then, wall));
        let alive_until = match evidence.last_handshake {
            None => None,
            Some(_) if handshake => Some(now.after(SESSION)),
            Some(then) if !self.known => Some(now.after(left(then))),
            Some(_) => self.alive_until,
        };
        let alive = alive_until.is_some_and(|until| now < until);
        let progress = Progress {
            sent: evidence.tx_bytes > self.tx_bytes,
            received: evidence.rx_bytes > self.rx_bytes,
            handshake,
            in_session: alive,
        };
        let (rx_bytes, tx_bytes) = (evidence.rx_bytes, evidence.tx_bytes);
        *self = Self { known: true, alive, alive_until, last_handshake, rx_bytes, tx_bytes };
        progress
    }
}

impl PeerState {
    // ---- the map ----

    /// Whether the map says what it said before.
    pub(super) fn is_told(&self, info: &PeerInfo<'_>) -> bool {
        let has_relay = info.home.is_some() && info.relay.is_some();
        let is_same_relay = match has_relay {
            true => info.home == self.home && info.relay == self.rest,
            false => self.home.is_none(),
        };
        info.disco.filter(|disco| !disco.is_zero()) == self.disco && is_same_relay && self.told.is(info.endpoints)
    }

    /// Takes what the map says that is new, or where we stand elsewhere; whether the disco key is another one.
    pub(super) fn handle_map(&mut self, info: &PeerInfo<'_>, moved: bool, common: &mut Common, now: Instant) -> bool {
        let relay = info.relay.filter(|_| info.home.is_some());
        let home = info.home.filter(|_| info.relay.is_some());
        let disco = info.disco.filter(|disco| !disco.is_zero());
        let restarted = disco != self.disco;
        let told_anew = !self.told.is(info.endpoints);
        let lost_relay = relay.is_none() && self.home.is_some();
        if told_anew {
            self.told = Packed::new(info.endpoints);
        }
        (self.disco, self.home) = (disco, home);
        match relay {
            Some(_) => self.rest = relay,
            None if told_anew || moved || lost_relay => self.rank_anew(lost_relay, common),
            None => {}
        }
        let told = self.told.to_vec();
        match (self.who(info.key), &mut self.live) {
            (Some(who), Some(live)) => live.handle_map(told.into_iter(), (moved, restarted), &who, common, now),
            (None, live) => *live = None,
            _ => {}
        }
        restarted
    }

    /// Without a relay: the best endpoint is tried first, unless the present one works.
    fn rank_anew(&mut self, lost_relay: bool, common: &Common) {
        if self.seen.alive && self.rest.is_some() && !lost_relay {
            return;
        }
        let best = common.ranking.candidates(&self.told.to_vec()).first().copied();
        if best != self.rest {
            self.rest = best;
            self.tried_since = None;
        }
    }

    /// Its keys, if it takes probes.
    pub(super) fn who(&self, key: NodePublic) -> Option<PeerId> {
        Some(PeerId { key, disco: self.disco?, region: self.home })
    }

    /// It goes by another node key from here on, of which the kernel knows nothing yet.
    pub(super) fn handle_other_key(&mut self, now: Instant) {
        (self.seen, self.tried_since, self.moving) = (Seen::default(), None, false);
        if let Some(live) = &mut self.live {
            live.handle_other_key(now);
        }
    }

    // ---- something is going on ----

    /// Its state with probes, begun if there is none.
    pub(super) fn engage(&mut self, common: &mut Common, now: Instant) -> &mut Live {
        let (told, banned, probes) = (&self.told, &mut self.banned, self.probes);
        self.live.get_or_insert_with(|| {
            let mut live = Live::new(std::mem::take(banned), probes, now);
            live.candidates.replace(Origin::Told, told.iter(), &common.ranking, now);
            Box::new(live)
        })
    }

    /// The kernel has traffic with it.
    pub(super) fn wake(&mut self, key: NodePublic, common: &mut Common, now: Instant) -> Option<&mut Live> {
        let who = self.who(key)?;
        let live = self.engage(common, now);
        live.handle_traffic(&who, common, now);
        Some(live)
    }

    pub(super) fn handle_timeout(&mut self, key: NodePublic, common: &mut Common, now: Instant) {
        let Some(who) = self.who(key) else { return };
        let Some(live) = &mut self.live else { return };
        if !live.handle_timeout(&who, common, now) {
            self.banned = live.candidates.take_banned(now);
            self.probes = live.probes();
            self.live = None;
            common.narrow.remove(&key);
        }
    }

    // ---- the kernel ----

    pub(super) fn handle_observed(
        &mut self,
        key: NodePublic,
        evidence: &Evidence,
        common: &mut Common,
        (now, wall): (Instant, Timestamp),
    ) {
        let first = !self.seen.known;
        let tick = common.tick(now);
        let progress = self.seen.update(evidence, tick, wall);
        let who = self.who(key);
        if let Some(endpoint) = evidence.endpoint
            && Some(endpoint) == self.target()
        {
            self.moving = false;
        }
        if let Some(who) = who {
            let before = common.looked_at;
            if first {
                return self.handle_first(&who, evidence.endpoint, common, now);
            }
            if progress.sent || progress.received {
                self.wake(key, common, now);
            }
            if let Some(live) = &mut self.live {
                live.handle_progress(progress, before, &who, common, now);
            }
        }
        match (who, evidence.endpoint) {
            (_, None) => {}
            (Some(who), Some(endpoint)) if self.home.is_some() || self.is_direct() => {
                self.compare(&who, endpoint, progress, common, now);
            }
            (Some(who), Some(endpoint)) if progress.is_news() && common.ranking.rank(endpoint).is_some() => {
                self.adopt(&who, endpoint, common.looked_at, common, now);
            }
            (_, Some(endpoint)) => self.rotate(endpoint, progress.sent, common, tick),
        }
    }

    /// The first look since the start: what carries traffic stays as it is, an idle peer goes to its resting place.
    fn handle_first(&mut self, who: &PeerId, endpoint: Option<SocketAddr>, common: &mut Common, now: Instant) {
        let Some(endpoint) = endpoint.filter(|endpoint| Some(*endpoint) != self.rest || self.home.is_none()) else {
            return;
        };
        if self.seen.alive && common.ranking.rank(endpoint).is_some() {
            self.adopt(who, endpoint, None, common, now);
        } else if self.home.is_some() {
            self.moving = true;
        }
    }

    /// The kernel has another endpoint than the one it should have: has it followed the peer?
    fn compare(&mut self, who: &PeerId, endpoint: SocketAddr, progress: Progress, common: &mut Common, now: Instant) {
        if Some(endpoint) == self.target() {
            if let Some(live) = &mut self.live {
                live.misses = 0;
            }
            return;
        }
        let follows = progress.is_news() && common.ranking.rank(endpoint).is_some();
        let was_moving = std::mem::replace(&mut self.moving, true);
        let Some(live) = self.live.as_mut().filter(|_| follows) else { return };
        // A move that was wished for is given time; and a path that just failed is not taken back.
        live.misses = live.misses.saturating_add(1);
        let is_given_time = was_moving && live.misses <= MISSES;
        let is_banned = |candidate: &Candidate| candidate.is_banned(now) || candidate.narrow;
        let is_banned = live.candidates.get(endpoint).is_some_and(is_banned);
        if !is_given_time && !is_banned {
            self.adopt(who, endpoint, common.looked_at, common, now);
        }
    }

    /// Keeps to where the kernel followed the peer, and asks there at once.
    fn adopt(
        &mut self,
        who: &PeerId,
        endpoint: SocketAddr,
        looked: Option<Instant>,
        common: &mut Common,
        now: Instant,
    ) {
        let spread = common.part_of(super::HEARTBEAT);
        let known = self.seen.known && self.live.is_some();
        let live = self.engage(common, now);
        live.adopt(endpoint, looked, common, now);
        live.handle_traffic(who, common, now);
        match &mut live.direct {
            // After a start there may be thousands.
            Some(direct) if !known => {
                direct.ping_at = now + spread;
                direct.full_at = now + spread + super::HEARTBEAT;
            }
            _ => live.ping_direct(who, common, now),
        }
        self.moving = false;
    }

    /// Without probes and relay: an endpoint that is tried in vain gives way to the next.
    fn rotate(&mut self, endpoint: SocketAddr, sent: bool, common: &Common, now: Tick) {
        if self.seen.alive {
            self.tried_since = None;
            self.moving = false;
            if self.home.is_none() {
                self.rest = Some(endpoint);
            }
            return;
        }
        let candidates = match self.home {
            Some(_) => self.rest.into_iter().collect(),
            None => common.ranking.candidates(&self.told.to_vec()),
        };
        let Some(place) = candidates.iter().position(|candidate| *candidate == endpoint) else {
            if let Some(best) = candidates.first() {
                (self.rest, self.moving) = (Some(*best), true);
            }
            return;
        };
        match self.tried_since {
            None if sent => self.tried_since = Some(now),
            Some(since) if sent && now.since(since) >= PATIENCE => {
                let next = candidates[(place + 1) % candidates.len()];
                if next != endpoint {
                    (self.rest, self.moving) = (Some(next), true);
                }
                self.tried_since = Some(now);
            }
            _ => {}
        }
    }

    /// There is a sign of it.
    pub(super) fn handle_sign(&mut self, sign: Sign, now: Instant) {
        // Before the first look nothing is known.
        let in_session = self.seen.alive || !self.seen.known;
        if let Some(live) = &mut self.live {
            live.handle_sign(sign, in_session, now);
        }
    }

    // ---- the outcome ----

    /// Whether this side is beginning a handshake because the peer cannot.
    pub(super) fn begins(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.begins())
    }

    fn is_direct(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.direct.is_some())
    }

    /// Where its packets should go.
    pub(super) fn target(&self) -> Option<SocketAddr> {
        let direct = self.live.as_ref().and_then(|live| live.direct.as_ref());
        direct.map(|direct| direct.endpoint).or(self.rest)
    }

    /// The address of ours that the direct path uses.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.live.as_ref()?.direct.as_ref()?.local
    }

    /// The place where packets should go was another one `before`: the kernel has to be moved, unless it was just seen
    /// there.
    pub(super) fn settle(&mut self, before: Option<SocketAddr>, kernel: Option<SocketAddr>) {
        let target = self.target();
        if target != before && self.seen.known {
            self.moving = kernel != target;
            self.live.iter_mut().for_each(|live| live.misses = 0);
        }
    }

    pub(super) fn endpoint_update(&self) -> EndpointUpdate {
        match self.target() {
            None => EndpointUpdate::Leave,
            Some(target) if self.moving => EndpointUpdate::Move(target),
            Some(target) => EndpointUpdate::Initial(target),
        }
    }

    /// Whether looks at the kernel are needed although no probes are under way: an endpoint is being tried, and there
    /// are others.
    pub(super) fn is_undecided(&self) -> bool {
        self.home.is_none() && !self.seen.alive && self.told.iter().nth(1).is_some()
    }

    pub(super) fn path(&self, origin: Instant, now: Option<Instant>) -> PathView {
        let live = self.live.as_ref();
        let direct = live.and_then(|live| live.direct.as_ref());
        let selected = match (direct, self.home, self.rest) {
            (Some(direct), _, _) => Selected::Direct {
                endpoint: direct.endpoint,
                local: direct.local,
                latency: direct.latency,
                since: direct.since,
            },
            (None, Some(region), _) => Selected::Relay { region },
            (None, None, Some(endpoint)) if self.seen.alive => {
                Selected::Direct { endpoint, local: None, latency: None, since: origin }
            }
            _ => Selected::None,
        };
        let active = now.zip(live).is_some_and(|(now, live)| live.is_active(now) && !live.goes_one_way(now));
        PathView { selected, active }
    }
}

/// How long ago, by the wall clock; a time in the future is no time ago.
fn age(then: Timestamp, wall: Timestamp) -> Duration {
    wall.duration_since(then).try_into().unwrap_or_default()
}
