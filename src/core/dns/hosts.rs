//! The names and addresses of nodes, kept in step with the map: what a change costs does not grow with the network but
//! for one look at each peer's pointer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::domain::Domain;
use crate::netmap::{Netmap, Peer};
use crate::types::{IpNet, NodeId};
use crate::wire::control::{CapMap, Node};

/// Lets names below a node's stand for the node.
const SUBDOMAINS: &str = "dns-subdomain-resolve";

/// A node that is found by its name.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) domain: Domain,
    pub(super) addresses: Box<[IpAddr]>,
    /// Whether names below its own are its too.
    pub(super) has_subdomains: bool,
    /// What it was read from; nothing for ourselves.
    peer: Option<Arc<Peer>>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    nodes: BTreeMap<NodeId, Host>,
    /// Who says that this is its name: the first one has it.
    names: BTreeMap<Domain, Vec<NodeId>>,
    addresses: BTreeMap<IpAddr, NodeId>,
}

impl Hosts {
    /// Brings the names up to date.
    pub(super) fn update(&mut self, map: &Netmap) {
        for id in self.changed(map) {
            self.remove(id);
            let Some(peer) = map.peer(id) else { continue };
            if let Some(host) = Host::read(&peer.node, &peer.addresses, Some(Arc::clone(peer))) {
                self.insert(id, host);
            }
        }
        if let Some(node) = map.node() {
            let addresses: Vec<IpNet> = map.addresses().iter().copied().collect();
            self.remove(node.id);
            if let Some(host) = Host::read(node, &addresses, None) {
                self.insert(node.id, host);
            }
        }
    }

    /// Who has this name.
    pub(super) fn named(&self, name: &str) -> Option<&Host> {
        self.nodes.get(self.names.get(name)?.first()?)
    }

    /// Whose address this is.
    pub(super) fn with_address(&self, address: IpAddr) -> Option<&Host> {
        self.nodes.get(self.addresses.get(&address)?)
    }

    /// The peers that came, went or changed.
    fn changed(&self, map: &Netmap) -> Vec<NodeId> {
        let mut changed: Vec<NodeId> = Vec::new();
        let mut known = self.nodes.iter().filter(|(_, host)| host.peer.is_some()).peekable();
        for (id, peer) in map.peer_map() {
            while let Some((gone, _)) = known.next_if(|(known, _)| *known < id) {
                changed.push(*gone);
            }
            let before = known.next_if(|(known, _)| *known == id).and_then(|(_, host)| host.peer.as_ref());
            if !before.is_some_and(|before| Arc::ptr_eq(before, peer)) {
                changed.push(*id);
            }
        }
        changed.extend(known.map(|(gone, _)| *gone));
        changed
    }

    fn insert(&mut self, id: NodeId, host: Host) {
        let claims = self.names.entry(host.domain.clone()).or_default();
        if let Err(place) = claims.binary_search(&id) {
            claims.insert(place, id);
        }
        for address in &host.addresses {
            self.addresses.insert(*address, id);
        }
        self.nodes.insert(id, host);
    }

    fn remove(&mut self, id: NodeId) {
        let Some(host) = self.nodes.remove(&id) else { return };
        if let Some(claims) = self.names.get_mut(&host.domain) {
            claims.retain(|claim| *claim != id);
            if claims.is_empty() {
                self.names.remove(&host.domain);
            }
        }
        for address in &host.addresses {
            if self.addresses.get(address) == Some(&id) {
                self.addresses.remove(address);
            }
        }
    }
}

impl Host {
    /// Nothing for a node whose name is none.
    fn read(node: &Node, addresses: &[IpNet], peer: Option<Arc<Peer>>) -> Option<Self> {
        let domain = node.name.parse().ok()?;
        let has = |map: &CapMap| map.contains_key(SUBDOMAINS);
        let addresses = addresses.iter().map(IpNet::addr).collect();
        Some(Self { domain, addresses, has_subdomains: has(&node.cap_map), peer })
    }
}
