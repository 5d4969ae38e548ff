//! Machines that wait for somebody to let them in, and those that were turned away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::record::NodeStatus;
use crate::types::{MachinePublic, NodePublic, PendingCode, Ticket, Timestamp};

/// A machine that waits for someone to let it in. Kept by the store, so that whoever signs in meanwhile may come back to
/// another process than they left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// What the page shows and an administrator types.
    pub code: PendingCode,
    /// Where its page is.
    #[serde(skip)]
    pub ticket: Ticket,
    /// Who the machine is.
    pub machine: MachinePublic,
    /// The node key it wants to use.
    pub key: NodePublic,
    /// Its host name, as it says.
    pub hostname: String,
    /// Its operating system, as it says.
    pub os: String,
    /// The tags it asks for.
    pub requested_tags: Vec<String>,
    /// What it says of itself.
    #[serde(skip)]
    pub status: NodeStatus,
    /// When it asked.
    pub since: Timestamp,
    /// When it stops waiting.
    pub expires: Timestamp,
    /// Where it asked from: an IPv4 address or an IPv6 /64.
    pub site: IpAddr,
}

/// The machines that wait, and those that were turned away, each with when that ends.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pending: BTreeMap<PendingCode, Pending>,
    rejected: BTreeMap<MachinePublic, Timestamp>,
    ends: BTreeSet<(Timestamp, End)>,
}

/// What ends with time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Wait(PendingCode),
    Rejection(MachinePublic),
}

impl Waiting {
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Pending> {
        self.pending.values()
    }

    pub(super) fn get(&self, code: &PendingCode) -> Option<&Pending> {
        self.pending.get(code)
    }

    pub(super) fn put(&mut self, pending: Pending) {
        self.remove(&pending.code.clone());
        self.ends.insert((pending.expires, End::Wait(pending.code.clone())));
        self.pending.insert(pending.code.clone(), pending);
    }

    pub(super) fn remove(&mut self, code: &PendingCode) -> Option<Pending> {
        let pending = self.pending.remove(code)?;
        self.ends.remove(&(pending.expires, End::Wait(code.clone())));
        Some(pending)
    }

    /// A machine is turned away until then.
    pub(super) fn reject(&mut self, machine: MachinePublic, until: Timestamp) {
        self.forgive(&machine);
        self.ends.insert((until, End::Rejection(machine)));
        self.rejected.insert(machine, until);
    }

    pub(super) fn forgive(&mut self, machine: &MachinePublic) {
        if let Some(until) = self.rejected.remove(machine) {
            self.ends.remove(&(until, End::Rejection(*machine)));
        }
    }

    pub(super) fn rejected(&self) -> &BTreeMap<MachinePublic, Timestamp> {
        &self.rejected
    }

    /// What ends when, the first first.
    pub(super) fn ends(&self) -> impl Iterator<Item = &(Timestamp, End)> {
        self.ends.iter()
    }

    /// The clock was set.
    pub(super) fn move_on(&mut self, move_on: impl Fn(Timestamp) -> Timestamp) {
        self.pending.values_mut().for_each(|pending| pending.expires = move_on(pending.expires));
        self.rejected.values_mut().for_each(|until| *until = move_on(*until));
        self.ends = std::mem::take(&mut self.ends).into_iter().map(|(at, end)| (move_on(at), end)).collect();
    }
}
