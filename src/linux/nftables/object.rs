//! The objects of a table, as the kernel has them (linux/netfilter/nf_tables.h): each is written and read here.

use super::super::attributes::{Attributes, attribute, attributes, number, text};
use super::expression::{Expression, LIST_ELEMENT, Value};

/// In every message, the attribute that names the table.
pub(super) const TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME` and those after it.
pub(super) const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_FLAGS: u16 = 10;
/// `NFTA_CHAIN_HANDLE`, `_USE`, and where counters and their padding would be.
const CHAIN_BOOKKEEPING: [u16; 3] = [2, 6, 9];
/// `NFT_CHAIN_BASE`, which newer kernels tell of base chains.
const CHAIN_IS_BASE: u32 = 1;
/// `NFTA_HOOK_HOOKNUM` and `NFTA_HOOK_PRIORITY`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

/// `NFTA_RULE_CHAIN` and `NFTA_RULE_EXPRESSIONS`.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_RULE_HANDLE`, `_POSITION` (the rule before it) and `_PAD`.
const RULE_BOOKKEEPING: [u16; 3] = [3, 6, 8];

/// `NFTA_SET_NAME` and those after it.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_TIMEOUT: u16 = 11;
const SET_USER_DATA: u16 = 13;
/// `NFTA_SET_OBJ_TYPE`, `_EXPR` and `_EXPRESSIONS`: what an element brings along. Other attributes are bookkeeping.
const SET_BRINGS: [u16; 3] = [15, 17, 18];
/// `NFTA_SET_DESC_SIZE`, `NFTA_SET_DESC_CONCAT`, `NFTA_SET_FIELD_LEN`.
const DESCRIPTION_SIZE: u16 = 1;
const DESCRIPTION_PARTS: u16 = 2;
const PART_LENGTH: u16 = 1;
/// `NFT_SET_…`.
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
/// Bits by which `nft` shifts one type of a key ahead of the next.
const TYPE_BITS: u32 = 6;

/// `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE` and `NFTA_OBJ_DATA`.
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`, `NFTA_COUNTER_BYTES` and `NFTA_COUNTER_PACKETS`.
const COUNTER: u32 = 1;
const COUNTED_BYTES: u16 = 1;
const COUNTED_PACKETS: u16 = 2;

/// The name that stands for a set without one: the kernel puts a number in.
pub(super) const ANONYMOUS_NAME: &str = "__set%d";

/// What a table holds, and the table itself. The elements of a set are no part of what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Table,
    Chain(Chain),
    Set(Set),
    Counter(String),
    Rule(Rule),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets come in, if they come in by other than a jump.
    pub(super) base: Option<Base>,
}

/// Where a chain is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) kind: ChainType,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) policy: Policy,
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainType {
    Filter,
    Nat,
    Route,
}

/// `NF_INET_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// What becomes of a packet that no rule of a base chain decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Drop,
    Accept,
}

/// A rule, and the sets that it brings along: an expression that looks into one names it by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) expressions: Vec<Expression>,
    pub(super) sets: Vec<AnonymousSet>,
}

/// A set without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AnonymousSet {
    pub(super) key: Vec<Part>,
    pub(super) items: Ranges,
}

/// Keys by their ranges: first and last of each.
pub(super) type Ranges = Vec<(Vec<u8>, Vec<u8>)>;

/// A named set, or a map from its keys to verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) key: Vec<Part>,
    pub(super) is_interval: bool,
    pub(super) is_map: bool,
    /// The most that it holds, where that is bounded.
    pub(super) size: Option<u32>,
    /// Milliseconds that an element stays, where it does not stay for good.
    pub(super) timeout: Option<u64>,
}

/// Part of a key, with what `nft` calls its type: the numbers are its own, and it reads them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Icmp,
    Icmpv6,
}

/// A counter with its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) name: String,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Chain {
    pub(super) fn write(&self, message: &mut Attributes<'_>) {
        message.text(CHAIN_NAME, &self.name);
        if let Some(base) = &self.base {
            message.nest(CHAIN_HOOK, |nest| {
                nest.u32(HOOK_NUMBER, base.hook.number());
                nest.u32(HOOK_PRIORITY, base.priority.cast_unsigned());
            });
            message.u32(CHAIN_POLICY, base.policy.number());
            message.text(CHAIN_TYPE, base.kind.name());
        }
    }

    pub(super) fn read(message: &[u8]) -> Result<Self, String> {
        let name = attribute(message, CHAIN_NAME).and_then(text).ok_or("a chain without a name")?.to_owned();
        Self::read_rest(&name, message).ok_or_else(|| format!("chain {name} is not as we write it"))
    }

    fn read_rest(name: &str, message: &[u8]) -> Option<Self> {
        let (mut hook, mut policy, mut kind) = (None, None, None);
        for (number_of, value) in attributes(message) {
            match number_of {
                TABLE | CHAIN_NAME => {}
                CHAIN_HOOK => hook = Some(read_hook(value)?),
                CHAIN_POLICY => policy = Some(Policy::of(number(value)?)?),
                CHAIN_TYPE => kind = Some(ChainType::of(text(value)?)?),
                CHAIN_FLAGS if number(value)? & !CHAIN_IS_BASE == 0 => {}
                bookkeeping if CHAIN_BOOKKEEPING.contains(&bookkeeping) => {}
                _ => return None,
            }
        }
        let base = match hook {
            Some((hook, priority)) => Some(Base { kind: kind?, hook, priority, policy: policy? }),
            None => None,
        };
        Some(Self { name: name.to_owned(), base })
    }
}

fn read_hook(nest: &[u8]) -> Option<(Hook, i32)> {
    let (mut hook, mut priority) = (None, None);
    for (kind, value) in attributes(nest) {
        match kind {
            HOOK_NUMBER => hook = Hook::of(number(value)?),
            HOOK_PRIORITY => priority = Some(number(value)?.cast_signed()),
            _ => return None,
        }
    }
    Some((hook?, priority?))
}

impl ChainType {
    const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Route];

    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Hook {
    const ALL: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.number() == number)
    }
}

impl Policy {
    fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }

    fn of(number: u32) -> Option<Self> {
        [Self::Drop, Self::Accept].into_iter().find(|policy| policy.number() == number)
    }
}

impl Rule {
    /// Writes the rule. The numbers of its sets in the transaction begin at `first_set`.
    pub(super) fn write(&self, message: &mut Attributes<'_>, first_set: u32) {
        message.text(RULE_CHAIN, &self.chain);
        message.nest(RULE_EXPRESSIONS, |list| {
            for expression in &self.expressions {
                if let Expression::Lookup { set, id: Some(id), key, is_inverted } = expression {
                    let id = Some(first_set.wrapping_add(*id));
                    Expression::Lookup { set: set.clone(), id, key: *key, is_inverted: *is_inverted }.write(list);
                } else {
                    expression.write(list);
                }
            }
        });
    }

    /// Reads the rule. Where it looks into sets without a name, those are named as the kernel names them.
    pub(super) fn read(message: &[u8]) -> Result<Self, String> {
        let chain = attribute(message, RULE_CHAIN).and_then(text).ok_or("a rule of no chain")?.to_owned();
        let mut expressions = Vec::new();
        for (kind, value) in attributes(message) {
            match kind {
                TABLE | RULE_CHAIN => {}
                RULE_EXPRESSIONS => {
                    for (_, element) in attributes(value) {
                        let read = Expression::read(element);
                        expressions.push(read.map_err(|reason| format!("chain {chain} has {reason}"))?);
                    }
                }
                bookkeeping if RULE_BOOKKEEPING.contains(&bookkeeping) => {}
                _ => return Err(format!("chain {chain} has a rule with more to it than we write")),
            }
        }
        Ok(Self { chain, expressions, sets: Vec::new() })
    }

    /// Gives the rule the sets that it looks into, of those that are told to have no name.
    pub(super) fn take_sets(&mut self, mut take: impl FnMut(&str) -> Option<AnonymousSet>) {
        for expression in &mut self.expressions {
            if let Expression::Lookup { set: name, id, .. } = expression
                && let Some(set) = take(name)
            {
                *id = u32::try_from(self.sets.len()).ok();
                ANONYMOUS_NAME.clone_into(name);
                self.sets.push(set);
            }
        }
    }
}

impl Part {
    const ALL: [Self; 6] = [Self::Ipv4, Self::Ipv6, Self::Protocol, Self::Port, Self::Icmp, Self::Icmpv6];

    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Icmp => 14,
            Self::Icmpv6 => 29,
        }
    }

    /// Bytes.
    fn length(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
            Self::Port => 2,
            Self::Protocol | Self::Icmp | Self::Icmpv6 => 1,
        }
    }

    /// The parts of a key, by what `nft` calls their types together.
    fn all_of(mut number: u32) -> Option<Vec<Self>> {
        let mut parts = Vec::new();
        while number != 0 {
            let last = number & ((1 << TYPE_BITS) - 1);
            parts.insert(0, Self::ALL.into_iter().find(|part| part.number() == last)?);
            number >>= TYPE_BITS;
        }
        Some(parts)
    }
}

impl AnonymousSet {
    /// Whether its items are ranges.
    pub(super) fn has_ranges(&self) -> bool {
        self.items.iter().any(|(first, last)| first != last)
    }

    /// Brings the items into the order in which sets are compared: the kernel has its own.
    pub(super) fn sort(&mut self) {
        self.items.sort_unstable();
    }

    pub(super) fn write(&self, message: &mut Attributes<'_>) {
        let ranges = self.has_ranges();
        let flags = ANONYMOUS | CONSTANT | if ranges { INTERVAL | CONCATENATED } else { 0 };
        write_set(message, ANONYMOUS_NAME, flags, &self.key);
        message.nest(SET_DESCRIPTION, |nest| {
            nest.u32(DESCRIPTION_SIZE, u32::try_from(self.items.len()).unwrap_or_default());
            if ranges {
                nest.nest(DESCRIPTION_PARTS, |parts| {
                    for part in &self.key {
                        parts.nest(LIST_ELEMENT, |nest| nest.u32(PART_LENGTH, part.length()));
                    }
                });
            }
        });
    }
}

/// A set as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnySet {
    Named(Set),
    /// Its name is the kernel's.
    Anonymous {
        name: String,
        key: Vec<Part>,
    },
}

impl AnySet {
    pub(super) fn read(message: &[u8]) -> Result<Self, String> {
        let name = attribute(message, SET_NAME).and_then(text).ok_or("a set without a name")?;
        Self::read_rest(name, message).ok_or_else(|| format!("set {name} is not as we write it"))
    }

    fn read_rest(name: &str, message: &[u8]) -> Option<Self> {
        let get = |kind| attribute(message, kind);
        let flags = get(SET_FLAGS).map_or(Some(0), number)?;
        let key = get(SET_KEY_TYPE).and_then(number).and_then(Part::all_of)?;
        let leads_nowhere_else = get(SET_DATA_TYPE).is_none_or(|kind| number(kind) == Some(DATA_IS_VERDICT));
        if get(SET_KEY_LENGTH).and_then(number)? != key_length(&key)
            || !leads_nowhere_else
            || attributes(message).any(|(kind, _)| SET_BRINGS.contains(&kind))
        {
            return None;
        }
        let is_flat = (flags & CONCATENATED != 0) == (flags & INTERVAL != 0 && key.len() > 1);
        if flags & ANONYMOUS != 0 {
            let is_ours = is_flat && flags & !(INTERVAL | CONCATENATED) == ANONYMOUS | CONSTANT;
            return is_ours.then(|| Self::Anonymous { name: name.to_owned(), key });
        }
        let description = get(SET_DESCRIPTION).unwrap_or_default();
        let set = Set {
            name: name.to_owned(),
            key,
            is_interval: flags & INTERVAL != 0,
            is_map: flags & MAP != 0,
            size: attribute(description, DESCRIPTION_SIZE).and_then(number),
            timeout: get(SET_TIMEOUT).and_then(u64::read),
        };
        let has_time = (flags & TIMEOUT != 0) == set.timeout.is_some();
        (is_flat && has_time && flags & !(INTERVAL | CONCATENATED | MAP | TIMEOUT) == 0).then_some(Self::Named(set))
    }
}

impl Set {
    pub(super) fn write(&self, message: &mut Attributes<'_>) {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags = flag(self.is_interval, INTERVAL) | flag(self.is_map, MAP) | flag(self.timeout.is_some(), TIMEOUT);
        write_set(message, &self.name, flags, &self.key);
        if self.is_map {
            message.u32(SET_DATA_TYPE, DATA_IS_VERDICT);
            message.u32(SET_DATA_LENGTH, 0);
        }
        if let Some(size) = self.size {
            message.nest(SET_DESCRIPTION, |nest| nest.u32(DESCRIPTION_SIZE, size));
        }
        self.timeout.iter().for_each(|timeout| message.u64(SET_TIMEOUT, *timeout));
        if self.key.len() == 1 {
            message.bytes(SET_USER_DATA, &[BIG_ENDIAN_KEYS.as_slice(), &BIG_ENDIAN.to_ne_bytes()].concat());
        }
    }
}

fn write_set(message: &mut Attributes<'_>, name: &str, flags: u32, key: &[Part]) {
    message.text(SET_NAME, name);
    message.u32(SET_FLAGS, flags);
    message.u32(SET_KEY_TYPE, key.iter().fold(0, |all, part| (all << TYPE_BITS) | part.number()));
    message.u32(SET_KEY_LENGTH, key_length(key));
}

/// A key of one part is as long as that; the parts of others begin at registers.
fn key_length(key: &[Part]) -> u32 {
    match key {
        [only] => only.length(),
        parts => parts.iter().map(|part| part.length().next_multiple_of(4)).sum(),
    }
}

impl Counter {
    pub(super) fn write(name: &str, is_new: bool, message: &mut Attributes<'_>) {
        message.text(OBJECT_NAME, name);
        message.u32(OBJECT_TYPE, COUNTER);
        if is_new {
            message.nest(OBJECT_DATA, |_| {});
        }
    }

    pub(super) fn read(message: &[u8]) -> Result<Self, String> {
        let name = attribute(message, OBJECT_NAME).and_then(text).unwrap_or_default();
        if attribute(message, OBJECT_TYPE).and_then(number) != Some(COUNTER) {
            return Err(format!("{name} is an object of a kind that we do not write"));
        }
        let data = attribute(message, OBJECT_DATA).unwrap_or_default();
        let figure = |kind| attribute(data, kind).and_then(u64::read).unwrap_or_default();
        Ok(Self { name: name.to_owned(), packets: figure(COUNTED_PACKETS), bytes: figure(COUNTED_BYTES) })
    }
}
