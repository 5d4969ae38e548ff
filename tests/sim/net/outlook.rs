//! What the network answers to a host that looks at it: STUN through the NATs, HTTPS to the relays.

use std::net::{IpAddr, SocketAddr};

use warren_core::netcheck::{Action, Input};
use warren_core::wire::stun;

use super::{Happening, World};

impl World {
    /// A question from WireGuard's own port, and the answer by the way it came.
    pub(super) fn ask_stun(&mut self, host: usize, to: SocketAddr, request: &[u8]) {
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
        self.after_for_agent(pause, host, Happening::Stun { from: to, network, answer });
    }

    pub(super) fn act(&mut self, host: usize, action: Action) {
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
        self.after_for_agent(3 * round, host, Happening::Input(Input::Https { region, outcome }));
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
