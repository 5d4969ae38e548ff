//! The agent's heart: what a node decides, with nothing outside in it.
//!
//! [`Engine`] holds every core of the agent by value and brings them in step: the session's events go into the map, the
//! map into the wish, the wish to the reconciler, and so on. Time, a seed, what the disk held and what the host says of
//! itself come in; what happened comes in through `handle_*`; [`Engine::proceed`] settles all parts; what is to be done
//! comes out of [`Engine::poll_effect`] (answers to requests too), and when to come back out of
//! [`Engine::poll_timeout`]. Nothing here waits, and the same inputs give the same outputs.
//!
//! ```text
//!   handle_received (coordinator) ──> control::Session ──> Netmap ──┐
//!   handle_call (local socket) ─────> Prefs ────────────────────────┤     plan::Planner = Desired
//!   handle_networks, handle_host ─────────> Surroundings ───────────┼──────────────┬──────────────> plan::Reconciler
//!   handle_datagram, handle_pump ─> path::Book, netcheck::Netcheck ─┘              │                     │
//!   handle_observed, handle_steps (kernel) ────────────────────────────────────────┴─────────────────────┤
//!                                                                                                        v
//!   poll_effect: Answer, Watch, Notice | Connect, Transmit | Save | Datagram, Pump, Counters, Netcheck, Echo | Kernel, Figures, LookUpRoute | Names, HostNames, Question
//! ```

mod answer;
mod calls;
mod clock;
mod debug;
mod effect;
mod entropy;
mod exit_node;
mod files;
mod health;
mod home;
mod host_names;
mod kernel;
mod load;
mod login;
mod machine;
mod network;
mod paths;
mod ping;
mod proceed;
mod pump;
mod report;
mod request;
mod rotation;
mod stored;
mod timer;
mod tracked;
mod watchers;
mod why;
mod wish;

use std::collections::VecDeque;
use std::time::Instant;

use sha2::{Digest, Sha256};

pub use clock::{CoordinatorClock, Now};
pub use effect::{Datagram, Effect, Networks, Settings};
pub use exit_node::Askers;
pub use files::{Aside, FileContent, FoundFile, StateFile, Stored};
pub use host_names::dns_answer;
pub use machine::Machine;
pub use pump::{Direct, PumpCommand, PumpCounters, PumpNews, PumpPeer, RegionState};
pub use request::{Answer, CallId, Caller, Refusal, Request, Subject};

use calls::{Awaited, Calls};
use entropy::Entropy;
use health::Health;
use host_names::HostSide;
use network::Surroundings;
use paths::Relays;
use ping::Pings;
use stored::Saves;
use tracked::{Computed, Inputs, Tracked};
use watchers::Watchers;

use crate::control::{Received, Session};
use crate::dns::{self, Upstream};
use crate::netcheck::{self, Netcheck};
use crate::netmap::Netmap;
use crate::path::Book;
use crate::plan::{Planner, Reconciler};
use crate::types::{DiscoPrivate, MachinePrivate, NodePrivate, Timestamp};
use crate::wire::control::Hostinfo;
use crate::wire::local::{BackendState, Notify, Prefs, Severity};

/// The version that we show to people and to other machines.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Room kept for effects while there are none.
const IDLE_ROOM: usize = 256;

/// What the agent decides. See the module.
pub struct Engine {
    settings: Settings,
    entropy: Entropy,
    clock: CoordinatorClock,
    identity: Identity,
    /// What this host says of itself; the preferences fill the rest in.
    host: Tracked<Hostinfo>,
    prefs: Tracked<Prefs>,
    home: home::Home,
    login: login::Login,
    rotation: Tracked<Option<rotation::Rotation>>,
    session: Option<Session>,
    netmap: Tracked<Netmap>,
    /// When the coordinator last confirmed the map, as far as is known while there is no connection.
    confirmed: Option<Timestamp>,
    surroundings: Surroundings,
    host_side: HostSide,
    book: Book,
    /// Counts the changes of paths to peers.
    path_changes: Tracked<()>,
    relays: Relays,
    netcheck: Netcheck,
    planner: Planner,
    reconciler: Reconciler,
    made: Made,
    /// No map was had yet since the start: what the kernel holds may be all that carries traffic.
    adopting: bool,
    health: Health,
    saves: Saves,
    calls: Calls,
    pings: Pings,
    past: why::Past,
    watchers: Watchers,
    /// The state that watchers were last told.
    told_state: BackendState,
    memory: Memory,
    effects: VecDeque<Effect>,
}

/// Who this machine is.
struct Identity {
    machine: Machine,
    machine_key: MachinePrivate,
    /// The machine key is not the one that the node key was let in with: only a person can let this machine in again.
    is_locked_out: bool,
    node_key: Tracked<Option<NodePrivate>>,
    /// The next one, where it may be that the coordinator knows that one already.
    spare_key: Option<NodePrivate>,
    disco_key: DiscoPrivate,
}

/// What was made from which inputs.
struct Made {
    /// What book, pump and look at the network know of peers.
    peers: Computed<5>,
    wish: Computed<10>,
    /// What we tell the coordinator of ourselves.
    facts: Computed<3>,
    /// What the resolver answers.
    names: Computed<5>,
}

/// When memory is to be given back: after a look at the kernel, which takes more than anything else.
#[derive(Debug, Default)]
struct Memory {
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Engine {
    /// Begins where the disk leaves off. The seed is nobody else's to know: keys come of it.
    pub fn new(settings: Settings, stored: Stored, host: Hostinfo, seed: [u8; 32], now: Now) -> Self {
        let mut entropy = Entropy::new(seed);
        let loaded = load::load(stored, &settings.machine, &mut entropy, now);
        let disco_key = disco_key(&loaded.machine_key);
        let own_key = loaded.node_key.as_ref().map(NodePrivate::public).unwrap_or_default();
        let config = netcheck::Config {
            seed: entropy.key(),
            port: settings.port,
            explicit: settings.explicit_endpoints.clone(),
            nonce: netcheck::Config::nonce(&loaded.machine_key),
        };
        let book = Book::new(disco_key.clone(), own_key, entropy.key());
        let identity = Identity {
            machine: settings.machine.clone(),
            machine_key: loaded.machine_key,
            is_locked_out: loaded.is_locked_out,
            node_key: Tracked::new(loaded.node_key),
            spare_key: loaded.spare_key,
            disco_key,
        };
        let mut engine = Self {
            entropy,
            clock: CoordinatorClock::default(),
            identity,
            host: Tracked::new(host),
            prefs: Tracked::new(loaded.prefs),
            home: loaded.home,
            login: login::Login::default(),
            rotation: Tracked::default(),
            session: None,
            netmap: Tracked::new(loaded.netmap),
            confirmed: loaded.confirmed,
            surroundings: Surroundings::new(),
            host_side: HostSide::default(),
            book,
            path_changes: Tracked::default(),
            relays: Relays::default(),
            netcheck: Netcheck::new(config),
            planner: Planner::default(),
            reconciler: Reconciler::new(),
            made: Made {
                peers: Computed::NEVER,
                wish: Computed::NEVER,
                facts: Computed::NEVER,
                names: Computed::NEVER,
            },
            adopting: true,
            health: loaded.health,
            saves: loaded.saves,
            calls: Calls::default(),
            pings: Pings::default(),
            past: why::Past::default(),
            watchers: Watchers::default(),
            told_state: BackendState::NoState,
            memory: Memory::default(),
            effects: VecDeque::new(),
            settings,
        };
        // A session begins with the facts as they are.
        engine.made.facts = Computed::from(engine.inputs_of_facts());
        let is_in = engine.identity.node_key.is_some() && !engine.identity.is_locked_out;
        if engine.prefs.want_running && is_in {
            engine.start_session(crate::control::Login::default(), now);
        }
        engine
    }

    // ---- what happens ----

    /// The coordinator answered.
    pub fn handle_received(&mut self, received: Received, now: Now) {
        let Some(session) = &mut self.session else { return };
        if let Received::ServerKey(key) = received {
            self.handle_server_key(key, now);
        } else {
            session.handle_received(received, now.tick);
        }
    }

    /// A file was written, or could not be; says why.
    pub fn handle_saved(&mut self, file: StateFile, result: Result<(), String>, now: Now) {
        let code = format!("state:{}", file.name());
        self.saves.handle_done(file, result.is_ok());
        match result {
            Ok(()) => self.health.clear(&code),
            Err(error) => {
                let text = format!(
                    "{error}; the network goes on, but a restart would begin from an older state. Make room, or make \
                     the directory writable"
                );
                self.saves.retry(file, error, now);
                if !self.saves.has_identity() {
                    self.give_up_login(&text, now);
                }
                self.health.set(&code, Severity::High, text, now.wall);
            }
        }
    }

    /// A fault that was found outside, and lasts.
    pub fn report(&mut self, code: &str, severity: Severity, text: String, wall: Timestamp) {
        self.health.set(code, severity, text, wall);
    }

    /// Asks for everything that is not on disk yet to be written; the agent is about to end.
    pub fn handle_stop(&mut self, now: Now) {
        self.note_confirmed(now);
        for file in self.saves.take_all() {
            let content = self.content(file, now);
            self.effects.push_back(Effect::Save(file, content));
        }
    }

    // ---- what follows ----

    /// What to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if effect.is_none() {
            // The first map is an effect of every peer; that much room is not needed again.
            self.effects.shrink_to(IDLE_ROOM);
        }
        effect
    }

    // ---- what can be seen ----

    /// The paths to peers.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// What is known of this host's network.
    pub const fn network_report(&self) -> &netcheck::Report {
        self.netcheck.report()
    }

    /// Whether the kernel holds the whole wish, and the wish is up to date.
    pub fn is_settled(&self) -> bool {
        self.is_wish_current() && self.reconciler.is_settled()
    }

    /// Brings a resolver up to date: with the map while this machine is in the network, with nothing else.
    pub fn update_resolver(&self, resolver: &mut dns::Server) {
        let servers = self.name_servers();
        resolver.set_way_out(self.way_out());
        match self.login.was_open {
            true => resolver.update(&self.netmap, &servers),
            false => resolver.update(&Netmap::default(), &servers),
        }
    }

    /// Whom this host asks by itself.
    fn name_servers(&self) -> Vec<Upstream> {
        let servers = self.surroundings.resolvers.iter().map(|address| Upstream::from(*address));
        let (local, others): (Vec<Upstream>, Vec<Upstream>) = servers.partition(Upstream::is_on_this_host);
        // A server on this host stands for those that it asks itself, which are named beside it where they are known.
        if others.is_empty() { local } else { others }
    }

    // ---- what is up to date ----

    /// What book, pump and look at the network are told of peers comes of these.
    fn inputs_of_peers(&self) -> Inputs<5> {
        Inputs([
            self.netmap.version(),
            self.prefs.version(),
            self.identity.node_key.version(),
            self.surroundings.networks.version(),
            self.login.was_open.into(),
        ])
    }

    /// The wish comes of these.
    fn inputs_of_wish(&self) -> Inputs<10> {
        Inputs([
            self.netmap.version(),
            self.prefs.version(),
            self.identity.node_key.version(),
            self.surroundings.networks.version(),
            self.surroundings.routes.version(),
            self.surroundings.links.version(),
            self.surroundings.resolvers.version(),
            self.path_changes.version(),
            self.rotation.version(),
            self.login.was_open.into(),
        ])
    }

    /// What the coordinator is told of us comes of these.
    fn inputs_of_facts(&self) -> Inputs<3> {
        Inputs([self.host.version(), self.prefs.version(), self.surroundings.facts.version()])
    }

    /// What the resolver answers comes of these.
    fn inputs_of_names(&self) -> Inputs<5> {
        Inputs([
            self.netmap.version(),
            self.prefs.version(),
            self.surroundings.networks.version(),
            self.surroundings.resolvers.version(),
            self.login.was_open.into(),
        ])
    }

    /// Whether the wish is the one for the present state of things.
    fn is_wish_current(&self) -> bool {
        self.made.wish.is_current(self.inputs_of_wish())
    }

    // ---- details ----

    /// What time it is, to judge by what the coordinator says.
    fn time(&self, now: Now) -> Timestamp {
        self.clock.time(now)
    }

    fn renew_names(&mut self) {
        if self.settings.resolver_port.is_some() && self.made.names.renew(self.inputs_of_names()) {
            self.effects.push_back(Effect::Names);
        }
    }

    fn reply(&mut self, id: CallId, answer: impl Into<Answer>) {
        self.effects.push_back(Effect::Answer(id, answer.into()));
    }

    fn notify(&mut self, notice: &Notify) {
        self.effects.extend(self.watchers.notice(notice).map(Effect::Notice));
    }
}

/// The key of our probes. It comes of the machine key, so that peers which learned it go on after a restart, also while
/// no coordinator could tell them another.
fn disco_key(machine: &MachinePrivate) -> DiscoPrivate {
    // The secret seeds a hash of its own domain; nothing of it can be read from the outcome.
    let digest = Sha256::new().chain_update(b"warren disco key").chain_update(machine.expose_bytes()).finalize();
    DiscoPrivate::from_random(digest.into())
}
