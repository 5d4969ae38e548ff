//! What became of what a store was at work for, and what follows from that.

use super::{Ledger, Purpose, RETRY_AFTER, StoreState, TRIES, Task, later};
use crate::store::work::{Done, Work};
use crate::store::{Batch, Proven, Store, StoreError};
use warren_core::registry::Change;
use warren_core::types::Timestamp;

impl<S: Store> Ledger<S> {
    pub(super) fn committed(
        &mut self,
        task: Option<Task>,
        batch: Batch,
        reports: &[Change],
        done: Done,
        now: Timestamp,
    ) {
        let is_sound = matches!(&self.store, StoreState::AtRest(store) if store.is_sound());
        self.state.put_back_unsaved(&done.unkept);
        match (done.result, task) {
            (Ok(()), task) => {
                self.revision = done.revision;
                self.state.apply(batch.changes, now);
                self.state.unstage_policy();
                if let Some(Task::Command { job, .. }) = task {
                    job.answer(Ok(()));
                }
            }
            (Err(StoreError::Conflict(_)), Some(Task::Command { job, tries, .. })) if tries < TRIES => {
                let task = Task::Command { job, ready: None, tries };
                self.start(Purpose::Reload(Some(task)), Work::Load, now);
            }
            (Err(StoreError::Conflict(_)), None) => self.start(Purpose::Reload(None), Work::Load, now),
            (Err(error), task) => {
                self.state.put_back_unsaved(reports);
                self.state.unstage_policy();
                if !is_sound {
                    self.doubtful = Some(batch);
                }
                self.retry_at = Some(later(now, RETRY_AFTER));
                if let Some(Task::Command { job, .. }) = task {
                    job.answer(Err(error.into()));
                }
            }
        }
    }

    /// It is known what is on disk. A commit that seemed to fail and is there counts from here on.
    pub(super) fn proven(&mut self, done: Done, now: Timestamp) {
        match done.result {
            Ok(()) => {
                let doubtful = self.doubtful.take();
                if let (Some(Proven::WithTheLast), Some(batch)) = (done.proven, doubtful) {
                    tracing::warn!("what was said to have failed is on disk after all, and counts");
                    self.revision = batch.last();
                    self.state.apply(batch.changes, now);
                }
            }
            Err(error) => {
                self.retry_at = Some(later(now, RETRY_AFTER));
                for task in std::mem::take(&mut self.waiting) {
                    match task {
                        Task::Command { job, .. } => job.answer(Err(error.clone().into())),
                        Task::Copy(..) | Task::Read(..) => self.waiting.push_back(task),
                    }
                }
            }
        }
    }

    /// What somebody else changed is known from here on, and the command may be decided again.
    pub(super) fn reloaded(&mut self, task: Option<Task>, done: Done, now: Timestamp) {
        match done.result {
            Ok(()) => {
                if let Some(records) = done.records {
                    self.revision = records.revision;
                    let changes = self.state.differences(&records);
                    self.state.apply(changes, now);
                }
                if let Some(task) = task {
                    self.waiting.push_front(task);
                }
            }
            Err(error) => {
                self.retry_at = Some(later(now, RETRY_AFTER));
                if let Some(Task::Command { job, .. }) = task {
                    job.answer(Err(error.into()));
                }
            }
        }
    }

    /// Remembers how writing went last.
    pub(super) fn note(&mut self, result: &Result<(), StoreError>, now: Timestamp) {
        match result {
            Ok(()) => {
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
