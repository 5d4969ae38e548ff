//! What happens to hosts, and how the agent's loop and the kernel take it.

use std::net::SocketAddr;
use std::time::Duration;

use warren_core::path::{Event, Evidence, Ground, PeerInfo, Target, Transmit, Via, Way, Wish};
use warren_core::types::{RegionId, Timestamp};
use warren_core::wire::disco;

use super::host::{PORT, behind_loopback, loopback, netcheck};
use super::kernel::Packet;
use super::{Happening, Payload, World};

/// How often the pump speaks of a peer's traffic.
const SPEAKS: Duration = Duration::from_secs(1);
const KERNEL_TICK: Duration = Duration::from_millis(500);

impl World {
    pub(super) fn happen(&mut self, host: usize, happening: Happening) {
        let now = self.instant();
        match happening {
            Happening::Arrive { from, to, payload } => self.arrive(host, from, to, payload),
            Happening::Relayed { from, region, payload } => self.relayed(host, from, region, payload),
            Happening::Timer => {
                if self.hosts[host].timer.is_some_and(|at| at <= self.now) {
                    self.hosts[host].timer = None;
                    self.hosts[host].book.handle_timeout(now);
                    self.hosts[host].netcheck.handle_timeout(now);
                }
            }
            Happening::RelayBack { relay } => self.begin_relay(relay),
            happening if !self.hosts[host].running && happening.is_agents() => {}
            Happening::Gone { peer, region } => self.gone(host, peer, region),
            Happening::Dial { region, turn } => self.dial_again(host, region, turn),
            Happening::Dialled { region, turn, relay } => self.dialled(host, region, turn, relay),
            Happening::Cut { region, turn } => self.cut(host, region, turn),
            Happening::Stun { from, network, answer } => {
                if network == self.hosts[host].network {
                    self.hosts[host].netcheck.handle_stun(from, &answer, now);
                }
            }
            Happening::News(news) => self.hosts[host].netcheck.handle_news(news, now),
            Happening::Facts => self.tell_facts(host),
            Happening::Outlook => self.look_around(host),
            Happening::Kernel => {
                for peer in 0..self.hosts.len() {
                    let out = self.hosts[host].kernel.peers.entry(peer).or_default().tick(self.now);
                    self.kernel_sends(host, peer, out);
                }
                self.leave_idle(host);
                self.after(KERNEL_TICK, host, Happening::Kernel);
            }
            Happening::Look => self.look(host),
            Happening::Map => self.tell_map(host),
            Happening::Offer { to, pause, until } => {
                self.numbers += 1;
                *self.offered.entry((host, to)).or_default() += 1;
                let out = self.hosts[host].kernel.peers.entry(to).or_default().offer(self.numbers, self.now);
                self.kernel_sends(host, to, out);
                if self.now + pause < until {
                    self.after(pause, host, Happening::Offer { to, pause, until });
                } else if let Some(last) = self.delivered.remove(&(host, to)) {
                    self.note_gap((host, to), last);
                }
            }
            Happening::Start => self.start(host),
        }
        self.settle(host);
    }

    /// The agent begins anew: it knows nothing but what the coordinator tells.
    fn start(&mut self, host: usize) {
        let (for_book, for_netcheck) = (self.chance.bytes(), self.chance.bytes());
        let agent = &mut self.hosts[host];
        agent.book = warren_core::path::Book::new(agent.disco.clone(), agent.key, for_book);
        agent.netcheck = netcheck(for_netcheck);
        agent.running = true;
        agent.timer = None;
        self.tell_map(host);
        self.look(host);
        self.after(Duration::from_millis(100), host, Happening::Outlook);
    }

    /// Ends the agent as `kill -9` does; it comes back after a pause.
    pub(crate) fn kill(&mut self, host: usize, pause: Duration) {
        let agent = &mut self.hosts[host];
        (agent.running, agent.home, agent.facts_due) = (false, None, false);
        agent.net_info = None;
        agent.links.clear();
        agent.heard.clear();
        agent.gone.clear();
        self.after(pause, host, Happening::Start);
    }

    /// The machine is off for a while and begins anew: its kernel knows nothing, and its clock is behind.
    pub(crate) fn reboot(&mut self, host: usize, away: Duration, behind: Duration) {
        self.hosts[host].kernel.peers.clear();
        self.hosts[host].kernel.behind = behind;
        self.hosts[host].wall_offset = -i64::try_from(behind.as_secs()).unwrap();
        self.kill(host, away);
    }

    // ---- what comes in ----

    fn arrive(&mut self, host: usize, from: SocketAddr, to: SocketAddr, payload: Payload) {
        let now = self.instant();
        if !self.hosts[host].has(to.ip()) || to.port() != PORT {
            return;
        }
        match payload {
            Payload::Disco(bytes) if self.hosts[host].running => {
                let via = Via::Udp { from, local: Some(to.ip()) };
                self.hosts[host].book.handle_datagram(via, &bytes, now);
            }
            Payload::Disco(_) => {}
            Payload::WireGuard { from: peer, packet } => self.kernel_receives(host, peer, packet, from),
        }
    }

    fn relayed(&mut self, host: usize, from: usize, region: RegionId, payload: Payload) {
        let now = self.instant();
        if !self.hosts[host].running || !self.hosts[host].links.contains_key(&region) {
            return;
        }
        self.heard(host, from, region);
        let key = self.hosts[from].key;
        match payload {
            Payload::Disco(bytes) => {
                self.hosts[host].netcheck.handle_relay_alive(region, now);
                let via = Via::Relay { region, from: key };
                self.hosts[host].book.handle_datagram(via, &bytes, now);
            }
            Payload::WireGuard { from: peer, packet } => {
                // The pump forges the source, so that what comes late does not move the kernel.
                let source = match self.hosts[host].book.path(&key).way {
                    Way::Direct { endpoint, .. } => endpoint,
                    _ => loopback(peer),
                };
                self.speak(host, peer);
                self.kernel_receives(host, peer, packet, source);
            }
        }
    }

    fn speak(&mut self, host: usize, peer: usize) {
        let now = self.instant();
        let last = self.hosts[host].spoken.insert(peer, self.now);
        if last.is_none_or(|at| self.now - at >= SPEAKS) {
            let key = self.hosts[peer].key;
            self.hosts[host].book.handle_relayed(&key, now);
        } else if let Some(last) = last {
            self.hosts[host].spoken.insert(peer, last);
        }
    }

    fn kernel_receives(&mut self, host: usize, peer: usize, packet: Packet, from: SocketAddr) {
        if self.deaf.is_some_and(|(one, other)| [(one, other), (other, one)].contains(&(peer, host))) {
            return;
        }
        let fresh = self.chance.next();
        let state = self.hosts[host].kernel.peers.entry(peer).or_default();
        let (out, delivered) = state.receive(packet, from, fresh, self.now);
        if delivered.is_some() {
            *self.count.entry((peer, host)).or_default() += 1;
            if let Some(last) = self.delivered.insert((peer, host), self.now) {
                self.note_gap((peer, host), last);
            }
        }
        self.kernel_sends(host, peer, out);
    }

    fn kernel_sends(&mut self, host: usize, peer: usize, packets: Vec<Packet>) {
        let now = self.instant();
        for packet in packets {
            let packet = self.hosts[host].kernel.stamped(packet);
            let Some(endpoint) = self.hosts[host].kernel.peers[&peer].endpoint else { return };
            let payload = Payload::WireGuard { from: host, packet };
            let Some(behind) = behind_loopback(endpoint) else {
                self.send(host, endpoint, payload);
                continue;
            };
            if !self.hosts[host].running {
                continue;
            }
            self.speak(host, behind);
            if let Packet::Initiation { time } = packet {
                let key = self.hosts[behind].key;
                self.hosts[host].book.handle_initiation(&key, initiation(host, time), now);
            }
            let region = self.region_towards(host, behind);
            self.relay(host, behind, region, payload);
        }
    }

    // ---- the agent's loop ----

    fn tell_map(&mut self, host: usize) {
        let now = self.instant();
        let ground = Ground::new(self.hosts[host].addresses.clone(), []);
        let others = (0..self.hosts.len()).filter(|other| *other != host);
        let told = |other: usize| {
            let peer = &self.hosts[other];
            (peer.key, peer.disco.public(), peer.endpoints.clone(), peer.told_home, loopback(other))
        };
        let told: Vec<_> = others.clone().map(told).collect();
        for other in others {
            let home = self.hosts[other].told_home;
            if self.hosts[host].homes.insert(other, home) != Some(home) {
                self.hosts[host].gone.remove(&other);
            }
        }
        let relayless = self.relayless;
        let infos = told.iter().map(|(key, disco, endpoints, home, relay)| PeerInfo {
            key: *key,
            disco: Some(*disco),
            endpoints,
            home: home.filter(|_| !relayless),
            relay: (!relayless).then_some(*relay),
        });
        self.hosts[host].book.handle_peers(infos, ground, now);
        self.apply(host);
        self.want_look(host);
    }

    fn want_look(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].look_due, true) {
            let pause = self.chance.millis(2, 30);
            self.after(pause, host, Happening::Look);
        }
    }

    /// The reconciler looks, and carries out what is wished.
    fn look(&mut self, host: usize) {
        let now = self.instant();
        self.hosts[host].look_due = false;
        if !self.hosts[host].running {
            return;
        }
        let wall = self.wall(self.hosts[host].wall_offset);
        for peer in (0..self.hosts.len()).filter(|peer| *peer != host) {
            let key = self.hosts[peer].key;
            let offset = self.hosts[host].wall_offset;
            let state = self.hosts[host].kernel.peers.entry(peer).or_default();
            let (endpoint, rx_bytes, tx_bytes) = (state.endpoint, state.rx_bytes, state.tx_bytes);
            let last_handshake = state.last_handshake.map(|at| wall_at(at, offset));
            let evidence = Evidence { endpoint, last_handshake, rx_bytes, tx_bytes };
            self.hosts[host].book.handle_observed(&key, evidence, now, wall);
        }
        self.hosts[host].book.handle_looked(now);
        self.apply(host);
    }

    fn apply(&mut self, host: usize) {
        if !self.hosts[host].running {
            return;
        }
        let wishes: Vec<_> = self.hosts[host].book.wishes().collect();
        for (key, wish) in wishes {
            let peer = usize::from(key.as_bytes()[0]) - 1;
            let state = self.hosts[host].kernel.peers.entry(peer).or_default();
            match wish {
                Wish::Initial(endpoint) if state.endpoint.is_none() => state.set_endpoint(endpoint),
                Wish::Move(endpoint) => state.set_endpoint(endpoint),
                _ => {}
            }
            let begins = self.hosts[host].book.begins(&key);
            let state = self.hosts[host].kernel.peers.entry(peer).or_default();
            let out = state.set_keepalive(begins, self.now);
            self.kernel_sends(host, peer, out);
        }
    }

    /// Carries out what the book wants, and comes back when it wants to be called.
    pub(super) fn settle(&mut self, host: usize) {
        if !self.hosts[host].running {
            return;
        }
        self.settle_book(host);
        self.settle_outlook(host);
        // What was found out may be news to the book.
        self.settle_book(host);
        let agent = &self.hosts[host];
        let timeouts = agent.book.poll_timeout().into_iter().chain(agent.netcheck.poll_timeout());
        let Some(at) = timeouts.min() else { return };
        let at = at.saturating_duration_since(self.origin).max(self.now);
        if self.hosts[host].timer.is_none_or(|timer| at < timer) {
            self.hosts[host].timer = Some(at);
            self.after(at - self.now, host, Happening::Timer);
        }
    }

    fn settle_book(&mut self, host: usize) {
        while let Some(Transmit { to, payload }) = self.hosts[host].book.poll_transmit() {
            let is_disco = disco::sender(&payload).is_ok();
            match to {
                Target::Udp { to, .. } if is_disco => {
                    self.hosts[host].pings += 1;
                    self.send(host, to, Payload::Disco(payload));
                }
                Target::Udp { to, .. } => {
                    let packet = replayed(&payload);
                    self.send(host, to, Payload::WireGuard { from: host, packet });
                }
                Target::Relay { region, peer } => {
                    let peer = usize::from(peer.as_bytes()[0]) - 1;
                    self.relay(host, peer, Some(region), Payload::Disco(payload));
                }
            }
        }
        while let Some(event) = self.hosts[host].book.poll_event() {
            match event {
                Event::PathChanged { peer } => {
                    self.note_change(host, usize::from(peer.as_bytes()[0]) - 1);
                    self.want_look(host);
                }
                Event::NeedsLook => self.want_look(host),
                Event::NeedsFreshEndpoints => {
                    let now = self.instant();
                    self.hosts[host].netcheck.handle_wanted(now);
                }
                Event::PingDone { .. } => {}
            }
        }
    }

    fn note_change(&mut self, host: usize, peer: usize) {
        let direct = self.is_direct(host, peer);
        let now = self.now;
        let host = &mut self.hosts[host];
        if host.direct.insert(peer, direct).unwrap_or(false) != direct {
            host.changes.entry(peer).or_default().push(now);
        }
    }

    fn wall(&self, offset: i64) -> Timestamp {
        wall_at(self.now, offset)
    }
}

impl Happening {
    /// Whether it is of no account while the agent is not there.
    const fn is_agents(&self) -> bool {
        !matches!(self, Self::Arrive { .. } | Self::Kernel | Self::Offer { .. } | Self::Start | Self::Map | Self::Look)
    }
}

fn wall_at(at: Duration, offset: i64) -> Timestamp {
    let millis = 1_700_000_000_000 + i64::try_from(at.as_millis()).unwrap() + offset * 1_000;
    Timestamp::from_millisecond(millis).unwrap()
}

/// An initiation as bytes, for the book to send again.
fn initiation(host: usize, time: Duration) -> Vec<u8> {
    let mut bytes = vec![1, host as u8];
    bytes.extend((time.as_nanos() as u64).to_le_bytes());
    bytes
}

fn replayed(bytes: &[u8]) -> Packet {
    let time = bytes[2..10].try_into().unwrap();
    Packet::Initiation { time: Duration::from_nanos(u64::from_le_bytes(time)) }
}
