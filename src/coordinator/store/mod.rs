//! What outlives the process: the registry's records in a database.
//!
//! A [`Store`] keeps what [`registry::Change`](warren_core::registry::Change)s say and gives it all back. It
//! decides nothing. [`Ledger`] joins one to a [`State`](warren_core::registry::State) so that memory never runs
//! ahead of the disk. `conformance` holds the tests that every store must pass.

mod backup;
mod connection;
mod credentials;
mod job;
mod journal;
mod ledger;
mod nodes;
mod people;
mod sqlite;
mod waiting;
mod work;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod turns;

use std::future::Future;
use std::path::Path;

use thiserror::Error;

pub use backup::{Contents, KeptFile, copy_closed, is_free, read as read_backup, seal, unseal, written_by_newer};
pub use job::{Job, job};
pub use ledger::{CommandError, Ledger, Written};
pub use sqlite::SqliteStore;

use warren_core::registry::{Audit, Change, Records};
use warren_core::wire::admin::{JournalQuery, JournalRecord};

/// What is kept together, or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The number of the last entry of the journal that whoever decided this knew of.
    pub revision: u64,
    /// Who changed what: goes into the journal.
    pub audits: Vec<Audit>,
    /// What is true from then on.
    pub changes: Vec<Change>,
}

impl Batch {
    /// The number of the last entry of the journal from then on.
    pub fn last(&self) -> u64 {
        self.revision + self.audits.iter().map(|audit| audit.entries.len() as u64).sum::<u64>()
    }
}

/// Keeps the registry's records.
pub trait Store: Send + 'static {
    /// Everything that is kept.
    fn load(&mut self) -> impl Future<Output = Result<Records, StoreError>> + Send;

    /// Keeps all of this, or nothing of it and says why: [`StoreError::Conflict`] where somebody else wrote into the journal
    /// since, or took a name, an address or a key. When this returns, it survives a crash of the program and of the machine.
    fn commit(&mut self, batch: &Batch) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Entries of the journal, the oldest first.
    fn read_journal(
        &mut self,
        query: &JournalQuery,
    ) -> impl Future<Output = Result<Vec<JournalRecord>, StoreError>> + Send;

    /// Whether it is known what is kept. After a commit that failed it may not be; then nothing can be committed
    /// until [`Store::prove`] succeeds.
    fn is_sound(&self) -> bool;

    /// Begins anew with what is kept, and proves that more can be: by writing.
    fn prove(&mut self) -> impl Future<Output = Result<Proven, StoreError>> + Send;

    /// Copies everything that is kept, as it is at one moment, into a new file that is for its owner alone.
    fn copy(&mut self, to: &Path) -> impl Future<Output = Result<(), StoreError>> + Send {
        let failed = connection::failed(format!("copy to {}", to.display()), "this store keeps nothing");
        async { Err(failed) }
    }
}

/// What was found to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proven {
    /// The commits that succeeded, and nothing else.
    AsTold,
    /// Also the last, of which it was said that it failed.
    WithTheLast,
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Another coordinator has the database open.
    #[error("the database {0} is in use by another coordinator")]
    InUse(String),
    /// The change contradicts what is kept, so that someone else must have changed it.
    #[error("{0}")]
    Conflict(String),
    /// The database failed.
    #[error("{operation}: {reason}")]
    Failed {
        /// The operation and its object.
        operation: String,
        /// What the database said.
        reason: String,
    },
}
