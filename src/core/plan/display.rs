//! A plan in words: one line a step, no secrets.

use std::collections::BTreeSet;
use std::fmt;

use crate::types::IpNet;

use super::desired::{DesiredEndpoint, PeerConfig, Route, RouteTarget, Rule, RuleAction, RulePackets};
use super::firewall::{Firewall, SourceNat};
use super::own;
use super::step::{DeviceStep, FirewallStep, LinkStep, PeerStep, Plan, RouteStep, RuleStep, Step};

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
            Self::Link(step) => step.fmt(f),
            Self::Device(step) => step.fmt(f),
            Self::Peer(key, step) => step.describe(&key.short(), f),
            Self::Route(step) => step.fmt(f),
            Self::Rule(step) => step.fmt(f),
            Self::Firewall(step) => step.fmt(f),
            Self::Forwarding(step) => step.fmt(f),
            Self::RemoveStrange(object) => write!(f, "remove {}", object.escape_debug()),
        }
    }
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => write!(f, "create link {}", own::LINK),
            Self::Delete => write!(f, "delete link {}", own::LINK),
            Self::SetMtu(mtu) => write!(f, "set the MTU of {} to {mtu}", own::LINK),
            Self::SetUp => write!(f, "bring {} up", own::LINK),
            Self::AddAddress(address) => write!(f, "add address {address} to {}", own::LINK),
            Self::RemoveAddress(address) => write!(f, "remove address {address} from {}", own::LINK),
        }
    }
}

impl fmt::Display for DeviceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetPrivateKey(key) => write!(f, "set the key of {} to that of {}", own::LINK, key.public().short()),
            Self::SetListenPort(port) => write!(f, "set the port of {} to {port}", own::LINK),
            Self::SetFwmark(mark) => write!(f, "set the mark of {} to {mark:#x}", own::LINK),
        }
    }
}

impl PeerStep {
    fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(peer) => write!(f, "add peer {name}{peer}"),
            Self::AddAllowedIps(allowed_ips) => write!(f, "give peer {name} {}", List(allowed_ips)),
            Self::RemoveAllowedIps { allowed_ips, .. } => write!(f, "take {} from peer {name}", List(allowed_ips)),
            Self::SetEndpoint(endpoint) => write!(f, "move peer {name} to {endpoint}"),
            Self::SetKeepalive(0) => write!(f, "stop keep-alives to peer {name}"),
            Self::SetKeepalive(seconds) => write!(f, "keep peer {name} alive every {seconds} s"),
            Self::Remove => write!(f, "remove peer {name}"),
        }
    }
}

impl fmt::Display for RouteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(route) => write!(f, "add route {route}"),
            Self::Remove(route) => write!(f, "remove route {route}"),
        }
    }
}

impl fmt::Display for RuleStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(rule) => write!(f, "add rule {rule}"),
            Self::Remove(rule) => write!(f, "remove rule {rule}"),
        }
    }
}

impl fmt::Display for FirewallStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace(to) => write!(f, "replace table inet {}: {to}", own::NFT_TABLE),
            Self::Update { from, to } => write!(f, "update table inet {}: {}", own::NFT_TABLE, Change { from, to }),
            Self::CutFlows(_) => f.write_str("end the connections that the firewall does not admit"),
            Self::Delete => write!(f, "delete table inet {}", own::NFT_TABLE),
        }
    }
}

impl Step {
    /// The object that the step is about, as people know it.
    pub fn object(&self) -> String {
        match self {
            Self::Link(step) => step.object(),
            Self::Device(DeviceStep::SetPrivateKey(_)) => format!("the key of {}", own::LINK),
            Self::Device(DeviceStep::SetListenPort(_)) => format!("the port of {}", own::LINK),
            Self::Device(DeviceStep::SetFwmark(_)) => format!("the mark of {}", own::LINK),
            Self::Peer(key, _) => format!("peer {}", key.short()),
            Self::Route(RouteStep::Add(route) | RouteStep::Remove(route)) => format!("route {}", route.destination),
            Self::Rule(RuleStep::Add(rule) | RuleStep::Remove(rule)) => {
                format!("rule {} ({})", rule.priority, rule.family())
            }
            Self::Firewall(_) => format!("table inet {}", own::NFT_TABLE),
            Self::Forwarding(step) => step.switch().to_string(),
            Self::RemoveStrange(object) => object.escape_debug().to_string(),
        }
    }
}

impl LinkStep {
    fn object(&self) -> String {
        match self {
            Self::Create | Self::Delete | Self::SetUp => format!("link {}", own::LINK),
            Self::SetMtu(_) => format!("the MTU of {}", own::LINK),
            Self::AddAddress(address) | Self::RemoveAddress(address) => format!("address {address}"),
        }
    }
}

impl fmt::Display for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.allowed_ips.is_empty() {
            write!(f, " with {}", List(&self.allowed_ips.iter().copied().collect()))?;
        }
        match self.endpoint {
            DesiredEndpoint::Leave => {}
            DesiredEndpoint::Initial(endpoint) | DesiredEndpoint::Move(endpoint) => write!(f, " at {endpoint}")?,
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
            RulePackets::From(address) => write!(f, ": from {address}")?,
            RulePackets::Marked { mark, mask } => write!(f, ": mark {mark:#x}/{mask:#x}")?,
            RulePackets::NotMarked { mark, mask: u32::MAX } => write!(f, ": all but mark {mark:#x}")?,
            RulePackets::NotMarked { mark, mask } => write!(f, ": all but mark {mark:#x}/{mask:#x}")?,
        }
        match self.action {
            RuleAction::Main => f.write_str(" to the main table"),
            RuleAction::Ours => write!(f, " to table {}", own::ROUTE_TABLE),
            RuleAction::Beyond => write!(f, " on to rule {}", own::RULE_BEYOND),
            RuleAction::Nothing => f.write_str(" to no table"),
        }
    }
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.hosts.len() + self.subnets.len();
        write!(f, "{sources} sources in {} classes may reach {}", self.classes.len(), List(&self.served.routes()))?;
        if let Some(beside) = &self.beside_exit {
            write!(f, ", nothing leaves beside the exit node but to {}", List(beside))?;
        }
        self.carries.iter().try_for_each(|nat| write!(f, ", {nat}"))?;
        self.probes.iter().try_for_each(|probes| write!(f, ", {probes}"))?;
        self.resolver_port.iter().try_for_each(|port| write!(f, ", names are asked for at port {port}"))
    }
}

impl fmt::Display for SourceNat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "what is carried for peers leaves with this host's addresses",
            Self::ToInternet => "what is carried for peers to the internet leaves with this host's addresses",
            Self::Nothing => "what is carried for peers leaves with their addresses",
        })
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
        match &to.beside_exit {
            beside if *beside == from.beside_exit => {}
            Some(beside) => write!(f, ", nothing leaves beside the exit node but to {}", List(beside))?,
            None => f.write_str(", everything leaves as it did without an exit node")?,
        }
        match to.carries.filter(|nat| from.carries != Some(*nat)) {
            Some(nat) => write!(f, ", {nat}")?,
            None if from.carries != to.carries => f.write_str(", nothing is carried for peers")?,
            None => {}
        }
        match to.probes.filter(|probes| from.probes != Some(*probes)) {
            Some(probes) => write!(f, ", {probes}")?,
            None if from.probes != to.probes => f.write_str(", no probes")?,
            None => {}
        }
        match to.resolver_port.filter(|port| from.resolver_port != Some(*port)) {
            Some(port) => write!(f, ", names are asked for at port {port}")?,
            None if from.resolver_port != to.resolver_port => f.write_str(", names are not asked for")?,
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
