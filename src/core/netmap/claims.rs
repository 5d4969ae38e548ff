//! One node of the map, judged by itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rejection::{Reason, Rejection, is_past};
use crate::types::{
    IpNet, NEVER_ROUTED, NodeId, NodePublic, OVERLAY_V4, OVERLAY_V6, SITES_V6, Timestamp, is_default_route,
};
use crate::wire::control::Node;

/// The addresses that answer DNS on every node (WIRE: tailscale's service addresses).
const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// What every peer is held against: ourselves, and the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SelfNode {
    pub(super) id: NodeId,
    pub(super) key: NodePublic,
    pub(super) addresses: BTreeSet<IpNet>,
    pub(super) rejections: Vec<Rejection>,
}

/// How well a claim to a prefix is founded. Lower wins; among equals the lower node number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClaimRank {
    /// It is the node's own address.
    Address,
    /// The coordinator named the node the primary router of it.
    Primary,
    /// The node is one of its routers.
    Router,
}

/// What a node would get if no other asked for the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// The key it claims.
    pub(super) key: NodePublic,
    pub(super) claims: Vec<(IpNet, ClaimRank)>,
    /// The default routes it offers as an exit node.
    pub(super) default_routes: Vec<IpNet>,
    /// What is wrong with the rest of it.
    pub(super) rejections: Vec<Rejection>,
}

impl SelfNode {
    /// Reads our own node: only single addresses of the overlay become ours.
    pub(super) fn read(node: &Node) -> Self {
        let mut ours = Self { id: node.id, key: node.key, ..Self::default() };
        for prefix in &node.addresses {
            if is_overlay_host(prefix) && !is_resolver(prefix) {
                ours.addresses.insert(*prefix);
            } else {
                let object = format!("own address {prefix}");
                ours.rejections.push(Rejection { object, reason: Reason::NotOverlay });
            }
        }
        ours
    }

    /// Judges a peer; `None` where it is nobody to talk to, with the reason where that is a fault.
    pub(super) fn judge(&self, node: &Node, now: Timestamp) -> Result<Claims, Option<Rejection>> {
        let refuse = |reason| Err(Some(Rejection::peer(node, reason)));
        if node.expired || is_past(node.key_expiry, now) {
            return Err(None);
        }
        if node.id == self.id {
            return refuse(Reason::OwnNumber);
        }
        if node.key.is_zero() {
            return refuse(Reason::NoKey);
        }
        if node.key == self.key {
            return refuse(Reason::OwnKey);
        }
        // One that is to be sought at an endpoint of its own takes more than we do.
        if node.is_wireguard_only && !node.endpoints.is_empty() {
            return refuse(Reason::PlainWireGuard);
        }
        let mut candidate = Claims { key: node.key, ..Claims::default() };
        for prefix in node.allowed_ips.as_ref().unwrap_or(&node.addresses) {
            let is_address = node.addresses.contains(prefix);
            let prefix = prefix.trunc();
            if is_default_route(&prefix) {
                candidate.default_routes.push(prefix);
            } else if is_address {
                candidate.take("address", prefix, ClaimRank::Address, node, self.judge_address(prefix));
            } else if !node.unsigned_peer_api_only {
                let rank = if node.primary_routes.contains(&prefix) { ClaimRank::Primary } else { ClaimRank::Router };
                candidate.take("route", prefix, rank, node, self.judge_route(prefix));
            }
        }
        if candidate.claims.is_empty() && candidate.rejections.is_empty() {
            return refuse(Reason::NoAddress);
        }
        Ok(candidate)
    }

    fn judge_address(&self, prefix: IpNet) -> Option<Reason> {
        if !is_overlay_host(&prefix) {
            Some(Reason::NotOverlay)
        } else if self.addresses.contains(&prefix) {
            Some(Reason::OwnAddress)
        } else {
            is_resolver(&prefix).then_some(Reason::ResolverAddress)
        }
    }

    fn judge_route(&self, prefix: IpNet) -> Option<Reason> {
        if is_overlay_host(&prefix) {
            return self.judge_address(prefix);
        }
        if let Some(special) = NEVER_ROUTED.iter().find(|special| overlap(special, &prefix)) {
            return Some(Reason::NeverRouted(*special));
        }
        let overlays = [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)];
        let covers_overlay = overlays.iter().any(|overlay| overlap(overlay, &prefix));
        (covers_overlay && !IpNet::V6(SITES_V6).contains(&prefix)).then_some(Reason::CoversOverlay)
    }
}

impl Claims {
    fn take(&mut self, what: &str, prefix: IpNet, rank: ClaimRank, node: &Node, fault: Option<Reason>) {
        match fault {
            Some(reason) => self.rejections.push(Rejection::prefix(what, prefix, node, reason)),
            None if self.claims.iter().any(|(claimed, _)| *claimed == prefix) => {}
            None => self.claims.push((prefix, rank)),
        }
    }
}

/// Whether two prefixes have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

pub(super) fn is_overlay_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len() && crate::types::in_overlay(prefix.addr())
}

fn is_resolver(prefix: &IpNet) -> bool {
    prefix.addr() == IpAddr::V4(RESOLVER_V4) || prefix.addr() == IpAddr::V6(RESOLVER_V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_taken_behind_this_node_and_not_at_an_endpoint_of_its_own() {
        let address: IpNet = "100.64.0.9/32".parse().unwrap();
        let key = NodePublic::from_bytes([9; 32]);
        let device = Node { id: NodeId(9), key, addresses: vec![address], is_wireguard_only: true, ..Node::default() };
        let ours = SelfNode::default();
        let claims = ours.judge(&device, Timestamp::UNIX_EPOCH).unwrap().claims;
        assert_eq!(claims, [(address, ClaimRank::Address)]);
        let elsewhere = Node { endpoints: vec!["192.0.2.1:51820".parse().unwrap()], ..device };
        let refused = ours.judge(&elsewhere, Timestamp::UNIX_EPOCH).unwrap_err().unwrap();
        assert_eq!(refused.reason, Reason::PlainWireGuard);
    }
}
