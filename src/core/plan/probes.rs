//! The ports between WireGuard, the agent and the network, as far as the firewall has to know them.

use std::fmt;

/// What the firewall does for path probes and relayed packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// WireGuard's port: probes that arrive at it are diverted, WireGuard's own packets are not touched.
    pub wireguard_port: u16,
    /// Where they are diverted to. Nothing else gets there.
    pub probe_port: u16,
    /// The agent's port on the loopback for relayed packets: neither these nor those for WireGuard on the loopback are
    /// anything for connection tracking, or for somebody's address translation.
    pub relay_port: u16,
}

impl fmt::Display for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wireguard_port, probe_port, relay_port } = self;
        write!(f, "probes at port {wireguard_port} go to {probe_port}, relayed packets pass at {relay_port}")
    }
}
