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

/// `to` without the sources that change both hands and rights.
///
/// `changed` is every allowed IP that some peer gains or loses.
pub(super) fn withheld(
    from: &Firewall,
    to: &Arc<Firewall>,
    observed: &Observed,
    changed: &BTreeSet<IpNet>,
) -> Arc<Firewall> {
    let peers = observed.device.iter().flat_map(|device| device.peers.values());
    let mut held = peers.flat_map(|peer| &peer.allowed_ips).peekable();
    if changed.is_empty() || held.peek().is_none() {
        return Arc::clone(to);
    }
    let changed = Overlaps::of(changed.iter().copied());
    let suspects = Overlaps::of(sources_with_new_rights(from, to).filter(|source| changed.any(source)));
    let withheld: BTreeSet<IpNet> = held.flat_map(|prefix| suspects.with(prefix)).collect();
    if withheld.is_empty() {
        return Arc::clone(to);
    }
    let mut between = Firewall::clone(to);
    between.hosts.retain(|address, _| !withheld.contains(&IpNet::from(*address)));
    between.subnets.retain(|prefix, _| !withheld.contains(prefix));
    Arc::new(between)
}

/// The sources that `to` gives other rights than `from` does.
fn sources_with_new_rights<'a>(from: &'a Firewall, to: &'a Firewall) -> impl Iterator<Item = IpNet> + 'a {
    let all = from.served != to.served;
    let hosts = to.hosts.iter().filter(move |(address, class)| all || from.class_of(**address) != Some(**class));
    let subnets = to.subnets.iter().filter(move |(prefix, class)| all || from.subnets.get(*prefix) != Some(*class));
    hosts.map(|(address, _)| IpNet::from(*address)).chain(subnets.map(|(prefix, _)| *prefix))
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

    fn any(&self, prefix: &IpNet) -> bool {
        self.with(prefix).next().is_some()
    }

    /// The prefixes around this one, itself among them, then those within it.
    fn with(&self, prefix: &IpNet) -> impl Iterator<Item = IpNet> {
        let prefix = *prefix;
        let around = self.lengths.range(..=prefix.prefix_len());
        let around = around.filter_map(move |length| IpNet::new(prefix.addr(), *length).ok());
        let around = around.map(|wider| wider.trunc()).filter(|wider| self.prefixes.contains(wider));
        let within = self.prefixes.range(prefix..).take_while(move |narrower| prefix.contains(*narrower));
        around.chain(within.copied())
    }
}
