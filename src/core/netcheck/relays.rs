//! The relay map as a look needs it: bounded, with addresses where they are known.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{HttpsTarget, limit};
use crate::types::{RegionId, in_overlay};
use crate::wire::control::{DerpMap, DerpNode, DerpRegion};

/// How long a name's addresses are used before it is looked up again.
const NAME_AGE: Duration = Duration::from_secs(10 * 60);
/// How long after a look-up that found nothing, or was not answered, the name may be looked up again.
const NAME_RETRY: Duration = Duration::from_secs(15);
/// The longest host name (RFC 1035 §2.3.4).
const HOST_LEN: usize = 253;
/// Bytes of a region's names that are shown.
const NAME_LEN: usize = 128;
const STUN_PORT: u16 = 3478;
const HTTPS_PORT: u16 = 443;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// All relays, and what is known of their names.
#[derive(Debug, Default)]
pub(super) struct Relays {
    regions: BTreeMap<RegionId, Region>,
    names: BTreeMap<String, Name>,
}

/// A region that may be measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Region {
    pub(super) code: String,
    pub(super) name: String,
    /// Its latency times this is what counts.
    score: f64,
    /// To be a home only where there is no other.
    avoid: bool,
    nodes: Vec<Relay>,
}

#[derive(Clone, Debug, PartialEq)]
struct Relay {
    host: String,
    cert_name: String,
    v4: RelayAddress,
    v6: RelayAddress,
    /// STUN goes there in place of the relay's own address.
    stun_test: Option<IpAddr>,
    stun_port: Option<u16>,
    https_port: Option<u16>,
    insecure: bool,
    port_80: bool,
}

/// Where a relay is, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RelayAddress {
    At(IpAddr),
    /// Wherever its name leads.
    Named,
    Nowhere,
}

#[derive(Debug, Default)]
struct Name {
    addresses: Vec<IpAddr>,
    /// When it was last asked for, or answered.
    asked: Option<Instant>,
    answered: Option<Instant>,
}

impl Relays {
    /// Takes the coordinator's map; whether it says anything new.
    pub(super) fn handle_map(&mut self, map: &DerpMap) -> bool {
        let scores = map.home_params.as_ref().map(|params| &params.region_score);
        let score = |id| scores.and_then(|scores| scores.get(&id)).copied().filter(|score| usable_score(*score));
        let regions: BTreeMap<RegionId, Region> = map
            .regions
            .iter()
            .filter_map(|(id, region)| Some((*id, region.as_ref()?)))
            .filter(|(id, region)| id.0 != 0 && !region.no_measure_no_home && !region.nodes.is_empty())
            .take(limit::REGIONS)
            .map(|(id, region)| (id, Region::read(region, score(id).unwrap_or(1.0))))
            .collect();
        if regions == self.regions {
            return false;
        }
        self.regions = regions;
        let named: Vec<&str> = self.regions.values().flat_map(|region| &region.nodes).filter_map(Relay::name).collect();
        self.names.retain(|host, _| named.contains(&host.as_str()));
        for host in named {
            self.names.entry(host.to_owned()).or_default();
        }
        true
    }

    /// Takes a name's addresses. Where there are none, those of last time stay.
    pub(super) fn handle_resolved(&mut self, host: &str, addresses: &[IpAddr], now: Instant) {
        let Some(name) = self.names.get_mut(host) else { return };
        if name.asked.is_none() {
            return;
        }
        let mut usable: Vec<IpAddr> = Vec::new();
        for family in Family::BOTH {
            let of_family = addresses.iter().filter(|a| Family::of(**a) == family && is_usable(**a));
            usable.extend(of_family.take(limit::ADDRESSES));
        }
        if !usable.is_empty() {
            name.addresses = usable;
            name.answered = Some(now);
        }
    }

    /// The names that should be looked up before a look at `now`; they count as asked for.
    pub(super) fn take_unresolved(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        for (host, name) in &mut self.names {
            let known = name.answered.is_some_and(|at| now.duration_since(at) < NAME_AGE);
            let asked = name.asked.is_some_and(|at| now.duration_since(at) < NAME_RETRY);
            if !known && !asked {
                name.asked = Some(now);
                due.push(host.clone());
            }
        }
        due
    }

    /// Another network may answer otherwise.
    pub(super) fn forget_names(&mut self) {
        self.names.values_mut().for_each(|name| *name = Name::default());
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.regions.iter().map(|(id, region)| (*id, region))
    }

    /// The regions that are asked: those that are only a last resort where one of them is home, or nothing else is there.
    pub(super) fn measured(&self, home: Option<RegionId>) -> Vec<RegionId> {
        let all_avoided = self.regions.values().all(Region::avoid);
        let asked = self.regions().filter(|(id, region)| all_avoided || !region.avoid || home == Some(*id));
        asked.map(|(id, _)| id).collect()
    }

    pub(super) fn region(&self, id: RegionId) -> Option<&Region> {
        self.regions.get(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The STUN servers of a region, one a node, as far as their addresses are known.
    pub(super) fn stun_servers(&self, region: RegionId, family: Family) -> Vec<SocketAddr> {
        let nodes = self.regions.get(&region).map_or(&[][..], |region| &region.nodes);
        let server = |node: &Relay| {
            let address = match node.stun_test {
                Some(address) => Some(address).filter(|address| Family::of(*address) == family),
                None => self.address(node, family),
            };
            Some(SocketAddr::new(address?, node.stun_port?))
        };
        nodes.iter().filter_map(server).collect()
    }

    /// The first node of a region that speaks HTTPS.
    pub(super) fn https_target(&self, region: RegionId) -> Option<HttpsTarget> {
        let node = self.regions.get(&region)?.nodes.iter().find(|node| node.https_port.is_some())?;
        Some(HttpsTarget {
            region,
            host: node.host.clone(),
            cert_name: node.cert_name.clone(),
            addresses: Family::BOTH.iter().filter_map(|family| self.address(node, *family)).collect(),
            port: node.https_port?,
            insecure: node.insecure,
        })
    }

    /// A relay that answers plain HTTP, and its addresses; of the region `first` where that has one.
    pub(super) fn captive_target(&self, first: Option<RegionId>) -> Option<(String, Vec<IpAddr>)> {
        let first = first.and_then(|id| self.regions.get(&id));
        let nodes = first.into_iter().chain(self.regions.values()).flat_map(|region| &region.nodes);
        nodes.filter(|node| node.port_80).find_map(|node| {
            let addresses: Vec<_> = Family::BOTH.iter().filter_map(|family| self.address(node, *family)).collect();
            (!addresses.is_empty()).then(|| (node.host.clone(), addresses))
        })
    }

    fn address(&self, node: &Relay, family: Family) -> Option<IpAddr> {
        match node.place(family) {
            RelayAddress::At(address) => Some(address),
            RelayAddress::Named => {
                self.names.get(&node.host)?.addresses.iter().find(|a| Family::of(**a) == family).copied()
            }
            RelayAddress::Nowhere => None,
        }
    }
}

impl Region {
    fn read(region: &DerpRegion, score: f64) -> Self {
        Self {
            code: shown(&region.region_code),
            name: shown(&region.region_name),
            score,
            avoid: region.avoid,
            nodes: region.nodes.iter().take(limit::NODES).map(Relay::read).collect(),
        }
    }

    /// Whether it can be a home: one of its nodes relays.
    pub(super) fn relays(&self) -> bool {
        self.nodes.iter().any(|node| node.https_port.is_some())
    }

    pub(super) fn avoid(&self) -> bool {
        self.avoid
    }

    /// What a latency counts for in the choice of a home.
    pub(super) fn scored(&self, latency: Duration) -> Duration {
        latency.mul_f64(self.score)
    }
}

impl Relay {
    fn read(node: &DerpNode) -> Self {
        let port = |number: i32, default: u16| match number {
            0 => Some(default),
            number => u16::try_from(number).ok().filter(|port| *port != 0),
        };
        Self {
            host: node.host_name.clone(),
            cert_name: node.cert_name.clone(),
            v4: RelayAddress::read(&node.ipv4, &node.host_name, Family::V4),
            v6: RelayAddress::read(&node.ipv6, &node.host_name, Family::V6),
            stun_test: node.stun_test_ip.parse().ok().filter(|ip| is_usable(*ip)),
            stun_port: port(node.stun_port, STUN_PORT),
            https_port: port(node.derp_port, HTTPS_PORT).filter(|_| !node.stun_only),
            insecure: node.insecure_for_tests,
            port_80: node.can_port80 && is_host(&node.host_name),
        }
    }

    /// The name that has to be looked up.
    fn name(&self) -> Option<&str> {
        (self.v4 == RelayAddress::Named || self.v6 == RelayAddress::Named).then_some(&self.host)
    }

    fn place(&self, family: Family) -> RelayAddress {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

impl RelayAddress {
    /// An address, nothing for "look the name up", or any other text (`none` by custom) for "not in this family".
    fn read(text: &str, host: &str, family: Family) -> Self {
        let is_named = text.is_empty();
        match if is_named { host } else { text }.parse::<IpAddr>() {
            Ok(address) if Family::of(address) == family && is_usable(address) => Self::At(address),
            Err(_) if is_named && is_host(host) => Self::Named,
            _ => Self::Nowhere,
        }
    }
}

/// A factor that shrinks or stretches a latency; the protocol says to pass over others.
fn usable_score(score: f64) -> bool {
    score.is_finite() && score > 0.0 && score <= 1_000.0
}

/// Whether a relay can be there: one machine, and not inside the network that it helps to build.
pub(super) fn is_usable(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast && !in_overlay(address)
}

fn is_host(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && text.len() <= HOST_LEN && text.bytes().all(plain)
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_LEN).collect()
}
