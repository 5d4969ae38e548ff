//! Whoever watches the agent.

use tokio::sync::mpsc;

use crate::agent::VERSION;
use crate::wire::local::Notify;

/// Notices that wait for one watcher to read them. One that falls further behind is cut off, and can begin anew.
const QUEUE: usize = 128;

/// All watchers.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    all: Vec<mpsc::Sender<Vec<u8>>>,
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
