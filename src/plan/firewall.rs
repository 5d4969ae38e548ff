//! Who may send what to us: the packet filter as classes of rights.
//!
//! Model: every overlay source address has one *class*, the set of rights it holds; sources with the same
//! rights share a class. A packet finds its class by one hash look-up (one interval look-up where the
//! source is a subnet behind a peer), and the class holds few rules. So the cost of a packet does not
//! grow with the number of peers or rules. Fail closed: a source without a class reaches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::ParseIntError;
use std::str::FromStr;

use crate::types::IpNet;

/// Our nftables table. The default lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Destinations that are us or that we serve: our own addresses and the routes we advertise.
    pub served: BTreeSet<IpNet>,
    /// The classes that sources refer to, by name.
    pub classes: BTreeMap<ClassId, Class>,
    /// Single source addresses: the hash map.
    pub hosts: BTreeMap<IpAddr, ClassId>,
    /// Source prefixes (subnets behind peers): the interval map. No two overlap.
    pub subnets: BTreeMap<IpNet, ClassId>,
}

macro_rules! content_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                u64::from_str_radix(text, 16).map(Self)
            }
        }
    };
}

content_name!(
    /// A class's name, a digest of what it holds, so that equal classes have equal names everywhere.
    /// Printed as 16 hexadecimal digits.
    ClassId
);
content_name!(
    /// A rule's name for counters and explanations, a digest of the rights it gives. Its sources do not
    /// count, so a node that joins renames nothing.
    RuleId
);

/// A set of rights: what a source that holds it may open.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// What each rule of the packet filter admits, each with a counter of its own.
    pub rules: BTreeMap<RuleId, BTreeSet<Admit>>,
}

/// One right: packets of this protocol to these ports of this destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admit {
    /// Where to; a prefix of length 0 stands for everything we serve in its family.
    pub destination: IpNet,
    /// Which protocol.
    pub protocol: Protocol,
    /// Which ports, where the protocol has ports; all of them otherwise.
    pub ports: PortRange,
}

/// An IP protocol, by its assigned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}
