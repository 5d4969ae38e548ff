//! The exit node that is wanted: which peer it is, and what stands in its way.
//!
//! Whatever stands there, nothing leaves by another way meanwhile; that it does not is told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Engine, Now};
use crate::dns::{Upstream, WayOut};
use crate::netcheck::LinkKind;
use crate::netmap::Peer;
use crate::plan::{ExitNode, Firewall};
use crate::types::{IpNet, is_default_route};
use crate::wire::control::{Node, Service};
use crate::wire::local::Severity;

/// Those who leave by this host, and may ask it for names.
#[derive(Clone, Debug)]
pub struct Askers {
    /// Where they ask.
    pub at: Vec<SocketAddr>,
    /// Who they are: [`Firewall::admits_dns`].
    pub firewall: Arc<Firewall>,
}

/// Where an exit node is asked for names, if it says so.
fn names_at(node: &Node) -> Option<Upstream> {
    let services = node.hostinfo.iter().flat_map(|told| &told.services);
    let port = |proto: &str| services.clone().find(|service| service.proto == proto && service.port != 0);
    let at = |address: &IpNet| {
        let address = address.addr();
        let port = port(if address.is_ipv4() { "peerapi4" } else { "peerapi6" })?.port;
        let url = format!("http://{}/dns-query", SocketAddr::new(address, port)).into();
        Some(Upstream::Http { url, addresses: vec![address] })
    };
    node.addresses.iter().find_map(at)
}

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

    /// By whom names are asked for that others know.
    pub(super) fn way_out(&self) -> WayOut {
        if self.exit_node().is_none() {
            return WayOut::Own;
        }
        WayOut::Exit(
            self.exit_peer().filter(|peer| !peer.default_routes.is_empty()).and_then(|peer| names_at(&peer.node)),
        )
    }

    /// Whom those ask who leave by this host: at which addresses of ours, and who they are. Nobody where we carry none.
    pub fn askers(&self) -> Option<Askers> {
        let port = self.settings.resolver_port.filter(|_| self.login.was_open)?;
        let firewall = self.reconciler.desired()?.firewall.clone()?;
        let at = self.netmap.addresses().iter().map(|address| (address.addr(), port).into()).collect();
        (!firewall.served.internet.is_empty()).then_some(Askers { at, firewall })
    }

    /// What official clients look for at an exit node.
    pub(super) fn offered_services(&self) -> Vec<Service> {
        let service = |proto: &str, port| Service { proto: proto.to_owned(), port, description: String::new() };
        let offers = self.prefs.advertise_routes.iter().any(is_default_route);
        match self.settings.resolver_port.filter(|_| offers) {
            Some(port) => {
                vec![service("peerapi4", port), service("peerapi6", port), service("peerapi-dns-proxy", 1)]
            }
            None => Vec::new(),
        }
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
        let is_alone = |exit: &ExitNode| !exit.allow_lan && !self.asks_exit_node();
        let names = self.exit_node().filter(is_alone).and_then(|_| self.unreached_resolvers());
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
