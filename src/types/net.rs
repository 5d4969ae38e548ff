//! Addresses and prefixes: the overlay ranges, and small questions about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where overlay IPv4 addresses come from: the shared address space of RFC 6598.
pub const OVERLAY_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// Where overlay IPv6 addresses come from: a unique local prefix (RFC 4193).
pub const OVERLAY_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// What an exit node offers: everything, in both families.
pub const EXIT_ROUTES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Whether an address belongs to the overlay.
pub fn in_overlay(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => OVERLAY_V4.contains(&address),
        IpAddr::V6(address) => OVERLAY_V6.contains(&address),
    }
}

/// Whether a prefix is `0.0.0.0/0` or `::/0`.
pub fn is_default_route(prefix: &IpNet) -> bool {
    prefix.prefix_len() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_is_both_ranges_and_nothing_beside_them() {
        for (address, inside) in [
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.0", false),
            ("fd7a:115c:a1e0::1", true),
            ("fd7a:115c:a1e1::1", false),
        ] {
            assert_eq!(in_overlay(address.parse().unwrap()), inside, "{address}");
        }
    }
}
