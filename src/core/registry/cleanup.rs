//! What is given back: keys that admit nobody any more, and the addresses of nodes that are gone.
//!
//! Both are kept for a while, keys so that an administrator can still look at them, addresses because hosts, name servers
//! and people remember them longer than we do.

use std::sync::Arc;
use std::time::Duration;

use super::config::limit;
use super::directory::host_number;
use super::presence::add;
use super::record::{Change, KeyId, NodeRecord};
use super::state::State;
use super::waiting::End;
use crate::types::Timestamp;

/// How long a key is kept that admits nobody any more.
pub(super) const SPENT_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long nobody gets the address of a node that is gone: longer than what remembers it is likely to.
const QUARANTINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl State {
    /// What is to be forgotten for good because of the time: ephemeral nodes that were offline too long, keys and
    /// addresses that were kept long enough, machines that waited long enough, browsers that nobody used any more.
    pub(super) fn due_changes(&self, now: Timestamp) -> Vec<Change> {
        let reaped =
            self.presence.reaps().take_while(|(at, _)| *at <= now).filter_map(|(_, id)| self.directory.node(id));
        let nodes = reaped.flat_map(|record| gone(record, now));
        let keys = self.directory.spent().take_while(|(at, _)| *at <= now).map(|(_, id)| Change::KeyGone(id));
        let too_many = self.directory.freed().len().saturating_sub(limit::FREED.most);
        let is_ready = |(index, (at, _)): &(usize, (Timestamp, u32))| *index < too_many || add(*at, QUARANTINE) <= now;
        let hosts =
            self.directory.freed().enumerate().take_while(is_ready).map(|(_, (_, host))| Change::HostReady(host));
        let ends = self.directory.waiting().ends().take_while(|(at, _)| *at <= now).map(|(_, end)| match end {
            End::Wait(code) => Change::PendingGone(code.clone()),
            End::Rejection(machine) => Change::Forgiven(*machine),
        });
        let sessions = self.directory.access().ends().take_while(|(at, _)| *at <= now);
        let sessions = sessions.map(|(_, id)| Change::SessionGone(*id));
        nodes.chain(keys).chain(hosts).chain(ends).chain(sessions).collect()
    }

    /// When [`State::due_changes`] has something next.
    pub(super) fn next_cleanup(&self) -> Option<Timestamp> {
        let reap = self.presence.reaps().next().map(|(at, _)| at);
        let key = self.directory.spent().next().map(|(at, _)| at);
        let host = self.directory.freed().next().map(|(at, _)| add(at, QUARANTINE));
        let end = self.directory.waiting().ends().next().map(|(at, _)| *at);
        let session = self.directory.access().ends().next().map(|(at, _)| *at);
        [reap, key, host, end, session].into_iter().flatten().min()
    }

    /// The key that has admitted nobody for the longest and never will again.
    pub(super) fn oldest_spent(&self, now: Timestamp) -> Option<KeyId> {
        self.directory.spent().next().filter(|(at, _)| *at <= add(now, SPENT_KEPT)).map(|(_, id)| id)
    }
}

/// A node goes, and its address is nobody's for a while.
pub(super) fn gone(record: &Arc<NodeRecord>, now: Timestamp) -> [Change; 2] {
    [Change::NodeGone(record.id), Change::HostFreed(host_number(record), now)]
}
