//! A kernel that is a value: what the real one does with our steps, for tests without a kernel.

use std::collections::BTreeSet;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodePublic};

use super::ability::Ability;
use super::explain::Figures;
use super::firewall::Packet;
use super::kernel::{Change, Kernel, KernelError};
use super::observed::{Observed, ObservedDevice, ObservedFirewall, ObservedLink, ObservedPeer};
use super::step::Step;
use super::way::{Outcome, Way};
use super::wish::{EndpointWish, Peer, Route, RouteTarget, RuleAction};

/// The MTU of a new WireGuard link.
const DEFAULT_MTU: u32 = 1420;

/// The objects of ours in a kernel that does not exist. Tests may change them behind our back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelKernel {
    /// All that `observe` will say.
    pub state: Observed,
    /// Flows that peers opened and that go on, by the packet that opened each.
    pub flows: BTreeSet<Packet>,
    /// Destinations that a rule of another program sends elsewhere before ours is asked.
    pub astray: BTreeSet<IpNet>,
    /// Links made so far, which numbers the next one.
    links: u32,
}

impl ModelKernel {
    /// A kernel that holds these objects already.
    pub fn holding(state: Observed) -> Self {
        Self { state, ..Self::default() }
    }

    /// Carries out one step as the kernel would.
    pub fn carry_out(&mut self, step: &Step) -> Result<(), KernelError> {
        let refuse = |reason: &str| Err(KernelError { operation: step.to_string(), reason: reason.to_owned() });
        if let Some(reason) = self.refusal(step) {
            return refuse(reason);
        }
        match step {
            Step::CreateLink => match &self.state.link {
                Some(link) if !link.is_wireguard => return refuse("File exists"),
                Some(_) => {}
                None => self.create_link(),
            },
            Step::DeleteLink => match &self.state.link {
                Some(link) if !link.is_wireguard => return refuse("Operation not permitted"),
                _ => self.delete_link(),
            },
            Step::SetMtu(_) | Step::SetLinkUp | Step::AddAddress(_) | Step::RemoveAddress(_) => {
                let Some(link) = &mut self.state.link else { return refuse("No such device") };
                let was_ipv4 = has_ipv4(link);
                change_link(link, step);
                if was_ipv4 && !has_ipv4(link) {
                    self.drop_tunnel_routes(|route| matches!(route.destination, IpNet::V4(_)));
                }
            }
            Step::AddRoute(route) if route.target == RouteTarget::Tunnel && !self.link_is_up() => {
                return refuse("Network is down");
            }
            Step::AddRoute(route) => self.add_route(route),
            Step::RemoveRoute(route) => drop(self.state.routes.remove(route)),
            Step::AddRule(rule) if self.state.rules.contains(rule) => {}
            Step::AddRule(rule) => self.state.rules.push(*rule),
            Step::RemoveRule(rule) => {
                if let Some(index) = self.state.rules.iter().position(|present| present == rule) {
                    self.state.rules.remove(index);
                }
            }
            Step::UpdateFirewall { from, .. } if self.state.firewall != ObservedFirewall::Table(Arc::clone(from)) => {
                return refuse("No such file or directory");
            }
            Step::ReplaceFirewall(to) => self.set_firewall(ObservedFirewall::Table(Arc::clone(to)), false),
            Step::UpdateFirewall { from, to } => {
                let judged = self.state.flows_judged && !from.may_lose_rights(to);
                self.set_firewall(ObservedFirewall::Table(Arc::clone(to)), judged);
            }
            Step::CutFlows(judge) => {
                self.flows.retain(|flow| !judge.forbids(flow));
                self.state.flows_judged = matches!(self.state.firewall, ObservedFirewall::Table(_));
            }
            Step::DeleteFirewall => self.set_firewall(ObservedFirewall::Absent, false),
            Step::RemoveStrange(object) => self.state.strange.retain(|strange| strange != object),
            _ => {
                let Some(device) = &mut self.state.device else { return refuse("No such device") };
                change_device(device, step);
            }
        }
        Ok(())
    }

    /// Why a kernel that lacks what this one does refuses a step.
    fn refusal(&self, step: &Step) -> Option<&'static str> {
        let lacks = |ability| self.state.lacking.contains(&ability);
        let is_ipv6 = |net: &IpNet| matches!(net, IpNet::V6(_));
        let no_ipv6 = lacks(Ability::Ipv6).then_some("Address family not supported by protocol");
        let off = lacks(Ability::LinkIpv6).then_some("Permission denied");
        match step {
            Step::AddAddress(address) if is_ipv6(address) => no_ipv6.or(off),
            Step::AddRoute(route) if is_ipv6(&route.destination) => {
                no_ipv6.or(off.filter(|_| route.target == RouteTarget::Tunnel))
            }
            Step::AddRule(rule) if rule.ipv6 => no_ipv6,
            Step::CutFlows(_) if lacks(Ability::EndFlows) => Some("Invalid argument"),
            Step::ReplaceFirewall(to) | Step::UpdateFirewall { to, .. } => {
                let able = to.without(&self.state.lacking) == **to;
                (!able).then_some("No such file or directory")
            }
            _ => None,
        }
    }

    /// A kernel that can no longer do this: what it held by it is gone.
    pub fn lose(&mut self, ability: Ability) {
        self.state.lacking.insert(ability);
        let is_ipv4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        let has_none = self.state.lacking.contains(&Ability::Ipv6);
        if has_none || self.state.lacking.contains(&Ability::LinkIpv6) {
            self.state.link.iter_mut().for_each(|link| link.addresses.retain(is_ipv4));
            self.state
                .routes
                .retain(|route| is_ipv4(&route.destination) || (!has_none && route.target != RouteTarget::Tunnel));
            self.state.rules.retain(|rule| !rule.ipv6 || !has_none);
        }
    }

    /// All that a look finds.
    pub fn seen(&self) -> Observed {
        let packets = self.state.questions(self.astray.iter().map(IpNet::network));
        let ways = packets.into_iter().map(|(to, marked)| self.way_of(to, marked)).collect();
        Observed { ways, ..self.state.clone() }
    }

    /// Where a packet would go.
    pub fn way_of(&self, to: IpAddr, marked: bool) -> Way {
        let elsewhere = |table, rule| Outcome::Elsewhere { link: "eth0".to_owned(), table, rule };
        let around = self.state.routes.iter().filter(|route| route.destination.contains(&to));
        let route = around.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric));
        let is_asked = self.state.rules.iter().any(|rule| rule.ipv6 == to.is_ipv6() && rule.action == RuleAction::Ours);
        let outcome = match route.map(|route| route.target).filter(|_| is_asked && !marked) {
            _ if self.astray.iter().any(|net| net.contains(&to)) => elsewhere(100, Some(1_000)),
            Some(RouteTarget::Tunnel) => Outcome::Tunnel,
            Some(RouteTarget::Unreachable) => Outcome::Refused { error: "No route to host".to_owned(), rule: None },
            Some(RouteTarget::Throw) | None => elsewhere(254, None),
        };
        Way { to, marked, outcome }
    }

    /// Deletes the link as anybody might: what hangs on it goes too.
    pub fn delete_link(&mut self) {
        self.state.link = None;
        self.state.device = None;
        self.drop_tunnel_routes(|_| true);
    }

    /// Takes the link down as anybody might: its routes go.
    pub fn set_link_down(&mut self) {
        if let Some(link) = &mut self.state.link {
            link.up = false;
            self.drop_tunnel_routes(|_| true);
        }
    }

    /// Whether a peer could send us this packet: it has the source address, and the firewall, where there is
    /// one, admits it.
    pub fn admits(&self, peer: &NodePublic, packet: &Packet) -> bool {
        let has_source = self.owner(packet.source) == Some(*peer);
        has_source
            && match &self.state.firewall {
                ObservedFirewall::Table(firewall) => firewall.decide(packet).is_ok(),
                ObservedFirewall::Absent | ObservedFirewall::Altered(_) => true,
            }
    }

    /// Whose an inner address is: the longest prefix counts.
    fn owner(&self, address: IpAddr) -> Option<NodePublic> {
        let peers = self.state.device.iter().flat_map(|device| &device.peers);
        let holds = peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |prefix| (prefix, key)));
        let holds = holds.filter(|(prefix, _)| prefix.contains(&address));
        holds.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, key)| *key)
    }

    /// Has a peer open a flow with this packet, if the kernel lets it.
    pub fn open(&mut self, peer: &NodePublic, packet: Packet) -> bool {
        let admits = self.admits(peer, &packet);
        if admits {
            self.flows.insert(packet);
        }
        admits
    }

    fn set_firewall(&mut self, firewall: ObservedFirewall, flows_judged: bool) {
        self.state.firewall = firewall;
        self.state.flows_judged = flows_judged;
    }

    fn link_is_up(&self) -> bool {
        self.state.link.as_ref().is_some_and(|link| link.is_wireguard && link.up)
    }

    fn create_link(&mut self) {
        self.links += 1;
        let link = ObservedLink { index: self.links, is_wireguard: true, mtu: DEFAULT_MTU, ..ObservedLink::default() };
        self.state.link = Some(link);
        self.state.device = Some(ObservedDevice::default());
    }

    fn drop_tunnel_routes(&mut self, which: impl Fn(&Route) -> bool) {
        self.state.routes.retain(|route| route.target != RouteTarget::Tunnel || !which(route));
    }

    fn add_route(&mut self, route: &Route) {
        let place = |route: &Route| (route.destination, route.metric);
        self.state.routes.retain(|present| place(present) != place(route));
        self.state.routes.insert(route.clone());
    }
}

/// A link that loses its last IPv4 address loses its IPv4 routes with it. IPv6 is not so.
fn has_ipv4(link: &ObservedLink) -> bool {
    link.addresses.iter().any(|address| matches!(address, IpNet::V4(_)))
}

fn change_link(link: &mut ObservedLink, step: &Step) {
    match step {
        Step::SetMtu(mtu) => link.mtu = *mtu,
        Step::SetLinkUp => link.up = true,
        Step::AddAddress(address) => drop(link.addresses.insert(*address)),
        Step::RemoveAddress(address) => drop(link.addresses.remove(address)),
        _ => {}
    }
}

fn change_device(device: &mut ObservedDevice, step: &Step) {
    match step {
        Step::SetPrivateKey(key) => {
            device.peers.remove(&key.public());
            device.private_key = Some(key.clone());
        }
        Step::SetListenPort(port) => device.listen_port = *port,
        Step::SetFwmark(mark) => device.fwmark = *mark,
        Step::AddPeer { key, peer } => add_peer(device, *key, peer),
        Step::RemovePeer(key) => drop(device.peers.remove(key)),
        Step::AddAllowedIps { key, allowed_ips } if device.peers.contains_key(key) => {
            take_over(device, *key, allowed_ips.iter());
        }
        // What others gave the peer since it was looked at is left as well, so `keep` need not be all that is.
        Step::RemoveAllowedIps { key, allowed_ips, .. } => {
            if let Some(peer) = device.peers.get_mut(key) {
                peer.allowed_ips.retain(|prefix| !allowed_ips.contains(prefix));
            }
        }
        Step::SetEndpoint { key, endpoint } => {
            if let Some(peer) = device.peers.get_mut(key) {
                peer.endpoint = Some(*endpoint);
            }
        }
        Step::SetKeepalive { key, seconds } => {
            if let Some(peer) = device.peers.get_mut(key) {
                peer.keepalive = *seconds;
            }
        }
        _ => {}
    }
}

/// A device never has itself as a peer.
fn add_peer(device: &mut ObservedDevice, key: NodePublic, peer: &Peer) {
    if device.private_key.as_ref().is_some_and(|own| own.public() == key) {
        return;
    }
    let present: &mut ObservedPeer = device.peers.entry(key).or_default();
    present.keepalive = peer.keepalive;
    if let EndpointWish::Initial(endpoint) | EndpointWish::Move(endpoint) = peer.endpoint {
        present.endpoint = Some(endpoint);
    }
    take_over(device, key, peer.allowed_ips.iter());
}

/// No prefix belongs to two peers: giving it to one takes it from the other.
fn take_over<'a>(device: &mut ObservedDevice, key: NodePublic, allowed_ips: impl Iterator<Item = &'a IpNet>) {
    for prefix in allowed_ips {
        for peer in device.peers.values_mut() {
            peer.allowed_ips.remove(prefix);
        }
        if let Some(peer) = device.peers.get_mut(&key) {
            peer.allowed_ips.insert(*prefix);
        }
    }
}

impl Kernel for ModelKernel {
    fn observe(&mut self) -> impl Future<Output = Result<Observed, KernelError>> + Send {
        ready(Ok(self.seen()))
    }

    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), KernelError>> + Send {
        ready(self.carry_out(step))
    }

    /// A value counts nothing.
    fn figures(&mut self) -> impl Future<Output = Result<Figures, KernelError>> + Send {
        ready(Ok(Figures { firewall: self.state.firewall.clone(), ..Figures::default() }))
    }

    fn way(&mut self, to: IpAddr, marked: bool) -> impl Future<Output = Result<Way, KernelError>> + Send {
        ready(Ok(self.way_of(to, marked)))
    }

    /// A value never changes by itself.
    fn changed(&mut self) -> impl Future<Output = Result<Change, KernelError>> + Send {
        std::future::pending()
    }
}
