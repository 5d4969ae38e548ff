//! The map as it was told, merged message by message.
//!
//! Nothing is judged here, so that a map with deltas applied is the very map that the coordinator would
//! send whole: what is unusable today may become usable when something else leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::rejection::{Reason, Rejection};
use crate::types::{Limit, NodeId, RegionId, Timestamp, UserId, is_default_route};
use crate::wire::control::{
    DerpMap, DnsConfig, FilterRule, Hostinfo, MapResponse, Node, PeerChange, Service, Unreadable, UserProfile, limit,
};

/// Services of an exit node that others ask: names, over each family.
const ASKED: [&str; 2] = ["peerapi4", "peerapi6"];
/// Nodes that deltas may add up to. One message cannot hold more either.
const PEERS: Limit = Limit::new("peers told of", limit::PEERS);
/// What all peers together may take, near enough: ten times what 10,000 usual nodes do. Deltas without end add up
/// to no more.
const WEIGHT: Limit = Limit::new("bytes of peers", 64 << 20);
/// Users that deltas may add up to: no more than there can be nodes.
const USERS: Limit = Limit::new("users told of", limit::PEERS);
/// What all users together may take: 800 bytes for each there can be. Names are short, pictures' addresses are not.
const USER_BYTES: Limit = Limit::new("bytes of users", 16 << 20);
/// What all parts of the packet filter together may take: three times what its entries do where there are as many as
/// are taken.
const FILTER_BYTES: Limit = Limit::new("bytes of packet filter", 64 << 20);
/// What we ourselves, the names and the relays may take, each as text: a thousand subnets, ten thousand records or a
/// thousand relays, several times over.
const OWN_BYTES: Limit = Limit::new("bytes about this node", 1 << 20);
const DNS_BYTES: Limit = Limit::new("bytes of DNS settings", 8 << 20);
const DERP_BYTES: Limit = Limit::new("bytes of relay map", 4 << 20);
/// A domain name is no longer (RFC 1035).
const DOMAIN_BYTES: Limit = Limit::new("bytes of the network's name", 255);
/// What the coordinator has to say to people, and how long each line is.
const HEALTH_LINES: usize = 32;
const HEALTH_CHARS: usize = 500;
/// Parts of the packet filter; a coordinator may send one for each rule of its policy.
const FILTER_PARTS: Limit = Limit::new("parts of the packet filter", 20_000);
/// The part that an unnamed packet filter is.
const UNNAMED_PART: &str = "base";

/// Everything that the coordinator told us. Serialises as the message that would tell it all at once.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MergedMap {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<Arc<Node>>,
    #[serde(serialize_with = "values", skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) peers: BTreeMap<NodeId, Arc<Node>>,
    #[serde(rename = "UserProfiles", serialize_with = "values", skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) users: BTreeMap<UserId, UserProfile>,
    #[serde(rename = "PacketFilters")]
    pub(super) filters: BTreeMap<String, Vec<FilterRule>>,
    #[serde(rename = "DNSConfig")]
    pub(super) dns: DnsConfig,
    #[serde(rename = "DERPMap")]
    pub(super) derp: DerpMap,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) domain: String,
    pub(super) health: Vec<String>,
    /// Peers that could not be read or that there was no room for, and why.
    #[serde(skip)]
    pub(super) refused: BTreeMap<NodeId, Rejection>,
    /// Lists that there was no room for, by what they are of.
    #[serde(skip)]
    pub(super) overfull: BTreeMap<&'static str, Rejection>,
    #[serde(skip)]
    pub(super) sums: Sums,
}

/// What lists take that are told bit by bit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    peers: usize,
    users: usize,
    filters: usize,
}

/// What a message touched, so that the rest need not be judged again.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Whether the message spoke of ourselves.
    pub(super) node: bool,
    /// Whether the packet filter changed.
    pub(super) filter: bool,
    /// The peers that came, went or changed.
    pub(super) peers: BTreeSet<NodeId>,
}

impl MergedMap {
    /// Merges one message, in the order that the protocol gives.
    pub(super) fn apply(&mut self, message: MapResponse, now: Timestamp) -> Touched {
        let mut touched = Touched { node: message.node.is_some(), ..Touched::default() };
        if let Some(derp) = message.derp_map {
            self.apply_derp(derp);
        }
        if let Some(mut node) = message.node {
            keep_what_is_used(&mut node);
            if self.has_room("this node", OWN_BYTES, text_bytes(&node)) {
                self.node = Some(Arc::new(node));
            }
        }
        if !message.peers.is_empty() {
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                self.remove(id, &mut touched);
            }
            self.refused.clear();
            self.refuse(message.peers.unreadable);
            self.upsert(message.peers.entries, &mut touched);
        }
        for id in message.peers_removed {
            self.remove(id, &mut touched);
        }
        self.refuse(message.peers_changed.unreadable);
        self.upsert(message.peers_changed.entries, &mut touched);
        self.refuse(message.peers_changed_patch.unreadable);
        for change in message.peers_changed_patch.entries {
            self.modify(change.node_id, &mut touched, |node| patch(node, change));
        }
        for (id, seen) in message.peer_seen_change {
            self.modify(id, &mut touched, |node| node.last_seen = seen.then_some(now));
        }
        for (id, online) in message.online_change {
            self.modify(id, &mut touched, |node| node.online = Some(online));
        }
        for user in message.user_profiles {
            self.take_user(user);
        }
        touched.filter = self.apply_filters(message.packet_filter, message.packet_filters);
        if let Some(dns) = message.dns_config
            && self.has_room("DNS", DNS_BYTES, text_bytes(&dns))
        {
            self.dns = dns;
        }
        if !message.domain.is_empty() && self.has_room("domain", DOMAIN_BYTES, message.domain.len()) {
            self.domain = message.domain;
        }
        if let Some(health) = message.health {
            let shortened = |line: &String| line.chars().take(HEALTH_CHARS).collect();
            self.health = health.iter().take(HEALTH_LINES).map(shortened).collect();
        }
        touched
    }

    /// Gives a node of which it is not known how it is reached what was known of it under the same key.
    pub(super) fn keep_whereabouts(&self, node: &mut Node) {
        let is_unheard = node.disco_key.is_zero() && node.home_derp == RegionId::default() && node.endpoints.is_empty();
        if let Some(before) = self.peers.get(&node.id).filter(|before| is_unheard && before.key == node.key) {
            (node.disco_key, node.home_derp) = (before.disco_key, before.home_derp);
            node.endpoints.clone_from(&before.endpoints);
        }
    }

    /// Whether something fits; where it does not, what was there stays, and that is said until something fits again.
    fn has_room(&mut self, what: &'static str, limit: Limit, bytes: usize) -> bool {
        let room = limit.check(bytes);
        match room {
            Ok(()) => drop(self.overfull.remove(what)),
            Err(error) => {
                let object = format!("the map's word on {what}");
                self.overfull.insert(what, Rejection { object, reason: Reason::TooMany(error) });
            }
        }
        room.is_ok()
    }

    fn take_user(&mut self, user: UserProfile) {
        let weigh = |user: &UserProfile| size_of::<(UserId, UserProfile)>() + text_bytes(user);
        let before = self.users.get(&user.id).map_or(0, weigh);
        let bytes = self.sums.users - before + weigh(&user);
        let count = self.users.len() + usize::from(before == 0);
        if self.has_room("users", USERS, count) && self.has_room("users", USER_BYTES, bytes) {
            self.sums.users = bytes;
            self.users.insert(user.id, user);
        }
    }

    /// Region scores are merged by themselves: they may come without regions.
    fn apply_derp(&mut self, derp: DerpMap) {
        let only_scores = derp.regions.is_empty() && derp.home_params.is_some() && !derp.omit_default_regions;
        let derp = match only_scores {
            true => DerpMap { home_params: derp.home_params, ..self.derp.clone() },
            false => derp,
        };
        if self.has_room("relays", DERP_BYTES, text_bytes(&derp)) {
            self.derp = derp;
        }
    }

    fn apply_filters(
        &mut self,
        unnamed: Option<Vec<FilterRule>>,
        mut named: BTreeMap<String, Option<Vec<FilterRule>>>,
    ) -> bool {
        let changed = unnamed.is_some() || !named.is_empty();
        if let Some(None) = named.get("*") {
            named.remove("*");
            self.filters.clear();
            self.sums.filters = 0;
        }
        let unnamed = unnamed.map(|rules| (UNNAMED_PART.to_owned(), Some(rules)));
        for (part, rules) in unnamed.into_iter().chain(named) {
            // A part for which there is no room is none: its rights of before may be those that it takes away.
            let before = self.filters.remove(&part).map_or(0, |rules| filter_weight(&part, &rules));
            self.sums.filters -= before;
            let Some(rules) = rules else { continue };
            let bytes = self.sums.filters + filter_weight(&part, &rules);
            let count = self.filters.len() + 1;
            if self.has_room("the packet filter", FILTER_PARTS, count)
                && self.has_room("the packet filter", FILTER_BYTES, bytes)
            {
                self.sums.filters = bytes;
                self.filters.insert(part, rules);
            }
        }
        changed
    }

    /// What was known of a peer stands until something readable comes.
    fn refuse(&mut self, unreadable: Vec<Unreadable>) {
        for entry in unreadable {
            if PEERS.check(self.refused.len() + 1).is_ok() {
                self.refused.insert(NodeId(entry.id), Rejection::unreadable(entry));
            }
        }
    }

    fn upsert(&mut self, nodes: Vec<Node>, touched: &mut Touched) {
        for mut node in nodes {
            self.remove(node.id, touched);
            keep_what_is_used(&mut node);
            self.insert(Arc::new(node), touched);
        }
    }

    fn insert(&mut self, node: Arc<Node>, touched: &mut Touched) {
        let (id, weight) = (node.id, weight(&node));
        let room = PEERS.check(self.peers.len() + 1).and(WEIGHT.check(self.sums.peers + weight));
        if let Err(error) = room {
            if PEERS.check(self.refused.len() + 1).is_ok() {
                self.refused.insert(id, Rejection::peer(&node, Reason::TooMany(error)));
            }
            return;
        }
        self.sums.peers += weight;
        self.peers.insert(id, node);
        touched.peers.insert(id);
    }

    fn remove(&mut self, id: NodeId, touched: &mut Touched) -> Option<Arc<Node>> {
        self.refused.remove(&id);
        let node = self.peers.remove(&id)?;
        self.sums.peers = self.sums.peers.saturating_sub(weight(&node));
        touched.peers.insert(id);
        Some(node)
    }

    /// Changes a known peer; what concerns an unknown one is ignored.
    fn modify(&mut self, id: NodeId, touched: &mut Touched, change: impl FnOnce(&mut Node)) {
        if let Some(mut node) = self.remove(id, touched) {
            change(Arc::make_mut(&mut node));
            self.insert(node, touched);
        }
    }
}

/// A peer says much of its machine; this much of it is shown to people or used, and the rest not kept.
fn keep_what_is_used(node: &mut Node) {
    let is_exit = node.allowed_ips.iter().flatten().any(is_default_route);
    let asked = |service: &Service| is_exit && ASKED.contains(&service.proto.as_str());
    let bare = |service: Service| Service { description: String::new(), ..service };
    node.hostinfo = node.hostinfo.take().map(|told| Hostinfo {
        hostname: told.hostname,
        os: told.os,
        os_version: told.os_version,
        services: told.services.into_iter().filter(asked).map(bare).take(ASKED.len()).collect(),
        ..Hostinfo::default()
    });
}

/// What a node takes in memory, near enough.
fn weight(node: &Node) -> usize {
    let prefixes = node.addresses.len() + node.allowed_ips.as_ref().map_or(0, Vec::len) + node.primary_routes.len();
    let lists = size_of_val(&*node.endpoints) + prefixes * size_of::<crate::types::IpNet>();
    let hostinfo = node.hostinfo.iter().flat_map(|told| [&told.hostname, &told.os, &told.os_version]);
    let texts = node.tags.iter().chain([&node.name, &node.stable_id.0, &node.legacy_derp]).chain(hostinfo);
    let texts: usize = texts.map(|text| size_of::<String>() + text.len()).sum();
    let services = node.hostinfo.iter().flat_map(|told| &told.services);
    let services: usize = services.map(|service| size_of::<Service>() + service.proto.len()).sum();
    let arguments = |list: &Vec<Box<RawValue>>| {
        list.iter().map(|argument| size_of::<String>() + argument.get().len()).sum::<usize>()
    };
    let capability = |(name, list): (&String, &Option<Vec<Box<RawValue>>>)| {
        name.len() + 2 * size_of::<String>() + list.as_ref().map_or(0, arguments)
    };
    size_of::<Node>() + lists + texts + services + node.cap_map.iter().map(capability).sum::<usize>()
}

/// What a part of the packet filter takes in memory, near enough.
fn filter_weight(part: &str, rules: &[FilterRule]) -> usize {
    let weight = |rule: &FilterRule| {
        let sources: usize = rule.src_ips.iter().map(|source| size_of::<String>() + source.len()).sum();
        let destinations: usize = rule.dst_ports.iter().map(|to| size_of_val(to) + to.ip.len()).sum();
        let grants = if rule.cap_grant.is_empty() { 0 } else { 4 * text_bytes(&rule.cap_grant) };
        let origin = rule.origin.as_ref().map_or(0, |origin| origin.reference.len());
        size_of::<FilterRule>() + sources + destinations + grants + origin + size_of_val(&*rule.ip_proto)
    };
    size_of::<(String, Vec<FilterRule>)>() + part.len() + rules.iter().map(weight).sum::<usize>()
}

/// How long something is as text. Its memory is a small multiple of that.
fn text_bytes(value: &impl Serialize) -> usize {
    struct Counter(usize);

    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter(0);
    // What cannot be written has no place on the disk either.
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

fn patch(node: &mut Node, change: PeerChange) {
    if change.derp_region.0 != 0 {
        node.home_derp = change.derp_region;
        node.legacy_derp = format!("127.3.3.40:{}", change.derp_region);
    }
    if change.cap.0 != 0 {
        node.cap = change.cap;
    }
    if let Some(cap_map) = change.cap_map {
        node.cap_map = cap_map;
    }
    if let Some(endpoints) = change.endpoints {
        node.endpoints = endpoints;
    }
    if let Some(key) = change.key {
        node.key = key;
    }
    if let Some(disco_key) = change.disco_key {
        node.disco_key = disco_key;
    }
    if let Some(online) = change.online {
        node.online = Some(online);
    }
    if let Some(last_seen) = change.last_seen {
        node.last_seen = Some(last_seen);
    }
    if let Some(key_expiry) = change.key_expiry {
        node.key_expiry = Some(key_expiry);
    }
}

fn values<K, V: Serialize, S: serde::Serializer>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.values())
}
