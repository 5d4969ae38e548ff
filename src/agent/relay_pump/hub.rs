//! What the pump knows, shared by its tasks: all of them run on its one thread, so nothing here is locked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::ToPump;
use super::link::Link;
use super::outbox::Outbox;
use super::packet::{PacketKind, kind};
use super::peers::{Peers, RelayedPeer};
use crate::clock;
use crate::derp_io::Dialler;
use warren_core::derp::Client;
use warren_core::node::{PumpCommand, PumpCounters, PumpNews};
use warren_core::types::{NodePrivate, NodePublic, RegionId};
use warren_core::wire::control::{DerpMap, DerpRegion};
use warren_linux::packet::{Injector, Loopback};
use warren_shell::vital;

/// The pump's state.
pub(super) struct Hub {
    pub(super) dialler: Dialler,
    pub(super) loopback: Loopback,
    injector: RefCell<Injector>,
    outbox: RefCell<Outbox>,
    news: mpsc::Sender<PumpNews>,
    map: RefCell<Arc<DerpMap>>,
    home: Cell<Option<RegionId>>,
    key: RefCell<Option<NodePrivate>>,
    peers: RefCell<Peers>,
    links: RefCell<BTreeMap<RegionId, Rc<Link>>>,
    counters: RefCell<PumpCounters>,
}

impl Hub {
    pub(super) fn new(
        dialler: Dialler,
        loopback: Loopback,
        injector: Injector,
        news: mpsc::Sender<PumpNews>,
    ) -> Rc<Self> {
        Rc::new(Self {
            dialler,
            loopback,
            injector: RefCell::new(injector),
            outbox: RefCell::new(Outbox::new()),
            news,
            map: RefCell::default(),
            home: Cell::new(None),
            key: RefCell::new(None),
            peers: RefCell::default(),
            links: RefCell::default(),
            counters: RefCell::default(),
        })
    }

    pub(super) fn handle(self: &Rc<Self>, asked: ToPump) {
        match asked {
            ToPump::Command(command) => self.handle_command(command),
            // Whoever asked may have gone.
            ToPump::Counters(answer) => drop(answer.send(self.counters())),
        }
    }

    /// Whether it knows peers, and relays to reach them by.
    pub(super) fn is_told(&self) -> bool {
        self.key.borrow().is_some() && !self.map.borrow().regions.is_empty() && !self.peers.borrow().is_empty()
    }

    fn handle_command(self: &Rc<Self>, command: PumpCommand) {
        let now = clock::now().tick;
        match command {
            PumpCommand::Regions(map) => self.set_map(map),
            PumpCommand::Home(home) => self.set_home(home, now),
            PumpCommand::Peer { key, entry } => self.peers.borrow_mut().set(key, entry),
            PumpCommand::Disco { region, peer, payload } => {
                self.send(Some(region), &peer, &payload, now);
                self.wake_links();
            }
            PumpCommand::Key(key) => {
                if self.key.replace(key.clone()) != key {
                    self.each_link(Link::redial);
                }
            }
            PumpCommand::Rebind => {
                self.injector.borrow_mut().handle_network_changed();
                self.each_link(|link| link.handle_network_changed(now));
            }
        }
        // A home that could not be connected for want of a map or key can be by now.
        if let Some(home) = self.home.get() {
            self.link(home, now);
        }
    }

    /// A packet that WireGuard sent to a peer's loopback address. Nothing leaves before [`Hub::wake_links`].
    pub(super) fn forward(self: &Rc<Self>, to: Ipv4Addr, packet: &[u8], now: Instant) {
        let kind = kind(packet);
        let peer = self.peers.borrow().by_loopback(to).cloned();
        let Some(peer) = peer else {
            self.count(|counters| counters.dropped_unknown_peer += 1);
            return;
        };
        if !matches!(kind, PacketKind::Initiation | PacketKind::Wireguard) {
            self.count(|counters| counters.dropped_malformed += 1);
            return;
        }
        let region = peer.route(|region| self.links.borrow().get(&region).is_some_and(|link| link.is_ready()));
        self.send(region, &peer.key, packet, now);
        if kind == PacketKind::Initiation {
            self.tell(PumpNews::Initiation { peer: peer.key, packet: packet.to_vec() });
        }
        self.tell_traffic(&peer, now);
    }

    /// Sets going what was queued.
    pub(super) fn wake_links(&self) {
        self.each_link(Link::wake);
    }

    /// A packet that a relay brought. Nothing is handed in before [`Hub::flush`].
    pub(super) fn receive(&self, region: RegionId, from: &NodePublic, packet: &[u8], now: Instant) {
        let peer = self.peers.borrow().by_key(from).cloned();
        let Some(peer) = peer else {
            self.count(|counters| counters.dropped_unknown_peer += 1);
            return;
        };
        match kind(packet) {
            PacketKind::Disco => {
                peer.handle_heard(region);
                self.tell(PumpNews::Disco { region, from: *from, payload: packet.to_vec() });
            }
            PacketKind::Initiation | PacketKind::Wireguard => {
                peer.handle_heard(region);
                self.hand_in(&peer, packet);
                self.tell_traffic(&peer, now);
            }
            PacketKind::Other => self.count(|counters| counters.dropped_malformed += 1),
        }
    }

    /// Hands in what was gathered.
    pub(super) fn flush(&self) {
        let (count, outcome) = self.outbox.borrow_mut().flush(&self.loopback);
        if let Err(error) = outcome {
            tracing::debug!(%error, count, "WireGuard was not given packets of a relay");
            self.count(|counters| counters.dropped_not_injected += count as u64);
        }
    }

    /// A relay says that it cannot reach a peer.
    pub(super) fn handle_gone(&self, region: RegionId, peer: &NodePublic) {
        if let Some(peer) = self.peers.borrow().by_key(peer) {
            peer.handle_gone(region);
        }
    }

    /// Tells the loop, if it has time.
    pub(super) fn tell(&self, news: PumpNews) {
        if self.news.try_send(news).is_err() {
            self.count(|counters| counters.dropped_loop_busy += 1);
        }
    }

    pub(super) fn key(&self) -> Option<NodePrivate> {
        self.key.borrow().clone()
    }

    pub(super) fn is_home(&self, region: RegionId) -> bool {
        self.home.get() == Some(region)
    }

    pub(super) fn region(&self, region: RegionId) -> Option<DerpRegion> {
        self.map.borrow().regions.get(&region)?.clone()
    }

    /// A connection is over: what it lost counts on, and so does what waited in it.
    pub(super) fn retire(&self, client: &Client) {
        self.count(|counters| {
            add_drops(counters, client);
            counters.dropped_no_relay += client.waiting() as u64;
        });
    }

    /// A link's task ended.
    pub(super) fn remove_link(&self, region: RegionId, link: &Rc<Link>) {
        let mut links = self.links.borrow_mut();
        if links.get(&region).is_some_and(|current| Rc::ptr_eq(current, link)) {
            links.remove(&region);
        }
    }

    fn set_map(&self, map: Arc<DerpMap>) {
        *self.map.borrow_mut() = map;
        self.each_link(|link| match self.region(link.region()) {
            Some(region) => link.handle_region(&region),
            None => link.redial(),
        });
    }

    fn set_home(&self, home: Option<RegionId>, now: Instant) {
        let before = self.home.replace(home);
        if before != home {
            self.each_link(|link| {
                if [before, home].contains(&Some(link.region())) {
                    link.set_home(home == Some(link.region()), now);
                }
            });
        }
    }

    /// The link to a region, begun where there is none. None where it cannot be.
    fn link(self: &Rc<Self>, region: RegionId, now: Instant) -> Option<Rc<Link>> {
        if let Some(link) = self.links.borrow().get(&region) {
            return Some(Rc::clone(link));
        }
        if self.key.borrow().is_none() || self.map.borrow().regions.get(&region)?.is_none() {
            return None;
        }
        let link = Rc::new(Link::new(region, now));
        link.prepare(self);
        self.links.borrow_mut().insert(region, Rc::clone(&link));
        tokio::task::spawn_local(vital("link to a relay", Rc::clone(&link).run(Rc::clone(self))));
        Some(link)
    }

    fn send(self: &Rc<Self>, region: Option<RegionId>, to: &NodePublic, packet: &[u8], now: Instant) {
        let link = region.and_then(|region| self.link(region, now));
        let is_queued = link.is_some_and(|link| link.send(to, packet, now));
        self.count(|counters| {
            if is_queued {
                counters.sent += 1;
                counters.sent_bytes += packet.len() as u64;
            } else {
                counters.dropped_no_relay += 1;
            }
        });
    }

    fn hand_in(&self, peer: &RelayedPeer, packet: &[u8]) {
        let outcome = match (peer.direct.get(), peer.loopback()) {
            (Some(direct), _) => {
                self.flush();
                let mut injector = self.injector.borrow_mut();
                injector.inject(direct.endpoint, direct.local, packet).map(|()| 1)
            }
            (None, Some(loopback)) => {
                if !self.outbox.borrow().takes(loopback, packet.len(), |size| self.loopback.most(size)) {
                    self.flush();
                }
                self.outbox.borrow_mut().push(loopback, packet);
                Ok(0)
            }
            (None, None) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
        };
        self.count(|counters| match outcome {
            Ok(forged) => {
                counters.received += 1;
                counters.received_bytes += packet.len() as u64;
                counters.received_forged += forged;
            }
            Err(_) => counters.dropped_not_injected += 1,
        });
    }

    fn tell_traffic(&self, peer: &RelayedPeer, now: Instant) {
        if peer.is_traffic_news(now) {
            self.tell(PumpNews::Traffic { peer: peer.key });
        }
    }

    fn counters(&self) -> PumpCounters {
        let mut counters = *self.counters.borrow();
        self.each_link(|link| link.with_client(|client| add_drops(&mut counters, client)));
        counters.dropped_socket_full = self.loopback.dropped();
        counters
    }

    fn count(&self, change: impl FnOnce(&mut PumpCounters)) {
        change(&mut self.counters.borrow_mut());
    }

    fn each_link(&self, mut visit: impl FnMut(&Link)) {
        self.links.borrow().values().for_each(|link| visit(link));
    }
}

fn add_drops(counters: &mut PumpCounters, client: &Client) {
    let drops = client.drops();
    counters.dropped_queue_full += drops.queue_full;
    counters.dropped_rate += drops.rate;
    counters.dropped_malformed += drops.too_long;
}
