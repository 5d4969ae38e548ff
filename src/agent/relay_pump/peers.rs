//! Who is who: peers by their key, as relays name them, and by their loopback address, as WireGuard does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use warren_core::node::{Direct, PumpPeer};
use warren_core::types::{NodePublic, RegionId};

/// How often the loop hears that packets of a peer pass.
const TRAFFIC: Duration = Duration::from_secs(1);

/// All peers. None allocates for a packet.
#[derive(Default)]
pub(super) struct Peers {
    by_key: BTreeMap<NodePublic, Rc<RelayedPeer>>,
    by_loopback: BTreeMap<Ipv4Addr, Rc<RelayedPeer>>,
}

/// One peer.
pub(super) struct RelayedPeer {
    pub(super) key: NodePublic,
    /// None where another peer had the address first: this one is reached on direct paths only.
    loopback: Option<Ipv4Addr>,
    region: Cell<Option<RegionId>>,
    pub(super) direct: Cell<Option<Direct>>,
    /// The region by which a packet of it came last.
    heard: Cell<Option<RegionId>>,
    /// A region that said the peer is not there, until a packet of it comes from there again.
    gone: Cell<Option<RegionId>>,
    told: Cell<Option<Instant>>,
}

impl Peers {
    /// How a peer is reached from here on; not at all without an entry.
    pub(super) fn set(&mut self, key: NodePublic, entry: Option<PumpPeer>) {
        let Some(PumpPeer { loopback, region, direct }) = entry else {
            self.remove(&key);
            return;
        };
        if let Some(peer) = self.by_key.get(&key).filter(|peer| peer.loopback.is_none_or(|had| had == loopback)) {
            if peer.region.replace(region) != region {
                peer.gone.set(None);
            }
            peer.direct.set(direct);
            return;
        }
        self.remove(&key);
        let is_free = !self.by_loopback.contains_key(&loopback);
        let peer = Rc::new(RelayedPeer {
            key,
            loopback: is_free.then_some(loopback),
            region: Cell::new(region),
            direct: Cell::new(direct),
            heard: Cell::new(None),
            gone: Cell::new(None),
            told: Cell::new(None),
        });
        if is_free {
            self.by_loopback.insert(loopback, Rc::clone(&peer));
        }
        self.by_key.insert(key, peer);
    }

    fn remove(&mut self, key: &NodePublic) {
        if let Some(loopback) = self.by_key.remove(key).and_then(|peer| peer.loopback) {
            self.by_loopback.remove(&loopback);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Rc<RelayedPeer>> {
        self.by_key.get(key)
    }

    pub(super) fn by_loopback(&self, loopback: Ipv4Addr) -> Option<&Rc<RelayedPeer>> {
        self.by_loopback.get(&loopback)
    }
}

impl RelayedPeer {
    pub(super) fn loopback(&self) -> Option<Ipv4Addr> {
        self.loopback
    }

    /// A packet of it came by this region.
    pub(super) fn handle_heard(&self, region: RegionId) {
        self.heard.set(Some(region));
        if self.gone.get() == Some(region) {
            self.gone.set(None);
        }
    }

    /// This region's relay says that the peer is not there.
    pub(super) fn handle_gone(&self, region: RegionId) {
        self.gone.set(Some(region));
        if self.heard.get() == Some(region) {
            self.heard.set(None);
        }
    }

    /// By which region to send: its home, unless that does not work and one does by which it was heard.
    pub(super) fn route(&self, works: impl Fn(RegionId) -> bool) -> Option<RegionId> {
        let (home, heard) = (self.region.get(), self.heard.get());
        let good = |region: &RegionId| works(*region);
        let present = home.filter(|home| self.gone.get() != Some(*home));
        present.filter(good).or(heard.filter(good)).or(home).or(heard)
    }

    /// Whether the loop is due to hear that packets pass.
    pub(super) fn is_traffic_news(&self, now: Instant) -> bool {
        let is_due = self.told.get().is_none_or(|told| now >= told + TRAFFIC);
        if is_due {
            self.told.set(Some(now));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: RegionId = RegionId(1);
    const OTHER: RegionId = RegionId(2);

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    fn entry(last: u8, region: Option<RegionId>) -> Option<PumpPeer> {
        Some(PumpPeer { loopback: Ipv4Addr::new(127, 128, 0, last), region, direct: None })
    }

    fn peer(peers: &Peers, n: u8) -> Rc<RelayedPeer> {
        Rc::clone(peers.by_key(&key(n)).unwrap())
    }

    #[test]
    fn a_peer_is_sent_to_by_its_home_and_by_where_it_was_heard_if_that_fails() {
        let mut peers = Peers::default();
        peers.set(key(1), entry(1, Some(HOME)));
        let peer = peer(&peers, 1);
        assert_eq!(peer.route(|_| true), Some(HOME));
        assert_eq!(peer.route(|_| false), Some(HOME), "it is dialled");
        peer.handle_heard(OTHER);
        assert_eq!(peer.route(|_| true), Some(HOME));
        assert_eq!(peer.route(|region| region == OTHER), Some(OTHER));
        peer.handle_gone(HOME);
        assert_eq!(peer.route(|_| true), Some(OTHER));
        peer.handle_heard(HOME);
        assert_eq!(peer.route(|_| true), Some(HOME));
        peer.handle_heard(OTHER);
        peer.handle_gone(OTHER);
        assert_eq!(peer.route(|region| region == OTHER), Some(HOME), "it was not there either");
    }

    #[test]
    fn a_peer_without_a_home_is_answered_where_it_was_heard() {
        let mut peers = Peers::default();
        peers.set(key(1), entry(1, None));
        assert_eq!(peer(&peers, 1).route(|_| true), None);
        peer(&peers, 1).handle_heard(OTHER);
        assert_eq!(peer(&peers, 1).route(|_| false), Some(OTHER));
        peers.set(key(1), entry(1, Some(HOME)));
        assert_eq!(peer(&peers, 1).route(|region| region == OTHER), Some(OTHER), "what was heard outlives an update");
    }

    #[test]
    fn a_loopback_address_is_one_peers_only() {
        let mut peers = Peers::default();
        let address = Ipv4Addr::new(127, 128, 0, 1);
        peers.set(key(1), entry(1, None));
        peers.set(key(2), entry(1, None));
        assert_eq!(peers.by_loopback(address).unwrap().key, key(1));
        assert_eq!(peer(&peers, 2).loopback(), None);
        peers.set(key(2), None);
        assert!(peers.by_loopback(address).is_some());
        peers.set(key(1), entry(3, None));
        assert!(peers.by_loopback(address).is_none());
        peers.set(key(1), None);
        assert!(peers.by_loopback.is_empty() && peers.by_key.is_empty());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn traffic_is_news_once_a_second() {
        let mut peers = Peers::default();
        peers.set(key(1), entry(1, None));
        let (peer, now) = (peer(&peers, 1), Instant::now());
        let news = [0, 1, 999, 1000, 1001].map(|ms| peer.is_traffic_news(now + Duration::from_millis(ms)));
        assert_eq!(news, [true, false, false, true, false]);
    }
}
