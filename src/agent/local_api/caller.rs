//! Who is at the other end of a connection, and whether they may change things.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use warren_core::node::Caller;

/// Who may change things, apart from whom the preferences name.
#[derive(Clone, Debug)]
pub struct Operators {
    group: String,
}

impl Operators {
    /// Members of this group may.
    pub fn new(group: &str) -> Self {
        Self { group: group.to_owned() }
    }

    /// Looks a user up. Blocks on the user database, which may be on the network.
    pub fn look_up(&self, uid: u32, gid: u32) -> Caller {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let is_operator = uid.is_root() || uid == geteuid() || self.has_member(name.as_deref(), gid);
        Caller { name, is_operator }
    }

    fn has_member(&self, name: Option<&str>, primary: Gid) -> bool {
        let Ok(Some(group)) = Group::from_name(&self.group) else { return false };
        if group.gid == primary {
            return true;
        }
        let Some(name) = name.and_then(|name| CString::new(name).ok()) else { return false };
        getgrouplist(&name, primary).is_ok_and(|groups| groups.contains(&group.gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_our_own_user_are_operators() {
        let operators = Operators::new("no-such-group");
        assert!(operators.look_up(0, 0).is_operator);
        assert!(operators.look_up(geteuid().as_raw(), 65_534).is_operator);
    }

    #[test]
    fn another_user_is_an_operator_only_as_a_member_of_the_group() {
        let nobody = 65_534;
        let stranger = Operators::new("no-such-group").look_up(nobody, nobody);
        assert!(!stranger.is_operator);
        let group = Group::from_gid(Gid::from_raw(nobody)).unwrap().unwrap().name;
        assert!(Operators::new(&group).look_up(nobody, nobody).is_operator);
    }
}
