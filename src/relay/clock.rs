//! The relay's clock.

use std::time::Instant;

/// Now.
#[allow(clippy::disallowed_methods, reason = "the shell's one reading of the monotonic clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}
