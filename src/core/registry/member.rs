//! A node while the coordinator runs: what is shown of it, its stream, its deadlines, and what it does to others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::pace::Pace;
use super::record::{NodeRecord, Said};
use super::session::SessionId;
use super::twins::Twins;
use super::view::Shown;
use super::visibility::Sight;
use crate::types::{IpNet, NodeId, Timestamp, is_default_route};

/// A node and what is going on with it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) shown: Shown,
    pub(super) session: Option<SessionId>,
    /// When peers are told that it is offline, after its stream closed.
    pub(super) offline_at: Option<Timestamp>,
    /// When it is deleted for being ephemeral and offline.
    pub(super) reap_at: Option<Timestamp>,
    /// Its entry in peers' maps as text, for each way to be shown, once someone needed it.
    pub(super) entries: BTreeMap<Sight, Arc<str>>,
    /// How often its word is passed on.
    pub(super) pace: Pace,
    /// What it said last and has yet to be passed on.
    pub(super) held: Option<Box<Said>>,
    /// Whether it is one machine.
    pub(super) twins: Twins,
    /// Whether its client answers when it is asked whether it is there.
    pub(super) answers: bool,
    /// It did not the last time, and has not come back since.
    pub(super) is_silent: bool,
}

/// A node, for administrators.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// The durable facts.
    pub record: &'a Arc<NodeRecord>,
    /// Whether it follows its map.
    pub online: bool,
    /// Whether its key is past its time.
    pub expired: bool,
    /// Whether two machines were found to use its key, some time.
    pub two_machines: bool,
    /// The subnets that it is the one router of.
    pub primary_routes: &'a [IpNet],
}

impl Member {
    pub(super) fn new(shown: Shown) -> Self {
        Self {
            shown,
            session: None,
            offline_at: None,
            reap_at: None,
            entries: BTreeMap::new(),
            pace: Pace::default(),
            held: None,
            twins: Twins::default(),
            answers: false,
            is_silent: false,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.shown.record.id
    }

    pub(super) fn view(&self) -> NodeView<'_> {
        NodeView {
            record: &self.shown.record,
            online: self.shown.online,
            expired: self.shown.expired,
            two_machines: self.twins.were_two(),
            primary_routes: &self.shown.primary,
        }
    }
}

/// The subnets that a node serves; exit routes have no primary router.
pub(super) fn subnets(shown: &Shown) -> BTreeSet<IpNet> {
    if shown.expired {
        return BTreeSet::new();
    }
    shown.routes().iter().filter(|route| !is_default_route(route)).copied().collect()
}

pub(super) fn online_in(members: &BTreeMap<NodeId, Member>) -> impl Fn(NodeId) -> bool {
    |id| members.get(&id).is_some_and(|member| member.shown.online && !member.is_silent)
}
