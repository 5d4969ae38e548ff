//! Maps: the full one for a node that begins to follow, and the difference for those that do already.
//!
//! Model: of every node that changed since the last flush, what was last told of it is kept; a flush
//! compares that with what is true, once for each view class, and sends one shared message to all viewers
//! of the class. A viewer that changed itself gets a message of its own, made of the same chunks less its
//! own entry. Storms are gathered: after a flush the next waits a little, so that the work for n nodes
//! that come back at once is a few large messages and not n small ones to each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::message::{Builder, CHUNK, Chunk, Group, Items, MapMessage, fields, json};
use super::session::{Output, Session, SessionId, add};
use super::state::{Member, State};
use super::view::{self, Difference, Shown};
use super::visibility::ViewClass;
use crate::types::{NodeId, Timestamp, UserId};
use crate::wire::control::{Debug, DerpMap, DnsConfig, FilterRule, Resolver};

/// The least time between two flushes.
const PACE: Duration = Duration::from_millis(100);

/// What connected nodes have yet to be told, and what they are told alike.
#[derive(Debug)]
pub(super) struct Fanout {
    /// Of each node that changed: what was last told of it; `None` for nothing.
    before: BTreeMap<NodeId, Option<Shown>>,
    users: BTreeSet<UserId>,
    /// Changed fields that are the same for everyone.
    globals: BTreeMap<&'static str, String>,
    last_flush: Option<Timestamp>,
    /// Chunks of full peer lists, by place and class.
    groups: BTreeMap<u64, BTreeMap<ViewClass, Group>>,
    /// The fields of a full map that a class receives alike, peers and their owners apart.
    common: BTreeMap<ViewClass, Arc<Chunk>>,
    /// The owners of the nodes that a class sees.
    owners: BTreeMap<ViewClass, (BTreeSet<UserId>, Items)>,
    comma: Arc<Chunk>,
}

impl Default for Fanout {
    fn default() -> Self {
        Self {
            before: BTreeMap::new(),
            users: BTreeSet::new(),
            globals: BTreeMap::new(),
            last_flush: None,
            groups: BTreeMap::new(),
            common: BTreeMap::new(),
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

    /// A field that is the same for everyone is, from here on, this.
    fn global_changed(&mut self, name: &'static str, value: String) {
        self.globals.insert(name, value);
        self.common.clear();
    }

    pub(super) fn forget_changes(&mut self) {
        self.before.clear();
        self.users.clear();
        self.globals.clear();
    }

    /// When the next flush is due; `None` when there is nothing to tell.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let idle = self.before.is_empty() && self.users.is_empty() && self.globals.is_empty();
        (!idle).then(|| self.last_flush.map_or(Timestamp::UNIX_EPOCH, |last| add(last, PACE)))
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        // A clock that was set back must not hold up the next flush.
        self.due().is_some_and(|at| at <= now || self.last_flush.is_some_and(|last| now < last))
    }
}

/// Everything that a flush tells.
struct News<'a> {
    changes: Vec<Changed<'a>>,
    users: &'a BTreeSet<UserId>,
    before: &'a BTreeMap<NodeId, Option<Shown>>,
}

/// What a viewer knew before a flush.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Knew {
    /// What the last flush left viewers of this class with.
    As(ViewClass),
    /// Some state since then. It is told whole entries, and to forget whatever is not there, which is
    /// right wherever it starts from.
    Unsure,
}

/// A node's change, as a flush sees it.
struct Changed<'a> {
    id: NodeId,
    before: Option<&'a Shown>,
    after: Option<&'a Member>,
    difference: Difference,
}

/// What viewers of one class are told.
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
    pub(super) fn full_map(&mut self, id: NodeId, now: Timestamp) -> Option<MapMessage> {
        let shown = &self.members.get(&id)?.shown;
        let class = self.visibility.class(shown);
        let owner = shown.record.owner();
        let mut builder = Builder::new(&self.fanout.comma);
        builder.field("Node", &view::myself(shown, &self.config));
        builder.field("ControlTime", &now);
        let common = self.common(class);
        builder.shared_fields(&common);
        builder.list("UserProfiles", &self.owners(class, owner), None);
        let peers = self.peers(class);
        builder.list("Peers", &peers, Some(id.0));
        Some(builder.finish())
    }

    /// Tells every connected node what it does not know yet.
    pub(super) fn flush(&mut self, now: Timestamp) {
        self.fanout.last_flush = Some(now);
        let before = std::mem::take(&mut self.fanout.before);
        let users = std::mem::take(&mut self.fanout.users);
        let globals = fields(&std::mem::take(&mut self.fanout.globals));
        if self.sessions.is_empty() {
            return;
        }
        self.write_entries(before.keys().copied());
        let globals = Chunk::of_text(&globals);
        let outputs = self.outputs_of_flush(&before, &users, &globals);
        self.outputs.extend(outputs);
        for session in self.sessions.values_mut() {
            session.opened_as = None;
        }
    }

    fn outputs_of_flush(
        &self,
        before: &BTreeMap<NodeId, Option<Shown>>,
        users: &BTreeSet<UserId>,
        globals: &Arc<Chunk>,
    ) -> Vec<Output> {
        let news = News { changes: self.compare(before), users, before };
        let mut alike: BTreeMap<ViewClass, Vec<SessionId>> = BTreeMap::new();
        let mut told = BTreeMap::new();
        let mut outputs = Vec::new();
        for (session, Session { node: id, opened_as }) in &self.sessions {
            let Some(viewer) = self.members.get(id).map(|member| &member.shown) else { continue };
            let class = self.visibility.class(viewer);
            let told_alike =
                told.entry((class, Knew::As(class))).or_insert_with(|| self.told(class, Knew::As(class), &news));
            let owner = viewer.record.owner();
            let is_news = users.contains(&owner) && !told_alike.owners.contains(&owner);
            let was = opened_as.as_ref().or_else(|| before.get(id).and_then(Option::as_ref));
            let Some(was) = was.or(is_news.then_some(viewer)) else {
                alike.entry(class).or_default().push(*session);
                continue;
            };
            let mut builder = Builder::new(&self.fanout.comma);
            builder.shared_fields(globals);
            if view::concerns_itself(was, viewer, &self.config) {
                builder.field("Node", &view::myself(viewer, &self.config));
            }
            // Its new owner may be nobody else's.
            let own = Some(owner).filter(|owner| is_news || *owner != was.record.owner());
            let old_class = self.visibility.class(was);
            let knew = if opened_as.is_some() { Knew::Unsure } else { Knew::As(old_class) };
            if old_class == class {
                let told = told.entry((class, knew)).or_insert_with(|| self.told(class, knew, &news));
                told.write(&mut builder, Some(*id), self.with_own(told, own));
            } else {
                builder.field("PacketFilters", &self.filters(class));
                let everything = News { changes: self.everything(&news), ..news };
                let told = self.told(class, knew, &everything);
                told.write(&mut builder, Some(*id), self.with_own(&told, own));
            }
            if !builder.is_empty() {
                outputs.push(Output::Send { sessions: vec![*session], message: Arc::new(builder.finish()) });
            }
        }
        for (class, sessions) in alike {
            let knew = Knew::As(class);
            let told = told.entry((class, knew)).or_insert_with(|| self.told(class, knew, &news));
            let mut builder = Builder::new(&self.fanout.comma);
            builder.shared_fields(globals);
            told.write(&mut builder, None, None);
            if !builder.is_empty() {
                outputs.push(Output::Send { sessions, message: Arc::new(builder.finish().shared()) });
            }
        }
        outputs
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
        self.sessions.remove(&session);
        self.outputs.push_back(Output::Send { sessions: vec![session], message: Arc::new(builder.finish()) });
        self.outputs.push_back(Output::Close { session });
    }

    // ---- full maps ----

    /// The peers of a class, each chunk from its cache where it is still true.
    fn peers(&mut self, class: ViewClass) -> Items {
        let mut groups = Vec::new();
        let mut next = NodeId(0);
        while let Some((first, _)) = self.members.range(next..).next() {
            let place = place_of(*first);
            let end = NodeId((place + 1) * CHUNK as u64);
            let cached = self.fanout.groups.get(&place).and_then(|classes| classes.get(&class)).cloned();
            groups.push(cached.unwrap_or_else(|| {
                let group = self.group(class, NodeId(place * CHUNK as u64), end);
                self.fanout.groups.entry(place).or_default().insert(class, group.clone());
                group
            }));
            next = end;
        }
        Items::of_groups(groups)
    }

    fn group(&mut self, class: ViewClass, from: NodeId, to: NodeId) -> Group {
        let (config, visibility) = (&self.config, self.visibility);
        let seen = self.members.range_mut(from..to).filter(|(_, member)| visibility.sees(class, &member.shown));
        Group::new(seen.map(|(id, member)| (id.0, member.entry(config))).collect())
    }

    /// What a class receives alike in a full map, peers apart.
    fn common(&mut self, class: ViewClass) -> Arc<Chunk> {
        if let Some(common) = self.fanout.common.get(&class) {
            return Arc::clone(common);
        }
        let mut common = BTreeMap::from([
            ("CollectServices", "false".to_owned()),
            ("DNSConfig", json(&self.dns())),
            ("Debug", json(&Debug { disable_log_tail: true, ..Debug::default() })),
            ("Domain", json(&self.config.base_domain)),
            ("PacketFilters", json(&self.filters(class))),
        ]);
        if let Some(derp_map) = &self.config.derp_map {
            common.insert("DERPMap", json(derp_map));
        }
        let common = Chunk::of_text(&fields(&common));
        self.fanout.common.insert(class, Arc::clone(&common));
        common
    }

    /// The profiles that a class needs, and a viewer's own owner.
    fn owners(&mut self, class: ViewClass, own: UserId) -> Items {
        if !self.fanout.owners.contains_key(&class) {
            let seen = self.members.values().filter(|member| self.visibility.sees(class, &member.shown));
            let owners: BTreeSet<UserId> = seen.map(|member| member.shown.record.owner()).collect();
            let profiles = self.profiles(owners.iter().copied());
            self.fanout.owners.insert(class, (owners, profiles));
        }
        match self.fanout.owners.get(&class) {
            Some((owners, profiles)) if owners.contains(&own) => profiles.clone(),
            Some((owners, _)) => self.profiles(owners.iter().copied().chain([own])),
            None => self.profiles([own]),
        }
    }

    fn filters(&self, class: ViewClass) -> BTreeMap<&'static str, Vec<FilterRule>> {
        BTreeMap::from([("base", self.visibility.filter(class))])
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

    // ---- differences ----

    fn write_entries(&mut self, ids: impl Iterator<Item = NodeId>) {
        for id in ids {
            if let Some(member) = self.members.get_mut(&id) {
                member.entry(&self.config);
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

    /// Every node as if it had changed: for a viewer whose own class changed.
    fn everything<'a>(&'a self, news: &News<'a>) -> Vec<Changed<'a>> {
        let ids: BTreeSet<NodeId> = self.members.keys().chain(news.before.keys()).copied().collect();
        let last_told = |id: &NodeId| match news.before.get(id) {
            Some(before) => before.as_ref(),
            None => self.members.get(id).map(|member| &member.shown),
        };
        ids.iter().map(|id| self.changed(*id, last_told(id))).collect()
    }

    /// What viewers of a class are told.
    fn told(&self, class: ViewClass, knew: Knew, news: &News<'_>) -> Told {
        let (mut entries, mut removed, mut patches, mut online) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut owners = BTreeSet::new();
        for change in &news.changes {
            let number = change.id.0;
            let saw = change.before.filter(|before| match knew {
                Knew::As(old) => self.visibility.sees(old, before),
                Knew::Unsure => false,
            });
            let sees = change.after.filter(|after| self.visibility.sees(class, &after.shown));
            match (saw, sees, &change.difference) {
                (Some(_), Some(_), Difference::None) => {}
                (Some(_), Some(_), Difference::Online(is)) => {
                    online.push((number, format!("\"{number}\":{is}").into()))
                }
                (Some(_), Some(_), Difference::Patch(patch)) => patches.push((number, json(patch).into())),
                (_, Some(after), _) => {
                    entries.push((number, after.entry.clone().unwrap_or_else(|| after.write_entry(&self.config))));
                    let owner = after.shown.record.owner();
                    if saw.is_none_or(|before| before.record.owner() != owner) {
                        owners.insert(owner);
                    }
                }
                (Some(_), None, _) => removed.push((number, number.to_string().into())),
                (None, None, _) if knew == Knew::Unsure => removed.push((number, number.to_string().into())),
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
        let mut members = self.members.values();
        members.any(|member| member.shown.record.owner() == user && self.visibility.sees(class, &member.shown))
    }

    fn profiles(&self, owners: impl IntoIterator<Item = UserId>) -> Items {
        let text = |id: UserId| (id.0, json(&view::profile(id, self.users.get(&id))).into());
        Items::new(&owners.into_iter().map(text).collect::<Vec<_>>())
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
}

impl Member {
    /// Its entry in peers' maps, written on first need.
    fn entry(&mut self, config: &super::Config) -> Arc<str> {
        if let Some(entry) = &self.entry {
            return Arc::clone(entry);
        }
        let entry = self.write_entry(config);
        self.entry = Some(Arc::clone(&entry));
        entry
    }

    fn write_entry(&self, config: &super::Config) -> Arc<str> {
        json(&view::peer(&self.shown, config)).into()
    }
}

fn place_of(id: NodeId) -> u64 {
    id.0 / CHUNK as u64
}
