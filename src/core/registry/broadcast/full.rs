//! The full map for a node that begins to follow, and what full maps share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry;
use super::flush::write_filter;
use super::message::{Builder, CHUNK, Chunk, Group, Items, MapMessage, fields, json};
use super::views::{Extent, SentFilter, ViewClass};
use super::{Broadcast, Listing, Source, place_of};
use crate::types::{MachinePublic, NodeId, NodePublic, Timestamp, UserId};
use crate::wire::control::{Debug, Node};

/// Views whose full maps are kept for others to share: a few dozen large ones, where a policy has a few, and a
/// bound on memory where it has thousands.
const SHARED_VIEWS: usize = 64;

/// What a node is told when its stream opens, and what that leaves it with.
pub(super) struct FullMap {
    pub(super) message: MapMessage,
    pub(super) class: ViewClass,
    pub(super) filter: SentFilter,
}

impl Broadcast {
    /// The full map of a node.
    pub(super) fn full_map(&mut self, source: &Source<'_>, id: NodeId, now: Timestamp) -> Option<FullMap> {
        let policy = source.directory.compiled();
        let state = &self.nodes.get(&id)?.state;
        let class = self.views.class(policy, state);
        let owner = state.record.owner();
        let mut filter = SentFilter::default();
        let news = self.views.filter_news(policy, class, id, &mut filter, Extent::First);
        let mut builder = Builder::new(&self.comma);
        builder.field("Node", &entry::myself(state, source.config));
        builder.field("ControlTime", &now);
        let common = self.common(source);
        builder.shared_fields(&common);
        write_filter(&mut builder, &news);
        builder.list("UserProfiles", &self.owners(source, class, owner), None);
        let peers = self.peers(source, class);
        builder.list("Peers", &peers, Some(id.0));
        Some(FullMap { message: builder.finish(), class, filter })
    }

    /// The last message of a node that was deleted: its key is past its time, so its client lets go of the
    /// network and asks to log in.
    pub(in crate::registry) fn goodbye_to(&self, source: &Source<'_>, id: NodeId) -> Option<Arc<MapMessage>> {
        let mut state = self.nodes.get(&id)?.state.clone();
        state.expired = true;
        Arc::make_mut(&mut state.record).key_expiry = Some(Timestamp::UNIX_EPOCH);
        let mut builder = Builder::new(&self.comma);
        builder.field("Node", &entry::myself(&state, source.config));
        Some(Arc::new(builder.finish()))
    }

    /// The peers of a class, each chunk from its cache where it is still true.
    fn peers(&mut self, source: &Source<'_>, class: ViewClass) -> Items {
        if !self.is_shared(class) {
            return Items::new(&self.items(source, class, NodeId(0), NodeId(u64::MAX)));
        }
        let mut groups = Vec::new();
        let mut next = NodeId(0);
        while let Some((first, _)) = self.nodes.range(next..).next() {
            let place = place_of(*first);
            let end = NodeId((place + 1) * CHUNK as u64);
            let cached = self.groups.get(&place).and_then(|classes| classes.get(&class)).cloned();
            groups.push(cached.unwrap_or_else(|| {
                let group = Group::new(self.items(source, class, NodeId(place * CHUNK as u64), end));
                self.groups.entry(place).or_default().insert(class, group.clone());
                group
            }));
            next = end;
        }
        Items::of_groups(groups)
    }

    /// Whether what a class receives is worth keeping for the next viewer.
    fn is_shared(&self, class: ViewClass) -> bool {
        self.views.view(class).is_none() || self.views.count() <= SHARED_VIEWS
    }

    /// The entries of some of the peers that a class sees.
    fn items(&mut self, source: &Source<'_>, class: ViewClass, from: NodeId, to: NodeId) -> Vec<(u64, Arc<str>)> {
        let (config, views) = (source.config, &self.views);
        let mut item = |member: &mut Listing| {
            let visibility = views.visibility(class, &member.state)?;
            Some((member.id().0, member.entry(&visibility, config)))
        };
        match views.view(class) {
            None => self.nodes.range_mut(from..to).filter_map(|(_, member)| item(member)).collect(),
            Some(view) => {
                let first = view.peers.partition_point(|peer| *peer < from);
                let seen = view.peers[first..].iter().take_while(|peer| **peer < to);
                seen.filter_map(|peer| self.nodes.get_mut(peer).and_then(&mut item)).collect()
            }
        }
    }

    /// What everyone receives alike in a full map.
    fn common(&mut self, source: &Source<'_>) -> Arc<Chunk> {
        if let Some(common) = &self.common {
            return Arc::clone(common);
        }
        let mut common = BTreeMap::from([
            ("CollectServices", "false".to_owned()),
            ("DNSConfig", json(&source.config.dns())),
            ("Debug", json(&Debug { disable_log_tail: true, ..Debug::default() })),
            ("Domain", json(&source.config.base_domain)),
        ]);
        if let Some(derp_map) = &source.config.derp_map {
            common.insert("DERPMap", json(derp_map));
        }
        let common = Chunk::of_text(&fields(&common));
        self.common = Some(Arc::clone(&common));
        common
    }

    /// The profiles that a class needs, and a viewer's own owner.
    fn owners(&mut self, source: &Source<'_>, class: ViewClass, own: UserId) -> Items {
        if !self.owners.contains_key(&class) {
            let owners = self.owners_seen(class);
            let profiles = profiles(source, owners.iter().copied());
            if !self.is_shared(class) {
                self.owners.clear();
            }
            self.owners.insert(class, (owners, profiles));
        }
        match self.owners.get(&class) {
            Some((owners, profiles)) if owners.contains(&own) => profiles.clone(),
            Some((owners, _)) => profiles(source, owners.iter().copied().chain([own]).collect::<BTreeSet<_>>()),
            None => profiles(source, [own]),
        }
    }

    fn owners_seen(&self, class: ViewClass) -> BTreeSet<UserId> {
        let owner = |member: &Listing| member.state.record.owner();
        match self.views.view(class) {
            Some(view) => view.peers.iter().filter_map(|peer| self.nodes.get(peer)).map(owner).collect(),
            None => {
                let seen = self.nodes.values().filter(|member| self.views.sees(class, member.id()));
                seen.map(owner).collect()
            }
        }
    }
}

/// Who owns what, as clients show it.
pub(super) fn profiles(source: &Source<'_>, owners: impl IntoIterator<Item = UserId>) -> Items {
    let text = |id: UserId| (id.0, json(&entry::profile(id, source.directory.user(id))).into());
    Items::new(&owners.into_iter().map(text).collect::<Vec<_>>())
}

/// The one message for a stream of a node that is gone: what it would have been sent had it been there. Nothing in it
/// is the network's, because anybody may ask.
pub(in crate::registry) fn goodbye(key: NodePublic, machine: MachinePublic) -> MapMessage {
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
