//! A plan: an ordered list of steps, readable, and safe at every prefix.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::types::{IpNet, NodePrivate, NodePublic};

use super::firewall::Firewall;
use super::flows::FlowJudge;
use super::wish::{Peer, Route, Rule};

/// Steps in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One change to the kernel, idempotent where the kernel allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the WireGuard link; it may already exist.
    CreateLink,
    /// Delete the WireGuard link, and with it all its peers and addresses.
    DeleteLink,
    /// Set our key.
    SetPrivateKey(NodePrivate),
    /// Set the UDP port.
    SetListenPort(u16),
    /// Set the mark on outer packets.
    SetFwmark(u32),
    /// Set the link's MTU.
    SetMtu(u32),
    /// Bring the link up.
    SetLinkUp,
    /// Give the link an address.
    AddAddress(IpNet),
    /// Take an address from the link.
    RemoveAddress(IpNet),
    /// Add a peer whole.
    AddPeer {
        /// Who.
        key: NodePublic,
        /// With what.
        peer: Arc<Peer>,
    },
    /// Give a present peer more allowed IPs; each moves here from whoever has it.
    AddAllowedIps {
        /// Who.
        key: NodePublic,
        /// What it gains.
        allowed_ips: BTreeSet<IpNet>,
    },
    /// Take allowed IPs from a present peer, without a gap for those that stay.
    RemoveAllowedIps {
        /// Who.
        key: NodePublic,
        /// What it loses.
        allowed_ips: BTreeSet<IpNet>,
        /// What it keeps.
        keep: BTreeSet<IpNet>,
    },
    /// Move a present peer's endpoint; never brings a removed peer back.
    SetEndpoint {
        /// Who.
        key: NodePublic,
        /// Where to.
        endpoint: SocketAddr,
    },
    /// Set a present peer's keep-alive interval in seconds.
    SetKeepalive {
        /// Who.
        key: NodePublic,
        /// How many; 0 for none.
        seconds: u16,
    },
    /// Remove a peer.
    RemovePeer(NodePublic),
    /// Add a route to our table, in place of one with the same destination and metric.
    AddRoute(Route),
    /// Remove a route from our table.
    RemoveRoute(Route),
    /// Add a policy rule.
    AddRule(Rule),
    /// Remove one policy rule; a duplicate takes a step of its own.
    RemoveRule(Rule),
    /// Put the whole table in place of whatever is there, in one transaction.
    ReplaceFirewall(Arc<Firewall>),
    /// Turn the first table into the second by its elements and classes, in one transaction.
    UpdateFirewall {
        /// What the kernel holds.
        from: Arc<Firewall>,
        /// What it should hold.
        to: Arc<Firewall>,
    },
    /// End the known flows that this forbids, and note at the table that none of what it accepts is older than it.
    CutFlows(FlowJudge),
    /// Delete our table.
    DeleteFirewall,
    /// Delete an object in one of our places that we would never have made, as `observe` printed it.
    RemoveStrange(String),
}

impl Step {
    /// Whether these two may be carried out as one: they are alike, each is about an object of its own, and nothing
    /// that follows depends on either. A crash, or a refusal, in the middle leaves what it would have left between them.
    pub fn goes_with(&self, next: &Self) -> bool {
        let are_alike = std::mem::discriminant(self) == std::mem::discriminant(next);
        are_alike && (self.is_about_a_peer() || matches!(self, Self::AddRoute(_) | Self::RemoveRoute(_)))
    }

    /// Whether this is a change of one peer that the kernel makes at once. Taking allowed IPs away is not: it may need
    /// another way where the kernel refuses the first.
    pub fn is_about_a_peer(&self) -> bool {
        matches!(
            self,
            Self::AddPeer { .. }
                | Self::AddAllowedIps { .. }
                | Self::SetEndpoint { .. }
                | Self::SetKeepalive { .. }
                | Self::RemovePeer(_)
        )
    }
}
