//! What an administrator asks for. Users and nodes are named by number or name, nodes by address too.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::JournalQuery;
use crate::types::{Fingerprint, IpNet, Role, Traffic};

/// A request: of the server itself, or of the network that it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the server is, and who it is to nodes.
    Status,
    /// The keys by which nodes know the server.
    ServerKey(ServerKeyRequest),
    /// Who changed what.
    Audit(JournalQuery),
    /// Users, nodes, keys, routes and the policy.
    Network(NetworkRequest),
}

/// What concerns the keys by which nodes know the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServerKeyRequest {
    /// Go by a new key from here on.
    Rotate,
    /// Serve nobody any more under a former key.
    Retire {
        /// Which; `None` for all former ones.
        key: Option<Fingerprint>,
        /// Also those that nodes still need.
        #[serde(default)]
        force: bool,
    },
}

/// What concerns the network that the server keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetworkRequest {
    /// Users, whom nodes belong to.
    User(UserRequest),
    /// Keys that admit nodes without a person present.
    Key(KeyRequest),
    /// Nodes, and machines that wait to become one.
    Node(NodeRequest),
    /// Subnets that nodes route.
    Route(RouteRequest),
    /// Who may reach what.
    Policy(PolicyRequest),
    /// Whether a packet may pass; ends are nodes or addresses.
    Why {
        /// Where it comes from.
        from: String,
        to: String,
        /// What it carries; anything where nothing is said.
        #[serde(default)]
        traffic: Traffic,
    },
}

/// What concerns users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum UserRequest {
    /// Make one.
    Create {
        /// The login name.
        name: String,
        /// The name for people.
        display_name: String,
    },
    /// All of them.
    List,
    /// One of them.
    Show { user: String },
    /// Give one another login name.
    Rename {
        user: String,
        /// The new login name.
        name: String,
    },
    /// Let everything of one rest.
    Suspend {
        /// Name or number.
        user: String,
    },
    /// Give one back what suspension took.
    Restore {
        /// Name or number.
        user: String,
    },
    /// Say who becomes one by signing in.
    Invite {
        /// Name or number; made where there is none.
        user: String,
        /// The provider, as the server's configuration names it.
        provider: String,
        /// The address that the provider vouches for.
        email: String,
    },
    /// Say that one who signed in is welcome.
    Approve {
        /// Name or number.
        user: String,
    },
    /// Say what one may do to the network itself, and what the policy's autogroups make of them.
    Role { user: String, role: Role },
    /// Say how long the keys of nodes of one last that log in from here on.
    KeyLifetime { user: String, lifetime: Life },
    /// Delete one that has no nodes.
    Delete { user: String },
}

/// What concerns pre-authentication keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyRequest {
    /// Make one. A user that does not exist is made: it can do nothing but own what this key admits.
    Create {
        /// Whose nodes it admits.
        user: String,
        /// It admits more than one.
        reusable: bool,
        /// Its nodes are deleted some time after they go offline.
        ephemeral: bool,
        /// The tags of its nodes.
        tags: Vec<String>,
        /// It lets nodes in again whose node key ended after it was made.
        readmits: bool,
        /// How long it admits nodes; `None` without end.
        lifetime_seconds: Option<u64>,
    },
    /// All of them, without their secrets.
    List,
    /// One of them, without its secret.
    Show { id: u64 },
    /// Let one admit nobody from here on.
    Expire {
        id: u64,
        /// What becomes of the nodes that it admitted.
        nodes: WithNodes,
    },
    /// Expire one and forget it.
    Delete {
        id: u64,
        /// What becomes of the nodes that it admitted.
        nodes: WithNodes,
    },
}

/// What becomes of the nodes that a key admitted, when the key goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithNodes {
    /// They stay as they are.
    #[default]
    Stay,
    /// Their node keys end: they must log in again.
    LogOut,
    /// They are deleted.
    Delete,
}

/// What concerns nodes, and machines that wait to become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NodeRequest {
    /// All of them.
    List,
    /// One of them.
    Show {
        /// Name, number or address.
        node: String,
    },
    /// The machines that wait for approval.
    Pending,
    /// Let a machine in.
    Approve {
        /// The code that the machine shows.
        code: String,
        /// Whose it is: made where there is no such user; without a word, the only one that there is.
        user: Option<String>,
        tags: Vec<String>,
    },
    /// Make a device that speaks nothing but WireGuard a node.
    AddWireguard {
        /// One DNS label.
        name: String,
        /// Its key, as WireGuard writes it.
        key: String,
        /// Whose it is: made where there is no such user; without a word, the only one that there is.
        user: Option<String>,
        tags: Vec<String>,
        /// The node that passes on what comes and goes: name, number or address.
        via: String,
        /// Where the device finds that node, as `HOST:PORT`; without a word, as the node says itself.
        endpoint: Option<String>,
    },
    /// Turn a machine away.
    Reject {
        /// The code that the machine shows.
        code: String,
    },
    /// Give one another name.
    Rename {
        /// Name, number or address.
        node: String,
        /// The new name: one DNS label.
        name: String,
    },
    /// Make one log in again before it may go on.
    Expire {
        /// Name, number or address.
        node: String,
    },
    /// Let one go on with the key that it has.
    Extend {
        /// Name, number or address.
        node: String,
        life: Life,
    },
    /// Make one another user's.
    Move {
        /// Name, number or address.
        node: String,
        /// Name or number of the user.
        user: String,
    },
    /// Delete one.
    Delete {
        /// Name, number or address.
        node: String,
    },
    /// Give one these tags, and no others.
    Tag {
        /// Name, number or address.
        node: String,
        /// All its tags from here on.
        tags: Vec<String>,
    },
}

/// How long a node key is to be good from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// As long as that of a node that logs in now.
    Usual,
    /// This long.
    For(Duration),
    /// Without end.
    Endless,
}

/// What concerns routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RouteRequest {
    /// All that are offered or approved.
    List,
    /// Let a node route these prefixes.
    Approve {
        /// Name, number or address.
        node: String,
        prefixes: Vec<IpNet>,
    },
    /// No longer let a node route these prefixes.
    Unapprove {
        /// Name, number or address.
        node: String,
        prefixes: Vec<IpNet>,
    },
}

/// What concerns the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyRequest {
    /// The version in force, or another.
    Get {
        /// The number of the other.
        version: Option<u64>,
    },
    /// Put a text in force.
    Set {
        text: String,
        /// As the journal names them.
        by: String,
        /// Refused where another version than this is in force; 0 is none.
        if_version: Option<u64>,
    },
    /// All versions.
    Versions,
    /// Put an earlier version in force again.
    Restore {
        version: u64,
        /// As the journal names them.
        by: String,
        /// Refused where another version than this is in force.
        if_version: Option<u64>,
    },
    /// Who would gain and lose what if a text were put in force.
    Diff { text: String },
}
