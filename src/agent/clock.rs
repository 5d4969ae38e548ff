//! The one place where the agent reads the time and draws chance.

use std::time::Instant;

pub use warren_core::node::Now;
use warren_core::types::Timestamp;

/// Reads both clocks.
#[allow(clippy::disallowed_methods, reason = "the shell's one reading of the monotonic clock")]
pub fn now() -> Now {
    Now { tick: Instant::now(), wall: wall() }
}

/// Reads the clock on the wall.
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// Draws the bytes of a key.
pub fn key_bytes() -> [u8; 32] {
    rand::random()
}

/// Draws a seed.
pub fn seed() -> u64 {
    rand::random()
}
