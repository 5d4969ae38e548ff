//! Whoever watches the agent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::VERSION;
use warren_core::types::NodePublic;
use warren_core::wire::local::Notify;

/// Notices that wait for one watcher to read them. One that falls further behind is cut off, and can begin anew.
const QUEUE: usize = 128;

/// Changed paths are told of at most this often.
const PATHS_PACE: Duration = Duration::from_secs(1);
/// So many paths go into one notice: about 100 KB.
const PATHS_AT_ONCE: usize = 500;

/// All watchers.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    all: Vec<mpsc::Sender<Vec<u8>>>,
    /// Peers whose paths changed and nobody was told.
    moved: BTreeSet<NodePublic>,
    /// When they are to be told of.
    paths_at: Option<Instant>,
    /// When paths were last told of.
    paths_told: Option<Instant>,
}

impl Watchers {
    /// A new watcher; `first` is what it is told at once.
    pub(super) fn add(&mut self, first: Option<&Notify>) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        if let Some(line) = first.and_then(line) {
            // An empty queue takes one line.
            let _ = sender.try_send(line);
        }
        self.all.retain(|watcher| !watcher.is_closed());
        self.all.push(sender);
        receiver
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

    /// Tells everybody.
    pub(super) fn tell(&mut self, notice: &Notify) {
        if self.all.is_empty() {
            return;
        }
        if let Some(line) = line(notice) {
            self.all.retain(|watcher| watcher.try_send(line.clone()).is_ok());
        }
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

    fn state(number: u8) -> Notify {
        Notify { state: Some(number), ..Notify::default() }
    }

    #[test]
    fn a_watcher_is_told_first_what_it_asked_for_and_then_what_changes() {
        let mut watchers = Watchers::default();
        let mut watcher = watchers.add(Some(&state(5)));
        watchers.tell(&state(6));

        let read = |line: Vec<u8>| serde_json::from_slice::<Notify>(&line).unwrap().state;
        assert_eq!(watcher.try_recv().map(read), Ok(Some(5)));
        assert_eq!(watcher.try_recv().map(read), Ok(Some(6)));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn paths_are_told_of_once_a_second_and_so_many_at_a_time() {
        let key = |number: u16| NodePublic::from_bytes([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let mut watchers = Watchers::default();
        let start = Instant::now();
        watchers.note_moved(key(1), start);
        assert_eq!(watchers.poll_timeout(), None, "nobody watches");

        let _watcher = watchers.add(None);
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

    #[test]
    fn a_watcher_that_does_not_read_is_cut_off_and_the_others_go_on() {
        let mut watchers = Watchers::default();
        let mut asleep = watchers.add(None);
        for number in 0..=QUEUE {
            watchers.tell(&state(u8::try_from(number % 7).unwrap()));
        }
        let mut awake = watchers.add(None);
        watchers.tell(&state(2));

        assert!(awake.try_recv().is_ok());
        assert_eq!(std::iter::from_fn(|| asleep.try_recv().ok()).count(), QUEUE);
        assert_eq!(asleep.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
