//! Names of users that an older release took and that this one gives another form.
//!
//! Two users whom policies took for one (`me` and `me@`) become one, who has the lesser role of the two. Two whose names
//! only look alike (`Ada` and `ada`) stay two, and the later gets a name that no policy knows: a right may go that way,
//! and comes back by a rename; none comes that nobody gave. What a policy cannot mean as a user (`tag:web`) is renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::actor::Actor;
use super::commands::{Command, Decision};
use super::record::{Change, KeyRecord, NodeRecord, Records, UserName, UserRecord};
use super::state::State;
use crate::policy::{canonical_login, nearest_login};
use crate::types::{Timestamp, UserId};

impl State {
    /// Gives every user's name its one form, and says so in words.
    pub fn settled(&self, records: &Records, now: Timestamp) -> (Decision<()>, Vec<String>) {
        let (changes, words) = settled_names(records);
        (self.by(&Actor::COORDINATOR, now).decided(Command::SettleNames, (), changes), words)
    }

    /// What has to change so that this is what a store holds. What nodes say of themselves is nobody else's to know.
    pub fn differences(&self, records: &Records) -> Vec<Change> {
        let users = records.users.iter().filter(|user| self.directory.user(user.id) != Some(user));
        let keys = records.keys.iter().filter(|key| self.directory.key(key.id) != Some(key));
        let nodes = records.nodes.iter().filter_map(|node| match self.directory.node(node.id) {
            Some(known) => {
                let known_too = NodeRecord { status: known.status.clone(), last_seen: known.last_seen, ..node.clone() };
                (known_too != **known).then_some(known_too)
            }
            None => Some(node.clone()),
        });
        let policies = records.policies.iter().filter(|policy| self.directory.policy_version(policy.version).is_none());
        let ids: BTreeSet<_> = records.nodes.iter().map(|node| node.id).collect();
        let nodes_gone = self.directory.nodes().map(|node| node.id).filter(|id| !ids.contains(id));
        let ids: BTreeSet<_> = records.keys.iter().map(|key| key.id).collect();
        let keys_gone = self.keys().map(|key| key.id).filter(|id| !ids.contains(id));
        let ids: BTreeSet<_> = records.users.iter().map(|user| user.id).collect();
        let users_gone = self.users().map(|user| user.id).filter(|id| !ids.contains(id));
        let versions: BTreeSet<_> = records.policies.iter().map(|policy| policy.version).collect();
        let policies_gone = self.policies().map(|policy| policy.version).filter(|version| !versions.contains(version));
        let freed: BTreeMap<_, _> = records.freed.iter().copied().collect();
        let ready = self.freed().map(|(host, _)| host).filter(|host| !freed.contains_key(host));
        let mut changes = vec![Change::Counters(records.counters)];
        changes.extend(nodes_gone.map(Change::NodeGone).chain(keys_gone.map(Change::KeyGone)));
        changes.extend(users.cloned().map(Change::User).chain(keys.cloned().map(Change::Key)));
        changes.extend(nodes.map(|node| Change::Node(Arc::new(node))));
        changes.extend(users_gone.map(Change::UserGone).chain(ready.map(Change::HostReady)));
        changes.extend(freed.iter().map(|(host, at)| Change::HostFreed(*host, *at)));
        changes.extend(policies_gone.map(Change::PolicyGone));
        changes.extend(policies.cloned().map(|policy| Change::Policy(Arc::new(policy))));
        changes.extend(self.other_access(records));
        changes
    }

    /// The same of machines that wait, of who is signed in, and of what programs show.
    fn other_access(&self, records: &Records) -> Vec<Change> {
        let (waiting, access) = (self.directory.waiting(), self.directory.access());
        let codes: BTreeSet<_> = records.pending.iter().map(|pending| &pending.code).collect();
        let rejected: BTreeSet<_> = records.rejected.iter().map(|(machine, _)| machine).collect();
        let sessions: BTreeSet<_> = records.sessions.iter().map(|session| session.id).collect();
        let tokens: BTreeSet<_> = records.tokens.iter().map(|token| token.id).collect();
        let clients: BTreeSet<_> = records.clients.iter().map(|client| client.id).collect();
        let mut changes = vec![Change::Settings(records.settings.clone())];
        let gone = waiting.all().map(|pending| &pending.code).filter(|code| !codes.contains(code));
        changes.extend(gone.map(|code| Change::PendingGone(code.clone())));
        let forgiven = waiting.rejected().keys().filter(|machine| !rejected.contains(machine));
        changes.extend(forgiven.map(|machine| Change::Forgiven(*machine)));
        let gone = access.sessions().map(|session| session.id).filter(|id| !sessions.contains(id));
        changes.extend(gone.map(Change::SessionGone));
        let gone = access.tokens().map(|token| token.id).filter(|id| !tokens.contains(id));
        changes.extend(gone.map(Change::TokenGone));
        let gone = access.clients().map(|client| client.id).filter(|id| !clients.contains(id));
        changes.extend(gone.map(Change::ClientGone));
        let new = records.pending.iter().filter(|pending| waiting.get(&pending.code).is_none());
        changes.extend(new.map(|pending| Change::Pending(Box::new(pending.clone()))));
        changes.extend(records.sessions.iter().cloned().map(Change::Session));
        changes.extend(records.tokens.iter().cloned().map(Change::Token));
        changes.extend(records.clients.iter().cloned().map(Change::Client));
        changes
    }
}

/// The changes that give every user's name its one form, and what they are, in words.
fn settled_names(records: &Records) -> (Vec<Change>, Vec<String>) {
    let mut taken: BTreeSet<String> = records.users.iter().map(|user| user.name.to_string()).collect();
    // Who has the right form already keeps it, whoever came first.
    let is_right = |user: &&UserRecord| canonical_login(user.name.as_str()).as_deref() == Some(user.name.as_str());
    let mut keepers: BTreeMap<String, UserRecord> =
        records.users.iter().filter(is_right).map(|user| (user.name.to_string(), user.clone())).collect();
    let (mut gone, mut renamed, mut words) = (Vec::new(), Vec::new(), Vec::new());
    let mut moves: BTreeMap<UserId, UserId> = BTreeMap::new();
    // A spelling that policies took for the right one has the better claim to it than one that only looks alike.
    let mut others: Vec<&UserRecord> = records.users.iter().filter(|user| !is_right(user)).collect();
    others
        .sort_by_key(|user| !canonical_login(user.name.as_str()).is_some_and(|form| is_same_to_policies(user, &form)));
    for user in others {
        let old = user.name.as_str();
        let form = canonical_login(old);
        let keeper = form.as_ref().and_then(|form| keepers.get_mut(form));
        match (form.clone(), keeper) {
            (Some(form), Some(keeper)) if is_same_to_policies(user, &form) => {
                keeper.role = keeper.role.min(user.role);
                moves.insert(user.id, keeper.id);
                gone.push(Change::UserGone(user.id));
                words.push(format!(
                    "the users {old:?} and {form:?} were one to every policy and are one from here on: {form}, with the role \
                     {} and the nodes and keys of both",
                    keeper.role.name()
                ));
            }
            (Some(form), None) => {
                words.push(format!("the user {old:?} is called {form} from here on, which is the same name"));
                keepers.insert(form.clone(), UserRecord { name: UserName::kept(form.clone()), ..user.clone() });
                taken.insert(form);
            }
            _ => {
                let name = free(&form.unwrap_or_else(|| nearest_login(old)), &taken);
                words.push(format!(
                    "the user {old:?} is called {name} from here on: the old name is another user's, or means something else \
                     in a policy; `warren-coordinator user rename` gives another"
                ));
                taken.insert(name.clone());
                renamed.push(UserRecord { name: UserName::kept(name), ..user.clone() });
            }
        }
    }
    renamed.extend(keepers.into_values().filter(|keeper| records.users.iter().all(|user| user != keeper)));
    let nodes = records.nodes.iter().filter_map(|node| Some((node, *moves.get(&node.user?)?)));
    let nodes = nodes.map(|(node, user)| Change::of_node(node, &NodeRecord { user: Some(user), ..node.clone() }));
    let keys = records.keys.iter().filter_map(|key| Some((key, *moves.get(&key.user)?)));
    let keys = keys.map(|(key, user)| Change::Key(KeyRecord { user, ..key.clone() }));
    let changes = nodes.chain(keys).chain(gone).chain(renamed.into_iter().map(Change::User)).collect();
    (changes, words)
}

/// Whether policies took two spellings for one user before names had one form.
fn is_same_to_policies(user: &UserRecord, form: &str) -> bool {
    user.name.as_str().strip_suffix('@') == Some(form)
}

fn free(wanted: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2_u32..).map(|number| format!("{wanted}-{number}"));
    let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
    names.find(|name| !taken.contains(name)).unwrap_or_else(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Role;
    use crate::registry::{Actor, Config, KeyId, NewKey, State};
    use crate::types::Timestamp;

    fn settled(names: &[(&str, Role)]) -> (Vec<(u64, String, Role)>, Vec<String>) {
        let users = (1..).zip(names).map(|(id, (name, role))| {
            let name = UserName::kept((*name).to_owned());
            UserRecord { role: *role, ..UserRecord::new(UserId(id), name, Timestamp::UNIX_EPOCH) }
        });
        let records = Records { users: users.collect(), ..Records::default() };
        let (changes, words) = settled_names(&records);
        let mut state = State::restore(Config::default(), records, Timestamp::UNIX_EPOCH);
        state.apply(changes, Timestamp::UNIX_EPOCH);
        (state.users().map(|user| (user.id.0, user.name.to_string(), user.role)).collect(), words)
    }

    fn names(names: &[&str]) -> Vec<String> {
        let members: Vec<_> = names.iter().map(|name| (*name, Role::Member)).collect();
        settled(&members).0.into_iter().map(|(_, name, _)| name).collect()
    }

    #[test]
    fn right_names_stay_without_a_word() {
        assert_eq!(settled(&[("ada", Role::Owner), ("bob@example.org", Role::Member)]).1, [""; 0]);
    }

    #[test]
    fn two_users_whom_policies_took_for_one_are_one_with_the_lesser_role() {
        let (users, words) = settled(&[("me@", Role::Owner), ("me", Role::Member)]);
        assert_eq!(users, [(2, "me".to_owned(), Role::Member)]);
        assert_eq!(
            words,
            [
                r#"the users "me@" and "me" were one to every policy and are one from here on: me, with the role member and the nodes and keys of both"#
            ]
        );
        assert_eq!(names(&["me@"]), ["me"]);
    }

    #[test]
    fn two_users_who_only_look_alike_stay_two_and_the_later_loses_the_name() {
        assert_eq!(names(&["ada", "Ada"]), ["ada", "ada-2"]);
        assert_eq!(names(&["Ada", "ada"]), ["ada-2", "ada"], "who has the right form keeps it");
        assert_eq!(names(&["Me", "me@"]), ["me-2", "me"], "as does whom policies call by it");
        assert_eq!(names(&["Ada@Example.org"]), ["ada@example.org"]);
    }

    #[test]
    fn what_a_policy_cannot_mean_as_a_user_is_renamed() {
        assert_eq!(names(&["tag:web", "*", "group:ops", "tag-web"]), ["tag-web-2", "user", "group-ops", "tag-web"]);
    }

    #[test]
    fn keys_and_nodes_go_with_their_user() {
        let mut state = State::new(Config::default());
        for name in ["me@", "me"] {
            let decision = state
                .by(&Actor::COORDINATOR, Timestamp::UNIX_EPOCH)
                .create_user(UserName::kept(name.to_owned()), String::new());
            state.apply(decision.unwrap().changes, Timestamp::UNIX_EPOCH);
        }
        let new = NewKey {
            user: UserId(1),
            reusable: true,
            ephemeral: false,
            tags: Vec::new(),
            readmits: false,
            lifetime: None,
        };
        let decision = state.by(&Actor::COORDINATOR, Timestamp::UNIX_EPOCH).create_key(new, [1; 32]).unwrap();
        state.apply(decision.changes, Timestamp::UNIX_EPOCH);
        let records = Records {
            users: state.users().cloned().collect(),
            keys: state.keys().cloned().collect(),
            ..Records::default()
        };
        state.apply(settled_names(&records).0, Timestamp::UNIX_EPOCH);
        assert_eq!(state.key(KeyId(1)).unwrap().user, UserId(2));
        assert_eq!(state.find_user("me@").unwrap().id, UserId(2));
    }
}
