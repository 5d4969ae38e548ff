//! What each host finds out about its own network: STUN through the NATs, HTTPS to the relays, its home region; and how
//! others learn of it through the coordinator.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_core::netcheck::{Action, Event, News};
use warren_core::wire::control::{DerpMap, DerpNode, DerpRegion};
use warren_core::wire::stun;

use super::pump::REGIONS;
use super::{Happening, World};

/// How long new facts are gathered before the coordinator is told, as in the agent's core.
const GATHER: Duration = Duration::from_millis(300);

impl World {
    /// What the coordinator says of the relays.
    fn derp_map(&self) -> DerpMap {
        let node = |relay: &super::pump::Relay| DerpNode {
            name: relay.address.to_string(),
            region_id: relay.region,
            host_name: format!("relay-{}.example.net", relay.address.octets()[3]),
            ipv4: relay.address.to_string(),
            ipv6: "none".to_owned(),
            ..DerpNode::default()
        };
        let regions = REGIONS.map(|region| {
            let nodes = self.relays.iter().filter(|relay| relay.region == region).map(node).collect();
            (region, Some(DerpRegion { region_id: region, nodes, ..DerpRegion::default() }))
        });
        DerpMap { regions: regions.into(), ..DerpMap::default() }
    }

    /// The agent begins to look at its network.
    pub(super) fn look_around(&mut self, host: usize) {
        let now = self.instant();
        let map = self.derp_map();
        let host = &mut self.hosts[host];
        host.netcheck.handle_links(&host.addresses.iter().copied().collect(), &BTreeMap::new(), now);
        host.netcheck.handle_derp_map(&map, now);
        host.netcheck.handle_switched(true, now);
    }

    /// Carries out what the look wants, and takes in what it has found.
    pub(super) fn settle_outlook(&mut self, host: usize) {
        let now = self.instant();
        let is_active = self.hosts[host].book.is_active();
        self.hosts[host].netcheck.handle_active(is_active, now);
        while let Some((to, request)) = self.hosts[host].netcheck.poll_transmit() {
            self.ask_stun(host, to, &request);
        }
        while let Some(action) = self.hosts[host].netcheck.poll_action() {
            self.act(host, action);
        }
        while let Some(event) = self.hosts[host].netcheck.poll_event() {
            match event {
                Event::Home(home) => {
                    self.hosts[host].homes_had += 1;
                    if !self.relayless {
                        self.set_home(host, home);
                    }
                }
                Event::Endpoints(_) => {
                    self.tell_book(host);
                    self.gather(host);
                }
                Event::NetInfo(info) => {
                    self.hosts[host].net_info = Some(info);
                    self.gather(host);
                }
                Event::Looked { .. } => self.tell_book(host),
                Event::Captive(_) => {}
            }
        }
    }

    fn tell_book(&mut self, host: usize) {
        let now = self.instant();
        let endpoints = self.found(host);
        self.hosts[host].book.handle_own_endpoints(&endpoints, now);
    }

    fn found(&self, host: usize) -> Vec<SocketAddr> {
        self.hosts[host].netcheck.endpoints().iter().map(|(endpoint, _)| *endpoint).collect()
    }

    fn gather(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].facts_due, true) {
            self.after(GATHER, host, Happening::Facts);
        }
    }

    /// The coordinator is told, and through it the others.
    pub(super) fn tell_facts(&mut self, host: usize) {
        self.hosts[host].facts_due = false;
        let endpoints = self.found(host);
        let of_host = &mut self.hosts[host];
        // An agent that has just begun has nothing to say of it, and the coordinator keeps what it knows.
        let home = match &of_host.net_info {
            Some(info) => Some(info.preferred_derp).filter(|region| region.0 != 0),
            None => of_host.told_home,
        };
        if (&of_host.endpoints, of_host.told_home) == (&endpoints, home) {
            return;
        }
        (of_host.endpoints, of_host.told_home) = (endpoints, home);
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            let pause = self.chance.millis(100, 300);
            self.after(pause, other, Happening::Map);
        }
    }

    /// A question from WireGuard's own port, and the answer by the way it came.
    fn ask_stun(&mut self, host: usize, to: SocketAddr, request: &[u8]) {
        self.hosts[host].questions += 1;
        if self.chance.permille(self.weather.loss) {
            return;
        }
        let Some(mapped) = self.mapped(host, to) else { return };
        let Some(relay) = self.relays.iter().find(|relay| IpAddr::from(relay.address) == to.ip() && relay.up) else {
            return;
        };
        let region = relay.region;
        let answer = stun::response(stun::read_request(request).unwrap(), mapped);
        let pause = self.leg(host, region) + self.leg(host, region);
        let network = self.hosts[host].network;
        self.after(pause, host, Happening::Stun { from: to, network, answer });
    }

    fn act(&mut self, host: usize, action: Action) {
        let Action::MeasureHttps(target) = action else { return };
        let region = target.region;
        let round = 2 * self.leg(host, region);
        let is_up =
            |address: &IpAddr| self.relays.iter().any(|relay| relay.up && IpAddr::from(relay.address) == *address);
        let outcome = match target.addresses.iter().copied().find(is_up) {
            Some(address) => Ok((round, address)),
            None => Err("connection refused".to_owned()),
        };
        // TCP, TLS and the question.
        self.after(3 * round, host, Happening::News(News::Https { region, outcome }));
    }

    /// How a STUN server sees a host.
    fn mapped(&mut self, host: usize, to: SocketAddr) -> Option<SocketAddr> {
        let mut from = self.hosts[host].source_for(to.ip())?;
        let mut network = self.hosts[host].network;
        while let Some(gateway) = &mut self.gateways[network] {
            from = gateway.outbound(from, to, self.now, &mut self.chance)?;
            network = gateway.outer;
        }
        Some(from)
    }
}
