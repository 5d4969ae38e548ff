//! `ping`: who has an address, and what came of asking it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Answer, CallId, Effect, Engine, Now};
use crate::netmap::Peer;
use crate::path::Target;
use crate::plan::Misroute;
use crate::types::{IpNet, Limit};
use crate::wire::local::{PingKind, PingReply};

/// Pings under way at once: whoever can reach the local socket may ask, and each costs probes.
const PINGS: Limit = Limit::new("pings at once", 64);
/// How long an answer is waited for. A probe is answered, or given up, well before.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pings that wait for their answer.
#[derive(Debug, Default)]
pub(super) struct Pings {
    waiting: BTreeMap<CallId, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    /// The answer so far: who was asked.
    asked: PingReply,
    /// Where packets of programs go, where that is not into the tunnel.
    astray: Option<String>,
}

impl Pings {
    /// When the next one has waited long enough.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }
}

impl Engine {
    /// Begins a ping; the answer is given when it came, or at once where there is nobody to ask.
    pub(super) fn ping(&mut self, id: CallId, address: IpAddr, kind: PingKind, now: Now) {
        if self.netmap.addresses().contains(&IpNet::from(address)) {
            let failed = PingReply::failed(address, format!("{address} is local Tailscale IP"));
            return self.reply(id, Answer::json(&PingReply { is_local_ip: true, ..failed }));
        }
        if let Err(error) = PINGS.check(self.pings.waiting.len() + 1) {
            return self.reply(id, Answer::json(&PingReply::failed(address, error.to_string())));
        }
        let Some(peer) = self.peer_of(address) else {
            return self.reply(id, Answer::json(&PingReply::failed(address, "no peer has this address")));
        };
        let (asked, peer) = (who(address, peer), peer.key());
        let waiting = Waiting { until: now.tick + PATIENCE, asked, astray: self.seen_astray(address) };
        self.pings.waiting.insert(id, waiting);
        // A probe goes round the host's routing, so an answer says nothing of it.
        self.effects.push_back(Effect::LookUpRoute(address));
        match kind {
            PingKind::Icmp => self.effects.push_back(Effect::Echo(id, address)),
            PingKind::Disco => self.book.handle_ping(&peer, id.0, now.tick),
        }
    }

    /// An echo was answered, or was not.
    pub fn handle_echo(&mut self, id: CallId, result: Result<Duration, String>) {
        self.end_ping(id, result.map(|latency| (None, latency)));
    }

    /// A probe was answered.
    pub(super) fn handle_pong(&mut self, id: u64, answer: Option<(Target, Duration)>) {
        let answer = answer.map(|(way, latency)| (Some(way), latency));
        self.end_ping(CallId(id), answer.ok_or_else(|| "no answer".to_owned()));
    }

    pub(super) fn expire_pings(&mut self, now: Now) {
        let expired = self.pings.waiting.iter().filter(|(_, waiting)| waiting.until <= now.tick);
        for id in expired.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_ping(id, Err("no answer".to_owned()));
        }
    }

    /// Where packets to an address go, as far as it is another way than it should be.
    pub(super) fn note_lookup(&mut self, to: IpAddr, fault: Option<&Misroute>) {
        let to = to.to_string();
        for waiting in self.pings.waiting.values_mut().filter(|waiting| waiting.asked.ip == to) {
            waiting.astray = fault.map(ToString::to_string);
        }
    }

    fn seen_astray(&self, address: IpAddr) -> Option<String> {
        let astray = self
            .reconciler
            .misroutes()
            .into_iter()
            .find(|misroute| misroute.lookup.to == address && !misroute.lookup.marked);
        astray.map(|misroute| misroute.to_string())
    }

    fn end_ping(&mut self, id: CallId, result: Result<(Option<Target>, Duration), String>) {
        let Some(Waiting { mut asked, astray, .. }) = self.pings.waiting.remove(&id) else { return };
        asked.astray = astray.unwrap_or_default();
        match result {
            Err(reason) => asked.err = reason,
            Ok((path, latency)) => {
                asked.latency_seconds = latency.as_secs_f64();
                match path {
                    Some(Target::Udp { to, .. }) => asked.endpoint = to.to_string(),
                    Some(Target::Relay { region, .. }) => {
                        asked.derp_region_id = region;
                        asked.derp_region_code = self.region_code(region);
                    }
                    None => {}
                }
            }
        }
        self.reply(id, Answer::json(&asked));
    }

    /// The peer that has an address, or a subnet around it.
    fn peer_of(&self, address: IpAddr) -> Option<&Peer> {
        if let Some(owner) = self.netmap.owner(&IpNet::from(address)) {
            return Some(owner);
        }
        let around =
            |peer: &Peer| peer.routes.iter().filter(|route| route.contains(&address)).map(IpNet::prefix_len).max();
        let holders = self.netmap.peers().filter_map(|peer| Some((around(peer)?, peer)));
        holders.max_by_key(|(length, _)| *length).map(|(_, peer)| &**peer)
    }
}

fn who(address: IpAddr, peer: &Peer) -> PingReply {
    PingReply {
        ip: address.to_string(),
        node_ip: peer.addresses.first().map(|prefix| prefix.addr().to_string()).unwrap_or_default(),
        node_name: peer.node.name.split('.').next().unwrap_or_default().to_owned(),
        ..PingReply::default()
    }
}
