//! Rights of addresses that change hands.
//!
//! The firewall knows sources by address, WireGuard says whose an address is, and the two change one
//! after the other. While an address moves from one peer to another, its old holder must not profit
//! from the new holder's rights, nor the new one from the old one's. So an address whose rights change
//! while its holder does has none in between. All others get their new rights at once: nobody holds them
//! yet, or nobody will.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::types::IpNet;

use super::firewall::Firewall;
use super::observed::Observed;

/// `to` without the sources that change both hands and rights. `gained` and `lost` are the allowed IPs that
/// some peer gains and loses.
pub(super) fn withheld(
    from: &Firewall,
    to: &Arc<Firewall>,
    observed: &Observed,
    gained: &BTreeSet<IpNet>,
    lost: &BTreeSet<IpNet>,
) -> Arc<Firewall> {
    let suspects = Overlaps::of(gained.union(lost).flat_map(|changed| sources_with_new_rights(from, to, *changed)));
    if suspects.prefixes.is_empty() {
        return Arc::clone(to);
    }
    // An address has a holder before its own arrives where it is held, or lies in a prefix that comes along.
    let peers = observed.device.iter().flat_map(|device| device.peers.values());
    let held = peers.flat_map(|peer| peer.allowed_ips.iter().copied());
    // One address by itself is held by somebody else only if that one loses it.
    let only_addresses = suspects.prefixes.iter().all(is_address);
    let held = held.filter(|prefix| !(only_addresses && is_address(prefix)) || lost.contains(prefix));
    let withheld: BTreeSet<IpNet> = held.chain(nested(gained)).flat_map(|prefix| suspects.with(prefix)).collect();
    if withheld.is_empty() {
        return Arc::clone(to);
    }
    let mut between = Firewall::clone(to);
    between.hosts.retain(|address, _| !withheld.contains(&IpNet::from(*address)));
    between.subnets.retain(|prefix, _| !withheld.contains(prefix));
    Arc::new(between)
}

/// The sources within or around a prefix that `to` gives other rights than `from` does.
fn sources_with_new_rights<'a>(from: &'a Firewall, to: &'a Firewall, prefix: IpNet) -> Vec<IpNet> {
    let all = from.served != to.served;
    let hosts = to.hosts.range(prefix.network()..=prefix.broadcast());
    let hosts = hosts.filter(|(address, class)| all || from.class_of(**address) != Some(**class));
    let around = to.subnets.range(..prefix).next_back().filter(|(around, _)| around.contains(&prefix));
    let within = to.subnets.range(prefix..).take_while(|(within, _)| prefix.contains(*within));
    let subnets = around.into_iter().chain(within);
    let subnets = subnets.filter(|(prefix, class)| all || from.subnets.get(*prefix) != Some(*class));
    hosts.map(|(address, _)| IpNet::from(*address)).chain(subnets.map(|(prefix, _)| *prefix)).collect()
}

fn is_address(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The prefixes that lie in another of the list.
fn nested(prefixes: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let mut widest: Option<IpNet> = None;
    let mut nested = Vec::new();
    for prefix in prefixes {
        match widest {
            Some(widest) if widest.contains(prefix) => nested.push(*prefix),
            _ => widest = Some(*prefix),
        }
    }
    nested
}

/// Prefixes that can be asked which of them overlap another.
struct Overlaps {
    prefixes: BTreeSet<IpNet>,
    lengths: BTreeSet<u8>,
}

impl Overlaps {
    fn of(prefixes: impl Iterator<Item = IpNet>) -> Self {
        let prefixes: BTreeSet<IpNet> = prefixes.collect();
        let lengths = prefixes.iter().map(IpNet::prefix_len).collect();
        Self { prefixes, lengths }
    }

    /// The prefixes around this one, itself among them, and those within it.
    fn with(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let around = self.lengths.range(..=prefix.prefix_len());
        let around = around.filter_map(move |length| IpNet::new(prefix.addr(), *length).ok());
        let around = around.map(|wider| wider.trunc()).filter(|wider| self.prefixes.contains(wider));
        let within = self.prefixes.range(prefix..).take_while(move |narrower| prefix.contains(*narrower));
        around.chain(within.copied())
    }
}
