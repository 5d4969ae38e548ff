//! What this host knows of its own network: where it can be reached, which relay is its home, what its NAT does.
//!
//! One *look* at a time asks the STUN servers of the relay map, from WireGuard's own port, where our packets seem to
//! come from: all regions in a full look, the home and the nearest ones in a short one. Where no answer comes back,
//! UDP counts as blocked, and the relays' HTTPS latency decides. A look is begun by news (another map, other links, a
//! caller's wish) and, while tunnels are in use, every [`ACTIVE_EVERY`]; an idle node looks once an [`IDLE_EVERY`].
//!
//! Believed is only an answer to a question of the present look, from the address that was asked. The home region stays
//! until another is clearly nearer or it cannot be connected; while the map has a usable region there always is one.
//! A relay map is somebody else's: counts are bounded by the names in [`limit`].

pub mod portmap;

mod home;
mod link;
mod look;
mod news;
mod outcome;
mod relays;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use self::home::Home;
use self::look::{Families, Look};
use self::portmap::PortMapper;
use self::relays::Relays;
use crate::types::{IpNet, RegionId, in_overlay};
use crate::wire::control::{DerpMap, NetInfo};
use crate::wire::stun::{self, TransactionId};

pub use link::LinkKind;
pub use news::{Action, Config, Gateway, HttpsTarget, Input, NetcheckEvent};
pub use report::{Endpoint, MappingReport, RegionReport, Report};

/// Mappings that lie this near to each other were counted upwards.
pub(crate) const NEAR_PORTS: u16 = 64;

/// While tunnels are in use, a short look begins this long after the last one: within the 30 s for which careless NATs
/// keep a mapping. Official clients pace themselves the same.
pub const ACTIVE_EVERY: Range<Duration> = Duration::from_secs(20)..Duration::from_secs(26);
/// While tunnels are in use, a look is a full one when the last full one is older than this.
pub const FULL_EVERY: Duration = Duration::from_secs(5 * 60);
/// While no tunnel is in use: often enough that a relay that went away or a new address is known within a while, seldom
/// enough that ten thousand idle nodes are a few packets a second to a STUN server.
pub const IDLE_EVERY: Range<Duration> = Duration::from_secs(54 * 60)..Duration::from_secs(66 * 60);

/// How much of a relay map is used.
pub mod limit {
    /// Regions that are measured; those with the lowest numbers.
    pub const REGIONS: usize = 128;
    /// Nodes of a region that are asked.
    pub const NODES: usize = 3;
    /// Regions that are asked over HTTPS at a time.
    pub const HTTPS: usize = 32;
    /// Addresses of one name and family that are kept.
    pub const ADDRESSES: usize = 4;
    /// Endpoints that are told to others.
    pub const ENDPOINTS: usize = 64;
}

/// While no answer comes over UDP, looks begin this long after each other, doubled up to [`IDLE_EVERY`]: the network may
/// only have been on its way up, and a short look costs a few packets.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// Where relays that say so answer plain HTTP.
const HTTP_PORT: u16 = 80;
/// Endpoints this young need no look when they are wanted fresh.
const FRESH: Duration = Duration::from_secs(2);

/// The knowledge of the own network; see the module.
pub struct Netcheck {
    config: Config,
    chance: ChaCha20Rng,
    on: bool,
    active: bool,
    relays: Relays,
    links: BTreeSet<IpNet>,
    link_kinds: BTreeMap<IpNet, LinkKind>,
    advertised: Vec<IpNet>,
    home: Home,
    look: Option<Look>,
    /// What is wanted once the present look is over.
    wanted: Option<Wanted>,
    next: Option<Instant>,
    last: Option<Instant>,
    last_full: Option<Instant>,
    /// Looks in a row that had no answer over UDP.
    silent: u32,
    gateway: Option<Gateway>,
    mapper: PortMapper,
    report: Report,
    endpoints: Vec<Endpoint>,
    reported: LastReported,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    actions: VecDeque<Action>,
    events: VecDeque<NetcheckEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Short,
    Full,
}

/// What was said last, so that only news is news.
#[derive(Debug, Default)]
struct LastReported {
    net_info: Option<NetInfo>,
    captive: bool,
}

impl Netcheck {
    /// Knows nothing yet, and is switched off.
    pub fn new(config: Config) -> Self {
        let chance = ChaCha20Rng::from_seed(config.seed);
        let mapper = PortMapper::new(config.port, config.nonce);
        Self {
            config,
            chance,
            on: false,
            active: false,
            relays: Relays::default(),
            links: BTreeSet::new(),
            link_kinds: BTreeMap::new(),
            advertised: Vec::new(),
            home: Home::default(),
            look: None,
            wanted: None,
            next: None,
            last: None,
            last_full: None,
            silent: 0,
            gateway: None,
            mapper,
            report: Report::default(),
            endpoints: Vec::new(),
            reported: LastReported::default(),
            transmits: VecDeque::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // ---- what it is told ----

    /// Whether this node takes part in a network. While it does not, nothing is sent.
    pub fn handle_switched(&mut self, on: bool, now: Instant) {
        if std::mem::replace(&mut self.on, on) == on {
            return;
        }
        self.next = None;
        if on {
            self.mapper.handle_wanted(now);
            self.restart(now);
        } else {
            self.transmits.clear();
            self.mapper.handle_release();
            self.events.extend(self.look.take().map(|look| NetcheckEvent::Looked { full: look.full }));
        }
        self.note_mapping();
    }

    /// Takes the map of relays, whenever there is a new one.
    pub fn handle_derp_map(&mut self, map: &DerpMap, now: Instant) {
        if !self.relays.handle_map(map) {
            return;
        }
        self.report.regions.retain(|id, _| self.relays.region(*id).is_some());
        self.settle_home(now);
        self.restart(now);
    }

    /// Takes the addresses of the host's own interfaces outside the overlay, and what is known of the interfaces.
    pub fn handle_links(&mut self, links: &BTreeSet<IpNet>, link_kinds: &BTreeMap<IpNet, LinkKind>, now: Instant) {
        let links: BTreeSet<IpNet> = links.iter().filter(|link| !in_overlay(link.addr())).copied().collect();
        if links == self.links && *link_kinds == self.link_kinds {
            return;
        }
        let before = self.ways_out();
        self.links = links;
        self.link_kinds.clone_from(link_kinds);
        self.renew_endpoints();
        // A bridge of containers that comes or goes changes nothing of what servers see.
        if self.ways_out() == before && self.report.looked {
            return;
        }
        self.home.handle_moved();
        self.relays.forget_names();
        self.report.mapping_varies = None;
        self.restart(now);
    }

    /// The links that lead to others, or may: of a host in a container, all of them can be virtual.
    fn ways_out(&self) -> Vec<IpNet> {
        let leads_out = |link: &&IpNet| self.link_kinds.get(*link) != Some(&LinkKind::Virtual);
        let ways_out: Vec<IpNet> = self.links.iter().filter(leads_out).copied().collect();
        if ways_out.is_empty() { self.links.iter().copied().collect() } else { ways_out }
    }

    /// Takes the subnets that others advertise.
    pub fn handle_advertised(&mut self, prefixes: Vec<IpNet>) {
        if prefixes != self.advertised {
            self.advertised = prefixes;
            self.renew_endpoints();
        }
    }

    /// Whether tunnels are in use.
    pub fn handle_active(&mut self, active: bool, now: Instant) {
        if std::mem::replace(&mut self.active, active) == active || self.look.is_some() {
            return;
        }
        if active && self.last.is_some_and(|last| now >= last + ACTIVE_EVERY.start) {
            self.begin(Wanted::Short, now);
        } else {
            self.schedule(now);
        }
    }

    /// Fresh endpoints are wanted; answered by [`NetcheckEvent::Looked`].
    pub fn handle_wanted(&mut self, now: Instant) {
        self.want(Wanted::Short, now);
    }

    /// A full look is wanted; answered by [`NetcheckEvent::Looked`].
    pub fn handle_full_wanted(&mut self, now: Instant) {
        self.want(Wanted::Full, now);
    }

    /// Takes a STUN answer.
    pub fn handle_stun(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let Some(look) = &mut self.look else { return };
        let Ok((transaction, mapped)) = stun::read_response(datagram) else { return };
        if look.handle_answer(&self.relays, canonical(from), transaction, canonical(mapped), now) {
            self.proceed(now);
        }
    }

    /// A relay connection to the region stands, or brought a frame.
    pub fn handle_relay_alive(&mut self, region: RegionId, now: Instant) {
        self.home.handle_alive(region, now);
    }

    /// A region could not be connected, or its connection ended. A home that fails is left at once.
    pub fn handle_relay_failed(&mut self, region: RegionId, now: Instant) {
        self.home.handle_failed(region, now);
        if self.home.current() == Some(region) {
            self.settle_home(now);
        }
    }

    /// Takes what the shell has found out.
    pub fn handle_input(&mut self, news: Input, now: Instant) {
        match news {
            Input::Resolved { host, addresses } => {
                self.relays.handle_resolved(&host, &addresses, now);
                match &mut self.look {
                    Some(look) => look.handle_resolved(&self.relays, now),
                    // The looks before it came could ask nobody: a name may take longer than they do.
                    None if self.silent > 0 && !addresses.is_empty() => self.begin(Wanted::Full, now),
                    None => {}
                }
                self.proceed(now);
            }
            Input::Https { region, outcome } => {
                let answered = outcome.is_ok();
                if self.look.as_mut().is_some_and(|look| look.handle_https(region, answered, now)) {
                    self.note_https(region, outcome, now);
                    self.proceed(now);
                }
            }
            Input::Captive(found) => {
                if self.look.as_mut().is_some_and(Look::handle_captive) {
                    self.note_captive(found);
                    self.proceed(now);
                }
            }
            Input::OsHasIpv6(has) => self.report.os_has_ipv6 = Some(has),
            Input::Gateway(gateway) => {
                self.mapper.handle_gateway(gateway);
                if self.on {
                    self.mapper.handle_wanted(now);
                }
                // The way out is another one. It often comes a moment after the address.
                if std::mem::replace(&mut self.gateway, gateway) != gateway {
                    self.restart(now);
                }
            }
            Input::Map(news) => self.mapper.handle_input(news, now),
        }
        self.note_mapping();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.look.is_none() && self.next.is_some_and(|next| next <= now) {
            let reached = self.report.regions.values().any(|region| region.latency().is_some());
            let full = !reached || self.last_full.is_none_or(|last| now >= last + FULL_EVERY);
            self.begin(if full { Wanted::Full } else { Wanted::Short }, now);
        }
        self.mapper.handle_timeout(now);
        self.note_mapping();
        self.proceed(now);
    }

    // ---- what it wants ----

    /// When [`Netcheck::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look = match &self.look {
            Some(look) => look.next_at(),
            None => self.next.filter(|_| self.on),
        };
        look.into_iter().chain(self.mapper.poll_timeout()).min()
    }

    /// The next STUN request: to be sent from WireGuard's port.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| self.mapper.poll_action().map(Action::Map))
    }

    /// What has become known.
    pub fn poll_event(&mut self) -> Option<NetcheckEvent> {
        self.events.pop_front()
    }

    /// The outcome of the last look.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Where peers may reach this node.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    // ---- looks ----

    fn want(&mut self, wanted: Wanted, now: Instant) {
        if let Some(look) = &self.look {
            if wanted == Wanted::Full && !look.full {
                self.wanted = Some(wanted);
            }
            return;
        }
        let last = match wanted {
            Wanted::Short => self.last,
            Wanted::Full => self.last_full,
        };
        if last.is_none_or(|last| now >= last + FRESH) {
            self.begin(wanted, now);
        }
        if self.look.is_none() {
            self.events.push_back(NetcheckEvent::Looked { full: wanted == Wanted::Full });
        }
    }

    /// What the present look would find is out of date.
    fn restart(&mut self, now: Instant) {
        self.look = None;
        self.begin(Wanted::Full, now);
    }

    fn begin(&mut self, wanted: Wanted, now: Instant) {
        if !self.on || self.relays.is_empty() || self.links.is_empty() {
            return;
        }
        self.next = None;
        let hosts = self.relays.take_unresolved(now);
        self.actions.extend(hosts.into_iter().map(|host| Action::Resolve { host }));
        let families = Families {
            v4: self.links.iter().any(|link| link.addr().is_ipv4()),
            v6: self.links.iter().any(|link| link.addr().is_ipv6()),
        };
        if wanted == Wanted::Full {
            self.mapper.handle_wanted(now);
        }
        let home = self.home.current();
        self.look = Some(match wanted {
            Wanted::Full => Look::full(&self.relays, families, home, now),
            Wanted::Short => Look::short(&self.relays, families, &self.report, home, now),
        });
        self.proceed(now);
    }

    /// Does what is due.
    fn proceed(&mut self, now: Instant) {
        let Some(look) = &mut self.look else { return };
        let chance = &mut self.chance;
        let draw = || {
            let mut transaction = [0; 12];
            chance.fill_bytes(&mut transaction);
            TransactionId(transaction)
        };
        let due = look.take_due(&self.relays, now, draw);
        self.transmits.extend(due.into_iter().map(|(to, transaction)| (to, stun::request(transaction))));
        if look.begins_https(now) {
            self.ask_over_https();
        }
        if self.look.as_ref().is_some_and(|look| look.is_over(now)) {
            self.conclude(now);
        }
    }

    fn ask_over_https(&mut self) {
        let Some(look) = &mut self.look else { return };
        let home = self.home.current();
        for region in self.relays.measured(home).into_iter().take(limit::HTTPS) {
            if let Some(target) = self.relays.https_target(region) {
                look.wait_for_https(region);
                self.actions.push_back(Action::MeasureHttps(target));
            }
        }
        if let Some((host, addresses)) = self.relays.captive_target(home) {
            look.wait_for_captive();
            let challenge = format!("{:016x}", self.chance.next_u64());
            self.actions.push_back(Action::CheckCaptive { host, addresses, port: HTTP_PORT, challenge });
        }
    }

    /// Says when the next look begins by itself.
    fn schedule(&mut self, now: Instant) {
        let every = if self.active { ACTIVE_EVERY } else { IDLE_EVERY };
        let mut pause = self.between(every);
        if self.silent > 0 {
            let retry = RETRY_FIRST.saturating_mul(1 << self.silent.min(10).saturating_sub(1));
            pause = pause.min(retry);
        }
        let last = self.last.unwrap_or(now);
        self.next = (!self.relays.is_empty()).then(|| (last + pause).max(now));
    }

    fn between(&mut self, range: Range<Duration>) -> Duration {
        let width = u64::try_from((range.end - range.start).as_millis()).unwrap_or(1).max(1);
        range.start + Duration::from_millis(self.chance.next_u64() % width)
    }
}

/// The same address without what only the host's own interfaces mean.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
