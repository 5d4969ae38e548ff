//! The steps that turn what is into what should be, safe at every prefix.
//!
//! All ordering is decided here. On the way up: strange objects go; the link and its settings; the
//! firewall, with the rights withheld of addresses that are about to change hands; the end of flows that it
//! does not admit; peers that must go; addresses; peers to come; the link up; routes; rules; last the
//! withheld rights, and what lets packets pass. On the way down the reverse. So a crash between any two steps leaves nothing open that policy forbids, and a peer that
//! stays keeps its session: it is never taken down and put back.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::types::{IpNet, NodePublic};

use super::ability::Ability;
use super::desired::{Desired, DesiredEndpoint, Device, PeerConfig, Route, RouteTarget, Rule, RuleAction};
use super::firewall::Firewall;
use super::flows::FlowJudge;
use super::handover::withheld;
use super::observed::{Observed, ObservedDevice, ObservedFirewall, ObservedLink, ObservedPeer};
use super::step::{DeviceStep, FirewallStep, LinkStep, PeerStep, Plan, RouteStep, RuleStep, Step};
use super::union::union;

/// Compares the whole wish with the whole observation. Touches only what carries our tag.
///
/// Where the link of our name is not a WireGuard link it is somebody else's: nothing can be set up, and
/// what is left of ours is taken down ([`Observed::link_is_foreign`]). What the kernel cannot do is no part of the wish.
pub fn diff(desired: &Desired, observed: &Observed) -> Plan {
    let nothing = Desired::default();
    let desired = if observed.link_is_foreign() { Cow::Borrowed(&nothing) } else { desired.within(&observed.lacking) };
    let desired = desired.as_ref();
    let mut steps: Vec<Step> = observed.strange.iter().cloned().map(Step::RemoveStrange).collect();
    let (back, set) = desired.forwarding.steps(&observed.forwarding);
    steps.extend(back.into_iter().map(Step::Forwarding));
    match &desired.device {
        Some(device) => go_up(device, desired, observed, &mut steps),
        None => go_down(desired, observed, &mut steps),
    }
    steps.extend(set.into_iter().map(Step::Forwarding));
    Plan { steps }
}

fn go_up(device: &Device, desired: &Desired, observed: &Observed, steps: &mut Vec<Step>) {
    let no_link = ObservedLink::default();
    let no_device = ObservedDevice::default();
    let link = observed.link.as_ref().unwrap_or(&no_link);
    let current = observed.device.as_ref().unwrap_or(&no_device);
    let peers = PeerChanges::between(&device.peers, &current.peers);
    let (close, open) = firewall_steps(desired, observed, &peers);

    if observed.link.is_none() {
        steps.push(Step::Link(LinkStep::Create));
    }
    settings(device, link, current, steps);
    let cut = flows_step(device, desired, observed, close.as_ref());
    steps.extend(close);
    steps.extend(cut);
    peers.take_down(steps);
    // The new ones first: with the last IPv4 address of a link the kernel drops its IPv4 routes.
    steps.extend(device.addresses.difference(&link.addresses).copied().map(LinkStep::AddAddress).map(Step::Link));
    steps.extend(link.addresses.difference(&device.addresses).copied().map(LinkStep::RemoveAddress).map(Step::Link));
    peers.set_up(steps);
    if !link.up {
        steps.push(Step::Link(LinkStep::SetUp));
    }
    add_routes(&desired.routes, &observed.routes, steps);
    remove_routes(&desired.routes, &observed.routes, steps);
    add_rules(&desired.rules, &observed.rules, steps);
    remove_rules(&desired.rules, &observed.rules, steps);
    steps.extend(open);
}

/// What is left of a wish without a link lets nothing leave, so the firewall that says so comes first.
fn go_down(desired: &Desired, observed: &Observed, steps: &mut Vec<Step>) {
    let (close, open) = firewall_steps(desired, observed, &PeerChanges::default());
    steps.extend(close);
    remove_rules(&desired.rules, &observed.rules, steps);
    remove_routes(&desired.routes, &observed.routes, steps);
    if observed.link.as_ref().is_some_and(|link| link.is_wireguard) {
        steps.push(Step::Link(LinkStep::Delete));
    }
    add_routes(&desired.routes, &observed.routes, steps);
    add_rules(&desired.rules, &observed.rules, steps);
    steps.extend(open);
}

fn settings(device: &Device, link: &ObservedLink, current: &ObservedDevice, steps: &mut Vec<Step>) {
    if current.fwmark != device.fwmark {
        steps.push(Step::Device(DeviceStep::SetFwmark(device.fwmark)));
    }
    if current.listen_port != device.listen_port {
        steps.push(Step::Device(DeviceStep::SetListenPort(device.listen_port)));
    }
    if current.private_key.as_ref() != Some(&device.private_key) {
        steps.push(Step::Device(DeviceStep::SetPrivateKey(device.private_key.clone())));
    }
    if link.mtu != device.mtu {
        steps.push(Step::Link(LinkStep::SetMtu(device.mtu)));
    }
}

/// What to do to the firewall before the peers change, and what after.
fn firewall_steps(desired: &Desired, observed: &Observed, peers: &PeerChanges<'_>) -> (Option<Step>, Option<Step>) {
    let update = |from: &Arc<Firewall>, to: &Arc<Firewall>| {
        (from != to).then(|| Step::Firewall(FirewallStep::Update { from: Arc::clone(from), to: Arc::clone(to) }))
    };
    match (&observed.firewall, &desired.firewall) {
        (ObservedFirewall::Absent, None) => (None, None),
        (_, None) => (None, Some(Step::Firewall(FirewallStep::Delete))),
        (ObservedFirewall::Table(from), Some(to)) if from == to => (None, None),
        (ObservedFirewall::Table(from), Some(to)) => {
            let between = withheld(from, to, observed, &peers.gained, &peers.lost());
            let between = closed_as_before(from, between);
            (update(from, &between), update(&between, to))
        }
        (_, Some(to)) => {
            let between = withheld(&Firewall::default(), to, observed, &peers.gained, &peers.lost());
            (Some(Step::Firewall(FirewallStep::Replace(Arc::clone(&between)))), update(&between, to))
        }
    }
}

/// What lets nothing leave beside an exit node goes once no route leads into the tunnel any more: it also keeps answers
/// on the way by which they were asked for.
fn closed_as_before(from: &Firewall, to: Arc<Firewall>) -> Arc<Firewall> {
    if from.beside_exit.is_none() || to.beside_exit.is_some() {
        return to;
    }
    let (by_exit, beside_exit) = (from.by_exit.clone(), from.beside_exit.clone());
    Arc::new(Firewall { by_exit, beside_exit, ..Firewall::clone(&to) })
}

/// Known flows are judged again where rights go, and where it cannot be seen that they were judged.
fn flows_step(device: &Device, desired: &Desired, observed: &Observed, close: Option<&Step>) -> Option<Step> {
    let firewall = desired.firewall.as_ref()?;
    let loses_rights = match close {
        Some(Step::Firewall(FirewallStep::Update { from, to })) => from.may_lose_rights(to),
        Some(_) => true,
        None => false,
    };
    let can_end = !observed.lacking.contains(&Ability::EndFlows);
    let is_due = can_end && (loses_rights || !observed.flows_judged);
    is_due.then(|| Step::Firewall(FirewallStep::CutFlows(FlowJudge::new(firewall, device, observed))))
}

/// How the peers differ. A prefix that another peer gains is *moved*: giving it there takes it from here.
#[derive(Default)]
struct PeerChanges<'a> {
    added: Vec<(NodePublic, &'a Arc<PeerConfig>)>,
    removed: Vec<(NodePublic, &'a ObservedPeer)>,
    changed: Vec<PeerChange<'a>>,
    gained: BTreeSet<IpNet>,
}

/// How a peer that stays differs.
struct PeerChange<'a> {
    key: NodePublic,
    desired: &'a PeerConfig,
    observed: &'a ObservedPeer,
}

impl<'a> PeerChanges<'a> {
    fn between(
        desired: &'a BTreeMap<NodePublic, Arc<PeerConfig>>,
        observed: &'a BTreeMap<NodePublic, ObservedPeer>,
    ) -> Self {
        let mut changes = Self::default();
        for (key, desired, observed) in union(desired, observed) {
            match (desired, observed) {
                (Some(desired), None) => {
                    changes.gained.extend(&desired.allowed_ips);
                    changes.added.push((*key, desired));
                }
                (None, Some(observed)) => changes.removed.push((*key, observed)),
                (Some(desired), Some(observed)) => {
                    let change = PeerChange { key: *key, desired, observed };
                    if !change.is_empty() {
                        changes.gained.extend(change.gained());
                        changes.changed.push(change);
                    }
                }
                (None, None) => {}
            }
        }
        changes
    }

    /// Every prefix that some peer loses.
    fn lost(&self) -> BTreeSet<IpNet> {
        let removed = self.removed.iter().flat_map(|(_, peer)| &peer.allowed_ips);
        self.changed.iter().flat_map(PeerChange::lost).chain(removed).copied().collect()
    }

    /// Whether another peer takes over from a peer that goes, as after a change of its key.
    fn has_successor(&self, peer: &ObservedPeer) -> bool {
        peer.allowed_ips.iter().any(|prefix| self.gained.contains(prefix))
    }

    fn take_down(&self, steps: &mut Vec<Step>) {
        let gone = self.removed.iter().filter(|(_, peer)| !self.has_successor(peer));
        steps.extend(gone.map(|(key, _)| Step::Peer(*key, PeerStep::Remove)));
        for change in &self.changed {
            let allowed_ips: BTreeSet<IpNet> =
                change.lost().filter(|prefix| !self.gained.contains(prefix)).copied().collect();
            if !allowed_ips.is_empty() {
                let observed = change.observed.allowed_ips.iter();
                let keep = observed.filter(|prefix| !allowed_ips.contains(prefix)).copied().collect();
                steps.push(Step::Peer(change.key, PeerStep::RemoveAllowedIps { allowed_ips, keep }));
            }
        }
    }

    /// A peer with a successor goes only when that one is there, so that senders see no gap.
    fn set_up(&self, steps: &mut Vec<Step>) {
        steps.extend(self.added.iter().map(|(key, peer)| Step::Peer(*key, PeerStep::Add(Arc::clone(peer)))));
        for change in &self.changed {
            let key = change.key;
            let allowed_ips: BTreeSet<IpNet> = change.gained().copied().collect();
            if !allowed_ips.is_empty() {
                steps.push(Step::Peer(key, PeerStep::AddAllowedIps(allowed_ips)));
            }
            if let Some(endpoint) = change.endpoint() {
                steps.push(Step::Peer(key, PeerStep::SetEndpoint(endpoint)));
            }
            if change.desired.keepalive != change.observed.keepalive {
                steps.push(Step::Peer(key, PeerStep::SetKeepalive(change.desired.keepalive)));
            }
        }
        let replaced = self.removed.iter().filter(|(_, peer)| self.has_successor(peer));
        steps.extend(replaced.map(|(key, _)| Step::Peer(*key, PeerStep::Remove)));
    }
}

impl PeerChange<'_> {
    fn is_empty(&self) -> bool {
        self.desired.allowed_ips == self.observed.allowed_ips
            && self.desired.keepalive == self.observed.keepalive
            && self.endpoint().is_none()
    }

    fn gained(&self) -> impl Iterator<Item = &IpNet> {
        self.desired.allowed_ips.difference(&self.observed.allowed_ips)
    }

    fn lost(&self) -> impl Iterator<Item = &IpNet> {
        self.observed.allowed_ips.difference(&self.desired.allowed_ips)
    }

    /// Where the endpoint has to be moved to. What the kernel found by itself stands.
    fn endpoint(&self) -> Option<std::net::SocketAddr> {
        match (self.desired.endpoint, self.observed.endpoint) {
            (DesiredEndpoint::Initial(wish), None) => Some(wish),
            (DesiredEndpoint::Move(wish), current) => (current != Some(wish)).then_some(wish),
            (DesiredEndpoint::Initial(_), Some(_)) | (DesiredEndpoint::Leave, _) => None,
        }
    }
}

/// Routes that refuse come first, so that nothing leaks while the others follow.
fn add_routes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>, steps: &mut Vec<Step>) {
    let mut missing: Vec<&Route> = desired.difference(observed).collect();
    missing.sort_by_key(|route| route.target != RouteTarget::Unreachable);
    steps.extend(missing.into_iter().cloned().map(RouteStep::Add).map(Step::Route));
}

/// Routes that refuse go last. A route that a missing one takes the place of needs no step.
fn remove_routes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>, steps: &mut Vec<Step>) {
    let places: BTreeSet<_> =
        desired.difference(observed).map(|missing| (missing.destination, missing.metric)).collect();
    let is_replaced = |route: &Route| places.contains(&(route.destination, route.metric));
    let mut stale: Vec<&Route> = observed.difference(desired).filter(|route| !is_replaced(route)).collect();
    stale.sort_by_key(|route| route.target == RouteTarget::Unreachable);
    steps.extend(stale.into_iter().cloned().map(RouteStep::Remove).map(Step::Route));
}

/// The new ones stand before the old ones go, also where an earlier version wrote those: at no step do packets of the
/// overlay pass our table by.
fn add_rules(desired: &BTreeSet<Rule>, observed: &[Rule], steps: &mut Vec<Step>) {
    let present: BTreeSet<Rule> = observed.iter().copied().collect();
    let mut missing: Vec<Rule> = desired.difference(&present).copied().collect();
    // Where a rule leads has to be there first; what asks our table comes after those that lead past it.
    missing.sort_by_key(|rule| (rule.action != RuleAction::Nothing, *rule));
    steps.extend(missing.into_iter().map(RuleStep::Add).map(Step::Rule));
}

/// The rule that is asked last goes first, but for one that others lead to. Of duplicates one stays.
fn remove_rules(desired: &BTreeSet<Rule>, observed: &[Rule], steps: &mut Vec<Step>) {
    let mut wanted = desired.clone();
    let mut surplus: Vec<Rule> = observed.iter().copied().filter(|rule| !wanted.remove(rule)).collect();
    surplus.sort_by_key(|rule| (rule.action == RuleAction::Nothing, Reverse(*rule)));
    steps.extend(surplus.into_iter().map(RuleStep::Remove).map(Step::Rule));
}
