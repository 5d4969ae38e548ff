//! A client that follows its map and does nothing else: the protocol's rules, written down once more.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::registry::MapMessage;
use crate::types::{NodeId, RegionId, UserId};
use crate::wire::control::{MapResponse, Node, PeerChange};

/// What a client knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    pub(super) node: Option<Node>,
    pub(super) peers: BTreeMap<NodeId, Node>,
    pub(super) profiles: BTreeMap<UserId, String>,
    filters: BTreeMap<String, Value>,
    rest: BTreeMap<&'static str, Value>,
    pub(super) messages: usize,
}

impl Client {
    /// Takes a message, as text and as the zstd frames that would go over the wire.
    pub(super) fn take(&mut self, message: &MapMessage) {
        let plain = message.plain();
        let mut frames = Vec::new();
        let compress = |text: &[u8], out: &mut Vec<u8>| {
            out.extend(zstd::bulk::compress(text, 1)?);
            std::io::Result::Ok(())
        };
        message.write_zstd(&mut frames, compress).unwrap();
        assert_eq!(zstd::stream::decode_all(frames.as_slice()).unwrap(), plain);
        self.messages += 1;
        self.apply(serde_json::from_slice(&plain).unwrap());
    }

    fn apply(&mut self, message: MapResponse) {
        if let Some(node) = message.node {
            self.node = Some(node);
        }
        if let Some(derp_map) = message.derp_map {
            self.rest.insert("derp", json!(derp_map));
        }
        if let Some(dns) = message.dns_config {
            self.rest.insert("dns", json!(dns));
        }
        if !message.domain.is_empty() {
            self.rest.insert("domain", json!(message.domain));
        }
        if let Some(ssh) = message.ssh_policy {
            self.rest.insert("ssh", serde_json::from_str(ssh.get()).unwrap());
        }
        for (name, rules) in message.packet_filters {
            match (name.as_str(), rules) {
                ("*", None) => self.filters.clear(),
                (_, None) => drop(self.filters.remove(&name)),
                (_, Some(rules)) => drop(self.filters.insert(name, json!(rules))),
            }
        }
        for profile in message.user_profiles {
            self.profiles.insert(profile.id, profile.login_name);
        }
        if !message.peers.is_empty() {
            assert!(message.peers.is_sorted_by_key(|peer| peer.id), "peers are sorted");
            self.peers = message.peers.entries.into_iter().map(|peer| (peer.id, peer)).collect();
            return;
        }
        for id in message.peers_removed {
            self.peers.remove(&id);
        }
        for peer in message.peers_changed.entries {
            self.peers.insert(peer.id, peer);
        }
        for patch in message.peers_changed_patch.entries {
            if let Some(peer) = self.peers.get_mut(&patch.node_id) {
                apply_patch(peer, patch);
            }
        }
        for (id, online) in message.online_change {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.online = Some(online);
            }
        }
    }

    /// Everything it knows, in a form to compare; of itself only what it does not itself report.
    pub(super) fn knows(&self) -> Value {
        let node = self.node.clone().map(|node| Node {
            endpoints: Vec::new(),
            home_derp: RegionId(0),
            disco_key: Default::default(),
            hostinfo: None,
            cap: Default::default(),
            online: None,
            last_seen: None,
            ..node
        });
        let mut rest = self.rest.clone();
        // Having been told no rules is to have none.
        rest.entry("ssh").or_insert_with(|| json!({"rules": []}));
        json!({"node": node, "peers": self.peers, "filters": self.filters, "rest": rest})
    }
}

fn apply_patch(peer: &mut Node, patch: PeerChange) {
    if patch.derp_region != RegionId(0) {
        peer.home_derp = patch.derp_region;
    }
    if let Some(endpoints) = patch.endpoints {
        peer.endpoints = endpoints;
    }
    if let Some(key) = patch.key {
        peer.key = key;
    }
    if let Some(key) = patch.disco_key {
        peer.disco_key = key;
    }
    peer.online = patch.online.or(peer.online);
    peer.last_seen = patch.last_seen.or(peer.last_seen);
    peer.key_expiry = patch.key_expiry.or(peer.key_expiry);
}
