//! The administration commands as they are typed.

use clap::{Args, Subcommand};

use warren_core::types::{Fingerprint, IpNet, Lifetime, NodePrivate, Role};
use warren_core::wire::admin::{
    KeyRequest, Life, NetworkRequest, NodeRequest, Request, RouteRequest, ServerKeyRequest, UserRequest, WithNodes,
};

/// `user …`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user
    Create {
        /// A name without spaces
        name: String,
        /// The name for people
        #[arg(long, default_value = "")]
        display_name: String,
    },
    /// Print all users
    List,
    /// Print one user
    Show {
        /// Name or number
        user: String,
    },
    /// Give a user another name
    Rename {
        /// Name or number
        user: String,
        /// The new name
        name: String,
    },
    /// Let everything of a user rest: nodes without tags leave the network at once, keys and tokens open nothing
    Suspend {
        /// Name or number
        user: String,
    },
    /// Give a user back what suspension took: nodes come back as they were
    Restore {
        /// Name or number
        user: String,
    },
    /// Say who becomes a user: whoever first signs in by this provider with this address
    Invite {
        /// Name or number; made where there is no such user
        user: String,
        /// The provider, as the configuration names it
        #[arg(long)]
        provider: String,
        /// The address, which the provider must vouch for
        #[arg(long)]
        email: String,
    },
    /// Say that a user who signed in is welcome
    Approve {
        /// Name or number
        user: String,
    },
    /// Say what a user may do to the network, and what the policy's autogroup:admin and autogroup:owner make of them
    Role {
        /// Name or number
        user: String,
        /// The role
        role: Role,
    },
    /// Say how long the keys of a user's nodes last that log in from here on
    KeyLifetime {
        /// Name or number
        user: String,
        /// An hour at least, as `12h` or `30d`, or `never` to end [default: as for everybody]
        lifetime: Option<Lifetime>,
    },
    /// Delete a user that has no nodes
    Delete {
        /// Name or number
        user: String,
    },
}

/// `key …`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key that admits a node, and print it: it is shown this once
    Create {
        /// Whose nodes it admits; made where there is no such user
        #[arg(long)]
        user: String,
        /// It admits any number of nodes
        #[arg(long)]
        reusable: bool,
        /// Its nodes are deleted some time after they go offline
        #[arg(long)]
        ephemeral: bool,
        /// A tag for its nodes, as `tag:web`; may be repeated
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// How long it admits nodes, as `12h` or `30d`, or `never` to end
        #[arg(long, visible_alias = "expires", default_value = "1d", value_name = "TIME")]
        expiry: Lifetime,
        /// It also lets nodes in again whose node key ended after it was made: for machines that nobody can walk up to
        #[arg(long)]
        readmits: bool,
    },
    /// Print all keys, without their secrets
    List,
    /// Print one key, without its secret, and the nodes that it admitted
    Show {
        /// Its number
        id: u64,
    },
    /// Let a key admit nobody from here on
    Expire {
        /// Its number
        id: u64,
        #[command(flatten)]
        nodes: NodesOfKey,
    },
    /// Expire a key and forget it
    Delete {
        /// Its number
        id: u64,
        #[command(flatten)]
        nodes: NodesOfKey,
    },
}

/// What becomes of the nodes that a key admitted; without a word they stay as they are.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct NodesOfKey {
    /// Make the nodes that it admitted log in again
    #[arg(long, conflicts_with = "delete_nodes")]
    log_out_nodes: bool,
    /// Delete the nodes that it admitted
    #[arg(long)]
    delete_nodes: bool,
}

/// `node …`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Print all nodes
    List,
    /// Print one node
    Show {
        /// Name, number or address
        node: String,
    },
    /// Print the machines that wait for approval
    Pending,
    /// Let a machine in
    Approve {
        /// The code that the machine and its page show
        code: String,
        /// Whose it is; made where there is no such user; may be left out where there is only one
        #[arg(long)]
        user: Option<String>,
        /// A tag for it, as `tag:web`; may be repeated
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
    /// Make a device that speaks nothing but WireGuard a node, and print the file for it: see warren-wireguard-devices(7)
    AddWireguard(AddWireguard),
    /// Turn a machine that waits away; it is told so
    Reject {
        /// The code that the machine and its page show
        code: String,
    },
    /// Give a node another name
    Rename {
        /// Name, number or address
        node: String,
        /// The new name: one DNS label
        name: String,
    },
    /// Make a node log in again before it may go on
    Expire {
        /// Name, number or address
        node: String,
    },
    /// Let a node go on with the key that it has, also where the key is past its time
    Extend {
        /// Name, number or address
        node: String,
        /// How long from now, as `12h` or `30d`, or `never` to end [default: as for a node that logs in now]
        #[arg(long = "for", value_name = "TIME")]
        lifetime: Option<Lifetime>,
    },
    /// Make a node another user's
    Move {
        /// Name, number or address
        node: String,
        /// Name or number
        user: String,
    },
    /// Delete a node
    Delete {
        /// Name, number or address
        node: String,
    },
    /// Set a node's tags; none takes all away
    Tag {
        /// Name, number or address
        node: String,
        /// All its tags from here on, as `tag:web`
        tags: Vec<String>,
    },
}

/// `node add-wireguard …`
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("its_key").required(true)))]
pub(crate) struct AddWireguard {
    /// Its name: one DNS label
    name: String,
    /// Its public key, as `wg pubkey` prints it
    #[arg(long, group = "its_key")]
    key: Option<String>,
    /// Make a key for it: the private half is printed in the file, this once, and kept nowhere else
    #[arg(long, group = "its_key")]
    generate_key: bool,
    /// Whose it is; made where there is no such user; may be left out where there is only one
    #[arg(long)]
    user: Option<String>,
    /// A tag for it, as `tag:phone`; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// The node that passes on what comes and goes: name, number or address
    #[arg(long, value_name = "GATEWAY")]
    via: String,
    /// Where the device finds that node [default: as the node says itself]
    #[arg(long, value_name = "HOST:PORT")]
    gateway_endpoint: Option<String>,
}

impl AddWireguard {
    /// The request, and the private key where one is to be made.
    pub(crate) fn request(self) -> (Request, Option<NodePrivate>) {
        let Self { name, key, generate_key, user, tags, via, gateway_endpoint: endpoint } = self;
        let made = generate_key.then(|| NodePrivate::from_random(rand::random()));
        let key = made.as_ref().map(|made| made.public().base64()).or(key).unwrap_or_default();
        let request = NodeRequest::AddWireguard { name, key, user, tags, via, endpoint };
        (Request::Network(NetworkRequest::Node(request)), made)
    }
}

/// `route …`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Print all routes that are offered or approved
    List,
    /// Let a node route these prefixes
    Approve {
        /// Name, number or address
        node: String,
        /// The prefixes
        #[arg(required = true)]
        prefixes: Vec<IpNet>,
    },
    /// No longer let a node route these prefixes
    Unapprove {
        /// Name, number or address
        node: String,
        /// The prefixes
        #[arg(required = true)]
        prefixes: Vec<IpNet>,
    },
}

/// `server-key …`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ServerKeyCommand {
    /// Go by a new key; nodes are told under the present one, which is served until it is retired
    Rotate,
    /// Serve nobody any more under a former key: nodes that did not come meanwhile refuse the new one until a person there
    /// confirms it; refused while nodes need it
    Retire {
        /// Which, as `status` prints it [default: all former ones]
        key: Option<Fingerprint>,
        /// Also while nodes are connected under it, or came only under it since the change
        #[arg(long)]
        force: bool,
    },
}

impl From<ServerKeyCommand> for Request {
    fn from(command: ServerKeyCommand) -> Self {
        match command {
            ServerKeyCommand::Rotate => Self::ServerKey(ServerKeyRequest::Rotate),
            ServerKeyCommand::Retire { key, force } => Self::ServerKey(ServerKeyRequest::Retire { key, force }),
        }
    }
}

impl From<UserCommand> for Request {
    fn from(command: UserCommand) -> Self {
        Self::Network(NetworkRequest::User(match command {
            UserCommand::Create { name, display_name } => UserRequest::Create { name, display_name },
            UserCommand::List => UserRequest::List,
            UserCommand::Show { user } => UserRequest::Show { user },
            UserCommand::Rename { user, name } => UserRequest::Rename { user, name },
            UserCommand::Suspend { user } => UserRequest::Suspend { user },
            UserCommand::Restore { user } => UserRequest::Restore { user },
            UserCommand::Invite { user, provider, email } => UserRequest::Invite { user, provider, email },
            UserCommand::Approve { user } => UserRequest::Approve { user },
            UserCommand::Role { user, role } => UserRequest::Role { user, role },
            UserCommand::KeyLifetime { user, lifetime } => UserRequest::KeyLifetime { user, lifetime: life(lifetime) },
            UserCommand::Delete { user } => UserRequest::Delete { user },
        }))
    }
}

impl From<KeyCommand> for Request {
    fn from(command: KeyCommand) -> Self {
        Self::Network(NetworkRequest::Key(match command {
            KeyCommand::Create { user, reusable, ephemeral, tags, readmits, expiry } => {
                let lifetime_seconds = expiry.duration().map(|lifetime| lifetime.as_secs().max(1));
                KeyRequest::Create { user, reusable, ephemeral, tags, readmits, lifetime_seconds }
            }
            KeyCommand::List => KeyRequest::List,
            KeyCommand::Show { id } => KeyRequest::Show { id },
            KeyCommand::Expire { id, nodes } => KeyRequest::Expire { id, nodes: nodes.into() },
            KeyCommand::Delete { id, nodes } => KeyRequest::Delete { id, nodes: nodes.into() },
        }))
    }
}

fn life(lifetime: Option<Lifetime>) -> Life {
    match lifetime {
        None => Life::Usual,
        Some(Lifetime::For(lifetime)) => Life::For(lifetime),
        Some(Lifetime::Endless) => Life::Endless,
    }
}

impl From<NodesOfKey> for WithNodes {
    fn from(nodes: NodesOfKey) -> Self {
        match nodes {
            NodesOfKey { delete_nodes: true, .. } => Self::Delete,
            NodesOfKey { log_out_nodes: true, .. } => Self::LogOut,
            NodesOfKey { .. } => Self::Stay,
        }
    }
}

impl From<NodeCommand> for Request {
    fn from(command: NodeCommand) -> Self {
        Self::Network(NetworkRequest::Node(match command {
            NodeCommand::List => NodeRequest::List,
            NodeCommand::Show { node } => NodeRequest::Show { node },
            NodeCommand::Pending => NodeRequest::Pending,
            NodeCommand::Approve { code, user, tags } => NodeRequest::Approve { code, user, tags },
            NodeCommand::AddWireguard(device) => return device.request().0,
            NodeCommand::Reject { code } => NodeRequest::Reject { code },
            NodeCommand::Extend { node, lifetime } => NodeRequest::Extend { node, life: life(lifetime) },
            NodeCommand::Move { node, user } => NodeRequest::Move { node, user },
            NodeCommand::Rename { node, name } => NodeRequest::Rename { node, name },
            NodeCommand::Expire { node } => NodeRequest::Expire { node },
            NodeCommand::Delete { node } => NodeRequest::Delete { node },
            NodeCommand::Tag { node, tags } => NodeRequest::Tag { node, tags },
        }))
    }
}

impl From<RouteCommand> for Request {
    fn from(command: RouteCommand) -> Self {
        Self::Network(NetworkRequest::Route(match command {
            RouteCommand::List => RouteRequest::List,
            RouteCommand::Approve { node, prefixes } => RouteRequest::Approve { node, prefixes },
            RouteCommand::Unapprove { node, prefixes } => RouteRequest::Unapprove { node, prefixes },
        }))
    }
}
