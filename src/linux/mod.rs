//! The only door to the kernel: WireGuard, links, routes, rules, nftables, and the change monitor.
