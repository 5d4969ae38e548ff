//! The one place where the agent reads the time.

use std::time::Instant;

use crate::types::Timestamp;

/// The clock that only runs forward: for intervals.
#[allow(clippy::disallowed_methods, reason = "the shell's one reading of the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: for times that people and other machines see.
pub fn wall() -> Timestamp {
    Timestamp::now()
}
