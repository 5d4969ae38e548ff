//! Changes as one netlink transaction.
//!
//! The kernel takes all messages between a begin and an end, or none (linux/netfilter/nfnetlink.h). Elements go in
//! lists that fit an attribute's 16-bit length. A set without a name is made just ahead of the rule that looks into it.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use warren_core::plan::own;

use super::super::attributes::Attributes;
use super::super::netfilter::{INET, Messages};
use super::elements::{Element, LIST_ELEMENTS, elements_of};
use super::object::{ANONYMOUS_NAME, AnonymousSet, CHAIN_NAME, Counter, Object, Rule, Set, TABLE};
use super::table::goto;
use super::update::{Command, Elements};

/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BEGIN: u16 = 16;
const END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// `NFT_MSG_NEW…` and `NFT_MSG_DEL…`.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;
const DELETE_OBJECT: u16 = 20;

/// In most messages, the attribute behind the table's that names the object.
const NAME: u16 = 2;
/// `NFTA_TABLE_FLAGS`.
const TABLE_FLAGS: u16 = 2;
/// `NFTA_SET_ID` and `NFTA_SET_ELEM_LIST_SET_ID`.
const SET_ID: u16 = 10;
const LIST_SET_ID: u16 = 4;
/// Elements in one message: of the longest kind, some 110 bytes each.
const ELEMENTS_AT_ONCE: usize = 400;

/// A transaction, written down.
pub(super) struct Batch {
    messages: Messages,
    /// What each message is about, by its number.
    about: Vec<String>,
}

/// Writes the changes down. A table that is made anew after it was deleted gets these flags.
pub(super) fn write(commands: &[Command], table_flags: u32) -> Batch {
    let mut writer = Writer { batch: Batch::new(), next_set: 1, table_flags: None };
    for command in commands {
        writer.command(command, table_flags);
    }
    writer.batch
}

/// Gives a table of this name these flags.
pub(super) fn table_with_flags(name: &str, flags: u32) -> Batch {
    let mut batch = Batch::new();
    batch.table(NEW_TABLE, name, Some(flags));
    batch
}

/// No table of this name, whatever was there.
pub(super) fn without_table(name: &str) -> Batch {
    let mut batch = Batch::new();
    batch.table(NEW_TABLE, name, None);
    batch.table(DELETE_TABLE, name, None);
    batch
}

impl Batch {
    fn new() -> Self {
        let mut messages = Messages::default();
        messages.push(BEGIN, 0, 0, (0, SUBSYSTEM), |_| {});
        Self { messages, about: vec!["begin the transaction".to_owned()] }
    }

    /// The bytes to be sent, the number of the message whose answer is the last, and what each message is about.
    pub(super) fn finish(mut self) -> (Messages, u32, Vec<String>) {
        let last = self.number() - 1;
        self.messages.add_flags_to_last(NLM_F_ACK);
        self.messages.push(END, 0, self.number(), (0, SUBSYSTEM), |_| {});
        (self.messages, last, self.about)
    }

    fn number(&self) -> u32 {
        u32::try_from(self.about.len()).unwrap_or(u32::MAX)
    }

    fn message(&mut self, kind: u16, flags: u16, about: String, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.messages.push((SUBSYSTEM << 8) | kind, flags, self.number(), (INET, 0), fill);
        self.about.push(about);
    }

    fn table(&mut self, kind: u16, name: &str, flags: Option<u32>) {
        let create = if kind == NEW_TABLE { NLM_F_CREATE } else { 0 };
        self.message(kind, create, format!("table {name}"), |message| {
            message.text(TABLE, name);
            flags.iter().for_each(|flags| message.u32(TABLE_FLAGS, *flags));
        });
    }
}

struct Writer {
    batch: Batch,
    next_set: u32,
    /// Set once the old table is gone.
    table_flags: Option<u32>,
}

impl Writer {
    fn command(&mut self, command: &Command, table_flags: u32) {
        match command {
            Command::Add(object) => self.add(object),
            Command::AddElements(set, elements) => self.elements(NEW_ELEMENT, set, elements),
            Command::DeleteElements(set, elements) => self.elements(DELETE_ELEMENT, set, elements),
            Command::DeleteTable => {
                self.batch.table(DELETE_TABLE, own::NFT_TABLE, None);
                self.table_flags = Some(table_flags);
            }
            // A rule has no name: all of the chain's go.
            Command::FlushChain(name) => self.named(DELETE_RULE, NAME, name),
            Command::DeleteChain(name) => self.named(DELETE_CHAIN, CHAIN_NAME, name),
            Command::DeleteCounter(name) => self.counter(DELETE_OBJECT, name),
        }
    }

    fn add(&mut self, object: &Object) {
        match object {
            Object::Table => self.batch.table(NEW_TABLE, own::NFT_TABLE, self.table_flags),
            Object::Chain(chain) => self.message(NEW_CHAIN, NLM_F_CREATE, format!("chain {}", chain.name), |message| {
                chain.write(message);
            }),
            Object::Counter(name) => self.counter(NEW_OBJECT, name),
            Object::Set(set) => {
                let id = self.set_id();
                self.message(NEW_SET, NLM_F_CREATE, format!("set {}", set.name), |message| {
                    set.write(message);
                    message.u32(SET_ID, id);
                });
            }
            Object::Rule(rule) => self.rule(rule),
        }
    }

    /// A message about something of our table.
    fn message(&mut self, kind: u16, flags: u16, about: String, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.batch.message(kind, flags, about, |message| {
            message.text(TABLE, own::NFT_TABLE);
            fill(message);
        });
    }

    /// A message that names a chain and says nothing more.
    fn named(&mut self, kind: u16, attribute: u16, name: &str) {
        self.message(kind, 0, format!("chain {name}"), |message| message.text(attribute, name));
    }

    fn counter(&mut self, kind: u16, name: &str) {
        let is_new = kind == NEW_OBJECT;
        let create = if is_new { NLM_F_CREATE } else { 0 };
        self.message(kind, create, format!("counter {name}"), |message| Counter::write(name, is_new, message));
    }

    fn rule(&mut self, rule: &Rule) {
        let first_set = self.next_set;
        rule.sets.iter().for_each(|set| self.anonymous_set(set));
        let about = format!("a rule of chain {}", rule.chain);
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, about, |message| rule.write(message, first_set));
    }

    fn set_id(&mut self) -> u32 {
        let id = self.next_set;
        self.next_set = id.wrapping_add(1);
        id
    }

    fn anonymous_set(&mut self, set: &AnonymousSet) {
        let id = self.set_id();
        self.message(NEW_SET, NLM_F_CREATE, "a set of a rule".to_owned(), |message| {
            set.write(message);
            message.u32(SET_ID, id);
        });
        let ranges = set.has_ranges();
        for items in set.items.chunks(ELEMENTS_AT_ONCE) {
            self.message(NEW_ELEMENT, NLM_F_CREATE, "the set of a rule".to_owned(), |message| {
                message.text(NAME, ANONYMOUS_NAME);
                message.u32(LIST_SET_ID, id);
                message.nest(LIST_ELEMENTS, |list| {
                    for (first, last) in items {
                        Element { last: ranges.then_some(last), ..Element::of(first) }.write(list);
                    }
                });
            });
        }
    }

    fn elements(&mut self, kind: u16, set: &Set, elements: &Elements) {
        match elements {
            Elements::Prefixes(prefixes) => {
                // The kernel takes an interval in order only: where one has begun and not ended, no other may begin.
                let mut prefixes: Vec<_> = prefixes.iter().collect();
                prefixes.sort_by_key(|(net, _)| net.network());
                self.list(kind, set, &prefixes, |list, (net, class)| {
                    // What leaves is named by its key alone.
                    let verdict = class.filter(|_| kind == NEW_ELEMENT).map(goto);
                    elements_of(*net, verdict, set.is_interval).iter().flatten().for_each(|e| e.write(list));
                });
            }
            Elements::Ended(flows) => {
                self.list(kind, set, flows, |list, ended| Element::of(ended.key()).write(list));
            }
        }
    }

    fn list<T>(&mut self, kind: u16, set: &Set, items: &[T], write: impl Fn(&mut Attributes<'_>, &T)) {
        let create = if kind == NEW_ELEMENT { NLM_F_CREATE } else { 0 };
        for items in items.chunks(ELEMENTS_AT_ONCE) {
            self.message(kind, create, format!("elements of set {}", set.name), |message| {
                message.text(NAME, &set.name);
                message.nest(LIST_ELEMENTS, |list| items.iter().for_each(|item| write(list, item)));
            });
        }
    }
}
