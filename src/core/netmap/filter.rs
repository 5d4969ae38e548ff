//! The packet filter in domain terms: addresses instead of text, all names of a part resolved.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use super::rejection::{Reason, Rejection};
use crate::types::Limit;
use crate::wire::control::{self, RuleOrigin, limit};

/// Sources and destinations of all rules together. At 40 bytes each this is 20 MB, several times what
/// 10,000 nodes need; rules past it are left out, which only takes rights away.
const ENTRIES: Limit = Limit::new("sources and destinations in the packet filter", 500_000);
const RULES: Limit = Limit::new("rules in the packet filter", limit::RULES);

/// Who may open what on this node: the union of its rules. The default admits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketFilter {
    /// The rules, in the order of their parts' names.
    pub rules: Vec<FilterRule>,
}

/// Each of these sources may send each of these protocols to each of these destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterRule {
    /// Source addresses, ascending, none overlapping.
    pub sources: Vec<AddressRange>,
    /// Besides, every peer that holds one of these capabilities.
    pub capabilities: Vec<String>,
    /// Destinations with ports.
    pub destinations: Vec<Destination>,
    /// IP protocol numbers, ascending.
    pub protocols: Vec<u8>,
    /// Where in the policy it is written, if the coordinator says.
    pub origin: Option<RuleOrigin>,
}

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    pub first: IpAddr,
    /// Itself in it.
    pub last: IpAddr,
}

/// Where to, and which ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub prefix: IpNet,
    pub first_port: u16,
    /// Itself in it.
    pub last_port: u16,
}

/// What a rule that lists no protocol is for: ICMP, TCP, UDP and ICMPv6.
const USUAL_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];

impl PacketFilter {
    /// Reads the named parts. What cannot be read is left out, which only takes rights away.
    pub(super) fn read(parts: &BTreeMap<String, Vec<control::FilterRule>>) -> (Self, Vec<Rejection>) {
        let mut filter = Self::default();
        let mut rejections = Vec::new();
        let mut entries = 0;
        for (part, rules) in parts {
            for (index, rule) in rules.iter().enumerate() {
                let object = || format!("rule {} of packet filter part {:?}", index + 1, shortened(part));
                entries += rule.src_ips.len() + rule.dst_ports.len();
                let fits = RULES.check(filter.rules.len() + 1).and(ENTRIES.check(entries));
                if let Err(error) = fits {
                    rejections.push(Rejection { object: object(), reason: Reason::TooMany(error) });
                    return (filter, rejections);
                }
                let rule = FilterRule::read(rule, |what, reason| {
                    rejections.push(Rejection { object: format!("{what} in {}", object()), reason });
                });
                filter.rules.push(rule);
            }
        }
        (filter, rejections)
    }
}

impl FilterRule {
    fn read(told: &control::FilterRule, mut reject: impl FnMut(String, Reason)) -> Self {
        let mut rule = Self { origin: told.origin.clone(), ..Self::default() };
        for text in &told.src_ips {
            match (text.strip_prefix("cap:"), parse_ranges(text)) {
                (Some(capability), _) => rule.capabilities.push(capability.to_owned()),
                (None, Some(ranges)) => rule.sources.extend(ranges),
                (None, None) => reject(format!("source {:?}", shortened(text)), Reason::Unreadable),
            }
        }
        rule.sources = AddressRange::merged(rule.sources);
        for told in &told.dst_ports {
            let Some(ranges) = parse_ranges(&told.ip) else {
                reject(format!("destination {:?}", shortened(&told.ip)), Reason::Unreadable);
                continue;
            };
            let (first_port, last_port) = (told.ports.first, told.ports.last);
            if first_port > last_port {
                reject(format!("ports {first_port}-{last_port}"), Reason::NoPorts);
                continue;
            }
            let prefixes = ranges.into_iter().flat_map(AddressRange::prefixes);
            rule.destinations.extend(prefixes.map(|prefix| Destination { prefix, first_port, last_port }));
        }
        for number in &told.ip_proto {
            match u8::try_from(*number) {
                Ok(number) if number > 0 => rule.protocols.push(number),
                _ => reject(format!("protocol {number}"), Reason::NoProtocol),
            }
        }
        if told.ip_proto.is_empty() {
            rule.protocols = USUAL_PROTOCOLS.to_vec();
        }
        rule.protocols.sort_unstable();
        rule.protocols.dedup();
        rule
    }
}

impl AddressRange {
    /// All of IPv4.
    pub const ALL_V4: Self = Self { first: IpAddr::V4(Ipv4Addr::UNSPECIFIED), last: IpAddr::V4(Ipv4Addr::BROADCAST) };
    /// All of IPv6.
    pub const ALL_V6: Self =
        Self { first: IpAddr::V6(Ipv6Addr::UNSPECIFIED), last: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)) };

    /// The addresses of a prefix.
    pub fn of(prefix: IpNet) -> Self {
        Self { first: prefix.network(), last: prefix.broadcast() }
    }

    /// The fewest prefixes that make up the range.
    pub fn prefixes(self) -> IpSubnets {
        match (self.first, self.last) {
            (IpAddr::V6(first), IpAddr::V6(last)) => IpSubnets::V6(Ipv6Subnets::new(first, last, 0)),
            (IpAddr::V4(first), IpAddr::V4(last)) => IpSubnets::V4(Ipv4Subnets::new(first, last, 0)),
            // A range holds one family; one that does not holds nothing.
            _ => IpSubnets::V4(Ipv4Subnets::new(Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED, 0)),
        }
    }

    /// The address after the range in its family, if there is one.
    pub fn next(self) -> Option<IpAddr> {
        match self.last {
            IpAddr::V4(last) => last.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
            IpAddr::V6(last) => last.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
        }
    }

    /// The same addresses in the fewest ranges, ascending.
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.first <= last.last || last.next() == Some(range.first) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// Reads an address, a prefix, a range `a-b`, or `*` for everything in both families.
fn parse_ranges(text: &str) -> Option<Vec<AddressRange>> {
    if text == "*" {
        return Some(vec![AddressRange::ALL_V4, AddressRange::ALL_V6]);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(vec![AddressRange { first: address, last: address }]);
    }
    if let Ok(prefix) = text.parse::<IpNet>() {
        return Some(vec![AddressRange::of(prefix)]);
    }
    let (first, last) = text.split_once('-')?;
    let range = AddressRange { first: first.parse().ok()?, last: last.parse().ok()? };
    (range.first.is_ipv4() == range.last.is_ipv4() && range.first <= range.last).then(|| vec![range])
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
