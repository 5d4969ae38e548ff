//! The firewall as an nftables table.
//!
//! ```text
//! arrive  (prerouting)  from our link: overlay; what comes back from there without a verdict: dropped
//!                       an overlay source that arrives elsewhere than its route leads: dropped
//! forward (forward)     into our link: only answers
//! output  (output)      into our link: not what goes on with a flow that was ended
//!                       to the overlay's ranges by another link: dropped, but for our own outer packets and for
//!                       @elsewhere4/6, the host's own networks there
//! and with an exit node those of `exit`, which keep what leaves to our link; on a gateway those of `gateway`
//!
//! overlay   established, to @served4/6, no route of the sender's within   accept
//!           a route of the sender's within, or a destination neither in @served4/6 nor in @internet4/6   drop
//!           destination in @internet4/6 and this host's own   drop
//!           established; related: ICMP errors on the way to @tunnelled4/6 or @by_exit4/6, and what another flow led to   accept
//!           other ICMP errors, echo replies, and what configures hosts   drop
//!           source in @hosts4/6, else @subnets4/6  goto class_…
//!           any other source                       drop
//! class_…   per rule: destination . protocol . port in { … }   accept, counted
//!           per rule: ICMP, and what has no ports, to its destinations   accept, counted
//! ```
//!
//! Packets are judged where they arrive, after connection tracking and before destinations are rewritten: the policy
//! speaks of what the sender addressed, so a port that is published by address translation (a container's) is
//! reached by the rights to that port. The chains name our link by name, so that the table stands before the link
//! does. What is accepted here still meets the host's own filters. The destination is asked of every packet, also of
//! those that connection tracking knows: it knows all flows of the host, and a peer has no business in those that are
//! not the overlay's. An error that is about none of the flows known would find its way to any socket of the host by
//! what it quotes, so it is dropped. A spoofed source is told by the route that leads
//! back to it and not by its range alone, so that another use of the shared address space on this host (a
//! provider's network, another overlay) goes on beside us.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_core::plan::{Admit, Class, ClassId, Firewall, PortRange, Protocol, RuleId};
use warren_core::types::IpNet;

use super::elements::{AddressKey, push_padded};
use super::expression::Verdict;
use super::object::{Chain, Object, Part, Set};
use super::rule::{Condition, Field, accept, count, rule};
use super::update::Elements;
use super::{chains, cut, exit, gateway, probes, resolver};

/// Why a packet was dropped: a counter each.
pub(super) const DENIED_SPOOFED: &str = "denied_spoofed_source";
pub(super) const DENIED_DESTINATION: &str = "denied_foreign_destination";
pub(super) const DENIED_ANSWER: &str = "denied_answer_to_nothing";
pub(super) const DENIED_SOURCE: &str = "denied_unknown_source";
pub(super) const DENIED_POLICY: &str = "denied_by_policy";
pub(super) const DENIED_UNASKED: &str = "denied_unasked_into_overlay";
pub(super) const DENIED_REVOKED: &str = "denied_revoked_flow";
pub(super) const DENIED_ASTRAY: &str = "denied_astray";
pub(super) const DENIED: [&str; 8] = [
    DENIED_SPOOFED,
    DENIED_DESTINATION,
    DENIED_ANSWER,
    DENIED_SOURCE,
    DENIED_POLICY,
    DENIED_UNASKED,
    DENIED_REVOKED,
    DENIED_ASTRAY,
];

/// What others may send to.
pub(super) const SERVED: &str = "served";
/// What of that a default route comes to.
pub(super) const INTERNET: &str = "internet";
/// What lies behind our link.
pub(super) const TUNNELLED: &str = "tunnelled";
/// What else of everything does, where it leads to an exit node.
pub(super) const BY_EXIT: &str = "by_exit";
/// What is reached beside an exit node.
pub(super) const BESIDE: &str = "beside";
/// What of the overlay's ranges is this host's own.
pub(super) const ELSEWHERE: &str = "elsewhere";

/// Single sources, and the chain that judges each.
pub(super) const HOSTS: &str = "hosts";
/// Sources that are prefixes.
pub(super) const SUBNETS: &str = "subnets";

/// The address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// What a set is called that holds addresses of this family.
    pub(super) fn name(self, set: &str) -> String {
        match self {
            Self::V4 => format!("{set}4"),
            Self::V6 => format!("{set}6"),
        }
    }

    pub(super) fn part(self) -> Part {
        match self {
            Self::V4 => Part::Ipv4,
            Self::V6 => Part::Ipv6,
        }
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Every object of the table, in an order in which each finds what it refers to.
pub(super) fn objects(firewall: &Firewall) -> Vec<Object> {
    let mut objects = vec![Object::Table];
    objects.extend(DENIED.iter().map(|name| Object::Counter((*name).to_owned())));
    objects.extend(rule_ids(firewall).into_iter().map(|id| Object::Counter(counter_name(id))));
    objects.extend(firewall.classes.keys().map(|id| Object::Chain(class_chain(*id))));
    for family in Family::BOTH {
        objects.extend(SETS.iter().map(|(name, kind)| Object::Set(kind.set(name, family))));
    }
    objects.extend(Family::BOTH.map(cut::set).map(Object::Set));
    objects.extend(chains::chains());
    objects.extend(probes::objects(firewall.probes.as_ref()));
    objects.extend(resolver::objects(firewall.resolver_port));
    objects.extend(exit::objects(firewall.beside_exit.is_some()));
    objects.extend(gateway::objects(firewall.carries));
    for (id, class) in &firewall.classes {
        objects.extend(class_rules(*id, class));
    }
    objects.extend(chains::rules(firewall));
    objects.extend(probes::rules(firewall.probes.as_ref()));
    objects.extend(resolver::rules(firewall.resolver_port));
    objects.extend(exit::rules(firewall.beside_exit.is_some(), firewall.lacks));
    objects.extend(gateway::rules(firewall.carries));
    objects
}

/// What a set of ours holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Prefixes,
    /// Addresses, and where each leads.
    AddressesThatLead,
    PrefixesThatLead,
}

/// The sets of addresses, of which there is one for each family.
pub(super) const SETS: [(&str, Holds); 8] = [
    (SERVED, Holds::Prefixes),
    (INTERNET, Holds::Prefixes),
    (TUNNELLED, Holds::Prefixes),
    (BY_EXIT, Holds::Prefixes),
    (BESIDE, Holds::Prefixes),
    (ELSEWHERE, Holds::Prefixes),
    (HOSTS, Holds::AddressesThatLead),
    (SUBNETS, Holds::PrefixesThatLead),
];

impl Holds {
    pub(super) fn set(self, name: &str, family: Family) -> Set {
        Set {
            name: family.name(name),
            key: vec![family.part()],
            is_interval: self != Self::AddressesThatLead,
            is_map: self != Self::Prefixes,
            size: None,
            timeout: None,
        }
    }
}

/// What a set of addresses holds where the table is this firewall.
pub(super) fn contents(firewall: &Firewall, name: &str, family: Family) -> Elements {
    let of_family = |net: &IpNet| Family::of(net.addr()) == family;
    let prefixes = |nets: &BTreeSet<IpNet>| nets.iter().copied().filter(of_family).map(|net| (net, None)).collect();
    Elements::Prefixes(match name {
        SERVED => prefixes(&firewall.served.listed),
        INTERNET => prefixes(&firewall.served.internet),
        TUNNELLED => prefixes(&firewall.tunnelled),
        BY_EXIT => prefixes(&firewall.by_exit),
        BESIDE => firewall.beside_exit.as_ref().map(prefixes).unwrap_or_default(),
        ELSEWHERE => prefixes(&firewall.elsewhere),
        HOSTS => {
            let hosts = firewall.hosts.iter().map(|(address, class)| (IpNet::from(*address), Some(*class)));
            hosts.filter(|(net, _)| of_family(net)).collect()
        }
        SUBNETS => {
            let subnets = firewall.subnets.iter().map(|(net, class)| (*net, Some(*class)));
            subnets.filter(|(net, _)| of_family(net)).collect()
        }
        _ => Vec::new(),
    })
}

/// The rules that some class uses.
pub(super) fn rule_ids(firewall: &Firewall) -> BTreeSet<RuleId> {
    firewall.classes.values().flat_map(|class| class.rules.keys().copied()).collect()
}

/// The chain that judges a class.
pub(super) fn class_chain(id: ClassId) -> Chain {
    Chain { name: class_name(id), base: None }
}

pub(super) fn class_name(id: ClassId) -> String {
    format!("class_{id}")
}

/// Leads to the chain of a class.
pub(super) fn goto(id: ClassId) -> Verdict {
    Verdict::Goto(class_name(id))
}

/// The counter of a rule of the packet filter.
pub(super) fn counter_name(id: RuleId) -> String {
    format!("rule_{id}")
}

/// What a class may open: the rules of its chain.
pub(super) fn class_rules(id: ClassId, class: &Class) -> Vec<Object> {
    let mut rules = Vec::new();
    for (rule_id, admits) in &class.rules {
        let counted = |fields, items| {
            let actions = [count(&counter_name(*rule_id)), accept()];
            rule(&class_name(id), &[Condition::is_any(fields, items)], actions)
        };
        for family in Family::BOTH {
            let admits: Vec<Admit> =
                admits.iter().filter(|admit| Family::of(admit.destination.addr()) == family).copied().collect();
            let to = Field::destination(family);
            for layer in layers(&admits) {
                let items = layer.iter().map(admit_range).collect();
                rules.push(counted(vec![to, Field::PROTOCOL, Field::DESTINATION_PORT], items));
            }
            let portless = portless(family, &admits);
            if !portless.is_empty() {
                let items = portless.iter().map(|(to, protocol)| range(*to, *protocol, None)).collect();
                rules.push(counted(vec![to, Field::PROTOCOL], items));
            }
        }
    }
    rules
}

fn admit_range(admit: &Admit) -> (Vec<u8>, Vec<u8>) {
    range(admit.destination, admit.protocol, Some(admit.ports))
}

/// First and last of what a right is for.
fn range(to: IpNet, protocol: Protocol, ports: Option<PortRange>) -> (Vec<u8>, Vec<u8>) {
    let key = |address: IpAddr, port: Option<u16>| {
        let mut key = Vec::new();
        push_padded(&mut key, AddressKey::from(address).as_ref());
        push_padded(&mut key, &[protocol.0]);
        port.iter().for_each(|port| push_padded(&mut key, &port.to_be_bytes()));
        key
    };
    (key(to.network(), ports.map(|ports| ports.first)), key(to.broadcast(), ports.map(|ports| ports.last)))
}

/// What is admitted whatever stands where other protocols have ports, or if nothing does: ICMP to all destinations,
/// and protocols without ports to theirs.
fn portless(family: Family, admits: &[Admit]) -> BTreeSet<(IpNet, Protocol)> {
    let icmp = Protocol::icmp_of(family.unspecified());
    let protocols = admits.iter().map(|admit| admit.protocol).filter(|protocol| !protocol.has_ports());
    let protocols: BTreeSet<Protocol> = protocols.chain([icmp]).collect();
    let to = |protocol: Protocol| {
        let is_for = move |admit: &&Admit| admit.protocol == protocol && admit.ports == PortRange::ALL;
        let admits = admits.iter().filter(move |admit| protocol == icmp || is_for(admit));
        widest(admits.map(|admit| admit.destination)).into_iter().map(move |net| (net, protocol))
    };
    protocols.into_iter().flat_map(to).collect()
}

/// Splits overlapping rights over several sets, because a set of intervals takes none that overlap.
///
/// Rights come sorted by destination, so a prefix follows those that contain it: each right goes to the
/// first layer where none of the rights around it overlaps it.
fn layers(admits: &[Admit]) -> Vec<Vec<Admit>> {
    let mut layers: Vec<Vec<Admit>> = Vec::new();
    let mut around: Vec<(Admit, usize)> = Vec::new();
    for admit in admits {
        around.retain(|(outer, _)| outer.destination.contains(&admit.destination));
        let taken: BTreeSet<usize> = around
            .iter()
            .filter(|(outer, _)| outer.protocol == admit.protocol && ports_meet(outer.ports, admit.ports))
            .map(|(_, layer)| *layer)
            .collect();
        let layer = (0..).find(|layer| !taken.contains(layer)).unwrap_or_default();
        if layer == layers.len() {
            layers.push(Vec::new());
        }
        layers[layer].push(*admit);
        around.push((*admit, layer));
    }
    layers
}

fn ports_meet(a: PortRange, b: PortRange) -> bool {
    a.first <= b.last && b.first <= a.last
}

/// The prefixes that no other contains. Neighbours stay apart.
fn widest(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let sorted: BTreeSet<IpNet> = nets.collect();
    let mut widest: Vec<IpNet> = Vec::new();
    for net in sorted {
        if !widest.last().is_some_and(|outer| outer.contains(&net)) {
            widest.push(net);
        }
    }
    widest
}
