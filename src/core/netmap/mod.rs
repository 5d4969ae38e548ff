//! What the coordinator told us, made safe: the map, deltas, the packet filter in domain terms.
//!
//! A [`Netmap`] keeps two things apart: the map *as told*, merged message by message and never judged, and
//! what we *make of it*: peers that can be talked to, each with prefixes that are its alone. The second
//! is a function of the first, so a map with deltas applied gives exactly what the full map would have
//! given. One bad entry never stops the rest: it is left out, and [`Netmap::rejections`] says why.
//!
//! The coordinator is trusted for the map, not for this host: every list has a limit, and nothing in a map
//! may touch loopback, link-local or multicast addresses, our own address, or another peer's.
//!
//! Invariants of the peers, for whoever plans with them: no two have the same key or the same prefix; each
//! address is a single one of the overlay; none is ours; no route covers part of the overlay but for the
//! range made for that.

mod claims;
mod filter;
mod merged;
mod peers;
mod rejection;

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::types::{IpNet, NodeId, NodePublic, Timestamp, UserId};
use crate::wire::control::{DerpMap, DnsConfig, MapResponse, Node, UserProfile};

pub use claims::overlap;
pub use filter::{AddressRange, Destination, FilterRule, PacketFilter};
pub use peers::Peer;
pub use rejection::{Reason, Rejection};

use claims::SelfNode;
use merged::{MergedMap, Touched};
use peers::Peers;

/// The map: what was told, and what we make of it. The default is the map of a node that was told nothing.
#[derive(Clone, Debug, Default)]
pub struct Netmap {
    merged: MergedMap,
    ours: SelfNode,
    peers: Peers,
    filter: Arc<PacketFilter>,
    filter_rejections: Vec<Rejection>,
}

impl Netmap {
    /// Merges one message of the stream.
    pub fn apply(&mut self, message: MapResponse, now: Timestamp) {
        let touched = self.merged.apply(message, now);
        self.judge(&touched, now);
    }

    /// Takes the first message of a new stream, which tells everything from scratch.
    ///
    /// A node that is alone gets no list of peers at all, so this is not the same as [`Netmap::apply`]. A coordinator that
    /// began anew may not have heard from a peer yet: where nothing is said of how it is reached, what was said before
    /// stays, since paths stand on it.
    pub fn replace(&mut self, mut message: MapResponse, now: Timestamp) {
        for node in &mut message.peers.entries {
            self.merged.keep_whereabouts(node);
        }
        let mut merged = MergedMap::default();
        merged.apply(message, now);
        *self = Self::from_merged(merged, now);
    }

    /// Drops the peers whose keys ran out by `now`, and takes those back of which that is not so: the clock by which they
    /// were judged was ahead. Says whether there were any.
    pub fn expire(&mut self, now: Timestamp) -> bool {
        let peers = self.peers.misjudged(now);
        self.peers.update(&peers, &self.merged.peers, &self.ours, now);
        !peers.is_empty()
    }

    /// When [`Netmap::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.peers.next_expiry()
    }

    /// Ourselves, as the coordinator describes us.
    pub fn node(&self) -> Option<&Node> {
        self.merged.node.as_deref()
    }

    /// Our own addresses, each a host prefix of the overlay.
    pub fn addresses(&self) -> &BTreeSet<IpNet> {
        &self.ours.addresses
    }

    /// The routes that the coordinator approves this node for, whether peers use it for them at this moment or not.
    /// A router that stands by is told so by some coordinators only; by others it serves once it is the one.
    pub fn approved_routes(&self) -> BTreeSet<IpNet> {
        let node = self.node().into_iter();
        let routes = node.flat_map(|node| node.allowed_ips.iter().flatten().chain(&node.primary_routes));
        routes.map(IpNet::trunc).filter(|route| !self.addresses().contains(route)).collect()
    }

    /// The peers that can be talked to, by number.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Arc<Peer>> {
        self.peers.iter()
    }

    /// The same, as a map.
    pub fn peer_map(&self) -> &BTreeMap<NodeId, Arc<Peer>> {
        self.peers.map()
    }

    /// A peer that can be talked to.
    pub fn peer(&self, id: NodeId) -> Option<&Arc<Peer>> {
        self.peers.get(id)
    }

    /// The peer with this node key, if it can be talked to.
    pub fn peer_by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        self.peers.by_key(key)
    }

    /// Which peer has exactly this prefix.
    pub fn owner(&self, prefix: &IpNet) -> Option<&Arc<Peer>> {
        self.peers.owner(prefix)
    }

    /// Every peer as told, the expired and the unusable too: for people to look at.
    pub fn told_peers(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.merged.peers.values()
    }

    /// A user's names.
    pub fn user(&self, id: UserId) -> Option<&UserProfile> {
        self.merged.users.get(&id)
    }

    /// All users that were told of.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &UserProfile> {
        self.merged.users.values()
    }

    /// Who may open what here.
    pub fn filter(&self) -> &Arc<PacketFilter> {
        &self.filter
    }

    /// What to do with names.
    pub fn dns(&self) -> &DnsConfig {
        &self.merged.dns
    }

    /// Where the relays are.
    pub fn derp(&self) -> &DerpMap {
        &self.merged.derp
    }

    /// The network's name.
    pub fn domain(&self) -> &str {
        &self.merged.domain
    }

    /// What the coordinator finds wrong with us.
    pub fn health(&self) -> &[String] {
        &self.merged.health
    }

    /// Everything that was left out, and why.
    pub fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        let of_peers = self.merged.overfull.values().chain(self.merged.refused.values()).chain(self.peers.rejections());
        self.ours.rejections.iter().chain(of_peers).chain(&self.filter_rejections)
    }

    /// The map for the disk: the one message that tells all of it. Give it to [`Netmap::replace`] to have the
    /// map back, judged anew.
    pub fn to_message(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.merged)
    }

    fn from_merged(merged: MergedMap, now: Timestamp) -> Self {
        let mut map = Self { merged, ..Self::default() };
        let peers = map.merged.peers.keys().copied().collect();
        map.judge(&Touched { node: true, filter: true, peers }, now);
        map
    }

    /// Brings what we make of the map up to date with what was told.
    fn judge(&mut self, touched: &Touched, now: Timestamp) {
        if touched.filter {
            let (filter, rejections) = PacketFilter::read(&self.merged.filters);
            self.filter_rejections = rejections;
            if filter != *self.filter {
                self.filter = Arc::new(filter);
            }
        }
        let ours = match (&self.merged.node, touched.node) {
            (Some(node), true) => SelfNode::read(node),
            _ => self.ours.clone(),
        };
        if ours == self.ours {
            self.peers.update(&touched.peers, &self.merged.peers, &self.ours, now);
        } else {
            self.ours = ours;
            self.peers = Peers::judged(&self.merged.peers, &self.ours, now);
        }
    }
}
