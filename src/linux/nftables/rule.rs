//! Rules in the words of packets: fields and what is asked of them, made into the kernel's expressions.
//!
//! What a field takes for granted (an IPv4 header, TCP) is asked first, once in a rule, as `nft` does, so that it
//! prints the rule as it is meant.

use warren_core::plan::own;
use warren_core::types::IpNet;

use super::elements::AddressKey;
use super::expression::{
    Base, Checksum, Comparison, Ct, Data, Expression, Fib, FibOf, HeaderFlags, Meta, Refusal, Register, Verdict,
};
use super::object::{ANONYMOUS_NAME, AnonymousSet, Object, Part, Ranges, Rule};
use super::table::Family;

/// `IFNAMSIZ`.
const INTERFACE_NAME: usize = 16;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
/// The number of the IPv6 routing header.
const ROUTING_HEADER: u8 = 43;
/// Where UDP's checksum is.
const UDP_CHECKSUM: u32 = 6;

/// A part of a packet, or something about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    source: Source,
    /// Its type as part of a key.
    part: Option<Part>,
    length: u32,
    family: Option<u8>,
    transport: Option<u8>,
    /// The bits that count, where not all do of its one byte, or of a number of the machine.
    bits: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Meta(Meta),
    Payload(Base, u32),
    Fib(Fib, FibOf),
    Connection(Ct),
    HasRouting,
}

/// What a rule asks of some fields, side by side.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    fields: Vec<Field>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Is(Comparison, Vec<u8>),
    Within {
        net: IpNet,
        op: Comparison,
    },
    HasBit(u32),
    In {
        set: String,
        is_inverted: bool,
    },
    /// First and last.
    AnyOf {
        items: Ranges,
        is_inverted: bool,
    },
    /// Goes on as a map says.
    Map(String),
}

impl Field {
    const fn plain(source: Source, length: u32) -> Self {
        Self { source, part: None, length, family: None, transport: None, bits: None }
    }

    pub(super) const IIFNAME: Self = Self::plain(Source::Meta(Meta::Iifname), 16);
    pub(super) const OIFNAME: Self = Self::plain(Source::Meta(Meta::Oifname), 16);
    pub(super) const MARK: Self = Self::plain(Source::Meta(Meta::Mark), 4);
    pub(super) const PROTOCOL: Self =
        Self { part: Some(Part::Protocol), ..Self::plain(Source::Meta(Meta::L4proto), 1) };
    /// The interface of the route to the packet's source.
    pub(super) const WAY_BACK: Self = Self::plain(Source::Fib(Fib::Oifname, FibOf::Source), 16);
    /// What kind of address the destination is to this host: a number in the machine's byte order.
    pub(super) const KIND_OF_DESTINATION: Self = Self::plain(Source::Fib(Fib::AddressType, FibOf::Destination), 4);
    pub(super) const CONNECTION_STATE: Self = Self::plain(Source::Connection(Ct::State), 4);
    pub(super) const CONNECTION_DIRECTION: Self = Self::plain(Source::Connection(Ct::Direction), 1);
    /// The part of a flow's mark that is ours: a number of the machine.
    pub(super) const CONNECTION_MARK: Self =
        Self { bits: Some(own::CONNECTION_MARK_BITS), ..Self::plain(Source::Connection(Ct::Mark), 4) };
    /// Whether there is an IPv6 routing header.
    pub(super) const HAS_ROUTING: Self = Self { family: Some(IPV6), ..Self::plain(Source::HasRouting, 1) };
    /// The version, and of IPv4 the length of the header in words.
    pub(super) const FIRST_BYTE: Self = Self::plain(Source::Payload(Base::Network, 0), 1);
    /// The length of an IPv4 header in words.
    pub(super) const HEADER_WORDS: Self =
        Self { family: Some(IPV4), bits: Some(0x0f), ..Self::plain(Source::Payload(Base::Network, 0), 1) };
    /// Ports of whatever protocol has them there.
    pub(super) const SOURCE_PORT: Self = Self::port(None, 0);
    pub(super) const DESTINATION_PORT: Self = Self::port(None, 2);
    pub(super) const TCP_SOURCE_PORT: Self = Self::port(Some(TCP), 0);
    pub(super) const TCP_DESTINATION_PORT: Self = Self::port(Some(TCP), 2);
    /// What opens and ends a flow of TCP: its flags SYN (2) and RST (4).
    pub(super) const TCP_OPENS: Self =
        Self { transport: Some(TCP), bits: Some(0x06), ..Self::plain(Source::Payload(Base::Transport, 13), 1) };
    pub(super) const UDP_SOURCE_PORT: Self = Self::port(Some(UDP), 0);
    pub(super) const UDP_DESTINATION_PORT: Self = Self::port(Some(UDP), 2);

    const fn port(transport: Option<u8>, offset: u32) -> Self {
        let plain = Self::plain(Source::Payload(Base::Transport, offset), 2);
        Self { part: Some(Part::Port), transport, ..plain }
    }

    pub(super) fn source(family: Family) -> Self {
        match family {
            Family::V4 => Self::address(Part::Ipv4, 12, 4, IPV4),
            Family::V6 => Self::address(Part::Ipv6, 8, 16, IPV6),
        }
    }

    pub(super) fn destination(family: Family) -> Self {
        match family {
            Family::V4 => Self::address(Part::Ipv4, 16, 4, IPV4),
            Family::V6 => Self::address(Part::Ipv6, 24, 16, IPV6),
        }
    }

    fn address(part: Part, offset: u32, length: u32, family: u8) -> Self {
        let plain = Self::plain(Source::Payload(Base::Network, offset), length);
        Self { part: Some(part), family: Some(family), ..plain }
    }

    /// The type of an ICMP message.
    pub(super) fn icmp_type(family: Family) -> Self {
        let (part, network, transport) = match family {
            Family::V4 => (Part::Icmp, IPV4, ICMP),
            Family::V6 => (Part::Icmpv6, IPV6, ICMPV6),
        };
        let plain = Self::plain(Source::Payload(Base::Transport, 0), 1);
        Self { part: Some(part), family: Some(network), transport: Some(transport), ..plain }
    }

    /// So many bytes from the beginning of the transport header.
    pub(super) const fn bytes(offset: u32, length: u32) -> Self {
        Self::plain(Source::Payload(Base::Transport, offset), length)
    }

    fn load(self, to: Register) -> Expression {
        match self.source {
            Source::Meta(key) => Expression::LoadMeta { to, key },
            Source::Payload(base, offset) => Expression::LoadPayload { to, base, offset, length: self.length },
            Source::Fib(result, of) => Expression::LoadFib { to, result, of },
            Source::Connection(key) => Expression::LoadCt { to, key, direction: None },
            Source::HasRouting => Expression::LoadHeader {
                to,
                header: ROUTING_HEADER,
                offset: 0,
                length: 1,
                flags: HeaderFlags::IsPresent,
            },
        }
    }

    /// Whether it is this.
    pub(super) fn is(self, value: impl Into<Vec<u8>>) -> Condition {
        Condition { fields: vec![self], test: Test::Is(Comparison::Equal, value.into()) }
    }

    pub(super) fn is_not(self, value: impl Into<Vec<u8>>) -> Condition {
        Condition { fields: vec![self], test: Test::Is(Comparison::Unequal, value.into()) }
    }

    pub(super) fn is_link(self, name: &str) -> Condition {
        self.is(link_name(name))
    }

    pub(super) fn is_not_link(self, name: &str) -> Condition {
        self.is_not(link_name(name))
    }

    /// Whether it lies within this prefix.
    pub(super) fn is_within(self, net: IpNet) -> Condition {
        Condition { fields: vec![self], test: Test::Within { net, op: Comparison::Equal } }
    }

    pub(super) fn is_not_within(self, net: IpNet) -> Condition {
        Condition { fields: vec![self], test: Test::Within { net, op: Comparison::Unequal } }
    }

    /// Whether any of these bits is set of a number of the machine.
    pub(super) fn has(self, bits: u32) -> Condition {
        Condition { fields: vec![self], test: Test::HasBit(bits) }
    }

    pub(super) fn is_in(self, set: &str) -> Condition {
        Condition::is_in(vec![self], set)
    }

    pub(super) fn is_not_in(self, set: &str) -> Condition {
        Condition { fields: vec![self], test: Test::In { set: set.to_owned(), is_inverted: true } }
    }

    /// Whether it is one of these bytes.
    pub(super) fn is_any(self, items: &[u8]) -> Condition {
        Condition { fields: vec![self], test: any_byte(items, false) }
    }

    pub(super) fn is_none(self, items: &[u8]) -> Condition {
        Condition { fields: vec![self], test: any_byte(items, true) }
    }

    /// Goes on where the map leads it.
    pub(super) fn leads_by(self, map: &str) -> Condition {
        Condition { fields: vec![self], test: Test::Map(map.to_owned()) }
    }
}

fn any_byte(items: &[u8], is_inverted: bool) -> Test {
    Test::AnyOf { items: items.iter().map(|item| (vec![*item], vec![*item])).collect(), is_inverted }
}

impl Condition {
    /// Whether the fields are together in this set.
    pub(super) fn is_in(fields: Vec<Field>, set: &str) -> Self {
        Self { fields, test: Test::In { set: set.to_owned(), is_inverted: false } }
    }

    /// Whether the fields lie together within one of these ranges, ends included.
    pub(super) fn is_any(fields: Vec<Field>, items: Ranges) -> Self {
        Self { fields, test: Test::AnyOf { items, is_inverted: false } }
    }
}

/// A name as a register holds it.
fn link_name(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.resize(INTERFACE_NAME, 0);
    name
}

/// The rule of a chain that does this where all conditions hold.
pub(super) fn rule(chain: &str, conditions: &[Condition], actions: impl IntoIterator<Item = Expression>) -> Object {
    let rule = Rule { chain: chain.to_owned(), expressions: Vec::new(), sets: Vec::new() };
    let mut lowering = Lowering { rule, family: None, transport: None };
    conditions.iter().for_each(|condition| lowering.condition(condition));
    lowering.rule.expressions.extend(actions);
    Object::Rule(lowering.rule)
}

pub(super) fn accept() -> Expression {
    Expression::Decide { verdict: Verdict::Accept }
}

pub(super) fn drop_it() -> Expression {
    Expression::Decide { verdict: Verdict::Drop }
}

pub(super) fn jump(chain: &str) -> Expression {
    Expression::Decide { verdict: Verdict::Jump(chain.to_owned()) }
}

pub(super) fn count(counter: &str) -> Expression {
    Expression::Count { counter: counter.to_owned() }
}

/// Answers TCP with a reset: for rules that asked for TCP.
pub(super) fn reset() -> Expression {
    Expression::Refuse { answer: Refusal::TcpReset, code: None }
}

/// Sends UDP to another port: for rules that asked for UDP.
pub(super) fn set_udp_destination(port: u16) -> [Expression; 2] {
    [
        Expression::LoadValue { to: Register::FIRST, value: Data(port.to_be_bytes().to_vec()) },
        Expression::StorePayload {
            from: Register::FIRST,
            base: Base::Transport,
            offset: 2,
            length: 2,
            checksum: Checksum::Inet,
            checksum_offset: UDP_CHECKSUM,
            checksum_flags: 0,
        },
    ]
}

struct Lowering {
    rule: Rule,
    /// What the rule has made sure of.
    family: Option<u8>,
    transport: Option<u8>,
}

impl Lowering {
    fn push(&mut self, expression: Expression) {
        self.rule.expressions.push(expression);
    }

    fn condition(&mut self, Condition { fields, test }: &Condition) {
        let key = Register::FIRST;
        match test {
            Test::Is(op, value) => {
                self.load(fields);
                self.compare(*op, value.clone());
            }
            Test::Within { net, op } => self.within(fields, *net, *op),
            Test::HasBit(bits) => {
                self.load(fields);
                self.mask(bits.to_ne_bytes().to_vec());
                self.compare(Comparison::Unequal, vec![0; 4]);
            }
            Test::In { set, is_inverted } => {
                self.load(fields);
                self.push(Expression::Lookup { set: set.clone(), id: None, key, is_inverted: *is_inverted });
            }
            Test::AnyOf { items, is_inverted } => {
                let id = u32::try_from(self.rule.sets.len()).ok();
                let parts = fields.iter().filter_map(|field| field.part).collect();
                self.rule.sets.push(AnonymousSet { key: parts, items: items.clone() });
                self.load(fields);
                let set = ANONYMOUS_NAME.to_owned();
                self.push(Expression::Lookup { set, id, key, is_inverted: *is_inverted });
            }
            Test::Map(map) => {
                self.load(fields);
                self.push(Expression::LookupVerdict { map: map.clone(), key });
            }
        }
    }

    /// Whole bytes are compared as they are, others under a mask.
    fn within(&mut self, fields: &[Field], net: IpNet, op: Comparison) {
        let key = AddressKey::from(net.network());
        let address: &[u8] = key.as_ref();
        let (whole, rest) = (usize::from(net.prefix_len() / 8), net.prefix_len() % 8);
        let read = if rest == 0 { whole } else { address.len() };
        let length = u32::try_from(read).unwrap_or_default();
        let fields: Vec<Field> = fields.iter().map(|field| Field { length, ..*field }).collect();
        self.load(&fields);
        if rest != 0 {
            let mut mask = vec![0; address.len()];
            mask[..whole].fill(0xff);
            mask[whole] = 0xff << (8 - rest);
            self.mask(mask);
        }
        self.compare(op, address[..read].to_vec());
    }

    fn compare(&mut self, op: Comparison, value: Vec<u8>) {
        self.push(Expression::Compare { register: Register::FIRST, op, value: Data(value) });
    }

    fn mask(&mut self, mask: Vec<u8>) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let flip = Data(vec![0; mask.len()]);
        self.push(Expression::Bitwise { from: Register::FIRST, to: Register::FIRST, length, mask: Data(mask), flip });
    }

    /// Asks for what the field takes for granted.
    fn expect(&mut self, field: &Field) {
        let asked = [(Meta::Nfproto, field.family, self.family), (Meta::L4proto, field.transport, self.transport)];
        for (key, wanted, known) in asked {
            if let Some(wanted) = wanted.filter(|_| wanted != known) {
                self.push(Expression::LoadMeta { to: Register::FIRST, key });
                self.compare(Comparison::Equal, vec![wanted]);
            }
        }
        self.family = field.family.or(self.family);
        self.transport = field.transport.or(self.transport);
    }

    /// Puts the fields into the registers, side by side.
    fn load(&mut self, fields: &[Field]) {
        fields.iter().for_each(|field| self.expect(field));
        let mut register = 0;
        for field in fields {
            self.push(field.load(Register(register)));
            if let Some(bits) = field.bits {
                self.mask(match field.length {
                    1 => bits.to_be_bytes()[3..].to_vec(),
                    _ => bits.to_ne_bytes().to_vec(),
                });
            }
            // Sixteen bytes at the most.
            register += u8::try_from(field.length.div_ceil(4)).unwrap_or_default();
        }
    }
}
