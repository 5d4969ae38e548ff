//! What a node may do, and what of that remains when something happens to it. Nothing stays without being said.
//!
//! | what happens | tags | user | admitted by | routes approved by hand | key expires |
//! | --- | --- | --- | --- | --- | --- |
//! | it asks again with the node key it has (a restart) | stay | stays | stays: a key it shows is not looked at | stay | stays |
//! | it logs in with a key, for the same user | those of the key, and those it asks for that it may have; none of a key without | the key's | the key | stay, unless it changes hands | anew |
//! | it is approved, for the same user | those of the approval; none of one without | the approval's | the approval | stay, unless it changes hands | anew |
//! | it logs in or is approved for another user | another node, which gets nothing of the first; the first stays as it was | | | | |
//! | it comes back after its key ended, with a reusable key | as above, but only by a key that was made afterwards, or by one that lets nodes in again; not at all otherwise | | | | |
//! | it comes back after it logged out itself | as above, by any key that is good | | | | |
//! | it changes its own key (`warren rotate-keys`) | stay | stays | stays | stay | stays |
//! | `node tag` | exactly these; none only where there is a user | stays: the node is theirs again when it has no tags | stays | stay | never with tags; anew once the last is gone |
//! | `node add-wireguard`: there is no machine that could come back | as said | as said | nothing | none ever | as that of a node that logs in |
//! | `node move` | stay | the new one | stays | stay | stays |
//! | `node expire` | stay | stays | stays | stay, and are not served | now |
//! | `node extend` | stay | stays | stays | stay | as said; the node goes on without logging in |
//! | `key expire`, `key delete` | stay | stays | stays: the number, though the key may be gone | stay | stays, unless `--log-out-nodes` |
//! | `user delete` | stay | none for a node with tags, which goes on; a node without tags is in the way | stays; keys of the user go | stay | stays |
//! | `user suspend` | stay | stays | stays; keys of the user admit nobody meanwhile | stay; those of nodes without tags are not served | stays, and counts for nothing without tags |
//! | `user restore` | stay | stays | stays | are served again | stays, and counts again |
//! | `user key-lifetime` | stay | stays | stays | stay | stays; as said for those that log in, or are extended, from then on |
//! | `user rename`, `user role` | stay | stays; the policy judges by the new name or role at once | stays | stay | stays |
//! | `node delete`, `key … --delete-nodes` | nothing stays; a machine that still holds a good key joins as a new node | | | | |
//!
//! A node *changes hands* between a user and tags, or between two sets of tags that have none in common. It never gets
//! more by its own doing than what the key or the approval gives. `autoApprovers` of a policy judge a node as it is at
//! each moment, so the routes that they approve come and go with its owner.

use super::record::{KeyRecord, NodeRecord, Tag};
use super::refusal::Refusal;
use super::state::State;
use crate::types::{Timestamp, UserId};

/// Whether a node that had some tags is somebody else's with others.
pub(super) fn changes_hands(before: &[Tag], after: &[Tag]) -> bool {
    match (before, after) {
        ([], []) => false,
        _ => !before.iter().any(|tag| after.contains(tag)),
    }
}

/// Refuses a key that cannot let a node in again whose node key has ended: it was given out before that, for others too.
pub(super) fn readmits(key: &KeyRecord, record: &NodeRecord, now: Timestamp) -> Result<(), Refusal> {
    let ended = record.ends_at().filter(|_| record.is_expired(now) && !record.logged_out);
    match ended.filter(|ended| key.reusable && !key.readmits && key.created <= *ended) {
        None => Ok(()),
        Some(ended) => Err(Refusal::conflict(format!(
            "the key of the node `{}` ended at {}, and this pre-authentication key, number {}, was made before: ask for a \
             new one, or that an administrator runs `warren-coordinator node extend {}`",
            record.label,
            ended.strftime("%Y-%m-%d %H:%M:%SZ"),
            key.id,
            record.label
        ))),
    }
}

impl State {
    /// What of a node's rights is another than before, for its administrator.
    pub fn rights_changed(&self, before: &NodeRecord, after: &NodeRecord) -> Vec<String> {
        let name =
            |id: UserId| self.directory.user(id).map_or_else(|| format!("user {id}"), |user| user.name.to_string());
        let user = |id: Option<UserId>| id.map_or_else(|| "none".to_owned(), name);
        let expiry = |at: Option<Timestamp>| {
            at.map_or_else(|| "never".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
        };
        let admitted = |record: &NodeRecord| match record.admitted_by {
            Some(key) => format!("key {key}"),
            None => "approval by hand".to_owned(),
        };
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let compared = [
            ("tags", listed(&before.tags), listed(&after.tags)),
            ("user", user(before.user), user(after.user)),
            ("admitted by", admitted(before), admitted(after)),
            ("routes approved by hand", listed(&before.approved_routes), listed(&after.approved_routes)),
            ("key expires", expiry(before.ends_at()), expiry(after.ends_at())),
            ("ephemeral", yes(before.ephemeral), yes(after.ephemeral)),
        ];
        let changed = compared.into_iter().filter(|(_, before, after)| before != after);
        let name = &after.label;
        changed.map(|(what, before, after)| format!("{name}: {what}: {before} before, {after} from here on")).collect()
    }
}

fn listed<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}
