//! Packets as a peer may send them: whole, so that nothing between the sender and the table mends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use warren_core::plan::{Packet, Protocol};

/// A packet to be sent to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) load: Load,
}

/// What is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// What opens a connection.
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    /// ICMP of the packet's family, by type.
    Icmp(u8),
    /// Another protocol, with so many bytes.
    Other(u8, usize),
    /// ICMP of the packet's family, by type, about a datagram from one place to another.
    Error(u8, (SocketAddr, SocketAddr)),
    /// A datagram to this port, behind something that may stand before it.
    Behind(Before, u16),
}

/// What the header of a packet may hold, or be followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Options that say nothing.
    Options,
    /// The way to go on by, from the first destination.
    Way,
}

impl Probe {
    pub(crate) fn new(source: &str, destination: &str, load: Load) -> Self {
        Self { source: source.parse().unwrap(), destination: destination.parse().unwrap(), load }
    }

    /// What the planner makes of it.
    pub(crate) fn packet(&self) -> Packet {
        let Self { source, destination, load } = *self;
        let (protocol, port) = match load {
            Load::Tcp(port) => (Protocol::TCP, port),
            Load::Udp(port) | Load::Behind(_, port) => (Protocol::UDP, port),
            Load::Sctp(port) => (Protocol::SCTP, port),
            Load::Icmp(_) | Load::Error(..) if destination.is_ipv4() => (Protocol::ICMP, 0),
            Load::Icmp(_) | Load::Error(..) => (Protocol::ICMPV6, 0),
            Load::Other(protocol, _) => (Protocol(protocol), 0),
        };
        Packet { source, destination, protocol, port }
    }

    /// Whether it answers something by its nature, and so comes for nothing here where nobody asks: an echo reply, an
    /// error, what discovers neighbours.
    pub(crate) fn is_answer(&self) -> bool {
        match self.load {
            Load::Icmp(kind) if self.destination.is_ipv4() => [0, 3, 4, 5, 11, 12].contains(&kind),
            Load::Icmp(kind) => [1, 2, 3, 4, 129, 133, 134, 135, 136, 137].contains(&kind),
            _ => false,
        }
    }

    /// The source port of a packet of this number.
    pub(crate) fn source_port(&self, number: u16) -> u16 {
        1_024 + number
    }

    /// The bytes. The number is in the packet's IPv4 identification, or in the low bits of its flow label, and makes
    /// its source port.
    pub(crate) fn bytes(&self, number: u16) -> Vec<u8> {
        let mut load = self.load_bytes(number);
        let protocol = self.packet().protocol.0;
        if let Some(place) = checksum_place(protocol, self.destination) {
            let sum = match protocol {
                1 => checksum(&[&load]),
                _ => checksum(&[&self.pseudo_header(load.len(), protocol), &load]),
            };
            load[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let whole = ip(self.source, self.destination, protocol, number, None, &load);
        match self.load {
            Load::Behind(before, _) => put_before(whole, before),
            _ => whole,
        }
    }

    /// The same in two fragments, the second of which says nothing of ports.
    pub(crate) fn fragments(&self, number: u16) -> [Vec<u8>; 2] {
        let whole = self.bytes(number);
        let (header, protocol) = if self.source.is_ipv4() { (20, whole[9]) } else { (40, whole[6]) };
        // The first as long as the headers of every protocol are.
        let (first, second) = whole[header..].split_at(24);
        let part = |offset, more, load: &[u8]| {
            ip(self.source, self.destination, protocol, number, Some(Part { offset, more }), load)
        };
        [part(0, true, first), part(24, false, second)]
    }

    fn load_bytes(&self, number: u16) -> Vec<u8> {
        let from = self.source_port(number).to_be_bytes();
        match self.load {
            Load::Tcp(port) => {
                let to = port.to_be_bytes();
                let mut header = vec![from[0], from[1], to[0], to[1], 0, 0, 0, 1, 0, 0, 0, 0];
                // Five words of header, SYN, a window.
                header.extend([0x50, 0x02, 0x40, 0, 0, 0, 0, 0]);
                header
            }
            Load::Udp(port) | Load::Behind(_, port) => {
                let to = port.to_be_bytes();
                let data = [0x5a; 24];
                let mut datagram = vec![from[0], from[1], to[0], to[1], 0, 8 + data.len() as u8, 0, 0];
                datagram.extend(data);
                datagram
            }
            Load::Sctp(port) => {
                let to = port.to_be_bytes();
                let mut packet = vec![from[0], from[1], to[0], to[1], 0, 0, 0, 0, 0, 0, 0, 0];
                // An INIT chunk: tag, window, streams, first number.
                packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
                packet
            }
            // Long enough to quote the packet that an error is about.
            Load::Icmp(kind) => [vec![kind, 0, 0, 0, from[0], from[1], 0, 1], vec![0; 56]].concat(),
            Load::Error(kind, (source, destination)) => {
                let mut datagram = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
                datagram.extend([0, 16, 0, 0]);
                datagram.extend([0; 8]);
                let quoted = ip(source.ip(), destination.ip(), 17, 0, None, &datagram);
                // A packet size that is none too small, where the error is about that.
                [vec![kind, 0, 0, 0, 0, 0, 0x05, 0], quoted].concat()
            }
            Load::Other(_, length) => vec![0; length],
        }
    }

    fn pseudo_header(&self, length: usize, protocol: u8) -> Vec<u8> {
        let length = (length as u32).to_be_bytes();
        let addresses = [octets(self.source), octets(self.destination)].concat();
        [addresses, length.to_vec(), vec![0, 0, 0, protocol]].concat()
    }
}

/// A place within a packet that was cut up.
#[derive(Clone, Copy)]
struct Part {
    offset: u16,
    more: bool,
}

/// Where a protocol keeps its checksum.
fn checksum_place(protocol: u8, destination: IpAddr) -> Option<usize> {
    match protocol {
        1 if destination.is_ipv4() => Some(2),
        58 if destination.is_ipv6() => Some(2),
        6 => Some(16),
        17 => Some(6),
        _ => None,
    }
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, number: u16, part: Option<Part>, load: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, protocol, number, part, load),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, number, part, load),
        _ => panic!("{source} and {destination} are of two families"),
    }
}

fn ipv4(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, number: u16, part: Option<Part>, load: &[u8]) -> Vec<u8> {
    let length = (20 + load.len() as u16).to_be_bytes();
    let id = number.to_be_bytes();
    let part = part.map_or(0, |part| (part.offset / 8) | (u16::from(part.more) << 13)).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], id[0], id[1], part[0], part[1], 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend(load);
    header
}

fn ipv6(source: Ipv6Addr, to: Ipv6Addr, protocol: u8, number: u16, part: Option<Part>, load: &[u8]) -> Vec<u8> {
    let mut extension = Vec::new();
    if let Some(part) = part {
        let offset = (part.offset | u16::from(part.more)).to_be_bytes();
        extension = vec![protocol, 0, offset[0], offset[1], 0, 0];
        extension.extend(number.to_be_bytes());
    }
    let next = if extension.is_empty() { protocol } else { 44 };
    let length = ((extension.len() + load.len()) as u16).to_be_bytes();
    let label = number.to_be_bytes();
    let mut packet = vec![0x60, 0, label[0], label[1], length[0], length[1], next, 64];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(extension);
    packet.extend(load);
    packet
}

/// Options of IPv4, or a header of IPv6, between a packet's header and its load.
fn put_before(whole: Vec<u8>, before: Before) -> Vec<u8> {
    let way: &[u8] = &[192, 168, 7, 9];
    let (length, more) = match (whole[0] >> 4, before) {
        (4, Before::Options) => (20, vec![1, 1, 1, 0]),
        // A loose source route of one address, and the end of the list.
        (4, Before::Way) => (20, [&[131, 7, 4], way, &[0]].concat()),
        (_, Before::Options) => (40, vec![whole[6], 0, 1, 4, 0, 0, 0, 0]),
        // A segment routing header with one segment left.
        (_, Before::Way) => (40, [vec![whole[6], 2, 4, 1, 0, 0, 0, 0], vec![0xfd; 16]].concat()),
    };
    let mut packet = [&whole[..length], &more, &whole[length..]].concat();
    if length == 20 {
        packet[0] += more.len() as u8 / 4;
        let total = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&total);
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20 + more.len()]]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[6] = if before == Before::Options { 60 } else { 43 };
        let load = (packet.len() as u16 - 40).to_be_bytes();
        packet[4..6].copy_from_slice(&load);
    }
    packet
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of parts of even length, but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
