//! Administration: users, keys, nodes and routes.

use std::sync::Arc;
use std::time::Duration;

use super::actor::Rights;
use super::cleanup::gone;
use super::commands::{Command, Commands, Decision};
use super::config::limit;
use super::credential::TokenHolder;
use super::names;
use super::people::{Invitation, ProviderName, canonical_email};
use super::presence::add;
use super::record::{Change, KeyId, KeyRecord, NodeRecord, Tag, UserName, UserRecord};
use super::refusal::Refusal;
use super::secret::{self, KeyText};
use super::state::State;
use crate::policy::{Role, looks_like};
use crate::types::{HostLabel, IpNet, Lifetime, Limit, NodeId, Timestamp, UserId, UserStatus, why_not_routed};
use crate::wire::admin::{Life, WithNodes};

/// Longest display name: a line in a list.
const DISPLAY_NAME: Limit = Limit::new("bytes in a display name", 255);

/// The least that the keys of a user's nodes may last.
const LEAST_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A pre-authentication key to make.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose nodes it admits.
    pub user: UserId,
    /// Admits more than one.
    pub reusable: bool,
    /// Its nodes are deleted some time after they go offline.
    pub ephemeral: bool,
    /// Its nodes are owned by these tags.
    pub tags: Vec<Tag>,
    /// Lets nodes in again whose node key ended after it was made.
    pub readmits: bool,
    /// How long it is good; `None` for ever.
    pub lifetime: Option<Duration>,
}

/// A pre-authentication key that was made.
#[derive(Clone, Debug)]
pub struct NewKeyAnswer {
    /// What is kept of it.
    pub record: KeyRecord,
    /// What is shown of it, this once.
    pub text: KeyText,
}

impl Commands<'_> {
    /// Makes a user.
    pub fn create_user(&self, name: UserName, display_name: String) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::CreateUser)?;
        limit::USERS.check(self.users().len() + 1)?;
        DISPLAY_NAME.check(display_name.len())?;
        self.name_is_free(&name)?;
        let mut counters = self.directory.counters();
        counters.user += 1;
        let user = UserRecord { display_name, ..UserRecord::new(UserId(counters.user), name, self.now) };
        let changes = vec![Change::Counters(counters), Change::User(user.clone())];
        Ok(self.decided(Command::CreateUser, user, changes))
    }

    /// Gives a user another login name.
    pub fn rename_user(&self, id: UserId, name: UserName) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::RenameUser)?;
        let mut user = self.user(id)?.clone();
        if user.name == name {
            return Ok(self.unchanged(Command::RenameUser, user));
        }
        self.name_is_free(&name)?;
        user.name = name;
        Ok(self.decided(Command::RenameUser, user.clone(), vec![Change::User(user)]))
    }

    /// Says what a user may do. Nobody gives more than they have.
    pub fn set_role(&self, id: UserId, role: Role) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::SetRole)?;
        let mut user = self.user(id)?.clone();
        if user.role == role {
            return Ok(self.unchanged(Command::SetRole, user));
        }
        self.may_touch(&user)?;
        if !self.actor().rights.include(Rights::of(role)) {
            return Err(Refusal::forbidden(format!("you may not make anybody {role}: that may more than you")));
        }
        self.not_the_last_owner(&user)?;
        user.role = role;
        Ok(self.decided(Command::SetRole, user.clone(), vec![Change::User(user)]))
    }

    /// Deletes a user and their keys. Nodes of theirs without tags must be gone, so that no access is lost by accident;
    /// those with tags belong to their tags and go on.
    pub fn delete_user(&self, id: UserId) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::DeleteUser)?;
        let user = self.user(id)?.clone();
        self.may_touch(&user)?;
        self.not_the_last_owner(&user)?;
        let (own, tagged): (Vec<_>, Vec<_>) = self.nodes_of_user(id).partition(|record| record.tags.is_empty());
        if !own.is_empty() {
            let names = own.iter().map(|record| record.label.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::conflict(format!(
                "the user `{}` has nodes: {names}; `node move` or `node delete` them first",
                user.name
            )));
        }
        let no_more = |record: &Arc<NodeRecord>| NodeRecord { user: None, ..record.as_ref().clone() };
        let tagged = tagged.into_iter().map(|record| Change::of_node(record, &no_more(record)));
        let keys = self.keys().filter(|key| key.user == id).map(|key| Change::KeyGone(key.id));
        let changes = tagged.chain(keys).chain(self.access_goes(id)).chain([Change::UserGone(id)]).collect();
        Ok(self.decided(Command::DeleteUser, user, changes))
    }

    /// Ends everything of a user until they are restored: browsers, tokens and nodes without tags at once, also of those
    /// who are away; keys admit nobody meanwhile.
    pub fn suspend_user(&self, id: UserId) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::SuspendUser)?;
        let mut user = self.user(id)?.clone();
        self.may_touch(&user)?;
        if self.actor().is_user(id) {
            return Err(Refusal::forbidden("nobody suspends themselves"));
        }
        self.not_the_last_owner(&user)?;
        if user.status == UserStatus::Suspended {
            return Ok(self.unchanged(Command::SuspendUser, user));
        }
        user.status = UserStatus::Suspended;
        let changes = std::iter::once(Change::User(user.clone())).chain(self.access_goes(id)).collect();
        Ok(self.decided(Command::SuspendUser, user, changes))
    }

    /// Gives a user back what suspension took: nodes come back as they were, browsers sign in again.
    pub fn restore_user(&self, id: UserId) -> Result<Decision<UserRecord>, Refusal> {
        self.activate(Command::RestoreUser, id, UserStatus::Suspended)
    }

    /// Says that somebody who signed in is welcome.
    pub fn approve_user(&self, id: UserId) -> Result<Decision<UserRecord>, Refusal> {
        self.activate(Command::ApproveUser, id, UserStatus::NeedsApproval)
    }

    /// Says who becomes a user: the first who signs in with this address, vouched for by this provider. Once.
    pub fn invite_user(
        &self,
        id: UserId,
        provider: ProviderName,
        email: &str,
    ) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::InviteUser)?;
        let mut user = self.user(id)?.clone();
        self.may_touch(&user)?;
        let email = canonical_email(email).ok_or_else(|| Refusal::invalid(format!("{email:?} is no address")))?;
        let invitation = Invitation { provider, email };
        if let Some(other) = self.users().find(|other| other.id != id && other.invitation.as_ref() == Some(&invitation))
        {
            return Err(Refusal::conflict(format!(
                "whoever has this address becomes the user `{}` already",
                other.name
            )));
        }
        if user.invitation.as_ref() == Some(&invitation) {
            return Ok(self.unchanged(Command::InviteUser, user));
        }
        user.invitation = Some(invitation);
        Ok(self.decided(Command::InviteUser, user.clone(), vec![Change::User(user)]))
    }

    /// Says how long the keys of a user's nodes last that log in from here on; nothing for as long as everybody's.
    pub fn set_key_lifetime(&self, id: UserId, lifetime: Option<Lifetime>) -> Result<Decision<UserRecord>, Refusal> {
        self.may(Command::SetKeyLifetime)?;
        let mut user = self.user(id)?.clone();
        self.may_touch(&user)?;
        if lifetime.and_then(Lifetime::duration).is_some_and(|lifetime| lifetime < LEAST_LIFETIME) {
            return Err(Refusal::invalid("a key lasts an hour at least: less than a log-in takes would lock them out"));
        }
        if user.key_lifetime == lifetime {
            return Ok(self.unchanged(Command::SetKeyLifetime, user));
        }
        user.key_lifetime = lifetime;
        Ok(self.decided(Command::SetKeyLifetime, user.clone(), vec![Change::User(user)]))
    }

    fn activate(&self, command: Command, id: UserId, from: UserStatus) -> Result<Decision<UserRecord>, Refusal> {
        self.may(command)?;
        let mut user = self.user(id)?.clone();
        self.may_touch(&user)?;
        if self.actor().is_user(id) {
            return Err(Refusal::forbidden("somebody else has to do this"));
        }
        match user.status {
            UserStatus::Active => Ok(self.unchanged(command, user)),
            status if status != from => {
                Err(Refusal::conflict(format!("the user `{}` is {}", user.name, status.name())))
            }
            UserStatus::Suspended | UserStatus::NeedsApproval => {
                user.status = UserStatus::Active;
                Ok(self.decided(command, user.clone(), vec![Change::User(user)]))
            }
        }
    }

    /// Refuses to touch somebody who may more than the actor.
    fn may_touch(&self, user: &UserRecord) -> Result<(), Refusal> {
        match self.actor().rights.include(Rights::of(user.role)) {
            true => Ok(()),
            false => Err(Refusal::forbidden(format!("`{}` is {}, and may more than you", user.name, user.role))),
        }
    }

    /// Refuses what would leave the network without anybody who owns it.
    fn not_the_last_owner(&self, user: &UserRecord) -> Result<(), Refusal> {
        let owns = |user: &UserRecord| user.role == Role::Owner && user.status == UserStatus::Active;
        match owns(user) && !self.users().any(|other| other.id != user.id && owns(other)) {
            false => Ok(()),
            true => Err(Refusal::conflict(format!(
                "`{}` is the last owner; `warren-coordinator user role USER owner` makes another first",
                user.name
            ))),
        }
    }

    /// A user's browsers and tokens end.
    fn access_goes(&self, id: UserId) -> impl Iterator<Item = Change> + '_ {
        let sessions = self.sessions_of(id).map(|session| Change::SessionGone(session.id));
        let tokens = self.directory.access().tokens().filter(move |token| token.holder == TokenHolder::User(id));
        sessions.chain(tokens.map(|token| Change::TokenGone(token.id)))
    }

    /// Makes a pre-authentication key out of `entropy`, which the caller draws for this call.
    pub fn create_key(&self, wish: NewKey, entropy: [u8; 32]) -> Result<Decision<NewKeyAnswer>, Refusal> {
        self.may(Command::CreateKey)?;
        let forgotten = match limit::KEYS.check(self.keys().len() + 1) {
            Ok(()) => None,
            Err(full) => Some(self.oldest_spent(self.now).ok_or(full)?),
        };
        self.user(wish.user)?;
        let mut counters = self.directory.counters();
        counters.key += 1;
        let id = KeyId(counters.key);
        let text = KeyText::new(id, &entropy);
        let record = KeyRecord {
            id,
            user: wish.user,
            secret_hash: secret::hash_of(&text),
            description: String::new(),
            creator: Some(self.actor().who.clone()),
            reusable: wish.reusable,
            ephemeral: wish.ephemeral,
            pre_approved: true,
            tags: sorted_tags(&wish.tags)?,
            readmits: wish.readmits,
            created: self.now,
            expires: wish.lifetime.map(|lifetime| add(self.now, lifetime)),
            used: None,
            revoked: None,
        };
        let made = [Change::Counters(counters), Change::Key(record.clone())];
        let changes = forgotten.map(Change::KeyGone).into_iter().chain(made).collect();
        Ok(self.decided(Command::CreateKey, NewKeyAnswer { record, text }, changes))
    }

    /// Ends a key at once.
    pub fn expire_key(&self, id: KeyId, nodes: WithNodes) -> Result<Decision<KeyRecord>, Refusal> {
        self.may(Command::ExpireKey)?;
        let mut key = self.key(id)?.clone();
        let mut changes = self.admitted_go(id, nodes);
        if key.expires.is_none_or(|expires| expires > self.now) {
            key.expires = Some(self.now);
            changes.push(Change::Key(key.clone()));
        }
        Ok(self.decided(Command::ExpireKey, key, changes))
    }

    /// Forgets a key.
    pub fn delete_key(&self, id: KeyId, nodes: WithNodes) -> Result<Decision<KeyRecord>, Refusal> {
        self.may(Command::DeleteKey)?;
        let key = self.key(id)?.clone();
        let mut changes = self.admitted_go(id, nodes);
        changes.push(Change::KeyGone(id));
        Ok(self.decided(Command::DeleteKey, key, changes))
    }

    fn admitted_go(&self, id: KeyId, nodes: WithNodes) -> Vec<Change> {
        let go = |record: &Arc<NodeRecord>| match nodes {
            WithNodes::Stay => Vec::new(),
            WithNodes::LogOut => vec![Change::of_node(record, &ended(record, self.now))],
            WithNodes::Delete => gone(record, self.now).to_vec(),
        };
        self.admitted_by(id).flat_map(go).collect()
    }

    /// Gives a node another name, which stays whatever the machine calls itself.
    pub fn rename_node(&self, id: NodeId, label: HostLabel) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::RenameNode)?;
        if names::means_another(&label) {
            return Err(Refusal::invalid(format!("`{label}` would be taken for something else than this node's name")));
        }
        if let Some(other) = self.directory.node_named(&label).filter(|other| *other != id) {
            return Err(Refusal::conflict(format!("the name `{label}` belongs to node {other}")));
        }
        self.change_node(Command::RenameNode, id, |record| {
            record.label = label;
            record.label_fixed = true;
        })
    }

    /// Ends a node's key at once: it must log in again, by somebody's word.
    pub fn expire_node(&self, id: NodeId) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::ExpireNode)?;
        self.change_node(Command::ExpireNode, id, |record| *record = ended(record, self.now))
    }

    /// Says how long a node's key is good. A node whose key is past its time goes on with it, without logging in.
    pub fn extend_node(&self, id: NodeId, life: Life) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::ExtendNode)?;
        let record = self.record(id)?;
        if record.logged_out {
            return Err(Refusal::conflict(format!(
                "the node `{}` logged out by itself and has no key any more; it has to log in again",
                record.label
            )));
        }
        let expiry = match life {
            Life::Usual => self.usual_expiry(record.user, &record.tags),
            Life::For(lifetime) => Some(add(self.now, lifetime)),
            Life::Endless => None,
        };
        self.change_node(Command::ExtendNode, id, |record| {
            (record.key_expiry, record.expiry_disabled) = (expiry, false)
        })
    }

    /// When the key of a node that logs in now is to end; that of a node with tags does not.
    pub(super) fn usual_expiry(&self, user: Option<UserId>, tags: &[Tag]) -> Option<Timestamp> {
        let of_user = user.and_then(|id| self.directory.user(id)).and_then(|user| user.key_lifetime);
        let lifetime = of_user.map_or(self.config.key_lifetime, Lifetime::duration);
        lifetime.filter(|_| tags.is_empty()).map(|lifetime| add(self.now, lifetime))
    }

    /// Deletes a node. Its addresses are nobody's for a while.
    pub fn delete_node(&self, id: NodeId) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::DeleteNode)?;
        let record = self.record(id)?;
        self.stands_before_none(record)?;
        Ok(self.decided(Command::DeleteNode, Arc::clone(record), gone(record, self.now).to_vec()))
    }

    /// Makes exactly these the tags of a node. With tags it belongs to them, and its key does not expire; without it is
    /// its user's again, and its key lasts as long as that of a node that logs in now.
    pub fn set_tags(&self, id: NodeId, tags: &[Tag]) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::SetTags)?;
        let tags = sorted_tags(tags)?;
        let record = self.record(id)?;
        if tags.is_empty() && record.user.is_none() {
            return Err(Refusal::conflict(format!(
                "the node `{name}` would be nobody's: its user is gone; `warren-coordinator node move {name} USER` first",
                name = record.label
            )));
        }
        let expiry = self.usual_expiry(record.user, &tags);
        self.change_node(Command::SetTags, id, |record| {
            // A key that has ended stays so.
            if record.tags.is_empty() != tags.is_empty() && !record.is_expired(self.now) {
                record.key_expiry = expiry;
            }
            record.tags = tags;
        })
    }

    /// Makes a node another user's. What it may do follows its user at once; what else it has stays.
    pub fn move_node(&self, id: NodeId, user: UserId) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::MoveNode)?;
        let (record, name) = (self.record(id)?, &self.user(user)?.name);
        let other = self.nodes_of_machine(record.machine).find(|other| other.id != id && other.user == Some(user));
        if let Some(other) = other {
            return Err(Refusal::conflict(format!(
                "the machine of `{}` has a node of `{name}` already, `{}`; a machine has one for each user",
                record.label, other.label
            )));
        }
        self.change_node(Command::MoveNode, id, |record| record.user = Some(user))
    }

    /// Makes exactly these the approved routes of a node, whether it offers them yet or not.
    pub fn approve_routes(&self, id: NodeId, routes: &[IpNet]) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::ApproveRoutes)?;
        limit::ROUTES.check(routes.len())?;
        let record = self.record(id)?;
        if record.is_device() {
            return Err(Refusal::invalid(format!("`{}` is a WireGuard device, and those carry nothing", record.label)));
        }
        let mut routes: Vec<IpNet> = routes.iter().map(IpNet::trunc).collect();
        routes.sort_unstable();
        routes.dedup();
        for route in &routes {
            // What an older version let in goes only with a person's word.
            if let Some(reason) = why_not_routed(route).filter(|_| !record.approved_routes.contains(route)) {
                return Err(Refusal::invalid(format!("the route {route} {reason}")));
            }
        }
        self.change_node(Command::ApproveRoutes, id, |record| record.approved_routes = routes)
    }

    fn change_node(
        &self,
        command: Command,
        id: NodeId,
        change: impl FnOnce(&mut NodeRecord),
    ) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        let record = self.record(id)?;
        let mut next = record.as_ref().clone();
        change(&mut next);
        if next == **record {
            return Ok(self.unchanged(command, Arc::clone(record)));
        }
        let change = Change::of_node(record, &next);
        next.version += 1;
        Ok(self.decided(command, Arc::new(next), vec![change]))
    }

    pub(super) fn record(&self, id: NodeId) -> Result<&Arc<NodeRecord>, Refusal> {
        let node = self.node(id).ok_or_else(|| Refusal::not_found(format!("there is no node {id}")))?;
        Ok(node.record)
    }

    fn name_is_free(&self, name: &UserName) -> Result<(), Refusal> {
        if self.directory.user_named(name).is_some() {
            return Err(Refusal::conflict(format!("there is a user `{name}` already")));
        }
        match self.users().find(|other| looks_like(name.as_str(), other.name.as_str())) {
            Some(other) => Err(Refusal::conflict(format!(
                "`{name}` looks like the user `{}`, and is another: its letters are of another script",
                other.name
            ))),
            None => Ok(()),
        }
    }
}

impl State {
    /// The nodes that a user registered.
    pub fn nodes_of_user(&self, id: UserId) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.directory.nodes().filter(move |record| record.user == Some(id))
    }

    /// The nodes that a key admitted, and that were not admitted by anything else since.
    pub fn admitted_by(&self, id: KeyId) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.directory.nodes().filter(move |record| record.admitted_by == Some(id))
    }

    /// A pre-authentication key by number.
    pub fn key(&self, id: KeyId) -> Result<&KeyRecord, Refusal> {
        self.directory.key(id).ok_or_else(|| Refusal::not_found(format!("there is no pre-authentication key {id}")))
    }
}

/// A node whose key ends now, if it has not ended already, and not by its own wish.
fn ended(record: &NodeRecord, now: Timestamp) -> NodeRecord {
    let expiry = record.ends_at().map_or(now, |old| old.min(now));
    NodeRecord { logged_out: false, ..record.ended(expiry) }
}

pub(super) fn sorted_tags(tags: &[Tag]) -> Result<Vec<Tag>, Refusal> {
    limit::TAGS.check(tags.len())?;
    let mut tags = tags.to_vec();
    tags.sort();
    tags.dedup();
    Ok(tags)
}
