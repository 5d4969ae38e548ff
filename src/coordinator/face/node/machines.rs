//! What one machine has of us at once: so many connections, so many requests, and one map for each of its nodes.
//!
//! A machine that has too many connections lost the oldest of them, whatever its network told it: that one ends. A map that
//! a newer one replaces is nobody's to read any more: its memory is given back at once, though its stream may be stuck.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::map_body::Outgoing;
use crate::limits;
use warren_core::types::{MachinePublic, NodePublic};
use warren_shell::{Buckets, HeldPlace};

/// All machines that are connected.
pub(crate) struct Machines(Mutex<Inner>);

struct Inner {
    next: u64,
    /// The connections of each machine, the oldest first.
    connections: BTreeMap<MachinePublic, VecDeque<(u64, Weak<HeldPlace>)>>,
    requests: Buckets<MachinePublic>,
    maps: BTreeMap<NodePublic, Weak<Outgoing>>,
    /// The number of maps at which those that ended are looked for.
    look_at: usize,
}

/// One connection's share in what its machine may have.
pub(crate) struct Claim {
    machines: Arc<Machines>,
    machine: MachinePublic,
    number: u64,
}

impl Machines {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            next: 0,
            connections: BTreeMap::new(),
            requests: Buckets::new(limits::MACHINE_RATE, limits::MACHINE_BURST),
            maps: BTreeMap::new(),
            look_at: limits::MAPS_LOOKED_AT,
        })))
    }

    /// A connection turned out to be this machine's. The oldest of too many is told to end.
    pub(crate) fn claim(self: &Arc<Self>, machine: MachinePublic, place: &Arc<HeldPlace>) -> Claim {
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        let all = inner.connections.entry(machine).or_default();
        if all.len() >= limits::MACHINE_CONNECTIONS
            && let Some((_, oldest)) = all.pop_front()
            && let Some(oldest) = oldest.upgrade()
        {
            oldest.dismiss();
        }
        all.push_back((number, Arc::downgrade(place)));
        Claim { machines: Arc::clone(self), machine, number }
    }

    /// Whether a machine may ask now, or how long until it may.
    pub(crate) fn may_ask(&self, machine: MachinePublic, now: Instant) -> Result<(), Duration> {
        self.lock().requests.take(machine, now)
    }

    /// This is the node's map from here on; an earlier one holds no memory any more.
    pub(crate) fn replace_map(&self, node: NodePublic, map: &Arc<Outgoing>) {
        let mut inner = self.lock();
        let earlier = inner.maps.insert(node, Arc::downgrade(map));
        if inner.maps.len() >= inner.look_at {
            inner.maps.retain(|_, map| map.strong_count() > 0);
            inner.look_at = (2 * inner.maps.len()).max(limits::MAPS_LOOKED_AT);
        }
        drop(inner);
        if let Some(earlier) = earlier.and_then(|earlier| earlier.upgrade()) {
            earlier.cut();
        }
    }

    /// Each visit leaves whole entries.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.machines.lock();
        let Some(all) = inner.connections.get_mut(&self.machine) else { return };
        all.retain(|(number, _)| *number != self.number);
        if all.is_empty() {
            inner.connections.remove(&self.machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use warren_shell::Places;

    const MACHINE: MachinePublic = MachinePublic::from_bytes([1; 32]);

    #[test]
    fn the_oldest_of_too_many_connections_of_a_machine_ends_and_a_machine_without_any_is_forgotten() {
        let (machines, places) = (Machines::new(), Places::new(100));
        let come = || {
            let room = places.room().now_or_never().unwrap().unwrap();
            places.enter("127.0.0.1".parse().unwrap(), room).unwrap()
        };
        let mut held = Vec::new();
        for _ in 0..=limits::MACHINE_CONNECTIONS {
            let place = come();
            held.push((machines.claim(MACHINE, &place), place));
        }
        let (_claim, other) = (machines.claim(MachinePublic::from_bytes([2; 32]), &held[0].1), come());
        let dismissed = |place: &HeldPlace| place.dismissed().now_or_never().is_some();
        assert!(dismissed(&held[0].1) && !dismissed(&other));
        assert!(held[1..].iter().all(|(_, place)| !dismissed(place)));
        held.clear();
        assert_eq!(
            machines.lock().connections.keys().copied().collect::<Vec<_>>(),
            [MachinePublic::from_bytes([2; 32])]
        );
    }

    #[test]
    fn a_machine_that_asks_too_often_is_told_when_to_come_again_and_others_are_not() {
        let (machines, now) = (Machines::new(), crate::clock::instant());
        for _ in 0..limits::MACHINE_BURST {
            assert!(machines.may_ask(MACHINE, now).is_ok());
        }
        let wait = machines.may_ask(MACHINE, now).unwrap_err();
        assert!(machines.may_ask(MachinePublic::from_bytes([2; 32]), now).is_ok());
        assert!(machines.may_ask(MACHINE, now + wait).is_ok());
    }
}
