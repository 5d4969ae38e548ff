//! How a node is shown: to its peers, to itself, and as the difference to what was shown before.

use std::net::IpAddr;
use std::sync::Arc;

use super::message::json;
use super::views::Visibility;
use crate::policy::Carried;
use crate::registry::config::Config;
use crate::registry::directory::{Grants, TAGGED};
use crate::registry::record::{NodeRecord, UserRecord};
use crate::types::{DiscoPublic, IpNet, NodeId, RegionId, UserId, is_default_route};
use crate::wire::control::{CapMap, Hostinfo, Login, Node, PeerChange, ROTATES_NODE_KEYS, User, UserProfile};

const TAGGED_NAME: &str = "tagged-devices";
const TAGGED_DISPLAY: &str = "Tagged Devices";

/// What every node may do with its own machine, whatever the policy: without these the official client refuses to
/// run its SSH server, to send and take files, and to keep the routes an app connector learnt. What comes of them
/// between machines is for the policy's rules to say. (`types/nodecap` in the official client.)
const OWN_CAPABILITIES: &[&str] =
    &["https://tailscale.com/cap/file-sharing", "https://tailscale.com/cap/ssh", "ssh-env-vars", "store-appc-routes"];

/// Everything that a node's map entry is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct NodeState {
    pub(in crate::registry) record: Arc<NodeRecord>,
    /// Whether it follows its map.
    pub(in crate::registry) online: bool,
    /// Whether its key is past its time.
    pub(in crate::registry) expired: bool,
    /// The subnets that it is the one router of.
    pub(in crate::registry) primary: Vec<IpNet>,
    /// What it has by the policy, or for want of one.
    pub(in crate::registry) grants: Arc<Grants>,
}

impl NodeState {
    /// The common case, told without looking at the record.
    fn is_same_but_online(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.record, &other.record)
            && self.expired == other.expired
            && self.primary == other.primary
            && self.grants == other.grants
    }

    /// The routes that it offers and that are approved.
    pub(super) fn served(&self) -> &[IpNet] {
        &self.grants.routes
    }

    /// Its addresses, as prefixes of one host.
    fn addresses(&self, without_ipv4: bool) -> Vec<IpNet> {
        let (v4, v6) = (IpAddr::V4(self.record.ipv4), IpAddr::V6(self.record.ipv6));
        let v4 = Some(v4).filter(|_| !without_ipv4 && !self.grants.without_ipv4);
        v4.into_iter().chain([v6]).map(IpNet::from).collect()
    }
}

/// How what peers are shown of a node changed.
#[derive(Clone, Debug)]
pub(super) enum Difference {
    /// Not at all.
    None,
    /// It came or went, and nothing else.
    Online(bool),
    /// Only in fields that a patch can carry.
    Patch(Box<PeerChange>),
    /// In more.
    Entry,
}

/// The entry that peers get who are shown the node like this.
///
/// An expired node stays listed, so that people see why it is unreachable, but with no address to route
/// to it and no way to find it, whatever a client makes of the flag.
pub(super) fn peer(state: &NodeState, visibility: &Visibility, config: &Config) -> Node {
    let record = &state.record;
    let addresses = state.addresses(visibility.without_ipv4);
    let mut node = Node {
        id: record.id,
        stable_id: record.stable_id.clone(),
        name: config.full_name(&record.label),
        user: record.owner(),
        key: record.key,
        key_expiry: record.ends_at(),
        disco_key: record.status.disco,
        addresses: addresses.clone(),
        allowed_ips: Some(Vec::new()),
        hostinfo: Some(told_to_peers(record.hostinfo())),
        created: Some(record.created),
        cap: record.status.cap,
        tags: record.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
        last_seen: record.last_seen,
        // Nobody knows of a device that follows no map.
        online: Some(state.online).filter(|_| !record.is_device()),
        is_wireguard_only: record.is_device(),
        machine_authorized: true,
        expired: state.expired,
        ..Node::default()
    };
    if !state.expired {
        let exits = || state.served().iter().filter(|route| is_default_route(route));
        let usual = || Carried { subnets: state.primary.clone(), exits: exits().copied().collect() };
        let carried = visibility.carried.clone().unwrap_or_else(usual);
        node.allowed_ips = Some(addresses.into_iter().chain(carried.exits).chain(carried.subnets.clone()).collect());
        node.primary_routes = carried.subnets;
        // Clients suggest it to their users.
        node.cap_map = exits().take(1).map(|_| ("suggest-exit-node".to_owned(), None)).collect();
        node.endpoints = record.status.endpoints.clone();
        node.home_derp = record.status.home_derp;
    }
    node
}

/// The entry that the node itself gets.
pub(super) fn myself(state: &NodeState, config: &Config) -> Node {
    let mut node = peer(state, &Visibility::default(), config);
    node.machine = state.record.machine;
    node.hostinfo = Some(state.record.hostinfo());
    let ours = OWN_CAPABILITIES.iter().map(|capability| ((*capability).to_owned(), None));
    let ours = ours.chain([(ROTATES_NODE_KEYS.to_owned(), None)]);
    let given: CapMap = serde_json::from_str(&state.grants.attributes).unwrap_or_default();
    node.cap_map = ours.chain(given).collect();
    if !state.expired {
        node.allowed_ips = Some(node.addresses.iter().chain(state.served()).copied().collect());
    }
    node
}

/// Whether the node itself must be told. What it said of itself is not repeated to it.
pub(super) fn concerns_itself(before: &NodeState, after: &NodeState, config: &Config) -> bool {
    if before.is_same_but_online(after) {
        return false;
    }
    let told = |state| {
        let node = Node { hostinfo: None, cap: Default::default(), ..without_patchable(myself(state, config)) };
        json(&Node { key_expiry: state.record.ends_at(), ..node })
    };
    told(before) != told(after)
}

/// Compares what peers were shown with what they are to be shown.
pub(super) fn difference(before: &NodeState, after: &NodeState, config: &Config) -> Difference {
    if before.is_same_but_online(after) {
        return if before.online == after.online { Difference::None } else { Difference::Online(after.online) };
    }
    let usual = Visibility::default();
    let (old, new) = (peer(before, &usual, config), peer(after, &usual, config));
    // Whatever a patch cannot express is compared as text, so that a field added to the entry is never
    // forgotten here.
    if json(&without_patchable(old.clone())) != json(&without_patchable(new.clone())) {
        return Difference::Entry;
    }
    let Some(patch) = patch(&old, &new) else { return Difference::Entry };
    let only_online = PeerChange { node_id: new.id, online: patch.online, ..PeerChange::default() };
    match patch.online {
        None if json(&patch) == json(&only_online) => Difference::None,
        Some(online) if json(&patch) == json(&only_online) => Difference::Online(online),
        _ => Difference::Patch(Box::new(patch)),
    }
}

/// The owner of a node, as clients show it.
pub(super) fn profile(id: UserId, user: Option<&UserRecord>) -> UserProfile {
    let (login_name, display_name) = names(id, user);
    UserProfile { id, login_name, display_name, ..UserProfile::default() }
}

/// The owner of a node, as the answer to a registration shows it.
pub(in crate::registry) fn login(id: UserId, user: Option<&UserRecord>) -> (User, Login) {
    let (login_name, display_name) = names(id, user);
    let created = user.map(|user| user.created);
    (
        User { id, display_name: display_name.clone(), created },
        Login { id, provider: String::new(), login_name, display_name },
    )
}

fn names(id: UserId, user: Option<&UserRecord>) -> (String, String) {
    match user {
        _ if id == TAGGED => (TAGGED_NAME.to_owned(), TAGGED_DISPLAY.to_owned()),
        Some(user) if user.display_name.is_empty() => (user.name.to_string(), user.name.to_string()),
        Some(user) => (user.name.to_string(), user.display_name.clone()),
        None => (format!("user-{id}"), format!("user-{id}")),
    }
}

/// The part of its host information that a node's peers use: names in lists, service ports, host keys.
/// The rest is many bytes, times every peer, and nobody's business.
fn told_to_peers(info: Hostinfo) -> Hostinfo {
    Hostinfo {
        os: info.os,
        hostname: info.hostname,
        shields_up: info.shields_up,
        services: info.services,
        ssh_host_keys: info.ssh_host_keys,
        app_connector: info.app_connector,
        ..Hostinfo::default()
    }
}

fn without_patchable(node: Node) -> Node {
    Node {
        endpoints: Vec::new(),
        home_derp: RegionId(0),
        disco_key: DiscoPublic::default(),
        online: None,
        last_seen: None,
        key_expiry: None,
        ..node
    }
}

/// The patch between two entries; `None` where it would have to say "none", which a patch cannot.
fn patch(old: &Node, new: &Node) -> Option<PeerChange> {
    let mut patch = PeerChange { node_id: NodeId(new.id.0), ..PeerChange::default() };
    if old.endpoints != new.endpoints {
        if new.endpoints.is_empty() {
            return None;
        }
        patch.endpoints = Some(new.endpoints.clone());
    }
    if old.home_derp != new.home_derp {
        if new.home_derp == RegionId(0) {
            return None;
        }
        patch.derp_region = new.home_derp;
    }
    if old.disco_key != new.disco_key {
        patch.disco_key = Some(new.disco_key);
    }
    if old.online != new.online {
        patch.online = new.online;
    }
    if old.last_seen != new.last_seen {
        patch.last_seen = Some(new.last_seen?);
    }
    if old.key_expiry != new.key_expiry {
        patch.key_expiry = Some(new.key_expiry?);
    }
    Some(patch)
}
