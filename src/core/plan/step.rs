//! A plan: an ordered list of steps, readable, and safe at every prefix.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodePrivate, NodePublic};

use super::desired::{PeerConfig, Route, Rule};
use super::firewall::Firewall;
use super::flows::FlowJudge;
use super::forwarding::ForwardingStep;

/// Steps in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// One change to the kernel, idempotent where the kernel allows it. Each family has its own: who carries out one never
/// meets another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A change of the WireGuard link.
    Link(LinkStep),
    /// A change of the link's WireGuard side.
    Device(DeviceStep),
    /// A change of the peer with this key.
    Peer(NodePublic, PeerStep),
    /// A change of our routing table.
    Route(RouteStep),
    /// A change of our policy rules.
    Rule(RuleStep),
    /// A change of our nftables table, or of the flows that it lets through.
    Firewall(FirewallStep),
    /// A change of a switch that lets packets pass.
    Forwarding(ForwardingStep),
    /// Delete an object in one of our places that we would never have made, as `observe` printed it.
    RemoveStrange(String),
}

/// A change of the WireGuard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStep {
    /// Make it; it may already exist.
    Create,
    /// Delete it, and with it all its peers and addresses.
    Delete,
    /// Set its MTU.
    SetMtu(u32),
    /// Bring it up.
    SetUp,
    /// Give it an address.
    AddAddress(IpNet),
    /// Take an address from it.
    RemoveAddress(IpNet),
}

/// A change of the link's WireGuard side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceStep {
    /// Set our key.
    SetPrivateKey(NodePrivate),
    /// Set the UDP port.
    SetListenPort(u16),
    /// Set the mark on outer packets.
    SetFwmark(u32),
}

/// A change of one peer. Only the first may bring it into being: the others are nothing where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerStep {
    /// Add it whole.
    Add(Arc<PeerConfig>),
    /// Give it more allowed IPs; each moves here from whoever has it.
    AddAllowedIps(BTreeSet<IpNet>),
    /// Take allowed IPs from it, without a gap for those that stay.
    RemoveAllowedIps {
        /// Those that it loses.
        allowed_ips: BTreeSet<IpNet>,
        /// Those that it keeps.
        keep: BTreeSet<IpNet>,
    },
    /// Move its endpoint.
    SetEndpoint(SocketAddr),
    /// Set its keep-alive interval in seconds; 0 for none.
    SetKeepalive(u16),
    /// Remove it.
    Remove,
}

/// A change of our routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteStep {
    /// Add a route, in place of one with the same destination and metric.
    Add(Route),
    /// Remove a route.
    Remove(Route),
}

/// A change of our policy rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleStep {
    /// Add a rule.
    Add(Rule),
    /// Remove one rule; a duplicate takes a step of its own.
    Remove(Rule),
}

/// A change of our nftables table, or of the flows that it lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirewallStep {
    /// Put the whole table in place of whatever is there, in one transaction.
    Replace(Arc<Firewall>),
    /// Turn the first table into the second by its elements and classes, in one transaction.
    Update {
        /// What the kernel holds.
        from: Arc<Firewall>,
        /// What it should hold.
        to: Arc<Firewall>,
    },
    /// End the known flows that this forbids, and note at the table that none of what it accepts is older than it.
    CutFlows(FlowJudge),
    /// Delete our table.
    Delete,
}

impl Step {
    /// Whether these two may be carried out as one: they are alike, each is about an object of its own, and nothing
    /// that follows depends on either. A crash, or a refusal, in the middle leaves what it would have left between them.
    pub fn goes_with(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Peer(_, one), Self::Peer(_, other)) => is_alike(one, other) && one.is_made_at_once(),
            (Self::Route(one), Self::Route(other)) => is_alike(one, other),
            _ => false,
        }
    }
}

impl PeerStep {
    /// Whether the kernel makes this change at once. Taking allowed IPs away is not so: it may need another way where
    /// the kernel refuses the first.
    fn is_made_at_once(&self) -> bool {
        !matches!(self, Self::RemoveAllowedIps { .. })
    }
}

fn is_alike<T>(one: &T, other: &T) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}
