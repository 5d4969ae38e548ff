//! How connections to a relay fared, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::RelayError;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

/// How connections fared.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) admitted: Count,
    pub(super) refused: Count,
    pub(super) slow: Count,
    pub(super) broken: Count,
    pub(super) too_often: Count,
    pub(super) withdrawn: Count,
}

impl Tally {
    pub(super) fn admitted(&self) {
        self.admitted.add(1);
    }

    /// Counts a connection that came too soon after others of its address.
    pub(super) fn too_often(&self) {
        self.too_often.add(1);
    }

    /// Counts connections of a key that was admitted and is no longer.
    pub(super) fn withdrawn(&self, connections: usize) {
        self.withdrawn.add(connections as u64);
    }

    /// Counts an end that the client did not choose.
    pub(super) fn ended(&self, error: &RelayError) {
        let counter = match error {
            RelayError::NotAdmitted => &self.refused,
            RelayError::Slow(_) => &self.slow,
            RelayError::Protocol(_) => &self.broken,
            RelayError::Io(_) | RelayError::Oneself => return,
        };
        counter.add(1);
    }
}
