//! What only this module reads, as functions from bytes to whether they were taken: for tests that feed them anything.

use super::config::{self, Settings};
use warren_core::wire::admin::Request;

/// A request to the administration's socket.
pub fn admin_request(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Request>(bytes).is_ok()
}

/// The configuration file, to the settings that it makes.
pub fn configuration(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    config::parse(text).is_ok_and(|options| Settings::of(options).is_ok())
}
