//! What a rule is to the kernel: instructions on registers (linux/netfilter/nf_tables.h), and how they are written.
//!
//! A value is loaded into registers and compared, masked or looked up there. A rule of ours looks at one thing after
//! the other, so each begins at the first register; the parts of a concatenation lie side by side.

use super::attributes::Attributes;

/// `NFT_REG32_00`, the first register of four bytes.
pub(super) const FIRST: u32 = 8;
/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`.
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE` and `NFTA_VERDICT_CHAIN`.
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_META_MARK`, `_IIFNAME`, `_OIFNAME`, `_NFPROTO` and `_L4PROTO`.
pub(super) const META_MARK: u32 = 3;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub(super) const NETWORK: u32 = 1;
pub(super) const TRANSPORT: u32 = 2;
/// Where UDP's checksum is, and `NFT_PAYLOAD_CSUM_INET`.
const UDP_CHECKSUM: u32 = 6;
const CHECKSUM_INET: u32 = 1;

/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;
/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER: u32 = 1;
/// `NFT_CT_STATE`.
const CT_STATE: u32 = 0;
/// `NFT_FIB_RESULT_OIFNAME` and `_ADDRTYPE`, `NFTA_FIB_F_SADDR` and `_DADDR`.
const FIB_OIFNAME: u32 = 2;
const FIB_TYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
/// `NFT_EXTHDR_F_PRESENT`, and the number of the IPv6 routing header.
const EXTHDR_PRESENT: u32 = 1;
const ROUTING_HEADER: u8 = 43;
/// `NFT_REJECT_TCP_RST`.
const REJECT_RESET: u32 = 1;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    LoadMeta {
        key: u32,
        register: u32,
    },
    LoadPayload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    LoadConnectionState,
    /// The interface of the route to the packet's source.
    LoadWayBack,
    /// What kind of address the destination is to this host.
    LoadKindOfDestination,
    /// Whether there is an IPv6 routing header.
    LoadHasRouting,
    Mask(Vec<u8>),
    Compare {
        is_equal: bool,
        value: Vec<u8>,
    },
    Lookup {
        set: SetName,
        is_inverted: bool,
    },
    LookupVerdict(String),
    LoadValue(Vec<u8>),
    /// Writes two bytes of a UDP header, with the checksum.
    StoreUdp {
        offset: u32,
    },
    Verdict(Code, Option<String>),
    Count(String),
    Limit {
        a_second: u64,
        burst: u32,
    },
    Log {
        group: u16,
        prefix: String,
    },
    Reset,
    Untrack,
}

/// A set by its name, or one without by its place in the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SetName {
    Named(String),
    Anonymous(u32),
}

/// What becomes of a packet: `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_GOTO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Drop,
    Accept,
    Jump,
    Goto,
}

impl Code {
    fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump => (-3i32).cast_unsigned(),
            Self::Goto => (-4i32).cast_unsigned(),
        }
    }
}

/// The name that stands for an anonymous set: the kernel fills in a number.
pub(super) const ANONYMOUS_NAME: &str = "__set%d";

/// Writes a verdict as data.
pub(super) fn write_verdict(data: &mut Attributes<'_>, code: Code, chain: Option<&str>) {
    data.nest(DATA_VERDICT, |verdict| {
        verdict.u32(VERDICT_CODE, code.number());
        if let Some(chain) = chain {
            verdict.text(VERDICT_CHAIN, chain);
        }
    });
}

impl Instruction {
    /// Adds this to a rule's list. The numbers are those of each expression's `NFTA_*` attributes, in their order.
    pub(super) fn write(&self, list: &mut Attributes<'_>) {
        list.nest(LIST_ELEMENT, |element| {
            element.text(NAME, self.name());
            element.nest(DATA, |data| self.write_data(data));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::LoadMeta { .. } => "meta",
            Self::LoadPayload { .. } | Self::StoreUdp { .. } => "payload",
            Self::LoadConnectionState => "ct",
            Self::LoadWayBack | Self::LoadKindOfDestination => "fib",
            Self::LoadHasRouting => "exthdr",
            Self::Mask(_) => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::LookupVerdict(_) => "lookup",
            Self::LoadValue(_) | Self::Verdict(..) => "immediate",
            Self::Count(_) => "objref",
            Self::Limit { .. } => "limit",
            Self::Log { .. } => "log",
            Self::Reset => "reject",
            Self::Untrack => "notrack",
        }
    }

    fn write_data(&self, data: &mut Attributes<'_>) {
        match self {
            Self::LoadMeta { key, register } => {
                data.u32(1, *register);
                data.u32(2, *key);
            }
            Self::LoadPayload { base, offset, length, register } => {
                numbers(data, &[(1, *register), (2, *base), (3, *offset), (4, *length)])
            }
            Self::StoreUdp { offset } => {
                let checksum = [(6, CHECKSUM_INET), (7, UDP_CHECKSUM), (8, 0)];
                numbers(data, &[(5, FIRST), (2, TRANSPORT), (3, *offset), (4, 2)]);
                numbers(data, &checksum);
            }
            Self::LoadConnectionState => numbers(data, &[(1, FIRST), (2, CT_STATE)]),
            Self::LoadWayBack => numbers(data, &[(1, FIRST), (2, FIB_OIFNAME), (3, FIB_SADDR)]),
            Self::LoadKindOfDestination => numbers(data, &[(1, FIRST), (2, FIB_TYPE), (3, FIB_DADDR)]),
            Self::LoadHasRouting => {
                data.u8(2, ROUTING_HEADER);
                numbers(data, &[(1, FIRST), (3, 0), (4, 1), (5, EXTHDR_PRESENT)]);
            }
            Self::Mask(mask) => {
                numbers(data, &[(1, FIRST), (2, FIRST), (3, u32::try_from(mask.len()).unwrap_or_default())]);
                data.nest(4, |value| value.bytes(DATA_VALUE, mask));
                data.nest(5, |value| value.bytes(DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Compare { is_equal, value } => {
                numbers(data, &[(1, FIRST), (2, if *is_equal { EQUAL } else { UNEQUAL })]);
                data.nest(3, |inner| inner.bytes(DATA_VALUE, value));
            }
            Self::Lookup { set, is_inverted } => {
                match set {
                    SetName::Named(name) => data.text(1, name),
                    SetName::Anonymous(id) => {
                        data.text(1, ANONYMOUS_NAME);
                        data.u32(4, *id);
                    }
                }
                numbers(data, &[(2, FIRST), (5, if *is_inverted { INVERTED } else { 0 })]);
            }
            Self::LookupVerdict(map) => {
                data.text(1, map);
                numbers(data, &[(2, FIRST), (3, 0)]);
            }
            Self::LoadValue(value) => {
                data.u32(1, FIRST);
                data.nest(2, |inner| inner.bytes(DATA_VALUE, value));
            }
            Self::Verdict(code, chain) => {
                data.u32(1, 0);
                data.nest(2, |inner| write_verdict(inner, *code, chain.as_deref()));
            }
            Self::Count(counter) => {
                data.u32(1, COUNTER);
                data.text(2, counter);
            }
            Self::Limit { a_second, burst } => {
                data.u64(1, *a_second);
                data.u64(2, 1);
                numbers(data, &[(3, *burst), (4, 0), (5, 0)]);
            }
            Self::Log { group, prefix } => {
                data.u16(1, *group);
                data.text(2, prefix);
            }
            Self::Reset => {
                data.u32(1, REJECT_RESET);
                data.u8(2, 0);
            }
            Self::Untrack => {}
        }
    }
}

fn numbers(data: &mut Attributes<'_>, numbers: &[(u16, u32)]) {
    numbers.iter().for_each(|(kind, number)| data.u32(*kind, *number));
}
