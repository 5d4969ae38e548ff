//! A listing of our table, read back as a firewall.
//!
//! What varies is collected: elements, classes, the rights of each. Then the table that this firewall makes
//! is compared with the listing, object by object and rule by rule. So whatever was not understood or does
//! not belong shows as a difference, and equal firewalls mean equal tables.

use std::collections::{BTreeMap, BTreeSet};

use nftables::expr::{Expression, NamedExpression, SetItem};
use nftables::schema::Rule;
use nftables::stmt::{self, Statement};

use warren_core::plan::{
    Admit, ClassId, Count, Figures, Firewall, FirewallOptions, Lacks, ObservedFirewall, PortRange, Protocol, RuleId,
};
use warren_core::types::IpNet;

use super::elements::Contents;
use super::object::{Address, AddressSet, Document, Object, Set, Verdict, VerdictMap};
use super::{chains, cut, probes, table};

/// What a listing says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) firewall: Firewall,
    /// Whether every flow that the table accepts as known was judged by it.
    pub(super) flows_judged: bool,
}

/// The firewall that the listing is, or why it is none of ours. The listing names sets without their elements, which
/// come beside it.
pub(super) fn read(listing: &str, elements: BTreeMap<&str, Contents>) -> Result<Listed, String> {
    let mut document: Document<Object> =
        serde_json::from_str(listing).map_err(|error| format!("an object we do not write: {error}"))?;
    for (name, contents) in elements {
        fill(&mut document.nftables, name, contents)?;
    }
    let options = read_options(&document.nftables);
    let lacks = read_lacks(&document.nftables);
    let mut firewall = Firewall { options, lacks, ..Firewall::default() };
    let mut flows_judged = false;
    let mut found = Shape::default();
    for object in document.nftables {
        if matches!(&object, Object::Counter(counter) if counter.name == cut::JUDGED) {
            flows_judged = true;
            continue;
        }
        collect(&mut firewall, &object)?;
        found.insert(object)?;
    }
    let mut expected = Shape::default();
    for object in table::objects(&firewall, false) {
        expected.insert(object)?;
    }
    match expected.difference(&found) {
        Some(difference) => Err(difference),
        None => Ok(Listed { firewall, flows_judged }),
    }
}

/// Puts elements into the set that they are of. Where there is none, that is seen in the comparison.
fn fill(objects: &mut [Object], name: &str, contents: Contents) -> Result<(), String> {
    for object in objects {
        match object {
            Object::Set(Set::Addresses(set)) if set.name == name => {
                set.elem = contents.into_iter().map(|(address, _)| address).collect();
                return Ok(());
            }
            Object::Map(map) if map.name == name => {
                let leads = |(address, verdict): (Address, Option<Verdict>)| Some((address, verdict?));
                let elements: Option<Vec<_>> = contents.into_iter().map(leads).collect();
                map.elem = elements.ok_or_else(|| format!("map {name}: an element leads nowhere"))?;
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the table is made without, told by the rules that are there with it.
fn read_lacks(objects: &[Object]) -> Lacks {
    let any = |is: fn(&Statement<'_>) -> bool| rules_of(objects).any(|rule| rule.expr.iter().any(is));
    let asks_for_way = |statement: &Statement<'_>| matches!(statement, Statement::Match(comparison) if matches!(comparison.left, Expression::Named(NamedExpression::Fib(_))));
    Lacks { reset: !any(|statement| matches!(statement, Statement::Reject(_))), routes: !any(asks_for_way) }
}

fn rules_of(objects: &[Object]) -> impl Iterator<Item = &Rule<'static>> {
    objects.iter().filter_map(|object| if let Object::Rule(rule) = object { Some(rule) } else { None })
}

/// What the operator chose, told by the rules that follow from it.
fn read_options(objects: &[Object]) -> FirewallOptions {
    let rules = || rules_of(objects);
    let counts = |reason: &str| {
        let counts = |statement: &Statement<'_>| matches!(statement, Statement::Counter(stmt::Counter::Named(name)) if name == reason);
        rules().any(|rule| rule.expr.iter().any(counts))
    };
    FirewallOptions {
        shared_range: !counts(table::DENIED_SPOOFED),
        lan_may_open: !counts(table::DENIED_UNASKED),
        log_denied: rules().flat_map(|rule| rule.expr.iter()).find_map(chains::log_group),
    }
}

/// The counters of a listing: of rules, and of reasons to drop.
pub(super) fn read_counters(firewall: ObservedFirewall, listing: &str) -> Result<Figures, String> {
    let document: Document<Object> = serde_json::from_str(listing).map_err(|error| error.to_string())?;
    let mut figures = Figures { firewall, ..Figures::default() };
    for object in document.nftables {
        let Object::Counter(counter) = object else { continue };
        let count = Count { packets: counter.packets, bytes: counter.bytes };
        match counter.name.strip_prefix("rule_").map(str::parse) {
            Some(Ok(id)) => drop(figures.rules.insert(id, count)),
            _ if counter.name.starts_with("denied_") => drop(figures.denied.insert(counter.name, count)),
            _ => {}
        }
    }
    Ok(figures)
}

/// Adds what the object says to the firewall. Whether it says it rightly is seen in the comparison.
fn collect(firewall: &mut Firewall, object: &Object) -> Result<(), String> {
    match object {
        Object::Set(Set::Addresses(set)) => collect_addresses(firewall, set),
        Object::Set(Set::Cut(_)) => Ok(()),
        Object::Map(map) => collect_sources(firewall, map),
        Object::Chain(chain) => {
            if let Some(id) = class_id(&chain.name) {
                firewall.classes.entry(id).or_default();
            }
            Ok(())
        }
        Object::Rule(rule) => {
            collect_rights(firewall, rule);
            probes::collect(&mut firewall.probes, rule);
            Ok(())
        }
        Object::Metainfo(_) | Object::Table(_) | Object::Counter(_) | Object::Element(_) => Ok(()),
    }
}

fn collect_addresses(firewall: &mut Firewall, set: &AddressSet) -> Result<(), String> {
    for address in &set.elem {
        let net = address.net().ok_or_else(|| format!("set {}: a prefix too long", set.name))?;
        let name = set.name.trim_end_matches(['4', '6']);
        let nets = match name {
            table::SERVED => &mut firewall.served.listed,
            table::INTERNET => &mut firewall.served.internet,
            table::TUNNELLED => &mut firewall.tunnelled,
            table::ELSEWHERE => &mut firewall.elsewhere,
            _ => return Err(format!("set {} is not ours", set.name)),
        };
        nets.insert(net);
    }
    Ok(())
}

fn collect_sources(firewall: &mut Firewall, map: &VerdictMap) -> Result<(), String> {
    for (address, Verdict::Goto { target }) in &map.elem {
        let net = address.net().ok_or_else(|| format!("map {}: a prefix too long", map.name))?;
        let class = class_id(target).ok_or_else(|| format!("map {}: {net} leads to {target}", map.name))?;
        if map.name.starts_with("hosts") {
            firewall.hosts.insert(net.addr(), class);
        } else {
            firewall.subnets.insert(net, class);
        }
    }
    Ok(())
}

/// Reads the rights out of a class's rule. The rule for what has no ports says nothing new, so it is passed
/// over here.
fn collect_rights(firewall: &mut Firewall, rule: &Rule<'_>) -> Option<()> {
    let class = class_id(&rule.chain)?;
    let [Statement::Match(right), Statement::Counter(stmt::Counter::Named(counter)), Statement::Accept(_)] =
        rule.expr.as_ref()
    else {
        return None;
    };
    let id: RuleId = counter.strip_prefix("rule_")?.parse().ok()?;
    let admits: BTreeSet<Admit> = match &right.right {
        Expression::Named(NamedExpression::Set(items)) => items.iter().map(read_item).collect::<Option<_>>()?,
        single => [read_admit(single)?].into(),
    };
    firewall.classes.entry(class).or_default().rules.entry(id).or_default().extend(admits);
    Some(())
}

fn read_item(item: &SetItem<'_>) -> Option<Admit> {
    match item {
        SetItem::Element(element) => read_admit(element),
        _ => None,
    }
}

fn read_admit(expression: &Expression<'_>) -> Option<Admit> {
    let Expression::Named(NamedExpression::Concat(parts)) = expression else { return None };
    let [destination, Expression::Number(protocol), ports] = parts.as_slice() else { return None };
    let (first, last) = match ports {
        Expression::Number(port) => (*port, *port),
        Expression::Range(range) => match range.range {
            [Expression::Number(first), Expression::Number(last)] => (first, last),
            _ => return None,
        },
        _ => return None,
    };
    Some(Admit {
        destination: read_address(destination)?,
        protocol: Protocol(u8::try_from(*protocol).ok()?),
        ports: PortRange { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? },
    })
}

fn read_address(expression: &Expression<'_>) -> Option<IpNet> {
    match expression {
        Expression::String(address) => Some(IpNet::from(address.parse::<std::net::IpAddr>().ok()?)),
        Expression::Named(NamedExpression::Prefix(prefix)) => match prefix.addr.as_ref() {
            Expression::String(address) => IpNet::new(address.parse().ok()?, u8::try_from(prefix.len).ok()?).ok(),
            _ => None,
        },
        _ => None,
    }
}

fn class_id(chain: &str) -> Option<ClassId> {
    let digits = chain.strip_prefix("class_")?;
    let id: ClassId = digits.parse().ok()?;
    // One name, one class: no other spelling of the number.
    (id.to_string() == digits).then_some(id)
}

/// A table without its elements, handles and figures, for comparison.
#[derive(Default)]
struct Shape {
    objects: BTreeMap<(&'static str, String), Object>,
    rules: BTreeMap<String, Vec<Rule<'static>>>,
}

impl Shape {
    fn insert(&mut self, object: Object) -> Result<(), String> {
        let (place, object) = match object {
            Object::Metainfo(_) => return Ok(()),
            Object::Element(_) => return Err("elements beside their set".to_owned()),
            Object::Rule(mut rule) => {
                rule.handle = None;
                rule.expr.to_mut().iter_mut().for_each(canonical);
                self.rules.entry(rule.chain.to_string()).or_default().push(rule);
                return Ok(());
            }
            Object::Table(mut table) => {
                table.handle = None;
                (("table", table.name.to_string()), Object::Table(table))
            }
            Object::Chain(mut chain) => {
                chain.handle = None;
                (("chain", chain.name.to_string()), Object::Chain(chain))
            }
            Object::Set(Set::Addresses(mut set)) => {
                set.elem = Vec::new();
                (("set", set.name.clone()), Object::Set(Set::Addresses(set)))
            }
            Object::Set(Set::Cut(set)) => (("set", set.name.clone()), Object::Set(Set::Cut(set))),
            Object::Map(mut map) => {
                map.elem = Vec::new();
                (("map", map.name.clone()), Object::Map(map))
            }
            Object::Counter(mut counter) => {
                (counter.packets, counter.bytes) = (0, 0);
                (("counter", counter.name.clone()), Object::Counter(counter))
            }
        };
        self.objects.insert(place, object);
        Ok(())
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
                Some(rule) => format!("chain {chain} has a rule that is not ours: {}", describe(rule)),
                None => format!("chain {chain} has only {place} of its {} rules", ours.len()),
            })
        })
    }
}

fn describe(rule: &Rule<'_>) -> String {
    serde_json::to_string(&rule.expr).unwrap_or_default()
}

/// Brings a statement into the one form that is compared: set items sorted, a set of one as the one.
fn canonical(statement: &mut Statement<'static>) {
    let Statement::Match(comparison) = statement else { return };
    let Expression::Named(NamedExpression::Set(items)) = &mut comparison.right else { return };
    if let [SetItem::Element(only)] = items.as_slice() {
        comparison.right = only.clone();
    } else {
        items.sort_by_cached_key(|item| serde_json::to_string(item).unwrap_or_default());
    }
}
