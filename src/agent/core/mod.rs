//! What the agent decides: everything that the loop owns, by value.
//!
//! Things come in through `handle_*`; [`Core::proceed`] then brings every part in step with the others (the session's
//! events into the map, the map into the wish, the wish to the reconciler); what is to be done outside comes out of
//! [`Core::poll_effect`], and when to come back out of [`Core::poll_timeout`]. Nothing here waits.

mod answer;
mod debug;
mod home;
mod load;
mod login;
mod network;
mod paths;
mod ping;
mod report;
mod stored;
mod watchers;
mod why;
mod wish;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

pub use debug::Metrics;

use super::clock::{CoordinatorClock, Now};
use super::health::Health;
use super::host::{self, Machine};
use super::local_api::Answer;
use super::relay_pump::PumpCommand;
use super::state::{StateDir, StateError, StateFile};
use warren_core::control::{Pin, Received, ServerUrl, Session, Transmit};
use warren_core::netmap::Netmap;
use warren_core::path::netcheck::{self, Netcheck};
use warren_core::path::{Book, Evidence, Standing};
use warren_core::plan::{Action, Change, FirewallOptions, KernelError, Observed, Planner, Probes, Reconciler, own};
use warren_core::types::{DiscoPrivate, Gather, IpNet, MachinePrivate, NodePrivate, Timestamp};
use warren_core::wire::control::Hostinfo;
use warren_core::wire::local::{BackendState, Notify, Prefs, RelaysReply, Severity, WhyQuestion};

use paths::Relays;
use ping::Pings;
use stored::{Kept, Saves};
use watchers::Watchers;

/// Memory is given back at most this often: with 10,000 peers it takes milliseconds.
const TIDY_PACE: Duration = Duration::from_secs(15);

/// Room kept for effects while there are none.
const IDLE_ROOM: usize = 256;

/// What the core is told once.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The UDP port of the tunnel.
    pub port: u16,
    /// Past this age of the map, the network is closed.
    pub max_map_age: Option<Duration>,
    /// How the firewall is to be.
    pub firewall: FirewallOptions,
    /// Networks that the operator says are the host's own, though no address and no route of it tells.
    pub keep_local: BTreeSet<IpNet>,
    /// Where the operator says that the tunnel can be reached.
    pub explicit_endpoints: Vec<SocketAddr>,
    /// The port of the loopback socket for relayed packets; without it, no relay is used.
    pub relay_port: Option<u16>,
    /// Whether peers may carry packets to the host's name servers.
    pub route_resolvers: bool,
    /// The port where probes arrive that the firewall diverts; without it, no direct path is looked for.
    pub probe_port: Option<u16>,
    /// Which machine this is.
    pub machine: Machine,
}

impl Settings {
    /// The ports that the firewall has to know. One that is not there leads to nobody, which does no harm.
    fn probes(&self) -> Option<Probes> {
        (self.probe_port.is_some() || self.relay_port.is_some()).then(|| Probes {
            wireguard_port: self.port,
            probe_port: self.probe_port.unwrap_or(own::PROBE_PORT),
            relay_port: self.relay_port.unwrap_or(own::RELAY_PORT),
        })
    }
}

/// What the loop is to do.
#[derive(Debug)]
pub enum Effect {
    /// Talk to this coordinator from here on, and to no other.
    Connect(Box<ServerUrl>, MachinePrivate, Pin),
    /// Ask the coordinator.
    Transmit(Transmit),
    /// Look at the kernel or change it.
    Kernel(Action),
    /// Ask the kernel what our table holds and has counted.
    Figures,
    /// Ask the kernel where packets to this address go.
    Way(IpAddr),
    /// Write a file, or remove it where there is no content.
    Save(StateFile, Option<Vec<u8>>),
    /// Send a datagram from WireGuard's port.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// From which address of ours, where that matters.
        from: Option<IpAddr>,
        /// What it holds.
        payload: Vec<u8>,
    },
    /// Answer with the pump's counters filled in.
    Counters(RelaysReply, oneshot::Sender<Answer>),
    /// Answer with these figures and the pump's.
    Metrics(Metrics, oneshot::Sender<Answer>),
    /// Tell the relay pump.
    Pump(PumpCommand),
    /// Forget what was found out of the host's addresses and routes.
    Rebind,
    /// Find something out about the network.
    Netcheck(netcheck::Action),
    /// Give back the memory that what is done has left behind.
    GiveBackMemory,
    /// Send an ICMP echo through the tunnel, and hand its outcome in under this number.
    Echo(u64, IpAddr),
}

/// The host's own addresses outside the overlay, each with the length of its on-link prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// All of them: what the overlay must never swallow.
    pub all: BTreeSet<IpNet>,
    /// Those whose interface has a carrier: where packets come and go at this moment.
    pub live: BTreeSet<IpNet>,
    /// What is known of their interfaces.
    pub standings: BTreeMap<IpNet, Standing>,
    /// Where routes of the host's own lead, beyond those.
    pub routes: BTreeSet<IpNet>,
}

/// The state of the agent.
pub struct Core {
    settings: Settings,
    /// What this host says of itself; the preferences fill the rest in.
    host: Hostinfo,
    prefs: Prefs,
    machine_key: MachinePrivate,
    node_key: Option<NodePrivate>,
    /// The next one, where it may be that the coordinator knows that one already.
    spare_key: Option<NodePrivate>,
    /// The machine key is not the one that the node key was let in with: only a person can let this machine in again.
    is_locked_out: bool,
    machine: Machine,
    home: home::Home,
    disco_key: DiscoPrivate,
    login: login::Login,
    session: Option<Session>,
    clock: CoordinatorClock,
    netmap: Netmap,
    /// When the coordinator last confirmed the map, as far as is known while there is no connection.
    confirmed: Option<Timestamp>,
    book: Book,
    relays: Relays,
    netcheck: Netcheck,
    /// Whether a look at the network has ended since the start.
    looked_at_network: bool,
    pings: Pings,
    /// The host's own addresses; there is no wish before they are known.
    networks: Option<Networks>,
    /// The name servers that the host asks.
    resolvers: BTreeSet<IpAddr>,
    planner: Planner,
    reconciler: Reconciler,
    health: Health,
    watchers: Watchers,
    saves: Saves,
    stale: Stale,
    /// Facts that are to be told.
    told: Gather,
    /// Changes of the host's addresses that others are to hear of, and the addresses that went.
    moved: Gather,
    lost: BTreeSet<IpNet>,
    /// No map was had yet since the start: what the kernel holds may be all that carries traffic.
    adopting: bool,
    /// The state that watchers were last told.
    told_state: BackendState,
    /// Whoever waits for the kernel to hold the wish, and until when.
    settling: Vec<(Instant, oneshot::Sender<Answer>)>,
    /// Whoever waits for a status with fresh counters, and until when.
    looking: Vec<(Instant, oneshot::Sender<Answer>)>,
    logging_out: Vec<oneshot::Sender<Answer>>,
    /// Whoever waits for the disk, and until when.
    keeping: Vec<(Instant, Kept, oneshot::Sender<Answer>)>,
    /// Whoever waits for a whole look at the network, and until when.
    netchecking: Vec<(Instant, oneshot::Sender<Answer>)>,
    /// Whoever waits for what the kernel's table says.
    asked: Vec<(why::Question, oneshot::Sender<Answer>)>,
    /// Whoever waits for where packets go.
    asked_ways: Vec<(IpAddr, WhyQuestion, oneshot::Sender<Answer>)>,
    past: why::Past,
    /// When memory is to be given back: after a look at the kernel, which takes more than anything else.
    tidy_at: Option<Instant>,
    tidied: Option<Instant>,
    effects: VecDeque<Effect>,
}

/// What has to be computed anew.
#[derive(Clone, Copy, Debug, Default)]
struct Stale {
    /// Candidates of peers.
    paths: bool,
    /// The wish.
    wish: bool,
    /// What we tell the coordinator of ourselves.
    facts: bool,
}

impl Core {
    /// Takes over what a directory holds, and begins where that leaves off.
    pub fn load(settings: Settings, dir: &StateDir, now: Now) -> Result<Self, StateError> {
        let stored = load::load(dir, &settings.machine, now)?;
        let disco_key = disco_key(&stored.machine_key);
        let own_key = stored.node_key.as_ref().map(NodePrivate::public).unwrap_or_default();
        let config = netcheck::Config {
            seed: super::clock::key_bytes(),
            port: settings.port,
            explicit: settings.explicit_endpoints.clone(),
            nonce: netcheck::Config::nonce(&stored.machine_key),
        };
        let mut core = Self {
            host: host::facts(),
            prefs: stored.prefs,
            machine_key: stored.machine_key,
            node_key: stored.node_key,
            spare_key: stored.spare_key,
            is_locked_out: stored.is_locked_out,
            machine: settings.machine.clone(),
            home: stored.home,
            book: Book::new(disco_key.clone(), own_key, super::clock::key_bytes()),
            disco_key,
            relays: Relays::default(),
            netcheck: Netcheck::new(config),
            looked_at_network: false,
            pings: Pings::default(),
            login: login::Login::default(),
            session: None,
            clock: CoordinatorClock::default(),
            netmap: stored.netmap,
            confirmed: stored.confirmed,
            networks: None,
            resolvers: BTreeSet::new(),
            planner: Planner::default(),
            reconciler: Reconciler::new(),
            health: stored.health,
            watchers: Watchers::default(),
            saves: stored.saves,
            stale: Stale { paths: true, wish: true, facts: false },
            told: Gather::new(network::GATHER, network::FACTS_PACE.0, network::FACTS_PACE.1),
            moved: Gather::new(network::GATHER, network::MOVED_PACE.0, network::MOVED_PACE.1),
            lost: BTreeSet::new(),
            adopting: true,
            told_state: BackendState::NoState,
            settling: Vec::new(),
            looking: Vec::new(),
            logging_out: Vec::new(),
            keeping: Vec::new(),
            netchecking: Vec::new(),
            asked: Vec::new(),
            asked_ways: Vec::new(),
            past: why::Past::default(),
            tidy_at: None,
            tidied: None,
            effects: VecDeque::new(),
            settings,
        };
        if core.prefs.want_running && core.node_key.is_some() && !core.is_locked_out {
            core.start_session(warren_core::control::Login::default(), now);
        }
        Ok(core)
    }

    /// The kernel was looked at.
    pub fn handle_observed(&mut self, observed: Result<Observed, KernelError>, now: Now) {
        self.reconciler.handle_observed(observed, now.tick);
        let device = self.reconciler.observed().and_then(|observed| observed.device.as_ref());
        for (key, peer) in device.iter().flat_map(|device| &device.peers) {
            let evidence = Evidence {
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            };
            self.book.handle_observed(key, evidence, now.tick, now.wall);
        }
        self.book.handle_looked(now.tick);
        self.tidy_at.get_or_insert(self.tidied.map_or(now.tick, |at| now.tick.max(at + TIDY_PACE)));
        for (_, reply) in std::mem::take(&mut self.looking) {
            // Nobody waits any more where this fails; so below.
            let _ = reply.send(self.status_json(true, now));
        }
    }

    /// Steps were carried out, or failed.
    pub fn handle_steps(&mut self, results: Vec<Result<(), KernelError>>, now: Now) {
        self.reconciler.handle_steps(results, now.tick);
    }

    /// Something in the kernel may have changed.
    pub fn handle_kernel_changed(&mut self, change: Change, now: Now) {
        match change {
            Change::Something => self.reconciler.handle_changed(now.tick),
            Change::FirewallGone => self.reconciler.handle_firewall_gone(now.tick),
        }
    }

    /// The coordinator answered.
    pub fn handle_received(&mut self, received: Received, now: Now) {
        let Some(session) = &mut self.session else { return };
        if let Received::ServerKey(key) = received {
            self.handle_server_key(key, now);
        } else {
            session.handle_received(received, now.tick);
        }
    }

    /// A file was written, or could not be.
    pub fn handle_saved(&mut self, file: StateFile, result: Result<(), StateError>, now: Now) {
        let code = format!("state:{}", file.name());
        self.saves.handle_done(file, result.is_ok());
        match result {
            Ok(()) => self.health.clear(&code),
            Err(error) => {
                let text = format!(
                    "{error}; the network goes on, but a restart would begin from an older state. Make room, or make \
                     the directory writable"
                );
                self.saves.retry(file, error.to_string(), now);
                if !self.saves.has_identity() {
                    self.give_up_login(&text, now);
                }
                self.health.set(&code, Severity::High, text, now.wall);
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if let Some(session) = &mut self.session {
            session.handle_timeout(now.tick);
        }
        self.reconciler.handle_timeout(now.tick);
        self.book.handle_timeout(now.tick);
        self.netcheck.handle_timeout(now.tick);
        self.stale.facts |= self.told.take(now.tick);
        self.tell_of_networks(now);
        self.expire_pings(now);
        self.expire_netchecks(now);
        if self.netmap.expire(self.time(now)) {
            self.stale.paths = true;
            self.stale.wish = true;
        }
        self.stale.wish |= self.open_for_traffic(now) != self.login.was_open;
        for (_, reply) in self.looking.extract_if(.., |(until, _)| *until <= now.tick).collect::<Vec<_>>() {
            let _ = reply.send(self.status_json(true, now));
        }
    }

    /// What time it is, to judge by what the coordinator says.
    fn time(&self, now: Now) -> Timestamp {
        self.clock.time(now)
    }

    /// Brings everything in step.
    pub fn proceed(&mut self, now: Now) {
        self.begin_login(now);
        self.handle_session_events(now);
        self.renew_peers(now);
        self.handle_netcheck_events(now);
        self.handle_book_events(now);
        self.handle_netcheck_events(now);
        self.renew_facts(now);
        self.renew_wish(now);
        self.send_probes();
        self.send_netcheck();
        while let Some(event) = self.reconciler.poll_event() {
            tracing::info!("kernel: {event:?}");
        }
        if self.tidy_at.take_if(|at| *at <= now.tick).is_some() {
            self.tidied = Some(now.tick);
            self.effects.push_back(Effect::GiveBackMemory);
        }
        if let Some(action) = self.reconciler.poll_action() {
            self.effects.push_back(Effect::Kernel(action));
        }
        if let Some(session) = &mut self.session {
            while let Some(transmit) = session.poll_transmit() {
                self.effects.push_back(Effect::Transmit(transmit));
            }
        }
        while let Some(file) = self.saves.poll(now) {
            let content = self.content(file, now);
            self.effects.push_back(Effect::Save(file, content));
        }
        self.renew_health(now);
        self.tell_settled(now);
        self.tell_kept(now);
        self.tell_watchers(now);
    }

    /// What to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if effect.is_none() {
            // The first map is an effect of every peer; that much room is not needed again.
            self.effects.shrink_to(IDLE_ROOM);
        }
        effect
    }

    /// When to call [`Core::handle_timeout`].
    pub fn poll_timeout(&self, now: Now) -> Option<Instant> {
        let on_the_wall = [self.netmap.next_expiry(), self.own_expiry(), self.closes_at()];
        let time = self.time(now);
        let soon = |at: Timestamp| now.tick + Duration::try_from(at.duration_since(time)).unwrap_or_default();
        let on_the_wall = on_the_wall.into_iter().flatten().filter(|at| *at > time).map(soon);
        let waiting = self.settling.iter().chain(&self.looking).chain(&self.netchecking).map(|(until, _)| *until);
        [
            self.session.as_ref().and_then(Session::poll_timeout),
            self.reconciler.poll_timeout(),
            self.book.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.pings.poll_timeout(),
            self.told.poll_timeout(),
            self.moved.poll_timeout(),
            self.tidy_at,
            self.health.poll_timeout(),
            self.watchers.poll_timeout(),
            self.saves.poll_timeout(),
            self.complaints_timeout(now),
        ]
        .into_iter()
        .flatten()
        .chain(on_the_wall)
        .chain(waiting)
        .chain(self.keeping.iter().map(|(until, ..)| *until))
        .min()
    }

    /// Asks for everything that is not on disk yet to be written; the agent is about to end.
    pub fn handle_stop(&mut self, now: Now) {
        self.note_confirmed(now);
        for file in self.saves.take_all() {
            let content = self.content(file, now);
            self.effects.push_back(Effect::Save(file, content));
        }
    }

    /// A fault that was found before the core was there, and lasts.
    pub fn report(&mut self, code: &str, severity: Severity, text: String, wall: Timestamp) {
        self.health.set(code, severity, text, wall);
    }

    /// Answers who waits for kernel and disk to hold what they should.
    fn tell_settled(&mut self, now: Now) {
        let settled = self.is_settled();
        // What could not be had is health's matter where the rest works.
        let works = !self.stale.wish && self.reconciler.works();
        self.login.has_run |= works && self.login.was_open && self.netmap.node().is_some();
        let done = settled && self.saves.is_quiet(now);
        for (_, reply) in self.settling.extract_if(.., |(until, _)| done || *until <= now.tick).collect::<Vec<_>>() {
            let _ = reply.send(self.status_json(false, now));
        }
    }

    fn tell_watchers(&mut self, now: Now) {
        let state = self.state(now);
        if state != self.told_state {
            self.told_state = state;
            tracing::info!("state: {state}");
            self.watchers.tell(&Notify { state: Some(state.number()), ..Notify::default() });
        }
        let moved = self.watchers.take_moved(now.tick);
        if !moved.is_empty() {
            let paths = moved.iter().filter_map(|key| self.peer_path(key, now)).collect();
            self.watchers.tell(&Notify { paths, ..Notify::default() });
        }
        if self.health.take_changed() {
            self.watchers.tell(&Notify { health: Some(self.health.state()), ..Notify::default() });
        }
    }
}

/// The key of our probes. It comes of the machine key, so that peers which learned it go on after a restart, also while
/// no coordinator could tell them another.
fn disco_key(machine: &MachinePrivate) -> DiscoPrivate {
    // The secret seeds a hash of its own domain; nothing of it can be read from the outcome.
    let digest = Sha256::new().chain_update(b"warren disco key").chain_update(machine.expose_bytes()).finalize();
    DiscoPrivate::from_random(digest.into())
}
