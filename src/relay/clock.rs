//! The relay's clock.

use std::time::Instant;

/// Now.
#[allow(clippy::disallowed_methods, reason = "the shell's one reading of the monotonic clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The year in UTC.
#[allow(clippy::disallowed_methods, reason = "the relay's one reading of the wall clock")]
pub(super) fn year() -> i16 {
    // A clock set before the year -9999 or after 9999 is the only way to fail.
    let now = jiff::Timestamp::try_from(std::time::SystemTime::now()).unwrap_or_default();
    jiff::tz::Offset::UTC.to_datetime(now).year()
}
