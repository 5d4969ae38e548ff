//! What a packet is, by its first bytes.

use warren_core::wire::disco;

/// A handshake initiation is this long.
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE: usize = 64;
/// Header and tag of a packet that carries data. What is in between is padded, but not past the sender's MTU, so its
/// length may be any.
const DATA: usize = 32;

/// What a relay or the kernel may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketKind {
    /// A path probe.
    Disco,
    /// WireGuard's first packet of a handshake.
    Initiation,
    /// Any other of WireGuard's.
    Wireguard,
    /// Neither.
    Other,
}

/// Tells by type and length; WireGuard itself checks the rest.
pub(super) fn kind(packet: &[u8]) -> PacketKind {
    if packet.starts_with(&disco::MAGIC) {
        return PacketKind::Disco;
    }
    match (packet.first_chunk(), packet.len()) {
        (Some([1, 0, 0, 0]), INITIATION) => PacketKind::Initiation,
        (Some([2, 0, 0, 0]), RESPONSE) | (Some([3, 0, 0, 0]), COOKIE) => PacketKind::Wireguard,
        (Some([4, 0, 0, 0]), DATA..) => PacketKind::Wireguard,
        _ => PacketKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_type(number: u8, length: usize) -> PacketKind {
        let mut packet = vec![0; length];
        packet[0] = number;
        kind(&packet)
    }

    #[test]
    fn a_packet_is_told_by_its_type_and_length() {
        assert_eq!(of_type(1, 148), PacketKind::Initiation);
        for (number, length) in [(2, 92), (3, 64), (4, 32), (4, 1312), (4, 1452)] {
            assert_eq!(of_type(number, length), PacketKind::Wireguard, "{number} {length}");
        }
        for (number, length) in [(0, 148), (1, 147), (1, 149), (2, 148), (3, 65), (4, 16), (4, 31), (5, 64), (4, 4)] {
            assert_eq!(of_type(number, length), PacketKind::Other, "{number} {length}");
        }
        assert_eq!(kind(&[4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), PacketKind::Other);
        assert_eq!(kind(b"TS\xf0\x9f\x92\xac and more"), PacketKind::Disco);
        assert_eq!(kind(b""), PacketKind::Other);
    }
}
