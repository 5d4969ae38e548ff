//! Addresses: which place in the overlay ranges a new node gets.
//!
//! A node's place is a number, its *host number*, and both its addresses follow from it. Numbers are given
//! in rising order, and the last one given is kept for ever: that is all it takes never to give an address
//! twice, and it costs one number where random choice would have to remember every node there ever was.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::types::{Ipv4Net, OVERLAY_V4, OVERLAY_V6};

/// Parts of the IPv4 range that are spoken for.
const RESERVED: &[Ipv4Net] = &[
    // 100.100.100.100 answers DNS on every node, and its neighbours are kept for such services.
    Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 0), 24),
    // ChromeOS uses these for its own containers.
    Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23),
];

/// The host number of fd7a:115c:a1e0::53, which answers DNS on every node.
const DNS_V6: u32 = 0x53;

/// The next place after the last one given, and its addresses. `None` when the range is used up.
pub(super) fn next(last: u32) -> Option<(u32, Ipv4Addr, Ipv6Addr)> {
    let mut host = last.checked_add(1)?;
    loop {
        let ipv4 = Ipv4Addr::from(u32::from(OVERLAY_V4.network()).checked_add(host)?);
        if ipv4 >= OVERLAY_V4.broadcast() {
            return None;
        }
        if let Some(reserved) = RESERVED.iter().find(|reserved| reserved.contains(&ipv4)) {
            host = u32::from(reserved.broadcast()) - u32::from(OVERLAY_V4.network()) + 1;
        } else if host == DNS_V6 {
            host += 1;
        } else {
            let ipv6 = Ipv6Addr::from(u128::from(OVERLAY_V6.network()) + u128::from(host));
            return Some((host, ipv4, ipv6));
        }
    }
}

/// The host number of an address of ours.
pub(super) fn host_of(ipv4: Ipv4Addr) -> u32 {
    u32::from(ipv4).saturating_sub(u32::from(OVERLAY_V4.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_gets_the_first_address_of_each_range() {
        let (host, ipv4, ipv6) = next(0).unwrap();
        assert_eq!(
            (host, ipv4.to_string().as_str(), ipv6.to_string().as_str()),
            (1, "100.64.0.1", "fd7a:115c:a1e0::1")
        );
    }

    #[test]
    fn every_address_is_given_once_and_none_is_a_reserved_one() {
        let (mut last, mut given) = (0, 0_u32);
        while let Some((host, ipv4, ipv6)) = next(last) {
            assert!(host > last);
            assert_eq!(host_of(ipv4), host);
            assert!(!RESERVED.iter().any(|reserved| reserved.contains(&ipv4)), "{ipv4}");
            assert_ne!(ipv6.to_string(), "fd7a:115c:a1e0::53");
            (last, given) = (host, given + 1);
        }
        assert_eq!(next(last), None, "a used-up range stays used up");
        // 2^22, less both ends, 256 + 512 reserved, and one for the resolver.
        assert_eq!(given, (1 << 22) - 2 - 256 - 512 - 1);
    }
}
