//! What only this module reads, as functions from bytes to whether they were taken: for tests that feed them anything.

use std::net::IpAddr;

pub use super::conntrack::decode as flow;
pub use super::nftables::decoders::{elements as nft_elements, object as nft_object};

/// A packet that a raw ICMP socket gets; an even first byte says that it is one of IPv4.
pub fn echo(bytes: &[u8]) -> bool {
    let Some((family, message)) = bytes.split_first() else { return false };
    let address: IpAddr = if family % 2 == 0 { [192, 0, 2, 1].into() } else { [0; 16].into() };
    super::echo::answers(address, *b"12345678", message)
}

/// The kernel's table of UDP sockets.
pub fn udp_table(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|table| super::port::owner(table, 41_741).is_some())
}
