//! What nodes are sent: of each the network as its peers may see it, who sees whom, and what every stream was last sent.
//!
//! Model: [`Broadcast`] keeps of every node what there is to show of it ([`NodeState`]), and is told whenever that is
//! another ([`Broadcast::show`]); by itself it remembers what streams were last sent. A flush (`flush`) compares the two and
//! gives the difference. Storms are gathered: after a flush the next waits a little, so that the work for n nodes that come
//! back at once is a few large messages and not n small ones to each. It reads the directory and changes nothing there.

mod entry;
mod few;
mod flush;
mod full;
mod message;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::config::Config;
use super::directory::Directory;
use super::presence::{SessionId, add};
use crate::policy;
use crate::types::{NodeId, Timestamp, UserId};
use crate::wire::control::{DerpMap, PingRequest};
use few::Few;
use full::FullMap;
use message::{Builder, CHUNK, Group, Items, json};
use views::{SentFilter, ViewClass, Views, Visibility};

pub(super) use entry::{NodeState, login};
pub(super) use full::goodbye;
pub(super) use message::json as json_of;
pub use message::{Chunk, MapMessage, Part};

/// The least time between two flushes.
const PACE: Duration = Duration::from_millis(100);

/// What is read and never changed here.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) directory: &'a Directory,
    pub(super) config: &'a Config,
}

/// One message to many.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) sessions: Vec<SessionId>,
    pub(super) message: Arc<MapMessage>,
}

/// What there is to show, and what was sent of it.
#[derive(Debug)]
pub(super) struct Broadcast {
    nodes: BTreeMap<NodeId, Listing>,
    views: Views,
    streams: BTreeMap<SessionId, Stream>,
    /// The streams of each class.
    viewers: BTreeMap<ViewClass, BTreeSet<SessionId>>,
    /// Of each node that changed since the last flush: what was sent of it until then; `None` for nothing.
    before: BTreeMap<NodeId, Option<NodeState>>,
    /// Users who changed since the last flush.
    users: BTreeSet<UserId>,
    /// Streams that were opened since the last flush.
    opened: BTreeSet<SessionId>,
    /// Changed fields that are the same for everyone.
    globals: BTreeMap<&'static str, String>,
    /// Whether another policy is in force.
    new_policy: bool,
    /// Classes that somebody was the last to leave.
    left: BTreeSet<ViewClass>,
    last_flush: Option<Timestamp>,
    /// Chunks of full peer lists, by place and class.
    groups: BTreeMap<u64, BTreeMap<ViewClass, Group>>,
    /// The fields of a full map that everyone receives alike.
    common: Option<Arc<Chunk>>,
    /// The owners of the nodes that a class sees.
    owners: BTreeMap<ViewClass, (BTreeSet<UserId>, Items)>,
    comma: Arc<Chunk>,
}

/// A node, as there is to be shown of it.
#[derive(Debug)]
struct Listing {
    state: NodeState,
    /// Its own stream.
    session: Option<SessionId>,
    /// Its entry in peers' maps as text, for each way to be shown, once someone needed it.
    entries: Few<Visibility, Arc<str>>,
}

/// A stream and what its node was last sent.
#[derive(Debug)]
struct Stream {
    node: NodeId,
    /// How the node was shown to itself, where the stream was opened since the last flush: then its full
    /// map lies between what others were last sent and what they will be sent next.
    opened_as: Option<Box<NodeState>>,
    /// Whom it sees.
    class: ViewClass,
    /// What it lets in.
    filter: SentFilter,
}

impl Default for Broadcast {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            views: Views::default(),
            streams: BTreeMap::new(),
            viewers: BTreeMap::new(),
            before: BTreeMap::new(),
            users: BTreeSet::new(),
            opened: BTreeSet::new(),
            globals: BTreeMap::new(),
            new_policy: false,
            left: BTreeSet::new(),
            last_flush: None,
            groups: BTreeMap::new(),
            common: None,
            owners: BTreeMap::new(),
            comma: Chunk::of_text(","),
        }
    }
}

impl Broadcast {
    /// A node is to be shown like this from here on.
    pub(super) fn show(&mut self, state: NodeState) {
        let id = state.record.id;
        match self.nodes.get_mut(&id) {
            None => {
                self.remember(id, None);
                self.owners.clear();
                self.nodes.insert(id, Listing { state, session: None, entries: Few::default() });
            }
            Some(listing) if listing.state == state => {
                // The same facts in another place: whoever compares finds that out at once.
                listing.state = state;
            }
            Some(listing) => {
                let is_other =
                    (listing.state.expired, listing.state.record.owner()) != (state.expired, state.record.owner());
                listing.entries = Few::default();
                let before = std::mem::replace(&mut listing.state, state);
                self.remember(id, Some(before));
                if is_other {
                    self.owners.clear();
                }
            }
        }
    }

    /// A node is there no more.
    pub(super) fn hide(&mut self, id: NodeId) {
        if let Some(listing) = self.nodes.remove(&id) {
            self.remember(id, Some(listing.state));
            self.owners.clear();
        }
    }

    /// A node changed from this.
    fn remember(&mut self, id: NodeId, from: Option<NodeState>) {
        self.before.entry(id).or_insert(from);
        self.groups.remove(&place_of(id));
    }

    /// A user is called something else, or has another role.
    pub(super) fn user_changed(&mut self, id: UserId) {
        self.users.insert(id);
        self.owners.clear();
    }

    /// The policy says something else of some nodes.
    pub(super) fn policy_says(&mut self, change: &policy::Change) {
        self.views.changed(change);
    }

    /// Another policy is in force: everybody may see others than before, and others of them.
    pub(super) fn policy_changed(&mut self, rules: &policy::Compiled) {
        self.views.policy_changed(rules);
        self.new_policy = true;
        self.groups.clear();
        self.owners.clear();
    }

    /// The relays are, from here on, these.
    pub(super) fn relays_changed(&mut self, relays: &DerpMap) {
        self.global_changed("DERPMap", json(relays));
    }

    /// Names are resolved differently from here on.
    pub(super) fn names_changed(&mut self, config: &Config) {
        self.global_changed("DNSConfig", json(&config.dns()));
    }

    /// A field that is the same for everyone is, from here on, this.
    fn global_changed(&mut self, name: &'static str, value: String) {
        self.globals.insert(name, value);
        self.common = None;
    }

    /// Nobody listens yet, so nobody has to be sent what changed.
    pub(super) fn forget_changes(&mut self) {
        self.before.clear();
        self.users.clear();
        self.globals.clear();
        self.new_policy = false;
    }

    /// A node's stream begins; gives its first message, the full map.
    pub(super) fn open(
        &mut self,
        source: &Source<'_>,
        id: NodeId,
        session: SessionId,
        now: Timestamp,
    ) -> Option<Arc<MapMessage>> {
        let opened_as = self.nodes.get(&id).map(|listing| Box::new(listing.state.clone()));
        let FullMap { message, class, filter } = self.full_map(source, id, now)?;
        self.streams.insert(session, Stream { node: id, opened_as, class, filter });
        self.viewers.entry(class).or_default().insert(session);
        self.opened.insert(session);
        if let Some(listing) = self.nodes.get_mut(&id) {
            listing.session = Some(session);
        }
        Some(Arc::new(message))
    }

    /// A message that asks a client whether it is there. Clients do not take it for news of the network.
    pub(super) fn ping(&self, request: &PingRequest) -> Arc<MapMessage> {
        let mut builder = Builder::new(&self.comma);
        builder.field("KeepAlive", &true);
        builder.field("PingRequest", request);
        Arc::new(builder.finish())
    }

    /// Nobody listens there any more.
    pub(super) fn close(&mut self, session: SessionId) {
        let Some(stream) = self.streams.remove(&session) else { return };
        self.opened.remove(&session);
        self.leave_class(session, stream.class);
        if let Some(listing) = self.nodes.get_mut(&stream.node).filter(|listing| listing.session == Some(session)) {
            listing.session = None;
        }
    }

    fn leave_class(&mut self, session: SessionId, class: ViewClass) {
        if let Some(viewers) = self.viewers.get_mut(&class) {
            viewers.remove(&session);
            if viewers.is_empty() {
                self.viewers.remove(&class);
                self.left.insert(class);
            }
        }
    }

    /// Forgets what is kept for a class that is no more.
    fn forget_class(&mut self, class: ViewClass) {
        self.groups.values_mut().for_each(|classes| drop(classes.remove(&class)));
        self.owners.remove(&class);
    }

    /// When the next flush is due; `None` when there is nothing to send.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let idle = self.before.is_empty() && self.users.is_empty() && self.globals.is_empty() && !self.new_policy;
        (!idle).then(|| self.last_flush.map_or(Timestamp::UNIX_EPOCH, |last| add(last, PACE)))
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        // A clock that was set back must not hold up the next flush.
        self.due().is_some_and(|at| at <= now || self.last_flush.is_some_and(|last| now < last))
    }

    /// The clock was set.
    pub(super) fn move_on(&mut self, move_on: impl Fn(Timestamp) -> Timestamp) {
        self.last_flush = self.last_flush.map(move_on);
    }
}

#[cfg(test)]
impl Broadcast {
    pub(super) fn full_map_of(&mut self, source: &Source<'_>, id: NodeId, now: Timestamp) -> Option<MapMessage> {
        self.full_map(source, id, now).map(|full| full.message)
    }
}

impl Listing {
    fn id(&self) -> NodeId {
        self.state.record.id
    }

    /// Its entry in the maps of peers who are shown it like this, written on first need.
    fn entry(&mut self, visibility: &Visibility, config: &Config) -> Arc<str> {
        if let Some(entry) = self.entries.get(visibility) {
            return Arc::clone(entry);
        }
        let entry = self.write_entry(visibility, config);
        self.entries.insert(visibility.clone(), Arc::clone(&entry));
        entry
    }

    fn write_entry(&self, visibility: &Visibility, config: &Config) -> Arc<str> {
        json(&entry::peer(&self.state, visibility, config)).into()
    }
}

fn place_of(id: NodeId) -> u64 {
    id.0 / CHUNK as u64
}
