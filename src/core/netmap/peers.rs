//! The peers that can be talked to, kept in step with the map as told.
//!
//! Two things can be had by one peer only: a key and a prefix. For each there is an ordered list of
//! claims, and the first claim wins. A change looks again at the nodes that it touches and at those that
//! share a claim with them, so it costs the same however large the map is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{ClaimRank, Claims, SelfNode, is_overlay_host};
use super::rejection::{Reason, Rejection, is_past};
use crate::types::{IpNet, Limit, LimitError, NodeId, NodePublic, Timestamp};
use crate::wire::control::Node;

/// Peers that we program: the 10,000 that we are built for, with room. Those with the lowest numbers stay.
const PEERS: Limit = Limit::new("peers in the map", 16_384);

/// A peer that can be talked to.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Everything that was told of it.
    pub node: Arc<Node>,
    /// Its addresses: single ones of the overlay, no one else's.
    pub addresses: Vec<IpNet>,
    /// The subnets behind it that it carries, no one else's.
    pub routes: Vec<IpNet>,
    /// The default routes it offers as an exit node; any number of peers may.
    pub default_routes: Vec<IpNet>,
}

impl Peer {
    /// Its WireGuard key.
    pub fn key(&self) -> NodePublic {
        self.node.key
    }

    /// Whether the packet filter's rights count for it. Jailed and unsigned peers only ever answer.
    pub fn may_open(&self) -> bool {
        !self.node.is_jailed && !self.node.unsigned_peer_api_only
    }

    /// Whether it speaks nothing but WireGuard, and with us alone: we pass on what comes and goes.
    pub fn is_device(&self) -> bool {
        self.node.is_wireguard_only
    }

    /// The addresses of devices that it passes packets on for: they have no place of their own in the map.
    pub fn devices(&self) -> impl Iterator<Item = &IpNet> {
        self.routes.iter().filter(|route| is_overlay_host(route))
    }

    /// Says that one of its prefixes is left out.
    pub fn rejection(&self, what: &str, prefix: IpNet, reason: Reason) -> Rejection {
        Rejection::prefix(what, prefix, &self.node, reason)
    }

    /// Whether this is an address of the peer itself, and not of what is behind it.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr() == address)
    }

    /// Whether it holds a capability that the packet filter names.
    pub fn has_capability(&self, name: &str) -> bool {
        !self.node.unsigned_peer_api_only && self.node.cap_map.contains_key(name)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<NodeId, Arc<Peer>>,
    rejections: BTreeMap<NodeId, Vec<Rejection>>,
    /// Each usable node with all that it claims, won or lost.
    candidates: BTreeMap<NodeId, Claims>,
    keys: BTreeSet<(NodePublic, NodeId)>,
    /// The prefixes claimed by nodes that have their key.
    prefixes: BTreeSet<(IpNet, ClaimRank, NodeId)>,
    /// When the keys of peers run out, the first one first.
    expiries: BTreeSet<(Timestamp, NodeId)>,
    /// Nodes that are left out because their keys have run out, and when that was.
    run_out: BTreeMap<NodeId, Timestamp>,
    /// Nodes from this number on are past the limit.
    cutoff: Option<NodeId>,
}

type Nodes = BTreeMap<NodeId, Arc<Node>>;

impl Peers {
    /// Judges a whole map.
    pub(super) fn judged(told: &Nodes, ours: &SelfNode, now: Timestamp) -> Self {
        let mut peers = Self { cutoff: cutoff(told), ..Self::default() };
        for (id, node) in told {
            let candidate = peers.judge(node, ours, now);
            peers.note_time(*id, Some(node), now);
            peers.replace_candidate(*id, Some(candidate));
        }
        let have_key = |(id, candidate): &(&NodeId, &Claims)| peers.has_key(**id, candidate);
        let winners = peers.candidates.iter().filter(have_key);
        let claims =
            winners.flat_map(|(id, candidate)| candidate.claims.iter().map(|(prefix, rank)| (*prefix, *rank, *id)));
        peers.prefixes = claims.collect();
        for id in told.keys() {
            peers.settle(*id, told);
        }
        peers
    }

    /// Judges what changed.
    pub(super) fn update(&mut self, touched: &BTreeSet<NodeId>, told: &Nodes, ours: &SelfNode, now: Timestamp) {
        if cutoff(told) == self.cutoff {
            self.look_again(touched, told, ours, now);
        } else {
            *self = Self::judged(told, ours, now);
        }
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Peer>> {
        self.peers.values()
    }

    pub(super) fn map(&self) -> &BTreeMap<NodeId, Arc<Peer>> {
        &self.peers
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Arc<Peer>> {
        self.peers.get(&id)
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        self.peers.get(&self.key_claimants(*key).next()?)
    }

    pub(super) fn owner(&self, prefix: &IpNet) -> Option<&Arc<Peer>> {
        self.peers.get(&self.prefix_claimants(*prefix).next()?)
    }

    /// The peers whose keys have run out by `now`, and the nodes that were taken for such by a clock that was ahead.
    pub(super) fn misjudged(&self, now: Timestamp) -> BTreeSet<NodeId> {
        let expired = self.expiries.iter().take_while(|(at, _)| is_past(Some(*at), now)).map(|(_, id)| *id);
        expired.chain(self.run_out.iter().filter(|(_, at)| **at > now).map(|(id, _)| *id)).collect()
    }

    /// When the next key runs out.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.expiries.first().map(|(at, _)| *at)
    }

    pub(super) fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.rejections.values().flatten()
    }

    /// Keys first, then prefixes: a node without its key claims no prefix.
    fn look_again(&mut self, touched: &BTreeSet<NodeId>, told: &Nodes, ours: &SelfNode, now: Timestamp) {
        let mut judged = BTreeMap::new();
        let mut ids = touched.clone();
        for id in touched {
            let candidate = told.get(id).map(|node| self.judge(node, ours, now));
            let keys = [self.candidates.get(id), candidate.as_ref().and_then(|judged| judged.as_ref().ok())];
            for key in keys.into_iter().flatten().map(|candidate| candidate.key) {
                ids.extend(self.key_claimants(key));
            }
            self.note_time(*id, told.get(id), now);
            judged.insert(*id, candidate);
        }
        let mut disputed = BTreeSet::new();
        for id in &ids {
            self.withdraw_prefixes(*id, &mut disputed);
        }
        for (id, candidate) in judged {
            self.replace_candidate(id, candidate);
        }
        for id in &ids {
            self.claim_prefixes(*id, &mut disputed);
        }
        for prefix in disputed {
            ids.extend(self.prefix_claimants(prefix));
        }
        for id in ids {
            self.settle(id, told);
        }
    }

    fn note_time(&mut self, id: NodeId, node: Option<&Arc<Node>>, now: Timestamp) {
        match node.filter(|node| !node.expired).and_then(|node| node.key_expiry).filter(|at| *at <= now) {
            Some(at) => drop(self.run_out.insert(id, at)),
            None => drop(self.run_out.remove(&id)),
        }
    }

    fn judge(&self, node: &Node, ours: &SelfNode, now: Timestamp) -> Result<Claims, Option<Rejection>> {
        if self.cutoff.is_some_and(|cutoff| node.id >= cutoff) {
            let error = LimitError { limit: PEERS, found: PEERS.most + 1 };
            return Err(Some(Rejection::peer(node, Reason::TooMany(error))));
        }
        ours.judge(node, now)
    }

    fn replace_candidate(&mut self, id: NodeId, judged: Option<Result<Claims, Option<Rejection>>>) {
        if let Some(before) = self.candidates.remove(&id) {
            self.keys.remove(&(before.key, id));
        }
        self.rejections.remove(&id);
        match judged {
            Some(Ok(candidate)) => {
                self.keys.insert((candidate.key, id));
                self.candidates.insert(id, candidate);
            }
            Some(Err(Some(rejection))) => drop(self.rejections.insert(id, vec![rejection])),
            Some(Err(None)) | None => {}
        }
    }

    fn withdraw_prefixes(&mut self, id: NodeId, disputed: &mut BTreeSet<IpNet>) {
        for (prefix, rank) in self.candidates.get(&id).into_iter().flat_map(|candidate| &candidate.claims) {
            if self.prefixes.remove(&(*prefix, *rank, id)) {
                disputed.insert(*prefix);
            }
        }
    }

    fn claim_prefixes(&mut self, id: NodeId, disputed: &mut BTreeSet<IpNet>) {
        let Some(candidate) = self.candidates.get(&id) else { return };
        if self.has_key(id, candidate) {
            for (prefix, rank) in &candidate.claims {
                self.prefixes.insert((*prefix, *rank, id));
                disputed.insert(*prefix);
            }
        }
    }

    /// Gives a node what it won, and says of the rest who has it.
    fn settle(&mut self, id: NodeId, told: &Nodes) {
        if let Some(before) = self.peers.remove(&id)
            && let Some(at) = before.node.key_expiry
        {
            self.expiries.remove(&(at, id));
        }
        let (Some(candidate), Some(node)) = (self.candidates.get(&id), told.get(&id)) else { return };
        let mut rejections = candidate.rejections.clone();
        let mut peer = Peer {
            node: Arc::clone(node),
            addresses: Vec::new(),
            routes: Vec::new(),
            default_routes: candidate.default_routes.clone(),
        };
        let has_key = match self.key_claimants(candidate.key).next() {
            Some(winner) if winner != id => {
                rejections.push(Rejection::peer(node, Reason::KeyTaken(winner)));
                false
            }
            _ => true,
        };
        for (prefix, _) in candidate.claims.iter().filter(|_| has_key) {
            match self.prefix_claimants(*prefix).next() {
                Some(winner) if winner != id => {
                    rejections.push(Rejection::prefix("route", *prefix, node, Reason::PrefixTaken(winner)));
                }
                _ if is_overlay_host(prefix) => peer.addresses.push(*prefix),
                _ => peer.routes.push(*prefix),
            }
        }
        if !(peer.addresses.is_empty() && peer.routes.is_empty()) {
            self.expiries.extend(node.key_expiry.map(|at| (at, id)));
            self.peers.insert(id, Arc::new(peer));
        }
        if rejections.is_empty() {
            self.rejections.remove(&id);
        } else {
            self.rejections.insert(id, rejections);
        }
    }

    fn has_key(&self, id: NodeId, candidate: &Claims) -> bool {
        self.key_claimants(candidate.key).next() == Some(id)
    }

    /// Who claims a key, the one that has it first.
    fn key_claimants(&self, key: NodePublic) -> impl Iterator<Item = NodeId> {
        self.keys.range((key, NodeId(0))..=(key, NodeId(u64::MAX))).map(|(_, id)| *id)
    }

    /// Who claims a prefix, the one that has it first.
    fn prefix_claimants(&self, prefix: IpNet) -> impl Iterator<Item = NodeId> {
        let (first, last) = ((prefix, ClaimRank::Address, NodeId(0)), (prefix, ClaimRank::Router, NodeId(u64::MAX)));
        self.prefixes.range(first..=last).map(|(_, _, id)| *id)
    }
}

/// The number of the first node past the limit.
fn cutoff(told: &Nodes) -> Option<NodeId> {
    PEERS.check(told.len()).is_err().then(|| told.keys().nth(PEERS.most).copied()).flatten()
}
