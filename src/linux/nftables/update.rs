//! From one table to the next by what differs, in one transaction.
//!
//! Counters of rules that stay keep their figures, and elements that stay are not touched. New things come
//! before those that refer to them, old ones go after.

use std::collections::BTreeSet;

use warren_core::plan::{ClassId, Firewall, differences};
use warren_core::types::IpNet;

use super::elements::Ended;
use super::object::{Object, Set};
use super::table::{self, Family, Holds};
use super::{cut, exit, gateway, probes, resolver};

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add(Object),
    AddElements(Set, Elements),
    DeleteElements(Set, Elements),
    DeleteTable,
    FlushChain(String),
    DeleteChain(String),
    DeleteCounter(String),
}

/// Elements that come to a set, or leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// Prefixes, and the class whose chain each leads to, if it leads anywhere.
    Prefixes(Vec<(IpNet, Option<ClassId>)>),
    Ended(Vec<Ended>),
}

impl Elements {
    fn is_empty(&self) -> bool {
        match self {
            Self::Prefixes(prefixes) => prefixes.is_empty(),
            Self::Ended(flows) => flows.is_empty(),
        }
    }
}

/// The table anew, whatever was there.
pub(super) fn replace(firewall: &Firewall) -> Vec<Command> {
    let mut commands = delete();
    let mut full = Vec::new();
    for family in Family::BOTH {
        for (name, holds) in table::SETS {
            full.push((holds.set(name, family), table::contents(firewall, name, family)));
        }
    }
    for object in table::objects(firewall) {
        commands.push(Command::Add(object.clone()));
        // A set is filled before a rule looks into it: then the kernel checks its elements once.
        if let Object::Set(set) = object
            && let Some(place) = full.iter().position(|(other, _)| *other == set)
        {
            let (set, contents) = full.swap_remove(place);
            commands.extend((!contents.is_empty()).then_some(Command::AddElements(set, contents)));
        }
    }
    commands
}

/// No table, whatever was there. What is not there cannot be deleted, so it is added first.
pub(super) fn delete() -> Vec<Command> {
    vec![Command::Add(Object::Table), Command::DeleteTable]
}

/// Turns the first table into the second.
pub(super) fn update(from: &Firewall, to: &Firewall) -> Vec<Command> {
    if from.options != to.options || from.lacks != to.lacks {
        return replace(to);
    }
    let (old_rules, new_rules) = (table::rule_ids(from), table::rule_ids(to));
    let mut commands = Vec::new();
    if from.may_lose_rights(to) {
        commands.extend(cut::unjudge());
    }
    for id in new_rules.difference(&old_rules) {
        commands.push(Command::Add(Object::Counter(table::counter_name(*id))));
    }
    for (id, class) in &to.classes {
        if from.classes.get(id) == Some(class) {
            continue;
        }
        commands.push(Command::Add(Object::Chain(table::class_chain(*id))));
        commands.push(Command::FlushChain(table::class_name(*id)));
        commands.extend(table::class_rules(*id, class).into_iter().map(Command::Add));
    }
    update_sets(from, to, &mut commands);
    commands.extend(probes::update(from.probes.as_ref(), to.probes.as_ref()));
    commands.extend(resolver::update(from.resolver_port, to.resolver_port));
    commands.extend(gateway::update(from.carries, to.carries));
    commands.extend(exit::update(from.beside_exit.is_some(), to.beside_exit.is_some(), to.lacks));
    for id in from.classes.keys().filter(|id| !to.classes.contains_key(*id)) {
        commands.push(Command::FlushChain(table::class_name(*id)));
        commands.push(Command::DeleteChain(table::class_name(*id)));
    }
    for id in old_rules.difference(&new_rules) {
        commands.push(Command::DeleteCounter(table::counter_name(*id)));
    }
    commands
}

fn update_sets(from: &Firewall, to: &Firewall, commands: &mut Vec<Command>) {
    let none = BTreeSet::new();
    let [beside_before, beside] = [from, to].map(|firewall| firewall.beside_exit.as_ref().unwrap_or(&none));
    let sets = [
        (table::SERVED, &from.served.listed, &to.served.listed),
        (table::INTERNET, &from.served.internet, &to.served.internet),
        (table::TUNNELLED, &from.tunnelled, &to.tunnelled),
        (table::BY_EXIT, &from.by_exit, &to.by_exit),
        (table::BESIDE, beside_before, beside),
        (table::ELSEWHERE, &from.elsewhere, &to.elsewhere),
    ];
    let hosts = sources(&differences(&from.hosts, &to.hosts), |address| IpNet::from(*address));
    let subnets = sources(&differences(&from.subnets, &to.subnets), |net| *net);
    for family in Family::BOTH {
        for (name, from, to) in sets {
            let missing = |of: &BTreeSet<IpNet>, other| of.difference(other).map(|net| (*net, None)).collect();
            change_set(Holds::Prefixes.set(name, family), family, &(missing(from, to), missing(to, from)), commands);
        }
        change_set(Holds::AddressesThatLead.set(table::HOSTS, family), family, &hosts, commands);
        change_set(Holds::PrefixesThatLead.set(table::SUBNETS, family), family, &subnets, commands);
    }
}

type Prefixes = Vec<(IpNet, Option<ClassId>)>;

/// The sources that go and those that come; one that changes its class does both.
fn sources<K>(
    differences: &[(&K, Option<&ClassId>, Option<&ClassId>)],
    net: impl Fn(&K) -> IpNet,
) -> (Prefixes, Prefixes) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (key, before, after) in differences {
        gone.extend(before.map(|class| (net(key), Some(*class))));
        come.extend(after.map(|class| (net(key), Some(*class))));
    }
    (gone, come)
}

/// What of a family leaves the set, then what comes to it.
fn change_set(set: Set, family: Family, (gone, come): &(Prefixes, Prefixes), commands: &mut Vec<Command>) {
    let of_family = |prefixes: &Prefixes| {
        Elements::Prefixes(prefixes.iter().filter(|(net, _)| Family::of(net.addr()) == family).copied().collect())
    };
    let (gone, come) = (of_family(gone), of_family(come));
    commands.extend((!gone.is_empty()).then(|| Command::DeleteElements(set.clone(), gone)));
    commands.extend((!come.is_empty()).then_some(Command::AddElements(set, come)));
}
