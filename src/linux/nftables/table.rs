//! The firewall as an nftables table.
//!
//! ```text
//! arrive  (prerouting)  from our link: overlay; what comes back from there without a verdict: dropped
//!                       an overlay source that arrives elsewhere than its route leads: dropped
//! forward (forward)     into our link: only answers
//! output  (output)      into our link: not what goes on with a flow that was ended
//!                       to the overlay's ranges by another link: dropped, but for our own outer packets and for
//!                       @elsewhere4/6, the host's own networks there
//!
//! overlay   a route of the sender's within, or a destination neither in @served4/6 nor in @internet4/6   drop
//!           destination in @internet4/6 and this host's own   drop
//!           established; related: ICMP errors on the way to @tunnelled4/6, and what another flow led to   accept
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
//!
//! Numbers, not names, for protocols, ICMP types and states: names depend on files of the host. What is
//! written here is what `nft -j -n` prints, so a listing can be compared with it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range, SetItem};
use nftables::schema::{Chain, Rule, Table};
use nftables::stmt::{self, Match, Operator, Statement};
use nftables::types::NfFamily;

use warren_core::plan::{Admit, Class, ClassId, Firewall, PortRange, Protocol, RuleId, own};
use warren_core::types::IpNet;

use super::object::{Address, AddressSet, Counter, Object, Set, Verdict, VerdictMap};
use super::{chains, cut, probes};

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
/// What of the overlay's ranges is this host's own.
pub(super) const ELSEWHERE: &str = "elsewhere";

/// The address families, with how nftables names the things of each.
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

    pub(super) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    pub(super) fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Every object of the table, in an order in which each finds what it refers to. `with_elements` is false
/// where only the shape is compared.
pub(super) fn objects(firewall: &Firewall, with_elements: bool) -> Vec<Object> {
    let mut objects = vec![table()];
    objects.extend(DENIED.iter().map(|name| counter((*name).to_owned())));
    objects.extend(rule_ids(firewall).into_iter().map(|id| counter(counter_name(id))));
    objects.extend(firewall.classes.keys().map(|id| chain(class_name(*id))));
    for family in Family::BOTH {
        let served = with_elements.then_some(&firewall.served);
        objects.push(address_set(SERVED, family, served.map(|served| &served.listed)));
        objects.push(address_set(INTERNET, family, served.map(|served| &served.internet)));
        objects.push(address_set(TUNNELLED, family, with_elements.then_some(&firewall.tunnelled)));
        objects.push(address_set(ELSEWHERE, family, with_elements.then_some(&firewall.elsewhere)));
        objects.push(hosts_map(family, with_elements.then_some(firewall)));
        objects.push(subnets_map(family, with_elements.then_some(firewall)));
    }
    objects.extend(Family::BOTH.map(cut::set));
    objects.extend(chains::chains());
    objects.extend(probes::objects(firewall.probes.as_ref()));
    for (id, class) in &firewall.classes {
        objects.extend(class_rules(*id, class));
    }
    objects.extend(chains::rules(firewall));
    objects.extend(probes::rules(firewall.probes.as_ref()));
    objects
}

/// The rules that some class uses.
pub(super) fn rule_ids(firewall: &Firewall) -> BTreeSet<RuleId> {
    firewall.classes.values().flat_map(|class| class.rules.keys().copied()).collect()
}

pub(super) fn table() -> Object {
    Object::Table(Table { family: NfFamily::INet, name: own::NFT_TABLE.into(), handle: None })
}

pub(super) fn counter(name: String) -> Object {
    Object::Counter(Counter { family: "inet".to_owned(), table: own::NFT_TABLE.to_owned(), name, packets: 0, bytes: 0 })
}

pub(super) fn chain(name: String) -> Object {
    Object::Chain(Chain {
        family: NfFamily::INet,
        table: own::NFT_TABLE.into(),
        name: name.into(),
        newname: None,
        handle: None,
        _type: None,
        hook: None,
        prio: None,
        dev: None,
        policy: None,
    })
}

/// The chain that judges a class.
pub(super) fn class_name(id: ClassId) -> String {
    format!("class_{id}")
}

/// The counter of a rule of the packet filter.
pub(super) fn counter_name(id: RuleId) -> String {
    format!("rule_{id}")
}

/// What a class may open: the rules of its chain.
pub(super) fn class_rules(id: ClassId, class: &Class) -> Vec<Object> {
    let mut rules = Vec::new();
    for (rule_id, admits) in &class.rules {
        let counted = |matches: Vec<Statement<'static>>| {
            let verdict = [count(counter_name(*rule_id)), Statement::Accept(None)];
            rule(class_name(id), matches.into_iter().chain(verdict).collect())
        };
        for family in Family::BOTH {
            let admits: Vec<Admit> =
                admits.iter().filter(|admit| Family::of(admit.destination.addr()) == family).copied().collect();
            for layer in layers(&admits) {
                let key = vec![payload(family.protocol(), "daddr"), meta(MetaKey::L4proto), payload("th", "dport")];
                rules.push(counted(vec![equals(concat(key), set(layer.iter().map(write_admit)))]));
            }
            let portless = portless(family, &admits);
            if !portless.is_empty() {
                let key = vec![payload(family.protocol(), "daddr"), meta(MetaKey::L4proto)];
                let items = portless
                    .iter()
                    .map(|(to, protocol)| concat(vec![write_address(to), Expression::Number(protocol.0.into())]));
                rules.push(counted(vec![equals(concat(key), set(items))]));
            }
        }
    }
    rules
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

/// The single sources of one family, with their classes.
fn hosts(firewall: &Firewall, family: Family) -> impl Iterator<Item = (Address, Verdict)> {
    let hosts = firewall.hosts.iter().filter(move |(address, _)| Family::of(**address) == family);
    hosts.map(|(address, class)| (Address::Host(*address), goto(*class)))
}

/// The source prefixes of one family, with their classes.
fn subnets(firewall: &Firewall, family: Family) -> impl Iterator<Item = (Address, Verdict)> {
    let subnets = firewall.subnets.iter().filter(move |(net, _)| Family::of(net.addr()) == family);
    subnets.map(|(net, class)| (Address::from(*net), goto(*class)))
}

fn address_set(name: &str, family: Family, nets: Option<&BTreeSet<IpNet>>) -> Object {
    let of_family = nets.into_iter().flatten().filter(|net| Family::of(net.addr()) == family);
    Object::Set(Set::Addresses(AddressSet {
        family: "inet".to_owned(),
        table: own::NFT_TABLE.to_owned(),
        name: format!("{name}{}", family.digit()),
        key: family.address_type().to_owned(),
        flags: vec!["interval".to_owned()],
        elem: of_family.map(|net| Address::from(*net)).collect(),
        timeout: None,
    }))
}

fn hosts_map(family: Family, firewall: Option<&Firewall>) -> Object {
    let elem = firewall.map(|firewall| hosts(firewall, family).collect()).unwrap_or_default();
    verdict_map("hosts", family, Vec::new(), elem)
}

fn subnets_map(family: Family, firewall: Option<&Firewall>) -> Object {
    let elem = firewall.map(|firewall| subnets(firewall, family).collect()).unwrap_or_default();
    verdict_map("subnets", family, vec!["interval".to_owned()], elem)
}

fn verdict_map(name: &str, family: Family, flags: Vec<String>, elem: Vec<(Address, Verdict)>) -> Object {
    Object::Map(VerdictMap {
        family: "inet".to_owned(),
        table: own::NFT_TABLE.to_owned(),
        name: format!("{name}{}", family.digit()),
        key: family.address_type().to_owned(),
        map: "verdict".to_owned(),
        flags,
        elem,
        timeout: None,
    })
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

fn write_admit(admit: &Admit) -> Expression<'static> {
    let ports = if admit.ports.first == admit.ports.last {
        Expression::Number(admit.ports.first.into())
    } else {
        let range = [admit.ports.first, admit.ports.last].map(|port| Expression::Number(port.into()));
        Expression::Range(Box::new(Range { range }))
    };
    let protocol = Expression::Number(admit.protocol.0.into());
    concat(vec![write_address(&admit.destination), protocol, ports])
}

pub(super) fn write_address(net: &IpNet) -> Expression<'static> {
    let address = Expression::String(net.addr().to_string().into());
    if net.prefix_len() == net.max_prefix_len() {
        return address;
    }
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(address), len: net.prefix_len().into() }))
}

pub(super) fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

/// An anonymous set. One whose key is not a concatenation must hold no neighbours: `nft` would join them.
pub(super) fn set(items: impl Iterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.map(SetItem::Element).collect()))
}

pub(super) fn rule(chain: String, statements: Vec<Statement<'static>>) -> Object {
    Object::Rule(Rule {
        family: NfFamily::INet,
        table: own::NFT_TABLE.into(),
        chain: chain.into(),
        expr: statements.into(),
        handle: None,
        index: None,
        comment: None,
    })
}

pub(super) fn goto(class: ClassId) -> Verdict {
    Verdict::Goto { target: class_name(class) }
}

pub(super) fn count(name: String) -> Statement<'static> {
    Statement::Counter(stmt::Counter::Named(name.into()))
}

pub(super) fn equals(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(super) fn reference(name: &str, family: Family) -> Expression<'static> {
    Expression::String(format!("@{name}{}", family.digit()).into())
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn text(text: &'static str) -> Expression<'static> {
    Expression::String(text.into())
}
