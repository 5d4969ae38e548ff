//! What a state directory holds is made whole: what is broken, of another coordinator or of another machine is named, and
//! what is left is safe to begin with.

use super::clock::Now;
use super::entropy::Entropy;
use super::files::{Found, FoundFile, MapHeader, NodeKeys, Stored};
use super::health::{Health, code};
use super::home::Home;
use super::stored::Saves;
use super::{Engine, Machine, StateFile};
use crate::control::Pin;
use crate::netmap::Netmap;
use crate::types::{MachinePrivate, NodePrivate, NodePublic, Timestamp};
use crate::wire::control::MapResponse;
use crate::wire::local::{Prefs, Severity};

/// What an engine begins with.
pub(super) struct Loaded {
    pub(super) prefs: Prefs,
    pub(super) machine_key: MachinePrivate,
    /// The machine key is not the one that the node key was let in with: only a person can let this machine in again.
    pub(super) is_locked_out: bool,
    pub(super) node_key: Option<NodePrivate>,
    /// A node key that was to take the place of the present one, and may have.
    pub(super) spare_key: Option<NodePrivate>,
    pub(super) home: Home,
    pub(super) netmap: Netmap,
    pub(super) confirmed: Option<Timestamp>,
    pub(super) health: Health,
    pub(super) saves: Saves,
}

/// Makes whole what was found on this machine.
pub(super) fn load(stored: Stored, machine: &Machine, entropy: &mut Entropy, now: Now) -> Loaded {
    let Stored { machine: of_machine, machine_key, node_keys, prefs, home, map, is_copied, .. } = stored;
    let mut loading = Loading { health: Health::default(), saves: Saves::default(), now };
    loading.machine(of_machine, machine, is_copied);
    let is_in = node_keys.is_whole();
    let is_locked_out = !machine_key.is_whole() && is_in;
    let machine_key = loading.machine_key(machine_key, is_locked_out, entropy);
    let prefs = loading.prefs(prefs, &home, is_in);
    let (mut node_key, mut spare_key) = loading.node_keys(node_keys);
    let home = loading.home(home, &prefs, node_key.is_some());
    let home = if home.is_at(&prefs.control_url) || home == Home::default() {
        home
    } else {
        tracing::info!("node key and map are those of {}, not of {}: they are deleted", home.url, prefs.control_url);
        (node_key, spare_key) = (None, None);
        loading.saves.want_gone(StateFile::NodeKey, now);
        loading.saves.want_gone(StateFile::Map, now);
        loading.saves.want(StateFile::Coordinator, now);
        Home { url: prefs.control_url.clone(), ..Home::default() }
    };
    let (netmap, confirmed) = loading.map(map, node_key.as_ref());
    let Loading { health, saves, .. } = loading;
    Loaded { prefs, machine_key, is_locked_out, node_key, spare_key, home, netmap, confirmed, health, saves }
}

struct Loading {
    health: Health,
    saves: Saves,
    now: Now,
}

impl Loading {
    /// A disk that was copied into another machine brings keys along that are not this machine's.
    fn machine(&mut self, found: Found<Machine>, machine: &Machine, is_copied: bool) {
        if is_copied {
            let text = "this machine's disk was copied from another one: the keys on it are the other's. They were put \
                        aside, and this machine has to sign in under new ones: `warren up`. (Where it is the same \
                        machine after all, stop warrend, rename `machine.key.other-machine` and \
                        `node.key.other-machine` back, and start it)";
            self.health.set(code::COPIED, Severity::High, text, self.now.wall);
        }
        if machine.is_known() && found.whole().as_ref() != Some(machine) {
            self.saves.want(StateFile::Machine, self.now);
        }
    }

    fn machine_key(
        &mut self,
        found: Found<MachinePrivate>,
        is_locked_out: bool,
        entropy: &mut Entropy,
    ) -> MachinePrivate {
        let what = found.broken().map_or_else(|| "machine.key is missing".to_owned(), str::to_owned);
        let is_broken = found.broken().is_some();
        if let Some(key) = found.whole() {
            return key;
        }
        if is_locked_out {
            let text = format!(
                "{what}; without it the coordinator does not know this machine. What the last map says holds on; \
                 `warren login`, or `warren up --auth-key KEY`, makes new keys and signs in anew"
            );
            self.health.set(code::MACHINE_KEY, Severity::High, text, self.now.wall);
        } else {
            if is_broken {
                let text = format!("{what}; nobody was signed in with it, so a new one was made");
                self.health.note(code::MACHINE_KEY, Severity::Low, text, self.now.wall, self.now.tick);
            }
            // Written once somebody signs this machine in: an image of a machine that only booted brings no key along.
            self.saves.owe(StateFile::MachineKey);
        }
        MachinePrivate::from_random(entropy.key())
    }

    fn node_keys(&mut self, found: Found<NodeKeys>) -> (Option<NodePrivate>, Option<NodePrivate>) {
        if let Some(what) = found.broken() {
            let text = format!("{what}; this machine has to sign in under a new key: `warren up`");
            self.health.set(code::NODE_KEY, Severity::High, text, self.now.wall);
        }
        found.whole().map_or((None, None), |(present, spare)| (Some(present), spare))
    }

    /// Without its preferences a machine that was in stays in, and lets nobody in: it may be that nobody was to come in.
    fn prefs(&mut self, found: Found<Prefs>, home: &Found<Home>, was_in: bool) -> Prefs {
        let Some(what) = found.broken() else { return found.whole().unwrap_or_else(Prefs::initial) };
        let url = match home {
            Found::Whole(home) if was_in && !home.url.is_empty() => Some(home.url.clone()),
            Found::Whole(_) | Found::Absent | Found::Broken(_) => None,
        };
        let (prefs, then) = match url {
            Some(control_url) => (
                Prefs { control_url, want_running: true, shields_up: true, ..Prefs::initial() },
                "this machine stays in the network with its shields up and without the routes it may have offered, until \
                 `warren up --reset` or `warren set --shields-up=false` says what is wanted",
            ),
            None => (Prefs::initial(), "every setting is back at its default: `warren up` says what is wanted"),
        };
        self.health.set(code::PREFS, Severity::High, format!("{what}; {then}"), self.now.wall);
        self.saves.want(StateFile::Prefs, self.now);
        prefs
    }

    /// What was known of the coordinator's key and is lost cannot be learnt from whoever answers.
    fn home(&mut self, found: Found<Home>, prefs: &Prefs, was_in: bool) -> Home {
        let url = prefs.control_url.clone();
        let home = match &found {
            Found::Broken(_) => Home { url, pin: Pin::Lost, ..Home::default() },
            Found::Absent if was_in => {
                self.saves.want(StateFile::Coordinator, self.now);
                Home { url, ..Home::default() }
            }
            Found::Absent => Home::default(),
            Found::Whole(home) => home.clone(),
        };
        if home.pin == Pin::Lost {
            let what = found.broken().unwrap_or("coordinator.json was broken");
            let text = format!(
                "{what}; it held the coordinator's key, and no server is taken for the coordinator before a person says \
                 which key it has: `warren-coordinator status` prints it, `warren up --coordinator-key KEY` says it here"
            );
            self.health.set(code::COORDINATOR, Severity::High, text, self.now.wall);
        }
        home
    }

    /// A lost map is a fault that the coordinator mends.
    fn map(&mut self, found: Option<FoundFile>, node_key: Option<&NodePrivate>) -> (Netmap, Option<Timestamp>) {
        match load_map(found, node_key, self.now) {
            Ok(Some((netmap, confirmed))) => (netmap, Some(confirmed)),
            Ok(None) => (Netmap::default(), None),
            Err(error) => {
                let text = format!("{error}; it is left aside until the coordinator sends a new one");
                self.health.note("stored-map", Severity::Medium, text, self.now.wall, self.now.tick);
                (Netmap::default(), None)
            }
        }
    }
}

fn load_map(
    found: Option<FoundFile>,
    node_key: Option<&NodePrivate>,
    now: Now,
) -> Result<Option<(Netmap, Timestamp)>, String> {
    let Some(FoundFile { path, content }) = found else { return Ok(None) };
    let failed = |reason: String| format!("read {path}: {reason}");
    let broken = |error: serde_json::Error| failed(error.to_string());
    let content = content.map_err(failed)?;
    let Some(node_key) = node_key else { return Ok(None) };
    let content = content.expose_bytes();
    let end = content.iter().position(|byte| *byte == b'\n').unwrap_or(content.len());
    let (header, map) = content.split_at(end);
    let header: MapHeader = serde_json::from_slice(header).map_err(broken)?;
    let is_of = |key: &NodePublic| *key == node_key.public();
    if !is_of(&header.node_key) && !header.next_key.as_ref().is_some_and(is_of) {
        return Ok(None);
    }
    let map: MapResponse = serde_json::from_slice(map).map_err(broken)?;
    let mut netmap = Netmap::default();
    netmap.replace(map, now.wall);
    Ok(Some((netmap, header.confirmed)))
}

impl Engine {
    /// A person signs this machine in, whose old key is lost: everything that goes with that key is of no use.
    pub(super) fn unlock(&mut self, now: Now) {
        if std::mem::take(&mut self.identity.is_locked_out) {
            self.forget(now);
            self.saves.want(StateFile::MachineKey, now);
        }
    }

    /// This machine is in under the keys that it has: what was found wrong with others is past.
    pub(super) fn forgive_keys(&mut self) {
        for code in [code::MACHINE_KEY, code::NODE_KEY, code::COPIED] {
            self.health.clear(code);
        }
    }
}
