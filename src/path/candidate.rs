//! The addresses at which a peer may be reached.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::pace::doubled;
use super::rank::{Class, Rank};
use super::{Ground, TRUST};

/// Candidates taken from each source. Honest nodes have a handful; what liars name costs probes.
const MAX_TOLD: usize = 16;
const MAX_CALLED: usize = 16;
const MAX_SEEN: usize = 8;

/// How a candidate came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The map names it.
    Told,
    /// The peer's last `CallMeMaybe` named it.
    Called,
    /// A probe or a packet came from there.
    Seen,
}

impl Origin {
    const fn most(self) -> usize {
        match self {
            Self::Told => MAX_TOLD,
            Self::Called => MAX_CALLED,
            Self::Seen => MAX_SEEN,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: SocketAddr,
    pub(super) rank: Rank,
    origin: Origin,
    /// The address of ours that its pongs come to.
    pub(super) local: Option<IpAddr>,
    pub(super) pinged: Option<Instant>,
    /// When it last answered, and how long that took.
    pub(super) answered: Option<(Instant, Duration)>,
    strikes: u8,
    banned_until: Option<Instant>,
}

impl Candidate {
    fn new(endpoint: SocketAddr, rank: Rank, origin: Origin) -> Self {
        let (local, pinged, answered) = (None, None, None);
        Self { endpoint, rank, origin, local, pinged, answered, strikes: 0, banned_until: None }
    }

    pub(super) fn class(&self) -> Class {
        self.rank.class()
    }

    /// It failed as a path: it is not tried again before a pause, which grows each time.
    pub(super) fn ban(&mut self, first: Duration, longest: Duration, now: Instant) {
        self.answered = None;
        self.banned_until = Some(now + doubled(first, self.strikes, longest));
        self.strikes = self.strikes.saturating_add(1);
    }

    /// It served well.
    pub(super) fn pardon(&mut self) {
        self.strikes = 0;
    }

    pub(super) fn is_banned(&self, now: Instant) -> bool {
        self.banned_until.is_some_and(|until| now < until)
    }

    pub(super) fn was_pinged_within(&self, span: Duration, now: Instant) -> bool {
        self.pinged.is_some_and(|at| now.saturating_duration_since(at) < span)
    }

    /// Its latency, if it answered so lately that packets may be sent there.
    pub(super) fn verified(&self, now: Instant) -> Option<Duration> {
        let (at, latency) = self.answered?;
        (!self.is_banned(now) && now.saturating_duration_since(at) < TRUST).then_some(latency)
    }
}

/// All of a peer's, in the order in which they are probed.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Takes the endpoints that one source names: all of it, whatever it named before.
    pub(super) fn replace(
        &mut self,
        origin: Origin,
        endpoints: impl Iterator<Item = SocketAddr>,
        ground: &Ground,
        now: Instant,
    ) {
        let mut named: Vec<SocketAddr> = Vec::new();
        for endpoint in endpoints {
            let Some(rank) = ground.rank(endpoint) else { continue };
            if named.len() >= origin.most() {
                break;
            }
            if named.contains(&endpoint) {
                continue;
            }
            named.push(endpoint);
            match self.get_mut(endpoint) {
                Some(known) if origin == Origin::Told || known.origin == Origin::Seen => known.origin = origin,
                Some(_) => {}
                None => self.0.push(Candidate::new(endpoint, rank, origin)),
            }
        }
        // One that is banned is remembered all the same, lest a new name for it lift the ban.
        let is_gone = |known: &Candidate| known.origin == origin && !named.contains(&known.endpoint);
        self.0.retain(|known| !is_gone(known) || known.is_banned(now) || known.verified(now).is_some());
        for gone in self.0.iter_mut().filter(|known| is_gone(known)) {
            gone.origin = Origin::Seen;
        }
        self.trim(None, now);
        self.0.sort_by_key(|candidate| candidate.rank);
    }

    /// A probe or a packet came from there: the candidate, unless it may not be one.
    pub(super) fn see(&mut self, endpoint: SocketAddr, ground: &Ground, now: Instant) -> Option<&mut Candidate> {
        let rank = ground.rank(endpoint)?;
        if self.get_mut(endpoint).is_none() {
            self.0.push(Candidate::new(endpoint, rank, Origin::Seen));
            self.trim(Some(endpoint), now);
            self.0.sort_by_key(|candidate| candidate.rank);
        }
        self.get_mut(endpoint)
    }

    /// Drops seen ones past the limit: first those that never answered.
    fn trim(&mut self, keep: Option<SocketAddr>, now: Instant) {
        while self.0.iter().filter(|known| known.origin == Origin::Seen).count() > MAX_SEEN {
            let seen = self.0.iter().enumerate().filter(|(_, c)| c.origin == Origin::Seen && Some(c.endpoint) != keep);
            let worth = |c: &Candidate| (c.is_banned(now), c.answered.map(|(at, _)| at));
            let Some((place, _)) = seen.min_by_key(|(_, candidate)| worth(candidate)) else { return };
            self.0.remove(place);
        }
    }

    /// The host stands elsewhere: some are not what they were.
    pub(super) fn rank_anew(&mut self, ground: &Ground) {
        self.0.retain_mut(|candidate| match ground.rank(candidate.endpoint) {
            Some(rank) => {
                candidate.rank = rank;
                true
            }
            None => false,
        });
        self.0.sort_by_key(|candidate| candidate.rank);
    }

    pub(super) fn get(&self, endpoint: SocketAddr) -> Option<&Candidate> {
        self.0.iter().find(|candidate| candidate.endpoint == endpoint)
    }

    pub(super) fn get_mut(&mut self, endpoint: SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|candidate| candidate.endpoint == endpoint)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter()
    }

    /// The best of those to which packets may be sent.
    pub(super) fn best(&self, now: Instant) -> Option<&Candidate> {
        let verified = self.0.iter().filter_map(|candidate| Some((candidate.verified(now)?, candidate)));
        verified.min_by_key(|(latency, candidate)| (candidate.class(), *latency)).map(|(_, candidate)| candidate)
    }

    /// Those that are banned: what is worth remembering of an idle peer.
    pub(super) fn take_banned(&mut self, now: Instant) -> Box<[Candidate]> {
        let banned = std::mem::take(&mut self.0).into_iter().filter(|candidate| candidate.is_banned(now));
        banned.take(MAX_SEEN).collect()
    }

    pub(super) fn with_banned(banned: Box<[Candidate]>) -> Self {
        Self(banned.into_iter().map(|candidate| Candidate { origin: Origin::Seen, ..candidate }).collect())
    }
}
