//! The nodes of a network of 10,000.

#![allow(dead_code, reason = "each bench uses some of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_core::types::{DiscoPublic, IpNet, NodeId, NodePublic, StableNodeId, UserId};
use warren_core::wire::control::{Hostinfo, Node};

/// A node as a coordinator describes it; each hundredth carries a subnet.
pub(crate) fn node(number: u64) -> Node {
    let addresses = vec![IpNet::from(v4(number)), IpNet::from(v6(number))];
    let mut allowed_ips = addresses.clone();
    if number.is_multiple_of(100) {
        let [.., a, b] = (number / 100).to_be_bytes();
        allowed_ips.push(format!("10.{a}.{b}.0/24").parse().unwrap());
    }
    let hostinfo = Hostinfo {
        os: "linux".to_owned(),
        os_version: "6.1.0".to_owned(),
        hostname: format!("node-{number}"),
        go_arch: "amd64".to_owned(),
        ..Hostinfo::default()
    };
    let endpoint = |port: u16| format!("198.51.{}.{}:{port}", number / 250 % 250, number % 250).parse().unwrap();
    Node {
        id: NodeId(number + 1),
        stable_id: StableNodeId(format!("n{number}CNTRL")),
        name: format!("node-{number}.example.com."),
        user: UserId(number % 100 + 1),
        key: NodePublic::from_bytes(scattered(number)),
        disco_key: DiscoPublic::from_bytes(scattered(number + 1)),
        addresses,
        allowed_ips: Some(allowed_ips),
        endpoints: vec![endpoint(41_641), endpoint(50_000), endpoint(50_001)],
        hostinfo: Some(hostinfo),
        online: Some(true),
        machine_authorized: true,
        ..Node::default()
    }
}

/// Bytes in no order, as those of keys are.
fn scattered(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = (number + 1 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        chunk.copy_from_slice(&word.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
    }
    bytes
}

pub(crate) fn v4(number: u64) -> IpAddr {
    Ipv4Addr::from_bits(0x6440_0001 + u32::try_from(number).unwrap()).into()
}

fn v6(number: u64) -> IpAddr {
    Ipv6Addr::from_bits(0xfd7a_115c_a1e0_0000_0000_0000_0000_0001 + u128::from(number)).into()
}
