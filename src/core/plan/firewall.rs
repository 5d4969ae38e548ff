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

use thiserror::Error;

use crate::types::{IpNet, in_overlay};

use super::probes::Probes;
use super::served::Served;

/// Our nftables table. The default lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Destinations that are us or that we serve.
    pub served: Served,
    /// What lies behind the tunnel; no two overlap. A peer may tell of errors on the way there, and nowhere else.
    pub tunnelled: BTreeSet<IpNet>,
    /// The classes that sources refer to, by name.
    pub classes: BTreeMap<ClassId, Class>,
    /// Single source addresses: the hash map.
    pub hosts: BTreeMap<IpAddr, ClassId>,
    /// Source prefixes (subnets behind peers): the interval map. No two overlap.
    pub subnets: BTreeMap<IpNet, ClassId>,
    /// Networks within the overlay's ranges that are this host's own: packets to them leave by its own links. To the
    /// rest of the ranges they leave by ours, or not at all. No two overlap.
    pub elsewhere: BTreeSet<IpNet>,
    /// What of everything leads into the tunnel, where that is to lead to an exit node. No two overlap.
    pub by_exit: BTreeSet<IpNet>,
    /// Where an exit node is wanted: the networks that are reached beside it. To all else nothing leaves by another link
    /// than ours but our own outer packets, answers to what came in by that link, and what an address is had by. No two
    /// overlap.
    pub beside_exit: Option<BTreeSet<IpNet>>,
    /// Where this host carries packets for others: which of them leave with an address of its own, and segments of TCP
    /// are kept small enough for the tunnel.
    pub carries: Option<SourceNat>,
    /// What is done for path probes and relayed packets.
    pub probes: Option<Probes>,
    /// Where questions for names go that this host's programs send to port 53 of the resolver's addresses.
    pub resolver_port: Option<u16>,
    /// What the operator of this host chose.
    pub options: FirewallOptions,
    /// What the kernel cannot do in a table.
    pub lacks: Lacks,
}

/// Which packets of peers leave this host with the address of the link that they leave by, so that their answers come
/// back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceNat {
    /// All that go to what is served.
    All,
    /// Those to the internet: subnets see who sends, and have a route back.
    ToInternet,
    /// None, since the kernel cannot.
    Nothing,
}

/// What the kernel cannot do in a table, so that it is done in another way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lacks {
    /// To answer TCP with a reset: the packets are dropped.
    pub reset: bool,
    /// To ask where an address leads: spoofed sources are told by their range alone, and no default route is served.
    pub routes: bool,
}

/// What the operator of this host may choose. The default is closed, and logs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirewallOptions {
    /// Whether packets from the overlay's ranges may come in, and packets to them go out, elsewhere than by our link:
    /// the host has other uses of the shared address space, to which no route of its own leads.
    pub shared_range: bool,
    /// Whether the networks that we carry may open connections into the overlay, and not only answer.
    pub lan_may_open: bool,
    /// The nflog group that denials are logged to.
    pub log_denied: Option<u16>,
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

/// A packet that would open a connection, or stand alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// To which port; 0 where the protocol has none.
    pub port: u16,
}

/// Why a packet is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// The destination is neither ours nor behind us.
    #[error("this host neither has nor serves the destination")]
    NotServed,
    /// No rule of the packet filter has the source.
    #[error("no rule names the source")]
    NoRights,
    /// The source has rights, none of which is for this packet.
    #[error("no rule that names the source admits it")]
    NotAdmitted,
}

impl Firewall {
    /// Whether a packet that belongs to no known flow is admitted, and by which rule.
    ///
    /// This is the meaning of the table; `linux` compiles the same for the kernel. ICMP is admitted to
    /// whatever destination the source has any right to.
    pub fn decide(&self, packet: &Packet) -> Result<RuleId, Denied> {
        if !self.served.contains(packet.destination) {
            return Err(Denied::NotServed);
        }
        let class = self.class_of(packet.source).and_then(|id| self.classes.get(&id)).ok_or(Denied::NoRights)?;
        let rule = class.rules.iter().find(|(_, admits)| admits.iter().any(|admit| admit.admits(packet)));
        rule.map(|(id, _)| *id).ok_or(Denied::NotAdmitted)
    }

    /// Whether a packet of this host to this address may leave by our link alone.
    pub fn guards(&self, destination: IpAddr) -> bool {
        let is_beside = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(&destination));
        if self.beside_exit.as_ref().is_some_and(|nets| !is_beside(nets)) {
            return true;
        }
        let is_elsewhere = self.elsewhere.iter().any(|net| net.contains(&destination));
        !self.options.shared_range && in_overlay(destination) && !is_elsewhere
    }

    /// The class of a source.
    pub fn class_of(&self, source: IpAddr) -> Option<ClassId> {
        let subnet = || {
            let upto = IpNet::from(source);
            let (prefix, class) = self.subnets.range(..=upto).next_back()?;
            prefix.contains(&source).then_some(class)
        };
        self.hosts.get(&source).or_else(subnet).copied()
    }
}

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
    pub protocol: Protocol,
    /// Which ports, where the protocol has ports; all of them otherwise.
    pub ports: PortRange,
}

impl Admit {
    /// Whether this right covers the packet.
    pub fn admits(&self, packet: &Packet) -> bool {
        let right_protocol = match packet.protocol {
            protocol if protocol.is_icmp() => protocol == Protocol::icmp_of(packet.destination),
            protocol if protocol.has_ports() => {
                self.protocol == protocol && (self.ports.first..=self.ports.last).contains(&packet.port)
            }
            protocol => self.protocol == protocol && self.ports == PortRange::ALL,
        };
        right_protocol && self.destination.contains(&packet.destination)
    }
}

impl fmt::Display for Admit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.protocol, self.destination)?;
        match self.ports {
            PortRange::ALL => Ok(()),
            ports if ports.first == ports.last => write!(f, " port {}", ports.first),
            ports => write!(f, " ports {}-{}", ports.first, ports.last),
        }
    }
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

    /// The ICMP of an address's family.
    pub fn icmp_of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::ICMP,
            IpAddr::V6(_) => Self::ICMPV6,
        }
    }

    /// Whether its packets carry port numbers that rules speak of.
    pub fn has_ports(self) -> bool {
        [Self::TCP, Self::UDP, Self::SCTP].contains(&self)
    }

    /// Whether it is ICMP of either family.
    pub fn is_icmp(self) -> bool {
        [Self::ICMP, Self::ICMPV6].contains(&self)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    /// Itself in it.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}
