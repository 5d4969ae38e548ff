//! What is kept on disk, in which form, and when it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::calls::{Awaited, Kept};
use super::files::MapHeader;
use super::{Answer, CallId, Engine, FileContent, Now, StateFile};
use crate::types::NodePrivate;
use crate::wire::local::HealthReply;

/// A map that changes all the time is written this often.
const MAP_PACE: Duration = Duration::from_secs(5);
/// An unchanged map is written this often, for the sake of the time at which it was confirmed.
const MAP_CONFIRMED: Duration = Duration::from_secs(3_600);
/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(30);
/// How long somebody waits for the disk before being told how far it is.
const KEEP: Duration = Duration::from_secs(10);

/// Which files have to be written, and when.
#[derive(Debug, Default)]
pub(super) struct Saves {
    due: BTreeMap<StateFile, Instant>,
    under_way: BTreeMap<StateFile, usize>,
    /// Files whose last content is not known to be on disk.
    owed: BTreeSet<StateFile>,
    /// Why the last try at a file failed.
    failed: BTreeMap<StateFile, String>,
}

impl Saves {
    /// The content of a file has changed.
    pub(super) fn want(&mut self, file: StateFile, now: Now) {
        let pause = if file == StateFile::Map { MAP_PACE } else { Duration::ZERO };
        let at = now.tick + pause;
        self.owed.insert(file);
        self.due.entry(file).and_modify(|due| *due = at.min(*due)).or_insert(at);
    }

    /// A file's content is not on disk, and need not be before [`Saves::want_owed`].
    pub(super) fn owe(&mut self, file: StateFile) {
        self.owed.insert(file);
    }

    /// What a file owes is needed now.
    pub(super) fn want_owed(&mut self, file: StateFile, now: Now) {
        if self.owed.contains(&file) && self.under_way.get(&file).is_none_or(|count| *count == 0) {
            self.want(file, now);
        }
    }

    /// There is nothing left that a file should hold: it goes at once.
    pub(super) fn want_gone(&mut self, file: StateFile, now: Now) {
        self.want_at_once(file, now);
    }

    /// The content of a file has changed, and cannot wait for further changes.
    pub(super) fn want_at_once(&mut self, file: StateFile, now: Now) {
        self.owed.insert(file);
        self.due.insert(file, now.tick);
    }

    /// A write has ended, well or not.
    pub(super) fn handle_done(&mut self, file: StateFile, is_well: bool) {
        let left = self.under_way.get(&file).map_or(0, |count| count.saturating_sub(1));
        self.under_way.insert(file, left);
        if is_well && left == 0 && !self.due.contains_key(&file) {
            self.owed.remove(&file);
            self.failed.remove(&file);
        }
    }

    /// Whether what this machine is known by is on disk: what is not must not be shown to anybody, for the next start
    /// would not have it.
    pub(super) fn has_identity(&self) -> bool {
        !self.owed.contains(&StateFile::MachineKey) && !self.owed.contains(&StateFile::NodeKey)
    }

    /// Whether nothing is being written or about to be.
    pub(super) fn is_quiet(&self, now: Now) -> bool {
        self.under_way.values().all(|count| *count == 0) && !self.due.values().any(|at| *at <= now.tick)
    }

    /// Writing a file failed.
    pub(super) fn retry(&mut self, file: StateFile, reason: String, now: Now) {
        self.failed.insert(file, reason);
        self.due.entry(file).or_insert(now.tick + RETRY);
    }

    /// A file whose time has come.
    pub(super) fn poll(&mut self, now: Now) -> Option<StateFile> {
        let file = *self.due.iter().find(|(_, at)| **at <= now.tick)?.0;
        self.due.remove(&file);
        *self.under_way.entry(file).or_default() += 1;
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

impl Engine {
    /// Answers once the disk was written.
    pub(super) fn tell_when_kept(&mut self, id: CallId, kept: Kept, now: Now) {
        self.calls.wait(id, Awaited::Kept(kept), Some(now.tick + KEEP));
    }

    /// Answers who waits for the disk, where it is quiet.
    pub(super) fn tell_kept(&mut self, now: Now) {
        if !self.saves.is_quiet(now) {
            return;
        }
        let kept = |awaited: &Awaited| if let Awaited::Kept(kept) = awaited { Some(kept.clone()) } else { None };
        for (id, kept) in self.calls.take(kept) {
            self.reply(id, self.kept_answer(kept));
        }
    }

    pub(super) fn kept_answer(&self, kept: Kept) -> Answer {
        match kept {
            Kept::Health => Answer::json(&HealthReply { entries: self.health.entries() }),
            Kept::SignOut(unheard) => self.signed_out_answer(unheard),
        }
    }

    /// A machine whose keys are still on disk is signed out only until the next start.
    fn signed_out_answer(&self, unheard: Option<String>) -> Answer {
        let left = [StateFile::NodeKey, StateFile::Prefs].into_iter().filter(|file| self.saves.owed.contains(file));
        let left: Vec<&str> =
            left.map(|file| self.saves.failed.get(&file).map_or(file.name(), String::as_str)).collect();
        match (left.as_slice(), unheard) {
            ([], None) => Answer::Done,
            ([], Some(unheard)) => Answer::refused(502, unheard),
            (left, unheard) => {
                let unheard = unheard.map(|text| format!(". Also: {text}")).unwrap_or_default();
                Answer::refused(
                    500,
                    format!(
                        "signed out only until the agent starts again: the next start would sign this machine in as \
                         before, because what it is known by is still on disk ({}). Make room, or make the directory \
                         writable, and it goes within half a minute{unheard}",
                        left.join("; ")
                    ),
                )
            }
        }
    }

    /// What a file should hold; `None` where there should be no file.
    pub(super) fn content(&self, file: StateFile, now: Now) -> Option<FileContent> {
        let content = match file {
            StateFile::MachineKey => Some(self.identity.machine_key.expose_text().as_bytes().to_vec()),
            StateFile::NodeKey => {
                let next = self.login.next_key.as_ref().or(self.identity.spare_key.as_ref());
                let keys = [self.identity.node_key.as_ref(), next];
                let lines: Vec<_> = keys.into_iter().flatten().map(NodePrivate::expose_text).collect();
                let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
                (!lines.is_empty()).then(|| lines.join(&b'\n'))
            }
            StateFile::Prefs => serde_json::to_vec_pretty(&*self.prefs).ok(),
            StateFile::Coordinator => serde_json::to_vec_pretty(&self.home).ok(),
            StateFile::Machine => serde_json::to_vec_pretty(&self.identity.machine).ok(),
            StateFile::Map => self.map_content(now),
        };
        content.map(FileContent::new)
    }

    fn map_content(&self, now: Now) -> Option<Vec<u8>> {
        let node_key = self.identity.node_key.as_ref()?.public();
        self.netmap.node()?;
        let confirmed = if self.login.online { self.time(now) } else { self.confirmed? };
        let next_key = self.login.next_key.as_ref().map(NodePrivate::public);
        let mut content = serde_json::to_vec(&MapHeader { confirmed, node_key, next_key }).ok()?;
        content.push(b'\n');
        content.append(&mut self.netmap.to_message().ok()?);
        Some(content)
    }
}
