//! Devices that speak nothing but WireGuard, and the gateways that stand before them.
//!
//! A device enforces nothing and follows no map, so its gateway does both in its place: it sees whom its devices share a
//! rule with, and its packet filter has their part of every rule, in both directions. Everybody else sees the gateway where
//! they would see the device, with the device's addresses among what it carries; their own filters name those addresses.

use crate::types::{IpNet, NodeId};

use super::compile::{Change, Compiled};
use super::index::NodeEntry;
use super::nodeset::NodeSet;
use super::topology::Reach;

/// Whom a node sees.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) visible: NodeSet,
    /// The addresses of devices that it sees gateways in place of, each with its gateway.
    pub(super) passed_on: Vec<(usize, IpNet)>,
}

impl Compiled {
    /// Whether no rule connects a node with another.
    pub fn is_alone(&self, id: NodeId) -> bool {
        let place = self.index.slot(id).and_then(|slot| Some((slot, self.index.place(slot)?)));
        place.is_none_or(|(slot, place)| {
            let mut related = self.related(slot, place);
            related.remove(slot);
            related.is_empty()
        })
    }

    /// The devices that a node stands before.
    pub(super) fn devices_behind(&self, gateway: NodeId) -> impl Iterator<Item = (usize, &NodeEntry)> {
        let devices = self.index.devices.iter().filter_map(|slot| Some((slot, self.index.place(slot)?)));
        devices.filter(move |(_, place)| place.node.reach == Reach::Behind(gateway))
    }

    /// Whom a node sees; itself as well where the others of its kind do.
    pub(super) fn seen(&self, slot: usize, viewer: &NodeEntry) -> Seen {
        if self.index.devices.is_empty() {
            return Seen { visible: self.related(slot, viewer), passed_on: Vec::new() };
        }
        if viewer.node.is_device() {
            return Seen::default();
        }
        let mut visible = self.related(slot, viewer);
        let mut own = NodeSet::default();
        for (device, place) in self.devices_behind(viewer.id) {
            visible.unite(&self.related(device, place));
            own.insert(device);
        }
        visible.unite(&own);
        let mut passed_on = Vec::new();
        for (device, place) in self.index.devices.iter().filter_map(|slot| Some((slot, self.index.place(slot)?))) {
            if !visible.contains(device) || own.contains(device) {
                continue;
            }
            visible.remove(device);
            if let Reach::Behind(gateway) = place.node.reach
                && let Some(gateway) = self.index.slot(gateway)
            {
                visible.insert(gateway);
                passed_on.extend(place.addresses.iter().map(|address| (gateway, IpNet::from(*address))));
            }
        }
        Seen { visible, passed_on }
    }

    /// The rules that a node enforces: for itself, and for the devices that it stands before.
    pub(super) fn rules_at(&self, slot: usize, id: NodeId) -> NodeSet {
        let mut flows = self.roles.to_or_self(slot);
        for (device, _) in self.devices_behind(id) {
            flows.unite(&self.roles.to_or_self(device));
            flows.unite(&self.roles.from(device).collect());
        }
        flows
    }

    /// What changes for a device changes for its gateway.
    pub(super) fn reach_gateways(&self, change: &mut Change) {
        for device in self.index.devices.iter() {
            let concerned = change.filters.contains(device) || change.peers.contains(device);
            let place = self.index.place(device).filter(|_| concerned);
            let Some(Reach::Behind(gateway)) = place.map(|place| place.node.reach) else { continue };
            let Some(gateway) = self.index.slot(gateway) else { continue };
            [&mut change.filters, &mut change.peers, &mut change.whole].into_iter().for_each(|set| set.insert(gateway));
        }
    }
}
