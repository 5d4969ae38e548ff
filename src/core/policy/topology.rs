//! The network a policy is compiled against: users and nodes, and what is known of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::types::{IpNet, NodeId, Role, UserId, is_default_route};

use super::posture::Attribute;

/// Everybody and everything that a policy may speak of.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// The users, by number.
    pub users: BTreeMap<UserId, User>,
    /// The nodes, by number.
    pub nodes: BTreeMap<NodeId, Node>,
}

/// A person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// How policies name the user: an e-mail address, or a local name, which policies write `name@`.
    pub login: String,
    /// What the user may do to the network itself.
    pub role: Role,
}

impl User {
    /// The part of the login after the `@`.
    pub fn domain(&self) -> Option<&str> {
        self.login.rsplit_once('@').map(|(_, domain)| domain)
    }

    /// The part of the login before the `@`: the user's account name on machines.
    pub fn local_part(&self) -> Option<&str> {
        self.login.rsplit_once('@').map(|(local, _)| local)
    }
}

/// A machine, as far as policies are concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The host name, for messages.
    pub name: String,
    /// Who registered the node. A tagged node does not count as this user's.
    pub user: UserId,
    /// `tag:NAME` each; a node with any is owned by its tags.
    pub tags: Vec<String>,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The routes it offers to serve, exit routes included.
    pub advertised: Vec<IpNet>,
    /// The advertised routes that somebody approved by hand.
    pub approved: Vec<IpNet>,
    /// The routes for which this node was chosen among all that serve them.
    pub primary: Vec<IpNet>,
    /// What posture conditions look at: `node:os` and so on, as the node reports them.
    pub attributes: BTreeMap<String, Attribute>,
    pub reach: Reach,
}

/// How packets come to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// From each peer to the node itself.
    #[default]
    Itself,
    /// It speaks nothing but WireGuard, and that with one gateway alone, which passes on what comes and goes. Others see
    /// the gateway in its place.
    Behind(NodeId),
    /// It speaks nothing but WireGuard, and nobody passes anything on.
    Nowhere,
}

impl Node {
    /// Whether it speaks nothing but WireGuard.
    pub fn is_device(&self) -> bool {
        match self.reach {
            Reach::Itself => false,
            Reach::Behind(_) | Reach::Nowhere => true,
        }
    }

    /// Whether the node is owned by tags, not by a user.
    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }
}

/// Whether two prefixes share an address.
pub(super) fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A subnet route; the other kind are the two exit routes.
pub(super) fn is_subnet(route: &IpNet) -> bool {
    !is_default_route(route)
}
