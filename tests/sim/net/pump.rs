//! Relays, and the connections of each host to them as the agent's pump keeps them: its home always, others while
//! packets pass, again later each time where that failed.

use std::net::Ipv4Addr;
use std::time::Duration;

use warren_core::node::{PumpCommand, PumpNews, RegionState};
use warren_core::types::RegionId;

use super::{Happening, Payload, World};

/// The regions: the first is near to most hosts.
pub(crate) const REGIONS: [RegionId; 2] = [RegionId(900), RegionId(901)];

/// Waits between attempts, idle time and what counts as a lasting connection, as in the agent's `relay_pump::link`.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);
const LASTING: Duration = Duration::from_secs(10);
/// Packets that wait while a connection is made.
const QUEUE: usize = 32;

/// A machine that relays and answers STUN. Those of a region pass packets on to each other.
pub(crate) struct Relay {
    pub(crate) region: RegionId,
    pub(crate) address: Ipv4Addr,
    pub(crate) up: bool,
}

/// A host's connection to a region, or the wish for it.
pub(crate) struct Link {
    state: State,
    /// Which attempt it is: what happens to an earlier one is of no account.
    turn: u64,
    failures: u32,
    begun: Duration,
    used: Duration,
}

enum State {
    Dialling { waiting: Vec<(usize, Payload)> },
    Connected { relay: usize },
    Waiting,
}

impl World {
    // ---- what befalls relays ----

    /// A relay ends, and its connections with it.
    pub(crate) fn end_relay(&mut self, relay: usize) {
        self.relays[relay].up = false;
        let region = self.relays[relay].region;
        for host in 0..self.hosts.len() {
            if let Some(link) = self.hosts[host].links.get(&region)
                && matches!(link.state, State::Connected { relay: to } if to == relay)
            {
                let turn = link.turn;
                let pause = self.chance.millis(5, 40);
                self.after_for_agent(pause, host, Happening::Cut { region, turn });
            }
        }
    }

    pub(crate) fn begin_relay(&mut self, relay: usize) {
        self.relays[relay].up = true;
    }

    pub(crate) fn end_all_relays(&mut self) {
        (0..self.relays.len()).for_each(|relay| self.end_relay(relay));
    }

    pub(crate) fn begin_all_relays(&mut self) {
        (0..self.relays.len()).for_each(|relay| self.begin_relay(relay));
    }

    /// The relay that a host's connection to its home region leads to.
    pub(crate) fn relay_of(&self, host: usize) -> Option<usize> {
        let link = self.hosts[host].links.get(&self.hosts[host].home?)?;
        match link.state {
            State::Connected { relay } => Some(relay),
            _ => None,
        }
    }

    /// The time of a packet between a host and a region.
    pub(super) fn leg(&mut self, host: usize, region: RegionId) -> Duration {
        if region == self.hosts[host].near { self.chance.millis(15, 20) } else { self.chance.millis(40, 50) }
    }

    // ---- what the agent tells its pump ----

    pub(super) fn command(&mut self, host: usize, command: PumpCommand) {
        match command {
            PumpCommand::Key(None) => self.hosts[host].links.clear(),
            PumpCommand::Home(home) => {
                self.hosts[host].homes_had += 1;
                self.set_home(host, home);
            }
            PumpCommand::Peer { key, entry } => {
                let Some(peer) = self.number_of(&key) else { return };
                let host = &mut self.hosts[host];
                let before = host.told.get(&peer).and_then(|entry| entry.region);
                if entry.is_none_or(|entry| entry.region != before) {
                    host.gone.remove(&peer);
                }
                match entry {
                    Some(entry) => host.told.insert(peer, entry),
                    None => host.told.remove(&peer),
                };
            }
            PumpCommand::Disco { region, peer, payload } => {
                if let Some(peer) = self.number_of(&peer) {
                    self.relay(host, peer, Some(region), Payload::Disco(payload));
                }
            }
            PumpCommand::Rebind => self.redial(host),
            // All relays are known here, and a new key makes no difference to them.
            PumpCommand::Regions(_) | PumpCommand::Key(Some(_)) => {}
        }
    }

    fn tell_region(&mut self, host: usize, region: RegionId, state: RegionState) {
        let now = self.agent_time(host);
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_pump(PumpNews::Region { region, state }, now);
        }
    }

    // ---- connections ----

    /// The home region has changed, or the host has just begun.
    pub(super) fn set_home(&mut self, host: usize, home: Option<RegionId>) {
        self.hosts[host].home = home;
        let Some(region) = home else { return };
        let is_waiting = self.hosts[host].links.get(&region).is_none_or(|link| matches!(link.state, State::Waiting));
        if is_waiting {
            self.dial(host, region);
        }
    }

    /// The host's addresses are others: nothing comes or goes by the connections from before.
    pub(super) fn drop_links(&mut self, host: usize) {
        for link in self.hosts[host].links.values_mut() {
            link.turn += 1;
            link.state = State::Dialling { waiting: Vec::new() };
        }
    }

    /// Every connection is made anew.
    pub(super) fn redial(&mut self, host: usize) {
        let regions: Vec<RegionId> = self.hosts[host].links.keys().copied().collect();
        regions.into_iter().for_each(|region| self.dial(host, region));
    }

    pub(super) fn dial(&mut self, host: usize, region: RegionId) {
        let found = self.relays.iter().position(|relay| relay.region == region && relay.up);
        let now = self.now;
        let link = self.hosts[host].links.entry(region).or_insert_with(|| Link::new(now));
        link.turn += 1;
        link.begun = now;
        link.state = State::Dialling { waiting: Vec::new() };
        let turn = link.turn;
        match found {
            // TCP, TLS, the upgrade and the introduction.
            Some(relay) => {
                let pause = 4 * self.leg(host, region);
                self.after_for_agent(pause, host, Happening::Dialled { region, turn, relay });
            }
            None => {
                let pause = self.leg(host, region);
                self.after_for_agent(pause, host, Happening::Cut { region, turn });
            }
        }
    }

    pub(super) fn dialled(&mut self, host: usize, region: RegionId, turn: u64, relay: usize) {
        if !self.relays[relay].up {
            return self.cut(host, region, turn);
        }
        let Some(link) = self.hosts[host].links.get_mut(&region).filter(|link| link.turn == turn) else { return };
        let before = std::mem::replace(&mut link.state, State::Connected { relay });
        self.tell_region(host, region, RegionState::Connected);
        if let State::Dialling { waiting } = before {
            waiting.into_iter().for_each(|(to, payload)| self.pass_on(host, to, region, relay, payload));
        }
    }

    /// A connection, or the attempt at one, has failed.
    pub(super) fn cut(&mut self, host: usize, region: RegionId, turn: u64) {
        let now = self.now;
        let Some(link) = self.hosts[host].links.get_mut(&region).filter(|link| link.turn == turn) else { return };
        link.state = State::Waiting;
        if now >= link.begun + LASTING {
            link.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << link.failures.min(16)).min(LONGEST_WAIT);
        link.failures += 1;
        let share = self.chance.below(1_000) as u32 + 500;
        self.after_for_agent(wait * share / 1_000, host, Happening::Dial { region, turn });
        self.tell_region(host, region, RegionState::Failed("connection refused".to_owned()));
    }

    /// The wait after a failure is over.
    pub(super) fn dial_again(&mut self, host: usize, region: RegionId, turn: u64) {
        let Some(link) = self.hosts[host].links.get(&region) else { return };
        let is_current = link.turn == turn && matches!(link.state, State::Waiting);
        if is_current && self.is_wanted(host, region) {
            self.dial(host, region);
        } else if is_current {
            self.hosts[host].links.remove(&region);
        }
    }

    fn is_wanted(&self, host: usize, region: RegionId) -> bool {
        let used = self.hosts[host].links.get(&region).map(|link| link.used);
        self.hosts[host].home == Some(region) || used.is_some_and(|used| self.now < used + IDLE)
    }

    /// Leaves regions that nobody uses.
    pub(super) fn leave_idle(&mut self, host: usize) {
        let regions: Vec<RegionId> = self.hosts[host].links.keys().copied().collect();
        for region in regions {
            if !self.is_wanted(host, region) {
                self.hosts[host].links.remove(&region);
            }
        }
    }

    // ---- packets ----

    /// By which region to send to a peer: its home, unless that does not work and one does by which it was heard.
    pub(super) fn region_towards(&self, host: usize, peer: usize) -> Option<RegionId> {
        let host = &self.hosts[host];
        let is_ready = |region: &RegionId| {
            host.links.get(region).is_some_and(|link| matches!(link.state, State::Connected { .. }))
        };
        let home = host.told.get(&peer).and_then(|entry| entry.region);
        let heard = host.heard.get(&peer).copied();
        let present = home.filter(|home| host.gone.get(&peer) != Some(home));
        present.filter(is_ready).or(heard.filter(is_ready)).or(home).or(heard)
    }

    /// Sends through a region's relay, which loses nothing while it works.
    pub(super) fn relay(&mut self, from: usize, to: usize, region: Option<RegionId>, payload: Payload) {
        let Some(region) = region else { return };
        if !self.hosts[from].links.contains_key(&region) {
            self.dial(from, region);
        }
        let now = self.now;
        let Some(link) = self.hosts[from].links.get_mut(&region) else { return };
        link.used = now;
        match &mut link.state {
            State::Dialling { waiting } => {
                if waiting.len() == QUEUE {
                    waiting.remove(0);
                }
                waiting.push((to, payload));
            }
            State::Connected { relay } => {
                let relay = *relay;
                self.pass_on(from, to, region, relay, payload);
            }
            State::Waiting => {}
        }
    }

    fn pass_on(&mut self, from: usize, to: usize, region: RegionId, relay: usize, payload: Payload) {
        let there = self.hosts[to].links.get(&region).and_then(|link| match link.state {
            State::Connected { relay } => Some(relay),
            _ => None,
        });
        if !self.relays[relay].up {
            return;
        }
        let pause = self.leg(from, region) + self.leg(to, region);
        if there.is_some_and(|there| self.relays[there].up) {
            self.after_for_agent(pause, to, Happening::Relayed { from, region, payload });
        } else if matches!(payload, Payload::Disco(_)) {
            // Only probes are answered so.
            self.after_for_agent(pause, from, Happening::Gone { peer: to, region });
        }
    }

    /// A relay says that a peer is not there.
    pub(super) fn gone(&mut self, host: usize, peer: usize, region: RegionId) {
        let host = &mut self.hosts[host];
        host.gone.insert(peer, region);
        if host.heard.get(&peer) == Some(&region) {
            host.heard.remove(&peer);
        }
    }

    /// A packet of a peer came by this region.
    pub(super) fn heard(&mut self, host: usize, peer: usize, region: RegionId) {
        let host = &mut self.hosts[host];
        host.heard.insert(peer, region);
        if host.gone.get(&peer) == Some(&region) {
            host.gone.remove(&peer);
        }
    }
}

impl Link {
    fn new(now: Duration) -> Self {
        Self { state: State::Waiting, turn: 0, failures: 0, begun: now, used: now }
    }
}
