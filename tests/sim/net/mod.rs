//! A network that is a value: hosts with the agent's real engine over modelled kernels and disks, relays, NATs, a
//! coordinator, and what befalls them.
//!
//! All time is [`Duration`] since the start. Everything that happens is in one queue; chance comes from one seed, so
//! that a run repeats exactly.

pub(crate) mod chance;
mod coordinator;
pub(crate) mod host;
pub(crate) mod kernel;
pub(crate) mod nat;
mod outlook;
pub(crate) mod pump;
mod run;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_core::control::{Received, RequestId};
use warren_core::netcheck::Input;
use warren_core::node::{FileContent, Now, StateFile};
use warren_core::plan::KernelAction;
use warren_core::types::{IpNet, NodePublic, RegionId};

use chance::Chance;
pub(crate) use coordinator::Rotations;
use host::Host;
use kernel::Packet;
use nat::{Gateway, Kind};
use pump::{REGIONS, Relay};

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Packets lost and doubled, of a thousand.
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    /// One-way delay in milliseconds; the spread reorders.
    pub(crate) delay: (u64, u64),
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0, doubled: 0, delay: (10, 15) };
}

pub(crate) enum Payload {
    Disco(Vec<u8>),
    WireGuard { from: usize, packet: Packet },
}

impl Payload {
    /// What applications send is as large as the tunnel lets through.
    const fn is_large(&self) -> bool {
        match self {
            Self::Disco(bytes) => bytes.len() > 1_300,
            Self::WireGuard { packet, .. } => matches!(packet, Packet::Data { number: Some(_), .. }),
        }
    }
}

/// What happens to a host.
pub(crate) enum Happening {
    Arrive {
        from: SocketAddr,
        to: SocketAddr,
        payload: Payload,
    },
    Relayed {
        from: usize,
        region: RegionId,
        payload: Payload,
    },
    /// A relay says that a peer is not there.
    Gone {
        peer: usize,
        region: RegionId,
    },
    /// A wait after a failed connection is over.
    Dial {
        region: RegionId,
        turn: u64,
    },
    Dialled {
        region: RegionId,
        turn: u64,
        relay: usize,
    },
    /// A connection to a relay ended, or could not be made.
    Cut {
        region: RegionId,
        turn: u64,
    },
    /// A relay that ended begins anew.
    RelayBack {
        relay: usize,
    },
    /// The coordinator, which ended, begins anew.
    CoordinatorBack,
    /// An answer of a STUN server, to where the host was when it asked.
    Stun {
        from: SocketAddr,
        network: usize,
        answer: Vec<u8>,
    },
    Input(Input),
    /// The coordinator answers.
    Coordinator(Received),
    /// The coordinator tells the map, or of one other host.
    Map {
        of: Option<usize>,
    },
    KeepAlive {
        id: RequestId,
    },
    /// The agent's time has come.
    Timer,
    /// WireGuard's time has come.
    Kernel,
    /// The kernel was asked something.
    Act(KernelAction),
    /// A file is on the disk.
    Written(StateFile, Option<FileContent>),
    /// An application sends a packet, and again after this pause.
    Offer {
        to: usize,
        pause: Duration,
        until: Duration,
    },
    /// The agent, ended before, begins anew.
    Start,
}

pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    /// The gateway of each network; the first network is the Internet.
    pub(crate) gateways: Vec<Option<Gateway>>,
    /// In the order of the relay map: two of the first region, one of the second.
    pub(crate) relays: Vec<Relay>,
    /// Whose handshakes reach which kernel in vain.
    pub(crate) deaf: Option<(usize, usize)>,
    coordinator_is_up: bool,
    /// What becomes of a host's wish to have another key.
    pub(crate) rotations: Rotations,
    /// Nobody has a home relay.
    pub(crate) relayless: bool,
    /// Large packets are lost, but for those through relays.
    pub(crate) narrow: bool,
    pub(crate) weather: Weather,
    pub(crate) chance: Chance,
    pub(crate) now: Duration,
    origin: Instant,
    /// What happens when, and to which host; where it is for an agent, to which of those that run there one after the
    /// other.
    queue: BTreeMap<(Duration, u64), (usize, Option<u64>, Happening)>,
    numbers: u64,
    /// When something last came through, and when something was first offered since, by sender and receiver.
    pub(crate) delivered: BTreeMap<(usize, usize), Duration>,
    /// The longest time that nothing came through although it was offered, since [`World::forget_gaps`].
    pub(crate) gaps: BTreeMap<(usize, usize), Duration>,
    /// Packets that came through, and that were offered.
    pub(crate) count: BTreeMap<(usize, usize), u64>,
    pub(crate) offered: BTreeMap<(usize, usize), u64>,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            hosts: Vec::new(),
            gateways: vec![None],
            relays: [(1, REGIONS[0]), (2, REGIONS[0]), (3, REGIONS[1])]
                .map(|(last, region)| Relay { region, address: Ipv4Addr::new(192, 0, 2, last), up: true })
                .into(),
            deaf: None,
            coordinator_is_up: true,
            rotations: Rotations::Taken,
            relayless: false,
            narrow: false,
            weather,
            chance: Chance::new(seed),
            now: Duration::ZERO,
            origin: Instant::now(),
            queue: BTreeMap::new(),
            numbers: 0,
            delivered: BTreeMap::new(),
            gaps: BTreeMap::new(),
            count: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    // ---- building ----

    /// A network behind a gateway that stands in another; the number of the new one.
    pub(crate) fn network(&mut self, kind: Kind, outer: usize) -> usize {
        let inner = self.gateways.len();
        let public = match outer {
            0 => Ipv4Addr::new(203, 0, 113, inner as u8),
            _ => Ipv4Addr::new(10, outer as u8, 0, 100 + inner as u8),
        };
        self.gateways.push(Some(Gateway::new(kind, outer, inner, public.into())));
        inner
    }

    /// A host in a network, with IPv4, IPv6 or both; its number.
    pub(crate) fn host(&mut self, network: usize, v4: bool, v6: bool) -> usize {
        let number = self.hosts.len();
        let keys = [self.chance.bytes(), self.chance.bytes()];
        let mut host = Host::new(number, keys, self.relayless);
        host.network = network;
        host.addresses = self.addresses(number, network, v4, v6);
        self.hosts.push(host);
        self.after(Duration::ZERO, number, Happening::Start);
        self.after(Duration::from_millis(2 + number as u64), number, Happening::Kernel);
        number
    }

    fn addresses(&mut self, number: usize, network: usize, v4: bool, v6: bool) -> Vec<IpNet> {
        let translated = self.gateways[network].as_ref().is_some_and(|gateway| gateway.kind.translates);
        let host = number as u8 + 1;
        let v4_text = match (network, translated) {
            (0, _) => format!("198.51.100.{host}/32"),
            (_, true) => format!("10.{network}.0.{host}/24"),
            (_, false) => format!("198.18.{network}.{host}/24"),
        };
        let v6_text = format!("2001:db8:{network}::{host:x}/64");
        let wanted = [(v4, v4_text), (v6, v6_text)].into_iter().filter(|(wanted, _)| *wanted);
        wanted.map(|(_, text)| text.parse().unwrap()).collect()
    }

    /// A host goes over to another network.
    pub(crate) fn roam(&mut self, host: usize, network: usize) {
        if self.hosts[host].network == network {
            return;
        }
        let addresses = self.addresses(host, network, true, false);
        self.hosts[host].addresses = addresses;
        self.hosts[host].network = network;
        // Its connections come from an address that is no more.
        self.hosts[host].record.disconnect();
        self.drop_links(host);
        let (networks, now) = (self.hosts[host].networks(), self.agent_time(host));
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_networks(networks, now);
        }
        self.settle(host);
    }

    // ---- time ----

    /// What time it is to a host's agent.
    pub(super) fn agent_time(&self, host: usize) -> Now {
        Now { tick: self.origin + self.now, wall: run::wall_at(self.now, self.hosts[host].wall_offset) }
    }

    pub(crate) fn after(&mut self, pause: Duration, host: usize, happening: Happening) {
        self.numbers += 1;
        self.queue.insert((self.now + pause, self.numbers), (host, None, happening));
    }

    /// The same, for the agent that runs at this moment: the next one hears nothing of it.
    pub(super) fn after_for_agent(&mut self, pause: Duration, host: usize, happening: Happening) {
        self.numbers += 1;
        let life = Some(self.hosts[host].life);
        self.queue.insert((self.now + pause, self.numbers), (host, life, happening));
    }

    pub(super) fn number_of(&self, key: &NodePublic) -> Option<usize> {
        self.hosts.iter().position(|host| host.keys.contains(key))
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= until
        {
            let ((at, _), (host, life, happening)) = entry.remove_entry();
            self.now = at;
            if life.is_none_or(|life| life == self.hosts[host].life) {
                self.happen(host, happening);
            }
        }
        self.now = until;
        for (pair, last) in self.delivered.clone() {
            self.note_gap(pair, last);
        }
    }

    // ---- traffic ----

    /// From here on an application sends packets.
    pub(crate) fn talk(&mut self, from: usize, to: usize, pause: Duration, span: Duration) {
        self.delivered.insert((from, to), self.now);
        let until = self.now + span;
        self.after(Duration::ZERO, from, Happening::Offer { to, pause, until });
    }

    pub(crate) fn talk_both_ways(&mut self, a: usize, b: usize, pause: Duration, span: Duration) {
        self.talk(a, b, pause, span);
        self.talk(b, a, pause, span);
    }

    fn note_gap(&mut self, pair: (usize, usize), last: Duration) {
        let gap = self.gaps.entry(pair).or_default();
        *gap = (*gap).max(self.now - last);
    }

    pub(crate) fn forget_gaps(&mut self) {
        self.gaps.clear();
        let now = self.now;
        self.delivered.values_mut().for_each(|last| *last = now);
    }

    pub(crate) fn longest_gap(&self) -> Duration {
        self.gaps.values().copied().max().unwrap_or_default()
    }

    pub(crate) fn is_direct(&self, from: usize, to: usize) -> bool {
        self.hosts[from].is_direct(&self.hosts[to].key)
    }

    pub(crate) fn are_direct(&self, a: usize, b: usize) -> bool {
        self.is_direct(a, b) && self.is_direct(b, a)
    }

    // ---- the wire ----

    /// Sends a datagram from a host's WireGuard port.
    fn send(&mut self, host: usize, to: SocketAddr, payload: Payload) {
        let Some(from) = self.hosts[host].source_for(to.ip()) else { return };
        if self.chance.permille(self.weather.loss) || (self.narrow && payload.is_large()) {
            return;
        }
        let Some((reached, from, to)) = self.route(self.hosts[host].network, from, to) else { return };
        let (least, most) = self.weather.delay;
        if let Payload::Disco(bytes) = &payload
            && self.chance.permille(self.weather.doubled)
        {
            let pause = self.chance.millis(least, most);
            let payload = Payload::Disco(bytes.clone());
            self.after(pause, reached, Happening::Arrive { from, to, payload });
        }
        let pause = self.chance.millis(least, most);
        self.after(pause, reached, Happening::Arrive { from, to, payload });
    }

    /// The way of a packet through the networks: whom it reaches, and with which addresses.
    fn route(
        &mut self,
        mut network: usize,
        mut from: SocketAddr,
        mut to: SocketAddr,
    ) -> Option<(usize, SocketAddr, SocketAddr)> {
        let mut left_by = None;
        for _ in 0..8 {
            let is_it = |host: &Host| host.network == network && host.has(to.ip());
            if let Some(reached) = self.hosts.iter().position(is_it) {
                return Some((reached, from, to));
            }
            if let Some(inner) = self.way_in(network, to.ip()) {
                let gateway = self.gateways[inner].as_mut()?;
                if left_by == Some(inner) && !gateway.kind.hairpins {
                    return None;
                }
                to = gateway.inbound(from, to, self.now)?;
                network = inner;
            } else {
                left_by = Some(network);
                let gateway = self.gateways[network].as_mut()?;
                from = gateway.outbound(from, to, self.now, &mut self.chance)?;
                network = gateway.outer;
            }
        }
        None
    }

    /// The network behind a gateway that takes packets for this address from that network.
    fn way_in(&self, network: usize, ip: IpAddr) -> Option<usize> {
        let behind = |inner: usize| self.hosts.iter().any(|host| host.network == inner && host.has(ip));
        let takes = |gateway: &&Gateway| {
            let is_outer = gateway.outer == network;
            is_outer && if gateway.translates(ip) { gateway.public == ip } else { behind(gateway.inner) }
        };
        self.gateways.iter().flatten().find(takes).map(|gateway| gateway.inner)
    }
}
