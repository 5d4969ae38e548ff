//! What a state directory holds is made whole: what is broken, of another coordinator or of another machine is put aside
//! and named, and what is left is safe to begin with.

use std::fmt::Display;

use super::home::Home;
use super::stored::{MapHeader, Saves};
use super::{Core, Now};
use crate::clock;
use crate::health::Health;
use crate::host::Machine;
use crate::state::{StateDir, StateError, StateFile};
use warren_core::control::Pin;
use warren_core::netmap::Netmap;
use warren_core::types::{MachinePrivate, NodePrivate, Timestamp};
use warren_core::wire::control::MapResponse;
use warren_core::wire::local::{Prefs, Severity};

/// Everything that a directory held.
pub(super) struct Stored {
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

/// What became of a file.
enum Found<T> {
    Absent,
    Whole(T),
    /// It was put aside; the text says what was wrong and where it is now.
    Broken(String),
}

impl<T> Found<T> {
    fn whole(self) -> Option<T> {
        match self {
            Self::Whole(content) => Some(content),
            Self::Absent | Self::Broken(_) => None,
        }
    }

    fn broken(&self) -> Option<&str> {
        match self {
            Self::Broken(text) => Some(text),
            Self::Absent | Self::Whole(_) => None,
        }
    }
}

/// The codes of what may be found wrong; each goes once its cause does.
pub(super) mod code {
    pub(in crate::core) const MACHINE_KEY: &str = "machine-key";
    pub(in crate::core) const NODE_KEY: &str = "node-key";
    pub(in crate::core) const PREFS: &str = "preferences";
    pub(in crate::core) const COORDINATOR: &str = "coordinator-file";
    pub(in crate::core) const COPIED: &str = "copied-disk";
}

/// Reads a directory on this machine. A file that others could have read or written is an error.
pub(super) fn load(dir: &StateDir, machine: &Machine, now: Now) -> Result<Stored, StateError> {
    let mut loading = Loading { dir, health: Health::default(), saves: Saves::default(), now };
    loading.leave_other_machine(machine)?;
    let machine_key = loading.read(StateFile::MachineKey, |text| text.trim().parse::<MachinePrivate>())?;
    let node_keys = loading.read(StateFile::NodeKey, node_keys)?;
    let prefs = loading.read(StateFile::Prefs, |text| serde_json::from_str::<Prefs>(text))?;
    let home = loading.read(StateFile::Coordinator, |text| serde_json::from_str::<Home>(text))?;

    let is_locked_out = !matches!(machine_key, Found::Whole(_)) && matches!(node_keys, Found::Whole(_));
    let machine_key = loading.machine_key(machine_key, is_locked_out);
    let prefs = loading.prefs(prefs, &home, matches!(node_keys, Found::Whole(_)));
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
        Home { url: prefs.control_url.clone(), pin: Pin::FirstUse }
    };
    let (netmap, confirmed) = loading.map(node_key.as_ref());
    let Loading { health, saves, .. } = loading;
    Ok(Stored { prefs, machine_key, is_locked_out, node_key, spare_key, home, netmap, confirmed, health, saves })
}

/// The present key, and the one that was to follow it.
fn node_keys(text: &str) -> Result<(NodePrivate, Option<NodePrivate>), warren_core::types::KeyError> {
    let mut lines = text.lines();
    let present = lines.next().unwrap_or_default().trim().parse()?;
    Ok((present, lines.next().map(|line| line.trim().parse()).transpose()?))
}

struct Loading<'a> {
    dir: &'a StateDir,
    health: Health,
    saves: Saves,
    now: Now,
}

impl Loading<'_> {
    /// A file's content; what makes no sense is put aside.
    fn read<T, E: Display>(
        &self,
        file: StateFile,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Found<T>, StateError> {
        let Some(content) = self.dir.load(file)? else { return Ok(Found::Absent) };
        let parsed = std::str::from_utf8(&content).map_err(|error| error.to_string());
        let parsed = parsed.and_then(|text| parse(text).map_err(|error| error.to_string()));
        let reason = match parsed {
            Ok(whole) => return Ok(Found::Whole(whole)),
            Err(_) if content.iter().all(|byte| matches!(byte, 0 | b' ' | b'\n')) => "the file is empty".to_owned(),
            Err(reason) => reason,
        };
        let error = self.dir.error(file, reason);
        if file == StateFile::Coordinator {
            // In its place until a person's word replaces it: where it is gone, the first key that is met is taken.
            return Ok(Found::Broken(error.to_string()));
        }
        Ok(Found::Broken(match self.dir.put_aside(file, "broken") {
            Ok(aside) => format!("{error}; it was put aside as {}", aside.display()),
            Err(failed) => format!("{error}; it is left as it is ({failed})"),
        }))
    }

    /// A disk that was copied into another machine brings keys along that are not this machine's.
    fn leave_other_machine(&mut self, machine: &Machine) -> Result<(), StateError> {
        let stored = self.read(StateFile::Machine, |text| serde_json::from_str::<Machine>(text))?.whole();
        if stored.as_ref().is_some_and(|stored| machine.is_other_than(stored)) {
            let mut has_keys = false;
            for file in [StateFile::MachineKey, StateFile::NodeKey, StateFile::Map] {
                if self.dir.load(file)?.is_some() {
                    self.dir.put_aside(file, "other-machine")?;
                    has_keys = true;
                }
            }
            let text = "this machine's disk was copied from another one: the keys on it are the other's. They were put \
                        aside, and this machine has to sign in under new ones: `warren up`. (Where it is the same \
                        machine after all, stop warrend, rename `machine.key.other-machine` and \
                        `node.key.other-machine` back, and start it)";
            if has_keys {
                self.health.set(code::COPIED, Severity::High, text, self.now.wall);
            }
        }
        if machine.is_known() && stored.as_ref() != Some(machine) {
            self.saves.want(StateFile::Machine, self.now);
        }
        Ok(())
    }

    fn machine_key(&mut self, found: Found<MachinePrivate>, is_locked_out: bool) -> MachinePrivate {
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
        MachinePrivate::from_random(clock::key_bytes())
    }

    fn node_keys(
        &mut self,
        found: Found<(NodePrivate, Option<NodePrivate>)>,
    ) -> (Option<NodePrivate>, Option<NodePrivate>) {
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
            _ => None,
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
            Found::Broken(_) => Home { url, pin: Pin::Lost },
            Found::Absent if was_in => {
                self.saves.want(StateFile::Coordinator, self.now);
                Home { url, pin: Pin::FirstUse }
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
    fn map(&mut self, node_key: Option<&NodePrivate>) -> (Netmap, Option<Timestamp>) {
        match load_map(self.dir, node_key, self.now) {
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
    dir: &StateDir,
    node_key: Option<&NodePrivate>,
    now: Now,
) -> Result<Option<(Netmap, Timestamp)>, StateError> {
    let (Some(content), Some(node_key)) = (dir.load(StateFile::Map)?, node_key) else { return Ok(None) };
    let broken = |error: serde_json::Error| dir.error(StateFile::Map, error);
    let end = content.iter().position(|byte| *byte == b'\n').unwrap_or(content.len());
    let (header, map) = content.split_at(end);
    let header: MapHeader = serde_json::from_slice(header).map_err(broken)?;
    if header.node_key != node_key.public() {
        return Ok(None);
    }
    let map: MapResponse = serde_json::from_slice(map).map_err(broken)?;
    let mut netmap = Netmap::default();
    netmap.replace(map, now.wall);
    Ok(Some((netmap, header.confirmed)))
}

impl Core {
    /// A person signs this machine in, whose old key is lost: everything that goes with that key is of no use.
    pub(super) fn unlock(&mut self, now: Now) {
        if std::mem::take(&mut self.is_locked_out) {
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
