//! Why a packet is let in or not: from a packet back to the rules of the packet filter, and their figures.

use std::collections::{BTreeMap, BTreeSet};

use super::classes::{admits, rule_id_of};
use super::firewall::{Admit, Packet, RuleId};
use super::observed::ObservedFirewall;
use super::served::Served;
use crate::netmap::{FilterRule, PacketFilter, Peer};

/// What our table holds at one moment, with its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub firewall: ObservedFirewall,
    /// What each rule let in.
    pub rules: BTreeMap<RuleId, Count>,
    /// What was dropped, by reason.
    pub denied: BTreeMap<String, Count>,
}

/// Packets that opened something, or were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// What a rule of the packet filter comes to on a host that serves this: its counter and its rights. `None`
/// where it gives none.
pub fn rights_of(rule: &FilterRule, served: &Served) -> Option<(RuleId, BTreeSet<Admit>)> {
    let admits = admits(rule, served);
    (!admits.is_empty()).then(|| (rule_id_of(&admits), admits))
}

/// The rules that have this packet's source, with what each gives; `peer` is whose the source is.
pub fn rules_naming<'a>(
    filter: &'a PacketFilter,
    served: &Served,
    peer: &Peer,
    packet: &Packet,
) -> Vec<(&'a FilterRule, RuleId, BTreeSet<Admit>)> {
    let names = |rule: &&FilterRule| {
        let in_range = rule.sources.iter().any(|range| (range.first..=range.last).contains(&packet.source));
        let holds =
            || peer.has_address(packet.source) && rule.capabilities.iter().any(|name| peer.has_capability(name));
        peer.may_open() && (in_range || holds())
    };
    let rights = |rule: &'a FilterRule| rights_of(rule, served).map(|(id, admits)| (rule, id, admits));
    filter.rules.iter().filter(names).filter_map(rights).collect()
}
