//! Names for those who leave by this host.
//!
//! Whoever may ask name servers of the internet through this host may ask us to ask them. The packet filter says the
//! first; the second follows here, so that both begin and end together.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::firewall::{Firewall, Packet, Protocol};
use super::served::Served;
use crate::netmap::{Destination, FilterRule, PacketFilter};
use crate::types::IpNet;

/// Name servers of the internet that everybody knows: who may ask one of these may ask others.
const PUBLIC: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888))];
/// Where they are asked.
const DNS: u16 = 53;

/// The rules by which those who may ask name servers through us may ask us, at this port of our own addresses.
pub(super) fn rules(filter: &PacketFilter, served: &Served, addresses: &BTreeSet<IpNet>, port: u16) -> Vec<FilterRule> {
    let destinations: Vec<Destination> = addresses
        .iter()
        .map(|address| Destination { prefix: IpNet::from(address.addr()), first_port: port, last_port: port })
        .collect();
    let admits_dns = |rule: &&FilterRule| {
        let is_asked = |to: &Destination| {
            (to.first_port..=to.last_port).contains(&DNS)
                && PUBLIC.iter().any(|server| to.prefix.contains(server) && served.contains(*server))
        };
        let protocols = [Protocol::TCP, Protocol::UDP];
        protocols.iter().any(|protocol| rule.protocols.contains(&protocol.0)) && rule.destinations.iter().any(is_asked)
    };
    let rule = |of: &FilterRule| FilterRule {
        destinations: destinations.clone(),
        protocols: vec![Protocol::TCP.0],
        ..of.clone()
    };
    filter.rules.iter().filter(admits_dns).map(rule).collect()
}

impl Firewall {
    /// Whether this source may ask name servers of the internet through us.
    pub fn admits_dns(&self, source: IpAddr) -> bool {
        let is_admitted = |destination: IpAddr, protocol: Protocol| {
            self.decide(&Packet { source, destination, protocol, port: DNS }).is_ok()
        };
        PUBLIC.iter().any(|server| [Protocol::TCP, Protocol::UDP].iter().any(|it| is_admitted(*server, *it)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netmap::Netmap;
    use crate::plan::{Host, Paths, Prefs, desired};
    use crate::types::{EXIT_ROUTES, NodePrivate, Timestamp};

    const PORT: u16 = 41744;

    /// The firewall of an exit node, or of one that is none, by a policy that lets 100.64.0.2 use the internet, and
    /// 100.64.0.3 the web alone.
    fn firewall(is_exit: bool, shields_up: bool) -> Firewall {
        let routes = if is_exit { EXIT_ROUTES.to_vec() } else { Vec::new() };
        let allowed: Vec<IpNet> = ["100.64.0.1/32".parse().unwrap()].into_iter().chain(routes.clone()).collect();
        let peer = |id: u8| {
            let address = format!("100.64.0.{id}/32");
            let key = format!("nodekey:{}", format!("{id:02x}").repeat(32));
            json!({"ID": id, "Key": key, "Name": format!("p{id}."), "Addresses": [address], "AllowedIPs": [address]})
        };
        let rule = |source: &str, first: u16, last: u16| {
            let ports = json!({"First": first, "Last": last});
            json!({"SrcIPs": [source], "DstPorts": [{"IP": "0.0.0.0/0", "Ports": ports}, {"IP": "::/0", "Ports": ports}]})
        };
        let message = json!({
            "Node": {"ID": 1, "Name": "us.", "Addresses": ["100.64.0.1/32"], "AllowedIPs": allowed},
            "Peers": [peer(2), peer(3), peer(4)],
            "PacketFilter": [rule("100.64.0.2", 53, 53), rule("100.64.0.3", 443, 443)],
        });
        let mut map = Netmap::default();
        map.replace(serde_json::from_value(message).unwrap(), Timestamp::UNIX_EPOCH);
        let prefs = Prefs {
            want_running: true,
            advertise_routes: routes.into_iter().collect(),
            shields_up,
            ..Prefs::default()
        };
        let host = Host {
            key: NodePrivate::from_random([1; 32]),
            networks: BTreeSet::new(),
            guests: BTreeSet::new(),
            links: std::collections::BTreeMap::new(),
            kept: BTreeSet::new(),
            routes: BTreeSet::new(),
            probes: None,
            resolver_port: Some(PORT),
        };
        let wish = desired(&map, &prefs, &Paths::default(), &host).desired;
        (*wish.firewall.unwrap()).clone()
    }

    #[test]
    fn whoever_may_ask_name_servers_through_us_may_ask_us_and_nobody_else() {
        let may = |firewall: &Firewall, last: u8| {
            let source = IpAddr::from([100, 64, 0, last]);
            let to_us = |port| {
                let destination = IpAddr::from([100, 64, 0, 1]);
                firewall.decide(&Packet { source, destination, protocol: Protocol::TCP, port }).is_ok()
            };
            assert!(!to_us(PORT + 1) && !to_us(22));
            (to_us(PORT), firewall.admits_dns(source))
        };
        let exit = firewall(true, false);
        assert_eq!(may(&exit, 2), (true, true));
        for last in [3, 4, 9] {
            assert_eq!(may(&exit, last), (false, false), "{last}");
        }
        for closed in [firewall(false, false), firewall(true, true)] {
            assert_eq!(may(&closed, 2), (false, false));
        }
    }
}
