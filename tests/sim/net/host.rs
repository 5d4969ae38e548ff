//! A machine: the agent's book, as the agent's loop drives it, over a kernel that is a model.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use warren_core::netcheck::{Config, Netcheck};
use warren_core::path::Book;
use warren_core::types::{DiscoPrivate, IpNet, NodePublic, RegionId};
use warren_core::wire::control::NetInfo;

use super::kernel::Kernel;
use super::pump::{Link, REGIONS};

pub(crate) const PORT: u16 = 41_741;

pub(crate) struct Host {
    pub(crate) key: NodePublic,
    pub(crate) disco: DiscoPrivate,
    pub(crate) network: usize,
    /// Its addresses, each with the length of its on-link prefix.
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) book: Book,
    pub(crate) netcheck: Netcheck,
    /// The region that is nearest.
    pub(crate) near: RegionId,
    /// Its home region, as its pump knows it.
    pub(crate) home: Option<RegionId>,
    /// Times that the home changed, the first included.
    pub(crate) homes_had: usize,
    pub(crate) links: BTreeMap<RegionId, Link>,
    /// What the pump knows of peers: their home, the region by which each was heard last, and one where it is not.
    pub(crate) homes: BTreeMap<usize, Option<RegionId>>,
    pub(crate) heard: BTreeMap<usize, RegionId>,
    pub(crate) gone: BTreeMap<usize, RegionId>,
    pub(crate) kernel: Kernel,
    /// Whether the agent runs; the kernel goes on without it.
    pub(crate) running: bool,
    /// What the map says of where it may be reached.
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) told_home: Option<RegionId>,
    /// What the agent has found out since it began.
    pub(crate) net_info: Option<NetInfo>,
    /// When the pump last spoke of a peer's traffic.
    pub(crate) spoken: BTreeMap<usize, Duration>,
    pub(crate) timer: Option<Duration>,
    pub(crate) look_due: bool,
    pub(crate) facts_due: bool,
    /// What the clock on the wall is off by, in seconds.
    pub(crate) wall_offset: i64,
    /// Pings by UDP, per peer's address or whatever else was probed.
    pub(crate) pings: u64,
    /// Questions to STUN servers.
    pub(crate) questions: u64,
    /// Times that the way to a peer changed, as the book says.
    pub(crate) changes: BTreeMap<usize, Vec<Duration>>,
    pub(crate) direct: BTreeMap<usize, bool>,
}

impl Host {
    pub(crate) fn new(number: usize, disco: DiscoPrivate, book_seed: [u8; 32], netcheck_seed: [u8; 32]) -> Self {
        let key = NodePublic::from_bytes([number as u8 + 1; 32]);
        Self {
            key,
            book: Book::new(disco.clone(), key, book_seed),
            netcheck: netcheck(netcheck_seed),
            near: REGIONS[0],
            home: None,
            homes_had: 0,
            links: BTreeMap::new(),
            homes: BTreeMap::new(),
            heard: BTreeMap::new(),
            gone: BTreeMap::new(),
            disco,
            network: 0,
            addresses: Vec::new(),
            kernel: Kernel::default(),
            running: true,
            endpoints: Vec::new(),
            told_home: None,
            net_info: None,
            spoken: BTreeMap::new(),
            timer: None,
            look_due: false,
            facts_due: false,
            wall_offset: 0,
            pings: 0,
            questions: 0,
            changes: BTreeMap::new(),
            direct: BTreeMap::new(),
        }
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.addr() == ip)
    }

    /// The address that it uses towards another.
    pub(crate) fn source_for(&self, to: IpAddr) -> Option<SocketAddr> {
        let of_family = || self.addresses.iter().filter(|address| address.addr().is_ipv4() == to.is_ipv4());
        let on_link = of_family().find(|address| address.contains(&to));
        on_link.or_else(|| of_family().next()).map(|address| SocketAddr::new(address.addr(), PORT))
    }
}

/// Knows nothing of its network.
pub(crate) fn netcheck(seed: [u8; 32]) -> Netcheck {
    Netcheck::new(Config { seed, port: PORT, explicit: Vec::new(), nonce: [0; 12] })
}

/// The loopback endpoint that stands for the relay towards a host.
pub(crate) fn loopback(host: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 128, 0, host as u8 + 1).into(), 41_742)
}

/// Whom a loopback endpoint stands for.
pub(crate) fn behind_loopback(endpoint: SocketAddr) -> Option<usize> {
    match endpoint.ip() {
        IpAddr::V4(ip) if ip.octets()[..3] == [127, 128, 0] => Some(usize::from(ip.octets()[3]) - 1),
        _ => None,
    }
}
