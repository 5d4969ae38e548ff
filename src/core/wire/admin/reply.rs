//! What a coordinator answers to an administrator.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::journal::JournalRecord;
use super::policy::{PolicyDiffView, PolicyView, WhyView};
use crate::types::{
    CapabilityVersion, Fingerprint, IpNet, MachinePublic, NodeId, NodePublic, Role, StableNodeId, Timestamp, UserId,
    UserStatus,
};

/// What comes back. `--json` prints the content as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content", rename_all = "kebab-case")]
pub enum Reply {
    Status(StatusView),
    ServerKey(ServerKeyView),
    User(UserView),
    Users(Vec<UserView>),
    NewKey(NewKeyView),
    Key(KeyView),
    Keys(Vec<KeyView>),
    Node(Box<NodeView>),
    Nodes(Vec<NodeView>),
    Device(Box<DeviceView>),
    Pending(Vec<PendingView>),
    Routes(Vec<RouteView>),
    Policy(PolicyView),
    PolicySet(PolicyView),
    Policies(Vec<PolicyView>),
    PolicyDiff(PolicyDiffView),
    Why(WhyView),
    Audit(Vec<JournalRecord>),
    /// Something is gone, and its name.
    Gone(GoneView),
}

impl Reply {
    /// What the administrator should know besides: what changed with it, what was left as it is.
    pub fn notes(&self) -> &[String] {
        match self {
            Self::NewKey(new) => &new.record.notes,
            Self::Key(key) => &key.notes,
            Self::Node(node) => &node.notes,
            Self::Device(device) => &device.node.notes,
            Self::Gone(gone) => &gone.notes,
            Self::User(user) => &user.notes,
            Self::PolicySet(set) => &set.notes,
            Self::Status(_)
            | Self::ServerKey(_)
            | Self::Users(_)
            | Self::Keys(_)
            | Self::Nodes(_)
            | Self::Pending(_)
            | Self::Routes(_)
            | Self::Policy(_)
            | Self::Policies(_)
            | Self::PolicyDiff(_)
            | Self::Why(_)
            | Self::Audit(_) => &[],
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    pub version: String,
    pub nodes: usize,
    pub fault: Option<String>,
    /// What is not as it should be, and stops nothing.
    pub warnings: Vec<String>,
    pub server_key: ServerKeyView,
}

/// The keys by which nodes know the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerKeyView {
    /// The short form, as `warren up --coordinator-key` takes it.
    pub key: Fingerprint,
    pub public_key: MachinePublic,
    /// Keys from before, under which nodes are still served.
    pub former: Vec<FormerKeyView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormerKeyView {
    pub key: Fingerprint,
    /// When a node last came under it, since the start.
    pub used: Option<Timestamp>,
    /// How many nodes are connected under it.
    pub connected: usize,
    /// How many nodes are away that came only under it.
    pub away: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserView {
    pub id: UserId,
    pub name: String,
    pub display_name: String,
    pub role: Role,
    #[serde(default)]
    pub status: UserStatus,
    pub created: Timestamp,
    pub nodes: usize,
    /// How long the keys of their nodes last, where that is not as for everybody.
    #[serde(default)]
    pub key_lifetime: Option<String>,
    /// Whom providers say they are.
    #[serde(default)]
    pub identities: Vec<IdentityView>,
    /// Whoever signs in so first becomes this user.
    #[serde(default)]
    pub invitation: Option<InvitationView>,
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Who a user is to a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    pub provider: String,
    pub issuer: String,
    pub subject: String,
    pub email: Option<String>,
    /// The provider vouches for the address.
    pub email_verified: bool,
    /// The operator's word made it this user's, and no rule of the provider.
    pub invited: bool,
}

/// Who becomes a user by signing in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationView {
    pub provider: String,
    pub email: String,
}

/// The only time the key's text leaves the coordinator.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewKeyView {
    pub key: String,
    /// The user was made for this key.
    pub user_created: bool,
    /// The server's own key, for the command that joins.
    pub coordinator_key: Option<Fingerprint>,
    #[serde(flatten)]
    pub record: KeyView,
}

impl std::fmt::Debug for NewKeyView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKeyView").field("key", &"[redacted]").field("record", &self.record).finish()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyView {
    pub id: u64,
    pub user: String,
    pub reusable: bool,
    pub ephemeral: bool,
    pub tags: Vec<String>,
    /// Whether it lets nodes in again whose node key ended after it was made.
    pub readmits: bool,
    pub created: Timestamp,
    pub expires: Option<Timestamp>,
    pub used: Option<Timestamp>,
    /// Whether it still admits a node.
    pub valid: bool,
    /// The nodes whose last admission it was.
    pub nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub id: NodeId,
    pub stable_id: StableNodeId,
    /// The label, and the first part of its DNS name.
    pub name: String,
    /// Who registered it; nobody any more for a node with tags whose user is gone.
    pub user: Option<String>,
    pub tags: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub online: bool,
    /// Two machines use its key.
    #[serde(default)]
    pub two_machines: bool,
    pub expired: bool,
    /// It ended its key itself.
    pub logged_out: bool,
    /// The number of the key that admitted it; absent for an approval by hand.
    pub admitted_by: Option<u64>,
    pub ephemeral: bool,
    pub created: Timestamp,
    pub last_seen: Option<Timestamp>,
    pub key_expiry: Option<Timestamp>,
    pub hostname: String,
    pub os: String,
    pub client_version: String,
    pub capability_version: CapabilityVersion,
    pub endpoints: Vec<SocketAddr>,
    pub offered_routes: Vec<IpNet>,
    pub approved_routes: Vec<IpNet>,
    /// The node that stands before it, where it speaks nothing but WireGuard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    pub machine_key: MachinePublic,
    pub node_key: NodePublic,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A device that was added.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceView {
    /// What to give to the device: a file as `wg-quick` reads it. [`PRIVATE_KEY`] stands where its private key belongs,
    /// which nobody here knows.
    pub config: String,
    #[serde(flatten)]
    pub node: NodeView,
}

/// Whoever made the private key puts it into the file.
impl std::fmt::Debug for DeviceView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceView").field("config", &"[redacted]").field("node", &self.node).finish()
    }
}

/// What stands in a device's file for its private key.
pub const PRIVATE_KEY: &str = "PRIVATE-KEY-OF-THE-DEVICE";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PendingView {
    pub code: String,
    pub hostname: String,
    pub os: String,
    pub requested_tags: Vec<String>,
    pub expires: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteView {
    pub prefix: IpNet,
    pub node: String,
    pub node_id: NodeId,
    /// The node offers it at this moment.
    pub offered: bool,
    pub approved: bool,
    /// Peers are sent to this node for it.
    pub primary: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoneView {
    pub gone: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
