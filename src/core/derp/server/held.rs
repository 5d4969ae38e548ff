//! Packets for keys that are away for a moment, because their node or this relay itself starts anew.
//!
//! A key that left is expected back for [`HOLD`]; a relay that has just begun expects, for as long, whomever its clients
//! send to. Data for such a key waits, and is the first that it gets when it is here. Probes never do: that nobody is here
//! is what they ask. Who comes back at another relay of the region is not sent after.
//!
//! Invariants: what waits is bounded for each key, for each sender and as a whole, and is gone when the time is up, be it
//! that nobody came; a key that was withdrawn is not expected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Counters;
use super::packets::{Packet, Store};
use crate::derp::queue::Queue;
use crate::types::{NodePublic, TokenBucket};

/// How long a key is expected: a service that is started anew is back in two seconds, and clients of a relay that is come
/// back within three.
pub(super) const HOLD: Duration = Duration::from_secs(5);
/// Keys that are expected; of more than that those that leave first are.
pub(super) const KEYS: usize = 16 << 10;
/// Packets for one key: as many as wait for one that is here.
const KEY_DEPTH: usize = 128;
/// Bytes for one key: a window of one TCP stream, and some large packets.
pub(super) const KEY_BYTES: usize = 128 << 10;
/// Bytes of one sender, for all keys: about as much again while it holds. Beside it there is room for a hundred like it.
pub(super) const SENDER_BYTES: u64 = 128 << 10;
/// Bytes for all keys together.
pub(super) const ALL_BYTES: usize = 32 << 20;
/// What a key costs beside its packets.
const KEY_COST: usize = 256;

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct Held {
    keys: BTreeMap<NodePublic, Away>,
    /// Bytes in all queues.
    bytes: usize,
    /// When the relay began, if it expects whoever was at the one before.
    opened: Option<Instant>,
}

/// A key that is expected.
#[derive(Debug)]
struct Away {
    data: Queue,
    until: Instant,
}

/// How much of one sender may wait.
pub(super) fn allowance(now: Instant) -> TokenBucket {
    TokenBucket::new(SENDER_BYTES / HOLD.as_secs(), SENDER_BYTES, now)
}

impl Held {
    /// The relay begins: nobody has come yet, and all are expected.
    pub(super) const fn open(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// A key left.
    pub(super) fn expect(&mut self, key: NodePublic, now: Instant) {
        if self.keys.len() < KEYS {
            self.keys.insert(key, Away { data: Queue::new(KEY_DEPTH, KEY_BYTES), until: now + HOLD });
        }
    }

    /// Takes a packet for a key that is not here. False where it is not expected, or its sender has sent enough.
    pub(super) fn take_in(
        &mut self,
        to: NodePublic,
        packet: &Packet<'_>,
        sender: &mut TokenBucket,
        (store, counters): (&mut Store, &mut Counters),
        now: Instant,
    ) -> bool {
        let is_known = self.keys.get(&to).is_some_and(|away| now < away.until);
        let is_beginning = self.opened.is_some_and(|opened| now < opened + HOLD);
        if !is_known && (!is_beginning || self.keys.contains_key(&to) || self.keys.len() >= KEYS) {
            return false;
        }
        if self.bytes + packet.len() > ALL_BYTES || !store.has_room(packet.len()) {
            return false;
        }
        if !sender.take(packet.len() + if is_known { 0 } else { KEY_COST }, now) {
            return false;
        }
        if !is_known {
            self.expect(to, now);
        }
        let Some(away) = self.keys.get_mut(&to) else { return false };
        let before = away.data.waiting();
        counters.dropped_queue_full += packet.push_to(&mut away.data) as u64;
        self.bytes = self.bytes + away.data.waiting() - before;
        store.changed(before, &away.data);
        true
    }

    /// A key is here: what waits for it, if its time is not up.
    pub(super) fn give_out(
        &mut self,
        key: &NodePublic,
        now: Instant,
        (store, counters): (&mut Store, &mut Counters),
    ) -> Option<Queue> {
        let away = self.keys.remove(key)?;
        self.bytes -= away.data.waiting();
        if away.until <= now {
            lose(&away.data, (store, counters));
            return None;
        }
        counters.went(&away.data);
        Some(away.data)
    }

    /// A key is not expected any more.
    pub(super) fn forget(&mut self, key: &NodePublic, at: (&mut Store, &mut Counters)) {
        if let Some(away) = self.keys.remove(key) {
            self.bytes -= away.data.waiting();
            lose(&away.data, at);
        }
    }

    /// Time passed: whoever did not come is not expected any more.
    pub(super) fn expire(&mut self, now: Instant, (store, counters): (&mut Store, &mut Counters)) {
        for (_, away) in self.keys.extract_if(.., |_, away| away.until <= now) {
            self.bytes -= away.data.waiting();
            lose(&away.data, (&mut *store, &mut *counters));
        }
    }

    /// How many keys are expected, and the bytes that wait for them.
    #[cfg(test)]
    pub(super) fn extent(&self) -> (usize, usize) {
        assert_eq!(self.bytes, self.keys.values().map(|away| away.data.waiting()).sum::<usize>());
        (self.keys.len(), self.bytes)
    }
}

fn lose(data: &Queue, (store, counters): (&mut Store, &mut Counters)) {
    store.forget(data);
    counters.dropped_unknown_peer += data.len() as u64;
}
