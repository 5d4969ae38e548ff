//! The exit node that is wanted: which peer it is, and what stands in its way.
//!
//! Whatever stands there, nothing leaves by another way meanwhile; that it does not is told.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Engine, Now};
use crate::netcheck::LinkKind;
use crate::netmap::Peer;
use crate::plan::ExitNode;
use crate::types::IpNet;
use crate::wire::control::Node;
use crate::wire::local::Severity;

/// What stands at the end of each fault: the way back.
const WAY_BACK: &str = "`warren set --exit-node=` goes back to this machine's own way out";

impl Engine {
    /// By whom all that leaves is to leave, where that is wanted. Before this machine was ever in the network it is
    /// nobody: whoever is to sign it in may have to do so from here.
    pub(super) fn exit_node(&self) -> Option<ExitNode> {
        let is_wanted = self.prefs.want_running && self.prefs.wants_exit_node() && self.netmap.node().is_some();
        is_wanted.then(|| ExitNode {
            peer: self.exit_peer().map(|peer| peer.node.id),
            allow_lan: self.prefs.exit_node_allow_lan_access,
        })
    }

    /// The peer that was chosen, where the map has it.
    fn exit_peer(&self) -> Option<&Arc<Peer>> {
        self.netmap.peers().find(|peer| self.is_exit_node(&peer.node))
    }

    /// Whether this node was chosen.
    pub(super) fn is_exit_node(&self, node: &Node) -> bool {
        let is_its = |address: IpAddr| node.addresses.iter().any(|net| net.addr() == address);
        match self.prefs.exit_node_id.as_str() {
            "" => self.prefs.exit_node_ip.parse().is_ok_and(is_its),
            id => node.stable_id.0 == id,
        }
    }

    /// The networks of guests that live on this host itself.
    pub(super) fn guests(&self) -> impl Iterator<Item = IpNet> {
        let kinds = self.surroundings.networks.iter().flat_map(|networks| &networks.link_kinds);
        kinds.filter(|(_, kind)| **kind == LinkKind::Virtual).map(|(network, _)| *network)
    }

    /// Says why nothing leaves, or why no names are found.
    pub(super) fn tell_of_exit_node(&mut self, now: Now) {
        let fault = self.exit_node().and_then(|_| self.exit_fault());
        self.health.keep("exit-node", Severity::High, fault.is_some(), now.wall, || fault.unwrap_or_default());
        let names = self.exit_node().filter(|exit| !exit.allow_lan).and_then(|_| self.unreached_resolvers());
        self.health.keep("exit-node-names", Severity::Medium, names.is_some(), now.wall, || {
            format!(
                "this machine asks {} for names, which lies in a network that it is attached to and that is not \
                 reached beside the exit node, so it may find no names: give it a public name server, or `warren set \
                 --exit-node-allow-lan-access`",
                names.unwrap_or_default()
            )
        });
    }

    fn exit_fault(&self) -> Option<String> {
        let chosen = || match self.prefs.exit_node_id.as_str() {
            "" => &self.prefs.exit_node_ip,
            id => id,
        };
        if !self.login.was_open {
            return Some(format!(
                "this machine is not in its network, so its exit node is not reached and nothing leaves this machine; \
                 {WAY_BACK}"
            ));
        }
        let Some(peer) = self.exit_peer() else {
            return Some(format!(
                "the exit node {} is not among this machine's peers, so nothing leaves this machine; `warren status` \
                 lists them, {WAY_BACK}",
                chosen()
            ));
        };
        let name = peer.node.name.trim_end_matches('.');
        if peer.default_routes.is_empty() {
            return Some(format!(
                "{name} is no exit node (it does not offer to be one, or whoever runs the coordinator has not approved \
                 it), so nothing leaves this machine; {WAY_BACK}"
            ));
        }
        (peer.node.online == Some(false)).then(|| {
            format!("the exit node {name} is not online, so nothing leaves this machine until it is; {WAY_BACK}")
        })
    }

    /// The name servers, where all of them lie in networks beside the exit node.
    fn unreached_resolvers(&self) -> Option<String> {
        let networks = self.surroundings.networks.as_ref()?;
        let is_near = |address: &IpAddr| networks.all.iter().any(|network| network.contains(address));
        let is_guest = |address: &IpAddr| self.guests().any(|network| network.contains(address));
        let resolvers = &self.surroundings.resolvers;
        let all = !resolvers.is_empty() && resolvers.iter().all(|address| is_near(address) && !is_guest(address));
        all.then(|| resolvers.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "))
    }
}
