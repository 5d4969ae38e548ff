//! The one place of the coordinator that reads the clock.

use std::time::Instant;

use crate::types::Timestamp;

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "the coordinator's one reading of the wall clock")]
pub(crate) fn now() -> Timestamp {
    // A clock set before the year -9999 or after 9999 is the only way to fail.
    Timestamp::try_from(std::time::SystemTime::now()).unwrap_or_default()
}

/// The monotonic clock.
#[allow(clippy::disallowed_methods, reason = "the coordinator's one reading of the monotonic clock")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}
