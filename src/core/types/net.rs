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

/// Where IPv4 subnets of several sites appear side by side ("4via6"): the one part of the overlay range
/// that is routed by subnets.
pub const SITES_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0), 64);

/// Where each node answers its own host's questions for names, over IPv4 and IPv6: the addresses that the protocol has
/// for it.
pub const RESOLVER_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 100)),
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53)),
];

/// Addresses that are everybody's and nobody's neighbour: a root name server. Nothing is sent there.
pub const SOMEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30))];

/// "This host", loopback, link-local, multicast and reserved (RFC 6890), and their IPv6 counterparts.
pub const NEVER_ROUTED: [IpNet; 9] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 127)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
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

/// Whether a node may be a router of this: of what is outside the overlay, or a site's part of it, and not of what has
/// its meaning on one host or one link alone.
pub fn may_be_routed(prefix: &IpNet) -> bool {
    why_not_routed(prefix).is_none()
}

/// Why no node may be a router of this.
pub fn why_not_routed(prefix: &IpNet) -> Option<&'static str> {
    if is_default_route(prefix) {
        None
    } else if in_overlay(prefix.addr()) && !IpNet::V6(SITES_V6).contains(prefix) {
        Some("is inside the overlay itself")
    } else if NEVER_ROUTED.iter().any(|special| special.contains(prefix)) {
        Some("is of one host or one link alone (loopback, link-local, multicast, reserved)")
    } else {
        None
    }
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

    #[test]
    fn a_node_routes_what_is_neither_the_overlay_nor_of_one_host_or_link() {
        for (prefix, reason) in [
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("10.0.0.0/8", None),
            ("fd7a:115c:a1e0:b1a::/64", None),
            ("100.64.0.0/10", Some("inside the overlay")),
            ("fd7a:115c:a1e0::/48", Some("inside the overlay")),
            ("127.0.0.0/8", Some("one host or one link")),
            ("169.254.169.254/32", Some("one host or one link")),
            ("ff02::/16", Some("one host or one link")),
            ("::1/128", Some("one host or one link")),
        ] {
            let found = why_not_routed(&prefix.parse().unwrap());
            assert_eq!(found.is_some(), reason.is_some(), "{prefix}");
            assert!(found.unwrap_or_default().contains(reason.unwrap_or_default()), "{prefix}");
        }
    }
}
