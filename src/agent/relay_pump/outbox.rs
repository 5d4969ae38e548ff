//! Packets on their way to WireGuard, gathered: the kernel takes many of one peer in one piece.

use std::io;
use std::net::Ipv4Addr;

use warren_linux::packet::Loopback;

/// Packets of one peer and one size, of which the last may be shorter.
pub(super) struct Outbox {
    bytes: Vec<u8>,
    from: Ipv4Addr,
    size: usize,
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self { bytes: Vec::new(), from: Ipv4Addr::LOCALHOST, size: 1 }
    }

    /// Whether a packet can go in one piece with those that wait.
    pub(super) fn takes(&self, from: Ipv4Addr, length: usize, most: impl Fn(usize) -> usize) -> bool {
        let is_open = self.bytes.len().is_multiple_of(self.size);
        self.bytes.is_empty()
            || is_open && from == self.from && length <= self.size && self.bytes.len() + length <= most(self.size)
    }

    /// Adds a packet, which it must take.
    pub(super) fn push(&mut self, from: Ipv4Addr, packet: &[u8]) {
        if self.bytes.is_empty() {
            (self.from, self.size) = (from, packet.len().max(1));
        }
        self.bytes.extend_from_slice(packet);
    }

    /// Hands everything in. The number is how many packets that were, taken or not.
    pub(super) fn flush(&mut self, loopback: &Loopback) -> (usize, io::Result<()>) {
        let count = self.bytes.len().div_ceil(self.size);
        let outcome = if count == 0 { Ok(()) } else { loopback.send(self.from, &self.bytes, self.size) };
        self.bytes.clear();
        (count, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_one_peer_and_size_gather_until_a_shorter_one_ends_them() {
        let (alice, bob) = (Ipv4Addr::new(127, 128, 0, 1), Ipv4Addr::new(127, 128, 0, 2));
        let most = |size: usize| size * 3;
        let mut outbox = Outbox::new();
        assert!(outbox.takes(alice, 9000, most));
        outbox.push(alice, &[0; 100]);
        assert!(!outbox.takes(bob, 100, most) && !outbox.takes(alice, 101, most));
        assert!(outbox.takes(alice, 100, most) && outbox.takes(alice, 20, most));
        outbox.push(alice, &[0; 100]);
        assert!(outbox.takes(alice, 100, most) && !outbox.takes(alice, 100, |size| size * 2));
        outbox.push(alice, &[0; 20]);
        assert!(!outbox.takes(alice, 20, most), "the shorter one is the last");
    }
}
