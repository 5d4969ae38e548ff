//! The tags that make a kernel object ours. What carries none of them is invisible to us.
//!
//! None collides with tailscaled (table 52, priorities 5210 to 5270, mark mask 0xff0000), NetBird (0x1bd0,
//! 0x1bd00) or netclient (111), so that we run beside them.

use std::net::Ipv4Addr;

use crate::types::{NodePublic, OVERLAY_V4};

/// The WireGuard link.
pub const LINK: &str = "warren0";
/// The routing table that holds all our routes.
pub const ROUTE_TABLE: u32 = 0x5741;
/// The protocol number on our routes and rules (`ip route … proto 87`); unassigned in rtnetlink.h.
pub const ROUTE_PROTOCOL: u8 = 87;
/// Everything but our own outer packets (WireGuard's, and the agent's sockets') asks our table.
pub const RULE_OVERLAY: u32 = 5310;
/// Packets from the host's own addresses on networks pass our table by while an exit node is wanted.
pub const RULE_FROM_HOST: u32 = 5302;
/// Where such a packet goes on: at a rule that does nothing, behind the one that asks our table.
pub const RULE_BEYOND: u32 = 5390;
/// Every rule priority from here to [`RULE_LAST`] is ours.
pub const RULE_FIRST: u32 = 5300;
/// See [`RULE_FIRST`].
pub const RULE_LAST: u32 = 5399;
/// The mark of our own outer packets: they must never enter the overlay. It is compared as a whole, since other programs
/// have marks of their own of which any bits may be set (Cilium's hold an identity in the upper half).
pub const MARK_BYPASS: u32 = 0x0500_0000;
/// The bits of a connection's mark that are ours: those of [`MARK_BYPASS`] in them say that it keeps the way by which
/// it came. Others' bits stay as they are.
pub const CONNECTION_MARK_BITS: u32 = 0x0f00_0000;
/// The one nftables table, family `inet`.
pub const NFT_TABLE: &str = "warren";
/// What official peers assume of the tunnel; larger per route where a path proves it.
pub const MTU: u32 = 1280;
/// Where WireGuard listens unless the operator says otherwise.
pub const LISTEN_PORT: u16 = 41741;
/// Where relayed packets pass between WireGuard and the agent, on the loopback only. Another port is taken where
/// somebody has this one.
pub const RELAY_PORT: u16 = 41742;
/// Where the firewall diverts path probes that arrive at WireGuard's port. Another port is taken where somebody has
/// this one.
pub const PROBE_PORT: u16 = 41743;
/// Where the agent answers for names, behind port 53. Another port is taken where somebody has this one.
pub const RESOLVER_PORT: u16 = 41744;

/// The loopback address that stands for a relayed peer, in 127.128.0.0/9: WireGuard sends to it, and it is the source
/// of what the relay brings from that peer.
///
/// The overlay's 22 bits make up the lower half of the range, so that peers with an overlay address never share one,
/// and each has the same after a restart. A peer without gets one of the upper half from its key; two such may clash.
pub fn relay_address(overlay: Option<Ipv4Addr>, key: &NodePublic) -> Ipv4Addr {
    const HOSTS: u32 = 0x003f_ffff;
    let lower = u32::from(Ipv4Addr::new(127, 128, 0, 0));
    match overlay.filter(|address| OVERLAY_V4.contains(address)) {
        Some(address) => Ipv4Addr::from(lower | (u32::from(address) & HOSTS)),
        None => {
            let [a, b, c, ..] = *key.as_bytes();
            // The range's last address is a broadcast address to the kernel.
            let host = (u32::from_be_bytes([0, a, b, c]) & HOSTS).min(HOSTS - 1);
            Ipv4Addr::from(lower | (HOSTS + 1) | host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_peer_has_one_loopback_address_by_its_overlay_address_or_its_key() {
        let key = NodePublic::from_bytes([0xff; 32]);
        for (overlay, expected) in [
            (Some("100.64.0.0"), "127.128.0.0"),
            (Some("100.64.1.2"), "127.128.1.2"),
            (Some("100.127.255.255"), "127.191.255.255"),
            (Some("10.0.0.1"), "127.255.255.254"),
            (None, "127.255.255.254"),
        ] {
            let overlay = overlay.map(|text| text.parse().unwrap());
            assert_eq!(relay_address(overlay, &key).to_string(), expected, "{overlay:?}");
        }
    }
}
