//! What a host may lack, and what of a wish is left without it.
//!
//! A missing ability takes only itself away: the rest of the wish is carried out, and what is missing is told.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::types::IpNet;

use super::desired::{Desired, RouteTarget};
use super::firewall::{Firewall, Lacks, SourceNat};
use super::own;

/// Something that most kernels can, and that is not needed for all the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ability {
    /// IPv6 at all.
    Ipv6,
    /// IPv6 on our link.
    LinkIpv6,
    /// To end flows that are known.
    EndFlows,
    /// To log denied packets.
    LogDenied,
    /// To end TCP connections with a reset.
    ResetFlows,
    /// To ask in a firewall rule where an address leads.
    FindRoutes,
    /// To give packets another destination.
    Translate,
    /// To give packets that leave the address of their link.
    Masquerade,
    /// To look at other programs' firewalls.
    OtherFirewalls,
}

impl Ability {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Ipv6,
        Self::LinkIpv6,
        Self::EndFlows,
        Self::LogDenied,
        Self::ResetFlows,
        Self::FindRoutes,
        Self::Translate,
        Self::Masquerade,
        Self::OtherFirewalls,
    ];
    /// Those that the firewall's table is made with.
    pub const OF_TABLE: [Self; 5] =
        [Self::LogDenied, Self::ResetFlows, Self::FindRoutes, Self::Translate, Self::Masquerade];
}

/// What is missed, and what can be done.
impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv6 => f.write_str(
                "this kernel has no IPv6 (is it started with ipv6.disable=1?), so only IPv4 goes through the tunnel",
            ),
            Self::LinkIpv6 => write!(
                f,
                "IPv6 is switched off on {link}, so only IPv4 goes through the tunnel; `sysctl -w \
                 net.ipv6.conf.{link}.disable_ipv6=0` switches it on",
                link = own::LINK
            ),
            Self::EndFlows => f.write_str(
                "this kernel cannot end connections that are open (`modprobe nf_conntrack_netlink`, then restart \
                 warrend), so one that the policy forbids from now on goes on until it ends by itself",
            ),
            Self::LogDenied => f.write_str(
                "this kernel cannot log to nflog groups (`modprobe nfnetlink_log`, then restart warrend), so denied \
                 packets are counted and not logged",
            ),
            Self::ResetFlows => f.write_str(
                "this kernel's nftables cannot send resets (`modprobe nft_reject_inet`, then restart warrend), so \
                 programs notice late that a connection was ended",
            ),
            Self::FindRoutes => f.write_str(
                "this kernel's nftables cannot look at routes (`modprobe nft_fib_inet`, then restart warrend), so \
                 packets from the overlay's ranges that come in by another interface are dropped unless this host has a \
                 network there, and this machine is no exit node",
            ),
            Self::Translate => f.write_str(
                "this kernel's nftables cannot translate addresses (`modprobe nft_chain_nat nft_nat`, then restart \
                 warrend), so names are answered only where systemd-resolved asks for them",
            ),
            Self::Masquerade => f.write_str(
                "this kernel's nftables cannot masquerade (`modprobe nft_chain_nat nft_masq`, then restart warrend), so \
                 what peers send to the networks that this machine carries arrives with their own addresses, and answers \
                 come back only where those networks have a route for them",
            ),
            Self::OtherFirewalls => f.write_str(
                "other programs' firewalls cannot be looked at (install nftables for its program nft; where it is there, \
                 `nft list chains` and warrend's log say why), so nobody is told where one of them drops the tunnel's \
                 packets",
            ),
        }
    }
}

impl Desired {
    /// What of the wish a kernel can hold that lacks these.
    pub fn within(&self, lacking: &BTreeSet<Ability>) -> Cow<'_, Self> {
        if lacking.is_empty() {
            return Cow::Borrowed(self);
        }
        let has_none = lacking.contains(&Ability::Ipv6);
        let is_off = has_none || lacking.contains(&Ability::LinkIpv6);
        let mut rest = self.clone();
        if is_off {
            let is_ipv4 = |net: &IpNet| matches!(net, IpNet::V4(_));
            rest.device.iter_mut().for_each(|device| device.addresses.retain(is_ipv4));
            // What refuses stays where it can: packets of the overlay do not leave by another way.
            rest.routes
                .retain(|route| is_ipv4(&route.destination) || (!has_none && route.target != RouteTarget::Tunnel));
            rest.rules.retain(|rule| !rule.ipv6 || !has_none);
            rest.forwarding.v6.clear();
        }
        if let Some(firewall) = &mut rest.firewall {
            let without = firewall.without(lacking);
            if without != **firewall {
                *firewall = Arc::new(without);
            }
        }
        Cow::Owned(rest)
    }
}

impl Firewall {
    /// The same for a kernel that lacks these.
    pub fn without(&self, lacking: &BTreeSet<Ability>) -> Self {
        let mut without = self.clone();
        if lacking.contains(&Ability::LogDenied) {
            without.options.log_denied = None;
        }
        if lacking.contains(&Ability::Translate) {
            without.resolver_port = None;
        }
        if lacking.contains(&Ability::Masquerade) {
            without.carries = without.carries.map(|_| SourceNat::Nothing);
        }
        without.lacks =
            Lacks { reset: lacking.contains(&Ability::ResetFlows), routes: lacking.contains(&Ability::FindRoutes) };
        without
    }
}
