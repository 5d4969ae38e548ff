//! Places for connections: how many there are at once, of whom, and who has to leave.
//!
//! Model: a connection is a *stranger's* until whoever is at its other end has shown that it belongs here. The places
//! that are not for strangers stay free for those who belong, strangers of one site have a share of their own, and
//! where all strangers' places are taken, the oldest stranger of the site that has most of them makes room. So whoever
//! opens connections and says nothing keeps out nobody but itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::rate::site;

/// Descriptors that are not for connections: files, the database, the administrator's socket, the ports themselves.
const OTHER_FILES: usize = 128;
/// One place in so many is for those who belong here.
const KEPT: usize = 4;
/// Strangers of one site may have so much of all strangers' places, but a handful always.
const SITE_SHARE: usize = 16;
const SITE_LEAST: usize = 64;

/// All places of a program.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    most: usize,
    strangers: Mutex<Strangers>,
    refused: AtomicU64,
    displaced: AtomicU64,
}

#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    count: usize,
    /// By site, the oldest first.
    of_site: BTreeMap<IpAddr, BTreeMap<u64, Arc<watch::Sender<bool>>>>,
}

/// One connection's place, given back when the last who holds it lets go.
#[derive(Debug)]
pub struct HeldPlace {
    places: Arc<Places>,
    site: IpAddr,
    number: u64,
    leave: Arc<watch::Sender<bool>>,
    _permit: OwnedSemaphorePermit,
}

/// The room for one connection more, before it is known whose that is.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

impl Places {
    /// So many, at least one.
    pub fn new(most: usize) -> Arc<Self> {
        let all = Arc::new(Semaphore::new(most));
        let (refused, displaced) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { all, most, strangers: Mutex::default(), refused, displaced })
    }

    /// Waits until there is room for one more: until then the kernel's backlog fills. Strangers never take all of it.
    pub async fn room(&self) -> Option<Room> {
        Arc::clone(&self.all).acquire_owned().await.ok().map(Room)
    }

    /// Gives a place to a connection from an address; nothing where its site has too many strangers.
    pub fn enter(self: &Arc<Self>, from: IpAddr, Room(permit): Room) -> Option<Arc<HeldPlace>> {
        let (site, leave) = (site(from), Arc::new(watch::Sender::new(false)));
        let mut strangers = self.lock();
        // Behind a proxy on the same machine everybody comes from there.
        let of_site = strangers.of_site.get(&site).map_or(0, BTreeMap::len);
        if !site.is_loopback() && of_site >= self.most_of_site() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if strangers.count >= self.most_strangers() {
            strangers.displace();
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
        strangers.next += 1;
        let number = strangers.next;
        strangers.count += 1;
        strangers.of_site.entry(site).or_default().insert(number, Arc::clone(&leave));
        drop(strangers);
        Some(Arc::new(HeldPlace { places: Arc::clone(self), site, number, leave, _permit: permit }))
    }

    /// Waits until all are free.
    pub async fn all_free(&self) {
        let _ = self.all.acquire_many(u32::try_from(self.most).unwrap_or(u32::MAX)).await;
    }

    /// How many connections there are of strangers at this moment, how many were refused, and how many made room.
    pub fn counts(&self) -> (usize, u64, u64) {
        (self.lock().count, self.refused.load(Ordering::Relaxed), self.displaced.load(Ordering::Relaxed))
    }

    fn most_strangers(&self) -> usize {
        (self.most - self.most / KEPT).max(1)
    }

    fn most_of_site(&self) -> usize {
        (self.most_strangers() / SITE_SHARE).max(SITE_LEAST)
    }

    /// Each visit leaves whole entries.
    fn lock(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Strangers {
    /// The oldest of the site with most has to leave. It counts no more, though it takes a moment to go.
    fn displace(&mut self) {
        let Some(site) = self.of_site.iter().max_by_key(|(_, all)| all.len()).map(|(site, _)| *site) else { return };
        let oldest = self.of_site.get(&site).and_then(|all| all.keys().next().copied());
        if let Some(leave) = oldest.and_then(|number| self.forget(&site, number)) {
            leave.send_replace(true);
        }
    }

    fn forget(&mut self, site: &IpAddr, number: u64) -> Option<Arc<watch::Sender<bool>>> {
        let all = self.of_site.get_mut(site)?;
        let leave = all.remove(&number)?;
        if all.is_empty() {
            self.of_site.remove(site);
        }
        self.count -= 1;
        Some(leave)
    }
}

impl HeldPlace {
    /// Whoever is at the other end belongs here: the place counts as a stranger's no more.
    pub fn belongs(&self) {
        self.places.lock().forget(&self.site, self.number);
    }

    /// Tells whoever holds this place to leave.
    pub fn dismiss(&self) {
        self.leave.send_replace(true);
    }

    /// Resolves when the connection has to make room.
    pub async fn dismissed(&self) {
        // The sender is ours.
        let _ = self.leave.subscribe().wait_for(|leave| *leave).await;
    }

    /// What counts as one asker.
    pub const fn site(&self) -> IpAddr {
        self.site
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.places.lock().forget(&self.site, self.number);
    }
}

/// Raises the limit on open files as far as this process may, and says how many connections that leaves room for, at most
/// `wanted`.
pub fn possible_connections(wanted: usize) -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let possible = wanted.min(files.saturating_sub(OTHER_FILES).max(files / 2).max(1));
    if possible < wanted {
        tracing::warn!(
            possible,
            wanted,
            "fewer connections than configured: this process may open {files} files (`LimitNOFILE=` of its unit)"
        );
    }
    possible
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A connection from an address; nothing where it is refused, or has to wait.
    fn come(places: &Arc<Places>, from: &str) -> Option<Arc<HeldPlace>> {
        let room = places.room().now_or_never()??;
        places.enter(ip(from), room)
    }

    #[test]
    fn strangers_of_one_site_have_a_share_and_others_find_room() {
        let places = Places::new(1000);
        let silent: Vec<_> = (0..1100).filter_map(|_| come(&places, "192.0.2.1")).collect();
        assert_eq!(silent.len(), SITE_LEAST);
        let site_of_v6: Vec<_> = (0..100).filter_map(|host| come(&places, &format!("2001:db8::{host:x}"))).collect();
        assert_eq!(site_of_v6.len(), SITE_LEAST, "a /64 is one site");
        assert!(come(&places, "192.0.2.2").is_some());
        assert_eq!(places.counts(), (2 * SITE_LEAST, 1100 + 100 - 2 * SITE_LEAST as u64, 0));
        drop(silent);
        assert!(come(&places, "192.0.2.1").is_some(), "places are given back");
    }

    #[test]
    fn a_full_house_of_strangers_makes_room_where_most_are_and_never_from_those_who_belong() {
        let places = Places::new(8);
        let node = come(&places, "127.0.0.1").unwrap();
        node.belongs();
        let one = come(&places, "192.0.2.9").unwrap();
        let many: Vec<_> = (0..5).map(|_| come(&places, "127.0.0.1").unwrap()).collect();
        // Six strangers are the most of eight.
        let new = come(&places, "192.0.2.8").unwrap();
        assert!(many[0].dismissed().now_or_never().is_some(), "the oldest of the site that has most");
        for place in many[1..].iter().chain([&node, &one, &new]) {
            assert!(place.dismissed().now_or_never().is_none());
        }
        assert_eq!(places.counts(), (6, 0, 1));
    }

    #[test]
    fn beyond_all_places_one_waits() {
        let places = Places::new(2);
        let held: Vec<_> = (0..2).map(|_| come(&places, "127.0.0.1").unwrap()).collect();
        held.iter().for_each(|place| place.belongs());
        assert!(places.room().now_or_never().is_none());
        drop(held);
        assert!(places.all_free().now_or_never().is_some());
    }

    #[test]
    fn a_process_takes_no_more_connections_than_it_may_open_files() {
        let possible = possible_connections(usize::MAX);
        let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard, "raised");
        assert!(possible < usize::try_from(hard).unwrap());
        assert_eq!(possible_connections(10), 10);
    }
}
