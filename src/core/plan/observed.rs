//! What is true of this host: everything of ours, read back from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::types::{IpNet, NodePrivate, NodePublic, SOMEWHERE, Timestamp, in_overlay, is_default_route};

use super::ability::Ability;
use super::allowed_ips::AllowedIps;
use super::desired::{Route, RouteTarget, Rule};
use super::firewall::Firewall;
use super::forwarding::ObservedForwarding;
use super::lookup::RouteLookup;

/// Addresses asked about in one look, beside one of each family: each is a question to the kernel, and one rule leads
/// most of them astray or none.
const ASKED: usize = 16;

/// Every kernel object that carries our tag, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The link of our name, whatever kind it is.
    pub link: Option<ObservedLink>,
    /// The link's WireGuard side.
    pub device: Option<ObservedDevice>,
    /// Routes with our protocol number or in our table; one that we cannot express appears in `strange`.
    pub routes: BTreeSet<Route>,
    /// Rules with our priorities, duplicates included.
    pub rules: Vec<Rule>,
    pub firewall: ObservedFirewall,
    /// The kernel's switches, and what they were before we changed them.
    pub forwarding: ObservedForwarding,
    /// Whether every flow that the table accepts as known was judged by the table as it is.
    pub flows_judged: bool,
    /// Other programs' chains that would drop our packets. Nothing is done about them.
    pub obstacles: Vec<Obstacle>,
    /// Objects in our places that we would never have made, as the kernel prints them.
    pub strange: Vec<String>,
    /// What this kernel cannot do.
    pub lacking: BTreeSet<Ability>,
    /// Where packets go that stand for the rest. Nothing is done about it, and a look that finds nothing of ours asks
    /// about none.
    pub lookups: Vec<RouteLookup>,
}

impl Observed {
    /// Whether the name of our link is taken by a link that is not ours: one of another kind.
    pub fn link_is_foreign(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_wireguard)
    }
}

/// The link of our name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// The kernel's number for it; stays the same for the life of the link.
    pub index: u32,
    /// Whether it is a WireGuard link. One of another kind is somebody else's: it is never touched.
    pub is_wireguard: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Bytes of an inner packet.
    pub mtu: u32,
    /// Its addresses, but for the kernel's own link-local one.
    pub addresses: BTreeSet<IpNet>,
}

/// The WireGuard side of the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedDevice {
    /// The key that is set, if any.
    pub private_key: Option<NodePrivate>,
    /// The UDP port of the outer packets.
    pub listen_port: u16,
    /// The mark on outer packets.
    pub fwmark: u32,
    /// All peers, by key.
    pub peers: BTreeMap<NodePublic, ObservedPeer>,
}

/// A peer as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Which inner addresses are this peer's.
    pub allowed_ips: AllowedIps,
    /// Where its outer packets go at this moment; moves when the peer roams.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keep-alives; 0 for none.
    pub keepalive: u16,
    /// When the last handshake was completed.
    pub last_handshake: Option<Timestamp>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// A chain of another program that would drop packets of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Family, table and name.
    pub chain: String,
    /// Which packets, in words.
    pub what: String,
    /// The command that would let them pass.
    pub advice: String,
}

/// Our nftables table as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ObservedFirewall {
    /// There is none.
    #[default]
    Absent,
    /// It says exactly this.
    Table(Arc<Firewall>),
    /// It is there but somebody changed it, or another version of ours wrote it; why it was not understood.
    Altered(String),
}

impl Observed {
    /// The packets that stand for the rest: their address, and whether they are marked. Only what a route of ours leads
    /// into the tunnel is asked about. `named` are addresses that rules of others name.
    pub fn questions(&self, named: impl IntoIterator<Item = IpAddr>) -> BTreeSet<(IpAddr, bool)> {
        let tunnel =
            self.routes.iter().filter(|route| route.target == RouteTarget::Tunnel).map(|route| route.destination);
        let tunnel: BTreeSet<IpNet> = tunnel.collect();
        let mut asked = BTreeSet::new();
        for is_ipv4 in [true, false] {
            let peers = self.device.iter().flat_map(|device| device.peers.values());
            let of_family = |net: &&IpNet| net.addr().is_ipv4() == is_ipv4 && in_overlay(net.addr());
            let address = peers.flat_map(|peer| &peer.allowed_ips).find(of_family).map(IpNet::addr);
            let leads = |address: &IpAddr| tunnel.iter().any(|net| net.contains(address));
            asked.extend(address.filter(leads).into_iter().flat_map(|address| [(address, false), (address, true)]));
        }
        let far =
            SOMEWHERE.into_iter().filter(|far| tunnel.iter().any(|net| is_default_route(net) && net.contains(far)));
        asked.extend(far.flat_map(|far| [(far, false), (far, true)]));
        let subnets = tunnel.iter().filter(|net| !in_overlay(net.addr()) && !is_default_route(net)).map(first_host);
        let named = named.into_iter().filter(|address| tunnel.iter().any(|net| net.contains(address)));
        asked.extend(named.take(ASKED).chain(subnets.take(ASKED)).map(|address| (address, false)));
        asked
    }
}

/// The first address of a network that a machine may have.
fn first_host(net: &IpNet) -> IpAddr {
    net.hosts().next().unwrap_or(net.network())
}
