//! IP and UDP headers, as bytes.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// The longest payload of a UDP datagram over IPv4, the shorter of the two.
pub(super) const MAX_PAYLOAD: usize = 65_507;

const UDP: u8 = 17;
const UDP_HEADER: u16 = 8;
const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
/// RFC 8200 §4.5: its number and its length.
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: u16 = 8;
/// What every link carries that IPv6 runs on.
const LEAST_MTU: usize = 1_280;
/// The usual time to live.
const TTL: u8 = 64;

/// Writes a whole packet over `buffer`. False where the families differ or the payload is longer than
/// [`MAX_PAYLOAD`].
pub(super) fn write(buffer: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> bool {
    buffer.clear();
    if payload.len() > MAX_PAYLOAD {
        return false;
    }
    match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => write_v4(buffer, source, destination, payload),
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => write_v6(buffer, source, destination, payload),
        _ => return false,
    }
    true
}

/// RFC 791. The kernel fills in the identification and the header's checksum.
fn write_v4(buffer: &mut Vec<u8>, source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) {
    let length = UDP_HEADER + payload.len() as u16;
    let addresses = [source.ip().octets(), destination.ip().octets()];
    buffer.extend([0x45, 0]);
    buffer.extend((IPV4_HEADER + length).to_be_bytes());
    buffer.extend([0, 0, 0, 0, TTL, UDP, 0, 0]);
    buffer.extend(addresses.as_flattened());
    write_udp(buffer, addresses.as_flattened(), [source.port(), destination.port()], length, payload);
}

/// RFC 8200.
fn write_v6(buffer: &mut Vec<u8>, source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) {
    let length = UDP_HEADER + payload.len() as u16;
    let addresses = [source.ip().octets(), destination.ip().octets()];
    buffer.extend([0x60, 0, 0, 0]);
    buffer.extend(length.to_be_bytes());
    buffer.extend([UDP, TTL]);
    buffer.extend(addresses.as_flattened());
    write_udp(buffer, addresses.as_flattened(), [source.port(), destination.port()], length, payload);
}

/// Cuts a packet that [`write`] wrote into two that every link of IPv6 carries, as the kernel does with WireGuard's where
/// the link of the next hop is too narrow (RFC 791 §3.2, RFC 8200 §4.5). Nothing where two are not enough.
pub(super) fn fragments(packet: &[u8], identification: u32) -> Option<[Vec<u8>; 2]> {
    const MORE_V4: u16 = 0x2000;
    const MORE_V6: u16 = 1;
    let is_v4 = packet.first()? >> 4 == 4;
    let header = usize::from(if is_v4 { IPV4_HEADER } else { IPV6_HEADER });
    let extra = usize::from(if is_v4 { 0 } else { FRAGMENT_HEADER });
    let (head, payload) = packet.split_at_checked(header)?;
    let first = (LEAST_MTU - header - extra) / 8 * 8;
    let (one, other) = payload.split_at_checked(first).filter(|(_, other)| (1..=first).contains(&other.len()))?;
    let cut = |offset: usize, part: &[u8], is_last: bool| {
        let mut fragment = head.to_vec();
        let length = (part.len() + if is_v4 { header } else { extra }) as u16;
        let offset = (offset / 8) as u16;
        if is_v4 {
            fragment[2..4].copy_from_slice(&length.to_be_bytes());
            // Never zero, which would leave the choice to the kernel, for each part anew.
            fragment[4..6].copy_from_slice(&(identification as u16 | 1).to_be_bytes());
            let more = if is_last { 0 } else { MORE_V4 };
            fragment[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        } else {
            fragment[4..6].copy_from_slice(&length.to_be_bytes());
            fragment[6] = FRAGMENT;
            fragment.extend([UDP, 0]);
            fragment.extend((offset << 3 | if is_last { 0 } else { MORE_V6 }).to_be_bytes());
            fragment.extend(identification.to_be_bytes());
        }
        fragment.extend(part);
        fragment
    };
    Some([cut(0, one, false), cut(first, other, true)])
}

/// RFC 768. The checksum covers the addresses and is never zero, which would mean none.
fn write_udp(buffer: &mut Vec<u8>, addresses: &[u8], ports: [u16; 2], length: u16, payload: &[u8]) {
    let start = buffer.len();
    ports.iter().for_each(|port| buffer.extend(port.to_be_bytes()));
    buffer.extend(length.to_be_bytes());
    buffer.extend([0, 0]);
    buffer.extend(payload);
    let pseudo = sum(addresses) + u64::from(UDP) + u64::from(length);
    let checksum = match !fold(pseudo + sum(&buffer[start..])) {
        0 => u16::MAX,
        checksum => checksum,
    };
    buffer[start + 6..start + 8].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of 16-bit words (RFC 1071), an odd last byte padded with zero. Taken 32 bits at a time: the halves add up
/// to the same once folded.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

/// The ones' complement sum in 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![9; 3];
        assert!(write(&mut buffer, source.parse().unwrap(), destination.parse().unwrap(), payload));
        buffer
    }

    #[test]
    fn an_ipv4_packet_has_its_length_ports_and_checksum() {
        let bytes = packet("10.0.0.1:41741", "10.0.0.2:9", b"hello");
        assert_eq!(bytes[..12], [0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0]);
        assert_eq!(bytes[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(bytes[20..26], [0xa3, 0x0d, 0, 9, 0, 13]);
        // 0a00+0001+0a00+0002 + 11+0d + a30d+0009+000d + 6865+6c6c+6f00 = 1fb15 -> fb16 -> !
        assert_eq!(bytes[26..28], (!0xfb16_u16).to_be_bytes());
        assert_eq!(&bytes[28..], b"hello");
    }

    #[test]
    fn the_checksum_of_any_length_and_family_adds_up_to_nothing() {
        for (source, destination, header) in
            [("192.0.2.1:1", "203.0.113.9:65535", 20), ("[2001:db8::1]:7", "[fe80::2]:41741", 40)]
        {
            for length in [0, 1, 2, 3, 4, 5, 148, 1311, MAX_PAYLOAD] {
                let bytes = packet(source, destination, &vec![0xab; length]);
                let addresses = if header == 20 { &bytes[12..20] } else { &bytes[8..40] };
                let udp = &bytes[header..];
                assert_eq!(fold(sum(addresses) + 17 + udp.len() as u64 + sum(udp)), u16::MAX, "{source} {length}");
                assert_ne!(udp[6..8], [0, 0]);
            }
        }
    }

    #[test]
    fn a_checksum_that_comes_out_as_none_is_sent_as_its_other_form() {
        let mut buffer = Vec::new();
        let (source, destination) = ("0.0.0.0:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap());
        // The words of everything else: protocol 17 and twice the length of 10.
        assert!(write(&mut buffer, source, destination, &(!(17 + 10 + 10_u16)).to_be_bytes()));
        assert_eq!(buffer[26..28], [0xff, 0xff]);
    }

    #[test]
    fn a_packet_that_is_too_long_for_a_link_is_cut_in_two_that_make_it_whole_again() {
        let payload: Vec<u8> = (0..1_312_u32).map(|n| n as u8).collect();
        let whole = packet("192.0.2.1:1", "203.0.113.9:2", &payload);
        let [one, other] = fragments(&whole, 0x1234).unwrap();
        assert!(one.len() <= LEAST_MTU && other.len() <= LEAST_MTU);
        for (part, length) in [(&one, 1_276_u16), (&other, 84)] {
            assert_eq!((part.len(), &part[2..4]), (usize::from(length), &length.to_be_bytes()[..]));
            assert_eq!(part[4..6], [0x12, 0x35]);
        }
        assert_eq!((&one[6..8], &other[6..8]), (&[0x20, 0][..], &[0, 157][..]));
        assert_eq!([&one[20..], &other[20..]].concat(), whole[20..]);

        let whole = packet("[2001:db8::1]:1", "[2001:db8::2]:2", &payload);
        let [one, other] = fragments(&whole, 7).unwrap();
        assert!(one.len() <= LEAST_MTU && other.len() <= LEAST_MTU);
        for part in [&one, &other] {
            assert_eq!(usize::from(u16::from_be_bytes([part[4], part[5]])), part.len() - 40);
            assert_eq!((part[6], part[40], &part[44..48]), (44, 17, &[0, 0, 0, 7][..]));
        }
        assert_eq!((&one[42..44], &other[42..44]), (&[0, 1][..], &1_232_u16.to_be_bytes()[..]));
        assert_eq!([&one[48..], &other[48..]].concat(), whole[40..]);

        assert!(fragments(&packet("192.0.2.1:1", "203.0.113.9:2", &[0; 100]), 1).is_none());
        assert!(fragments(&packet("192.0.2.1:1", "203.0.113.9:2", &[0; 9_000]), 1).is_none());
        assert!(fragments(&[], 1).is_none());
    }

    #[test]
    fn families_do_not_mix_and_the_longest_payload_is_the_longest() {
        let mut buffer = Vec::new();
        let (v4, v6) = ("1.2.3.4:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        assert!(!write(&mut buffer, v4, v6, b""));
        assert!(!write(&mut buffer, v4, v4, &vec![0; MAX_PAYLOAD + 1]));
    }
}
