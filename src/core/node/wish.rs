//! From map, preferences and paths to the wish; and what we tell the coordinator of ourselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Engine, Now, Timestamp};
use crate::control::ServerUrl;
use crate::netmap::overlap;
use crate::plan::{self, Ability, Desired, Host, Obstacle, RouteLookup, Trouble};
use crate::types::{IpNet, NodePrivate, in_overlay};
use crate::wire::control::Hostinfo;
use crate::wire::local::Severity;

/// Addresses of relays that are kept out of the tunnel: more than a map has that people run.
const RELAYS: usize = 512;

impl Engine {
    /// Computes the wish anew where something it is made of has changed.
    pub(super) fn renew_wish(&mut self, now: Now) {
        if self.surroundings.networks.is_none() || !self.made.wish.renew(self.inputs_of_wish()) {
            return;
        }
        let is_open = self.login.was_open;
        self.login.has_run &= is_open;
        let prefs = plan::Prefs {
            want_running: is_open,
            accept_routes: self.prefs.route_all,
            advertise_routes: self.prefs.advertise_routes.iter().copied().collect(),
            keep_sources: self.prefs.no_snat,
            exit_node: self.exit_node(),
            shields_up: self.prefs.shields_up,
            listen_port: self.settings.port,
            firewall: self.settings.firewall,
        };
        self.past.note(self.netmap.filter(), now.wall);
        let wish = match self.device_key() {
            Some(key) => {
                let host = self.own_networks(key.clone());
                self.planner.desired(&self.netmap, &prefs, &self.paths(), &host)
            }
            None => plan::Derived::default(),
        };
        let faults = self.netmap.rejections().chain(&wish.left_out);
        let faults = faults.map(|fault| (fault.object.clone(), fault.to_string()));
        self.health.set_kind("map", Severity::Medium, faults, now.wall);
        let told = self.netmap.health().iter().map(|text| (text.clone(), format!("the coordinator says: {text}")));
        self.health.set_kind("told", Severity::Medium, told, now.wall);
        self.tell_of_unapproved(is_open, now);
        self.wish_for(wish.desired, now);
    }

    /// The addresses that no peer carries. Our own packets to the coordinator and to relays go by the mark that they
    /// have; but others of this host may depend on them too, and a host without names is as good as cut off.
    fn kept(&self) -> BTreeSet<IpAddr> {
        let coordinator = self.prefs.control_url.parse::<ServerUrl>().ok().and_then(|url| url.host().parse().ok());
        let relays = self.netmap.derp().regions.values().flatten().flat_map(|region| &region.nodes);
        let relays = relays.flat_map(|relay| [&relay.ipv4, &relay.ipv6]).filter_map(|text| text.parse().ok());
        let resolvers = self.surroundings.resolvers.iter().copied().filter(|_| !self.settings.route_resolvers);
        resolvers.chain(coordinator).chain(relays.take(RELAYS)).collect()
    }

    /// Names what is offered and not carried: peers do not send it here, and what came would be dropped.
    fn tell_of_unapproved(&mut self, is_open: bool, now: Now) {
        let approved = self.netmap.approved_routes();
        let waiting = self.prefs.advertise_routes.iter().map(IpNet::trunc).filter(|route| !approved.contains(route));
        let waiting = waiting.filter(|_| is_open && self.netmap.node().is_some()).map(|route| {
            let text = format!(
                "{route} is offered (--advertise-routes, --advertise-exit-node) but not carried: the coordinator does \
                 not let this machine. Whoever runs the coordinator can approve it; where several machines offer \
                 it, another one may be its router now"
            );
            (route.to_string(), text)
        });
        self.health.set_kind("unapproved", Severity::Low, waiting, now.wall);
    }

    /// What the host brings along. Of its routes, those that matter: most hosts have none.
    fn own_networks(&self, key: NodePrivate) -> Host {
        let all = self.surroundings.networks.iter().flat_map(|networks| &networks.all);
        let taken = self.netmap.peers().filter(|_| self.prefs.route_all);
        let taken: BTreeSet<IpNet> = taken.flat_map(|peer| &peer.routes).copied().collect();
        let matters = |route: &&IpNet| in_overlay(route.addr()) || taken.iter().any(|taken| taken.contains(*route));
        Host {
            key,
            networks: all.chain(&self.settings.keep_local).copied().collect(),
            routes: self.surroundings.routes.iter().filter(matters).copied().collect(),
            guests: self.guests().collect(),
            links: self.links_to_carried(),
            kept: self.kept(),
            probes: self.settings.probes(),
            resolver_port: self.settings.resolver_port,
        }
    }

    /// The links to what this host offers to carry.
    fn links_to_carried(&self) -> BTreeMap<IpNet, BTreeSet<String>> {
        let offered = &self.prefs.advertise_routes;
        let matters = |net: &IpNet| offered.iter().any(|offered| overlap(offered, net));
        let links = self.surroundings.links.iter().filter(|(net, _)| matters(net));
        links.map(|(net, links)| (*net, links.clone())).collect()
    }

    /// A machine without a map wishes for nothing. But where an agent before us left something in the kernel, it may be
    /// all that carries traffic, so it stands until a map says what should be.
    fn wish_for(&mut self, desired: Desired, now: Now) {
        self.adopting &= self.netmap.node().is_none() && self.open_for_traffic(now);
        if !self.adopting {
            self.reconciler.handle_desired(desired, now.tick);
        }
    }

    /// Whether this machine should be in the network at this moment.
    pub(super) fn open_for_traffic(&self, now: Now) -> bool {
        let time = self.time(now);
        let is_past = |at: Option<Timestamp>| at.is_some_and(|at| at <= time);
        let is_in = self.identity.node_key.is_some() && !self.login.signed_out && !self.key_is_spent(now);
        self.prefs.want_running && is_in && !is_past(self.closes_at())
    }

    /// When the map becomes too old to go by.
    pub(super) fn closes_at(&self) -> Option<Timestamp> {
        if self.login.online {
            return None;
        }
        self.confirmed.zip(self.settings.max_map_age).and_then(|(at, age)| at.checked_add(age).ok())
    }

    /// Whether services that use the overlay's addresses may start: the kernel holds what the map on disk asks for, or
    /// there is no map yet.
    pub fn stands(&self) -> bool {
        self.netmap.node().is_none() || self.is_settled()
    }

    /// Faults that are a function of the present state.
    pub(super) fn renew_health(&mut self, now: Now) {
        self.renew_network_health(now);
        self.tell_of_one_way(now);
        self.renew_names_health(now);
        self.tell_of_exit_node(now);
        let troubles = self.reconciler.troubles(now.tick);
        for (kind, severity) in [
            ("kernel", Severity::High),
            ("repaired", Severity::Low),
            ("exposed", Severity::Medium),
            ("contested", Severity::High),
        ] {
            let of_kind = troubles.iter().filter(|trouble| kind_of(trouble) == kind);
            let faults = of_kind.map(|trouble| (object_of(trouble), trouble.to_string()));
            self.health.set_kind(kind, severity, faults, now.wall);
        }
        let lacking = self.reconciler.observed().into_iter().flat_map(|observed| &observed.lacking);
        let lacking = lacking.filter(|ability| self.is_missed(**ability));
        let lacking: Vec<_> = lacking.map(|ability| (format!("{ability:?}"), ability.to_string())).collect();
        self.health.set_kind("ability", Severity::Medium, lacking, now.wall);
        // While a plan is under way nothing is known of where it leads.
        if self.reconciler.is_settled() {
            let misroutes = self.reconciler.misroutes();
            let misroutes = misroutes.iter().map(|misroute| (object_of_lookup(&misroute.lookup), misroute.to_string()));
            self.health.set_kind("astray", Severity::High, misroutes, now.wall);
        }
        let obstacles = self.reconciler.observed().into_iter().flat_map(|observed| &observed.obstacles);
        let obstacles = obstacles.map(|obstacle| {
            let Obstacle { chain, what, advice } = obstacle;
            (
                format!("{chain}, {what}"),
                format!("chain {chain} of another program drops {what}; to let it pass: {advice}"),
            )
        });
        self.health.set_kind("blocked", Severity::Medium, obstacles, now.wall);
        self.tell_of_forwarding(now);
        let time = self.time(now);
        let is_past = |at: Option<Timestamp>| at.is_some_and(|at| at <= time);
        let wanted = self.prefs.want_running && self.netmap.node().is_some();
        self.health.keep("expired", Severity::High, wanted && self.key_is_spent(now), now.wall, || {
            "this machine's key has expired and its peers refuse it; `warren up` signs in anew".to_owned()
        });
        self.health.keep("map-age", Severity::High, wanted && is_past(self.closes_at()), now.wall, || {
            "the map is older than --max-map-age allows, so the network is closed until the coordinator answers"
                .to_owned()
        });
        let signed_out = self.prefs.want_running && self.login.signed_out;
        self.health.keep("signed-out", Severity::High, signed_out, now.wall, || {
            let page = match self.login.auth_url.as_str() {
                "" => "`warren up --auth-key KEY`".to_owned(),
                page => format!("`warren up`, or open {page}"),
            };
            format!(
                "the coordinator does not know this machine any more (it was deleted there, or signed out), so the \
                 network is closed here; to sign in anew: {page}"
            )
        });
    }

    /// Says what a person has to switch on, where the agent may not.
    fn tell_of_forwarding(&mut self, now: Now) {
        let found = self.reconciler.desired().zip(self.reconciler.observed());
        let command = found.and_then(|(desired, observed)| desired.forwarding.to_type(&observed.forwarding));
        self.health.keep("forwarding", Severity::Medium, command.is_some(), now.wall, || {
            format!(
                "this machine carries IPv6 for peers, but the kernel's switches for that cannot be written from here \
                 (/proc/sys is read-only, as in containers), so none of it passes; on the machine itself: `{}`",
                command.unwrap_or_default()
            )
        });
    }

    /// Whether the wish would have a use for it.
    fn is_missed(&self, ability: Ability) -> bool {
        let Some(desired) = self.reconciler.desired() else { return false };
        let lacking = [ability].into();
        match ability {
            Ability::EndFlows | Ability::OtherFirewalls => desired.firewall.is_some(),
            Ability::Ipv6 | Ability::LinkIpv6 => {
                let addresses = desired.device.iter().flat_map(|device| &device.addresses);
                addresses.clone().any(|address| address.addr().is_ipv6())
            }
            Ability::LogDenied
            | Ability::ResetFlows
            | Ability::FindRoutes
            | Ability::Translate
            | Ability::Masquerade => *desired.within(&lacking) != *desired,
        }
    }

    // ---- what the coordinator is told ----

    pub(super) fn renew_facts(&mut self, now: Now) {
        if !self.made.facts.renew(self.inputs_of_facts()) {
            return;
        }
        let (hostinfo, endpoints) = (self.hostinfo(), self.endpoints());
        if let Some(session) = &mut self.session {
            session.handle_hostinfo(hostinfo, now.tick);
            session.handle_endpoints(endpoints, now.tick);
        }
    }

    pub(super) fn hostinfo(&self) -> Hostinfo {
        let mut hostinfo = Hostinfo { net_info: self.surroundings.net_info(), ..self.host.clone() };
        // Official coordinators want one; the machine key names us well enough.
        let name = self.identity.machine_key.public().to_string();
        name.trim_start_matches("mkey:").clone_into(&mut hostinfo.backend_log_id);
        if !self.prefs.hostname.is_empty() {
            hostinfo.hostname.clone_from(&self.prefs.hostname);
        }
        hostinfo.routable_ips.clone_from(&self.prefs.advertise_routes);
        hostinfo.request_tags.clone_from(&self.prefs.advertise_tags);
        hostinfo.shields_up = self.prefs.shields_up;
        hostinfo.services = self.offered_services();
        hostinfo
    }
}

fn kind_of(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::Failing { .. } => "kernel",
        Trouble::Repaired { .. } => "repaired",
        Trouble::Exposed { .. } => "exposed",
        Trouble::Contested { .. } => "contested",
    }
}

fn object_of_lookup(lookup: &RouteLookup) -> String {
    format!("{}{}", lookup.to, if lookup.marked { ", marked" } else { "" })
}

fn object_of(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Failing { what, .. } | Trouble::Repaired { what } | Trouble::Contested { what, .. } => what.clone(),
        Trouble::Exposed { .. } => "firewall".to_owned(),
    }
}
