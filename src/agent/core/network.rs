//! What this host knows of its own network: where it can be reached, its home relay, and what stands in the way.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Core, Effect, Networks, Now, Stale};
use crate::local_api::Answer;
use crate::relay_pump::RegionState;
use warren_core::path::netcheck::{Event, News};
use warren_core::types::{IpNet, NodePublic};
use warren_core::wire::control::{EndpointType, Hostinfo, limit};
use warren_core::wire::local::{RelayCounters, RelaysReply, Severity};

/// How long changes of the network are gathered before anybody is told.
pub(super) const GATHER: Duration = Duration::from_millis(300);
/// How often the coordinator, and through it every peer, is told new facts while they go on changing.
pub(super) const FACTS_PACE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often relays, STUN servers and the session hear of other addresses while those go on changing.
pub(super) const MOVED_PACE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Seconds by which this machine's clock may differ from the coordinator's before it is worth a word.
const CLOCK_OFF: i64 = 5 * 60;

/// How long a person waits for a whole look: longer than one takes.
const LOOK: Duration = Duration::from_secs(15);

impl Core {
    /// The host's own addresses are these. One without a carrier is as good as gone for every path over it.
    ///
    /// What we decide ourselves follows at once; whoever else is asked or told is so after the changes of a moment.
    pub fn handle_networks(&mut self, networks: Networks, now: Now) {
        let before = self.networks.replace(networks);
        let Some(networks) = self.networks.as_ref().filter(|_| before != self.networks) else { return };
        // Where routes lead is for the wish alone.
        let is_same = |before: &Networks| {
            before.all == networks.all && before.live == networks.live && before.standings == networks.standings
        };
        if before.as_ref().is_some_and(is_same) {
            self.stale.wish = true;
            return;
        }
        self.stale = Stale { paths: true, wish: true, facts: self.stale.facts };
        let Some(before) = before else {
            self.netcheck.handle_links(&networks.live, &networks.standings, now.tick);
            self.stale.facts = true;
            return;
        };
        let lost: Vec<IpNet> = before.live.difference(&networks.live).copied().collect();
        if !lost.is_empty() {
            self.book.handle_links_lost(&lost, now.tick);
        }
        self.lost.extend(lost);
        self.moved.want(now.tick);
    }

    /// Lets everybody outside know of other addresses, once that is due.
    pub(super) fn tell_of_networks(&mut self, now: Now) {
        if !self.moved.take(now.tick) {
            return;
        }
        if let Some(networks) = &self.networks {
            self.netcheck.handle_links(&networks.live, &networks.standings, now.tick);
        }
        self.effects.push_back(Effect::Rebind);
        let lost: Vec<IpNet> = std::mem::take(&mut self.lost).into_iter().collect();
        if let Some(session) = &mut self.session {
            session.handle_network_change(&lost, now.tick);
        }
    }

    /// These are the name servers that the host asks.
    pub fn handle_resolvers(&mut self, resolvers: BTreeSet<IpAddr>) {
        self.stale.wish |= resolvers != self.resolvers;
        self.resolvers = resolvers;
    }

    /// What the host says of itself is this: its name, its kernel, its distribution.
    pub fn handle_host(&mut self, facts: Hostinfo) {
        // What was found out about the network is not the host's to say.
        let facts = Hostinfo { net_info: self.host.net_info.clone(), ..facts };
        if facts != self.host {
            self.host = facts;
            self.stale.facts = true;
        }
    }

    /// Something was found out about the network.
    pub fn handle_netcheck(&mut self, news: News, now: Now) {
        if matches!(news, News::Gateway(_)) {
            self.effects.push_back(Effect::Rebind);
        }
        self.netcheck.handle_news(news, now.tick);
    }

    /// Whether to find out about the network. Answers arrive only once the firewall diverts them, so that is awaited,
    /// unless it comes to nothing: relays are of use without.
    pub(super) fn may_look_at_network(&self, now: Now) -> bool {
        let wanted = self.login.was_open && self.netmap.node().is_some();
        let diverts = || self.settings.probe_port.is_none() || self.login.has_run;
        wanted && (diverts() || !self.reconciler.troubles(now.tick).is_empty())
    }

    /// Takes in what the look at the network has brought, and asks for what it needs.
    pub(super) fn handle_netcheck_events(&mut self, now: Now) {
        while let Some(event) = self.netcheck.poll_event() {
            match event {
                Event::Endpoints(_) => {
                    self.tell_book_of_endpoints(now);
                    self.gather_facts(now);
                }
                Event::NetInfo(info) => {
                    self.host.net_info = Some(info);
                    self.gather_facts(now);
                }
                Event::Home(home) => self.tell_pump_of_home(home),
                Event::Captive(_) => {}
                Event::Looked { full } => {
                    self.looked_at_network = true;
                    self.tell_book_of_endpoints(now);
                    if full {
                        self.answer_netchecks(now);
                    }
                }
            }
        }
    }

    /// A person wants a whole look; the answer is given once it has ended.
    pub(super) fn netcheck(&mut self, reply: oneshot::Sender<Answer>, now: Now) {
        if !self.login.was_open || self.netmap.node().is_none() {
            let state = self.state(now);
            let text =
                format!("this machine is in no network ({state}), so there are no relays to look by; `warren up`");
            // Nobody waits any more where this fails.
            let _ = reply.send(Answer::refused(503, text));
            return;
        }
        self.netchecking.push((now.tick + LOOK, reply));
        self.netcheck.handle_full_wanted(now.tick);
    }

    /// Answers whoever has waited long enough for a look.
    pub(super) fn expire_netchecks(&mut self, now: Now) {
        for (_, reply) in self.netchecking.extract_if(.., |(until, _)| *until <= now.tick).collect::<Vec<_>>() {
            // Nobody waits any more where this fails; so below.
            let _ = reply.send(Answer::json(&self.netcheck.report().for_people(now.wall)));
        }
    }

    fn answer_netchecks(&mut self, now: Now) {
        for (_, reply) in std::mem::take(&mut self.netchecking) {
            let _ = reply.send(Answer::json(&self.netcheck.report().for_people(now.wall)));
        }
    }

    /// Asks what the look at the network wants to know.
    pub(super) fn send_netcheck(&mut self) {
        while let Some((to, payload)) = self.netcheck.poll_transmit() {
            self.effects.push_back(Effect::Datagram { to, from: None, payload });
        }
        while let Some(action) = self.netcheck.poll_action() {
            self.effects.push_back(Effect::Netcheck(action));
        }
    }

    /// Where WireGuard can be reached on this host.
    pub(super) fn endpoints(&self) -> Vec<(SocketAddr, EndpointType)> {
        self.netcheck.endpoints().iter().copied().take(limit::ENDPOINTS).collect()
    }

    /// Faults of the network that are a function of the present state.
    pub(super) fn renew_network_health(&mut self, now: Now) {
        let wanted = self.login.was_open && self.netmap.node().is_some() && self.netmap.peers().len() > 0;
        let relays = wanted && self.settings.relay_port.is_some();
        let failed: Vec<(String, String)> = self.failed_regions().collect();
        let home = self.netcheck.report().home;
        let cut_off = relays && home.is_some_and(|home| self.has_failed(home)) && !self.any_relay_connected();
        let text = |(code, text): (String, String)| {
            let text = format!(
                "relay {code} cannot be reached: {text}; peers without a direct path are reached once it answers"
            );
            (code, text)
        };
        let severity = if cut_off { Severity::High } else { Severity::Medium };
        self.health.set_kind("relay", severity, failed.into_iter().filter(|_| relays).map(text), now.wall);
        let complaints: Vec<(String, String)> = self.complaints(now).filter(|_| relays).collect();
        self.health.set_kind("relay-says", Severity::Medium, complaints, now.wall);
        let none = relays && self.netmap.derp().regions.is_empty();
        self.health.keep("no-relay", Severity::Low, none, now.wall, || {
            "the coordinator names no relay: peers that cannot reach each other directly cannot talk".to_owned()
        });
        let narrow: Vec<(String, String)> = self
            .book
            .narrow()
            .filter_map(|(key, endpoint)| {
                let name = self.netmap.peer_by_key(key)?.node.name.trim_end_matches('.').to_owned();
                let text = format!(
                    "the direct path to {name} ({endpoint}) loses large packets (of 1,340 bytes over IPv4, 1,360 over \
                     IPv6), so its relay is used where there is one; a router or firewall on the way drops them: let it \
                     pass larger packets, or fragments and the ICMP messages about them"
                );
                Some((name, text))
            })
            .collect();
        self.health.set_kind("narrow", Severity::Medium, narrow, now.wall);
        let probes = wanted && self.settings.probe_port.is_some() && self.looked_at_network;
        let report = self.netcheck.report();
        let (captive, udp) = (report.captive == Some(true), report.udp);
        self.health.keep("captive-portal", Severity::High, probes && captive, now.wall, || {
            "a captive portal answers in place of the relays; sign in to this network with a browser".to_owned()
        });
        let blocked = probes && !captive && !udp && !none;
        self.health.keep("udp-blocked", Severity::Low, blocked, now.wall, || {
            "no answer comes back over UDP, so peers are reached through relays alone, which is slower; let UDP out of \
             this network for direct paths"
                .to_owned()
        });
    }

    /// Says where handshakes go only one way, and that the clock is off, which is why they do as a rule.
    pub(super) fn tell_of_one_way(&mut self, now: Now) {
        let name = |key: &NodePublic| {
            let node = self.netmap.peer_by_key(key).map(|peer| peer.node.name.trim_end_matches('.').to_owned());
            node.filter(|name| !name.is_empty()).unwrap_or_else(|| key.short().to_string())
        };
        let one_way: Vec<(String, String)> = self
            .book
            .one_way()
            .map(|key| {
                let name = name(&key);
                let text = format!(
                    "{name} is there, but answers none of this machine's handshakes. A handshake's time must rise, so \
                     this is what happens where this machine's clock is behind what it was: set it. Until then \
                     connections come about once {name} begins the handshake, which Warren's agent does there within \
                     three minutes"
                );
                (name, text)
            })
            .collect();
        self.health.set_kind("one-way", Severity::High, one_way, now.wall);
        let ahead = self.clock.seconds_ahead(now);
        let is_off = ahead.abs() > CLOCK_OFF;
        self.health.keep("clock", Severity::Medium, is_off, now.wall, || {
            let (minutes, way) = (ahead.abs() / 60, if ahead < 0 { "behind" } else { "ahead of" });
            format!(
                "this machine's clock is {minutes} minutes {way} the coordinator's; times are judged by the \
                 coordinator's meanwhile. Have it set (`timedatectl set-ntp true`): certificates, and handshakes after \
                 a restart, depend on it"
            )
        });
    }

    /// How the connections to relays stand.
    pub(super) fn relays_reply(&self) -> RelaysReply {
        let state = |state: &RegionState| match state {
            RegionState::Trying => "trying".to_owned(),
            RegionState::Connected => "connected".to_owned(),
            RegionState::Closed => "closed".to_owned(),
            RegionState::Failed(reason) => reason.clone(),
        };
        RelaysReply {
            home: self.netcheck.report().home.unwrap_or_default(),
            regions: self.relays.regions.iter().map(|(region, of_region)| (*region, state(of_region))).collect(),
            counters: RelayCounters::default(),
        }
    }

    fn failed_regions(&self) -> impl Iterator<Item = (String, String)> {
        self.relays.regions.iter().filter_map(|(region, state)| match state {
            RegionState::Failed(text) => Some((self.region_code(*region), text.clone())),
            _ => None,
        })
    }

    fn has_failed(&self, region: warren_core::types::RegionId) -> bool {
        matches!(self.relays.regions.get(&region), Some(RegionState::Failed(_)))
    }

    fn any_relay_connected(&self) -> bool {
        self.relays.regions.values().any(|state| matches!(state, RegionState::Connected))
    }

    fn tell_book_of_endpoints(&mut self, now: Now) {
        let endpoints: Vec<SocketAddr> = self.netcheck.endpoints().iter().map(|(endpoint, _)| *endpoint).collect();
        self.book.handle_own_endpoints(&endpoints, now.tick);
    }

    fn gather_facts(&mut self, now: Now) {
        self.told.want(now.tick);
    }
}
