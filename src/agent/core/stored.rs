//! What is kept on disk, in which form, and when it is written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Core, Now};
use crate::agent::clock;
use crate::agent::health::Health;
use crate::agent::state::{StateDir, StateError, StateFile};
use crate::netmap::Netmap;
use crate::types::{MachinePrivate, NodePrivate, NodePublic, Timestamp};
use crate::wire::control::MapResponse;
use crate::wire::local::{Prefs, Severity};

/// A map that changes all the time is written this often.
const MAP_PACE: Duration = Duration::from_secs(5);
/// An unchanged map is written this often, for the sake of the time at which it was confirmed.
const MAP_CONFIRMED: Duration = Duration::from_secs(3_600);
/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(30);

/// Everything that a directory held.
pub(super) struct Stored {
    pub(super) prefs: Prefs,
    pub(super) machine_key: MachinePrivate,
    pub(super) node_key: Option<NodePrivate>,
    pub(super) netmap: Netmap,
    pub(super) confirmed: Option<Timestamp>,
    pub(super) health: Health,
    pub(super) saves: Saves,
}

/// Which files have to be written, and when.
#[derive(Debug, Default)]
pub(super) struct Saves {
    due: BTreeMap<StateFile, Instant>,
    under_way: usize,
}

/// The first line of a stored map; the map itself is the second.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MapHeader {
    /// When the coordinator last confirmed it.
    confirmed: Timestamp,
    /// Whose map it is: one of another key is of no use.
    node_key: NodePublic,
}

impl Saves {
    /// The content of a file has changed.
    pub(super) fn want(&mut self, file: StateFile, now: Now) {
        let pause = if file == StateFile::Map { MAP_PACE } else { Duration::ZERO };
        let at = now.tick + pause;
        self.due.entry(file).and_modify(|due| *due = at.min(*due)).or_insert(at);
    }

    /// There is nothing left that a file should hold: it goes at once.
    pub(super) fn want_gone(&mut self, file: StateFile, now: Now) {
        self.due.insert(file, now.tick);
    }

    /// A write has ended, well or not.
    pub(super) fn handle_done(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Whether nothing is being written or about to be.
    pub(super) fn is_quiet(&self, now: Now) -> bool {
        self.under_way == 0 && !self.due.values().any(|at| *at <= now.tick)
    }

    /// Writing a file failed.
    pub(super) fn retry(&mut self, file: StateFile, now: Now) {
        self.due.entry(file).or_insert(now.tick + RETRY);
    }

    /// A file whose time has come.
    pub(super) fn poll(&mut self, now: Now) -> Option<StateFile> {
        let file = *self.due.iter().find(|(_, at)| **at <= now.tick)?.0;
        self.due.remove(&file);
        self.under_way += 1;
        if file == StateFile::Map {
            self.due.insert(file, now.tick + MAP_CONFIRMED);
        }
        Some(file)
    }

    /// All that is still to be written.
    pub(super) fn take_all(&mut self) -> Vec<StateFile> {
        std::mem::take(&mut self.due).into_keys().collect()
    }

    /// When [`Saves::poll`] has something.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }
}

impl Core {
    /// What a file should hold; `None` where there should be no file.
    pub(super) fn content(&self, file: StateFile, now: Now) -> Option<Vec<u8>> {
        match file {
            StateFile::MachineKey => Some(self.machine_key.expose_text().as_bytes().to_vec()),
            StateFile::NodeKey => {
                let key = self.login.next_key.as_ref().or(self.node_key.as_ref());
                key.map(|key| key.expose_text().as_bytes().to_vec())
            }
            StateFile::Prefs => serde_json::to_vec_pretty(&self.prefs).ok(),
            StateFile::Map => self.map_content(now),
        }
    }

    fn map_content(&self, now: Now) -> Option<Vec<u8>> {
        let node_key = self.node_key.as_ref()?.public();
        self.netmap.node()?;
        let confirmed = if self.login.online { self.time(now) } else { self.confirmed? };
        let mut content = serde_json::to_vec(&MapHeader { confirmed, node_key }).ok()?;
        content.push(b'\n');
        content.append(&mut self.netmap.to_message().ok()?);
        Some(content)
    }
}

/// Reads a directory. A lost map is a health entry; keys and preferences that cannot be trusted are an error.
pub(super) fn load(dir: &StateDir, now: Now) -> Result<Stored, StateError> {
    let mut saves = Saves::default();
    let machine_key = match text(dir, StateFile::MachineKey)? {
        Some(text) => text.trim().parse().map_err(|error| dir.error(StateFile::MachineKey, error))?,
        None => {
            saves.want(StateFile::MachineKey, now);
            MachinePrivate::from_random(clock::key_bytes())
        }
    };
    let node_key: Option<NodePrivate> = match text(dir, StateFile::NodeKey)? {
        Some(text) => Some(text.trim().parse().map_err(|error| dir.error(StateFile::NodeKey, error))?),
        None => None,
    };
    let prefs = match dir.load(StateFile::Prefs)? {
        Some(json) => serde_json::from_slice(&json).map_err(|error| dir.error(StateFile::Prefs, error))?,
        None => Prefs::initial(),
    };
    let mut health = Health::default();
    let (netmap, confirmed) = match load_map(dir, node_key.as_ref(), now) {
        Ok(Some((netmap, confirmed))) => (netmap, Some(confirmed)),
        Ok(None) => (Netmap::default(), None),
        Err(error) => {
            let text = format!("{error}; it is left aside until the coordinator sends a new one");
            health.note("stored-map", Severity::Medium, text, now.wall, now.tick);
            (Netmap::default(), None)
        }
    };
    Ok(Stored { prefs, machine_key, node_key, netmap, confirmed, health, saves })
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

fn text(dir: &StateDir, file: StateFile) -> Result<Option<Zeroizing<String>>, StateError> {
    let Some(content) = dir.load(file)? else { return Ok(None) };
    let text = std::str::from_utf8(&content).map_err(|error| dir.error(file, error))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}
