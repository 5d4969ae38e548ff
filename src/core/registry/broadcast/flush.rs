//! Flushes: the difference for nodes that follow their map already.
//!
//! Model: first every connected node whose view or filter may have changed is looked at again; that gives its
//! [`Move`]. Then the differences of nodes are sent, worked out once for all viewers that go from one view class
//! to another, in one shared message. A viewer that changed itself, or whose filter did, gets a message of its own,
//! made of the same chunks less its own entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{self, Difference, NodeState};
use super::full::profiles;
use super::message::{Builder, Chunk, Items, fields, json};
use super::views::{Extent, FilterNews, Stale, ViewClass, Visibility};
use super::{Broadcast, Delivery, Listing, Source, Stream};
use crate::policy::View;
use crate::registry::presence::SessionId;
use crate::types::{NodeId, Timestamp, UserId};

/// What became of a connected node's view and filter.
struct Move {
    /// Its class when it was last sent anything.
    was: ViewClass,
    filter: FilterNews,
}

/// Everything that a flush sends.
struct FlushPlan<'a> {
    changes: Vec<Changed<'a>>,
    users: &'a BTreeSet<UserId>,
    before: &'a BTreeMap<NodeId, Option<NodeState>>,
    /// Fields that everyone is sent.
    globals: &'a Arc<Chunk>,
    moves: BTreeMap<SessionId, Move>,
}

/// A message to one viewer.
enum Message {
    /// The one that all are sent who make its transition.
    Shared,
    Own(Builder),
}

/// From where viewers go, and where to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Transition {
    was: ViewClass,
    class: ViewClass,
    /// Whether they know the class as some time since the last flush had it. Then they are sent whole entries,
    /// and to forget whatever is not there, which is right wherever it starts from.
    unsure: bool,
}

/// A node's change, as a flush sees it.
struct Changed<'a> {
    id: NodeId,
    before: Option<&'a NodeState>,
    after: Option<&'a Listing>,
    difference: Difference,
}

/// What viewers are sent who make the same transition.
struct Update {
    /// Whether the entries are all that there are, in place of what was sent before.
    whole: bool,
    entries: Items,
    removed: Items,
    patches: Items,
    online: Items,
    owners: BTreeSet<UserId>,
    profiles: Items,
    /// Whether some of the profiles changed themselves.
    names_users: bool,
}

impl Broadcast {
    /// What every connected node is to be sent that it was not sent yet.
    pub(in crate::registry) fn flush(&mut self, source: &Source<'_>, now: Timestamp) -> Vec<Delivery> {
        self.last_flush = Some(now);
        let before = std::mem::take(&mut self.before);
        let users = std::mem::take(&mut self.users);
        let globals = fields(&std::mem::take(&mut self.globals));
        let moves = self.moves(source, &before);
        if self.streams.is_empty() {
            return Vec::new();
        }
        self.write_entries(source, before.keys().copied());
        if moves.values().any(|moved| moved.was < ViewClass::FIRST) {
            // Whole views will be sent, and most entries are in many of them.
            self.write_entries(source, self.nodes.keys().copied().collect::<Vec<_>>().into_iter());
        }
        let globals = Chunk::of_text(&globals);
        let news = FlushPlan {
            changes: self.compare(source, &before),
            users: &users,
            before: &before,
            globals: &globals,
            moves,
        };
        let sendings = self.sendings(source, &news);
        for class in std::mem::take(&mut self.left) {
            if class >= ViewClass::FIRST && !self.viewers.contains_key(&class) {
                self.views.forget(class);
                self.forget_class(class);
            }
        }
        for number in std::mem::take(&mut self.opened) {
            if let Some(session) = self.streams.get_mut(&number) {
                session.opened_as = None;
            }
        }
        sendings
    }

    /// Looks again at every connected node whose view or filter may have changed.
    fn moves(
        &mut self,
        source: &Source<'_>,
        before: &BTreeMap<NodeId, Option<NodeState>>,
    ) -> BTreeMap<SessionId, Move> {
        let policy = source.directory.compiled();
        let Stale { mut viewers, mut filters, mut whole, ssh, rules, mut alone } = self.views.take_stale(policy);
        let new_policy = std::mem::take(&mut self.new_policy);
        if new_policy {
            alone = None;
            viewers = self.nodes.keys().copied().collect();
            filters.clone_from(&viewers);
        }
        // Whoever expired, or is good again, has another class whatever the policy says.
        viewers.extend(before.keys());
        let mut moves = BTreeMap::new();
        for id in viewers {
            let Some(member) = self.nodes.get(&id) else { continue };
            let session = member.session.and_then(|number| Some((number, self.streams.get_mut(&number)?)));
            let Some((number, session)) = session else { continue };
            let class = match &alone {
                Some(changed) => self.views.class_after(policy, session.class, &member.state, changed),
                None => self.views.class(policy, &member.state),
            };
            let was = std::mem::replace(&mut session.class, class);
            if was != class {
                self.leave_class(number, was);
                self.viewers.entry(class).or_default().insert(number);
                moves.insert(number, Move { was, filter: FilterNews::default() });
                if was < ViewClass::FIRST || class < ViewClass::FIRST {
                    filters.push(id);
                    whole.insert(id);
                }
            }
        }
        for id in filters {
            let session = self.nodes.get(&id).and_then(|member| member.session);
            let Some((number, session)) = session.and_then(|n| Some((n, self.streams.get_mut(&n)?))) else { continue };
            let extent = match new_policy || whole.contains(&id) {
                true => Extent::Whole,
                false => Extent::Rules { rules: &rules, ssh: ssh.contains(&id) },
            };
            let news = self.views.filter_news(policy, session.class, id, &mut session.filter, extent);
            if !news.is_empty() {
                let stays = || Move { was: session.class, filter: FilterNews::default() };
                moves.entry(number).or_insert_with(stays).filter = news;
            }
        }
        moves
    }

    fn sendings(&self, source: &Source<'_>, news: &FlushPlan<'_>) -> Vec<Delivery> {
        let mut outputs = Vec::new();
        for (transition, viewers) in self.transitions(news) {
            let update = self.update(source, transition, news);
            let mut alike = Vec::new();
            for number in viewers {
                let Some(session) = self.streams.get(&number) else { continue };
                match self.own_message(source, number, session, &update, news) {
                    Message::Shared => alike.push(number),
                    Message::Own(message) if message.is_empty() => {}
                    Message::Own(message) => {
                        let message = Arc::new(message.finish());
                        outputs.push(Delivery { sessions: vec![number], message });
                    }
                }
            }
            let mut builder = Builder::new(&self.comma);
            builder.shared_fields(news.globals);
            update.write(&mut builder, None, None);
            if !builder.is_empty() && !alike.is_empty() {
                outputs.push(Delivery { sessions: alike, message: Arc::new(builder.finish().shared()) });
            }
        }
        outputs
    }

    /// Who is to be told anything, by where they come from and go to.
    fn transitions(&self, news: &FlushPlan<'_>) -> BTreeMap<Transition, Vec<SessionId>> {
        let mut transitions: BTreeMap<Transition, Vec<SessionId>> = BTreeMap::new();
        let mut apart: BTreeSet<SessionId> = news.moves.keys().chain(&self.opened).copied().collect();
        apart.extend(news.before.keys().filter_map(|id| self.nodes.get(id)?.session));
        for number in &apart {
            let Some(session) = self.streams.get(number) else { continue };
            let was = news.moves.get(number).map_or(session.class, |moved| moved.was);
            let transition = Transition { was, class: session.class, unsure: session.opened_as.is_some() };
            transitions.entry(transition).or_default().push(*number);
        }
        let for_all = !news.globals.is_empty() || !news.users.is_empty();
        for (class, viewers) in &self.viewers {
            if for_all || news.concern(self.views.peers(*class)) {
                let transition = Transition { was: *class, class: *class, unsure: false };
                let others = viewers.iter().filter(|number| !apart.contains(number));
                transitions.entry(transition).or_default().extend(others);
            }
        }
        transitions
    }

    /// What a viewer is sent, where that is not what all are sent who make its transition.
    fn own_message(
        &self,
        source: &Source<'_>,
        number: SessionId,
        session: &Stream,
        update: &Update,
        news: &FlushPlan<'_>,
    ) -> Message {
        let id = session.node;
        let Some(viewer) = self.nodes.get(&id).map(|member| &member.state) else { return Message::Shared };
        let owner = viewer.record.owner();
        let is_news = news.users.contains(&owner) && !update.owners.contains(&owner);
        let was = session.opened_as.as_deref().or_else(|| news.before.get(&id).and_then(Option::as_ref));
        let filter = news.moves.get(&number).map(|moved| &moved.filter).filter(|filter| !filter.is_empty());
        // Nobody is told of itself, though others of its class may be.
        if was.is_none() && filter.is_none() && !is_news && !update.speaks_of(id.0) {
            return Message::Shared;
        }
        let was = was.unwrap_or(viewer);
        let mut builder = Builder::new(&self.comma);
        builder.shared_fields(news.globals);
        if entry::concerns_itself(was, viewer, source.config) {
            builder.field("Node", &entry::myself(viewer, source.config));
        }
        if let Some(filter) = filter {
            write_filter(&mut builder, filter);
        }
        // Its new owner may be nobody else's.
        let own = Some(owner).filter(|owner| is_news || *owner != was.record.owner());
        update.write(&mut builder, Some(id), Self::with_own(source, update, own));
        Message::Own(builder)
    }

    // ---- differences ----

    fn write_entries(&mut self, source: &Source<'_>, ids: impl Iterator<Item = NodeId>) {
        for id in ids {
            if let Some(member) = self.nodes.get_mut(&id) {
                member.entry(&Visibility::default(), source.config);
            }
        }
    }

    fn compare<'a>(&'a self, source: &Source<'_>, before: &'a BTreeMap<NodeId, Option<NodeState>>) -> Vec<Changed<'a>> {
        before.iter().map(|(id, before)| self.changed(source, *id, before.as_ref())).collect()
    }

    fn changed<'a>(&'a self, source: &Source<'_>, id: NodeId, before: Option<&'a NodeState>) -> Changed<'a> {
        let after = self.nodes.get(&id);
        let difference = match (before, after) {
            (Some(before), Some(after)) => entry::difference(before, &after.state, source.config),
            _ => Difference::Entry,
        };
        Changed { id, before, after, difference }
    }

    /// The changes of nodes that viewers may know before their transition or after it.
    fn known<'n, 'a>(&'n self, transition: Transition, news: &'n FlushPlan<'a>) -> Vec<&'n Changed<'a>> {
        let (was, class) = (self.views.peers(transition.was), self.views.peers(transition.class));
        let (Some(was), Some(class)) = (was, class) else { return news.changes.iter().collect() };
        let mut known: Vec<&Changed<'a>> = news.among(was).collect();
        if transition.was != transition.class {
            known.extend(news.among(class).filter(|change| was.binary_search(&change.id).is_err()));
        }
        known
    }

    /// The nodes that did not change themselves, but are seen differently from one class and from another.
    fn moved<'a>(&'a self, source: &Source<'_>, transition: Transition, news: &FlushPlan<'a>) -> Vec<Changed<'a>> {
        let between = self.views.between(transition.was, transition.class);
        let ids = between.unwrap_or_else(|| self.nodes.keys().copied().collect());
        let moved = ids.into_iter().filter(|id| !news.before.contains_key(id));
        moved.filter_map(|id| Some(self.changed(source, id, Some(&self.nodes.get(&id)?.state)))).collect()
    }

    /// What viewers are sent who make a transition.
    fn update(&self, source: &Source<'_>, transition: Transition, news: &FlushPlan<'_>) -> Update {
        let Transition { was, class, unsure } = transition;
        if let Some(view) = self.whole(transition) {
            return self.whole_update(source, class, view, news);
        }
        let moved = self.moved(source, transition, news);
        let mut changes: Vec<&Changed<'_>> = self.known(transition, news);
        changes.extend(&moved);
        changes.sort_unstable_by_key(|change| change.id);
        let (mut entries, mut removed, mut patches, mut online) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut owners = BTreeSet::new();
        for change in changes {
            let number = change.id.0;
            let saw = change
                .before
                .filter(|_| !unsure)
                .and_then(|before| Some((before, self.views.visibility(was, before)?)));
            let sees = change.after.and_then(|after| Some((after, self.views.visibility(class, &after.state)?)));
            let differs = matches!((&saw, &sees), (Some((_, old)), Some((_, new))) if old != new);
            match (saw, sees, &change.difference) {
                (Some(_), Some(_), Difference::None) if !differs => {}
                (Some(_), Some(_), Difference::Online(is)) if !differs => {
                    online.push((number, format!("\"{number}\":{is}").into()));
                }
                (Some(_), Some(_), Difference::Patch(patch)) if !differs => patches.push((number, json(patch).into())),
                (saw, Some((after, visibility)), _) => {
                    let entry = after.entries.get(&visibility).cloned();
                    entries.push((number, entry.unwrap_or_else(|| after.write_entry(&visibility, source.config))));
                    let owner = after.state.record.owner();
                    if saw.is_none_or(|(before, _)| before.record.owner() != owner) {
                        owners.insert(owner);
                    }
                }
                (Some(_), None, _) => removed.push((number, number.to_string().into())),
                (None, None, _) if unsure => removed.push((number, number.to_string().into())),
                (None, None, _) => {}
            }
        }
        // A changed user whom these viewers do not know is not their business.
        owners.extend(news.users.iter().filter(|user| self.knows(class, **user)));
        Update {
            whole: false,
            entries: Items::new(&entries),
            removed: Items::new(&removed),
            patches: Items::new(&patches),
            online: Items::new(&online),
            profiles: profiles(source, owners.iter().copied()),
            owners,
            names_users: !news.users.is_empty(),
        }
    }

    /// The view to be told as a whole, where the difference would be to forget most of the network. A list without
    /// entries means nothing to clients, so there must be one besides the viewer.
    fn whole(&self, transition: Transition) -> Option<&View> {
        let view = self.views.view(transition.class).filter(|view| view.peers.len() > 1)?;
        let Transition { was, class, .. } = transition;
        (was != class && self.views.view(was).is_none()).then_some(view)
    }

    fn whole_update(&self, source: &Source<'_>, class: ViewClass, view: &View, news: &FlushPlan<'_>) -> Update {
        let (mut entries, mut owners) = (Vec::new(), BTreeSet::new());
        for member in view.peers.iter().filter_map(|peer| self.nodes.get(peer)) {
            let Some(visibility) = self.views.visibility(class, &member.state) else { continue };
            let entry = member.entries.get(&visibility).cloned();
            entries.push((member.id().0, entry.unwrap_or_else(|| member.write_entry(&visibility, source.config))));
            owners.insert(member.state.record.owner());
        }
        let none = || Items::new(&[]);
        Update {
            whole: true,
            entries: Items::new(&entries),
            removed: none(),
            patches: none(),
            online: none(),
            profiles: profiles(source, owners.iter().copied()),
            owners,
            names_users: !news.users.is_empty(),
        }
    }

    /// The profiles that a viewer is told whose own owner is news to it.
    fn with_own(source: &Source<'_>, update: &Update, own: Option<UserId>) -> Option<Items> {
        own.map(|own| profiles(source, update.owners.iter().copied().chain([own]).collect::<BTreeSet<_>>()))
    }

    fn knows(&self, class: ViewClass, user: UserId) -> bool {
        let is_theirs = |member: &Listing| member.state.record.owner() == user;
        match self.views.view(class) {
            Some(view) => view.peers.iter().filter_map(|peer| self.nodes.get(peer)).any(is_theirs),
            None => {
                let mut members = self.nodes.values();
                members.any(|member| is_theirs(member) && self.views.sees(class, member.id()))
            }
        }
    }
}

pub(super) fn write_filter(builder: &mut Builder, filter: &FilterNews) {
    if !filter.parts.is_empty() {
        builder.text("PacketFilters", &format!("{{{}}}", filter.parts));
    }
    if let Some(ssh) = &filter.ssh {
        builder.shared_fields(ssh);
    }
}

impl<'a> FlushPlan<'a> {
    /// The changes of some nodes, both in rising order: a look at each of the fewer.
    fn among<'n>(&'n self, ids: &'n [NodeId]) -> impl Iterator<Item = &'n Changed<'a>> {
        let few = self.changes.len() < ids.len();
        let in_ids = self.changes.iter().filter(|change| ids.binary_search(&change.id).is_ok());
        let find = |id: &NodeId| self.changes.binary_search_by_key(id, |change| change.id).ok();
        let of_ids = ids.iter().filter_map(find).map(|index| &self.changes[index]);
        let (in_ids, of_ids) = (few.then_some(in_ids), (!few).then_some(of_ids));
        in_ids.into_iter().flatten().chain(of_ids.into_iter().flatten())
    }

    /// Whether any of these nodes changed; `None` stands for all that there are.
    fn concern(&self, ids: Option<&[NodeId]>) -> bool {
        ids.map_or(!self.changes.is_empty(), |ids| self.among(ids).next().is_some())
    }
}

impl Update {
    fn write(&self, builder: &mut Builder, except: Option<NodeId>, profiles: Option<Items>) {
        let except = except.map(|id| id.0);
        builder.list(if self.whole { "Peers" } else { "PeersChanged" }, &self.entries, except);
        builder.list("PeersRemoved", &self.removed, except);
        builder.list("PeersChangedPatch", &self.patches, except);
        builder.object("OnlineChange", &self.online, except);
        match profiles {
            Some(profiles) => builder.list("UserProfiles", &profiles, None),
            None if self.names_users || !self.entries.is_empty_without(except) => {
                builder.list("UserProfiles", &self.profiles, None);
            }
            // The owner of the entry that is left out is no news.
            None => {}
        }
    }

    /// Whether anything of a node is sent.
    fn speaks_of(&self, number: u64) -> bool {
        [&self.entries, &self.removed, &self.patches, &self.online].iter().any(|items| items.holds(number))
    }
}
