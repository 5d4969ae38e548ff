//! What this host knows of its own network: where it can be reached, its home relay, and what stands in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::calls::Awaited;
use super::pump::RegionState;
use super::tracked::Tracked;
use super::{Answer, CallId, Effect, Engine, Networks, Now};
use crate::netcheck::{Input, NetcheckEvent};
use crate::types::{Gather, IpNet, NodePublic};
use crate::wire::control::{EndpointType, Hostinfo, NetInfo, limit};
use crate::wire::local::{RelayCounters, RelaysReply, Severity};

/// How long changes of the network are gathered before anybody is told.
const GATHER: Duration = Duration::from_millis(300);
/// How often the coordinator, and through it every peer, is told new facts while they go on changing.
const FACTS_PACE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often relays, STUN servers and the session hear of other addresses while those go on changing.
const MOVED_PACE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Seconds by which this machine's clock may differ from the coordinator's before it is worth a word.
const CLOCK_OFF: i64 = 5 * 60;

/// How long a person waits for a whole look: longer than one takes.
const LOOK: Duration = Duration::from_secs(15);

/// What is known of the network around this host.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The host's own addresses, without its routes; there is no wish before they are known.
    pub(super) networks: Tracked<Option<Networks>>,
    /// Where routes of the host's own lead.
    pub(super) routes: Tracked<BTreeSet<IpNet>>,
    /// By which links it reaches what.
    pub(super) links: Tracked<BTreeMap<IpNet, BTreeSet<String>>>,
    /// The name servers that the host asks.
    pub(super) resolvers: Tracked<BTreeSet<IpAddr>>,
    /// What the last look at the network has found.
    net_info: Option<NetInfo>,
    /// Whether a look at the network has ended since the start.
    has_looked: bool,
    /// Counts what the coordinator is to be told.
    pub(super) facts: Tracked<()>,
    /// Facts that are to be told.
    pub(super) told: Gather,
    /// Changes of the host's addresses that others are to hear of, and the addresses that went.
    pub(super) moved: Gather,
    lost: BTreeSet<IpNet>,
}

impl Surroundings {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self {
            networks: Tracked::default(),
            routes: Tracked::default(),
            links: Tracked::default(),
            resolvers: Tracked::default(),
            net_info: None,
            has_looked: false,
            facts: Tracked::default(),
            told: Gather::new(GATHER, FACTS_PACE.0, FACTS_PACE.1),
            moved: Gather::new(GATHER, MOVED_PACE.0, MOVED_PACE.1),
            lost: BTreeSet::new(),
        }
    }

    /// What was found out is told once that is due.
    pub(super) fn expire_facts(&mut self, now: Now) {
        if self.told.take(now.tick) {
            self.facts.edit();
        }
    }

    /// What was found out about the network.
    pub(super) fn net_info(&self) -> Option<NetInfo> {
        self.net_info.clone()
    }
}

impl Engine {
    /// The host's own addresses are these. One without a carrier is as good as gone for every path over it.
    ///
    /// What we decide ourselves follows at once; whoever else is asked or told is so after the changes of a moment.
    pub fn handle_networks(&mut self, mut networks: Networks, now: Now) {
        // Where routes lead is for the wish alone.
        self.surroundings.routes.set(std::mem::take(&mut networks.routes));
        self.surroundings.links.set(std::mem::take(&mut networks.links));
        let before = self.surroundings.networks.clone();
        if !self.surroundings.networks.set(Some(networks.clone())) {
            return;
        }
        let Some(before) = before else {
            self.netcheck.handle_links(&networks.live, &networks.link_kinds, now.tick);
            self.surroundings.facts.edit();
            return;
        };
        let lost: Vec<IpNet> = before.live.difference(&networks.live).copied().collect();
        if !lost.is_empty() {
            self.book.handle_links_lost(&lost, now.tick);
        }
        self.surroundings.lost.extend(lost);
        self.surroundings.moved.want(now.tick);
    }

    /// Lets everybody outside know of other addresses, once that is due.
    pub(super) fn tell_of_networks(&mut self, now: Now) {
        if !self.surroundings.moved.take(now.tick) {
            return;
        }
        if let Some(networks) = &*self.surroundings.networks {
            self.netcheck.handle_links(&networks.live, &networks.link_kinds, now.tick);
        }
        self.effects.push_back(Effect::Rebind);
        let lost: Vec<IpNet> = std::mem::take(&mut self.surroundings.lost).into_iter().collect();
        if let Some(session) = &mut self.session {
            session.handle_network_change(&lost, now.tick);
        }
    }

    /// What the host says of itself is this: its name, its kernel, its distribution.
    pub fn handle_host(&mut self, host: Hostinfo) {
        self.host.set(host);
    }

    /// Something was found out about the network.
    pub fn handle_netcheck(&mut self, news: Input, now: Now) {
        if matches!(news, Input::Gateway(_)) {
            self.effects.push_back(Effect::Rebind);
        }
        self.netcheck.handle_input(news, now.tick);
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
                NetcheckEvent::Endpoints(_) => {
                    self.tell_book_of_endpoints(now);
                    self.surroundings.told.want(now.tick);
                }
                NetcheckEvent::NetInfo(info) => {
                    self.surroundings.net_info = Some(info);
                    self.surroundings.told.want(now.tick);
                }
                NetcheckEvent::Home(home) => self.tell_pump_of_home(home),
                NetcheckEvent::Captive(_) => {}
                NetcheckEvent::Looked { full } => {
                    self.surroundings.has_looked = true;
                    self.tell_book_of_endpoints(now);
                    if full {
                        self.answer_netchecks(now);
                    }
                }
            }
        }
    }

    /// A person wants a whole look; the answer is given once it has ended.
    pub(super) fn netcheck(&mut self, id: CallId, now: Now) {
        if !self.login.was_open || self.netmap.node().is_none() {
            let state = self.state(now);
            let text =
                format!("this machine is in no network ({state}), so there are no relays to look by; `warren up`");
            return self.reply(id, Answer::refused(503, text));
        }
        self.calls.wait(id, Awaited::Netcheck, Some(now.tick + LOOK));
        self.netcheck.handle_full_wanted(now.tick);
    }

    /// What the last look has found.
    pub(super) fn netcheck_answer(&self, now: Now) -> Answer {
        Answer::json(&self.netcheck.report().for_people(now.wall))
    }

    fn answer_netchecks(&mut self, now: Now) {
        for (id, _) in self.calls.take(|awaited| matches!(awaited, Awaited::Netcheck).then_some(())) {
            self.reply(id, self.netcheck_answer(now));
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
        let probes = wanted && self.settings.probe_port.is_some() && self.surroundings.has_looked;
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
    pub(super) fn relays_reply(&self, counters: RelayCounters) -> RelaysReply {
        let state = |state: &RegionState| match state {
            RegionState::Trying => "trying".to_owned(),
            RegionState::Connected => "connected".to_owned(),
            RegionState::Closed => "closed".to_owned(),
            RegionState::Failed(reason) => reason.clone(),
        };
        RelaysReply {
            home: self.netcheck.report().home.unwrap_or_default(),
            regions: self.relays.regions.iter().map(|(region, of_region)| (*region, state(of_region))).collect(),
            counters,
        }
    }

    fn failed_regions(&self) -> impl Iterator<Item = (String, String)> {
        self.relays.regions.iter().filter_map(|(region, state)| match state {
            RegionState::Failed(text) => Some((self.region_code(*region), text.clone())),
            RegionState::Trying | RegionState::Connected | RegionState::Closed => None,
        })
    }

    fn has_failed(&self, region: crate::types::RegionId) -> bool {
        matches!(self.relays.regions.get(&region), Some(RegionState::Failed(_)))
    }

    fn any_relay_connected(&self) -> bool {
        self.relays.regions.values().any(|state| matches!(state, RegionState::Connected))
    }

    fn tell_book_of_endpoints(&mut self, now: Now) {
        let endpoints: Vec<SocketAddr> = self.netcheck.endpoints().iter().map(|(endpoint, _)| *endpoint).collect();
        self.book.handle_own_endpoints(&endpoints, now.tick);
    }
}
