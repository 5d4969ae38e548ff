//! Administration: one list of requests, carried over a unix socket, executed by the registry's owner.
//!
//! `POST /admin` with a [`Request`] in JSON answers 200 with a [`Reply`], or another status with a sentence.
//! Who may connect is checked for every connection: root, and the user the coordinator runs as.

mod client;
mod command;
mod elsewhere;
mod execute;
mod fetch;
mod policy;
mod policy_text;
mod socket;
mod table;

pub(crate) use client::{run, show};
pub(crate) use command::{KeyCommand, Lifetime, NodeCommand, RouteCommand, ServerKeyCommand, UserCommand};
pub(crate) use execute::execute;
pub(crate) use fetch::fetch_backup;
pub(crate) use policy::PolicyRequest;
pub(crate) use socket::{bind, serve};

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use policy::{DiffView, PolicyView, WhyView};
use serde::{Deserialize, Serialize};

use crate::server_key::{FormerKey, ServerKeys};
use warren_core::registry::WithNodes;
use warren_core::types::{
    CapabilityVersion, Fingerprint, IpNet, MachinePublic, NodeId, NodePublic, StableNodeId, Timestamp, UserId,
};

/// What an administrator asks for. Users and nodes are named by number or name, nodes by address too.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How the server is, and who it is to nodes.
    Status,
    ServerKeyRotate,
    /// Without a key, all former ones; forced, also those that nodes still need.
    ServerKeyRetire {
        key: Option<Fingerprint>,
        #[serde(default)]
        force: bool,
    },
    UserCreate {
        name: String,
        display_name: String,
    },
    UserList,
    UserShow {
        user: String,
    },
    UserRename {
        user: String,
        name: String,
    },
    UserDelete {
        user: String,
    },
    UserRole {
        user: String,
        role: String,
    },
    /// A user that does not exist is made: it can do nothing but own what this key admits.
    KeyCreate {
        user: String,
        reusable: bool,
        ephemeral: bool,
        tags: Vec<String>,
        /// It lets nodes in again whose node key ended after it was made.
        readmits: bool,
        lifetime_seconds: Option<u64>,
    },
    KeyList,
    KeyShow {
        id: u64,
    },
    KeyExpire {
        id: u64,
        nodes: WithNodes,
    },
    KeyDelete {
        id: u64,
        nodes: WithNodes,
    },
    NodeList,
    NodeShow {
        node: String,
    },
    NodePending,
    /// Without a user, the only one there is; a user that does not exist is made.
    NodeApprove {
        code: String,
        user: Option<String>,
        tags: Vec<String>,
    },
    NodeReject {
        code: String,
    },
    NodeRename {
        node: String,
        name: String,
    },
    NodeExpire {
        node: String,
    },
    /// Without a lifetime, as long as that of a node that logs in now.
    NodeExtend {
        node: String,
        lifetime: Option<Lifetime>,
    },
    NodeMove {
        node: String,
        user: String,
    },
    NodeDelete {
        node: String,
    },
    NodeTag {
        node: String,
        tags: Vec<String>,
    },
    RouteList,
    RouteApprove {
        node: String,
        prefixes: Vec<IpNet>,
    },
    RouteUnapprove {
        node: String,
        prefixes: Vec<IpNet>,
    },
    Policy {
        request: PolicyRequest,
    },
    /// Whether a packet may pass; ends are nodes or addresses.
    Why {
        from: String,
        to: String,
        protocol: Option<String>,
        port: Option<u16>,
    },
}

/// The reply, or a sentence that says why not.
pub(crate) type Outcome = Result<Reply, Refused>;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The HTTP status that fits.
    pub(crate) status: u16,
    /// The sentence.
    pub(crate) message: String,
}

/// What comes back. `--json` prints the content as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content", rename_all = "kebab-case")]
pub(crate) enum Reply {
    Status(StatusView),
    ServerKey(ServerKeyView),
    User(UserView),
    Users(Vec<UserView>),
    NewKey(NewKeyView),
    Key(KeyView),
    Keys(Vec<KeyView>),
    Node(Box<NodeView>),
    Nodes(Vec<NodeView>),
    Pending(Vec<PendingView>),
    Routes(Vec<RouteView>),
    Policy(PolicyView),
    PolicySet(PolicyView),
    Policies(Vec<PolicyView>),
    PolicyDiff(DiffView),
    Why(WhyView),
    /// Something is gone, and its name.
    Gone(GoneView),
}

impl Reply {
    /// What the administrator should know besides: what changed with it, what was left as it is.
    pub(crate) fn notes(&self) -> &[String] {
        match self {
            Self::NewKey(new) => &new.record.notes,
            Self::Key(key) => &key.notes,
            Self::Node(node) => &node.notes,
            Self::Gone(gone) => &gone.notes,
            Self::PolicySet(set) => &set.notes,
            Self::Status(_)
            | Self::ServerKey(_)
            | Self::User(_)
            | Self::Users(_)
            | Self::Keys(_)
            | Self::Nodes(_)
            | Self::Pending(_)
            | Self::Routes(_)
            | Self::Policy(_)
            | Self::Policies(_)
            | Self::PolicyDiff(_)
            | Self::Why(_) => &[],
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StatusView {
    pub(crate) version: String,
    pub(crate) nodes: usize,
    /// What is wrong.
    pub(crate) fault: Option<String>,
    /// What is not as it should be, and stops nothing.
    pub(crate) warnings: Vec<String>,
    pub(crate) server_key: ServerKeyView,
}

/// The keys by which nodes know the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerKeyView {
    /// The short form, as `warren up --coordinator-key` takes it.
    pub(crate) key: Fingerprint,
    pub(crate) public_key: MachinePublic,
    /// Keys from before, under which nodes are still served.
    pub(crate) former: Vec<FormerKeyView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FormerKeyView {
    pub(crate) key: Fingerprint,
    /// When a node last came under it, since the start.
    pub(crate) used: Option<Timestamp>,
    /// How many nodes are connected under it.
    pub(crate) connected: usize,
    /// How many nodes are away that came only under it.
    pub(crate) away: usize,
}

impl ServerKeyView {
    /// As these nodes, by machine, need the keys.
    fn of(keys: &ServerKeys, nodes: &BTreeMap<MachinePublic, String>) -> Self {
        let view = |FormerKey { key, used, connected, away }| FormerKeyView { key, used, connected, away };
        let former = keys.former(nodes).into_iter().map(view);
        Self { key: keys.fingerprint(), public_key: keys.public(), former: former.collect() }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UserView {
    pub(crate) id: UserId,
    pub(crate) name: String,
    pub(crate) display_name: String,
    /// `member`, `admin` or `owner`, as far as the policy is concerned.
    pub(crate) role: String,
    pub(crate) created: Timestamp,
    pub(crate) nodes: usize,
}

/// The only time the key's text leaves the coordinator.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct NewKeyView {
    pub(crate) key: String,
    /// The user was made for this key.
    pub(crate) user_created: bool,
    /// The server's own key, for the command that joins.
    pub(crate) coordinator_key: Option<Fingerprint>,
    #[serde(flatten)]
    pub(crate) record: KeyView,
}

impl std::fmt::Debug for NewKeyView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKeyView").field("key", &"[redacted]").field("record", &self.record).finish()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) id: u64,
    pub(crate) user: String,
    pub(crate) reusable: bool,
    pub(crate) ephemeral: bool,
    pub(crate) tags: Vec<String>,
    /// Whether it lets nodes in again whose node key ended after it was made.
    pub(crate) readmits: bool,
    pub(crate) created: Timestamp,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) used: Option<Timestamp>,
    /// Whether it still admits a node.
    pub(crate) valid: bool,
    /// The nodes whose last admission it was.
    pub(crate) nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeView {
    pub(crate) id: NodeId,
    pub(crate) stable_id: StableNodeId,
    /// The label, and the first part of its DNS name.
    pub(crate) name: String,
    /// Who registered it; nobody any more for a node with tags whose user is gone.
    pub(crate) user: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) online: bool,
    /// Two machines use its key.
    #[serde(default)]
    pub(crate) two_machines: bool,
    pub(crate) expired: bool,
    /// It ended its key itself.
    pub(crate) logged_out: bool,
    /// The number of the key that admitted it; absent for an approval by hand.
    pub(crate) admitted_by: Option<u64>,
    pub(crate) ephemeral: bool,
    pub(crate) created: Timestamp,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) key_expiry: Option<Timestamp>,
    pub(crate) hostname: String,
    pub(crate) os: String,
    pub(crate) client_version: String,
    pub(crate) capability_version: CapabilityVersion,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) offered_routes: Vec<IpNet>,
    pub(crate) approved_routes: Vec<IpNet>,
    pub(crate) machine_key: MachinePublic,
    pub(crate) node_key: NodePublic,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PendingView {
    pub(crate) code: String,
    pub(crate) hostname: String,
    pub(crate) os: String,
    pub(crate) requested_tags: Vec<String>,
    pub(crate) expires: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RouteView {
    pub(crate) prefix: IpNet,
    pub(crate) node: String,
    pub(crate) node_id: NodeId,
    /// The node offers it at this moment.
    pub(crate) offered: bool,
    pub(crate) approved: bool,
    /// Peers are sent to this node for it.
    pub(crate) primary: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GoneView {
    pub(crate) gone: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}
