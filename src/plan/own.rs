//! The tags that make a kernel object ours. What carries none of them is invisible to us.
//!
//! None collides with tailscaled (table 52, priorities 5210 to 5270, mark mask 0xff0000), NetBird (0x1bd0,
//! 0x1bd00) or netclient (111), so that we run beside them.

/// The WireGuard link.
pub const LINK: &str = "warren0";
/// The routing table that holds all our routes.
pub const ROUTE_TABLE: u32 = 0x5741;
/// The protocol number on our routes and rules (`ip route … proto 87`); unassigned in rtnetlink.h.
pub const ROUTE_PROTOCOL: u8 = 87;
/// Marked traffic (WireGuard's own, and the agent's sockets) goes by the main table.
pub const RULE_BYPASS: u32 = 5300;
/// Everything else asks our table.
pub const RULE_OVERLAY: u32 = 5310;
/// Every rule priority from here to [`RULE_LAST`] is ours.
pub const RULE_FIRST: u32 = 5300;
/// See [`RULE_FIRST`].
pub const RULE_LAST: u32 = 5399;
/// The bits of a packet mark that we read and write.
pub const MARK_MASK: u32 = 0x0f00_0000;
/// Our own outer packets: they must never enter the overlay.
pub const MARK_BYPASS: u32 = 0x0500_0000;
/// The one nftables table, family `inet`.
pub const NFT_TABLE: &str = "warren";
/// What official peers assume of the tunnel; larger per route where a path proves it.
pub const MTU: u32 = 1280;
/// Where WireGuard listens unless the operator says otherwise.
pub const LISTEN_PORT: u16 = 41741;
