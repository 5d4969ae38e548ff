//! Flushes: the difference for nodes that follow their map already.
//!
//! Model: first every connected node whose view or filter may have changed is looked at again; that gives its
//! [`Move`]. Then the differences of nodes are told, worked out once for all viewers that go from one view class
//! to another, in one shared message. A viewer that changed itself, or whose filter did, gets a message of its own,
//! made of the same chunks less its own entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::message::{Builder, Chunk, Items, fields, json};
use super::session::{Output, SessionId};
use super::state::{Member, State};
use super::view::{self, Difference, Shown};
use super::visibility::{FilterNews, Sight, ViewClass};
use crate::types::{NodeId, Timestamp, UserId};

/// What became of a connected node's view and filter.
struct Move {
    /// Its class when it was last told.
    was: ViewClass,
    filter: FilterNews,
}

/// Everything that a flush tells.
struct News<'a> {
    changes: Vec<Changed<'a>>,
    users: &'a BTreeSet<UserId>,
    before: &'a BTreeMap<NodeId, Option<Shown>>,
}

/// From where viewers go, and where to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Transition {
    was: ViewClass,
    class: ViewClass,
    /// Whether they know the class as some time since the last flush had it. Then they are told whole entries,
    /// and to forget whatever is not there, which is right wherever it starts from.
    unsure: bool,
}

/// A node's change, as a flush sees it.
struct Changed<'a> {
    id: NodeId,
    before: Option<&'a Shown>,
    after: Option<&'a Member>,
    difference: Difference,
}

/// What viewers are told who make the same transition.
struct Told {
    entries: Items,
    removed: Items,
    patches: Items,
    online: Items,
    owners: BTreeSet<UserId>,
    profiles: Items,
    /// Whether some of the profiles changed themselves.
    names_users: bool,
}

impl State {
    /// Tells every connected node what it does not know yet.
    pub(super) fn flush(&mut self, now: Timestamp) {
        self.fanout.last_flush = Some(now);
        let before = std::mem::take(&mut self.fanout.before);
        let users = std::mem::take(&mut self.fanout.users);
        let globals = fields(&std::mem::take(&mut self.fanout.globals));
        let moves = self.moves(&before);
        if self.sessions.is_empty() {
            return;
        }
        self.write_entries(before.keys().copied());
        let globals = Chunk::of_text(&globals);
        let outputs = self.outputs_of_flush(&before, &users, &globals, moves);
        self.outputs.extend(outputs);
        self.forget_classes();
        for session in self.sessions.values_mut() {
            session.opened_as = None;
        }
    }

    /// Looks again at every connected node whose view or filter may have changed.
    fn moves(&mut self, before: &BTreeMap<NodeId, Option<Shown>>) -> BTreeMap<SessionId, Move> {
        let (mut viewers, mut filtered) = self.visibility.take_stale();
        if std::mem::take(&mut self.fanout.new_policy) {
            viewers = self.members.keys().copied().collect();
            filtered.clone_from(&viewers);
        }
        // Whoever expired, or is good again, has another class whatever the policy says.
        viewers.extend(before.keys());
        let mut moves = BTreeMap::new();
        for id in viewers {
            let Some(member) = self.members.get(&id) else { continue };
            let session = member.session.and_then(|session| Some((session, self.sessions.get_mut(&session)?)));
            let Some((number, session)) = session else { continue };
            let class = self.visibility.class(&member.shown);
            let was = std::mem::replace(&mut session.class, class);
            if was != class {
                moves.insert(number, Move { was, filter: FilterNews::default() });
                if was == ViewClass::NOBODY || class == ViewClass::NOBODY {
                    filtered.push(id);
                }
            }
        }
        for id in filtered {
            let session = self.members.get(&id).and_then(|member| member.session);
            let Some((number, session)) = session.and_then(|n| Some((n, self.sessions.get_mut(&n)?))) else { continue };
            let (filter, news) = self.visibility.filter_news(session.class, id, Some(&session.filter));
            session.filter = filter;
            if !news.is_empty() {
                let stays = || Move { was: session.class, filter: FilterNews::default() };
                moves.entry(number).or_insert_with(stays).filter = news;
            }
        }
        moves
    }

    fn outputs_of_flush(
        &self,
        before: &BTreeMap<NodeId, Option<Shown>>,
        users: &BTreeSet<UserId>,
        globals: &Arc<Chunk>,
        mut moves: BTreeMap<SessionId, Move>,
    ) -> Vec<Output> {
        let news = News { changes: self.compare(before), users, before };
        let mut alike: BTreeMap<Transition, Vec<SessionId>> = BTreeMap::new();
        let mut told: BTreeMap<Transition, Told> = BTreeMap::new();
        let mut outputs = Vec::new();
        for (number, session) in &self.sessions {
            let id = session.node;
            let Some(viewer) = self.members.get(&id).map(|member| &member.shown) else { continue };
            let (was_class, filter) = match moves.remove(number) {
                Some(Move { was, filter }) => (was, filter),
                None => (session.class, FilterNews::default()),
            };
            let transition = Transition { was: was_class, class: session.class, unsure: session.opened_as.is_some() };
            let told = told.entry(transition).or_insert_with(|| self.told(transition, &news));
            let owner = viewer.record.owner();
            let is_news = users.contains(&owner) && !told.owners.contains(&owner);
            let was = session.opened_as.as_ref().or_else(|| before.get(&id).and_then(Option::as_ref));
            let Some(was) = was.or((is_news || !filter.is_empty()).then_some(viewer)) else {
                alike.entry(transition).or_default().push(*number);
                continue;
            };
            let mut builder = Builder::new(&self.fanout.comma);
            builder.shared_fields(globals);
            if view::concerns_itself(was, viewer, &self.config) {
                builder.field("Node", &view::myself(viewer, &self.config));
            }
            write_filter(&mut builder, &filter);
            // Its new owner may be nobody else's.
            let own = Some(owner).filter(|owner| is_news || *owner != was.record.owner());
            told.write(&mut builder, Some(id), self.with_own(told, own));
            if !builder.is_empty() {
                outputs.push(Output::Send { sessions: vec![*number], message: Arc::new(builder.finish()) });
            }
        }
        for (transition, sessions) in alike {
            let told = told.entry(transition).or_insert_with(|| self.told(transition, &news));
            let mut builder = Builder::new(&self.fanout.comma);
            builder.shared_fields(globals);
            // Each of them may see the others, and so itself: nobody is told of itself.
            let own = sessions.iter().filter_map(|number| self.sessions.get(number)).map(|session| session.node.0);
            let (apart, together): (Vec<_>, Vec<_>) = own.zip(&sessions).partition(|(own, _)| told.speaks_of(*own));
            for (own, number) in apart {
                let mut builder = Builder::new(&self.fanout.comma);
                builder.shared_fields(globals);
                told.write(&mut builder, Some(NodeId(own)), None);
                if !builder.is_empty() {
                    outputs.push(Output::Send { sessions: vec![*number], message: Arc::new(builder.finish()) });
                }
            }
            told.write(&mut builder, None, None);
            let sessions: Vec<SessionId> = together.into_iter().map(|(_, number)| *number).collect();
            if !builder.is_empty() && !sessions.is_empty() {
                outputs.push(Output::Send { sessions, message: Arc::new(builder.finish().shared()) });
            }
        }
        outputs
    }

    /// Lets go of view classes that no connected node is in.
    fn forget_classes(&mut self) {
        let used: BTreeSet<ViewClass> = self.sessions.values().map(|session| session.class).collect();
        self.visibility.retain(|class| used.contains(&class));
        self.fanout.retain(|class| class < ViewClass::FIRST || used.contains(&class));
    }

    // ---- differences ----

    fn write_entries(&mut self, ids: impl Iterator<Item = NodeId>) {
        for id in ids {
            if let Some(member) = self.members.get_mut(&id) {
                member.entry(&Sight::default(), &self.config);
            }
        }
    }

    fn compare<'a>(&'a self, before: &'a BTreeMap<NodeId, Option<Shown>>) -> Vec<Changed<'a>> {
        before.iter().map(|(id, before)| self.changed(*id, before.as_ref())).collect()
    }

    fn changed<'a>(&'a self, id: NodeId, before: Option<&'a Shown>) -> Changed<'a> {
        let after = self.members.get(&id);
        let difference = match (before, after) {
            (Some(before), Some(after)) => view::difference(before, &after.shown, &self.config),
            _ => Difference::Entry,
        };
        Changed { id, before, after, difference }
    }

    /// The nodes that did not change themselves, but are seen differently from one class and from another.
    fn moved<'a>(&'a self, transition: Transition, news: &News<'a>) -> Vec<Changed<'a>> {
        let between = self.visibility.between(transition.was, transition.class);
        let ids = between.unwrap_or_else(|| self.members.keys().copied().collect());
        let moved = ids.into_iter().filter(|id| !news.before.contains_key(id));
        moved.filter_map(|id| Some(self.changed(id, Some(&self.members.get(&id)?.shown)))).collect()
    }

    /// What viewers are told who make a transition.
    fn told(&self, transition: Transition, news: &News<'_>) -> Told {
        let Transition { was, class, unsure } = transition;
        let moved = self.moved(transition, news);
        let mut changes: Vec<&Changed<'_>> = news.changes.iter().chain(&moved).collect();
        changes.sort_unstable_by_key(|change| change.id);
        let (mut entries, mut removed, mut patches, mut online) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut owners = BTreeSet::new();
        for change in changes {
            let number = change.id.0;
            let saw = change
                .before
                .filter(|_| !unsure)
                .and_then(|before| Some((before, self.visibility.sight(was, before)?)));
            let sees = change.after.and_then(|after| Some((after, self.visibility.sight(class, &after.shown)?)));
            let differs = matches!((&saw, &sees), (Some((_, old)), Some((_, new))) if old != new);
            match (saw, sees, &change.difference) {
                (Some(_), Some(_), Difference::None) if !differs => {}
                (Some(_), Some(_), Difference::Online(is)) if !differs => {
                    online.push((number, format!("\"{number}\":{is}").into()));
                }
                (Some(_), Some(_), Difference::Patch(patch)) if !differs => patches.push((number, json(patch).into())),
                (saw, Some((after, sight)), _) => {
                    let entry = after.entries.get(&sight).cloned();
                    entries.push((number, entry.unwrap_or_else(|| after.write_entry(&sight, &self.config))));
                    let owner = after.shown.record.owner();
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
        Told {
            entries: Items::new(&entries),
            removed: Items::new(&removed),
            patches: Items::new(&patches),
            online: Items::new(&online),
            profiles: self.profiles(owners.iter().copied()),
            owners,
            names_users: !news.users.is_empty(),
        }
    }

    /// The profiles that a viewer is told whose own owner is news to it.
    fn with_own(&self, told: &Told, own: Option<UserId>) -> Option<Items> {
        own.map(|own| self.profiles(told.owners.iter().copied().chain([own]).collect::<BTreeSet<_>>()))
    }

    fn knows(&self, class: ViewClass, user: UserId) -> bool {
        let is_theirs = |member: &Member| member.shown.record.owner() == user;
        match self.visibility.view(class) {
            Some(view) => view.peers.iter().filter_map(|peer| self.members.get(peer)).any(is_theirs),
            None => {
                let mut members = self.members.values();
                members.any(|member| is_theirs(member) && self.visibility.sees(class, &member.shown))
            }
        }
    }
}

fn write_filter(builder: &mut Builder, filter: &FilterNews) {
    if !filter.parts.is_empty() {
        builder.field("PacketFilters", &filter.parts);
    }
    if let Some(ssh) = &filter.ssh {
        builder.text("SSHPolicy", ssh);
    }
}

impl Told {
    fn write(&self, builder: &mut Builder, except: Option<NodeId>, profiles: Option<Items>) {
        let except = except.map(|id| id.0);
        builder.list("PeersChanged", &self.entries, except);
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

    /// Whether anything of a node is told.
    fn speaks_of(&self, number: u64) -> bool {
        [&self.entries, &self.removed, &self.patches, &self.online].iter().any(|items| items.holds(number))
    }
}
