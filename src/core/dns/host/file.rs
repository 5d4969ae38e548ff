//! The file itself: the steps from what it is to what it should be, safe at every prefix.
//!
//! What it was is on disk before anything else is done, and is forgotten last.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::resolv_conf::is_ours;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    Missing,
    /// A link to here.
    Link(String),
    Plain {
        bytes: Vec<u8>,
        mode: u32,
    },
}

/// What a file was, byte for byte, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Original {
    Missing,
    /// A link to here.
    Link(String),
    Plain {
        /// In base64: nobody says that they are text.
        bytes: String,
        mode: u32,
    },
}

/// What is kept while the file is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub original: Original,
    /// It is written over, and not replaced.
    pub in_place: bool,
    /// Since which start of the machine: after another one nobody holds it.
    pub boot: String,
}

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub current: Current,
    pub record: Option<Record>,
    /// What the file held, beside it, for people and for a lost record.
    pub copy: Option<Vec<u8>>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStep {
    SaveRecord(Record),
    SaveCopy(Vec<u8>),
    /// Makes the file this.
    Write {
        to: Current,
        in_place: bool,
    },
    RemoveCopy,
    RemoveRecord,
}

/// The mode of what we write: every program reads it.
const MODE: u32 = 0o644;

/// The steps until the file is this text of ours.
pub fn hold(seen: &Seen, text: &str, in_place: bool, boot: &str) -> Vec<FileStep> {
    let wanted = Current::Plain { bytes: text.as_bytes().to_vec(), mode: MODE };
    let mut steps = Vec::new();
    if !seen.is_ours() {
        // Theirs is what it goes back to, whatever was there before.
        let record = Record { original: Original::from(&seen.current), in_place, boot: boot.to_owned() };
        steps.push(FileStep::SaveRecord(record));
        if let Current::Plain { bytes, .. } = &seen.current
            && seen.copy.as_ref() != Some(bytes)
        {
            steps.push(FileStep::SaveCopy(bytes.clone()));
        }
    }
    let is_so = match (&seen.current, &wanted) {
        (Current::Plain { bytes, .. }, Current::Plain { bytes: wanted, .. }) => bytes == wanted,
        _ => false,
    };
    if !is_so {
        steps.push(FileStep::Write { to: wanted, in_place });
    }
    steps
}

/// The steps until nothing is ours.
pub fn release(seen: &Seen) -> Vec<FileStep> {
    let mut steps = Vec::new();
    let original = match (&seen.record, &seen.copy) {
        (Some(record), _) => record.original.current().map(|original| (original, record.in_place)),
        (None, Some(copy)) => Some((Current::Plain { bytes: copy.clone(), mode: MODE }, false)),
        (None, None) => None,
    };
    match (seen.is_ours(), original) {
        (true, Some((to, in_place))) => steps.push(FileStep::Write { to, in_place }),
        // Nobody knows what it was, and a host with us alone is better than one with nobody.
        (true, None) => return steps,
        // Somebody else wrote it since: theirs it is.
        (false, _) => {}
    }
    if seen.copy.is_some() {
        steps.push(FileStep::RemoveCopy);
    }
    if seen.record.is_some() {
        steps.push(FileStep::RemoveRecord);
    }
    steps
}

impl Seen {
    /// Whether the file is what we wrote.
    pub fn is_ours(&self) -> bool {
        matches!(&self.current, Current::Plain { bytes, .. } if is_ours(bytes))
    }
}

impl From<&Current> for Original {
    fn from(current: &Current) -> Self {
        match current {
            Current::Missing => Self::Missing,
            Current::Link(target) => Self::Link(target.clone()),
            Current::Plain { bytes, mode } => Self::Plain { bytes: BASE64.encode(bytes), mode: *mode },
        }
    }
}

impl Original {
    /// Nothing where the record is damaged.
    pub fn current(&self) -> Option<Current> {
        Some(match self {
            Self::Missing => Current::Missing,
            Self::Link(target) => Current::Link(target.clone()),
            Self::Plain { bytes, mode } => {
                Current::Plain { bytes: BASE64.decode(bytes.as_bytes()).ok()?, mode: mode & 0o777 }
            }
        })
    }
}
