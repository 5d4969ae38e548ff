//! The ways to all peers, and the protocol around them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::common::Common;
use super::live::begin::Sign;
use super::peer::PeerState;
use super::{EndpointUpdate, Evidence, LINK_LOST, LOOK, PathEvent, PathView, PeerInfo, Ranking, Target, Transmit, Via};
use crate::types::{DiscoPrivate, DiscoPublic, IpNet, NodePublic, RegionId, Timestamp};
use crate::wire::disco::{self, Message, TransactionId};

/// Looks are at least this far apart; with many peers, ten times the thousandth part of the pause between regular ones.
const LOOK_GAP: Duration = Duration::from_millis(500);
/// The longest pause between looks while somebody is active.
const LOOK_LONGEST: Duration = Duration::from_secs(25);
/// A look that was asked for and did not happen is asked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The address that stands for a relay in a pong, its port being the region.
const RELAY_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 3, 3, 40));

/// The ways to all peers.
#[derive(Debug)]
pub struct Book {
    peers: BTreeMap<NodePublic, PeerState>,
    common: Common,
    /// Whose disco key is which, sorted.
    by_disco: Vec<(DiscoPublic, NodePublic)>,
    /// When which peer has something to do: only those with which something is going on.
    deadlines: BTreeSet<(Instant, NodePublic)>,
    /// Counts the maps, to tell the peers of the last one from those before.
    round: u32,
    look_at: Option<Instant>,
    looked_at: Option<Instant>,
    started: Option<Instant>,
    now: Option<Instant>,
}

impl Book {
    /// A book without peers. Our probes are sealed with the disco key and say the node key; all chance comes from the
    /// seed.
    pub fn new(disco: DiscoPrivate, node: NodePublic, seed: [u8; 32]) -> Self {
        Self {
            peers: BTreeMap::new(),
            common: Common::new(disco, node, seed),
            by_disco: Vec::new(),
            deadlines: BTreeSet::new(),
            round: 0,
            look_at: None,
            looked_at: None,
            started: None,
            now: None,
        }
    }

    /// Our node key, as it is after a login.
    pub fn handle_own_key(&mut self, node: NodePublic) {
        self.common.node = node;
    }

    /// Takes what the map says of all peers; a peer that is not named is forgotten.
    ///
    /// Only what changed is looked at closely, so that a change of one peer among thousands costs little.
    pub fn handle_peers<'a>(
        &mut self,
        peers: impl Iterator<Item = PeerInfo<'a>> + Clone,
        ranking: Ranking,
        now: Instant,
    ) {
        self.handle_now(now);
        self.handle_other_keys(peers.clone(), now);
        let moved = self.common.ranking != ranking;
        self.common.ranking = ranking;
        self.round = self.round.wrapping_add(1);
        let mut other_keys = false;
        for info in peers {
            let peer = self.peers.entry(info.key).or_default();
            peer.round = self.round;
            if !moved && peer.is_told(&info) {
                continue;
            }
            let old = peer.disco;
            let restarted = self.with(&info.key, now, |peer, common| peer.handle_map(&info, moved, common, now));
            if restarted == Some(true) {
                other_keys = true;
                old.iter().for_each(|old| self.common.secrets.forget(old));
            }
        }
        let (round, deadlines, narrow) = (self.round, &mut self.deadlines, &mut self.common.narrow);
        self.peers.retain(|key, peer| {
            let stays = peer.round == round;
            if !stays {
                other_keys = true;
                narrow.remove(key);
                let deadline = peer.live.as_ref().and_then(|live| live.deadline);
                deadline.map(|at| deadlines.remove(&(at, *key)));
            }
            stays
        });
        if other_keys {
            self.by_disco.clear();
            self.by_disco.reserve_exact(self.peers.len());
            self.by_disco.extend(self.peers.iter().filter_map(|(key, peer)| Some((peer.disco?, *key))));
            self.by_disco.sort_unstable();
        }
    }

    /// A peer that changed its node key, and nothing else, is where it was. What the kernel knew of it goes with the old
    /// key, so this side begins the handshake where there was traffic: the peer's own may have come too early.
    fn handle_other_keys<'a>(&mut self, peers: impl Iterator<Item = PeerInfo<'a>> + Clone, now: Instant) {
        let before = |info: &PeerInfo<'_>| {
            let disco = info.disco.filter(|_| !self.peers.contains_key(&info.key))?;
            let from = self.by_disco.partition_point(|(known, _)| *known < disco);
            let (known, key) = self.by_disco.get(from)?;
            (*known == disco).then_some((*key, info.key))
        };
        let mut others: Vec<(NodePublic, NodePublic)> = peers.clone().filter_map(|info| before(&info)).collect();
        if others.is_empty() {
            return;
        }
        let stay: BTreeSet<NodePublic> = peers.map(|info| info.key).collect();
        others.retain(|(old, _)| !stay.contains(old));
        for (old, new) in others {
            let Some(mut peer) = self.peers.remove(&old) else { continue };
            let deadline = peer.live.as_mut().and_then(|live| live.deadline.take());
            deadline.map(|at| self.deadlines.remove(&(at, old)));
            self.common.narrow.remove(&old).map(|endpoint| self.common.narrow.insert(new, endpoint));
            peer.handle_other_key(now);
            self.peers.insert(new, peer);
            self.by_disco.retain(|(_, key)| *key != old);
            self.by_disco.extend(self.peers.get(&new).and_then(|peer| Some((peer.disco?, new))));
            self.by_disco.sort_unstable();
            // It has its place in the list of deadlines again.
            self.with(&new, now, |_, _| ());
        }
    }

    /// Our own endpoints, best first, as they are known at this moment: what a peer is told to probe.
    pub fn handle_own_endpoints(&mut self, endpoints: &[SocketAddr], now: Instant) {
        self.handle_now(now);
        self.common.set_own_endpoints(endpoints, now);
        for key in self.engaged() {
            self.with(&key, now, |peer, common| {
                if let (Some(who), Some(live)) = (peer.who(key), &mut peer.live) {
                    live.handle_own_endpoints(&who, common, now);
                }
            });
        }
    }

    /// A datagram that looks like a probe has come.
    pub fn handle_datagram(&mut self, via: Via, bytes: &[u8], now: Instant) {
        self.handle_now(now);
        let Ok(disco) = disco::sender(bytes) else { return };
        let from = self.by_disco.partition_point(|(known, _)| *known < disco);
        if self.by_disco.get(from).is_none_or(|(known, _)| *known != disco) {
            return;
        }
        let tick = self.common.tick(now);
        let Some(Ok(message)) = self.common.secrets.from(&disco, tick).map(|secret| secret.open(bytes)) else { return };
        // Anybody may claim the key of another in the map. What counts is whom the message names, and whom we asked; both can
        // only be who holds it.
        let claims = self.by_disco[from..].iter().take_while(|(known, _)| *known == disco).map(|(_, key)| *key);
        let has_claim = |key: &NodePublic| self.by_disco.binary_search(&(disco, *key)).is_ok();
        match (message, via) {
            (Message::Ping { transaction, node, .. }, via) => {
                let mut claims = claims;
                let only = claims.next().filter(|_| claims.next().is_none());
                let relayed = match via {
                    Via::Relay { from, .. } => Some(from),
                    Via::Udp { .. } => None,
                };
                let Some(key) = node.or(relayed).or(only).filter(has_claim) else { return };
                self.handle_pinged(&key, &disco, transaction, via, now);
            }
            (Message::Pong { transaction, .. }, via) => {
                let asked = |key: &NodePublic| {
                    let live = self.peers.get(key).and_then(|peer| peer.live.as_ref());
                    live.is_some_and(|live| live.has_pinged(transaction))
                };
                let mut claims = claims;
                let Some(key) = claims.find(asked) else { return };
                let from = match via {
                    Via::Udp { from, local } => Target::Udp { to: from, from: local },
                    Via::Relay { region, from } => Target::Relay { region, peer: from },
                };
                self.with(&key, now, |peer, common| {
                    if let (Some(who), Some(live)) = (peer.who(key), &mut peer.live) {
                        live.handle_pong(transaction, from, &who, common, now);
                    }
                    peer.handle_sign(Sign::Answer, now);
                });
            }
            (Message::CallMeMaybe { endpoints }, Via::Relay { from: key, .. }) if has_claim(&key) => {
                self.with(&key, now, |peer, common| {
                    if let Some(who) = peer.who(key) {
                        peer.engage(common, now).handle_call(endpoints, &who, common, now);
                        peer.handle_sign(Sign::Question, now);
                    }
                });
            }
            (Message::CallMeMaybe { .. } | Message::Other { .. }, _) => {}
        }
    }

    /// Every valid ping is answered the way it came, unless it came by a way that no path may take.
    fn handle_pinged(
        &mut self,
        key: &NodePublic,
        disco: &DiscoPublic,
        transaction: TransactionId,
        via: Via,
        now: Instant,
    ) {
        let (to, source) = match via {
            Via::Relay { from, .. } if from != *key => return,
            Via::Relay { region, from } => (Target::Relay { region, peer: from }, relay_source(region)),
            Via::Udp { from, .. } if self.common.ranking.rank(from).is_none() => return,
            Via::Udp { from, local } => (Target::Udp { to: from, from: local }, from),
        };
        self.common.send(disco, to, &Message::Pong { transaction, source });
        if let Via::Udp { from, .. } = via {
            self.with(key, now, |peer, common| {
                if let Some(who) = peer.who(*key) {
                    peer.engage(common, now).handle_pinged(from, &who, common, now);
                    peer.handle_sign(Sign::Question, now);
                }
            });
        }
    }

    /// The kernel began a handshake with a relayed peer; the packet is on its way through the relay.
    pub fn handle_initiation(&mut self, key: &NodePublic, packet: Vec<u8>, now: Instant) {
        self.handle_now(now);
        self.with(key, now, |peer, common| {
            if let Some(live) = peer.wake(*key, common, now) {
                live.handle_initiation(packet, now);
            }
        });
    }

    /// The relay carried something to or from a peer after a pause. It need not be told more often than once a second.
    pub fn handle_relayed(&mut self, key: &NodePublic, now: Instant) {
        self.handle_now(now);
        self.with(key, now, |peer, common| {
            if let Some(live) = peer.wake(*key, common, now) {
                live.handle_relayed(now);
            }
            peer.handle_sign(Sign::Relayed, now);
        });
    }

    /// Takes what the kernel says of a peer.
    pub fn handle_observed(&mut self, key: &NodePublic, evidence: Evidence, now: Instant, wall: Timestamp) {
        self.handle_now(now);
        self.common.looked_at = self.looked_at;
        let act =
            |peer: &mut PeerState, common: &mut Common| peer.handle_observed(*key, &evidence, common, (now, wall));
        self.with_seen(key, evidence.endpoint, now, act);
    }

    /// The kernel has been looked at; the next look is due later.
    pub fn handle_looked(&mut self, now: Instant) {
        self.handle_now(now);
        self.looked_at = Some(now);
        let wanted = !self.deadlines.is_empty() || self.peers.values().any(PeerState::is_undecided);
        self.look_at = wanted.then(|| now + LOOK.saturating_mul(self.share()).min(LOOK_LONGEST));
    }

    /// A look reads all peers, so the pace falls with their number.
    fn share(&self) -> u32 {
        u32::try_from(self.peers.len() / 1_000).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Somebody wants to know how a peer is reached: it ends in [`PathEvent::PingDone`] with this number. It counts as
    /// traffic, so a better way is looked for.
    pub fn handle_ping(&mut self, key: &NodePublic, id: u64, now: Instant) {
        self.handle_now(now);
        let asked = self.with(key, now, |peer, common| {
            let who = peer.who(*key)?;
            peer.wake(*key, common, now)?.handle_ask(id, &who, common, now);
            Some(())
        });
        if asked.flatten().is_none() {
            self.common.tell(PathEvent::PingDone { id, peer: *key, answer: None });
        }
    }

    /// Addresses of ours, each with its on-link prefix, are gone: paths over them end at once, and every other direct
    /// path has to prove itself within [`LINK_LOST`].
    pub fn handle_links_lost(&mut self, removed: &[IpNet], now: Instant) {
        self.handle_now(now);
        self.common.forget_freshness();
        for key in self.engaged() {
            self.with(&key, now, |peer, common| {
                let (Some(who), Some(live)) = (peer.who(key), &mut peer.live) else { return };
                let uses_lost = |local: Option<IpAddr>| removed.iter().any(|net| local == Some(net.addr()));
                live.handle_links_lost(|direct| uses_lost(direct.local), LINK_LOST, &who, common, now);
            });
        }
    }

    fn engaged(&self) -> Vec<NodePublic> {
        self.deadlines.iter().map(|(_, key)| *key).collect()
    }

    /// The time that [`Book::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.handle_now(now);
        let is_due = |(at, _): &&(Instant, NodePublic)| *at <= now;
        let due: Vec<NodePublic> = self.deadlines.iter().take_while(is_due).map(|(_, key)| *key).collect();
        for key in due {
            self.with(&key, now, |peer, common| peer.handle_timeout(key, common, now));
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = Some(now + LOOK_AGAIN);
            self.common.tell(PathEvent::NeedsLook);
        }
    }

    /// When to call [`Book::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        first.into_iter().chain(self.look_at).min()
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.common.poll_transmit()
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.common.poll_event()
    }

    /// What should become of each peer's endpoint, where it should change.
    pub fn endpoint_updates(&self) -> impl Iterator<Item = (NodePublic, EndpointUpdate)> + '_ {
        self.peers
            .iter()
            .map(|(key, peer)| (*key, peer.endpoint_update()))
            .filter(|(_, update)| *update != EndpointUpdate::Leave)
    }

    /// Whether this side should begin a handshake with a peer, because the peer cannot.
    pub fn begins(&self, key: &NodePublic) -> bool {
        self.peers.get(key).is_some_and(PeerState::begins)
    }

    /// The peers that are there, and whose WireGuard answers nothing of ours.
    pub fn one_way(&self) -> impl Iterator<Item = NodePublic> + '_ {
        let is_one = |key: &NodePublic| {
            let live = self.peers.get(key).and_then(|peer| peer.live.as_ref());
            self.now.zip(live).is_some_and(|(now, live)| live.goes_one_way(now))
        };
        self.deadlines.iter().map(|(_, key)| *key).filter(move |key| is_one(key))
    }

    /// Whether something is going on with any peer, so that our own endpoints are worth keeping fresh.
    pub fn is_active(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// Direct paths that carry no packets of full size, of peers with which something is going on.
    pub fn narrow(&self) -> impl Iterator<Item = (&NodePublic, &SocketAddr)> {
        self.common.narrow.iter()
    }

    /// The path to a peer.
    pub fn path(&self, key: &NodePublic) -> PathView {
        let Some((peer, started)) = self.peers.get(key).zip(self.started) else { return PathView::default() };
        peer.path(started, self.now)
    }

    fn handle_now(&mut self, now: Instant) {
        self.started.get_or_insert(now);
        self.now = Some(now);
    }

    /// Does something with a peer, and whatever follows from it.
    fn with<R>(
        &mut self,
        key: &NodePublic,
        now: Instant,
        act: impl FnOnce(&mut PeerState, &mut Common) -> R,
    ) -> Option<R> {
        self.with_seen(key, None, now, act)
    }

    /// The same where the kernel's endpoint was just seen.
    fn with_seen<R>(
        &mut self,
        key: &NodePublic,
        kernel: Option<SocketAddr>,
        now: Instant,
        act: impl FnOnce(&mut PeerState, &mut Common) -> R,
    ) -> Option<R> {
        let peer = self.peers.get_mut(key)?;
        let (target, update, local, begins) = (peer.target(), peer.endpoint_update(), peer.local(), peer.begins());
        let deadline = peer.live.as_ref().and_then(|live| live.deadline);
        let result = act(peer, &mut self.common);
        peer.settle(target, kernel);
        if (peer.endpoint_update(), peer.local(), peer.begins()) != (update, local, begins) {
            self.common.tell(PathEvent::PathChanged { peer: *key });
        }
        match &mut peer.live {
            None => {
                deadline.map(|at| self.deadlines.remove(&(at, *key)));
            }
            Some(live) => {
                let deadline = live.next_timeout();
                if live.deadline != Some(deadline) {
                    live.deadline.replace(deadline).map(|at| self.deadlines.remove(&(at, *key)));
                    self.deadlines.insert((deadline, *key));
                }
                let regular = now + LOOK.saturating_mul(self.share()).min(LOOK_LONGEST);
                self.look_at.get_or_insert(regular);
            }
        }
        if let Some(wanted) = self.common.look_wanted.take() {
            let gap = LOOK_GAP.saturating_mul(self.share().div_ceil(10));
            let earliest = self.looked_at.map_or(wanted, |at| wanted.max(at + gap));
            self.look_at = Some(self.look_at.map_or(earliest, |at| at.min(earliest)));
        }
        Some(result)
    }
}

/// How a pong names the relay through which its ping came.
fn relay_source(region: RegionId) -> SocketAddr {
    SocketAddr::new(RELAY_ADDRESS, region.0)
}

#[cfg(test)]
mod tests;
