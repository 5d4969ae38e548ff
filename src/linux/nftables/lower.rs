//! A rule's statements as the kernel's instructions.
//!
//! Only the statements that we write are known; any other is an error that names it. What a statement takes for
//! granted (an IPv4 header, TCP) is asked first, once in a rule, as `nft` does, so that it prints the rule as we
//! wrote it.

use std::net::IpAddr;

use nftables::expr::{Expression, Exthdr, Fib, FibResult, MetaKey, NamedExpression, Payload, PayloadBase, SetItem};
use nftables::schema::Rule;
use nftables::stmt::{self, Match, Operator, Statement};

use super::instruction::{
    Code, FIRST, Instruction, META_IIFNAME, META_L4PROTO, META_MARK, META_NFPROTO, META_OIFNAME, NETWORK, SetName,
    TRANSPORT,
};

/// A kind of address is a number of four bytes.
const KIND_OF_ADDRESS: usize = 4;
/// `IFNAMSIZ`.
const INTERFACE_NAME: usize = 16;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// What `nft` calls the type of a key; the numbers are its own, and it reads them back.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;
const TYPE_ICMP: u32 = 14;
const TYPE_ICMPV6: u32 = 29;

/// A statement that cannot be written, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwritable(pub(super) String);

/// A rule, ready to be written, and the sets that it brings along.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lowered {
    pub(super) instructions: Vec<Instruction>,
    pub(super) sets: Vec<AnonymousSet>,
}

/// A set without a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AnonymousSet {
    pub(super) id: u32,
    /// The type and the length in bytes of each part of the key.
    pub(super) key: Vec<(u32, usize)>,
    /// First and last.
    pub(super) items: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Lowers one rule. Its sets are numbered from `first_set` on.
pub(super) fn lower(rule: &Rule<'_>, first_set: u32) -> Result<Lowered, Unwritable> {
    let mut lowering = Lowering { lowered: Lowered::default(), family: None, transport: None, next_set: first_set };
    for statement in rule.expr.iter() {
        lowering.statement(statement)?;
    }
    Ok(lowering.lowered)
}

struct Lowering {
    lowered: Lowered,
    /// What the rule has made sure of.
    family: Option<u8>,
    transport: Option<u8>,
    next_set: u32,
}

/// A part of a packet, or something about it.
#[derive(Clone, Copy)]
struct Field {
    source: Source,
    kind: u32,
    length: usize,
    family: Option<u8>,
    transport: Option<u8>,
    /// The bits that count, where not all of its one byte do.
    bits: Option<u8>,
}

#[derive(Clone, Copy)]
enum Source {
    Meta(u32),
    Payload { base: u32, offset: u32 },
    WayBack,
    KindOfDestination,
    HasRouting,
}

impl Lowering {
    fn push(&mut self, instruction: Instruction) {
        self.lowered.instructions.push(instruction);
    }

    fn statement(&mut self, statement: &Statement<'_>) -> Result<(), Unwritable> {
        let instruction = match statement {
            Statement::Match(comparison) => return self.comparison(comparison),
            Statement::VerdictMap(map) => {
                let field = field(&map.key)?;
                self.load(&[field]);
                Instruction::LookupVerdict(set_name(&map.data).ok_or_else(|| unwritable(&map.data))?)
            }
            Statement::Mangle(mangle) => {
                let field = field(&mangle.key)?;
                let (Source::Payload { base: TRANSPORT, offset }, 2) = (field.source, field.length) else {
                    return Err(unwritable(statement));
                };
                self.expect(&field);
                self.push(Instruction::LoadValue(value(&field, &mangle.value)?));
                Instruction::StoreUdp { offset }
            }
            Statement::Counter(stmt::Counter::Named(name)) => Instruction::Count(name.to_string()),
            Statement::Accept(_) => Instruction::Verdict(Code::Accept, None),
            Statement::Drop(_) => Instruction::Verdict(Code::Drop, None),
            Statement::Jump(jump) => Instruction::Verdict(Code::Jump, Some(jump.target.to_string())),
            Statement::Goto(goto) => Instruction::Verdict(Code::Goto, Some(goto.target.to_string())),
            Statement::Limit(limit) => {
                Instruction::Limit { a_second: limit.rate.into(), burst: limit.burst.unwrap_or_default() }
            }
            Statement::Log(Some(log)) => {
                let group = log.group.and_then(|group| u16::try_from(group).ok());
                let prefix = log.prefix.as_deref().unwrap_or_default().to_owned();
                Instruction::Log { group: group.ok_or_else(|| unwritable(statement))?, prefix }
            }
            // A reset is for TCP, which a rule that sends one asked for.
            Statement::Reject(_) if self.transport == Some(TCP) => Instruction::Reset,
            Statement::Notrack => Instruction::Untrack,
            other => return Err(unwritable(other)),
        };
        self.push(instruction);
        Ok(())
    }

    fn comparison(&mut self, comparison: &Match<'_>) -> Result<(), Unwritable> {
        let is_equal = match comparison.op {
            Operator::EQ => true,
            Operator::NEQ => false,
            Operator::IN => return self.connection_state(comparison),
            _ => return Err(unwritable(comparison)),
        };
        let fields: Vec<Field> = match &comparison.left {
            Expression::Named(NamedExpression::Concat(parts)) => parts.iter().map(field).collect::<Result<_, _>>()?,
            single => vec![field(single)?],
        };
        if let Some(name) = set_name(&comparison.right) {
            self.load(&fields);
            self.push(Instruction::Lookup { set: SetName::Named(name), is_inverted: !is_equal });
            return Ok(());
        }
        match &comparison.right {
            Expression::Named(NamedExpression::Set(items)) => self.anonymous(&fields, items, is_equal),
            Expression::Named(NamedExpression::Prefix(prefix)) => {
                let [field] = fields.as_slice() else { return Err(unwritable(comparison)) };
                self.prefix(field, &value(field, &prefix.addr)?, prefix.len as usize, is_equal)
            }
            single => {
                let [field] = fields.as_slice() else { return Err(unwritable(comparison)) };
                let value = value(field, single)?;
                self.load(&fields);
                self.push(Instruction::Compare { is_equal, value });
                Ok(())
            }
        }
    }

    /// Whole bytes are compared as they are, others under a mask.
    fn prefix(&mut self, field: &Field, address: &[u8], length: usize, is_equal: bool) -> Result<(), Unwritable> {
        if length > address.len() * 8 {
            return Err(Unwritable(format!("a prefix of {length} bits")));
        }
        let (whole, rest) = (length / 8, length % 8);
        let read = if rest == 0 { whole } else { address.len() };
        self.load(&[Field { length: read, ..*field }]);
        if rest != 0 {
            let mut mask = vec![0; address.len()];
            mask[..whole].fill(0xff);
            mask[whole] = 0xff << (8 - rest);
            self.push(Instruction::Mask(mask));
        }
        self.push(Instruction::Compare { is_equal, value: address[..read].to_vec() });
        Ok(())
    }

    /// Any of the states: bits in the machine's byte order.
    fn connection_state(&mut self, comparison: &Match<'_>) -> Result<(), Unwritable> {
        let is_state = matches!(&comparison.left, Expression::Named(NamedExpression::CT(ct)) if ct.key == "state" && ct.dir.is_none());
        let bits = match &comparison.right {
            Expression::Number(bits) => Some(*bits),
            Expression::List(list) => list.iter().try_fold(0, |all, bits| match bits {
                Expression::Number(bits) => Some(all | bits),
                _ => None,
            }),
            _ => None,
        };
        let bits = bits.filter(|_| is_state).ok_or_else(|| unwritable(comparison))?;
        self.push(Instruction::LoadConnectionState);
        self.push(Instruction::Mask(bits.to_ne_bytes().to_vec()));
        self.push(Instruction::Compare { is_equal: false, value: vec![0; 4] });
        Ok(())
    }

    fn anonymous(&mut self, fields: &[Field], items: &[SetItem<'_>], is_equal: bool) -> Result<(), Unwritable> {
        let range = |item: &SetItem<'_>| match item {
            SetItem::Element(Expression::Named(NamedExpression::Concat(parts))) if parts.len() == fields.len() => {
                fields.iter().zip(parts).try_fold((Vec::new(), Vec::new()), |(mut first, mut last), (field, part)| {
                    let (low, high) = range(field, part)?;
                    push_padded(&mut first, &low);
                    push_padded(&mut last, &high);
                    Ok((first, last))
                })
            }
            SetItem::Element(single) if fields.len() == 1 => range(&fields[0], single),
            _ => Err(unwritable(item)),
        };
        let items = items.iter().map(range).collect::<Result<_, _>>()?;
        let key = fields.iter().map(|field| (field.kind, field.length)).collect();
        let id = self.next_set;
        self.next_set = id.wrapping_add(1);
        self.lowered.sets.push(AnonymousSet { id, key, items });
        self.load(fields);
        self.push(Instruction::Lookup { set: SetName::Anonymous(id), is_inverted: !is_equal });
        Ok(())
    }

    /// Asks for what the field takes for granted.
    fn expect(&mut self, field: &Field) {
        let asked = [(META_NFPROTO, field.family, self.family), (META_L4PROTO, field.transport, self.transport)];
        for (key, wanted, known) in asked {
            if let Some(wanted) = wanted.filter(|_| wanted != known) {
                self.push(Instruction::LoadMeta { key, register: FIRST });
                self.push(Instruction::Compare { is_equal: true, value: vec![wanted] });
            }
        }
        self.family = field.family.or(self.family);
        self.transport = field.transport.or(self.transport);
    }

    /// Puts the fields into the registers, side by side.
    fn load(&mut self, fields: &[Field]) {
        fields.iter().for_each(|field| self.expect(field));
        let mut register = FIRST;
        for field in fields {
            // Sixteen bytes at the most.
            let length = u32::try_from(field.length).unwrap_or_default();
            self.push(match field.source {
                Source::Meta(key) => Instruction::LoadMeta { key, register },
                Source::Payload { base, offset } => Instruction::LoadPayload { base, offset, length, register },
                Source::WayBack => Instruction::LoadWayBack,
                Source::KindOfDestination => Instruction::LoadKindOfDestination,
                Source::HasRouting => Instruction::LoadHasRouting,
            });
            if let Some(bits) = field.bits {
                self.push(Instruction::Mask(vec![bits]));
            }
            register += length.div_ceil(4);
        }
    }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn field(expression: &Expression<'_>) -> Result<Field, Unwritable> {
    let plain = |source, kind, length| Field { source, kind, length, family: None, transport: None, bits: None };
    let field = match expression {
        Expression::Named(NamedExpression::Meta(meta)) => match meta.key {
            MetaKey::Iifname => plain(Source::Meta(META_IIFNAME), 0, INTERFACE_NAME),
            MetaKey::Oifname => plain(Source::Meta(META_OIFNAME), 0, INTERFACE_NAME),
            MetaKey::Mark => plain(Source::Meta(META_MARK), 0, 4),
            MetaKey::L4proto => plain(Source::Meta(META_L4PROTO), TYPE_PROTOCOL, 1),
            _ => return Err(unwritable(expression)),
        },
        Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Oifname, .. })) => {
            plain(Source::WayBack, 0, INTERFACE_NAME)
        }
        Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, .. })) => {
            // A number in the machine's byte order.
            plain(Source::KindOfDestination, 0, KIND_OF_ADDRESS)
        }
        Expression::Named(NamedExpression::Exthdr(Exthdr { name, field: None, .. })) if name == "rt" => {
            Field { family: Some(IPV6), ..plain(Source::HasRouting, 0, 1) }
        }
        Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(raw))) if raw.base == PayloadBase::TH => {
            plain(Source::Payload { base: TRANSPORT, offset: raw.offset / 8 }, 0, raw.len as usize / 8)
        }
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(named))) => {
            return named_field(&named.protocol, &named.field).ok_or_else(|| unwritable(expression));
        }
        _ => return Err(unwritable(expression)),
    };
    Ok(field)
}

fn named_field(protocol: &str, name: &str) -> Option<Field> {
    let network = |offset, kind, length, family| Field {
        source: Source::Payload { base: NETWORK, offset },
        kind,
        length,
        family: Some(family),
        transport: None,
        bits: None,
    };
    let port = |transport, offset| Field {
        source: Source::Payload { base: TRANSPORT, offset },
        kind: TYPE_PORT,
        length: 2,
        family: None,
        transport,
        bits: None,
    };
    let icmp = |kind, family, transport| Field {
        source: Source::Payload { base: TRANSPORT, offset: 0 },
        kind,
        length: 1,
        family: Some(family),
        transport: Some(transport),
        bits: None,
    };
    Some(match (protocol, name) {
        ("ip", "hdrlength") => Field { bits: Some(0x0f), ..network(0, 0, 1, IPV4) },
        ("ip", "saddr") => network(12, TYPE_IPV4, 4, IPV4),
        ("ip", "daddr") => network(16, TYPE_IPV4, 4, IPV4),
        ("ip6", "saddr") => network(8, TYPE_IPV6, 16, IPV6),
        ("ip6", "daddr") => network(24, TYPE_IPV6, 16, IPV6),
        ("th", "sport") => port(None, 0),
        ("th", "dport") => port(None, 2),
        ("tcp", "sport") => port(Some(TCP), 0),
        ("tcp", "dport") => port(Some(TCP), 2),
        ("udp", "sport") => port(Some(UDP), 0),
        ("udp", "dport") => port(Some(UDP), 2),
        ("icmp", "type") => icmp(TYPE_ICMP, IPV4, ICMP),
        ("icmpv6", "type") => icmp(TYPE_ICMPV6, IPV6, ICMPV6),
        _ => return None,
    })
}

/// First and last of what the expression stands for.
fn range(field: &Field, expression: &Expression<'_>) -> Result<(Vec<u8>, Vec<u8>), Unwritable> {
    match expression {
        Expression::Range(ends) => Ok((value(field, &ends.range[0])?, value(field, &ends.range[1])?)),
        Expression::Named(NamedExpression::Prefix(prefix)) => {
            let first = value(field, &prefix.addr)?;
            let mut last = first.clone();
            for (place, byte) in last.iter_mut().enumerate() {
                *byte |= host_bits(place, prefix.len as usize);
            }
            Ok((first, last))
        }
        single => value(field, single).map(|value| (value.clone(), value)),
    }
}

/// The bits of this byte of an address that a prefix of this length leaves open.
fn host_bits(place: usize, length: usize) -> u8 {
    match length.saturating_sub(place * 8) {
        0 => 0xff,
        fixed if fixed >= 8 => 0,
        fixed => 0xff >> fixed,
    }
}

fn value(field: &Field, expression: &Expression<'_>) -> Result<Vec<u8>, Unwritable> {
    let bytes = match expression {
        Expression::Boolean(is_there) if field.length == 1 => Some(vec![u8::from(*is_there)]),
        // A mark is a number of the machine, and not a field of a packet.
        Expression::Number(number) if matches!(field.source, Source::KindOfDestination | Source::Meta(META_MARK)) => {
            Some(number.to_ne_bytes().to_vec())
        }
        Expression::Number(number) => {
            let bytes = number.to_be_bytes();
            bytes.len().checked_sub(field.length).map(|skipped| bytes[skipped..].to_vec())
        }
        Expression::String(text) => match (field.length, text.parse::<IpAddr>()) {
            (4, Ok(IpAddr::V4(address))) => Some(address.octets().to_vec()),
            (16, Ok(IpAddr::V6(address))) => Some(address.octets().to_vec()),
            (INTERFACE_NAME, Err(_)) if text.len() < INTERFACE_NAME => {
                let mut name = text.as_bytes().to_vec();
                name.resize(INTERFACE_NAME, 0);
                Some(name)
            }
            _ => None,
        },
        _ => None,
    };
    bytes.ok_or_else(|| unwritable(expression))
}

/// The parts of a key begin at registers.
pub(super) fn push_padded(key: &mut Vec<u8>, part: &[u8]) {
    key.extend(part);
    key.resize(key.len().next_multiple_of(4), 0);
}

fn set_name(expression: &Expression<'_>) -> Option<String> {
    match expression {
        Expression::String(text) => text.strip_prefix('@').map(str::to_owned),
        _ => None,
    }
}

fn unwritable(what: &impl std::fmt::Debug) -> Unwritable {
    Unwritable(format!("no instructions are known for {what:?}"))
}
