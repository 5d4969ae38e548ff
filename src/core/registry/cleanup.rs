//! What is given back: keys that admit nobody any more, and the addresses of nodes that are gone.
//!
//! Both are kept for a while, keys so that an administrator can still look at them, addresses because hosts, name servers
//! and people remember them longer than we do.

use std::sync::Arc;
use std::time::Duration;

use super::address;
use super::config::limit;
use super::record::{Change, KeyId, KeyRecord, NodeRecord};
use super::session::add;
use super::state::State;
use crate::types::Timestamp;

/// How long a key is kept that admits nobody any more.
const SPENT_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long nobody gets the address of a node that is gone: longer than what remembers it is likely to.
const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl State {
    /// What is to be forgotten for good because of the time: ephemeral nodes that were offline too long, keys and
    /// addresses that were kept long enough.
    pub(super) fn due_changes(&self, now: Timestamp) -> Vec<Change> {
        let reaped = self.reaps.iter().take_while(|(at, _)| *at <= now).filter_map(|(_, id)| self.node(*id));
        let nodes = reaped.flat_map(|node| gone(node.record, now));
        let keys = self.spent.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| Change::KeyGone(*id));
        let too_many = self.freed.len().saturating_sub(limit::FREED.most);
        let is_ready = |(index, (at, _)): &(usize, &(Timestamp, u32))| *index < too_many || add(*at, QUARANTINE) <= now;
        let hosts = self.freed.iter().enumerate().take_while(is_ready).map(|(_, (_, host))| Change::HostReady(*host));
        nodes.chain(keys).chain(hosts).collect()
    }

    /// When [`State::due_changes`] has something next.
    pub(super) fn next_cleanup(&self) -> Option<Timestamp> {
        let reap = self.reaps.first().map(|(at, _)| *at);
        let key = self.spent.first().map(|(at, _)| *at);
        let host = self.freed.first().map(|(at, _)| add(*at, QUARANTINE));
        [reap, key, host].into_iter().flatten().min()
    }

    /// The key that has admitted nobody for the longest and never will again.
    pub(super) fn oldest_spent(&self, now: Timestamp) -> Option<KeyId> {
        self.spent.first().filter(|(at, _)| *at <= add(now, SPENT_KEPT)).map(|(_, id)| *id)
    }

    pub(super) fn put_key(&mut self, key: KeyRecord) {
        self.remove_key(key.id);
        self.spent.extend(forgotten_at(&key).map(|at| (at, key.id)));
        self.keys.insert(key.id, key);
    }

    pub(super) fn remove_key(&mut self, id: KeyId) {
        if let Some(at) = self.keys.remove(&id).as_ref().and_then(forgotten_at) {
            self.spent.remove(&(at, id));
        }
    }

    pub(super) fn free_host(&mut self, host: u32, at: Timestamp) {
        let at = *self.freed_hosts.entry(host).or_insert(at);
        self.freed.insert((at, host));
    }

    pub(super) fn give_back_host(&mut self, host: u32) {
        if let Some(at) = self.freed_hosts.remove(&host) {
            self.freed.remove(&(at, host));
        }
    }

    /// The host numbers that may not be given again yet, each with when it was freed.
    pub fn freed(&self) -> impl Iterator<Item = (u32, Timestamp)> + '_ {
        self.freed_hosts.iter().map(|(host, at)| (*host, *at))
    }

    /// Whether nobody may get a host number at present.
    pub(super) fn is_host_taken(&self, host: u32) -> bool {
        self.hosts.contains(&host) || self.freed_hosts.contains_key(&host)
    }
}

/// A node goes, and its address is nobody's for a while.
pub(super) fn gone(record: &Arc<NodeRecord>, now: Timestamp) -> [Change; 2] {
    [Change::NodeGone(record.id), Change::HostFreed(address::host_of(record.ipv4), now)]
}

/// When a key is forgotten: some time after it admits nobody any more; `None` while nothing ends it.
fn forgotten_at(key: &KeyRecord) -> Option<Timestamp> {
    let used = key.used.filter(|_| !key.reusable);
    used.into_iter().chain(key.expires).min().map(|at| add(at, SPENT_KEPT))
}
