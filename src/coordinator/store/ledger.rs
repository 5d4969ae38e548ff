//! A state and its store, joined so that memory never runs ahead of the disk.
//!
//! A command is decided, committed and applied while the ledger is borrowed, so nothing can come between
//! the look and the act: a one-off key that two machines show at once admits one of them. What is saved
//! lazily rides along with the next commit, so that what is on disk is always a state that memory was in.

use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;

use super::job::Job;
use super::{Proven, Store, StoreError};
use warren_core::registry::{Actor, Change, Commands, Config, Decision, NodeRecord, Refusal, State, settled_names};
use warren_core::types::Timestamp;

/// The longest that a change which may be saved at leisure waits.
const SAVE_WITHIN: Duration = Duration::from_secs(5);
/// The most nodes that wait to be saved at leisure: one transaction of some milliseconds.
const SAVE_ABOVE: usize = 1_024;
/// How long to leave a database alone that just failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The oldest success that says of the store that it can be written to.
const FRESH: Duration = Duration::from_secs(30);

/// A state and its store.
#[derive(Debug)]
pub struct Ledger<S> {
    state: State,
    store: S,
    save_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    fault: Option<StoreError>,
    /// The last time that something was kept.
    kept_at: Timestamp,
    /// What a commit held of which it is not known whether it is on disk.
    doubtful: Vec<Change>,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// It makes no sense as things are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too much else is to be done.
    #[error("the coordinator is busy, try again later")]
    Busy,
}

impl<S: Store> Ledger<S> {
    /// The state that the store describes.
    pub async fn open(mut store: S, config: Config, now: Timestamp) -> Result<Self, StoreError> {
        let mut records = store.load().await?;
        let (changes, words) = settled_names(&records);
        if !changes.is_empty() {
            store.commit(&changes).await?;
            records = store.load().await?;
        }
        words.iter().for_each(|word| tracing::warn!("{word}"));
        let state = State::restore(config, records, now);
        let (save_at, retry_at, fault) = (None, None, None);
        let mut ledger = Self { state, store, save_at, retry_at, fault, kept_at: now, doubtful: Vec::new() };
        if ledger.know(now).await.is_err() {
            tracing::error!("serving with what is on the disk; every change is refused until it can be written to");
            ledger.retry_at = Some(later(now, RETRY_AFTER));
        }
        Ok(ledger)
    }

    /// The state, to look at.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The state, for what is never saved or saved at leisure: map requests, streams, outputs.
    pub const fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Decides and carries out a command that cannot be refused.
    pub async fn run<R>(
        &mut self,
        actor: &Actor,
        now: Timestamp,
        decide: impl FnOnce(&Commands<'_>) -> Decision<R>,
    ) -> Result<R, StoreError> {
        self.know(now).await?;
        let decision = decide(&self.state.by(actor, now));
        self.settle(decision.changes, now).await?;
        Ok(decision.reply)
    }

    /// Decides and carries out a command that may be refused.
    pub async fn try_run<R>(
        &mut self,
        actor: &Actor,
        now: Timestamp,
        decide: impl FnOnce(&Commands<'_>) -> Result<Decision<R>, Refusal>,
    ) -> Result<R, CommandError> {
        self.know(now).await?;
        let decision = decide(&self.state.by(actor, now))?;
        self.settle(decision.changes, now).await?;
        Ok(decision.reply)
    }

    /// Decides and carries out a command that has a place for its answer.
    pub async fn carry_out(&mut self, mut job: Box<dyn Job>, now: Timestamp) {
        if let Err(error) = self.know(now).await {
            return job.answer(Err(error.into()));
        }
        if let Some((changes, _)) = job.decide(&self.state, now) {
            let settled = self.settle(changes, now).await;
            job.answer(settled.map_err(CommandError::from));
        }
    }

    /// What time brings. Call it after every command and whenever [`Ledger::poll_timeout`] says so; then
    /// drain the state's outputs.
    pub async fn handle_timeout(&mut self, now: Timestamp) {
        self.state.handle_timeout(now);
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        if self.write_what_is_due(now).await.is_err() {
            self.retry_at = Some(later(now, RETRY_AFTER));
        }
    }

    async fn write_what_is_due(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if self.state.next_due().is_some_and(|at| at <= now) {
            self.know(now).await?;
            let due = self.state.due(now);
            self.settle(due.changes, now).await?;
            self.state.handle_timeout(now);
        }
        self.save_at = match self.state.unsaved() {
            0 => None,
            SAVE_ABOVE.. => Some(now),
            _ => self.save_at.or_else(|| Some(later(now, SAVE_WITHIN))),
        };
        if self.save_at.is_some_and(|at| at <= now) {
            self.save(now).await?;
        }
        // Whoever looks at the health report should not have to write something to see that the disk is well again.
        if self.fault.is_some() {
            self.prove(now).await?;
        }
        Ok(())
    }

    /// The clock was set by this much, and it is `now`.
    pub fn handle_clock_set(&mut self, by: SignedDuration, now: Timestamp) {
        let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
        let shifted = |at: Timestamp| at.checked_add(by).unwrap_or(end);
        self.save_at = self.save_at.map(shifted);
        self.retry_at = self.retry_at.map(shifted);
        self.kept_at = shifted(self.kept_at);
        self.state.handle_clock_set(by, now);
    }

    /// When [`Ledger::handle_timeout`] wants to be called again.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let writes = [self.state.next_due(), self.save_at].into_iter().flatten().min();
        let writes = self.retry_at.or(writes);
        self.state.poll_timeout().into_iter().chain(writes).min()
    }

    /// What is wrong with the store, for the health report. Where nothing was written lately, that is tried.
    pub async fn examine(&mut self, now: Timestamp) -> Option<&StoreError> {
        if self.fault.is_none() && later(self.kept_at, FRESH) <= now {
            let tried = if self.state.unsaved() > 0 { self.save(now).await } else { self.prove(now).await };
            self.retry_at = tried.is_err().then(|| later(now, RETRY_AFTER));
        }
        self.fault()
    }

    /// Copies everything into a new file, what waits to be saved included.
    pub async fn copy(&mut self, to: &Path, now: Timestamp) -> Result<(), StoreError> {
        // Where saving fails the copy is of what is on disk, which may be what it is wanted for.
        if let Err(error) = self.save(now).await {
            tracing::warn!("a copy is made without what could not be saved: {error}");
        }
        self.store.copy(to).await
    }

    /// What is wrong with the store since its last success.
    pub const fn fault(&self) -> Option<&StoreError> {
        self.fault.as_ref()
    }

    /// Saves what waits to be saved.
    pub async fn save(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.know(now).await?;
        let waiting = self.state.take_unsaved();
        if !waiting.is_empty() {
            match self.keep(&waiting, now).await {
                Ok(()) => {}
                Err(error) if self.store.is_sound() && waiting.len() > 1 => {
                    tracing::error!("{error}; saving each node by itself");
                    self.save_each(&waiting, now).await?;
                }
                Err(error) => {
                    self.state.put_back_unsaved(&waiting);
                    return Err(error);
                }
            }
        }
        self.save_at = self.save_at.filter(|at| *at > now);
        Ok(())
    }

    /// One that the store does not take must not keep the others from it.
    async fn save_each(&mut self, waiting: &[Change], now: Timestamp) -> Result<(), StoreError> {
        let mut last = Ok(());
        for change in waiting {
            if let Err(error) = self.store.commit(std::slice::from_ref(change)).await {
                self.state.put_back_unsaved(std::slice::from_ref(change));
                last = Err(error);
                if !self.store.is_sound() {
                    self.state.put_back_unsaved(waiting);
                    break;
                }
            }
        }
        self.note(&last, now);
        last
    }

    /// Saves what waits to be saved and who was online, and gives the store back to be closed.
    pub async fn shutdown(mut self, now: Timestamp) -> (S, Result<(), StoreError>) {
        self.state.stop(now);
        let saved = self.save(now).await;
        (self.store, saved)
    }

    async fn settle(&mut self, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        let durable: Vec<Change> = changes.iter().filter(|change| change.is_durable()).cloned().collect();
        if !durable.is_empty()
            && let Err(error) = self.commit(&durable, now).await
        {
            if !self.store.is_sound() {
                self.doubtful = changes;
            }
            return Err(error);
        }
        self.state.apply(changes, now);
        Ok(())
    }

    /// Commits what waits to be saved with these; where the store does not take what waits, these alone.
    async fn commit(&mut self, changes: &[Change], now: Timestamp) -> Result<(), StoreError> {
        let waiting = self.state.take_unsaved();
        if waiting.is_empty() {
            return self.keep(changes, now).await;
        }
        let batch = [waiting.as_slice(), changes].concat();
        let mut result = self.keep(&batch, now).await;
        if result.is_err() {
            self.state.put_back_unsaved(&waiting);
            if self.store.is_sound() {
                result = self.keep(changes, now).await;
            }
        }
        result
    }

    async fn keep(&mut self, changes: &[Change], now: Timestamp) -> Result<(), StoreError> {
        let result = self.store.commit(changes).await;
        self.note(&result, now);
        result
    }

    /// Nothing is decided before it is known what is on disk.
    async fn know(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if self.store.is_sound() { Ok(()) } else { self.prove(now).await }
    }

    /// Begins anew with what is on disk. A commit that seemed to fail and is there counts from here on.
    async fn prove(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let proven = self.store.prove().await;
        self.note(&proven, now);
        let doubtful = std::mem::take(&mut self.doubtful);
        match proven {
            Ok(Proven::AsTold) => Ok(()),
            Ok(Proven::WithTheLast) => {
                tracing::warn!("what was said to have failed is on disk after all, and counts");
                let changes = doubtful.into_iter().map(|change| self.refreshed(change)).collect();
                self.state.apply(changes, now);
                Ok(())
            }
            Err(error) => {
                self.doubtful = doubtful;
                Err(error)
            }
        }
    }

    /// A change that was decided some time ago, with what its node said of itself since.
    fn refreshed(&self, change: Change) -> Change {
        match change {
            Change::Node(record) => match self.state.node(record.id) {
                Some(node) => Change::Node(std::sync::Arc::new(NodeRecord {
                    said: node.record.said.clone(),
                    last_seen: node.record.last_seen,
                    ..record.as_ref().clone()
                })),
                None => Change::Node(record),
            },
            other => other,
        }
    }

    /// Remembers how writing went last.
    fn note<T>(&mut self, result: &Result<T, StoreError>, now: Timestamp) {
        match result {
            Ok(_) => {
                if self.fault.take().is_some() {
                    tracing::info!("the coordinator's state is saved again");
                }
                self.kept_at = now;
            }
            Err(error) => {
                if self.fault.as_ref() != Some(error) {
                    tracing::error!("the coordinator's state could not be saved: {error}");
                }
                self.fault = Some(error.clone()).filter(|error| !matches!(error, StoreError::Conflict(_)));
            }
        }
    }
}

#[cfg(test)]
impl<S> Ledger<S> {
    pub(super) const fn store(&self) -> &S {
        &self.store
    }

    pub(super) const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }
}

fn later(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_add(duration).unwrap_or(Timestamp::MAX)
}
