//! What should be true of this host: the whole wish, as one value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::types::{IpNet, NodePrivate, NodePublic};

use super::allowed_ips::AllowedIps;
use super::firewall::Firewall;
use super::forwarding::Forwarding;

/// Everything of ours that should exist in the kernel. The default is nothing at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The WireGuard link with its addresses and peers.
    pub device: Option<Device>,
    /// Routes in our table.
    pub routes: BTreeSet<Route>,
    /// Policy rules with our priorities.
    pub rules: BTreeSet<Rule>,
    pub firewall: Option<Arc<Firewall>>,
    /// What lets packets pass that are carried for peers.
    pub forwarding: Forwarding,
}

/// The WireGuard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub private_key: NodePrivate,
    /// The UDP port of the outer packets.
    pub listen_port: u16,
    /// The mark on outer packets.
    pub fwmark: u32,
    /// Bytes of an inner packet.
    pub mtu: u32,
    /// Our own addresses, each as a host prefix.
    pub addresses: BTreeSet<IpNet>,
    /// Who may send to us, by key.
    pub peers: BTreeMap<NodePublic, Arc<PeerConfig>>,
}

/// A WireGuard peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// Which inner addresses are this peer's. No prefix belongs to two peers.
    pub allowed_ips: AllowedIps,
    /// Where its outer packets go.
    pub endpoint: DesiredEndpoint,
    /// Seconds between keep-alives; 0 for none.
    pub keepalive: u16,
}

/// What we want of a peer's endpoint, the one field that the kernel moves by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DesiredEndpoint {
    /// Whatever the kernel has is right.
    #[default]
    Leave,
    /// Use this where the kernel has none; once it has one, that stands (the peer may have roamed).
    Initial(SocketAddr),
    /// A path was chosen and is not yet seen in the kernel: move there.
    Move(SocketAddr),
}

/// A route in our table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: IpNet,
    /// What happens to a packet.
    pub target: RouteTarget,
    /// Lower wins among routes to one destination.
    pub metric: u32,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Into the tunnel.
    Tunnel,
    /// Refused with an ICMP error, so that overlay packets never leak to the underlay.
    Unreachable,
    /// Look in the next table, as if ours had no such route.
    Throw,
}

/// A policy routing rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Lower is asked first.
    pub priority: u32,
    /// Whether this is the IPv6 rule; each family has its own list.
    pub ipv6: bool,
    /// Which packets it is for.
    pub packets: RulePackets,
    /// Which table answers.
    pub action: RuleAction,
}

/// Which packets a policy rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulePackets {
    /// All of them.
    All,
    /// Those whose mark, under a mask, is this.
    Marked {
        mark: u32,
        /// The bits of it that count.
        mask: u32,
    },
    /// All but those.
    NotMarked {
        mark: u32,
        /// The bits of it that count.
        mask: u32,
    },
    /// Those that are sent from this address.
    From(IpAddr),
}

impl RulePackets {
    /// Whether packets with this mark, sent from this address if their sender chose one, are among them.
    pub fn are(&self, of: u32, from: Option<IpAddr>) -> bool {
        match *self {
            Self::All => true,
            Self::Marked { mark, mask } => of & mask == mark & mask,
            Self::NotMarked { mark, mask } => of & mask != mark & mask,
            Self::From(address) => from == Some(address),
        }
    }
}

/// Where a policy rule sends the look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// The host's main table: a rule of an earlier version of ours.
    Main,
    /// Our own table.
    Ours,
    /// None: the rules from [`RULE_BEYOND`](super::own::RULE_BEYOND) on are asked next.
    Beyond,
    /// None at all: where others lead.
    Nothing,
}
