//! One capture: a policy, a network, and the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use warren_core::policy::{Node, Role, Topology, User};
use warren_core::types::{IpNet, NodeId, UserId};

#[derive(Deserialize)]
pub(crate) struct Capture {
    pub(crate) id: String,
    policy: Box<RawValue>,
    pub(crate) status: u16,
    pub(crate) error: Option<String>,
    /// The login of the network's owner.
    tailnet: String,
    topology: CapturedTopology,
    pub(crate) nodes: BTreeMap<String, Answer>,
}

#[derive(Deserialize)]
struct CapturedTopology {
    users: Vec<CapturedUser>,
    nodes: BTreeMap<String, CapturedNode>,
}

#[derive(Deserialize)]
struct CapturedUser {
    id: u64,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct CapturedNode {
    ipv4: IpAddr,
    ipv6: IpAddr,
    tags: Vec<String>,
    user: Option<String>,
    approved_routes: Option<Vec<IpNet>>,
    routable_ips: Option<Vec<IpNet>>,
}

/// What one node was told.
#[derive(Deserialize)]
pub(crate) struct Answer {
    pub(crate) packet_filter_rules: Option<Value>,
    pub(crate) ssh_rules: Option<Value>,
    #[serde(rename = "self")]
    pub(crate) own: Seen,
    pub(crate) peers: Vec<Seen>,
    pub(crate) whois: Option<BTreeMap<IpAddr, Option<Value>>>,
}

/// A node as the answer shows it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Seen {
    name: String,
    pub(crate) addresses: BTreeSet<IpNet>,
    #[serde(rename = "AllowedIPs")]
    pub(crate) allowed_ips: BTreeSet<IpNet>,
    #[serde(default)]
    pub(crate) primary_routes: BTreeSet<IpNet>,
    #[serde(default)]
    pub(crate) cap_map: BTreeMap<String, Value>,
}

impl Seen {
    /// The first label of the DNS name.
    pub(crate) fn host(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

impl Capture {
    /// The policy text; some captures hold the parsed object.
    pub(crate) fn policy(&self) -> String {
        serde_json::from_str::<String>(self.policy.get()).unwrap_or_else(|_| self.policy.get().to_owned())
    }

    /// The node numbers of the topology, by name.
    pub(crate) fn ids(&self) -> BTreeMap<&str, NodeId> {
        self.topology.nodes.keys().map(String::as_str).zip((1..).map(NodeId)).collect()
    }

    /// Users all have the administrator's role in the captured network, and one of them owns it. Which of
    /// several routers was chosen for a route is the answer's to say: it depends on who is online.
    pub(crate) fn topology(&self) -> Topology {
        let users = self.topology.users.iter().map(|user| {
            let role = if user.email == self.tailnet { Role::Owner } else { Role::Admin };
            (UserId(user.id), User { login: user.email.clone(), role })
        });
        let ids = self.ids();
        let nodes = self.topology.nodes.iter().map(|(name, node)| {
            let owner = self.topology.users.iter().find(|user| node.user.as_ref() == Some(&user.name));
            let answer = self.nodes.get(name);
            let node = Node {
                name: name.clone(),
                user: owner.map(|user| UserId(user.id)).unwrap_or_default(),
                tags: node.tags.clone(),
                addresses: vec![node.ipv4, node.ipv6],
                advertised: node.routable_ips.clone().unwrap_or_default(),
                approved: node.approved_routes.clone().unwrap_or_default(),
                primary: answer.map(|answer| answer.own.primary_routes.iter().copied().collect()).unwrap_or_default(),
                ..Node::default()
            };
            (ids[name.as_str()], node)
        });
        Topology { users: users.collect(), nodes: nodes.collect() }
    }
}
