//! The relay's clock.

use std::time::Instant;

/// Now.
#[allow(clippy::disallowed_methods, reason = "the shell's one reading of the monotonic clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "the relay's one reading of the wall clock")]
pub(super) fn wall() -> jiff::Timestamp {
    // A clock set before the year -9999 or after 9999 is the only way to fail.
    jiff::Timestamp::try_from(std::time::SystemTime::now()).unwrap_or_default()
}

/// The year in UTC.
pub(super) fn year() -> i16 {
    jiff::tz::Offset::UTC.to_datetime(wall()).year()
}
