//! From one table to the next by what differs, in one transaction.
//!
//! Counters of rules that stay keep their figures, and elements that stay are not touched. New things come
//! before those that refer to them, old ones go after.

use std::collections::BTreeSet;

use crate::plan::Firewall;

use super::cut;
use super::object::{Command, ElementList, Elements, Object};
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
    if from.options != to.options {
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
    for family in Family::BOTH {
        let digit = family.digit();
        let (old, new) = (table::served(from, family), table::served(to, family));
        commands.extend(elements(format!("served{digit}"), old, new, ElementList::Addresses));
        let (old, new) = (table::hosts(from, family), table::hosts(to, family));
        commands.extend(elements(format!("hosts{digit}"), old, new, ElementList::Verdicts));
        let (old, new) = (table::subnets(from, family), table::subnets(to, family));
        commands.extend(elements(format!("subnets{digit}"), old, new, ElementList::Verdicts));
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

/// What leaves the set and what comes to it.
fn elements<T: Clone + Ord>(
    name: String,
    old: impl Iterator<Item = T>,
    new: impl Iterator<Item = T>,
    list: impl Fn(Vec<T>) -> ElementList,
) -> Vec<Command> {
    let (old, new): (BTreeSet<T>, BTreeSet<T>) = (old.collect(), new.collect());
    let change = |elements: Vec<T>, command: fn(Object) -> Command| {
        (!elements.is_empty()).then(|| command(Object::Element(Elements { name: name.clone(), elem: list(elements) })))
    };
    let gone = change(old.difference(&new).cloned().collect(), Command::Delete);
    let come = change(new.difference(&old).cloned().collect(), Command::Add);
    gone.into_iter().chain(come).collect()
}
