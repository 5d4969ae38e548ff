//! Changes as one netlink transaction.
//!
//! The kernel takes all messages between a begin and an end, or none (linux/netfilter/nfnetlink.h). Elements go in
//! lists that fit an attribute's 16-bit length. A set without a name is made just ahead of the rule that looks into it.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use nftables::schema::{Chain, Rule};
use nftables::types::NfHook;

use warren_core::plan::own;
use warren_core::types::IpNet;

use super::attributes::Attributes;
use super::instruction::{ANONYMOUS_NAME, COUNTER, Code, DATA_VALUE, LIST_ELEMENT, write_verdict};
use super::lower::{AnonymousSet, TYPE_IPV4, TYPE_IPV6, TYPE_PORT, TYPE_PROTOCOL, Unwritable, lower, push_padded};
use super::object::{Address, Command, CutSet, ElementList, Elements, Ended, Object, Set, Verdict};

/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BEGIN: u16 = 16;
const END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// The bytes of a netlink header; family, version and resource follow.
const HEADER: usize = 16;

/// `NFT_MSG_NEW…` and `NFT_MSG_DEL…`.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;
const DELETE_OBJECT: u16 = 20;

/// In every message, the attribute that names the table; in most, the next names the object.
const TABLE: u16 = 1;
const NAME: u16 = 2;
/// `NFTA_TABLE_FLAGS`.
const TABLE_FLAGS: u16 = 2;
/// `NFTA_CHAIN_NAME` and those after it, `NFTA_HOOK_HOOKNUM`, `NFTA_HOOK_PRIORITY`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NF_ACCEPT`.
const POLICY_ACCEPT: u32 = 1;
/// `NFTA_RULE_EXPRESSIONS`.
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_SET_FLAGS` and those after it.
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const SET_USER_DATA: u16 = 13;
/// `NFTA_SET_DESC_SIZE`, `NFTA_SET_DESC_CONCAT`, `NFTA_SET_FIELD_LEN`.
const DESCRIPTION_SIZE: u16 = 1;
const DESCRIPTION_PARTS: u16 = 2;
const PART_LENGTH: u16 = 1;
/// `NFT_SET_ANONYMOUS` and so on.
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const TIMEOUT: u32 = 16;
const CONCATENATED: u32 = 128;
/// `NFT_DATA_VERDICT`.
const DATA_IS_VERDICT: u32 = 0xffff_ff00;
/// What `nft` keeps with a set to know the byte order of its keys again: big-endian.
const BIG_ENDIAN_KEYS: [u8; 2] = [0, 4];
const BIG_ENDIAN: u32 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS` and `NFTA_SET_ELEM_LIST_SET_ID`.
const LIST_ELEMENTS: u16 = 3;
const LIST_SET_ID: u16 = 4;
/// `NFTA_SET_ELEM_KEY` and so on, `NFT_SET_ELEM_INTERVAL_END`.
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_KEY_END: u16 = 10;
const INTERVAL_END: u32 = 1;
/// `NFTA_OBJ_TYPE` and `NFTA_OBJ_DATA`.
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// Bits by which `nft` shifts one type of a key ahead of the next.
const TYPE_BITS: u32 = 6;
/// Elements in one message: of the longest kind, some 110 bytes each.
const ELEMENTS_AT_ONCE: usize = 400;

/// A transaction, written down.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, by its number.
    about: Vec<String>,
    /// Where the last message begins.
    last: usize,
}

/// Writes the changes down. A table that is made anew after it was deleted gets these flags.
pub(super) fn write(commands: &[Command], table_flags: u32) -> Result<Batch, Unwritable> {
    let mut writer = Writer { batch: Batch::new(), next_set: 1, table_flags: None };
    for command in commands {
        writer.command(command, table_flags)?;
    }
    Ok(writer.batch)
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
        let mut batch = Self { bytes: Vec::new(), about: Vec::new(), last: 0 };
        batch.raw_message(BEGIN, 0, 0, SUBSYSTEM, |_| {});
        batch.about.push("begin the transaction".to_owned());
        batch
    }

    /// The bytes to be sent, the number of the message whose answer is the last, and what each message is about.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32, Vec<String>) {
        let flags = self.last + 6;
        let acknowledged = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&acknowledged.to_ne_bytes());
        let last = self.number() - 1;
        self.raw_message(END, 0, 0, SUBSYSTEM, |_| {});
        (self.bytes, last, self.about)
    }

    fn number(&self) -> u32 {
        u32::try_from(self.about.len()).unwrap_or(u32::MAX)
    }

    fn message(&mut self, kind: u16, flags: u16, about: String, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.raw_message((SUBSYSTEM << 8) | kind, flags, INET, 0, fill);
        self.about.push(about);
    }

    fn raw_message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let begin = self.bytes.len();
        self.last = begin;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.number().to_ne_bytes());
        self.bytes.extend([0; 4]);
        debug_assert_eq!(self.bytes.len() - begin, HEADER);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes::after(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - begin).unwrap_or_default();
        self.bytes[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn table(&mut self, kind: u16, name: &str, flags: Option<u32>) {
        let create = if kind == NEW_TABLE { NLM_F_CREATE } else { 0 };
        self.message(kind, create, format!("table {name}"), |message| {
            message.text(TABLE, name);
            if let Some(flags) = flags {
                message.u32(TABLE_FLAGS, flags);
            }
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
    fn command(&mut self, command: &Command, table_flags: u32) -> Result<(), Unwritable> {
        match command {
            Command::Add(Object::Table(table)) => self.batch.table(NEW_TABLE, &table.name, self.table_flags),
            Command::Delete(Object::Table(table)) => {
                self.batch.table(DELETE_TABLE, &table.name, None);
                self.table_flags = Some(table_flags);
            }
            Command::Add(Object::Chain(chain)) => self.chain(chain)?,
            Command::Flush(Object::Chain(chain)) => self.named(DELETE_RULE, NAME, "chain", &chain.name),
            Command::Delete(Object::Chain(chain)) => self.named(DELETE_CHAIN, CHAIN_NAME, "chain", &chain.name),
            Command::Add(Object::Rule(rule)) => self.rule(rule)?,
            Command::Add(Object::Counter(counter)) => self.counter(NEW_OBJECT, &counter.name),
            Command::Delete(Object::Counter(counter)) => self.counter(DELETE_OBJECT, &counter.name),
            Command::Add(Object::Set(Set::Addresses(set))) => {
                let interval = set.flags.iter().any(|flag| flag == "interval");
                self.address_set(&set.name, &set.key, interval, false)?;
                self.addresses(NEW_ELEMENT, &set.name, set.elem.iter().map(|address| (address, None)), interval)?;
            }
            Command::Add(Object::Map(map)) => {
                let interval = map.flags.iter().any(|flag| flag == "interval");
                self.address_set(&map.name, &map.key, interval, true)?;
                let elements = map.elem.iter().map(|(address, verdict)| (address, Some(verdict)));
                self.addresses(NEW_ELEMENT, &map.name, elements, interval)?;
            }
            Command::Add(Object::Set(Set::Cut(set))) => self.cut_set(set)?,
            Command::Delete(Object::Set(Set::Addresses(set))) => self.named(DELETE_SET, NAME, "set", &set.name),
            Command::Add(Object::Element(elements)) => self.elements(NEW_ELEMENT, elements)?,
            Command::Delete(Object::Element(elements)) => self.elements(DELETE_ELEMENT, elements)?,
            Command::Add(other) | Command::Delete(other) | Command::Flush(other) => {
                return Err(Unwritable(format!("no message is known for {other:?}")));
            }
        }
        Ok(())
    }

    /// A message that names an object of the table and says nothing more.
    fn named(&mut self, kind: u16, attribute: u16, what: &str, name: &str) {
        self.batch.message(kind, 0, format!("{what} {name}"), |message| {
            message.text(TABLE, own::NFT_TABLE);
            message.text(attribute, name);
        });
    }

    fn chain(&mut self, chain: &Chain<'_>) -> Result<(), Unwritable> {
        let hook = match chain.hook {
            None => None,
            Some(NfHook::Prerouting) => Some(0),
            Some(NfHook::Input) => Some(1),
            Some(NfHook::Forward) => Some(2),
            Some(NfHook::Output) => Some(3),
            Some(other) => return Err(Unwritable(format!("no number is known for the hook {other:?}"))),
        };
        self.batch.message(NEW_CHAIN, NLM_F_CREATE, format!("chain {}", chain.name), |message| {
            message.text(TABLE, own::NFT_TABLE);
            message.text(CHAIN_NAME, &chain.name);
            if let Some(hook) = hook {
                message.nest(CHAIN_HOOK, |nest| {
                    nest.u32(HOOK_NUMBER, hook);
                    nest.u32(HOOK_PRIORITY, chain.prio.unwrap_or_default().cast_unsigned());
                });
                message.u32(CHAIN_POLICY, POLICY_ACCEPT);
                message.text(CHAIN_TYPE, "filter");
            }
        });
        Ok(())
    }

    fn rule(&mut self, rule: &Rule<'_>) -> Result<(), Unwritable> {
        let lowered = lower(rule, self.next_set)?;
        self.next_set = self.next_set.wrapping_add(u32::try_from(lowered.sets.len()).unwrap_or_default());
        lowered.sets.iter().for_each(|set| self.anonymous_set(set));
        self.batch.message(
            NEW_RULE,
            NLM_F_CREATE | NLM_F_APPEND,
            format!("a rule of chain {}", rule.chain),
            |message| {
                message.text(TABLE, own::NFT_TABLE);
                message.text(NAME, &rule.chain);
                message.nest(RULE_EXPRESSIONS, |list| {
                    lowered.instructions.iter().for_each(|instruction| instruction.write(list));
                });
            },
        );
        Ok(())
    }

    fn counter(&mut self, kind: u16, name: &str) {
        let create = if kind == NEW_OBJECT { NLM_F_CREATE } else { 0 };
        self.batch.message(kind, create, format!("counter {name}"), |message| {
            message.text(TABLE, own::NFT_TABLE);
            message.text(NAME, name);
            message.u32(OBJECT_TYPE, COUNTER);
            if kind == NEW_OBJECT {
                message.nest(OBJECT_DATA, |_| {});
            }
        });
    }

    fn set_id(&mut self) -> u32 {
        let id = self.next_set;
        self.next_set = id.wrapping_add(1);
        id
    }

    fn address_set(&mut self, name: &str, key: &str, interval: bool, is_map: bool) -> Result<(), Unwritable> {
        let (kind, length) = key_part(key)?;
        let id = self.set_id();
        let flags = if interval { INTERVAL } else { 0 } | if is_map { MAP } else { 0 };
        self.batch.message(NEW_SET, NLM_F_CREATE, format!("set {name}"), |message| {
            write_set(message, name, flags, &[(kind, length)], id);
            if is_map {
                message.u32(SET_DATA_TYPE, DATA_IS_VERDICT);
                message.u32(SET_DATA_LENGTH, 0);
            }
            write_byte_order(message);
        });
        Ok(())
    }

    fn cut_set(&mut self, set: &CutSet) -> Result<(), Unwritable> {
        let key: Vec<(u32, usize)> = set.key.iter().map(|part| key_part(part)).collect::<Result<_, _>>()?;
        let id = self.set_id();
        self.batch.message(NEW_SET, NLM_F_CREATE, format!("set {}", set.name), |message| {
            write_set(message, &set.name, TIMEOUT, &key, id);
            message
                .nest(SET_DESCRIPTION, |nest| nest.u32(DESCRIPTION_SIZE, u32::try_from(set.size).unwrap_or_default()));
            // Milliseconds.
            message.u64(SET_TIMEOUT, set.timeout.saturating_mul(1_000));
        });
        Ok(())
    }

    fn anonymous_set(&mut self, set: &AnonymousSet) {
        let ranges = set.items.iter().any(|(first, last)| first != last);
        let flags = ANONYMOUS | CONSTANT | if ranges { INTERVAL | CONCATENATED } else { 0 };
        self.batch.message(NEW_SET, NLM_F_CREATE, "a set of a rule".to_owned(), |message| {
            write_set(message, ANONYMOUS_NAME, flags, &set.key, set.id);
            message.nest(SET_DESCRIPTION, |nest| {
                nest.u32(DESCRIPTION_SIZE, u32::try_from(set.items.len()).unwrap_or_default());
                if ranges {
                    nest.nest(DESCRIPTION_PARTS, |parts| {
                        for (_, length) in &set.key {
                            let length = u32::try_from(*length).unwrap_or_default();
                            parts.nest(LIST_ELEMENT, |part| part.u32(PART_LENGTH, length));
                        }
                    });
                }
            });
        });
        for items in set.items.chunks(ELEMENTS_AT_ONCE) {
            self.batch.message(NEW_ELEMENT, NLM_F_CREATE, "the set of a rule".to_owned(), |message| {
                message.text(TABLE, own::NFT_TABLE);
                message.text(NAME, ANONYMOUS_NAME);
                message.u32(LIST_SET_ID, set.id);
                message.nest(LIST_ELEMENTS, |list| {
                    for (first, last) in items {
                        list.nest(LIST_ELEMENT, |element| {
                            write_key(element, ELEMENT_KEY, first);
                            if ranges {
                                write_key(element, ELEMENT_KEY_END, last);
                            }
                        });
                    }
                });
            });
        }
    }

    fn elements(&mut self, kind: u16, elements: &Elements) -> Result<(), Unwritable> {
        let name = &elements.name;
        match &elements.elem {
            ElementList::Addresses(list) => {
                self.addresses(kind, name, list.iter().map(|address| (address, None)), true)
            }
            ElementList::Verdicts(list) => {
                let interval = !name.starts_with("hosts");
                self.addresses(kind, name, list.iter().map(|(address, verdict)| (address, Some(verdict))), interval)
            }
            ElementList::Ended(list) => {
                for list in list.chunks(ELEMENTS_AT_ONCE) {
                    self.list(kind, name, list, |element, ended| write_key(element, ELEMENT_KEY, &ended_key(ended)));
                }
                Ok(())
            }
        }
    }

    fn addresses<'a>(
        &mut self,
        kind: u16,
        name: &str,
        elements: impl Iterator<Item = (&'a Address, Option<&'a Verdict>)>,
        interval: bool,
    ) -> Result<(), Unwritable> {
        let net = |address: &Address| address.net().ok_or_else(|| Unwritable(format!("{address:?} is no prefix")));
        let mut elements: Vec<(IpNet, Option<&Verdict>)> =
            elements.map(|(address, verdict)| Ok((net(address)?, verdict))).collect::<Result<_, Unwritable>>()?;
        // The kernel takes an interval in order only: where one has begun and not ended, no other may begin.
        elements.sort_by_key(|(net, _)| net.network());
        for elements in elements.chunks(ELEMENTS_AT_ONCE) {
            let ends_of = |(net, verdict): &(IpNet, Option<&'a Verdict>)| {
                let end = behind(*net).filter(|_| interval).map(|end| (end, true, None));
                [(octets(net.network()), false, *verdict)].into_iter().chain(end)
            };
            let all: Vec<_> = elements.iter().flat_map(ends_of).collect();
            self.list(kind, name, &all, |element, (key, is_end, verdict)| {
                if *is_end {
                    element.u32(ELEMENT_FLAGS, INTERVAL_END);
                }
                write_key(element, ELEMENT_KEY, key);
                if let (Some(Verdict::Goto { target }), NEW_ELEMENT) = (verdict, kind) {
                    element.nest(ELEMENT_DATA, |data| write_verdict(data, Code::Goto, Some(target)));
                }
            });
        }
        Ok(())
    }

    fn list<T>(&mut self, kind: u16, name: &str, items: &[T], write: impl Fn(&mut Attributes<'_>, &T)) {
        let create = if kind == NEW_ELEMENT { NLM_F_CREATE } else { 0 };
        self.batch.message(kind, create, format!("elements of set {name}"), |message| {
            message.text(TABLE, own::NFT_TABLE);
            message.text(NAME, name);
            message.nest(LIST_ELEMENTS, |list| {
                items.iter().for_each(|item| list.nest(LIST_ELEMENT, |element| write(element, item)));
            });
        });
    }
}

fn write_set(message: &mut Attributes<'_>, name: &str, flags: u32, key: &[(u32, usize)], id: u32) {
    let length: usize = key.iter().map(|(_, length)| length.next_multiple_of(4)).sum();
    // A key of one part is as long as that.
    let length = if let [(_, only)] = key { *only } else { length };
    message.text(TABLE, own::NFT_TABLE);
    message.text(NAME, name);
    message.u32(SET_FLAGS, flags);
    message.u32(SET_KEY_TYPE, key.iter().fold(0, |all, (kind, _)| (all << TYPE_BITS) | kind));
    message.u32(SET_KEY_LENGTH, u32::try_from(length).unwrap_or_default());
    message.u32(SET_ID, id);
}

fn write_byte_order(message: &mut Attributes<'_>) {
    message.bytes(SET_USER_DATA, &[BIG_ENDIAN_KEYS.as_slice(), &BIG_ENDIAN.to_ne_bytes()].concat());
}

fn write_key(element: &mut Attributes<'_>, attribute: u16, key: &[u8]) {
    element.nest(attribute, |nest| nest.bytes(DATA_VALUE, key));
}

/// The type and the length of a key, or of a part of one.
fn key_part(name: &str) -> Result<(u32, usize), Unwritable> {
    Ok(match name {
        "ipv4_addr" => (TYPE_IPV4, 4),
        "ipv6_addr" => (TYPE_IPV6, 16),
        "inet_service" => (TYPE_PORT, 2),
        "inet_proto" => (TYPE_PROTOCOL, 1),
        other => return Err(Unwritable(format!("no key of type {other} is known"))),
    })
}

/// Our address and port, the peer's, and the protocol.
fn ended_key(Ended { opening, source_port }: &Ended) -> Vec<u8> {
    let mut key = octets(opening.destination);
    push_padded(&mut key, &opening.port.to_be_bytes());
    key.extend(octets(opening.source));
    push_padded(&mut key, &source_port.to_be_bytes());
    push_padded(&mut key, &[opening.protocol.0]);
    key
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The first address behind a prefix. Behind the last there is none, and the interval stays open.
fn behind(net: IpNet) -> Option<Vec<u8>> {
    let mut next = octets(net.broadcast());
    for byte in next.iter_mut().rev() {
        let (sum, overflow) = byte.overflowing_add(1);
        *byte = sum;
        if !overflow {
            return Some(next);
        }
    }
    None
}
