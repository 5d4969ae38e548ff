//! The status: what is known of this node and of its peers, for people and programs.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::paths::home;
use super::{Answer, Engine, Now, VERSION};
use crate::path::{SESSION, Selected};
use crate::plan::ObservedPeer;
use crate::types::{IpNet, NodePublic, is_default_route};
use crate::wire::control::Node;
use crate::wire::local::{AgentStatus, BackendState, PeerPath, PeerStatus, Status, TailnetStatus};

impl Engine {
    /// The state of this node, with or without its peers, as JSON.
    pub(super) fn status_json(&self, peers: bool, now: Now) -> Answer {
        let peers = Peers(peers.then_some((self, now)));
        Answer::json(&self.status(peers, now))
    }

    /// The state of this node; the peers may be anything that is written as a map.
    pub(super) fn status<P: Default>(&self, peer: P, now: Now) -> Status<P> {
        let state = self.state(now);
        let suffix = self.netmap.node().map(suffix).unwrap_or_default().to_owned();
        Status {
            version: VERSION.to_owned(),
            tun: true,
            backend_state: state,
            have_node_key: self.identity.node_key.is_some(),
            auth_url: self.login.auth_url.clone(),
            tailscale_ips: self.netmap.addresses().iter().map(IpNet::addr).collect(),
            this: self.this(state),
            health: self.health.entries().into_iter().map(|entry| entry.text).collect(),
            magic_dns_suffix: suffix.clone(),
            current_tailnet: self.netmap.node().map(|_| TailnetStatus {
                name: self.netmap.domain().to_owned(),
                magic_dns_suffix: suffix,
                magic_dns_enabled: self.netmap.dns().proxied,
            }),
            cert_domains: self.netmap.dns().cert_domains.clone(),
            peer,
            user: self.netmap.users().map(|user| (user.id, user.clone())).collect(),
            warren: self.agent_status(now),
        }
    }

    /// Every peer with what is known of it.
    pub(super) fn peers(&self, now: Now) -> impl Iterator<Item = (NodePublic, PeerStatus)> {
        self.netmap.told_peers().map(move |node| (node.key, self.peer(node, now)))
    }

    /// How one peer is reached.
    pub(super) fn peer_path(&self, key: &NodePublic, now: Now) -> Option<PeerPath> {
        let peer = self.peer(&self.netmap.peer_by_key(key)?.node, now);
        let PeerStatus { id, node_id, public_key, cur_addr, relay, active, .. } = peer;
        Some(PeerPath { id, node_id, public_key, cur_addr, relay, active })
    }

    fn agent_status(&self, now: Now) -> AgentStatus {
        let online = self.login.online;
        let time = self.time(now);
        let map_time = if online { Some(time) } else { self.confirmed };
        AgentStatus {
            coordinator: self.prefs.control_url.clone(),
            coordinator_key: self.home.pin.fingerprint(),
            coordinator_connected: online,
            map_time,
            map_age_seconds: map_time.map(|at| time.duration_since(at).as_secs().max(0)),
            converged: self.is_settled(),
            listen_port: self.settings.port,
        }
    }

    fn this(&self, state: BackendState) -> PeerStatus {
        let mut this = self.netmap.node().map(of_node).unwrap_or_default();
        if let Some(key) = &*self.identity.node_key {
            this.public_key = key.public();
        }
        if this.host_name.is_empty() {
            this.host_name = self.hostinfo().hostname;
        }
        "linux".clone_into(&mut this.os);
        this.relay = self.netcheck.report().home.map(|home| self.region_code(home)).unwrap_or_default();
        this.addrs = self.endpoints().into_iter().map(|(endpoint, _)| endpoint).collect();
        this.online = self.login.online;
        this.in_network_map = self.netmap.node().is_some();
        this.in_engine = state == BackendState::Running;
        this
    }

    /// The way that packets take. Of a peer that is left to the kernel, that is where the kernel sends.
    fn add_path(&self, peer: &mut PeerStatus, seen: &ObservedPeer) {
        let path = self.book.path(&peer.public_key);
        match path.selected {
            Selected::Direct { endpoint, .. } => peer.cur_addr = endpoint.to_string(),
            Selected::Relay { .. } => {}
            Selected::None => {
                // The loopback stands for a relay.
                let endpoint = seen.endpoint.filter(|endpoint| !endpoint.ip().is_loopback());
                peer.cur_addr = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
            }
        }
        peer.active |= path.active;
    }

    fn peer(&self, node: &Node, now: Now) -> PeerStatus {
        let device = self.reconciler.observed().and_then(|observed| observed.device.as_ref());
        let seen = device.and_then(|device| device.peers.get(&node.key));
        let mut peer = of_node(node);
        peer.in_network_map = true;
        peer.exit_node = self.exit_node().is_some() && self.is_exit_node(node);
        peer.relay = home(node).map(|region| self.region_code(region)).unwrap_or_default();
        peer.expired |= node.key_expiry.is_some_and(|at| at <= self.time(now));
        if let Some(seen) = seen {
            add_seen(&mut peer, seen, now);
            self.add_path(&mut peer, seen);
        }
        peer
    }
}

/// The peers of a core, made while they are written: in a large network all of them at once take much memory.
#[derive(Default)]
struct Peers<'a>(Option<(&'a Engine, Now)>);

impl Serialize for Peers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flat_map(|(core, now)| core.peers(*now)))
    }
}

/// The part of a node's name that all nodes of the network share.
pub(super) fn suffix(node: &Node) -> &str {
    node.name.trim_end_matches('.').split_once('.').map_or("", |(_, suffix)| suffix)
}

/// What the map says.
fn of_node(node: &Node) -> PeerStatus {
    let hostinfo = node.hostinfo.as_ref();
    let allowed_ips = node.allowed_ips.as_ref().unwrap_or(&node.addresses);
    PeerStatus {
        id: node.stable_id.clone(),
        node_id: node.id,
        public_key: node.key,
        host_name: hostinfo.map(|hostinfo| hostinfo.hostname.clone()).unwrap_or_default(),
        dns_name: node.name.clone(),
        os: hostinfo.map(|hostinfo| hostinfo.os.clone()).unwrap_or_default(),
        user_id: node.user,
        tailscale_ips: node.addresses.iter().map(IpNet::addr).collect::<Vec<IpAddr>>(),
        allowed_ips: allowed_ips.clone(),
        tags: node.tags.clone(),
        primary_routes: node.primary_routes.clone(),
        addrs: node.endpoints.clone(),
        created: node.created,
        last_seen: node.last_seen,
        online: node.online.unwrap_or(false),
        exit_node_option: allowed_ips.iter().any(is_default_route),
        cap_map: node.cap_map.clone(),
        expired: node.expired,
        key_expiry: node.key_expiry,
        ..PeerStatus::default()
    }
}

/// What the kernel says.
fn add_seen(peer: &mut PeerStatus, seen: &ObservedPeer, now: Now) {
    // One of a later time than it is was before the clock was set back: it says nothing.
    let age = seen.last_handshake.map(|at| std::time::Duration::try_from(now.wall.duration_since(at)));
    let in_session = age.is_some_and(|age| age.is_ok_and(|age| age < SESSION));
    peer.in_engine = true;
    peer.in_magic_sock = true;
    peer.rx_bytes = seen.rx_bytes;
    peer.tx_bytes = seen.tx_bytes;
    peer.last_handshake = seen.last_handshake;
    peer.active = in_session;
}
