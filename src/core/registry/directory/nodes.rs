//! Nodes in the directory: by number, key, machine, name and address.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::address::{self, host_of};
use super::{Directory, Grants, Row};
use crate::registry::record::NodeRecord;
use crate::types::{DiscoPublic, HostLabel, MachinePublic, NodeId, NodePublic, Timestamp};

impl Directory {
    pub(in crate::registry) fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<NodeRecord>> {
        self.nodes.values().map(|row| &row.record)
    }

    pub(in crate::registry) fn node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&id).map(|row| &row.record)
    }

    /// What a node has by the policy, or for want of one.
    pub(in crate::registry) fn grants(&self, id: NodeId) -> Option<&Arc<Grants>> {
        self.nodes.get(&id).map(|row| &row.grants)
    }

    pub(in crate::registry) fn node_by_key(&self, key: &NodePublic) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    pub(in crate::registry) fn node_named(&self, label: &HostLabel) -> Option<NodeId> {
        self.labels.get(label).copied()
    }

    /// The nodes of a machine: one for each user.
    pub(in crate::registry) fn nodes_of_machine(
        &self,
        machine: MachinePublic,
    ) -> impl Iterator<Item = &Arc<NodeRecord>> {
        let of_machine = self.by_machine.range((machine, NodeId(0))..).take_while(move |(other, _)| *other == machine);
        of_machine.filter_map(|(_, id)| self.node(*id))
    }

    /// The nodes that say to hold a disco key.
    pub(in crate::registry) fn holders(&self, disco: &DiscoPublic) -> impl Iterator<Item = NodeId> + '_ {
        self.by_disco.range((*disco, NodeId(0))..=(*disco, NodeId(u64::MAX))).map(|(_, holder)| *holder)
    }

    /// A node is, from here on, this; gives the one that was there.
    pub(in crate::registry) fn put_node(&mut self, record: Arc<NodeRecord>) -> Option<Arc<NodeRecord>> {
        let id = record.id;
        let host = host_of(record.ipv4);
        self.counters.node = self.counters.node.max(id.0);
        self.counters.host = self.counters.host.max(host);
        let old = self.node(id).cloned();
        if let Some(old) = &old {
            self.forget_indexes(old);
        }
        self.by_key.insert(record.key, id);
        self.by_machine.insert((record.machine, id));
        self.by_disco.insert((record.status.disco, id));
        self.labels.insert(record.label.clone(), id);
        self.hosts.insert(host);
        match self.nodes.get_mut(&id) {
            Some(row) => row.record = record,
            None => drop(self.nodes.insert(id, Row { record, grants: Arc::default() })),
        }
        old
    }

    pub(in crate::registry) fn remove_node(&mut self, id: NodeId) -> Option<Arc<NodeRecord>> {
        self.unsaved.remove(&id);
        let record = self.nodes.remove(&id)?.record;
        self.forget_indexes(&record);
        Some(record)
    }

    fn forget_indexes(&mut self, record: &NodeRecord) {
        let id = record.id;
        if self.by_key.get(&record.key) == Some(&id) {
            self.by_key.remove(&record.key);
        }
        if self.labels.get(&record.label) == Some(&id) {
            self.labels.remove(&record.label);
        }
        self.by_machine.remove(&(record.machine, id));
        self.by_disco.remove(&(record.status.disco, id));
        self.hosts.remove(&host_of(record.ipv4));
    }

    // ---- what the store does not have yet ----

    /// A node is, from here on, this, and the store is told at leisure.
    pub(in crate::registry) fn put_unsaved(&mut self, record: Arc<NodeRecord>) -> Option<Arc<NodeRecord>> {
        self.unsaved.insert(record.id);
        self.put_node(record)
    }

    pub(in crate::registry) fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    pub(in crate::registry) fn take_unsaved(&mut self) -> Vec<Arc<NodeRecord>> {
        let ids = std::mem::take(&mut self.unsaved);
        ids.iter().filter_map(|id| self.node(*id).cloned()).collect()
    }

    pub(in crate::registry) fn put_back_unsaved(&mut self, id: NodeId) {
        if self.nodes.contains_key(&id) {
            self.unsaved.insert(id);
        }
    }

    // ---- addresses ----

    /// The next place that a node may have, as how many were passed to get there, and its addresses.
    pub(in crate::registry) fn next_address(&self) -> Option<(u32, Ipv4Addr, Ipv6Addr)> {
        address::next(self.counters.host, |host| self.is_host_taken(host))
    }

    /// Whether nobody may get a host number at present.
    pub(in crate::registry) fn is_host_taken(&self, host: u32) -> bool {
        self.hosts.contains(&host) || self.freed_hosts.contains_key(&host)
    }

    /// The host numbers that may not be given again yet, the first that was freed first.
    pub(in crate::registry) fn freed(&self) -> impl ExactSizeIterator<Item = (Timestamp, u32)> + '_ {
        self.freed.iter().copied()
    }

    /// The same by number.
    pub(in crate::registry) fn freed_hosts(&self) -> impl Iterator<Item = (u32, Timestamp)> + '_ {
        self.freed_hosts.iter().map(|(host, at)| (*host, *at))
    }

    pub(in crate::registry) fn free_host(&mut self, host: u32, at: Timestamp) {
        let at = *self.freed_hosts.entry(host).or_insert(at);
        self.freed.insert((at, host));
    }

    pub(in crate::registry) fn give_back_host(&mut self, host: u32) {
        if let Some(at) = self.freed_hosts.remove(&host) {
            self.freed.remove(&(at, host));
        }
    }
}

#[cfg(test)]
impl Directory {
    /// How many entries the indexes have of which each node has one.
    pub(in crate::registry) fn index_sizes(&self) -> [usize; 4] {
        [self.by_key.len(), self.by_machine.len(), self.labels.len(), self.by_disco.len()]
    }
}

/// The host number of a node's address.
pub(in crate::registry) fn host_number(record: &NodeRecord) -> u32 {
    host_of(record.ipv4)
}
