//! What a look's outcome changes: the report, the home, the endpoints, and what others are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::look::{Answers, Look};
use super::relays::Family;
use super::{Endpoint, NEAR_PORTS, Netcheck, NetcheckEvent, RegionReport, Wanted, limit};
use crate::types::{IpNet, RegionId, in_overlay};
use crate::wire::control::{EndpointType, NetInfo};

impl Netcheck {
    /// Ends the present look.
    pub(super) fn conclude(&mut self, now: Instant) {
        let Some(look) = self.look.take() else { return };
        let Look { full, answers, .. } = look;
        let was_blocked = !self.report.udp;
        let found = !answers.is_empty();
        if full {
            self.report_full(&answers);
            self.last_full = Some(now);
        } else if found {
            self.report_short(&answers);
        }
        let escalate = !full && found == was_blocked;
        if full || found {
            self.report_mapped(&answers);
            self.home.handle_latencies(self.latencies(&answers, full), now);
        }
        self.silent = if found { 0 } else { self.silent.saturating_add(1) };
        self.last = Some(now);
        self.report.looked = true;
        self.settle_home(now);
        self.renew_endpoints();
        self.tell_net_info();
        let wanted = self.wanted.take().or(escalate.then_some(Wanted::Full));
        // Who waits for a look that began when UDP still worked is told after the full one.
        if !escalate {
            self.events.push_back(NetcheckEvent::Looked { full });
        }
        self.schedule(now);
        if let Some(wanted) = wanted {
            self.begin(wanted, now);
        }
    }

    /// Chooses the home anew, and says so where it changes.
    pub(super) fn settle_home(&mut self, now: Instant) {
        let may_guess = self.last_full.is_some() || self.relays.regions().count() == 1 || self.home.current().is_some();
        if (may_guess || self.home.is_measured()) && self.home.choose(&self.relays, now) {
            self.report.home = self.home.current();
            self.events.push_back(NetcheckEvent::Home(self.report.home));
            // Peers can reach us through it from here on, whatever else the first look will find.
            self.tell_net_info();
        }
    }

    /// Puts the endpoints together, and says so where they change.
    pub(super) fn renew_endpoints(&mut self) {
        let found = self.found_endpoints();
        if found != self.endpoints {
            self.endpoints = found;
            self.events.push_back(NetcheckEvent::Endpoints(self.endpoints.clone()));
        }
    }

    /// An answer over HTTPS came. A node that has no home yet does not wait for the other answers.
    pub(super) fn note_https(&mut self, region: RegionId, outcome: Result<(Duration, IpAddr), String>, now: Instant) {
        let Ok((latency, address)) = outcome else { return };
        let Some(known) = self.relays.region(region) else { return };
        let (code, name) = (known.code.clone(), known.name.clone());
        let report = self.report.regions.entry(region).or_default();
        *report = RegionReport { code, name, https: Some(latency), ..RegionReport::default() };
        match Family::of(address.to_canonical()) {
            Family::V4 => self.report.ipv4 = true,
            Family::V6 => self.report.ipv6 = true,
        }
        if self.home.current().is_none() {
            self.home.handle_latencies([(region, latency)].into(), now);
            self.settle_home(now);
        }
    }

    /// Word of a captive portal came.
    pub(super) fn note_captive(&mut self, found: Option<bool>) {
        self.report.captive = found;
        let found = found.unwrap_or(self.reported.captive);
        if std::mem::replace(&mut self.reported.captive, found) != found {
            self.events.push_back(NetcheckEvent::Captive(found));
        }
    }

    /// The port mapper may have got on.
    pub(super) fn note_mapping(&mut self) {
        let mapping = self.mapper.report();
        if std::mem::replace(&mut self.report.mapping, mapping) != mapping {
            self.renew_endpoints();
            if self.report.looked {
                self.tell_net_info();
            }
        }
    }

    // ---- the report ----

    fn report_full(&mut self, answers: &Answers) {
        let https: BTreeMap<RegionId, Duration> = match answers.is_empty() {
            true => self.report.regions.iter().filter_map(|(id, region)| Some((*id, region.https?))).collect(),
            false => BTreeMap::new(),
        };
        self.report.regions = self
            .relays
            .regions()
            .map(|(id, region)| {
                let latency = |family| answers.latency.get(&(id, family)).copied();
                let (code, name) = (region.code.clone(), region.name.clone());
                let (v4, v6) = (latency(Family::V4), latency(Family::V6));
                (id, RegionReport { code, name, v4, v6, https: https.get(&id).copied() })
            })
            .collect();
        if !answers.is_empty() {
            self.note_captive(Some(false));
        }
    }

    fn report_short(&mut self, answers: &Answers) {
        for id in answers.regions() {
            let Some(region) = self.relays.region(id) else { continue };
            let report = self.report.regions.entry(id).or_default();
            let latency = |family| answers.latency.get(&(id, family)).copied();
            report.code.clone_from(&region.code);
            report.name.clone_from(&region.name);
            report.v4 = latency(Family::V4).or(report.v4);
            report.v6 = latency(Family::V6).or(report.v6);
            report.https = None;
        }
    }

    fn report_mapped(&mut self, answers: &Answers) {
        let report = &mut self.report;
        report.udp = !answers.is_empty();
        report.global_v4 = answers.global(Family::V4);
        report.global_v6 = answers.global(Family::V6);
        report.seen = answers.seen();
        report.mapping_varies = answers.mapping_varies().or(report.mapping_varies.filter(|_| report.udp));
        if report.udp {
            report.ipv4 = report.global_v4.is_some();
            report.ipv6 = report.global_v6.is_some();
        }
    }

    /// How far each region of this look is.
    fn latencies(&self, answers: &Answers, full: bool) -> BTreeMap<RegionId, Duration> {
        let mut latencies = BTreeMap::new();
        for ((region, _), latency) in &answers.latency {
            let shortest = latencies.entry(*region).or_insert(*latency);
            *shortest = (*shortest).min(*latency);
        }
        if full && answers.is_empty() {
            let https = self.report.regions.iter().filter_map(|(id, region)| Some((*id, region.https?)));
            latencies.extend(https);
        }
        latencies
    }

    fn tell_net_info(&mut self) {
        let info = self.report.net_info();
        let is_news =
            self.reported.net_info.as_ref().is_none_or(|told| without_latency(told) != without_latency(&info));
        if is_news {
            self.reported.net_info = Some(info.clone());
            self.events.push_back(NetcheckEvent::NetInfo(info));
        }
    }

    // ---- endpoints ----

    fn found_endpoints(&self) -> Vec<Endpoint> {
        let port = self.config.port;
        let mut found: Vec<Endpoint> = Vec::new();
        let mut add = |address: SocketAddr, kind: EndpointType| {
            let known = found.iter().any(|(known, _)| *known == address);
            if !known && found.len() < limit::ENDPOINTS && (kind == EndpointType::EXPLICIT || self.may_offer(address)) {
                found.push((address, kind));
            }
        };
        self.config.explicit.iter().for_each(|address| add(*address, EndpointType::EXPLICIT));
        if let Some(external) = self.report.mapping.external {
            add(external, EndpointType::PORT_MAPPED);
        }
        self.globals().into_iter().for_each(|address| add(address, EndpointType::STUN));
        if let (Some(true), Some(global)) = (self.report.mapping_varies, self.report.global_v4) {
            // A gateway whose owner forwards our port by hand maps it to the same number.
            add(SocketAddr::new(global.ip(), port), EndpointType::STUN4_LOCAL_PORT);
        }
        let mut links: Vec<&IpNet> = self.links.iter().collect();
        // What leads to others is told first, and is what is left where there are too many.
        links.sort_by_key(|link| self.link_kinds.get(*link).copied().unwrap_or_default());
        links.into_iter().for_each(|link| add(SocketAddr::new(link.addr(), port), EndpointType::LOCAL));
        found
    }

    /// Our mapped addresses that are worth telling: those that the nearest servers see, and those that several see. A NAT
    /// that maps per destination makes the others good for nobody.
    fn globals(&self) -> Vec<SocketAddr> {
        let nearest = [self.report.global_v4, self.report.global_v6].into_iter().flatten();
        let often = self.report.seen.iter().filter(|(_, times)| **times > 1).map(|(address, _)| *address);
        nearest.chain(often).chain(self.counted()).collect()
    }

    /// The ends of the row of ports that a NAT counted upwards for our questions: peers count on from there. Ports that
    /// were drawn at random would tell nobody anything.
    fn counted(&self) -> Vec<SocketAddr> {
        let Some(nearest) = self.report.global_v4.filter(|_| self.report.mapping_varies == Some(true)) else {
            return Vec::new();
        };
        let mut row = self.report.seen.keys().filter(|seen| seen.ip() == nearest.ip());
        match (row.next(), row.next_back()) {
            (Some(first), Some(last)) if last.port() - first.port() <= NEAR_PORTS => vec![*first, *last],
            _ => Vec::new(),
        }
    }

    /// A tunnel must not run through itself: nothing inside the overlay, and nothing inside an advertised subnet, unless
    /// a link of ours is in it; whoever is on that link too reaches us there, and others do not try.
    fn may_offer(&self, address: SocketAddr) -> bool {
        let ip = address.ip();
        let on_link = self.links.iter().any(|link| link.contains(&ip));
        let advertised = |prefix: &&IpNet| prefix.prefix_len() > 0 && prefix.contains(&ip);
        !in_overlay(ip) && (on_link || !self.advertised.iter().any(|prefix| advertised(&prefix)))
    }
}

fn without_latency(info: &NetInfo) -> NetInfo {
    NetInfo { derp_latency: BTreeMap::new(), ..info.clone() }
}
