//! How many connections each user of this host may hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of root, and of everybody else together: each may hold a body of the largest size.
const CONNECTIONS: usize = 64;
/// Connections of one user other than root: a desktop and a few scripts, and never so many that others find no place.
const OF_ONE: usize = 16;

/// The places, of which clones share one set.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<u32, Taken>>>);

#[derive(Default)]
struct Taken {
    places: usize,
    /// Whether it was said that there are no more.
    was_told: bool,
}

/// A place; it is given back when this is dropped.
pub(super) struct Place {
    places: Places,
    user: u32,
}

impl Places {
    /// A place for one more connection of this user.
    pub(super) fn take(&self, user: u32) -> Option<Place> {
        let mut users = self.lock();
        let of_all: usize = users.iter().filter(|(other, _)| **other != 0).map(|(_, taken)| taken.places).sum();
        let taken = users.entry(user).or_default();
        let is_full = match user {
            0 => taken.places >= CONNECTIONS,
            _ => taken.places >= OF_ONE || of_all >= CONNECTIONS,
        };
        if is_full {
            if !std::mem::replace(&mut taken.was_told, true) {
                tracing::warn!("local socket: user {user} gets no more connections until others are closed");
            }
            if taken.places == 0 {
                users.remove(&user);
            }
            return None;
        }
        taken.places += 1;
        Some(Place { places: self.clone(), user })
    }

    /// What was written whole is whole, also where another task panicked.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.lock();
        if let Some(taken) = users.get_mut(&self.user) {
            taken.places -= 1;
            if taken.places == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_places_of_others_and_nobody_those_of_root() {
        let places = Places::default();
        let of_one: Vec<Place> = (0..OF_ONE).map_while(|_| places.take(1_000)).collect();
        assert_eq!(of_one.len(), OF_ONE);
        assert!(places.take(1_000).is_none());
        assert!(places.take(1_001).is_some(), "another user has places of its own");

        let of_many: Vec<Place> = (2_000..2_100).map_while(|user| places.take(user)).collect();
        assert_eq!(of_one.len() + of_many.len(), CONNECTIONS);
        assert!(places.take(3_000).is_none(), "all others together have as many");
        assert_eq!((0..100).map_while(|_| places.take(0)).collect::<Vec<_>>().len(), CONNECTIONS);

        drop((of_one, of_many));
        assert!(places.lock().is_empty(), "nothing is kept of who has gone");
        assert!(places.take(1_000).is_some());
    }
}
