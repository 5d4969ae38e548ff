//! The files of a state directory: what they are called and hold, and what is made of their contents.
//!
//! What makes no sense, and what is of another machine, is to be put aside before anything else is written:
//! [`Stored::poll_aside`] says which files, and hears how that went.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Machine;
use super::home::Home;
use crate::types::{KeyError, MachinePrivate, NodePrivate, NodePublic, Timestamp};
use crate::wire::local::Prefs;

/// The files of a state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateFile {
    /// Who this machine is to its coordinator.
    MachineKey,
    /// The WireGuard key.
    NodeKey,
    /// What the operator wants.
    Prefs,
    /// The coordinator that the node key and the map are of, and its key.
    Coordinator,
    /// The machine on which the keys were made.
    Machine,
    /// What the coordinator last said.
    Map,
}

impl StateFile {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::MachineKey, Self::NodeKey, Self::Prefs, Self::Coordinator, Self::Machine, Self::Map];

    /// The name within the directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MachineKey => "machine.key",
            Self::NodeKey => "node.key",
            Self::Prefs => "prefs.json",
            Self::Coordinator => "coordinator.json",
            Self::Machine => "machine.json",
            Self::Map => "map.json",
        }
    }

    /// The most bytes that are read; a map of the largest size that we take fits.
    pub const fn limit(self) -> u64 {
        match self {
            Self::MachineKey | Self::NodeKey => 256,
            Self::Coordinator | Self::Machine => 8 << 10,
            Self::Prefs => 1 << 20,
            Self::Map => 64 << 20,
        }
    }
}

/// What a file holds, which may be a key.
#[derive(Clone, PartialEq, Eq)]
pub struct FileContent(Zeroizing<Vec<u8>>);

impl FileContent {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves: to write them to the disk, or to read what they say.
    pub fn expose_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes, redacted]", self.0.len())
    }
}

/// A file that is there.
#[derive(Clone, Debug)]
pub struct FoundFile {
    /// Where, for people.
    pub path: String,
    /// What it holds, or why it cannot be read.
    pub content: Result<FileContent, String>,
}

/// Why a file is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// It makes no sense.
    Broken,
    /// It is of another machine, and must not be lost.
    OtherMachine,
}

impl Aside {
    /// What its name ends with from then on.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::OtherMachine => "other-machine",
        }
    }
}

/// The first line of a stored map; the map itself is the second.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MapHeader {
    /// When the coordinator last confirmed it.
    pub(super) confirmed: Timestamp,
    /// Whose map it is: one of another key is of no use.
    pub(super) node_key: NodePublic,
    /// The key that was about to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_key: Option<NodePublic>,
}

/// What became of a file.
#[derive(Debug)]
pub(super) enum Found<T> {
    Absent,
    Whole(T),
    /// The text says what was wrong, and where it is now.
    Broken(String),
}

impl<T> Found<T> {
    pub(super) fn whole(self) -> Option<T> {
        match self {
            Self::Whole(content) => Some(content),
            Self::Absent | Self::Broken(_) => None,
        }
    }

    pub(super) const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    pub(super) fn broken(&self) -> Option<&str> {
        match self {
            Self::Broken(text) => Some(text),
            Self::Absent | Self::Whole(_) => None,
        }
    }

    fn note(&mut self, outcome: &str) {
        if let Self::Broken(text) = self {
            text.push_str(outcome);
        }
    }
}

/// The present node key, and the one that was to follow it.
pub(super) type NodeKeys = (NodePrivate, Option<NodePrivate>);

/// What a state directory holds.
#[derive(Debug)]
pub struct Stored {
    pub(super) machine: Found<Machine>,
    pub(super) machine_key: Found<MachinePrivate>,
    pub(super) node_keys: Found<NodeKeys>,
    pub(super) prefs: Found<Prefs>,
    pub(super) home: Found<Home>,
    /// Read only once it is known whose it should be.
    pub(super) map: Option<FoundFile>,
    /// There were keys or a map of another machine: its disk was copied.
    pub(super) is_copied: bool,
    asides: VecDeque<(StateFile, Aside)>,
}

impl Stored {
    /// Makes of these files what can be made, on this machine.
    pub fn read(mut files: BTreeMap<StateFile, FoundFile>, machine: &Machine) -> Self {
        let mut asides = VecDeque::new();
        let stored = read(&mut files, &mut asides, StateFile::Machine, |text| serde_json::from_str::<Machine>(text));
        if matches!(&stored, Found::Whole(stored) if machine.is_other_than(stored)) {
            for file in [StateFile::MachineKey, StateFile::NodeKey, StateFile::Map] {
                if files.remove(&file).is_some() {
                    asides.push_back((file, Aside::OtherMachine));
                }
            }
        }
        let is_copied = asides.iter().any(|(_, why)| *why == Aside::OtherMachine);
        let (files, list) = (&mut files, &mut asides);
        Self {
            machine: stored,
            machine_key: read(files, list, StateFile::MachineKey, |text| text.trim().parse::<MachinePrivate>()),
            node_keys: read(files, list, StateFile::NodeKey, node_keys),
            prefs: read(files, list, StateFile::Prefs, |text| serde_json::from_str::<Prefs>(text)),
            home: read(files, list, StateFile::Coordinator, |text| serde_json::from_str::<Home>(text)),
            map: files.remove(&StateFile::Map),
            is_copied,
            asides,
        }
    }

    /// A file that is to be put aside. Say how that went before asking for the next one.
    pub fn poll_aside(&mut self) -> Option<(StateFile, Aside)> {
        self.asides.pop_front()
    }

    /// A file was put aside, under the name that is given, or could not be. One of another machine that could not be is
    /// a reason not to begin.
    pub fn handle_aside(&mut self, file: StateFile, outcome: Result<String, String>) {
        let text = match outcome {
            Ok(name) => format!("; it was put aside as {name}"),
            Err(reason) => format!("; it is left as it is ({reason})"),
        };
        match file {
            StateFile::MachineKey => self.machine_key.note(&text),
            StateFile::NodeKey => self.node_keys.note(&text),
            StateFile::Prefs => self.prefs.note(&text),
            StateFile::Coordinator => self.home.note(&text),
            StateFile::Machine => self.machine.note(&text),
            StateFile::Map => {}
        }
    }
}

/// A file's content; what makes no sense is to be put aside.
fn read<T, E: Display>(
    files: &mut BTreeMap<StateFile, FoundFile>,
    asides: &mut VecDeque<(StateFile, Aside)>,
    file: StateFile,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Found<T> {
    let Some(FoundFile { path, content }) = files.remove(&file) else { return Found::Absent };
    let is_blank = |content: &FileContent| content.expose_bytes().iter().all(|byte| matches!(byte, 0 | b' ' | b'\n'));
    let parsed = content.and_then(|content| {
        let text = std::str::from_utf8(content.expose_bytes()).map_err(|error| error.to_string());
        let parsed = text.and_then(|text| parse(text).map_err(|error| error.to_string()));
        parsed.map_err(|reason| if is_blank(&content) { "the file is empty".to_owned() } else { reason })
    });
    match parsed {
        Ok(whole) => Found::Whole(whole),
        Err(reason) => {
            // In its place until a person's word replaces it: where it is gone, the first key that is met is taken.
            if file != StateFile::Coordinator {
                asides.push_back((file, Aside::Broken));
            }
            Found::Broken(format!("read {path}: {reason}"))
        }
    }
}

fn node_keys(text: &str) -> Result<NodeKeys, KeyError> {
    let mut lines = text.lines();
    let present = lines.next().unwrap_or_default().trim().parse()?;
    Ok((present, lines.next().map(|line| line.trim().parse()).transpose()?))
}
