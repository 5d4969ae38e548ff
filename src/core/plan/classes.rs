//! From the packet filter's rules to classes of rights.
//!
//! Rules name sources by overlapping ranges; a packet must find its rights in one look-up. So the address
//! space is cut wherever a rule's sources begin or end, which gives *atoms*: disjoint ranges, each with the
//! set of rules that take it as a source. The peers' prefixes are made disjoint too (the more specific one
//! wins, as in routing), laid over the atoms, and each piece gets the class of its rule set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::netmap::{AddressRange, FilterRule, PacketFilter, Peer};
use crate::types::IpNet;

use super::firewall::{Admit, Class, ClassId, PortRange, Protocol, RuleId};
use super::from_map::Accepted;
use super::served::Served;

/// All sources that have a class.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Single addresses.
    pub(super) hosts: Vec<(IpAddr, ClassId)>,
    /// Subnets; no two overlap.
    pub(super) subnets: Vec<(IpNet, ClassId)>,
}

/// The packet filter, ready to be asked for the class of a source.
#[derive(Debug)]
pub(super) struct Classes {
    rights: BTreeMap<RuleId, Rights>,
    atoms: Atoms,
    /// The rules that name a capability.
    by_capability: Vec<RuleId>,
    /// Which class a rule set is, together with rules held by capability.
    named: BTreeMap<(usize, Vec<RuleId>), Option<ClassId>>,
    /// All classes that were ever asked for.
    made: BTreeMap<ClassId, Class>,
}

impl Classes {
    /// Reads the filter, and further rules, for a host that serves this.
    pub(super) fn of(filter: &PacketFilter, further: &[FilterRule], served: &Served) -> Self {
        let rights = rights(filter.rules.iter().chain(further), served);
        let by_capability = rights.iter().filter(|(_, rights)| !rights.capabilities.is_empty());
        let by_capability = by_capability.map(|(id, _)| *id).collect();
        let atoms = Atoms::of(&rights);
        Self { rights, atoms, by_capability, named: BTreeMap::new(), made: BTreeMap::new() }
    }

    /// Gives every prefix of these peers its class.
    pub(super) fn sources(&mut self, peers: &[Accepted<'_>]) -> Sources {
        let mut sources = Sources::default();
        let mut from = 0;
        for (range, peer) in disjoint(peers) {
            if !peer.may_open() {
                continue;
            }
            let held = self.held_by_capability(range, peer);
            for (piece, rule_set) in self.atoms.over(range, &mut from) {
                let Some(class) = self.class(rule_set, &held) else { continue };
                if piece.first == piece.last {
                    sources.hosts.push((piece.first, class));
                } else {
                    sources.subnets.extend(piece.prefixes().map(|prefix| (prefix, class)));
                }
            }
        }
        sources
    }

    /// The class of a single address of a peer.
    pub(super) fn source(&mut self, address: IpAddr, peer: &Peer) -> Option<ClassId> {
        if !peer.may_open() {
            return None;
        }
        let held = self.held_by_capability(AddressRange { first: address, last: address }, peer);
        self.class(self.atoms.at(address), &held)
    }

    /// What a class holds.
    pub(super) fn get(&self, id: ClassId) -> Class {
        self.made.get(&id).cloned().unwrap_or_default()
    }

    /// A capability is the node's own: what is behind it does not hold it.
    fn held_by_capability(&self, range: AddressRange, peer: &Peer) -> Vec<RuleId> {
        if self.by_capability.is_empty() || range.first != range.last || !peer.has_address(range.first) {
            return Vec::new();
        }
        let holds = |id: &&RuleId| self.rights[id].capabilities.iter().any(|name| peer.has_capability(name));
        self.by_capability.iter().filter(holds).copied().collect()
    }

    /// The class of a source in this rule set; `None` where that gives no rights.
    fn class(&mut self, rule_set: usize, held: &[RuleId]) -> Option<ClassId> {
        let key = (rule_set, held.to_vec());
        if let Some(class) = self.named.get(&key) {
            return *class;
        }
        let ids: BTreeSet<RuleId> = self.atoms.rule_sets[rule_set].iter().chain(held).copied().collect();
        let rules: BTreeMap<_, _> = ids.into_iter().map(|id| (id, self.rights[&id].admits.clone())).collect();
        let class = (!rules.is_empty()).then(|| self.name(Class { rules }));
        self.named.insert(key, class);
        class
    }

    fn name(&mut self, class: Class) -> ClassId {
        let mut id = ClassId(digest(class.rules.values().flatten()));
        // Two classes with one digest must not share their rights.
        while self.made.get(&id).is_some_and(|made| *made != class) {
            id.0 = id.0.wrapping_add(1);
        }
        self.made.insert(id, class);
        id
    }
}

/// What a rule, or several that give the same, admits and from where.
#[derive(Debug, Default)]
struct Rights {
    admits: BTreeSet<Admit>,
    sources: Vec<AddressRange>,
    capabilities: BTreeSet<String>,
}

/// Keeps of each rule what concerns us, and joins rules that give the same rights.
fn rights<'a>(rules: impl Iterator<Item = &'a FilterRule>, served: &Served) -> BTreeMap<RuleId, Rights> {
    let mut all: BTreeMap<RuleId, Rights> = BTreeMap::new();
    for rule in rules {
        let admits = admits(rule, served);
        if !admits.is_empty() {
            let rights = all.entry(rule_id_of(&admits)).or_default();
            rights.admits = admits;
            rights.sources.extend(&rule.sources);
            rights.capabilities.extend(rule.capabilities.iter().cloned());
        }
    }
    for rights in all.values_mut() {
        rights.sources = AddressRange::merged(std::mem::take(&mut rights.sources));
    }
    all
}

/// A protocol without ports is for rules that are for all ports; ICMP goes along with any right.
pub(super) fn admits(rule: &FilterRule, served: &Served) -> BTreeSet<Admit> {
    let mut admits = BTreeSet::new();
    let protocols = || rule.protocols.iter().copied().map(Protocol).filter(|protocol| !protocol.is_icmp());
    for to in &rule.destinations {
        let ports = PortRange { first: to.first_port, last: to.last_port };
        for destination in served.within(to.prefix) {
            let protocol = if destination.addr().is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
            admits.insert(Admit { destination, protocol, ports: PortRange::ALL });
            let rights = protocols().filter(|protocol| protocol.has_ports() || ports == PortRange::ALL);
            admits.extend(rights.map(|protocol| Admit { destination, protocol, ports }));
        }
    }
    admits
}

/// The address space cut wherever the rights of a source change.
#[derive(Debug)]
struct Atoms {
    /// Disjoint and ascending; addresses in none are no rule's source.
    ranges: Vec<(AddressRange, usize)>,
    /// What `ranges` refers to; the first is the empty set.
    rule_sets: Vec<BTreeSet<RuleId>>,
}

impl Atoms {
    fn of(rights: &BTreeMap<RuleId, Rights>) -> Self {
        let mut cuts: BTreeMap<(IpAddr, bool), Vec<RuleId>> = BTreeMap::new();
        for (id, rights) in rights {
            for range in &rights.sources {
                cuts.entry((range.first, false)).or_default().push(*id);
                cuts.entry((range.last, true)).or_default().push(*id);
            }
        }
        let mut atoms = Self { ranges: Vec::new(), rule_sets: vec![BTreeSet::new()] };
        let mut numbers = BTreeMap::from([(BTreeSet::new(), 0)]);
        let mut open = BTreeSet::new();
        let mut first = None;
        for ((at, ends), ids) in cuts {
            let last = if ends { Some(at) } else { before(at) };
            if let (Some(first), Some(last), false) = (first, last, open.is_empty())
                && first <= last
            {
                let number = *numbers.entry(open.clone()).or_insert_with(|| {
                    atoms.rule_sets.push(open.clone());
                    atoms.rule_sets.len() - 1
                });
                atoms.ranges.push((AddressRange { first, last }, number));
            }
            for id in ids {
                if ends {
                    open.remove(&id)
                } else {
                    open.insert(id)
                };
            }
            first = if ends { AddressRange { first: at, last: at }.next() } else { Some(at) };
        }
        atoms
    }

    /// The rule set of a single address.
    fn at(&self, address: IpAddr) -> usize {
        let next = self.ranges.partition_point(|(atom, _)| atom.last < address);
        self.ranges.get(next).filter(|(atom, _)| atom.first <= address).map_or(0, |(_, number)| *number)
    }

    /// Cuts a range at the atoms' borders. Ranges are asked for in ascending order; `from` remembers how
    /// far that has come.
    fn over(&self, range: AddressRange, from: &mut usize) -> Vec<(AddressRange, usize)> {
        while self.ranges.get(*from).is_some_and(|(atom, _)| atom.last < range.first) {
            *from += 1;
        }
        let mut pieces = Vec::with_capacity(1);
        let mut first = Some(range.first);
        for (atom, number) in self.ranges[*from..].iter().take_while(|(atom, _)| atom.first <= range.last) {
            let start = first.unwrap_or(range.first);
            if let Some(last) = before(atom.first).filter(|last| start <= *last) {
                pieces.push((AddressRange { first: start, last }, 0));
            }
            let piece = AddressRange { first: atom.first.max(start), last: atom.last.min(range.last) };
            pieces.push((piece, *number));
            first = piece.next();
        }
        if let Some(first) = first.filter(|first| *first <= range.last) {
            pieces.push((AddressRange { first, last: range.last }, 0));
        }
        pieces
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_sub(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// The peers' prefixes as disjoint ranges, ascending: inside a wider prefix the narrower one's peer counts.
fn disjoint<'a>(peers: &[Accepted<'a>]) -> Vec<(AddressRange, &'a Peer)> {
    let prefixes = |ipv4: bool| {
        let all = peers.iter().flat_map(|peer| peer.prefixes.iter().map(|prefix| (*prefix, peer.map)));
        all.filter(move |(prefix, _)| matches!(prefix, IpNet::V4(_)) == ipv4)
    };
    // Each family by itself is nearly in order already, which makes sorting cheap.
    let mut claims: Vec<(IpNet, &Peer)> = prefixes(true).collect();
    let ipv6 = claims.len();
    claims.extend(prefixes(false));
    claims[..ipv6].sort_by_key(|(prefix, _)| *prefix);
    claims[ipv6..].sort_by_key(|(prefix, _)| *prefix);

    let mut pieces = Vec::with_capacity(claims.len());
    // Prefixes that hold the current position, the widest first; each with what is left of it.
    let mut around: Vec<(AddressRange, &Peer)> = Vec::new();
    for (prefix, peer) in claims {
        let range = AddressRange::of(prefix);
        while let Some((rest, owner)) = around.pop_if(|(rest, _)| rest.last < range.first) {
            pieces.push((rest, owner));
            skip_past(&mut around, rest);
        }
        if let Some((rest, owner)) = around.last_mut()
            && let Some(last) = before(range.first).filter(|last| rest.first <= *last)
        {
            pieces.push((AddressRange { first: rest.first, last }, *owner));
            rest.first = range.first;
        }
        around.push((range, peer));
    }
    while let Some((rest, owner)) = around.pop() {
        pieces.push((rest, owner));
        skip_past(&mut around, rest);
    }
    pieces
}

/// A prefix that ended gives way to the one around it, unless that ends there too.
fn skip_past(around: &mut Vec<(AddressRange, &Peer)>, ended: AddressRange) {
    while let Some((rest, _)) = around.last_mut() {
        match ended.next().filter(|next| *next <= rest.last) {
            Some(next) => {
                rest.first = next;
                return;
            }
            None => drop(around.pop()),
        }
    }
}

/// The name of the rule that gives these rights.
pub(super) fn rule_id_of(admits: &BTreeSet<Admit>) -> RuleId {
    RuleId(digest(admits))
}

/// The first 8 bytes of the SHA-256 of what is admitted.
fn digest<'a>(admits: impl IntoIterator<Item = &'a Admit>) -> u64 {
    let mut hash = Sha256::new();
    for admit in admits {
        hash.update(admit.to_string());
        hash.update("\n");
    }
    let bytes: [u8; 32] = hash.finalize().into();
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
