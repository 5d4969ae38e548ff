//! Maps: the full one for a node that begins to follow, and what full maps share.
//!
//! Model: of every node that changed since the last flush, what was last told of it is kept; a flush (`flush`)
//! compares that with what is true. Storms are gathered: after a flush the next waits a little, so that the work
//! for n nodes that come back at once is a few large messages and not n small ones to each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::flush::write_filter;
use super::member::Member;
use super::message::{Builder, CHUNK, Chunk, Group, Items, MapMessage, fields, json};
use super::session::{Output, SessionId, add};
use super::state::State;
use super::view::{self, Shown};
use super::visibility::{Extent, Sight, ToldFilter, ViewClass};
use crate::types::{MachinePublic, NodeId, NodePublic, Timestamp, UserId};
use crate::wire::control::{Debug, DerpMap, DnsConfig, Node, Resolver};

/// The least time between two flushes.
const PACE: Duration = Duration::from_millis(100);
/// Views whose full maps are kept for others to share: a few dozen large ones, where a policy has a few, and a
/// bound on memory where it has thousands.
const SHARED_VIEWS: usize = 64;

/// What connected nodes have yet to be told, and what they are told alike.
#[derive(Debug)]
pub(super) struct Fanout {
    /// Of each node that changed: what was last told of it; `None` for nothing.
    pub(super) before: BTreeMap<NodeId, Option<Shown>>,
    pub(super) users: BTreeSet<UserId>,
    /// Streams that were opened since the last flush.
    pub(super) opened: BTreeSet<SessionId>,
    /// Changed fields that are the same for everyone.
    pub(super) globals: BTreeMap<&'static str, String>,
    /// Whether another policy is in force.
    pub(super) new_policy: bool,
    /// Classes that somebody was the last to leave.
    pub(super) left: BTreeSet<ViewClass>,
    pub(super) last_flush: Option<Timestamp>,
    /// Chunks of full peer lists, by place and class.
    groups: BTreeMap<u64, BTreeMap<ViewClass, Group>>,
    /// The fields of a full map that everyone receives alike.
    common: Option<Arc<Chunk>>,
    /// The owners of the nodes that a class sees.
    owners: BTreeMap<ViewClass, (BTreeSet<UserId>, Items)>,
    pub(super) comma: Arc<Chunk>,
}

impl Default for Fanout {
    fn default() -> Self {
        Self {
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

impl Fanout {
    /// A node is about to change from this; to be called before every change of what is shown.
    pub(super) fn touch(&mut self, id: NodeId, from: Option<&Shown>) {
        self.before.entry(id).or_insert_with(|| from.cloned());
        self.groups.remove(&place_of(id));
    }

    /// Which owners' nodes a class sees may have changed.
    pub(super) fn owners_changed(&mut self) {
        self.owners.clear();
    }

    pub(super) fn user_changed(&mut self, id: UserId) {
        self.users.insert(id);
        self.owners.clear();
    }

    /// Everybody may see others than before, and others of them.
    pub(super) fn policy_changed(&mut self) {
        self.new_policy = true;
        self.groups.clear();
        self.owners.clear();
    }

    /// A field that is the same for everyone is, from here on, this.
    fn global_changed(&mut self, name: &'static str, value: String) {
        self.globals.insert(name, value);
        self.common = None;
    }

    pub(super) fn forget_changes(&mut self) {
        self.before.clear();
        self.users.clear();
        self.globals.clear();
        self.new_policy = false;
    }

    /// Forgets what is kept for a class that is no more.
    pub(super) fn forget(&mut self, class: ViewClass) {
        self.groups.values_mut().for_each(|classes| drop(classes.remove(&class)));
        self.owners.remove(&class);
    }

    /// When the next flush is due; `None` when there is nothing to tell.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let idle = self.before.is_empty() && self.users.is_empty() && self.globals.is_empty() && !self.new_policy;
        (!idle).then(|| self.last_flush.map_or(Timestamp::UNIX_EPOCH, |last| add(last, PACE)))
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        // A clock that was set back must not hold up the next flush.
        self.due().is_some_and(|at| at <= now || self.last_flush.is_some_and(|last| now < last))
    }
}

/// What a node is told when its stream opens, and what that leaves it with.
pub(super) struct FullMap {
    pub(super) message: MapMessage,
    pub(super) class: ViewClass,
    pub(super) filter: ToldFilter,
}

impl State {
    /// The relays are, from here on, these.
    pub fn set_derp_map(&mut self, derp_map: DerpMap) {
        self.fanout.global_changed("DERPMap", json(&derp_map));
        self.config.derp_map = Some(derp_map);
    }

    /// Resolvers for names outside our domain are, from here on, these.
    pub fn set_resolvers(&mut self, resolvers: Vec<Resolver>) {
        self.config.resolvers = resolvers;
        let dns = json(&self.dns());
        self.fanout.global_changed("DNSConfig", dns);
    }

    /// The full map of a node.
    pub(super) fn full_map(&mut self, id: NodeId, now: Timestamp) -> Option<FullMap> {
        let shown = &self.members.get(&id)?.shown;
        let class = self.visibility.class(shown);
        let owner = shown.record.owner();
        let mut filter = ToldFilter::default();
        let news = self.visibility.filter_news(class, id, &mut filter, Extent::First);
        let mut builder = Builder::new(&self.fanout.comma);
        builder.field("Node", &view::myself(shown, &self.config));
        builder.field("ControlTime", &now);
        let common = self.common();
        builder.shared_fields(&common);
        write_filter(&mut builder, &news);
        builder.list("UserProfiles", &self.owners(class, owner), None);
        let peers = self.peers(class);
        builder.list("Peers", &peers, Some(id.0));
        Some(FullMap { message: builder.finish(), class, filter })
    }

    /// The last message of a node that was deleted: its key is past its time, so its client lets go of the
    /// network and asks to log in.
    pub(super) fn say_goodbye(&mut self, id: NodeId, session: SessionId) {
        let Some(member) = self.members.get(&id) else { return };
        let mut shown = member.shown.clone();
        shown.expired = true;
        Arc::make_mut(&mut shown.record).key_expiry = Some(Timestamp::UNIX_EPOCH);
        let mut builder = Builder::new(&self.fanout.comma);
        builder.field("Node", &view::myself(&shown, &self.config));
        self.forget_session(session);
        self.outputs.push_back(Output::Send { sessions: vec![session], message: Arc::new(builder.finish()) });
        self.outputs.push_back(Output::Close { session });
    }

    /// The one message for a stream of a node that is gone: what it would have been told had it been there. Nothing in it
    /// is the network's, because anybody may ask.
    pub fn goodbye(key: NodePublic, machine: MachinePublic) -> MapMessage {
        let node = Node {
            key,
            machine,
            key_expiry: Some(Timestamp::UNIX_EPOCH),
            expired: true,
            machine_authorized: true,
            ..Node::default()
        };
        let mut builder = Builder::new(&Chunk::of_text(","));
        builder.field("Node", &node);
        builder.finish()
    }

    /// The peers of a class, each chunk from its cache where it is still true.
    fn peers(&mut self, class: ViewClass) -> Items {
        if !self.is_shared(class) {
            return Items::new(&self.items(class, NodeId(0), NodeId(u64::MAX)));
        }
        let mut groups = Vec::new();
        let mut next = NodeId(0);
        while let Some((first, _)) = self.members.range(next..).next() {
            let place = place_of(*first);
            let end = NodeId((place + 1) * CHUNK as u64);
            let cached = self.fanout.groups.get(&place).and_then(|classes| classes.get(&class)).cloned();
            groups.push(cached.unwrap_or_else(|| {
                let group = Group::new(self.items(class, NodeId(place * CHUNK as u64), end));
                self.fanout.groups.entry(place).or_default().insert(class, group.clone());
                group
            }));
            next = end;
        }
        Items::of_groups(groups)
    }

    /// Whether what a class receives is worth keeping for the next viewer.
    fn is_shared(&self, class: ViewClass) -> bool {
        self.visibility.view(class).is_none() || self.visibility.views() <= SHARED_VIEWS
    }

    /// The entries of some of the peers that a class sees.
    fn items(&mut self, class: ViewClass, from: NodeId, to: NodeId) -> Vec<(u64, Arc<str>)> {
        let (config, visibility) = (&self.config, &self.visibility);
        let mut item = |member: &mut Member| {
            let sight = visibility.sight(class, &member.shown)?;
            Some((member.id().0, member.entry(&sight, config)))
        };
        match visibility.view(class) {
            None => self.members.range_mut(from..to).filter_map(|(_, member)| item(member)).collect(),
            Some(view) => {
                let first = view.peers.partition_point(|peer| *peer < from);
                let seen = view.peers[first..].iter().take_while(|peer| **peer < to);
                seen.filter_map(|peer| self.members.get_mut(peer).and_then(&mut item)).collect()
            }
        }
    }

    /// What everyone receives alike in a full map.
    fn common(&mut self) -> Arc<Chunk> {
        if let Some(common) = &self.fanout.common {
            return Arc::clone(common);
        }
        let mut common = BTreeMap::from([
            ("CollectServices", "false".to_owned()),
            ("DNSConfig", json(&self.dns())),
            ("Debug", json(&Debug { disable_log_tail: true, ..Debug::default() })),
            ("Domain", json(&self.config.base_domain)),
        ]);
        if let Some(derp_map) = &self.config.derp_map {
            common.insert("DERPMap", json(derp_map));
        }
        let common = Chunk::of_text(&fields(&common));
        self.fanout.common = Some(Arc::clone(&common));
        common
    }

    /// The profiles that a class needs, and a viewer's own owner.
    fn owners(&mut self, class: ViewClass, own: UserId) -> Items {
        if !self.fanout.owners.contains_key(&class) {
            let owners = self.owners_seen(class);
            let profiles = self.profiles(owners.iter().copied());
            if !self.is_shared(class) {
                self.fanout.owners.clear();
            }
            self.fanout.owners.insert(class, (owners, profiles));
        }
        match self.fanout.owners.get(&class) {
            Some((owners, profiles)) if owners.contains(&own) => profiles.clone(),
            Some((owners, _)) => self.profiles(owners.iter().copied().chain([own]).collect::<BTreeSet<_>>()),
            None => self.profiles([own]),
        }
    }

    fn owners_seen(&self, class: ViewClass) -> BTreeSet<UserId> {
        let owner = |member: &Member| member.shown.record.owner();
        match self.visibility.view(class) {
            Some(view) => view.peers.iter().filter_map(|peer| self.members.get(peer)).map(owner).collect(),
            None => {
                let seen = self.members.values().filter(|member| self.visibility.sees(class, &member.shown));
                seen.map(owner).collect()
            }
        }
    }

    pub(super) fn profiles(&self, owners: impl IntoIterator<Item = UserId>) -> Items {
        let text = |id: UserId| (id.0, json(&view::profile(id, self.users.get(&id))).into());
        Items::new(&owners.into_iter().map(text).collect::<Vec<_>>())
    }

    fn dns(&self) -> DnsConfig {
        let config = &self.config;
        let routes = match config.magic_dns {
            // Names of our own domain are never asked of anyone else.
            true => BTreeMap::from([(config.base_domain.clone(), None)]),
            false => BTreeMap::new(),
        };
        DnsConfig {
            resolvers: config.resolvers.clone(),
            routes,
            domains: vec![config.base_domain.clone()],
            proxied: config.magic_dns,
            ..DnsConfig::default()
        }
    }
}

impl Member {
    /// Its entry in the maps of peers who are shown it like this, written on first need.
    pub(super) fn entry(&mut self, sight: &Sight, config: &super::Config) -> Arc<str> {
        if let Some(entry) = self.entries.get(sight) {
            return Arc::clone(entry);
        }
        let entry = self.write_entry(sight, config);
        self.entries.insert(sight.clone(), Arc::clone(&entry));
        entry
    }

    pub(super) fn write_entry(&self, sight: &Sight, config: &super::Config) -> Arc<str> {
        json(&view::peer(&self.shown, sight, config)).into()
    }
}

fn place_of(id: NodeId) -> u64 {
    id.0 / CHUNK as u64
}
