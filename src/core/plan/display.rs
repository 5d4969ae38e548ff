//! A plan in words: one line a step, no secrets.

use std::collections::BTreeSet;
use std::fmt;

use crate::types::IpNet;

use super::firewall::Firewall;
use super::own;
use super::step::{Plan, Step};
use super::wish::{EndpointWish, Peer, Route, RouteTarget, Rule, RuleAction, RulePackets};

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink => write!(f, "create link {}", own::LINK),
            Self::DeleteLink => write!(f, "delete link {}", own::LINK),
            Self::SetPrivateKey(key) => write!(f, "set the key of {} to that of {}", own::LINK, key.public().short()),
            Self::SetListenPort(port) => write!(f, "set the port of {} to {port}", own::LINK),
            Self::SetFwmark(mark) => write!(f, "set the mark of {} to {mark:#x}", own::LINK),
            Self::SetMtu(mtu) => write!(f, "set the MTU of {} to {mtu}", own::LINK),
            Self::SetLinkUp => write!(f, "bring {} up", own::LINK),
            Self::AddAddress(address) => write!(f, "add address {address} to {}", own::LINK),
            Self::RemoveAddress(address) => write!(f, "remove address {address} from {}", own::LINK),
            Self::AddPeer { key, peer } => write!(f, "add peer {}{peer}", key.short()),
            Self::AddAllowedIps { key, allowed_ips } => {
                write!(f, "give peer {} {}", key.short(), List(allowed_ips))
            }
            Self::RemoveAllowedIps { key, allowed_ips, .. } => {
                write!(f, "take {} from peer {}", List(allowed_ips), key.short())
            }
            Self::SetEndpoint { key, endpoint } => write!(f, "move peer {} to {endpoint}", key.short()),
            Self::SetKeepalive { key, seconds: 0 } => write!(f, "stop keep-alives to peer {}", key.short()),
            Self::SetKeepalive { key, seconds } => write!(f, "keep peer {} alive every {seconds} s", key.short()),
            Self::RemovePeer(key) => write!(f, "remove peer {}", key.short()),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
            Self::ReplaceFirewall(to) => write!(f, "replace table inet {}: {to}", own::NFT_TABLE),
            Self::UpdateFirewall { from, to } => {
                write!(f, "update table inet {}: {}", own::NFT_TABLE, Change { from, to })
            }
            Self::CutFlows(_) => f.write_str("end the connections that the firewall does not admit"),
            Self::DeleteFirewall => write!(f, "delete table inet {}", own::NFT_TABLE),
            Self::RemoveStrange(object) => write!(f, "remove {}", object.escape_debug()),
        }
    }
}

impl Step {
    /// The object that the step is about, as people know it.
    pub fn object(&self) -> String {
        match self {
            Self::CreateLink | Self::DeleteLink | Self::SetLinkUp => format!("link {}", own::LINK),
            Self::SetPrivateKey(_) => format!("the key of {}", own::LINK),
            Self::SetListenPort(_) => format!("the port of {}", own::LINK),
            Self::SetFwmark(_) => format!("the mark of {}", own::LINK),
            Self::SetMtu(_) => format!("the MTU of {}", own::LINK),
            Self::AddAddress(address) | Self::RemoveAddress(address) => format!("address {address}"),
            Self::AddPeer { key, .. }
            | Self::AddAllowedIps { key, .. }
            | Self::RemoveAllowedIps { key, .. }
            | Self::SetEndpoint { key, .. }
            | Self::SetKeepalive { key, .. }
            | Self::RemovePeer(key) => format!("peer {}", key.short()),
            Self::AddRoute(route) | Self::RemoveRoute(route) => format!("route {}", route.destination),
            Self::AddRule(rule) | Self::RemoveRule(rule) => format!("rule {} ({})", rule.priority, rule.family()),
            Self::ReplaceFirewall(_) | Self::UpdateFirewall { .. } | Self::CutFlows(_) | Self::DeleteFirewall => {
                format!("table inet {}", own::NFT_TABLE)
            }
            Self::RemoveStrange(object) => object.escape_debug().to_string(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.allowed_ips.is_empty() {
            write!(f, " with {}", List(&self.allowed_ips))?;
        }
        match self.endpoint {
            EndpointWish::Leave => {}
            EndpointWish::Initial(endpoint) | EndpointWish::Move(endpoint) => write!(f, " at {endpoint}")?,
        }
        match self.keepalive {
            0 => Ok(()),
            seconds => write!(f, " kept alive every {seconds} s"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match self.target {
            RouteTarget::Tunnel => own::LINK,
            RouteTarget::Unreachable => "unreachable",
            RouteTarget::Throw => "the next table",
        };
        write!(f, "{} to {target}, metric {}", self.destination, self.metric)
    }
}

impl Rule {
    fn family(&self) -> &'static str {
        if self.ipv6 { "IPv6" } else { "IPv4" }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.priority, self.family())?;
        match self.packets {
            RulePackets::All => {}
            RulePackets::Marked { mark, mask } => write!(f, ": mark {mark:#x}/{mask:#x}")?,
            RulePackets::NotMarked { mark, mask: u32::MAX } => write!(f, ": all but mark {mark:#x}")?,
            RulePackets::NotMarked { mark, mask } => write!(f, ": all but mark {mark:#x}/{mask:#x}")?,
        }
        match self.action {
            RuleAction::Main => f.write_str(" to the main table"),
            RuleAction::Ours => write!(f, " to table {}", own::ROUTE_TABLE),
        }
    }
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.hosts.len() + self.subnets.len();
        write!(f, "{sources} sources in {} classes may reach {}", self.classes.len(), List(&self.served.routes()))?;
        self.probes.iter().try_for_each(|probes| write!(f, ", {probes}"))
    }
}

/// How one firewall differs from another.
struct Change<'a> {
    from: &'a Firewall,
    to: &'a Firewall,
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        let hosts = |a: &Firewall, b: &Firewall| a.hosts.iter().filter(|(k, v)| b.hosts.get(k) != Some(v)).count();
        let subnets =
            |a: &Firewall, b: &Firewall| a.subnets.iter().filter(|(k, v)| b.subnets.get(k) != Some(v)).count();
        let new = hosts(to, from) + subnets(to, from);
        let old = hosts(from, to) + subnets(from, to);
        write!(f, "sources +{new} -{old}")?;
        let classes = |a: &Firewall, b: &Firewall| a.classes.keys().filter(|id| !b.classes.contains_key(id)).count();
        write!(f, ", classes +{} -{}", classes(to, from), classes(from, to))?;
        if from.served != to.served {
            write!(f, ", may reach {}", List(&to.served.routes()))?;
        }
        match to.probes.filter(|probes| from.probes != Some(*probes)) {
            Some(probes) => write!(f, ", {probes}")?,
            None if from.probes != to.probes => f.write_str(", no probes")?,
            None => {}
        }
        Ok(())
    }
}

/// Prefixes with commas; past the first few only how many more.
struct List<'a>(&'a BTreeSet<IpNet>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        for (index, prefix) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{prefix}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
