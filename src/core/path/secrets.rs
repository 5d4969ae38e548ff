//! The secrets shared with peers' disco keys, kept because each costs a curve multiplication.

use std::collections::BTreeMap;
use std::fmt;

use super::pace::{Bucket, Tick};
use crate::types::{DiscoPrivate, DiscoPublic};
use crate::wire::disco::SharedKey;

/// Secrets kept: 100 bytes each. More active peers than this compute some of them again.
const KEPT: usize = 2_048;
/// Secrets computed for what strangers send, in a burst and per second: 0.1 ms each, so at most 2 % of a core.
const BURST: u32 = 1_000;
const PER_SECOND: u32 = 200;

/// A bounded cache.
pub(super) struct Secrets {
    ours: DiscoPrivate,
    kept: BTreeMap<DiscoPublic, (SharedKey, u64)>,
    uses: u64,
    computed: Bucket,
}

impl Secrets {
    pub(super) fn new(ours: DiscoPrivate) -> Self {
        Self { ours, kept: BTreeMap::new(), uses: 0, computed: Bucket::default() }
    }

    /// The secret by which a message to a peer is sealed.
    pub(super) fn to(&mut self, theirs: &DiscoPublic) -> &SharedKey {
        self.uses += 1;
        if !self.kept.contains_key(theirs) && self.kept.len() >= KEPT {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.and_then(|key| self.kept.remove(&key));
        }
        let entry = self.kept.entry(*theirs).or_insert_with(|| (SharedKey::new(&self.ours, theirs), 0));
        entry.1 = self.uses;
        &entry.0
    }

    /// The secret by which a message that names a peer's key may open, unless too many had to be computed of late.
    pub(super) fn from(&mut self, theirs: &DiscoPublic, now: Tick) -> Option<&SharedKey> {
        let known = self.kept.contains_key(theirs);
        (known || self.computed.take(BURST, PER_SECOND, now)).then(|| self.to(theirs))
    }

    /// A key is in the map no longer.
    pub(super) fn forget(&mut self, theirs: &DiscoPublic) {
        self.kept.remove(theirs);
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets {{ {} kept, [redacted] }}", self.kept.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut secrets = Secrets::new(DiscoPrivate::from_random([1; 32]));
        let key = |n: u16| {
            DiscoPublic::from_bytes(std::array::from_fn(|i| {
                n.to_le_bytes().get(i).copied().unwrap_or(u8::from(i == 9))
            }))
        };
        for n in 0..u16::try_from(KEPT).unwrap() + 10 {
            secrets.to(&key(n));
            secrets.to(&key(0));
        }
        assert_eq!(secrets.kept.len(), KEPT);
        assert!(secrets.kept.contains_key(&key(0)) && !secrets.kept.contains_key(&key(1)));
    }

    #[test]
    fn strangers_make_us_compute_only_so_much_and_nothing_secret_prints() {
        let mut secrets = Secrets::new(DiscoPrivate::from_random([1; 32]));
        let key = |n: u16| {
            DiscoPublic::from_bytes(std::array::from_fn(|i| {
                n.to_le_bytes().get(i).copied().unwrap_or(u8::from(i == 9))
            }))
        };
        let computed = (0..1_200).filter(|n| secrets.from(&key(*n), Tick::default()).is_some()).count();
        assert_eq!(computed, BURST as usize);
        assert_eq!(format!("{secrets:?}"), "Secrets { 1000 kept, [redacted] }");
    }
}
