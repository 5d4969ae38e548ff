//! A listing of our table, read back as a firewall.
//!
//! What varies is collected: elements, classes, the rights of each. Then the table that this firewall makes
//! is compared with the listing, object by object and rule by rule. So whatever was not understood or does
//! not belong shows as a difference, and equal firewalls mean equal tables.

use std::collections::{BTreeMap, BTreeSet};

use warren_core::plan::{
    Admit, ClassId, Count, Figures, Firewall, FirewallOptions, Lacks, ObservedFirewall, PortRange, Protocol, RuleId,
};
use warren_core::types::IpNet;

use super::elements::{AddressKey, Contents, prefix_between};
use super::expression::{Expression, Verdict};
use super::object::{AnonymousSet, Chain, Counter, Object, Rule, Set};
use super::table::{self, Family};
use super::{cut, exit, gateway, probes, resolver};

/// All that the kernel tells of our table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) chains: Vec<Chain>,
    pub(super) sets: Vec<Set>,
    pub(super) counters: Vec<Counter>,
    /// In order, with the sets that they look into.
    pub(super) rules: Vec<Rule>,
    /// What is in the sets of addresses, by their names.
    pub(super) contents: BTreeMap<String, Contents>,
}

/// What a listing says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) firewall: Firewall,
    /// Whether every flow that the table accepts as known was judged by it.
    pub(super) flows_judged: bool,
}

/// The firewall that the listing is, or why it is none of ours.
pub(super) fn read(mut listing: Listing) -> Result<Listed, String> {
    let judged = listing.counters.iter().position(|counter| counter.name == cut::JUDGED);
    judged.map(|place| listing.counters.remove(place));
    let mut firewall =
        Firewall { options: read_options(&listing.rules), lacks: read_lacks(&listing.rules), ..Firewall::default() };
    firewall.beside_exit = listing.chains.iter().any(|chain| exit::is_chain(&chain.name)).then(BTreeSet::new);
    firewall.carries = gateway::read(&listing.chains, &listing.rules);
    for (name, contents) in std::mem::take(&mut listing.contents) {
        collect_contents(&mut firewall, &name, contents).map_err(|reason| format!("set {name}: {reason}"))?;
    }
    for id in listing.chains.iter().filter_map(|chain| class_id(&chain.name)) {
        firewall.classes.entry(id).or_default();
    }
    for rule in &listing.rules {
        collect_rights(&mut firewall, rule);
        probes::collect(&mut firewall.probes, rule);
        resolver::collect(&mut firewall.resolver_port, rule);
    }
    match Shape::of(table::objects(&firewall)).difference(&Shape::of(listing.objects())) {
        Some(difference) => Err(difference),
        None => Ok(Listed { firewall, flows_judged: judged.is_some() }),
    }
}

impl Listing {
    fn objects(self) -> impl Iterator<Item = Object> {
        let counters = self.counters.into_iter().map(|counter| Object::Counter(counter.name));
        let sets = self.sets.into_iter().map(Object::Set);
        let chains = self.chains.into_iter().map(Object::Chain);
        counters.chain(sets).chain(chains).chain(self.rules.into_iter().map(Object::Rule))
    }

    /// The counters of rules, and of reasons to drop.
    pub(super) fn figures(counters: Vec<Counter>, firewall: ObservedFirewall) -> Figures {
        let mut figures = Figures { firewall, ..Figures::default() };
        for Counter { name, packets, bytes } in counters {
            let count = Count { packets, bytes };
            match name.strip_prefix("rule_").map(str::parse) {
                Some(Ok(id)) => drop(figures.rules.insert(id, count)),
                _ if name.starts_with("denied_") => drop(figures.denied.insert(name, count)),
                _ => {}
            }
        }
        figures
    }
}

/// What the table is made without, told by the rules that are there with it.
fn read_lacks(rules: &[Rule]) -> Lacks {
    let any = |is: fn(&Expression) -> bool| rules.iter().any(|rule| rule.expressions.iter().any(is));
    Lacks {
        reset: !any(|expression| matches!(expression, Expression::Refuse { .. })),
        routes: !any(|expression| matches!(expression, Expression::LoadFib { .. })),
    }
}

/// What the operator chose, told by the rules that follow from it.
fn read_options(rules: &[Rule]) -> FirewallOptions {
    let all = || rules.iter().flat_map(|rule| &rule.expressions);
    let counts =
        |reason| all().any(|expression| matches!(expression, Expression::Count { counter } if counter == reason));
    let group = |expression: &Expression| {
        let Expression::Log { group, .. } = expression else { return None };
        Some(*group)
    };
    FirewallOptions {
        shared_range: !counts(table::DENIED_SPOOFED),
        lan_may_open: !counts(table::DENIED_UNASKED),
        log_denied: all().find_map(group),
    }
}

/// Adds what is in a set to the firewall.
fn collect_contents(firewall: &mut Firewall, name: &str, contents: Contents) -> Result<(), String> {
    let mut beside = BTreeSet::new();
    let is_of = |set: &str| Family::BOTH.iter().any(|family| family.name(set) == name);
    let nets = [
        (table::SERVED, &mut firewall.served.listed),
        (table::INTERNET, &mut firewall.served.internet),
        (table::TUNNELLED, &mut firewall.tunnelled),
        (table::BY_EXIT, &mut firewall.by_exit),
        (table::BESIDE, firewall.beside_exit.as_mut().unwrap_or(&mut beside)),
        (table::ELSEWHERE, &mut firewall.elsewhere),
    ];
    if let Some((_, nets)) = nets.into_iter().find(|(set, _)| is_of(set)) {
        nets.extend(contents.into_iter().map(|(net, _)| net));
        return Ok(());
    }
    for (net, verdict) in contents {
        let class = match &verdict {
            Some(Verdict::Goto(chain)) => class_id(chain),
            _ => None,
        };
        let class = class.ok_or_else(|| format!("{net} leads to no class: {verdict:?}"))?;
        if is_of(table::HOSTS) {
            firewall.hosts.insert(net.addr(), class);
        } else {
            firewall.subnets.insert(net, class);
        }
    }
    Ok(())
}

/// Reads the rights out of a class's rule. The rule for what has no ports says nothing new, so it is passed
/// over here.
fn collect_rights(firewall: &mut Firewall, rule: &Rule) -> Option<()> {
    let class = class_id(&rule.chain)?;
    let counter = rule.expressions.iter().find_map(|expression| {
        let Expression::Count { counter } = expression else { return None };
        Some(counter)
    });
    let id: RuleId = counter?.strip_prefix("rule_")?.parse().ok()?;
    let [set] = rule.sets.as_slice() else { return None };
    let admits: BTreeSet<Admit> =
        set.items.iter().map(|(first, last)| read_admit(first, last)).collect::<Option<_>>()?;
    firewall.classes.entry(class).or_default().rules.entry(id).or_default().extend(admits);
    Some(())
}

/// The right that a range of destination, protocol and port stands for, each padded to four bytes.
fn read_admit(first: &[u8], last: &[u8]) -> Option<Admit> {
    let (first_address, [first_protocol, .., first_high, first_low, _, _]) = first.split_last_chunk::<8>()?;
    let (last_address, [last_protocol, .., last_high, last_low, _, _]) = last.split_last_chunk::<8>()?;
    let destination: IpNet = prefix_between(AddressKey::read(first_address)?, AddressKey::read(last_address)?)?;
    let ports = PortRange {
        first: u16::from_be_bytes([*first_high, *first_low]),
        last: u16::from_be_bytes([*last_high, *last_low]),
    };
    (first_protocol == last_protocol).then_some(Admit { destination, protocol: Protocol(*first_protocol), ports })
}

fn class_id(chain: &str) -> Option<ClassId> {
    let digits = chain.strip_prefix("class_")?;
    let id: ClassId = digits.parse().ok()?;
    // One name, one class: no other spelling of the number.
    (id.to_string() == digits).then_some(id)
}

/// A table without its elements and figures, for comparison.
#[derive(Default)]
struct Shape {
    objects: BTreeMap<(&'static str, String), Object>,
    rules: BTreeMap<String, Vec<Rule>>,
}

impl Shape {
    fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut shape = Self::default();
        for object in objects {
            let place = match object {
                Object::Table => continue,
                Object::Rule(mut rule) => {
                    rule.sets.iter_mut().for_each(AnonymousSet::sort);
                    shape.rules.entry(rule.chain.clone()).or_default().push(rule);
                    continue;
                }
                Object::Chain(ref chain) => ("chain", chain.name.clone()),
                Object::Set(ref set) => ("set", set.name.clone()),
                Object::Counter(ref name) => ("counter", name.clone()),
            };
            shape.objects.insert(place, object);
        }
        shape
    }

    /// The first thing in which `found` is not this.
    fn difference(&self, found: &Self) -> Option<String> {
        for (place @ (kind, name), object) in &self.objects {
            match found.objects.get(place) {
                None => return Some(format!("{kind} {name} is missing")),
                Some(other) if other != object => return Some(format!("{kind} {name} is not as we write it")),
                Some(_) => {}
            }
        }
        if let Some((kind, name)) = found.objects.keys().find(|place| !self.objects.contains_key(*place)) {
            return Some(format!("{kind} {name} is not ours"));
        }
        let chains: BTreeSet<&String> = self.rules.keys().chain(found.rules.keys()).collect();
        chains.into_iter().find_map(|chain| {
            let none = Vec::new();
            let (ours, theirs) = (self.rules.get(chain).unwrap_or(&none), found.rules.get(chain).unwrap_or(&none));
            let place = (0..ours.len().max(theirs.len())).find(|place| ours.get(*place) != theirs.get(*place))?;
            Some(match theirs.get(place) {
                Some(rule) => format!("chain {chain} has a rule that is not ours: {:?}", rule.expressions),
                None => format!("chain {chain} has only {place} of its {} rules", ours.len()),
            })
        })
    }
}
