//! Which known flows a firewall forbids.
//!
//! The table accepts what belongs to a known flow, so rights that are taken away would live on in the flows that
//! they once opened. So these are judged again, by what opened them: the source, destination and port of the first
//! packet. A flow is a peer's where a peer has the source that opened it; what this host or its networks opened is
//! nobody's business here, and neither are their answers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{IpNet, in_overlay, is_default_route};

use super::desired::Device;
use super::difference::differences;
use super::firewall::{Firewall, Packet};
use super::observed::Observed;

/// Tells the flows of peers that the firewall would not let open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowJudge {
    firewall: Arc<Firewall>,
    /// Every prefix of a peer.
    peers: BTreeSet<IpNet>,
    /// How long those prefixes are.
    lengths: BTreeSet<u8>,
    /// What an exit node may have sent as if it were anybody, by the family of its default route.
    by_exit: BTreeSet<IpNet>,
    /// Our own addresses.
    own: BTreeSet<IpNet>,
}

impl FlowJudge {
    /// Judges by this firewall the flows of the peers that are wished for and of those that are there still.
    pub(super) fn new(firewall: &Arc<Firewall>, device: &Device, observed: &Observed) -> Self {
        let wished = device.peers.values().flat_map(|peer| &peer.allowed_ips);
        let there = observed.device.iter().flat_map(|device| device.peers.values()).flat_map(|peer| &peer.allowed_ips);
        let (by_exit, peers): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
            wished.chain(there).map(IpNet::trunc).partition(is_default_route);
        let lengths = peers.iter().map(IpNet::prefix_len).collect();
        Self { firewall: Arc::clone(firewall), peers, lengths, by_exit, own: device.addresses.clone() }
    }

    /// Whether a peer opened the flow with this packet and could not do so again.
    pub fn forbids(&self, opening: &Packet) -> bool {
        (self.is_of_a_peer(opening.source) || self.is_in_overlay(opening)) && self.firewall.decide(opening).is_err()
    }

    /// Whether the flow can only have come by the tunnel, where there is an exit node: what else comes from anywhere, as a
    /// session with an address of the host's on another network, is not its.
    fn is_in_overlay(&self, opening: &Packet) -> bool {
        let Packet { source, destination, .. } = opening;
        let may_be_exit = self.by_exit.iter().any(|net| net.contains(source));
        let is_own = self.own.iter().any(|net| net.contains(source));
        let is_ours =
            |address: &IpAddr| in_overlay(*address) && !self.firewall.elsewhere.iter().any(|net| net.contains(address));
        may_be_exit && !is_own && (is_ours(source) || is_ours(destination))
    }

    /// Whether the address is a peer's.
    pub fn is_of_a_peer(&self, address: IpAddr) -> bool {
        let around = self.lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        around.map(|prefix| prefix.trunc()).any(|prefix| self.peers.contains(&prefix))
    }
}

impl Firewall {
    /// Whether something that this firewall admits might not be admitted by the next. Errs on the side of yes.
    pub fn may_lose_rights(&self, next: &Self) -> bool {
        let same_class = |address: &IpAddr| match (self.class_of(*address), next.class_of(*address)) {
            (None, _) => true,
            (Some(class), after) => after == Some(class),
        };
        let changed = |(id, class)| next.classes.get(id).is_some_and(|after| after != class);
        self.options != next.options
            || !self.served.is_within(&next.served)
            || self.classes.iter().any(changed)
            || self.subnets.iter().any(|(prefix, class)| next.subnets.get(prefix) != Some(class))
            || !differences(&self.hosts, &next.hosts).into_iter().all(|(address, _, _)| same_class(address))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::{Admit, Class, ClassId, PortRange, Protocol, RuleId};

    fn firewall() -> Firewall {
        let admits = BTreeSet::from([Admit {
            destination: "100.64.0.1/32".parse().unwrap(),
            protocol: Protocol::TCP,
            ports: PortRange { first: 80, last: 80 },
        }]);
        Firewall {
            served: ["100.64.0.1/32".parse().unwrap()].into_iter().collect(),
            classes: BTreeMap::from([(ClassId(1), Class { rules: BTreeMap::from([(RuleId(1), admits)]) })]),
            hosts: BTreeMap::from([("100.64.0.2".parse().unwrap(), ClassId(1))]),
            subnets: BTreeMap::from([("10.0.0.0/8".parse().unwrap(), ClassId(1))]),
            ..Firewall::default()
        }
    }

    fn judge() -> FlowJudge {
        let peers: BTreeSet<IpNet> =
            ["100.64.0.2/32", "100.64.0.3/32", "10.0.0.0/8"].iter().map(|text| text.parse().unwrap()).collect();
        let lengths = peers.iter().map(IpNet::prefix_len).collect();
        FlowJudge { firewall: Arc::new(firewall()), peers, lengths, ..FlowJudge::default() }
    }

    fn opening(source: &str, destination: &str, port: u16) -> Packet {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Packet { source, destination, protocol: Protocol::TCP, port }
    }

    #[test]
    fn a_flow_that_a_peer_could_not_open_again_is_forbidden() {
        let judge = judge();
        assert!(!judge.forbids(&opening("100.64.0.2", "100.64.0.1", 80)));
        assert!(!judge.forbids(&opening("10.1.2.3", "100.64.0.1", 80)));
        assert!(judge.forbids(&opening("100.64.0.2", "100.64.0.1", 81)));
        assert!(judge.forbids(&opening("100.64.0.3", "100.64.0.1", 80)), "it has no rights at all");
        assert!(judge.forbids(&opening("100.64.0.2", "192.0.2.1", 80)), "an address that is not served");
    }

    #[test]
    fn a_flow_that_no_peer_opened_is_left_alone() {
        let judge = judge();
        assert!(!judge.forbids(&opening("100.64.0.1", "100.64.0.2", 81)), "we opened it");
        assert!(!judge.forbids(&opening("100.64.0.9", "100.64.0.1", 81)), "somebody else's use of the range");
    }

    /// A session with this host by its address on another network is nobody's business, exit node or not.
    #[test]
    fn what_may_have_come_by_an_exit_node_is_forbidden_where_it_is_the_overlays() {
        let own = ["100.64.0.1/32".parse().unwrap()].into();
        let judge = FlowJudge { by_exit: ["0.0.0.0/0".parse().unwrap()].into(), own, ..judge() };
        assert!(judge.forbids(&opening("198.51.100.7", "100.64.0.1", 80)));
        assert!(judge.forbids(&opening("100.64.0.9", "192.0.2.1", 80)));
        assert!(!judge.forbids(&opening("198.51.100.7", "192.0.2.1", 22)));
        assert!(!judge.forbids(&opening("100.64.0.1", "198.51.100.7", 80)), "we opened it");
    }

    #[test]
    fn rights_are_lost_where_a_source_a_destination_or_a_right_goes() {
        let from = firewall();
        assert!(!from.may_lose_rights(&from));
        assert!(!Firewall::default().may_lose_rights(&from));
        let change = |change: fn(&mut Firewall)| {
            let mut next = firewall();
            change(&mut next);
            from.may_lose_rights(&next)
        };
        assert!(!change(|next| next.hosts.extend([("100.64.0.4".parse().unwrap(), ClassId(1))])));
        assert!(!change(|next| next.served.listed.extend(["10.9.0.0/16".parse::<IpNet>().unwrap()])));
        assert!(change(|next| next.hosts.clear()));
        assert!(change(|next| next.subnets.clear()));
        assert!(change(|next| next.served.listed.clear()));
        assert!(change(|next| drop(next.classes.insert(ClassId(1), Class::default()))));
        assert!(change(|next| next.hosts.extend([("10.0.0.1".parse().unwrap(), ClassId(2))])));
    }
}
