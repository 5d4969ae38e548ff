//! What a store does in a task of its own.

use std::path::PathBuf;

use super::{Batch, Proven, Store, StoreError};
use warren_core::registry::{Change, Records};
use warren_core::wire::admin::{JournalQuery, JournalRecord};

/// What a store is to do.
pub(super) enum Work {
    /// Keeps these and what waits to be saved; where it does not take what waits, these alone.
    Commit {
        batch: Batch,
        reports: Vec<Change>,
    },
    /// Keeps what waits to be saved; where it does not take them together, each by itself.
    Save(Vec<Change>),
    Prove,
    Load,
    /// Keeps what waits to be saved, and copies everything.
    Copy(Vec<Change>, PathBuf),
    Read(JournalQuery),
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) result: Result<(), StoreError>,
    /// The number of the last entry of the journal.
    pub(super) revision: u64,
    /// What waited to be saved and still does.
    pub(super) unkept: Vec<Change>,
    pub(super) proven: Option<Proven>,
    pub(super) records: Option<Records>,
    pub(super) read: Vec<JournalRecord>,
}

impl Done {
    fn of(result: Result<(), StoreError>, revision: u64) -> Self {
        Self { result, revision, unkept: Vec::new(), proven: None, records: None, read: Vec::new() }
    }
}

/// Does it, and gives the store back.
pub(super) async fn carry_out<S: Store>(mut store: S, work: Work, revision: u64) -> (S, Done) {
    let done = match work {
        Work::Commit { batch, reports } => commit(&mut store, batch, reports).await,
        Work::Save(reports) => save(&mut store, reports, revision).await,
        Work::Prove => match store.prove().await {
            Ok(proven) => Done { proven: Some(proven), ..Done::of(Ok(()), revision) },
            Err(error) => Done::of(Err(error), revision),
        },
        Work::Load => match store.load().await {
            Ok(records) => Done { revision: records.revision, records: Some(records), ..Done::of(Ok(()), revision) },
            Err(error) => Done::of(Err(error), revision),
        },
        Work::Copy(reports, to) => {
            let saved = save(&mut store, reports, revision).await;
            if let Err(error) = &saved.result {
                // The copy is of what is on disk, which may be what it is wanted for.
                tracing::warn!("a copy is made without what could not be saved: {error}");
            }
            Done { result: store.copy(&to).await, ..saved }
        }
        Work::Read(query) => match store.read_journal(&query).await {
            Ok(read) => Done { read, ..Done::of(Ok(()), revision) },
            Err(error) => Done::of(Err(error), revision),
        },
    };
    (store, done)
}

async fn commit<S: Store>(store: &mut S, batch: Batch, reports: Vec<Change>) -> Done {
    let last = batch.last();
    if reports.is_empty() {
        return Done::of(store.commit(&batch).await, last);
    }
    let all = Batch { changes: [reports.as_slice(), &batch.changes].concat(), ..batch.clone() };
    match store.commit(&all).await {
        Ok(()) => Done::of(Ok(()), last),
        Err(_) if store.is_sound() => Done { unkept: reports, ..Done::of(store.commit(&batch).await, last) },
        Err(error) => Done { unkept: reports, ..Done::of(Err(error), last) },
    }
}

/// One that the store does not take must not keep the others from it.
async fn save<S: Store>(store: &mut S, reports: Vec<Change>, revision: u64) -> Done {
    if reports.is_empty() {
        return Done::of(Ok(()), revision);
    }
    let batch = |changes: Vec<Change>| Batch { revision, audits: Vec::new(), changes };
    let Err(error) = store.commit(&batch(reports.clone())).await else { return Done::of(Ok(()), revision) };
    if !store.is_sound() || reports.len() == 1 {
        return Done { unkept: reports, ..Done::of(Err(error), revision) };
    }
    tracing::error!("{error}; saving each node by itself");
    let mut done = Done::of(Ok(()), revision);
    for report in &reports {
        if let Err(error) = store.commit(&batch(vec![report.clone()])).await {
            done.result = Err(error);
            done.unkept.push(report.clone());
            if !store.is_sound() {
                done.unkept = reports.clone();
                break;
            }
        }
    }
    done
}
