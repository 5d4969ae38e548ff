//! What a rule is to the kernel: expressions that work on registers (linux/netfilter/nf_tables.h).
//!
//! A value is loaded into registers and compared, masked or looked up there, or stored from there. Each expression is
//! declared once, by its name and the numbers and types of its attributes, and is written and read by that. What
//! has an attribute that is not declared, or lacks one that is, is no expression of ours.

use super::super::attributes::{Attributes, attribute, attributes, number, text};

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE` and `NFTA_VERDICT_CHAIN`.
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Expressions: a name, and attributes by number. Those in brackets always have this value; so have those in
/// parentheses, and the kernel tells them without being told.
macro_rules! expressions {
    ($(
        $(#[$doc:meta])*
        $name:literal $variant:ident { $($number:literal $field:ident: $type:ty),* }
        $([$($must:literal = $must_value:literal),*])? $(($($may:literal = $may_value:literal),*))?;
    )*) => {
        /// One expression.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) enum Expression {
            $($(#[$doc])* $variant { $($field: $type),* },)*
        }

        impl Expression {
            fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $name,)*
                }
            }

            fn write_data(&self, data: &mut Attributes<'_>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        $($(data.u32($must, $must_value);)*)?
                        $($field.write($number, data);)*
                    })*
                }
            }

            #[allow(unused_mut, reason = "an expression may have no attributes")]
            fn read_data(name: &str, data: &[u8]) -> Option<Self> {
                $(if name == $name {
                    let mut rest = Rest::of(data);
                    let has_all = true $($(&& rest.must($must, $must_value))*)? $($(&& rest.may($may, $may_value))*)?;
                    let mut read = || Some(Self::$variant { $($field: rest.take($number)?),* });
                    if let Some(found) = read().filter(|_| has_all) && rest.is_empty() {
                        return Some(found);
                    }
                })*
                None
            }
        }
    };
}

expressions! {
    /// What is known of a packet besides its bytes.
    "meta" LoadMeta { 1 to: Register, 2 key: Meta };
    /// Notes something with the packet.
    "meta" StoreMeta { 3 from: Register, 2 key: Meta };
    "payload" LoadPayload { 1 to: Register, 2 base: Base, 3 offset: u32, 4 length: u32 };
    /// Writes into the packet, and corrects the checksum.
    "payload" StorePayload {
        5 from: Register, 2 base: Base, 3 offset: u32, 4 length: u32, 6 checksum: Checksum, 7 checksum_offset: u32,
        8 checksum_flags: u32
    };
    /// What connection tracking knows of the packet's flow.
    "ct" LoadCt { 1 to: Register, 2 key: Ct, 3 direction: Option<Direction> };
    /// Notes something with the packet's flow.
    "ct" StoreCt { 4 from: Register, 2 key: Ct, 3 direction: Option<Direction> };
    /// What the routing table says of an address of the packet.
    "fib" LoadFib { 1 to: Register, 2 result: Fib, 3 of: FibOf };
    /// Whether there is an IPv6 extension header, or a part of it.
    "exthdr" LoadHeader { 1 to: Register, 2 header: u8, 3 offset: u32, 4 length: u32, 5 flags: HeaderFlags } (6 = 0);
    /// Writes into an option of TCP, and corrects the checksum.
    "exthdr" StoreTcpOption { 7 from: Register, 2 option: u8, 3 offset: u32, 4 length: u32 } [6 = 1] (5 = 0);
    /// What is known of the packet's route.
    "rt" LoadRoute { 1 to: Register, 2 key: Route };
    /// Keeps the bits of the mask and turns those of `flip`.
    "bitwise" Bitwise { 1 from: Register, 2 to: Register, 3 length: u32, 4 mask: Data, 5 flip: Data } (6 = 0);
    /// Turns numbers of so many bytes from the machine's order to the network's, or back.
    "byteorder" Reorder { 1 from: Register, 2 to: Register, 3 op: Order, 4 length: u32, 5 size: u32 };
    "cmp" Compare { 1 register: Register, 2 op: Comparison, 3 value: Data };
    /// Whether a set has the key. One without a name has a number in the transaction.
    "lookup" Lookup { 1 set: String, 4 id: Option<u32>, 2 key: Register, 5 is_inverted: bool };
    /// Goes on as a map says.
    "lookup" LookupVerdict { 1 map: String, 2 key: Register } [3 = 0] (5 = 0);
    "immediate" LoadValue { 1 to: Register, 2 value: Data };
    "immediate" Decide { 2 verdict: Verdict } [1 = 0];
    /// Counts the packet with a counter of the table.
    "objref" Count { 2 counter: String } [1 = 1];
    "limit" Limit { 1 rate: u64, 2 seconds: u64, 3 burst: u32, 4 of: Limited, 5 is_over: bool };
    "log" Log { 1 group: u16, 2 prefix: String };
    "reject" Refuse { 1 answer: Refusal, 2 code: Option<u8> };
    "notrack" Untrack {};
    /// Gives the flow the address of the link that it leaves by.
    "masq" Masquerade { 1 flags: Option<NatFlags>, 2 first_port: Option<Register>, 3 last_port: Option<Register> };
    "nat" Translate {
        1 what: Translated, 2 family: Family, 3 first_address: Option<Register>, 4 last_address: Option<Register>,
        5 first_port: Option<Register>, 6 last_port: Option<Register>, 7 flags: Option<NatFlags>
    };
    /// Sends the flow to this host itself.
    "redir" Redirect { 1 first_port: Option<Register>, 2 last_port: Option<Register>, 3 flags: Option<NatFlags> };
    /// Gives the packet to a socket of this host that takes packets for others.
    "tproxy" Proxy { 1 family: Family, 2 address: Option<Register>, 3 port: Option<Register> };
    /// Changes a set from within a rule; what comes to it stays for so many milliseconds.
    "dynset" ChangeSet { 1 set: String, 4 key: Register, 3 op: SetChange, 6 milliseconds: u64 } (9 = 0);
}

/// Names of numbers: what is none of them cannot be read.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident: $int:ty { $($variant:ident = $value:literal),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name {
            $($variant,)*
        }

        impl Value for $name {
            fn write(&self, kind: u16, out: &mut Attributes<'_>) {
                let number: $int = match self {
                    $(Self::$variant => $value,)*
                };
                number.write(kind, out);
            }

            fn read(value: &[u8]) -> Option<Self> {
                match <$int>::read(value)? {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

numbers! {
    /// `NFT_META_…`.
    Meta: u32 { Mark = 3, Iifname = 6, Oifname = 7, Nfproto = 15, L4proto = 16 }
    /// `NFT_PAYLOAD_…_HEADER`.
    Base: u32 { Network = 1, Transport = 2 }
    /// `NFT_PAYLOAD_CSUM_…`.
    Checksum: u32 { None = 0, Inet = 1 }
    /// `NFT_CT_…`.
    Ct: u32 { State = 0, Direction = 1, Status = 2, Mark = 3 }
    /// `IP_CT_DIR_…`.
    Direction: u8 { Original = 0, Reply = 1 }
    /// `NFT_FIB_RESULT_…`.
    Fib: u32 { Oif = 1, Oifname = 2, AddressType = 3 }
    /// `NFTA_FIB_F_…`.
    FibOf: u32 { Source = 1, Destination = 2 }
    /// `NFT_EXTHDR_F_…`.
    HeaderFlags: u32 { Value = 0, IsPresent = 1 }
    /// `NFT_RT_…`.
    Route: u32 { TcpMss = 3 }
    /// `NFT_BYTEORDER_…`.
    Order: u32 { ToHost = 0, ToNetwork = 1 }
    /// `NFT_CMP_…`.
    Comparison: u32 { Equal = 0, Unequal = 1, Less = 2, AtMost = 3, Greater = 4, AtLeast = 5 }
    /// `NFT_LIMIT_…`.
    Limited: u32 { Packets = 0, Bytes = 1 }
    /// `NFT_REJECT_…`.
    Refusal: u32 { IcmpUnreachable = 0, TcpReset = 1, IcmpxUnreachable = 2 }
    /// `NFT_NAT_…`.
    Translated: u32 { Source = 0, Destination = 1 }
    /// `NFPROTO_…`.
    Family: u32 { Either = 0, V4 = 2, V6 = 10 }
    /// `NFT_DYNSET_OP_…`.
    SetChange: u32 { Add = 0, Update = 1, Delete = 2 }
}

/// `NF_NAT_RANGE_…` bits. The kernel adds those that say that an address (1) and a port (2) are given, so a rule that is to
/// be known again says them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NatFlags(pub(super) u32);

/// A register of four bytes, counted from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(pub(super) u8);

impl Register {
    pub(super) const FIRST: Self = Self(0);
    /// `NFT_REG32_00`, and behind the last.
    const NARROW: [u32; 2] = [8, 24];
    /// `NFT_REG_1` and `NFT_REG_4`: the kernel's names for every fourth, as places for sixteen bytes.
    const WIDE: [u32; 2] = [1, 4];
}

/// Bytes as a register holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data(pub(super) Vec<u8>);

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Drop,
    Accept,
    Jump(String),
    Goto(String),
    Return,
}

impl Expression {
    /// Adds this to a rule's list.
    pub(super) fn write(&self, list: &mut Attributes<'_>) {
        list.nest(LIST_ELEMENT, |element| {
            element.text(NAME, self.name());
            element.nest(DATA, |data| self.write_data(data));
        });
    }

    /// Reads an element of a rule's list. Says what it is called, where it is none that is known.
    pub(super) fn read(element: &[u8]) -> Result<Self, String> {
        let name = attribute(element, NAME).and_then(text).unwrap_or_default();
        let data = attribute(element, DATA).unwrap_or_default();
        Self::read_data(name, data).ok_or_else(|| format!("an expression that we do not write: {name}"))
    }
}

/// The attributes of an expression that were not taken yet.
struct Rest<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Rest<'a> {
    /// Attributes without a value are the kernel's padding.
    fn of(data: &'a [u8]) -> Self {
        Self(attributes(data).filter(|(_, value)| !value.is_empty()).collect())
    }

    fn find(&mut self, kind: u16) -> Option<&'a [u8]> {
        let place = self.0.iter().position(|(number, _)| *number == kind)?;
        Some(self.0.swap_remove(place).1)
    }

    fn take<V: Value>(&mut self, kind: u16) -> Option<V> {
        self.find(kind).map_or_else(V::absent, V::read)
    }

    fn must(&mut self, kind: u16, value: u32) -> bool {
        self.find(kind).and_then(number) == Some(value)
    }

    fn may(&mut self, kind: u16, value: u32) -> bool {
        self.find(kind).is_none_or(|found| number(found) == Some(value))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The value of an attribute.
pub(super) trait Value: Sized {
    fn write(&self, kind: u16, out: &mut Attributes<'_>);

    fn read(value: &[u8]) -> Option<Self>;

    /// What it is where there is no such attribute.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Value for $int {
            fn write(&self, kind: u16, out: &mut Attributes<'_>) {
                out.bytes(kind, &self.to_be_bytes());
            }

            fn read(value: &[u8]) -> Option<Self> {
                value.try_into().ok().map(Self::from_be_bytes)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64);

impl Value for bool {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        out.u32(kind, u32::from(*self));
    }

    fn read(value: &[u8]) -> Option<Self> {
        match number(value)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Value for String {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        out.text(kind, self);
    }

    fn read(value: &[u8]) -> Option<Self> {
        text(value).map(str::to_owned)
    }
}

impl<V: Value> Value for Option<V> {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        self.iter().for_each(|value| value.write(kind, out));
    }

    fn read(value: &[u8]) -> Option<Self> {
        V::read(value).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Value for NatFlags {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        out.u32(kind, self.0);
    }

    fn read(value: &[u8]) -> Option<Self> {
        number(value).map(Self)
    }
}

impl Value for Register {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        out.u32(kind, Self::NARROW[0] + u32::from(self.0));
    }

    fn read(value: &[u8]) -> Option<Self> {
        let number = number(value)?;
        let place = match number {
            wide if (Self::WIDE[0]..=Self::WIDE[1]).contains(&wide) => (wide - Self::WIDE[0]) * 4,
            narrow if (Self::NARROW[0]..Self::NARROW[1]).contains(&narrow) => narrow - Self::NARROW[0],
            _ => return None,
        };
        u8::try_from(place).ok().map(Self)
    }
}

impl Value for Data {
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        out.nest(kind, |data| data.bytes(DATA_VALUE, &self.0));
    }

    fn read(value: &[u8]) -> Option<Self> {
        attribute(value, DATA_VALUE).map(|bytes| Self(bytes.to_vec()))
    }
}

impl Value for Verdict {
    /// The numbers are `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN`.
    fn write(&self, kind: u16, out: &mut Attributes<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3_i32, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        out.nest(kind, |data| {
            data.nest(DATA_VERDICT, |verdict| {
                verdict.u32(VERDICT_CODE, code.cast_unsigned());
                chain.iter().for_each(|chain| verdict.text(VERDICT_CHAIN, chain));
            });
        });
    }

    fn read(value: &[u8]) -> Option<Self> {
        let verdict = attribute(value, DATA_VERDICT)?;
        let code = attribute(verdict, VERDICT_CODE).and_then(number)?;
        let chain = || attribute(verdict, VERDICT_CHAIN).and_then(text).map(str::to_owned);
        match code.cast_signed() {
            0 => Some(Self::Drop),
            1 => Some(Self::Accept),
            -3 => chain().map(Self::Jump),
            -4 => chain().map(Self::Goto),
            -5 => Some(Self::Return),
            _ => None,
        }
    }
}
