//! What the operator of this host wants, and what the host brings along.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::types::{IpNet, NodeId, NodePrivate, NodePublic};

use super::firewall::FirewallOptions;
use super::own;
use super::probes::Probes;

/// What the operator wants. The default is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefs {
    /// Whether to be in the network at all.
    pub want_running: bool,
    /// Whether to use the subnets that peers carry.
    pub accept_routes: bool,
    /// The subnets that this host carries for others.
    pub advertise_routes: BTreeSet<IpNet>,
    /// Whether those see who sends, and not this host in place of all peers.
    pub keep_sources: bool,
    /// By whom all that leaves this host is to leave, where that is wanted.
    pub exit_node: Option<ExitNode>,
    /// Whether to let nobody open anything here.
    pub shields_up: bool,
    /// The UDP port of WireGuard.
    pub listen_port: u16,
    /// How the firewall is to be.
    pub firewall: FirewallOptions,
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            want_running: false,
            accept_routes: false,
            advertise_routes: BTreeSet::new(),
            keep_sources: false,
            exit_node: None,
            shields_up: false,
            listen_port: own::LISTEN_PORT,
            firewall: FirewallOptions::default(),
        }
    }
}

/// All that leaves this host is to leave by one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitNode {
    /// Nobody where the peer that was chosen is not known, or offers nothing: then nothing leaves.
    pub peer: Option<NodeId>,
    /// Whether the networks that this host is attached to are reached beside it.
    pub allow_lan: bool,
}

/// What the host brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub key: NodePrivate,
    /// The networks it is attached to, but for our own link: no peer may carry those, nor a part of one.
    pub networks: BTreeSet<IpNet>,
    /// Those of them that end on this host itself: bridges of containers and virtual machines.
    pub guests: BTreeSet<IpNet>,
    /// Addresses that it goes on reaching as it did, whatever peers carry: whom it asks for names, the coordinator, relays.
    pub kept: BTreeSet<IpAddr>,
    /// The networks beyond those to which routes of its own lead, but for default routes: no peer may carry those. A
    /// part of one it may: the narrower wins.
    pub routes: BTreeSet<IpNet>,
    /// By which links it reaches which networks, default routes among them, as far as it may carry those for others.
    pub links: BTreeMap<IpNet, BTreeSet<String>>,
    /// The ports that the agent has, where it looks for paths.
    pub probes: Option<Probes>,
    /// The port at which the agent answers for names, where it does.
    pub resolver_port: Option<u16>,
}

/// Which way to each peer was chosen, by node key. A peer that is not here keeps what the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// By node key.
    pub chosen: BTreeMap<NodePublic, Path>,
}

/// The way chosen to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where outer packets go.
    pub endpoint: SocketAddr,
    /// Whether the kernel has to be moved there. A way that is a guess, or that the kernel was seen to hold
    /// once, is given only to a peer without an endpoint: the peer may have roamed since.
    pub moves: bool,
    /// Seconds between keep-alives; 0 for none.
    pub keepalive: u16,
}
