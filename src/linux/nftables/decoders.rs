//! The readers of this module, as functions from bytes to whether they were taken.

use std::collections::BTreeMap;

use warren_core::plan::ObservedFirewall;

use super::{elements, foreign, generation, read};

/// `nft` lists our table: whether it is ours, and its counters.
pub fn listing(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let _ = read::read(text, BTreeMap::new());
    read::read_counters(ObservedFirewall::default(), text).is_ok()
}

/// `nft` lists the chains of others.
pub fn foreign(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(foreign::decode)
}

/// The kernel lists the elements of a set, or says which generation its rules are of.
pub fn elements(bytes: &[u8]) -> bool {
    let is_generation = generation::read(bytes).is_some();
    let mut found = Vec::new();
    let is_read = elements::read_message(bytes, &mut found).is_ok() && !found.is_empty();
    is_generation || is_read
}
