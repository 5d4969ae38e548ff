//! Who acts on the network, by which door they came, and what they may do.
//!
//! Every command is given on behalf of an [`Actor`]. Whoever opens a door makes it: the administration socket of an
//! account of the host, the channel of a machine of that machine, and so on. [`Commands`](super::Commands) looks at the
//! rights, and the journal keeps the name.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::people::UserRecord;
use crate::types::{MachinePublic, NodeId, Role, UserId};

/// Somebody who gives commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub who: Who,
    pub door: Door,
    /// The address that they came from, where the door knows it.
    pub from: Option<IpAddr>,
    pub rights: Rights,
}

/// Whom an actor is. Names are those of the moment: the journal outlives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The server itself: because it is time, or because it starts.
    Coordinator,
    /// An account of the host that the server runs on.
    Account { uid: u32, name: String },
    /// A person of the network.
    User { id: UserId, name: String },
    /// A program that shows a token.
    Token { id: u64, name: String },
    /// A node, for itself.
    Node { id: NodeId, name: String },
    /// A machine that is no node yet, or may be several.
    Machine(MachinePublic),
    /// Somebody who arrives, by what a provider calls them.
    Guest { name: String },
}

/// Where an actor came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// None: the server itself.
    Inside,
    /// The channel that machines have to the server.
    Machine,
    /// The administration socket.
    Socket,
    /// The pages on which people sign in.
    SignIn,
    /// The programming interface.
    Api,
    /// The administration pages.
    Console,
}

/// What rights are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    Users,
    /// Pre-authentication keys.
    Keys,
    /// Nodes, and machines that wait to become one.
    Nodes,
    Routes,
    Policy,
    /// The server itself: its keys, its state as a whole.
    Server,
    Journal,
    /// Who owns the network.
    Ownership,
}

impl Area {
    /// All of them.
    const ALL: [Self; 8] = [
        Self::Users,
        Self::Keys,
        Self::Nodes,
        Self::Routes,
        Self::Policy,
        Self::Server,
        Self::Journal,
        Self::Ownership,
    ];
}

/// What somebody may look at, and what they may change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    look: u8,
    change: u8,
}

impl Actor {
    /// The server itself, which may do everything.
    pub const COORDINATOR: Self = Self { who: Who::Coordinator, door: Door::Inside, from: None, rights: Rights::ALL };

    /// A machine at an address, which may do what its keys give it and nothing else.
    pub const fn machine(machine: MachinePublic, from: IpAddr) -> Self {
        Self { who: Who::Machine(machine), door: Door::Machine, from: Some(from), rights: Rights::NONE }
    }

    /// A person who is signed in, by whatever door, with what their role gives.
    pub fn user(user: &UserRecord, door: Door, from: IpAddr) -> Self {
        let who = Who::User { id: user.id, name: user.name.to_string() };
        Self { who, door, from: Some(from), rights: Rights::of(user.role) }
    }

    /// Somebody whom a provider names so, and who may do nothing but be let in.
    pub const fn guest(name: String, from: IpAddr) -> Self {
        Self { who: Who::Guest { name }, door: Door::SignIn, from: Some(from), rights: Rights::NONE }
    }

    /// Whether it is this user.
    pub fn is_user(&self, user: UserId) -> bool {
        matches!(self.who, Who::User { id, .. } if id == user)
    }

    /// An account of the host, through the administration socket, which is open to nobody who may not do everything.
    pub const fn account(uid: u32, name: String) -> Self {
        Self { who: Who::Account { uid, name }, door: Door::Socket, from: None, rights: Rights::ALL }
    }
}

impl Who {
    /// What sort of actor it is, in one word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Account { .. } => "account",
            Self::User { .. } => "user",
            Self::Token { .. } => "token",
            Self::Node { .. } => "node",
            Self::Machine(_) => "machine",
            Self::Guest { .. } => "guest",
        }
    }

    /// What never changes of it; empty where there is only one.
    pub fn id(&self) -> String {
        match self {
            Self::Coordinator | Self::Guest { .. } => String::new(),
            Self::Account { uid, .. } => uid.to_string(),
            Self::User { id, .. } => id.to_string(),
            Self::Token { id, .. } => id.to_string(),
            Self::Node { id, .. } => id.to_string(),
            Self::Machine(key) => key.to_string(),
        }
    }

    /// Who it is that was written down by these three.
    pub fn kept(kind: &str, id: &str, name: String) -> Option<Self> {
        Some(match kind {
            "coordinator" => Self::Coordinator,
            "account" => Self::Account { uid: id.parse().ok()?, name },
            "user" => Self::User { id: UserId(id.parse().ok()?), name },
            "token" => Self::Token { id: id.parse().ok()?, name },
            "node" => Self::Node { id: NodeId(id.parse().ok()?), name },
            "machine" => Self::Machine(id.parse().ok()?),
            "guest" => Self::Guest { name },
            _ => return None,
        })
    }

    /// What people call it; empty for a machine, which has no name that anybody gave it.
    pub fn name(&self) -> &str {
        match self {
            Self::Coordinator | Self::Machine(_) => "",
            Self::Account { name, .. }
            | Self::User { name, .. }
            | Self::Token { name, .. }
            | Self::Node { name, .. }
            | Self::Guest { name } => name,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match (self.name(), self.id()) {
            ("", id) if id.is_empty() => Ok(()),
            ("", id) => write!(f, " {id}"),
            (name, id) if id.is_empty() => write!(f, " {name}"),
            (name, id) => write!(f, " {name} ({id})"),
        }
    }
}

impl Serialize for Who {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Door {
    /// Its name, as the journal and programs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Machine => "machine",
            Self::Socket => "socket",
            Self::SignIn => "sign-in",
            Self::Api => "api",
            Self::Console => "console",
        }
    }
}

impl Area {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "users",
            Self::Keys => "pre-authentication keys",
            Self::Nodes => "nodes",
            Self::Routes => "routes",
            Self::Policy => "the policy",
            Self::Server => "the server",
            Self::Journal => "the journal",
            Self::Ownership => "who owns the network",
        })
    }
}

impl Rights {
    /// Nothing but what everybody may do for themselves.
    pub const NONE: Self = Self { look: 0, change: 0 };
    /// Everything.
    pub const ALL: Self = Self { look: u8::MAX, change: u8::MAX };

    /// What a role gives: the one table of it.
    ///
    /// | role | looks at | changes |
    /// | --- | --- | --- |
    /// | owner | everything | everything |
    /// | admin | everything | everything but who owns the network |
    /// | network-admin | everything | routes, the policy |
    /// | it-admin | everything | users, pre-authentication keys, nodes |
    /// | billing-admin | users, nodes | nothing |
    /// | auditor | everything | nothing |
    /// | member | nothing | nothing |
    pub fn of(role: Role) -> Self {
        let looks = || Area::ALL.into_iter().fold(Self::NONE, Self::and_look);
        let changes = |areas: &[Area]| areas.iter().copied().fold(looks(), Self::and_change);
        match role {
            Role::Owner => Self::ALL,
            Role::Admin => {
                let all = Area::ALL.into_iter().filter(|area| *area != Area::Ownership);
                all.fold(looks(), Self::and_change)
            }
            Role::NetworkAdmin => changes(&[Area::Routes, Area::Policy]),
            Role::ItAdmin => changes(&[Area::Users, Area::Keys, Area::Nodes]),
            Role::BillingAdmin => Self::NONE.and_look(Area::Users).and_look(Area::Nodes),
            Role::Auditor => looks(),
            Role::Member => Self::NONE,
        }
    }

    /// Whether whoever has these may do whatever somebody with the others may.
    pub const fn include(self, others: Self) -> bool {
        others.look & !self.look == 0 && others.change & !self.change == 0
    }

    /// These and to look at an area.
    #[must_use]
    pub const fn and_look(self, area: Area) -> Self {
        Self { look: self.look | area.bit(), ..self }
    }

    /// These and to change an area, and so to look at it.
    #[must_use]
    pub const fn and_change(self, area: Area) -> Self {
        Self { look: self.look | area.bit(), change: self.change | area.bit() }
    }

    /// Whether they reach so far as to see an area.
    pub const fn may_look(self, area: Area) -> bool {
        self.look & area.bit() != 0
    }

    /// Whether they reach so far as to change an area.
    pub const fn may_change(self, area: Area) -> bool {
        self.change & area.bit() != 0
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights(look {:08b}, change {:08b})", self.look, self.change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_change_may_look_and_nothing_else_comes_with_it() {
        let rights = Rights::NONE.and_change(Area::Nodes).and_look(Area::Policy);
        assert!(rights.may_change(Area::Nodes) && rights.may_look(Area::Nodes) && rights.may_look(Area::Policy));
        assert!(!rights.may_change(Area::Policy) && !rights.may_look(Area::Users));
        assert!(Rights::ALL.may_change(Area::Journal) && !Rights::NONE.may_look(Area::Users));
    }

    #[test]
    fn a_role_gives_what_the_table_says_and_the_higher_includes_the_lower() {
        for (higher, lower) in [
            (Role::Owner, Role::Admin),
            (Role::Admin, Role::NetworkAdmin),
            (Role::Admin, Role::ItAdmin),
            (Role::NetworkAdmin, Role::Auditor),
            (Role::ItAdmin, Role::Auditor),
            (Role::Auditor, Role::BillingAdmin),
            (Role::BillingAdmin, Role::Member),
        ] {
            let (higher, lower) = (Rights::of(higher), Rights::of(lower));
            assert!(higher.include(lower) && !lower.include(higher), "{higher:?} {lower:?}");
        }
        assert!(!Rights::of(Role::NetworkAdmin).include(Rights::of(Role::ItAdmin)));
        assert!(
            !Rights::of(Role::ItAdmin).may_change(Area::Policy) && !Rights::of(Role::Admin).may_change(Area::Ownership)
        );
        assert_eq!((Rights::of(Role::Member), Rights::of(Role::Owner)), (Rights::NONE, Rights::ALL));
    }

    #[test]
    fn an_actor_is_named_by_kind_name_and_what_never_changes() {
        assert_eq!(Who::Coordinator.to_string(), "coordinator");
        assert_eq!(Who::Account { uid: 0, name: "root".to_owned() }.to_string(), "account root (0)");
        assert_eq!(Who::Guest { name: "ada at corp".to_owned() }.to_string(), "guest ada at corp");
        let machine = Who::Machine(MachinePublic::from_bytes([1; 32])).to_string();
        assert!(machine.starts_with("machine mkey:0101"), "{machine}");
    }
}
