//! Devices that speak nothing but WireGuard: a telephone's app, a router, somebody else's machine.
//!
//! A device is a node that no machine can be: it has no machine key, so nothing registers, follows a map or is admitted to a
//! relay as it. Its gateway, a node of ours, is the one peer that it has, and enforces the policy in its place. That takes
//! a policy: without one everybody sees everybody, and a device would be shown to those that it cannot talk to.

use std::sync::Arc;

use super::admin;
use super::commands::{Command, Commands, Decision};
use super::config::limit;
use super::names;
use super::record::{Attributes, Change, NodeRecord, NodeStatus, Tag};
use super::refusal::Refusal;
use super::state::State;
use crate::types::{HostLabel, MachinePublic, NodeId, NodePublic, StableNodeId, UserId};

/// A device to add.
#[derive(Clone, Debug)]
pub struct NewDevice {
    pub label: HostLabel,
    /// Its WireGuard key.
    pub key: NodePublic,
    /// Whose it is.
    pub user: UserId,
    pub tags: Vec<Tag>,
    /// The node that passes on what comes and goes.
    pub gateway: NodeId,
}

impl Commands<'_> {
    /// Makes a device a node. `entropy` is drawn by the caller for this call.
    pub fn add_device(&self, new: NewDevice, entropy: [u8; 32]) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::AddDevice)?;
        self.is_free(&new)?;
        self.has_room(&new)?;
        let mut counters = self.directory.counters();
        let (host, ipv4, ipv6) =
            self.directory.next_address().ok_or_else(|| Refusal::full("the overlay has no address left"))?;
        counters.host = host;
        counters.node += 1;
        let tags = admin::sorted_tags(&new.tags)?;
        let stable = data_encoding::BASE32_NOPAD.encode(&entropy[..10]);
        let record = Arc::new(NodeRecord {
            id: NodeId(counters.node),
            stable_id: StableNodeId(format!("n{stable}")),
            user: Some(new.user),
            machine: MachinePublic::default(),
            key: new.key,
            key_expiry: self.usual_expiry(Some(new.user), &tags),
            expiry_disabled: false,
            logged_out: false,
            ipv4,
            ipv6,
            label: new.label,
            label_fixed: true,
            tags,
            ephemeral: false,
            created: self.now,
            last_seen: None,
            admitted_by: None,
            approved: true,
            attributes: Attributes::new(),
            approved_routes: Vec::new(),
            gateway: Some(new.gateway),
            version: 0,
            status: NodeStatus { hostinfo: "{}".into(), ..NodeStatus::default() },
        });
        let changes = vec![Change::Counters(counters), Change::Node(Arc::clone(&record))];
        Ok(self.decided(Command::AddDevice, record, changes))
    }

    /// Refuses a name or a key that somebody has, or might be taken for another's.
    fn is_free(&self, new: &NewDevice) -> Result<(), Refusal> {
        let NewDevice { label, key, .. } = new;
        if key.is_zero() {
            return Err(Refusal::invalid("the key is none: it is all zero"));
        }
        if let Some(other) = self.node_by_key(key) {
            return Err(Refusal::conflict(format!("this key is that of the node `{}`", other.record.label)));
        }
        if self.pending_list().any(|pending| pending.key == *key) {
            return Err(Refusal::conflict("a machine that waits for approval has this key"));
        }
        if names::wanted(label.as_str()).as_ref() != Some(label) {
            return Err(Refusal::invalid(format!("`{label}` would be taken for something else than this node's name")));
        }
        match self.directory.node_named(label) {
            Some(other) => Err(Refusal::conflict(format!("the name `{label}` belongs to node {other}"))),
            None => Ok(()),
        }
    }

    /// Refuses one device too many, and a gateway that cannot be one.
    fn has_room(&self, new: &NewDevice) -> Result<(), Refusal> {
        if self.policy().is_none() {
            return Err(Refusal::conflict(
                "WireGuard devices need a policy: without one every node would be told to talk to them itself, which they \
                 cannot; `warren-coordinator policy set FILE` first",
            ));
        }
        limit::NODES.check(self.nodes().len() + 1)?;
        self.active_user(new.user)?;
        let of_user = self.directory.nodes().filter(|record| record.is_device() && record.user == Some(new.user));
        limit::DEVICES_OF_USER.check(of_user.count() + 1)?;
        let gateway = self.record(new.gateway)?;
        let why_not = match gateway {
            gateway if gateway.is_device() => "is a WireGuard device itself",
            gateway if gateway.ephemeral => {
                "is ephemeral: it is deleted when it goes offline, and nobody would stand there"
            }
            gateway if self.has_ended(gateway, self.now) => {
                "has a key that is past its time, or a user who is suspended"
            }
            _ => {
                limit::DEVICES_OF_GATEWAY.check(self.devices_behind(new.gateway).count() + 1)?;
                return Ok(());
            }
        };
        Err(Refusal::conflict(format!("the node `{}` can be no gateway: it {why_not}", gateway.label)))
    }

    /// Refuses to delete a node that others are reached by alone.
    pub(super) fn stands_before_none(&self, record: &NodeRecord) -> Result<(), Refusal> {
        let devices: Vec<&str> = self.devices_behind(record.id).map(|device| device.label.as_str()).collect();
        match devices.is_empty() {
            true => Ok(()),
            false => Err(Refusal::conflict(format!(
                "the node `{}` is the gateway of WireGuard devices, which would be cut off: {}; delete those first",
                record.label,
                devices.join(", ")
            ))),
        }
    }
}

impl State {
    /// The devices that a node stands before.
    pub fn devices_behind(&self, gateway: NodeId) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.directory.nodes().filter(move |record| record.gateway == Some(gateway))
    }
}
