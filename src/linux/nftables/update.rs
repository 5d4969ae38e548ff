//! From one table to the next by what differs, in one transaction.
//!
//! Counters of rules that stay keep their figures, and elements that stay are not touched. New things come
//! before those that refer to them, old ones go after.

use std::collections::BTreeSet;
use std::net::IpAddr;

use warren_core::plan::{ClassId, Firewall, differences};
use warren_core::types::IpNet;

use super::cut;
use super::object::{Address, Command, ElementList, Elements, Object, Verdict};
use super::probes;
use super::table::{self, Family};

/// The table anew, whatever was there.
pub(super) fn replace(firewall: &Firewall) -> Vec<Command> {
    let mut commands = delete();
    commands.extend(table::objects(firewall, true).into_iter().map(Command::Add));
    commands
}

/// No table, whatever was there. What is not there cannot be deleted, so it is added first.
pub(super) fn delete() -> Vec<Command> {
    vec![Command::Add(table::table()), Command::Delete(table::table())]
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
        commands.push(Command::Add(table::counter(table::counter_name(*id))));
    }
    for (id, class) in &to.classes {
        if from.classes.get(id) == Some(class) {
            continue;
        }
        let chain = table::chain(table::class_name(*id));
        commands.push(Command::Add(chain.clone()));
        commands.push(Command::Flush(chain));
        commands.extend(table::class_rules(*id, class).into_iter().map(Command::Add));
    }
    let (hosts, subnets) = (differences(&from.hosts, &to.hosts), differences(&from.subnets, &to.subnets));
    for family in Family::BOTH {
        let digit = family.digit();
        for (name, from, to) in [
            (table::SERVED, &from.served.listed, &to.served.listed),
            (table::INTERNET, &from.served.internet, &to.served.internet),
            (table::TUNNELLED, &from.tunnelled, &to.tunnelled),
            (table::ELSEWHERE, &from.elsewhere, &to.elsewhere),
        ] {
            let (gone, come) = (missing(from, to, family), missing(to, from, family));
            commands.extend(elements(format!("{name}{digit}"), gone, come, ElementList::Addresses));
        }
        let (gone, come) = sources(&hosts, family, |address| (*address, Address::Host(*address)));
        commands.extend(elements(format!("hosts{digit}"), gone, come, ElementList::Verdicts));
        let (gone, come) = sources(&subnets, family, |net| (net.addr(), Address::from(*net)));
        commands.extend(elements(format!("subnets{digit}"), gone, come, ElementList::Verdicts));
    }
    commands.extend(probes::update(from.probes.as_ref(), to.probes.as_ref()));
    for id in from.classes.keys().filter(|id| !to.classes.contains_key(*id)) {
        let chain = table::chain(table::class_name(*id));
        commands.push(Command::Flush(chain.clone()));
        commands.push(Command::Delete(chain));
    }
    for id in old_rules.difference(&new_rules) {
        commands.push(Command::Delete(table::counter(table::counter_name(*id))));
    }
    commands
}

/// The prefixes of one family that the first set has and the second has not.
fn missing(of: &BTreeSet<IpNet>, in_which: &BTreeSet<IpNet>, family: Family) -> Vec<Address> {
    let of_family = of.difference(in_which).filter(|net| Family::of(net.addr()) == family);
    of_family.map(|net| Address::from(*net)).collect()
}

type Sources = Vec<(Address, Verdict)>;

/// The sources of one family that go and those that come; one that changes its class does both.
fn sources<K>(
    differences: &[(&K, Option<&ClassId>, Option<&ClassId>)],
    family: Family,
    address: impl Fn(&K) -> (IpAddr, Address),
) -> (Sources, Sources) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (key, before, after) in differences {
        let (of, address) = address(key);
        if Family::of(of) == family {
            gone.extend(before.map(|class| (address.clone(), table::goto(*class))));
            come.extend(after.map(|class| (address, table::goto(*class))));
        }
    }
    (gone, come)
}

/// What leaves the set, then what comes to it.
fn elements<T>(name: String, gone: Vec<T>, come: Vec<T>, list: impl Fn(Vec<T>) -> ElementList) -> Vec<Command> {
    let change = |elements: Vec<T>, command: fn(Object) -> Command| {
        let is_any = !elements.is_empty();
        is_any.then(|| command(Object::Element(Elements { name: name.clone(), elem: list(elements) })))
    };
    change(gone, Command::Delete).into_iter().chain(change(come, Command::Add)).collect()
}
