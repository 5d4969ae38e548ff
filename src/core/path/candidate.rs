//! The addresses at which a peer may be reached.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::pace::doubled;
use super::rank::{Class, Rank};
use super::{Ranking, TRUST};

/// Candidates taken from each source. Honest nodes have a handful; what liars name costs probes.
const MAX_TOLD: usize = 16;
const MAX_CALLED: usize = 16;
const MAX_SEEN: usize = 8;
/// Endpoints of a source that are looked at.
const MAX_NAMED: usize = 64;

/// Of so many endpoints of one rank each is taken before more of another.
const SHARE: usize = 4;

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
    /// It carried no packets of full size: only answers to such count.
    pub(super) narrow: bool,
    strikes: u8,
    banned_until: Option<Instant>,
}

impl Candidate {
    fn new(endpoint: SocketAddr, rank: Rank, origin: Origin) -> Self {
        let (local, pinged, answered) = (None, None, None);
        Self { endpoint, rank, origin, local, pinged, answered, narrow: false, strikes: 0, banned_until: None }
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
        ranking: &Ranking,
        now: Instant,
    ) {
        let named = shared_out(endpoints, ranking, origin.most());
        for (rank, endpoint) in &named {
            let (rank, endpoint) = (*rank, *endpoint);
            match self.get_mut(endpoint) {
                Some(known) if origin == Origin::Told || known.origin == Origin::Seen => known.origin = origin,
                Some(_) => {}
                None => self.0.push(Candidate::new(endpoint, rank, origin)),
            }
        }
        // One that is banned is remembered all the same, lest a new name for it lift the ban.
        let is_named = |endpoint: SocketAddr| named.iter().any(|(_, named)| *named == endpoint);
        let is_gone = |known: &Candidate| known.origin == origin && !is_named(known.endpoint);
        self.0.retain(|known| !is_gone(known) || known.is_banned(now) || known.verified(now).is_some());
        for gone in self.0.iter_mut().filter(|known| is_gone(known)) {
            gone.origin = Origin::Seen;
        }
        self.trim(None, now);
        self.0.sort_by_key(|candidate| candidate.rank);
    }

    /// A probe or a packet came from there: the candidate, unless it may not be one.
    pub(super) fn see(&mut self, endpoint: SocketAddr, ranking: &Ranking, now: Instant) -> Option<&mut Candidate> {
        let rank = ranking.rank(endpoint)?;
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
    pub(super) fn rank_anew(&mut self, ranking: &Ranking) {
        self.0.retain_mut(|candidate| match ranking.rank(candidate.endpoint) {
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

    /// Those that failed: what is worth remembering of an idle peer.
    pub(super) fn take_banned(&mut self, now: Instant) -> Box<[Candidate]> {
        let banned =
            std::mem::take(&mut self.0).into_iter().filter(|candidate| candidate.is_banned(now) || candidate.narrow);
        banned.take(MAX_SEEN).collect()
    }

    pub(super) fn with_banned(banned: Box<[Candidate]>) -> Self {
        Self(banned.into_iter().map(|candidate| Candidate { origin: Origin::Seen, ..candidate }).collect())
    }
}

/// The endpoints that may be candidates, `most` at most: shared out among the ranks, so that a crowd of one rank does not
/// push the others out, and within a rank in the order in which they are named, which is the peer's.
fn shared_out(endpoints: impl Iterator<Item = SocketAddr>, ranking: &Ranking, most: usize) -> Vec<(Rank, SocketAddr)> {
    let mut ranked: Vec<(Rank, SocketAddr)> = Vec::new();
    for endpoint in endpoints.take(MAX_NAMED) {
        if let Some(rank) = ranking.rank(endpoint)
            && !ranked.contains(&(rank, endpoint))
        {
            ranked.push((rank, endpoint));
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let place_in_rank = |place: usize, rank: Rank| place - ranked.partition_point(|(other, _)| *other < rank);
    let mut rounds: Vec<(usize, Rank, SocketAddr)> = ranked
        .iter()
        .enumerate()
        .map(|(place, (rank, endpoint))| (place_in_rank(place, *rank) / SHARE, *rank, *endpoint))
        .collect();
    rounds.sort_by_key(|(round, rank, _)| (*round, *rank));
    rounds.into_iter().take(most).map(|(_, rank, endpoint)| (rank, endpoint)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::netcheck::LinkKind;

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A host on a LAN, with as many bridges of containers.
    fn ranking(bridges: u8) -> Ranking {
        let bridge = |n: u8| format!("10.{}.0.1/16", 100 + n).parse().unwrap();
        let links = (0..bridges).map(bridge).chain(["192.168.1.2/24".parse().unwrap()]).collect();
        let link_kinds: BTreeMap<_, _> = (0..bridges).map(|n| (bridge(n), LinkKind::Virtual)).collect();
        Ranking::new(links, []).with_link_kinds(link_kinds)
    }

    fn candidates(ranking: &Ranking, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        #[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
        let now = Instant::now();
        let mut candidates = Candidates::default();
        candidates.replace(Origin::Told, endpoints.iter().copied(), ranking, now);
        candidates.iter().map(|candidate| candidate.endpoint).collect()
    }

    #[test]
    fn a_crowd_of_bridges_does_not_push_out_the_address_on_the_lan() {
        let bridges = (100..130).map(|n| endpoint(&format!("10.{n}.0.1:41741")));
        let others = ["203.0.113.5:41741", "10.8.0.5:41741", "192.168.1.5:41741"].map(endpoint);
        let named: Vec<_> = bridges.chain(others).collect();

        for bridges in [0, 17, 30] {
            let candidates = candidates(&ranking(bridges), &named);
            assert_eq!(candidates.len(), MAX_TOLD);
            assert_eq!(candidates[0], endpoint("192.168.1.5:41741"), "probed first");
            // An address beyond a router is one of a crowd where the bridges are not known for what they are.
            assert!(candidates.contains(&endpoint("203.0.113.5:41741")), "{candidates:?}");
            assert!(bridges < 30 || candidates.contains(&endpoint("10.8.0.5:41741")), "{candidates:?}");
        }
    }

    proptest! {
        #[test]
        fn the_best_of_each_rank_is_among_those_that_are_taken(
            named in prop::collection::vec((0_u8..5, any::<u8>()), 0..200),
        ) {
            let nets = ["192.168.1", "10.100.0", "203.0.113", "10.8.0", "198.51.100"];
            let named: Vec<_> = named.iter().map(|(net, host)| {
                endpoint(&format!("{}.{host}:41741", nets[usize::from(*net)]))
            }).collect();
            let ranking = ranking(3);
            let taken = shared_out(named.iter().copied(), &ranking, MAX_TOLD);
            prop_assert!(taken.len() <= MAX_TOLD);
            for endpoint in named.iter().take(MAX_NAMED) {
                let Some(rank) = ranking.rank(*endpoint) else { continue };
                let first = named.iter().find(|other| ranking.rank(**other) == Some(rank)).unwrap();
                prop_assert!(taken.contains(&(rank, *first)), "{first} of {rank:?}");
            }
        }
    }
}
