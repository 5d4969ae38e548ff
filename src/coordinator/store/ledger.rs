//! A state and its store, joined so that memory never runs ahead of the disk.
//!
//! A command is decided, committed and applied while the ledger is borrowed, so nothing can come between
//! the look and the act: a one-off key that two machines show at once admits one of them. What is saved
//! lazily rides along with the next commit, so that what is on disk is always a state that memory was in.

use std::time::Duration;

use thiserror::Error;

use super::{Store, StoreError};
use crate::registry::{Change, Config, Decision, Refusal, State};
use crate::types::Timestamp;

/// The longest that a change which may be saved at leisure waits.
const SAVE_WITHIN: Duration = Duration::from_secs(5);
/// The most nodes that wait to be saved at leisure: one transaction of some milliseconds.
const SAVE_ABOVE: usize = 1_024;
/// How long to leave a database alone that just failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A state and its store.
#[derive(Debug)]
pub struct Ledger<S> {
    state: State,
    store: S,
    save_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    fault: Option<StoreError>,
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
}

impl<S: Store> Ledger<S> {
    /// The state that the store describes.
    pub async fn open(mut store: S, config: Config, now: Timestamp) -> Result<Self, StoreError> {
        let state = State::restore(config, store.load().await?, now);
        Ok(Self { state, store, save_at: None, retry_at: None, fault: None })
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
        now: Timestamp,
        decide: impl FnOnce(&State) -> Decision<R>,
    ) -> Result<R, StoreError> {
        let decision = decide(&self.state);
        self.settle(decision, now).await
    }

    /// Decides and carries out a command that may be refused.
    pub async fn try_run<R>(
        &mut self,
        now: Timestamp,
        decide: impl FnOnce(&State) -> Result<Decision<R>, Refusal>,
    ) -> Result<R, CommandError> {
        let decision = decide(&self.state)?;
        Ok(self.settle(decision, now).await?)
    }

    /// What time brings. Call it after every command and whenever [`Ledger::poll_timeout`] says so; then
    /// drain the state's outputs.
    pub async fn handle_timeout(&mut self, now: Timestamp) {
        self.state.handle_timeout(now);
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        if self.state.next_due().is_some_and(|at| at <= now) {
            let due = self.state.due(now);
            if self.settle(due, now).await.is_err() {
                self.retry_at = Some(later(now, RETRY_AFTER));
                return;
            }
            self.state.handle_timeout(now);
        }
        self.save_at = match self.state.unsaved() {
            0 => None,
            SAVE_ABOVE.. => Some(now),
            _ => self.save_at.or_else(|| Some(later(now, SAVE_WITHIN))),
        };
        if self.save_at.is_some_and(|at| at <= now) && self.save(now).await.is_err() {
            self.retry_at = Some(later(now, RETRY_AFTER));
        }
    }

    /// When [`Ledger::handle_timeout`] wants to be called again.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let writes = [self.state.next_due(), self.save_at].into_iter().flatten().min();
        let writes = writes.map(|at| self.retry_at.map_or(at, |retry| at.max(retry)));
        self.state.poll_timeout().into_iter().chain(writes).min()
    }

    /// What is wrong with the store since its last success, for the health report.
    pub const fn fault(&self) -> Option<&StoreError> {
        self.fault.as_ref()
    }

    /// Saves what waits to be saved.
    pub async fn save(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.commit(&[]).await?;
        self.save_at = self.save_at.filter(|at| *at > now);
        Ok(())
    }

    /// Saves what waits to be saved and who was online, and gives the store back to be closed.
    pub async fn shutdown(mut self, now: Timestamp) -> (S, Result<(), StoreError>) {
        self.state.stop(now);
        let saved = self.save(now).await;
        (self.store, saved)
    }

    async fn settle<R>(&mut self, decision: Decision<R>, now: Timestamp) -> Result<R, StoreError> {
        let durable: Vec<Change> = decision.changes.iter().filter(|change| change.is_durable()).cloned().collect();
        if !durable.is_empty() {
            self.commit(&durable).await?;
        }
        self.state.apply(decision.changes, now);
        Ok(decision.reply)
    }

    /// Commits what waits to be saved, then these.
    async fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut batch = self.state.take_unsaved();
        let waiting = batch.len();
        batch.extend_from_slice(changes);
        if batch.is_empty() {
            return Ok(());
        }
        let result = self.store.commit(&batch).await;
        if let Err(error) = &result {
            self.state.put_back_unsaved(&batch[..waiting]);
            tracing::error!("the coordinator's state could not be saved: {error}");
        }
        self.fault = result.clone().err().filter(|error| !matches!(error, StoreError::Conflict(_)));
        result
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
