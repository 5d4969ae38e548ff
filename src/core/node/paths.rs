//! The ways to the peers: what the book and the relay pump are told, and what comes of what they say.
//!
//! The pump is told of a new path before the reconciler is: from then on what it injects draws the kernel over, so that
//! no packet of the old path can move the endpoint back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::{Awaited, Counters};
use super::pump::{Direct, PumpCommand, PumpCounters, PumpNews, PumpPeer, RegionState};
use super::{Answer, CallId, Datagram, Effect, Engine, Now};
use crate::netmap::Peer;
use crate::path::{EndpointUpdate, PathEvent, PathView, PeerInfo, Ranking, Selected, Target, Via};
use crate::plan::{Path, Paths, own};
use crate::types::text::clean;
use crate::types::{DiscoPublic, IpNet, NodePrivate, NodePublic, RegionId};
use crate::wire::control::{DerpMap, Node};
use crate::wire::disco;

/// Seconds between the keep-alives that begin a handshake: the first is sent as this is set, and none follows before it
/// is taken back.
const BEGIN: u16 = 25;
/// How long a relay's complaint has to last: longer than it takes to notice that a connection has gone.
const LASTING: Duration = Duration::from_secs(60);
/// How long the pump's counters are waited for: as long as it takes to be sure that they are lost.
const COUNT: Duration = Duration::from_secs(1);
/// Bytes of it that are kept.
const COMPLAINT: usize = 200;

/// What the pump was told, so that it is told only what changes, and what it says of the relays.
#[derive(Debug, Default)]
pub(super) struct Relays {
    told: BTreeMap<NodePublic, PumpPeer>,
    map: Arc<DerpMap>,
    key: Option<NodePublic>,
    home: Option<RegionId>,
    /// The last word on each region that is or was wanted.
    pub(super) regions: BTreeMap<RegionId, RegionState>,
    /// What a relay finds wrong with us, and since when.
    complaints: BTreeMap<RegionId, (Instant, String)>,
}

impl Engine {
    /// A datagram came that the firewall diverted from WireGuard's port.
    pub fn handle_datagram(&mut self, datagram: Datagram, now: Now) {
        let Datagram { from, local, payload } = datagram;
        if payload.starts_with(&disco::MAGIC) {
            self.book.handle_datagram(Via::Udp { from, local }, &payload, now.tick);
        } else {
            self.netcheck.handle_stun(from, &payload, now.tick);
        }
    }

    /// The relay pump has something to say.
    pub fn handle_pump(&mut self, news: PumpNews, now: Now) {
        match news {
            PumpNews::Disco { region, from, payload } => {
                self.netcheck.handle_relay_alive(region, now.tick);
                self.book.handle_datagram(Via::Relay { region, from }, &payload, now.tick);
            }
            PumpNews::Traffic { peer } => self.book.handle_relayed(&peer, now.tick),
            PumpNews::Initiation { peer, packet } => self.book.handle_initiation(&peer, packet, now.tick),
            PumpNews::Region { region, state } => {
                match &state {
                    RegionState::Connected => self.netcheck.handle_relay_alive(region, now.tick),
                    RegionState::Failed(_) => self.netcheck.handle_relay_failed(region, now.tick),
                    RegionState::Trying | RegionState::Closed => {}
                }
                // What failed is told until it works: each new attempt would take the fault away for a moment.
                let before = self.relays.regions.get(&region);
                if state != RegionState::Connected {
                    // It was said of a connection that is no more.
                    self.relays.complaints.remove(&region);
                }
                if state != RegionState::Trying || !matches!(before, Some(RegionState::Failed(_))) {
                    self.relays.regions.insert(region, state);
                }
            }
            PumpNews::Health { region, text } if text.is_empty() => {
                self.relays.complaints.remove(&region);
            }
            PumpNews::Health { region, text } => {
                let text = clean(&text, COMPLAINT).into_owned();
                self.relays.complaints.entry(region).or_insert((now.tick, text));
            }
        }
    }

    /// What relays find wrong with us for so long that it is not about a connection of ours which they have yet to see end.
    pub(super) fn complaints(&self, now: Now) -> impl Iterator<Item = (String, String)> {
        let lasting = self.relays.complaints.iter().filter(move |(_, (since, _))| *since + LASTING <= now.tick);
        lasting.map(|(region, (_, text))| {
            let code = self.region_code(*region);
            let text = format!(
                "relay {code} says: {text}. Where this machine's disk was copied into another one, the two take each \
                 other's packets: give one of them keys of its own (`warren logout`, then `warren up`)"
            );
            (code, text)
        })
    }

    /// When a complaint has lasted long enough to be told.
    pub(super) fn complaints_timeout(&self, now: Now) -> Option<Instant> {
        self.relays.complaints.values().map(|(since, _)| *since + LASTING).filter(|at| *at > now.tick).min()
    }

    /// Tells book, pump and the look at the network who there is, where that has changed.
    pub(super) fn renew_peers(&mut self, now: Now) {
        let is_open = self.open_for_traffic(now);
        self.login.was_open = is_open;
        self.netcheck.handle_switched(self.may_look_at_network(now), now.tick);
        let inputs = self.inputs_of_peers();
        let networks = self.surroundings.networks.as_ref().filter(|_| self.made.peers.renew(inputs));
        let Some((live, link_kinds)) = networks.map(|networks| (networks.live.clone(), networks.link_kinds.clone()))
        else {
            return;
        };
        self.book.handle_own_key(self.identity.node_key.as_ref().map(NodePrivate::public).unwrap_or_default());
        self.netcheck.handle_derp_map(self.netmap.derp(), now.tick);
        self.tell_pump_of_relays();
        let advertised = self.netmap.peers().flat_map(|peer| peer.routes.iter().copied());
        let advertised: Vec<IpNet> = advertised.chain(self.prefs.advertise_routes.iter().copied()).collect();
        self.netcheck.handle_advertised(advertised.clone());
        let ranking = Ranking::new(live.into_iter().collect(), advertised).with_link_kinds(link_kinds);
        let mut loopbacks = Loopbacks::new(self.settings.relay_port);
        let peers: Vec<PeerInfo<'_>> =
            self.netmap.peers().filter(|_| is_open).map(|peer| info(peer, loopbacks.of(peer))).collect();
        self.book.handle_peers(peers.iter().copied(), ranking, now.tick);
        let relayed: BTreeMap<NodePublic, PumpPeer> =
            peers.iter().filter_map(|info| Some((info.key, relay(info)?))).collect();
        drop(peers);
        self.tell_pump_of_all(relayed);
        self.path_changes.edit();
    }

    /// Takes in what the book decided.
    pub(super) fn handle_book_events(&mut self, now: Now) {
        while let Some(event) = self.book.poll_event() {
            match event {
                PathEvent::PathChanged { peer } => {
                    tracing::debug!("path to {peer}: {:?}", self.book.path(&peer).selected);
                    self.tell_pump(&peer);
                    self.watchers.note_moved(peer, now.tick);
                    self.path_changes.edit();
                }
                PathEvent::PingDone { id, answer, .. } => self.handle_pong(id, answer),
                PathEvent::NeedsLook => self.reconciler.handle_changed(now.tick),
                PathEvent::NeedsFreshEndpoints => self.netcheck.handle_wanted(now.tick),
            }
        }
        self.netcheck.handle_active(self.book.is_active(), now.tick);
    }

    /// Sends what the book wants sent.
    pub(super) fn send_probes(&mut self) {
        while let Some(transmit) = self.book.poll_transmit() {
            self.effects.push_back(match transmit.to {
                Target::Udp { to, from } => Effect::Datagram { to, from, payload: transmit.payload },
                Target::Relay { region, peer } => {
                    Effect::Pump(PumpCommand::Disco { region, peer, payload: transmit.payload })
                }
            });
        }
    }

    /// What the kernel's endpoints should be.
    pub(super) fn paths(&self) -> Paths {
        let path = |key: &NodePublic, update| {
            let (endpoint, moves) = match update {
                EndpointUpdate::Leave => return None,
                EndpointUpdate::Initial(endpoint) => (endpoint, false),
                EndpointUpdate::Move(endpoint) => (endpoint, true),
            };
            let keepalive = if self.book.begins(key) { BEGIN } else { 0 };
            Some(Path { endpoint, moves, keepalive })
        };
        Paths {
            chosen: self.book.endpoint_updates().filter_map(|(key, update)| Some((key, path(&key, update)?))).collect(),
        }
    }

    /// Asks the pump what passed and was lost; where there is no pump, nothing was.
    pub(super) fn ask_counters(&mut self, id: CallId, of: Counters, now: Now) {
        if self.settings.relay_port.is_none() {
            return self.reply(id, self.counters_answer(of, &PumpCounters::default()));
        }
        if !self.calls.any(|awaited| matches!(awaited, Awaited::Counters(_))) {
            self.effects.push_back(Effect::Counters);
        }
        self.calls.wait(id, Awaited::Counters(of), Some(now.tick + COUNT));
    }

    /// The pump told what it has done and lost.
    pub fn handle_counters(&mut self, counters: &PumpCounters) {
        for (id, of) in self.calls.take(|awaited| if let Awaited::Counters(of) = awaited { Some(*of) } else { None }) {
            self.reply(id, self.counters_answer(of, counters));
        }
    }

    pub(super) fn counters_answer(&self, of: Counters, counters: &PumpCounters) -> Answer {
        match of {
            Counters::Relays => Answer::json(&self.relays_reply(counters.told())),
            Counters::Metrics { all } => Answer::Text(self.metrics(all, &counters.told())),
        }
    }

    /// What people call a region.
    pub(super) fn region_code(&self, region: RegionId) -> String {
        let named = self.netmap.derp().regions.get(&region).and_then(Option::as_ref);
        let code = named.map(|region| region.region_code.clone()).filter(|code| !code.is_empty());
        code.unwrap_or_else(|| region.to_string())
    }

    /// Where our own relay is: its connection is kept open.
    pub(super) fn tell_pump_of_home(&mut self, home: Option<RegionId>) {
        if self.relays.home != home {
            self.relays.home = home;
            self.effects.push_back(Effect::Pump(PumpCommand::Home(home)));
        }
    }

    /// The relays, and as whom to sign in there.
    fn tell_pump_of_relays(&mut self) {
        let key = self.identity.node_key.as_ref().filter(|_| self.login.was_open);
        if self.relays.key != key.map(NodePrivate::public) {
            self.relays.key = key.map(NodePrivate::public);
            self.effects.push_back(Effect::Pump(PumpCommand::Key(key.cloned())));
        }
        if *self.relays.map != *self.netmap.derp() {
            self.relays.map = Arc::new(self.netmap.derp().clone());
            let regions = &self.relays.map.regions;
            self.relays.regions.retain(|region, _| regions.contains_key(region));
            self.effects.push_back(Effect::Pump(PumpCommand::Regions(Arc::clone(&self.relays.map))));
        }
    }

    fn tell_pump_of_all(&mut self, mut relayed: BTreeMap<NodePublic, PumpPeer>) {
        for (key, entry) in &mut relayed {
            entry.direct = direct(&self.book.path(key));
        }
        let gone = self.relays.told.keys().filter(|key| !relayed.contains_key(*key)).copied();
        for key in gone.collect::<Vec<_>>() {
            self.effects.push_back(Effect::Pump(PumpCommand::Peer { key, entry: None }));
        }
        for (key, entry) in &relayed {
            if self.relays.told.get(key) != Some(entry) {
                self.effects.push_back(Effect::Pump(PumpCommand::Peer { key: *key, entry: Some(*entry) }));
            }
        }
        self.relays.told = relayed;
    }

    fn tell_pump(&mut self, key: &NodePublic) {
        let direct = direct(&self.book.path(key));
        let Some(entry) = self.relays.told.get_mut(key).filter(|entry| entry.direct != direct) else { return };
        entry.direct = direct;
        self.effects.push_back(Effect::Pump(PumpCommand::Peer { key: *key, entry: Some(*entry) }));
    }
}

/// The loopback endpoints of relayed peers. Those that come of a key may clash: then the first one has it.
struct Loopbacks {
    port: Option<u16>,
    of_keys: BTreeSet<Ipv4Addr>,
}

impl Loopbacks {
    fn new(port: Option<u16>) -> Self {
        Self { port, of_keys: BTreeSet::new() }
    }

    fn of(&mut self, peer: &Peer) -> Option<SocketAddr> {
        let port = self.port?;
        let overlay = peer.addresses.iter().find_map(|prefix| match prefix {
            IpNet::V4(prefix) => Some(prefix.addr()),
            IpNet::V6(_) => None,
        });
        let address = own::relay_address(overlay, &peer.key());
        let is_free = overlay.is_some() || self.of_keys.insert(address);
        is_free.then(|| SocketAddr::new(IpAddr::V4(address), port))
    }
}

/// What of a peer matters to its path. One without a key for probes, or one that speaks nothing but WireGuard, knows
/// neither probes nor relays.
fn info(peer: &Peer, loopback: Option<SocketAddr>) -> PeerInfo<'_> {
    let node = &*peer.node;
    let speaks = node.disco_key != DiscoPublic::default() && !node.is_wireguard_only;
    PeerInfo {
        key: node.key,
        disco: speaks.then_some(node.disco_key),
        endpoints: &node.endpoints,
        home: home(node).filter(|_| speaks),
        relay: loopback.filter(|_| speaks),
    }
}

/// The relay region where a node listens. Older coordinators write it as the port of a made-up address.
pub(super) fn home(node: &Node) -> Option<RegionId> {
    let legacy = || node.legacy_derp.rsplit_once(':').and_then(|(_, region)| region.parse().ok()).map(RegionId);
    Some(node.home_derp).filter(|region| region.0 != 0).or_else(legacy).filter(|region| region.0 != 0)
}

fn relay(info: &PeerInfo<'_>) -> Option<PumpPeer> {
    let Some(SocketAddr::V4(loopback)) = info.relay else { return None };
    Some(PumpPeer { loopback: *loopback.ip(), region: info.home, direct: None })
}

fn direct(path: &PathView) -> Option<Direct> {
    match path.selected {
        Selected::Direct { endpoint, local, .. } => Some(Direct { endpoint, local }),
        Selected::None | Selected::Relay { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8, addresses: &[&str]) -> Peer {
        Peer {
            node: Node { key: NodePublic::from_bytes([n; 32]), ..Node::default() }.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            routes: Vec::new(),
            default_routes: Vec::new(),
        }
    }

    #[test]
    fn a_home_region_is_read_in_both_forms_and_zero_is_none() {
        let of = |region: u16, legacy: &str| {
            home(&Node { home_derp: RegionId(region), legacy_derp: legacy.to_owned(), ..Node::default() })
        };
        assert_eq!(of(900, ""), Some(RegionId(900)));
        assert_eq!(of(0, "127.3.3.40:12"), Some(RegionId(12)));
        assert_eq!([of(0, ""), of(0, "127.3.3.40:0"), of(0, "nonsense"), of(0, "a:70000")], [None; 4]);
    }

    #[test]
    fn every_peer_has_a_loopback_endpoint_of_its_own_or_none() {
        let mut loopbacks = Loopbacks::new(Some(41_742));
        let with_v4 = loopbacks.of(&peer(1, &["fd7a:115c:a1e0::7/128", "100.64.0.7/32"]));
        let without = loopbacks.of(&peer(2, &["fd7a:115c:a1e0::8/128"]));
        assert_eq!(with_v4, Some("127.128.0.7:41742".parse().unwrap()));
        assert!(without.is_some_and(|endpoint| endpoint.ip() >= Ipv4Addr::new(127, 192, 0, 0)), "{without:?}");
        assert_eq!(loopbacks.of(&peer(2, &["fd7a:115c:a1e0::9/128"])), None, "the same key bytes clash");
        assert_eq!(Loopbacks::new(None).of(&peer(1, &["100.64.0.7/32"])), None);
    }

    #[test]
    fn a_peer_that_knows_no_probes_gets_neither_probes_nor_a_relay() {
        let loopback = Some("127.128.0.7:41742".parse().unwrap());
        let disco = DiscoPublic::from_bytes([5; 32]);
        let node = |is_wireguard_only, disco_key| {
            let node = Node { disco_key, is_wireguard_only, home_derp: RegionId(900), ..Node::default() };
            Peer { node: node.into(), ..peer(1, &["100.64.0.7/32"]) }
        };
        for (peer, speaks) in
            [(node(false, disco), true), (node(true, disco), false), (node(false, DiscoPublic::default()), false)]
        {
            let info = info(&peer, loopback);
            assert_eq!([info.disco.is_some(), info.home.is_some(), info.relay.is_some()], [speaks; 3]);
        }
    }
}
