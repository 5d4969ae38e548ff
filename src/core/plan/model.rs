//! A kernel that is a value: what the real one does with our steps, for tests without a kernel.

use std::collections::BTreeSet;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodePublic};

use super::ability::Ability;
use super::desired::{DesiredEndpoint, PeerConfig, Route, RouteTarget, Rule, RuleAction};
use super::explain::Figures;
use super::firewall::Packet;
use super::kernel::{Change, Kernel, KernelError};
use super::lookup::{Egress, RouteLookup};
use super::observed::{Observed, ObservedDevice, ObservedFirewall, ObservedLink, ObservedPeer};
use super::own;
use super::step::{DeviceStep, FirewallStep, LinkStep, PeerStep, RouteStep, RuleStep, Step};

/// The MTU of a new WireGuard link.
const DEFAULT_MTU: u32 = 1420;

/// A packet that this host's own programs send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub to: IpAddr,
    /// From which address of this host, where its sender chose one.
    pub from: Option<IpAddr>,
    /// Whether it carries the mark of our own outer packets.
    pub is_ours: bool,
    /// Whether it answers what came in by another link than ours.
    pub is_answer: bool,
}

/// The objects of ours in a kernel that does not exist. Tests may change them behind our back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelKernel {
    /// All that `observe` will say.
    pub state: Observed,
    /// Flows that peers opened and that go on, by the packet that opened each.
    pub flows: BTreeSet<Packet>,
    /// Destinations that a rule of another program sends elsewhere before ours is asked.
    pub misrouted: BTreeSet<IpNet>,
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
        let result = self.refusal(step).map_or(Ok(()), Err).and_then(|()| self.try_step(step));
        result.map_err(|reason: &str| KernelError { operation: step.to_string(), reason: reason.to_owned() })
    }

    fn try_step(&mut self, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::Link(step) => return self.try_link_step(step),
            Step::Device(step) => change_device(self.device()?, step),
            Step::Peer(key, step) => change_peer(self.device()?, *key, step),
            Step::Route(step) => return self.try_route_step(step),
            Step::Rule(step) => self.change_rules(step),
            Step::Firewall(step) => return self.try_firewall_step(step),
            Step::Forwarding(step) => self.state.forwarding.carry_out(step),
            Step::RemoveStrange(object) => self.state.strange.retain(|strange| strange != object),
        }
        Ok(())
    }

    fn link(&mut self) -> Result<&mut ObservedLink, &'static str> {
        self.state.link.as_mut().ok_or("No such device")
    }

    fn device(&mut self) -> Result<&mut ObservedDevice, &'static str> {
        self.state.device.as_mut().ok_or("No such device")
    }

    fn try_link_step(&mut self, step: &LinkStep) -> Result<(), &'static str> {
        let is_foreign = self.state.link.as_ref().is_some_and(|link| !link.is_wireguard);
        match step {
            LinkStep::Create if is_foreign => return Err("File exists"),
            LinkStep::Create if self.state.link.is_some() => {}
            LinkStep::Create => self.create_link(),
            LinkStep::Delete if is_foreign => return Err("Operation not permitted"),
            LinkStep::Delete => self.delete_link(),
            LinkStep::SetMtu(mtu) => self.link()?.mtu = *mtu,
            LinkStep::SetUp => self.link()?.up = true,
            LinkStep::AddAddress(address) => drop(self.link()?.addresses.insert(*address)),
            LinkStep::RemoveAddress(address) => {
                let link = self.link()?;
                let was_ipv4 = has_ipv4(link);
                link.addresses.remove(address);
                if was_ipv4 && !has_ipv4(link) {
                    self.drop_tunnel_routes(|route| matches!(route.destination, IpNet::V4(_)));
                }
            }
        }
        Ok(())
    }

    fn try_route_step(&mut self, step: &RouteStep) -> Result<(), &'static str> {
        match step {
            RouteStep::Add(route) if route.target == RouteTarget::Tunnel && !self.link_is_up() => {
                return Err("Network is down");
            }
            RouteStep::Add(route) => self.add_route(route),
            RouteStep::Remove(route) => drop(self.state.routes.remove(route)),
        }
        Ok(())
    }

    fn change_rules(&mut self, step: &RuleStep) {
        let rules = &mut self.state.rules;
        match step {
            RuleStep::Add(rule) if rules.contains(rule) => {}
            RuleStep::Add(rule) => rules.push(*rule),
            RuleStep::Remove(rule) => {
                if let Some(index) = rules.iter().position(|present| present == rule) {
                    rules.remove(index);
                }
            }
        }
    }

    fn try_firewall_step(&mut self, step: &FirewallStep) -> Result<(), &'static str> {
        match step {
            FirewallStep::Replace(to) => self.set_firewall(ObservedFirewall::Table(Arc::clone(to)), false),
            FirewallStep::Update { from, to } => {
                if self.state.firewall != ObservedFirewall::Table(Arc::clone(from)) {
                    return Err("No such file or directory");
                }
                let judged = self.state.flows_judged && !from.may_lose_rights(to);
                self.set_firewall(ObservedFirewall::Table(Arc::clone(to)), judged);
            }
            FirewallStep::CutFlows(judge) => {
                self.flows.retain(|flow| !judge.forbids(flow));
                self.state.flows_judged = matches!(self.state.firewall, ObservedFirewall::Table(_));
            }
            FirewallStep::Delete => self.set_firewall(ObservedFirewall::Absent, false),
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
            Step::Link(LinkStep::AddAddress(address)) if is_ipv6(address) => no_ipv6.or(off),
            Step::Route(RouteStep::Add(route)) if is_ipv6(&route.destination) => {
                no_ipv6.or(off.filter(|_| route.target == RouteTarget::Tunnel))
            }
            Step::Rule(RuleStep::Add(rule)) if rule.ipv6 => no_ipv6,
            Step::Firewall(FirewallStep::CutFlows(_)) if lacks(Ability::EndFlows) => Some("Invalid argument"),
            Step::Firewall(FirewallStep::Replace(to) | FirewallStep::Update { to, .. }) => {
                let able = to.without(&self.state.lacking) == **to;
                (!able).then_some("No such file or directory")
            }
            Step::Link(_)
            | Step::Device(_)
            | Step::Peer(..)
            | Step::Route(_)
            | Step::Rule(_)
            | Step::Firewall(_)
            | Step::Forwarding(_)
            | Step::RemoveStrange(_) => None,
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
        let packets = self.state.questions(self.misrouted.iter().map(IpNet::network));
        let lookups = packets.into_iter().map(|(to, marked)| self.lookup_of(to, marked)).collect();
        Observed { lookups, ..self.state.clone() }
    }

    /// Where a packet would go whose sender chose no address.
    pub fn lookup_of(&self, to: IpAddr, marked: bool) -> RouteLookup {
        RouteLookup { to, marked, egress: self.egress(to, None, marked) }
    }

    /// Whether a packet of this host's leaves by another link than ours: it is led there, and the firewall lets it.
    pub fn leaves_beside(&self, packet: &Leaving) -> bool {
        let firewall = match &self.state.firewall {
            ObservedFirewall::Table(firewall) => Some(firewall),
            ObservedFirewall::Absent | ObservedFirewall::Altered(_) => None,
        };
        let keeps_its_way = packet.is_answer && firewall.is_some_and(|firewall| firewall.beside_exit.is_some());
        let marked = packet.is_ours || keeps_its_way;
        let is_led = matches!(self.egress(packet.to, packet.from, marked), Egress::Elsewhere { .. });
        is_led && (marked || firewall.is_none_or(|firewall| !firewall.guards(packet.to)))
    }

    /// Rules are asked in their order, and a table without an answer leaves it to the next. The host's own table has a
    /// default route.
    fn egress(&self, to: IpAddr, from: Option<IpAddr>, marked: bool) -> Egress {
        let elsewhere = |table, rule| Egress::Elsewhere { link: "eth0".to_owned(), table, rule };
        if self.misrouted.iter().any(|net| net.contains(&to)) {
            return elsewhere(100, Some(1_000));
        }
        let mut rules: Vec<&Rule> = self.state.rules.iter().filter(|rule| rule.ipv6 == to.is_ipv6()).collect();
        rules.sort_by_key(|rule| rule.priority);
        let mark = if marked { own::MARK_BYPASS } else { 0 };
        let mut next = 0;
        for rule in rules.iter().filter(|rule| rule.packets.are(mark, from)) {
            let answer = match rule.action {
                _ if rule.priority < next => None,
                RuleAction::Main => Some(elsewhere(254, None)),
                RuleAction::Ours => self.answer_of_ours(to),
                // One that leads to no rule is passed over.
                RuleAction::Beyond if rules.iter().any(|other| other.priority == own::RULE_BEYOND) => {
                    next = own::RULE_BEYOND;
                    None
                }
                RuleAction::Beyond | RuleAction::Nothing => None,
            };
            if let Some(answer) = answer {
                return answer;
            }
        }
        elsewhere(254, None)
    }

    /// What our table says of an address, if anything.
    fn answer_of_ours(&self, to: IpAddr) -> Option<Egress> {
        let around = self.state.routes.iter().filter(|route| route.destination.contains(&to));
        let route = around.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric))?;
        match route.target {
            RouteTarget::Tunnel => Some(Egress::Tunnel),
            RouteTarget::Unreachable => Some(Egress::Refused { error: "No route to host".to_owned(), rule: None }),
            RouteTarget::Throw => None,
        }
    }

    /// Deletes the link as anybody might: what hangs on it goes too.
    pub fn delete_link(&mut self) {
        self.state.link = None;
        self.state.device = None;
        self.state.forwarding.remove_link(own::LINK);
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

fn change_device(device: &mut ObservedDevice, step: &DeviceStep) {
    match step {
        DeviceStep::SetPrivateKey(key) => {
            device.peers.remove(&key.public());
            device.private_key = Some(key.clone());
        }
        DeviceStep::SetListenPort(port) => device.listen_port = *port,
        DeviceStep::SetFwmark(mark) => device.fwmark = *mark,
    }
}

fn change_peer(device: &mut ObservedDevice, key: NodePublic, step: &PeerStep) {
    match (step, device.peers.get_mut(&key)) {
        (PeerStep::Add(peer), _) => add_peer(device, key, peer),
        (_, None) => {}
        (PeerStep::AddAllowedIps(allowed_ips), Some(_)) => take_over(device, key, allowed_ips.iter()),
        // What others gave the peer since it was looked at is left as well, so `keep` need not be all that is.
        (PeerStep::RemoveAllowedIps { allowed_ips, .. }, Some(peer)) => {
            peer.allowed_ips.retain(|prefix| !allowed_ips.contains(prefix));
        }
        (PeerStep::SetEndpoint(endpoint), Some(peer)) => peer.endpoint = Some(*endpoint),
        (PeerStep::SetKeepalive(seconds), Some(peer)) => peer.keepalive = *seconds,
        (PeerStep::Remove, Some(_)) => drop(device.peers.remove(&key)),
    }
}

/// A device never has itself as a peer.
fn add_peer(device: &mut ObservedDevice, key: NodePublic, peer: &PeerConfig) {
    if device.private_key.as_ref().is_some_and(|own| own.public() == key) {
        return;
    }
    let present: &mut ObservedPeer = device.peers.entry(key).or_default();
    present.keepalive = peer.keepalive;
    if let DesiredEndpoint::Initial(endpoint) | DesiredEndpoint::Move(endpoint) = peer.endpoint {
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

    fn look_up(&mut self, to: IpAddr, marked: bool) -> impl Future<Output = Result<RouteLookup, KernelError>> + Send {
        ready(Ok(self.lookup_of(to, marked)))
    }

    /// A value never changes by itself.
    fn changed(&mut self) -> impl Future<Output = Result<Change, KernelError>> + Send {
        std::future::pending()
    }
}
