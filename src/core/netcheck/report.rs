//! What is known of this host's own network, for others and for people.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::types::{RegionId, Timestamp};
use crate::wire::control::{EndpointType, NetInfo};
use crate::wire::local::{NetcheckRegion, NetcheckReport};

/// An address at which peers may reach this node's tunnel, and how it was found.
pub type Endpoint = (SocketAddr, EndpointType);

/// The outcome of the last look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether a look has ended; before that, what follows is not known to be so.
    pub looked: bool,
    /// A STUN answer came back.
    pub udp: bool,
    /// One came over IPv4, or a relay answered over it.
    pub ipv4: bool,
    /// One came over IPv6, or a relay answered over it.
    pub ipv6: bool,
    /// The system can use IPv6 at all; unknown until it was tried.
    pub os_has_ipv6: Option<bool>,
    /// Whether a NAT gives us another address or port for each destination (IPv4); unknown from fewer than two answers.
    pub mapping_varies: Option<bool>,
    /// Something between us and the relays answers in their name; unknown where that was not looked for.
    pub captive: Option<bool>,
    /// Our IPv4 address and port as the nearest relay sees them.
    pub global_v4: Option<SocketAddr>,
    /// The same over IPv6.
    pub global_v6: Option<SocketAddr>,
    /// How often each mapped address was seen.
    pub seen: BTreeMap<SocketAddr, u32>,
    /// What each relay region answered.
    pub regions: BTreeMap<RegionId, RegionReport>,
    pub home: Option<RegionId>,
    /// What the gateway does for us.
    pub mapping: MappingReport,
}

/// What a region answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionReport {
    pub code: String,
    pub name: String,
    /// The fastest STUN answer over IPv4.
    pub v4: Option<Duration>,
    /// The fastest STUN answer over IPv6.
    pub v6: Option<Duration>,
    /// How long it takes to have an answer over HTTPS; measured only where UDP is blocked.
    pub https: Option<Duration>,
}

/// Port mapping: which protocols the gateway speaks (unknown where not tried), and what it opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingReport {
    /// Port Control Protocol, RFC 6887.
    pub pcp: Option<bool>,
    /// NAT-PMP, RFC 6886.
    pub pmp: Option<bool>,
    /// UPnP's internet gateway device.
    pub upnp: Option<bool>,
    /// The address and port that the gateway forwards to us.
    pub external: Option<SocketAddr>,
}

impl RegionReport {
    /// The shortest way there.
    pub fn latency(&self) -> Option<Duration> {
        [self.v4, self.v6, self.https].into_iter().flatten().min()
    }
}

impl Report {
    /// What the coordinator and the peers are told.
    pub fn net_info(&self) -> NetInfo {
        let mut derp_latency = BTreeMap::new();
        for (region, report) in &self.regions {
            for (family, latency) in [("v4", report.v4), ("v6", report.v6)] {
                if let Some(latency) = latency {
                    derp_latency.insert(format!("{region}-{family}"), latency.as_secs_f64());
                }
            }
        }
        NetInfo {
            mapping_varies_by_dest_ip: self.mapping_varies,
            working_ipv6: self.looked.then_some(self.ipv6),
            os_has_ipv6: self.os_has_ipv6,
            working_udp: self.looked.then_some(self.udp),
            have_port_map: self.mapping.external.is_some(),
            upnp: self.mapping.upnp,
            pmp: self.mapping.pmp,
            pcp: self.mapping.pcp,
            preferred_derp: self.home.unwrap_or_default(),
            derp_latency,
            ..NetInfo::default()
        }
    }

    /// What `warren netcheck` is told at this moment.
    pub fn for_people(&self, now: Timestamp) -> NetcheckReport {
        let nanoseconds = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let latencies = |of: fn(&RegionReport) -> Option<Duration>| {
            self.regions.iter().filter_map(|(id, region)| Some((*id, nanoseconds(of(region)?)))).collect()
        };
        let seen = |v4: bool| self.seen.iter().filter(|(a, _)| a.is_ipv4() == v4).map(|(a, n)| (*a, *n)).collect();
        let text = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        NetcheckReport {
            now: Some(now),
            udp: self.udp,
            ipv6: self.ipv6,
            ipv4: self.ipv4,
            ipv6_can_send: self.ipv6,
            ipv4_can_send: self.ipv4,
            os_has_ipv6: self.os_has_ipv6.unwrap_or_default(),
            mapping_varies_by_dest_ip: self.mapping_varies,
            upnp: self.mapping.upnp,
            pmp: self.mapping.pmp,
            pcp: self.mapping.pcp,
            preferred_derp: self.home.unwrap_or_default(),
            region_latency: latencies(RegionReport::latency),
            region_v4_latency: latencies(|region| region.v4),
            region_v6_latency: latencies(|region| region.v6),
            global_v4_counters: seen(true),
            global_v6_counters: seen(false),
            global_v4: text(self.global_v4),
            global_v6: text(self.global_v6),
            captive_portal: self.captive,
            port_mapped: text(self.mapping.external),
            regions: self.regions.iter().map(|(id, region)| (*id, named(region))).collect(),
        }
    }
}

fn named(region: &RegionReport) -> NetcheckRegion {
    NetcheckRegion { code: region.code.clone(), name: region.name.clone() }
}
