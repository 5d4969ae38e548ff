//! Commands: what somebody does to the network, and on whose behalf.
//!
//! A command is a method of [`Commands`], decided against the state as it is and without changing it. It looks at the
//! actor's rights first, and what comes out is a [`Decision`]: the reply, the changes that make it true, and who is
//! answerable for them.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::actor::{Actor, Area};
use super::journal::Audit;
use super::record::{Change, ServerKeyNames};
use super::refusal::Refusal;
use super::state::State;
use crate::types::Timestamp;

/// The state, for somebody who gives commands at a moment. What is to be seen of the state is seen through it.
#[derive(Clone, Copy, Debug)]
pub struct Commands<'a> {
    state: &'a State,
    actor: &'a Actor,
    pub(super) now: Timestamp,
}

/// What a command answers, and the changes to commit and apply before the answer may be given.
#[derive(Clone, Debug)]
#[must_use = "a decision changes nothing until it is committed and applied"]
pub struct Decision<R> {
    pub reply: R,
    /// All or none of these.
    pub changes: Vec<Change>,
    /// Who is answerable for them, and what they are for people.
    pub audit: Audit,
}

/// What was done, as the journal names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    CreateUser,
    RenameUser,
    SetRole,
    SetKeyLifetime,
    DeleteUser,
    SuspendUser,
    RestoreUser,
    ApproveUser,
    /// Somebody who signs in with an address becomes this user.
    InviteUser,
    SignIn,
    SignOut,
    /// Somebody who is signed in adds a machine of theirs.
    AddMachine,
    CreateKey,
    ExpireKey,
    DeleteKey,
    /// A machine joins, comes back, or asks to.
    Register,
    /// A machine ends its own key.
    LogOut,
    /// A machine that is in changes its own key.
    RotateNodeKey,
    Approve,
    /// A device that speaks nothing but WireGuard becomes a node.
    AddDevice,
    Reject,
    RenameNode,
    ExpireNode,
    ExtendNode,
    MoveNode,
    DeleteNode,
    SetTags,
    ApproveRoutes,
    SetPolicy,
    RotateServerKey,
    RetireServerKey,
    /// What is due because of the time.
    CleanUp,
    /// Names that an older release took get the form they have now.
    SettleNames,
}

impl State {
    /// Commands of an actor at this moment.
    pub const fn by<'a>(&'a self, actor: &'a Actor, now: Timestamp) -> Commands<'a> {
        Commands { state: self, actor, now }
    }
}

impl<'a> Commands<'a> {
    /// Who gives them.
    pub const fn actor(&self) -> &'a Actor {
        self.actor
    }

    /// Refuses a command that the actor has no right to.
    pub(super) fn may(&self, command: Command) -> Result<(), Refusal> {
        match command.area() {
            Some(area) if !self.actor.rights.may_change(area) => {
                Err(Refusal::forbidden(format!("you may not change {area}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The server goes by other keys from here on, which lie elsewhere: it is written down.
    pub fn change_server_keys(
        &self,
        command: Command,
        before: &ServerKeyNames,
        after: &ServerKeyNames,
    ) -> Result<Decision<()>, Refusal> {
        self.may(command)?;
        Ok(self.decided(command, (), vec![Change::ServerKeys(before.clone(), after.clone())]))
    }

    /// What was decided.
    pub(super) fn decided<R>(&self, command: Command, reply: R, changes: Vec<Change>) -> Decision<R> {
        let audit = Audit::of(self.state, self.actor, command, self.now, &changes);
        Decision { reply, changes, audit }
    }

    /// An answer that changes nothing.
    pub(super) fn unchanged<R>(&self, command: Command, reply: R) -> Decision<R> {
        self.decided(command, reply, Vec::new())
    }
}

impl Deref for Commands<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state
    }
}

impl<R> Decision<R> {
    /// The same with another reply.
    pub fn map<T>(self, reply: impl FnOnce(R) -> T) -> Decision<T> {
        Decision { reply: reply(self.reply), changes: self.changes, audit: self.audit }
    }
}

impl Command {
    /// Its name, as the journal and programs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateUser => "create-user",
            Self::RenameUser => "rename-user",
            Self::SetRole => "set-role",
            Self::SetKeyLifetime => "set-key-lifetime",
            Self::DeleteUser => "delete-user",
            Self::SuspendUser => "suspend-user",
            Self::RestoreUser => "restore-user",
            Self::ApproveUser => "approve-user",
            Self::InviteUser => "invite-user",
            Self::SignIn => "sign-in",
            Self::SignOut => "sign-out",
            Self::AddMachine => "add-machine",
            Self::CreateKey => "create-key",
            Self::ExpireKey => "expire-key",
            Self::DeleteKey => "delete-key",
            Self::Register => "register",
            Self::LogOut => "log-out",
            Self::RotateNodeKey => "rotate-node-key",
            Self::Approve => "approve",
            Self::AddDevice => "add-device",
            Self::Reject => "reject",
            Self::RenameNode => "rename-node",
            Self::ExpireNode => "expire-node",
            Self::ExtendNode => "extend-node",
            Self::MoveNode => "move-node",
            Self::DeleteNode => "delete-node",
            Self::SetTags => "set-tags",
            Self::ApproveRoutes => "approve-routes",
            Self::SetPolicy => "set-policy",
            Self::RotateServerKey => "rotate-server-key",
            Self::RetireServerKey => "retire-server-key",
            Self::CleanUp => "clean-up",
            Self::SettleNames => "settle-names",
        }
    }

    /// What one must be allowed to change for it; nothing where something else than rights is asked for.
    const fn area(self) -> Option<Area> {
        match self {
            Self::CreateUser
            | Self::RenameUser
            | Self::SetRole
            | Self::SetKeyLifetime
            | Self::DeleteUser
            | Self::SuspendUser
            | Self::RestoreUser
            | Self::ApproveUser
            | Self::InviteUser => Some(Area::Users),
            Self::CreateKey | Self::ExpireKey | Self::DeleteKey => Some(Area::Keys),
            Self::SignIn
            | Self::SignOut
            | Self::AddMachine
            | Self::Register
            | Self::LogOut
            | Self::RotateNodeKey
            | Self::CleanUp
            | Self::SettleNames => None,
            Self::Approve
            | Self::AddDevice
            | Self::Reject
            | Self::RenameNode
            | Self::ExpireNode
            | Self::ExtendNode
            | Self::MoveNode
            | Self::DeleteNode
            | Self::SetTags => Some(Area::Nodes),
            Self::ApproveRoutes => Some(Area::Routes),
            Self::SetPolicy => Some(Area::Policy),
            Self::RotateServerKey | Self::RetireServerKey => Some(Area::Server),
        }
    }
}
