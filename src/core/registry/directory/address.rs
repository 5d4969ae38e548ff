//! Addresses: which place in the overlay ranges a new node gets.
//!
//! A node's place is a number, its *host number*, and both its addresses follow from it. Numbers are given
//! in rising order, and from the beginning again past the last: so an address rests while four million others
//! are given, and that costs one number where random choice would have to remember every node there ever was.
//! One that was freed lately rests for a week in any case (`cleanup`).

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

/// Places in the IPv4 range, both ends included.
const PLACES: u32 = 1 << (32 - OVERLAY_V4.prefix_len());

/// The next place after the last one given that is not taken, as how many were passed to get there, and its addresses.
/// After the last place of the range comes the first. `None` when all are taken.
pub(super) fn next(last: u32, is_taken: impl Fn(u32) -> bool) -> Option<(u32, Ipv4Addr, Ipv6Addr)> {
    (1..=PLACES).find_map(|step| {
        let passed = last.checked_add(step)?;
        let host = passed % PLACES;
        let (ipv4, ipv6) = addresses(host)?;
        (!is_taken(host)).then_some((passed, ipv4, ipv6))
    })
}

/// The addresses of a place; none where it is spoken for.
fn addresses(host: u32) -> Option<(Ipv4Addr, Ipv6Addr)> {
    let ipv4 = Ipv4Addr::from(u32::from(OVERLAY_V4.network()).checked_add(host)?);
    let is_end = ipv4 == OVERLAY_V4.network() || ipv4 >= OVERLAY_V4.broadcast();
    if is_end || host == DNS_V6 || RESERVED.iter().any(|reserved| reserved.contains(&ipv4)) {
        return None;
    }
    Some((ipv4, Ipv6Addr::from(u128::from(OVERLAY_V6.network()) + u128::from(host))))
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
        let (host, ipv4, ipv6) = next(0, |_| false).unwrap();
        assert_eq!(
            (host, ipv4.to_string().as_str(), ipv6.to_string().as_str()),
            (1, "100.64.0.1", "fd7a:115c:a1e0::1")
        );
    }

    #[test]
    fn every_address_is_given_once_before_any_is_given_again_and_none_is_a_reserved_one() {
        let (mut last, mut given) = (0, 0_u32);
        loop {
            let (passed, ipv4, ipv6) = next(last, |_| false).unwrap();
            assert!(passed > last);
            if passed > PLACES {
                assert_eq!(ipv4.to_string(), "100.64.0.1", "from the beginning again");
                break;
            }
            assert_eq!(host_of(ipv4), passed);
            assert!(!RESERVED.iter().any(|reserved| reserved.contains(&ipv4)), "{ipv4}");
            assert_ne!(ipv6.to_string(), "fd7a:115c:a1e0::53");
            (last, given) = (passed, given + 1);
        }
        // 2^22, less both ends, 256 + 512 reserved, and one for the resolver.
        assert_eq!(given, (1 << 22) - 2 - 256 - 512 - 1);
    }

    #[test]
    fn who_is_there_keeps_the_address_also_past_the_end_of_the_range() {
        let taken = |host| host != 7;
        assert_eq!(next(PLACES + 3, taken).unwrap().0, PLACES + 7);
        assert_eq!(next(PLACES + 7, taken).unwrap().0, 2 * PLACES + 7);
        assert_eq!(next(3, |_| true), None, "all are taken");
    }
}
