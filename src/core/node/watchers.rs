//! Whoever watches the agent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{CallId, Engine, VERSION};
use crate::types::NodePublic;
use crate::wire::local::Notify;

/// Changed paths are told of at most this often.
const PATHS_PACE: Duration = Duration::from_secs(1);
/// So many paths go into one notice: about 100 KB.
const PATHS_AT_ONCE: usize = 500;

/// All watchers.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    all: BTreeSet<CallId>,
    /// Peers whose paths changed and nobody was told.
    moved: BTreeSet<NodePublic>,
    /// When they are to be told of.
    paths_at: Option<Instant>,
    /// When paths were last told of.
    paths_told: Option<Instant>,
}

impl Watchers {
    /// A new watcher; `first` is what it is told at once.
    pub(super) fn add(&mut self, id: CallId, first: &Notify) -> Vec<u8> {
        self.all.insert(id);
        line(first).unwrap_or_default()
    }

    /// The path to a peer has changed.
    pub(super) fn note_moved(&mut self, peer: NodePublic, now: Instant) {
        if !self.all.is_empty() {
            self.moved.insert(peer);
            let earliest = self.paths_told.map_or(now, |at| now.max(at + PATHS_PACE));
            self.paths_at.get_or_insert(earliest);
        }
    }

    /// The peers whose paths are to be told of at this moment.
    pub(super) fn take_moved(&mut self, now: Instant) -> Vec<NodePublic> {
        if self.paths_at.take_if(|at| *at <= now).is_none() {
            return Vec::new();
        }
        self.paths_told = Some(now);
        let first: Vec<NodePublic> = self.moved.iter().take(PATHS_AT_ONCE).copied().collect();
        for peer in &first {
            self.moved.remove(peer);
        }
        self.paths_at = (!self.moved.is_empty()).then(|| now + PATHS_PACE);
        first
    }

    /// When [`Watchers::take_moved`] has something.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.paths_at
    }

    /// What everybody is told, where there is anybody.
    pub(super) fn notice(&self, notice: &Notify) -> Option<Vec<u8>> {
        if self.all.is_empty() { None } else { line(notice) }
    }
}

impl Engine {
    /// Somebody watches no longer.
    pub fn handle_watcher_gone(&mut self, id: CallId) {
        self.watchers.all.remove(&id);
    }
}

fn line(notice: &Notify) -> Option<Vec<u8>> {
    let notice = Notify { version: VERSION.to_owned(), ..notice.clone() };
    let mut line = serde_json::to_vec(&notice).ok()?;
    line.push(b'\n');
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_made_only_while_somebody_watches() {
        let notice = Notify { state: Some(6), ..Notify::default() };
        let mut watchers = Watchers::default();
        assert_eq!(watchers.notice(&notice), None);

        let first = watchers.add(CallId(1), &Notify { state: Some(5), ..Notify::default() });
        let read = |line: &[u8]| serde_json::from_slice::<Notify>(line).unwrap().state;
        assert_eq!(read(&first), Some(5));
        assert_eq!(watchers.notice(&notice).map(|line| read(&line)), Some(Some(6)));

        watchers.all.remove(&CallId(1));
        assert_eq!(watchers.notice(&notice), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn paths_are_told_of_once_a_second_and_so_many_at_a_time() {
        let key = |number: u16| NodePublic::from_bytes([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let mut watchers = Watchers::default();
        let start = Instant::now();
        watchers.note_moved(key(1), start);
        assert_eq!(watchers.poll_timeout(), None, "nobody watches");

        watchers.add(CallId(1), &Notify::default());
        watchers.note_moved(key(1), start);
        assert_eq!(watchers.take_moved(start), [key(1)]);
        for number in 0..700 {
            watchers.note_moved(key(number), start);
        }
        assert_eq!(watchers.take_moved(start), []);
        let next = start + PATHS_PACE;
        assert_eq!(watchers.poll_timeout(), Some(next));
        assert_eq!(watchers.take_moved(next).len(), PATHS_AT_ONCE);
        assert_eq!(watchers.take_moved(next + PATHS_PACE).len(), 700 - PATHS_AT_ONCE);
        assert_eq!(watchers.poll_timeout(), None);
    }
}
