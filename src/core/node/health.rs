//! Lasting faults, each with what the operator can do about it.
//!
//! A fault has a code, so that reporting it again changes nothing, and clearing it is one call. Faults of one kind that
//! come and go together (the rejected entries of a map) share the part of the code before the colon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::Timestamp;
use crate::types::text::clean;
use crate::wire::local::{HealthEntry, HealthState, HealthWarning, Severity};

/// Entries of one kind that are shown. More of them help nobody, and the coordinator can make any number.
const OF_A_KIND: usize = 32;
/// How long something that happened once is shown.
const SHOWN: Duration = Duration::from_secs(15 * 60);
/// Bytes of one entry's text: it may quote a coordinator or a relay at any length.
const TEXT_BYTES: usize = 2 * 1024;

/// All present faults.
#[derive(Debug, Default)]
pub(super) struct Health {
    entries: BTreeMap<String, Entry>,
    changed: bool,
}

#[derive(Debug)]
struct Entry {
    severity: Severity,
    text: String,
    since: Timestamp,
    expires: Option<Instant>,
}

/// The codes of what may be found wrong on the disk; each goes once its cause does.
pub(super) mod code {
    pub(in crate::node) const MACHINE_KEY: &str = "machine-key";
    pub(in crate::node) const NODE_KEY: &str = "node-key";
    pub(in crate::node) const PREFS: &str = "preferences";
    pub(in crate::node) const COORDINATOR: &str = "coordinator-file";
    pub(in crate::node) const COPIED: &str = "copied-disk";
}

impl Health {
    /// Reports a fault that lasts until it is cleared.
    pub(super) fn set(&mut self, code: &str, severity: Severity, text: impl Into<String>, wall: Timestamp) {
        self.insert(code, severity, text.into(), wall, None);
    }

    /// The fault is there, or it is not.
    pub(super) fn keep(
        &mut self,
        code: &str,
        severity: Severity,
        is_there: bool,
        wall: Timestamp,
        text: impl FnOnce() -> String,
    ) {
        if is_there { self.set(code, severity, text(), wall) } else { self.clear(code) }
    }

    /// Reports something that happened: it is shown for a while.
    pub(super) fn note(
        &mut self,
        code: &str,
        severity: Severity,
        text: impl Into<String>,
        wall: Timestamp,
        now: Instant,
    ) {
        self.insert(code, severity, text.into(), wall, Some(now + SHOWN));
    }

    /// The fault is gone.
    pub(super) fn clear(&mut self, code: &str) {
        self.changed |= self.entries.remove(code).is_some();
    }

    /// The faults of one kind are exactly these.
    pub(super) fn set_kind(
        &mut self,
        kind: &str,
        severity: Severity,
        faults: impl IntoIterator<Item = (String, String)>,
        wall: Timestamp,
    ) {
        let mut present: BTreeMap<String, String> = BTreeMap::new();
        let mut left_out = 0;
        for (object, text) in faults {
            if present.len() < OF_A_KIND {
                present.insert(format!("{kind}:{object}"), text);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            present.insert(format!("{kind}:~"), format!("{left_out} more faults of this kind are not shown"));
        }
        let gone: Vec<String> = self.of_kind(kind).filter(|code| !present.contains_key(*code)).cloned().collect();
        for code in gone {
            self.clear(&code);
        }
        for (code, text) in present {
            self.insert(&code, severity, text, wall, None);
        }
    }

    /// Forgets what has been shown long enough.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.expires.is_none_or(|at| at > now));
        self.changed |= self.entries.len() != before;
    }

    /// When an entry has been shown long enough.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.expires).min()
    }

    /// Whether anything changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The entries, worst first.
    pub(super) fn entries(&self) -> Vec<HealthEntry> {
        let mut entries: Vec<HealthEntry> = self
            .entries
            .iter()
            .map(|(code, entry)| HealthEntry {
                code: code.clone(),
                severity: entry.severity,
                text: entry.text.clone(),
                since: Some(entry.since),
            })
            .collect();
        entries.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)));
        entries
    }

    /// The entries in the shape of a notice.
    pub(super) fn state(&self) -> HealthState {
        let warning = |entry: HealthEntry| HealthWarning {
            warnable_code: entry.code.clone(),
            severity: severity_name(entry.severity).to_owned(),
            title: entry.code.split(':').next().unwrap_or_default().replace('-', " "),
            text: entry.text,
            broken_since: entry.since,
            impacts_connectivity: entry.severity == Severity::High,
        };
        HealthState { warnings: self.entries().into_iter().map(|e| (e.code.clone(), warning(e))).collect() }
    }

    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a String> {
        self.entries.keys().filter(move |code| code.split(':').next() == Some(kind))
    }

    fn insert(&mut self, code: &str, severity: Severity, text: String, wall: Timestamp, expires: Option<Instant>) {
        let text = clean(&text, TEXT_BYTES).into_owned();
        if let Some(entry) = self.entries.get_mut(code) {
            self.changed |= entry.text != text || entry.severity != severity;
            *entry = Entry { severity, text, since: entry.since, expires };
            return;
        }
        tracing::warn!(code, "{text}");
        self.changed = true;
        self.entries.insert(code.to_owned(), Entry { severity, text, since: wall, expires });
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn texts(health: &Health) -> Vec<String> {
        health.entries().into_iter().map(|entry| entry.text).collect()
    }

    #[test]
    fn the_worst_fault_comes_first_and_a_cleared_one_goes() {
        let mut health = Health::default();
        health.set("a", Severity::Low, "small", WALL);
        health.set("b", Severity::High, "large", WALL);
        assert_eq!(texts(&health), ["large", "small"]);

        health.clear("b");
        assert_eq!(texts(&health), ["small"]);
    }

    #[test]
    fn a_fault_that_is_reported_again_keeps_its_time_and_is_no_change() {
        let mut health = Health::default();
        health.set("a", Severity::Low, "same", WALL);
        assert!(health.take_changed());

        health.set("a", Severity::Low, "same", "2026-01-01T00:00:00Z".parse().unwrap());

        assert!(!health.take_changed());
        assert_eq!(health.entries()[0].since, Some(WALL));
    }

    #[test]
    fn faults_of_a_kind_are_replaced_together_and_others_stay() {
        let mut health = Health::default();
        let kind = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), format!("{n} is bad"))).collect::<Vec<_>>();
        health.set("map-age", Severity::Low, "old map", WALL);
        health.set_kind("map", Severity::Medium, kind(&["x", "y"]), WALL);

        health.set_kind("map", Severity::Medium, kind(&["y"]), WALL);

        assert_eq!(texts(&health), ["y is bad", "old map"]);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn a_note_goes_after_its_time() {
        let mut health = Health::default();
        let start = Instant::now();
        health.note("drift", Severity::Low, "put back", WALL, start);
        assert_eq!(health.poll_timeout(), Some(start + SHOWN));

        health.handle_timeout(start + SHOWN);

        assert!(texts(&health).is_empty());
    }

    #[test]
    fn a_flood_of_faults_is_bounded_and_says_so() {
        let mut health = Health::default();
        health.set_kind("map", Severity::Low, (0..1_000).map(|n| (n.to_string(), "bad".to_owned())), WALL);
        assert_eq!(health.entries().len(), OF_A_KIND + 1);
        assert_eq!(texts(&health).last().map(String::as_str), Some("968 more faults of this kind are not shown"));
    }
}
