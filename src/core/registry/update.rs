//! What a running node says of itself, in a lite update or when it opens its stream.

use std::net::SocketAddr;

use super::broadcast::json_of as json;
use super::config::limit;
use super::names;
use super::record::{NodeRecord, NodeStatus};
use super::refusal::MapRefusal;
use super::session::{Notice, Output};
use super::state::State;
use crate::types::{CapabilityVersion, DiscoPublic, IpNet, MachinePublic, NodeId, RegionId, Timestamp, may_be_routed};
use crate::wire::control::{Hostinfo, MapRequest, NetInfo};

/// Bytes of a name or a tag that are looked at.
const SHOWN: usize = 255;

pub(super) fn accept_version(version: CapabilityVersion) -> Result<(), MapRefusal> {
    State::check_version(version).map_err(|refusal| MapRefusal::TooOld(refusal.to_string()))
}

impl State {
    /// Takes what a map request says of its node; returns the node. Saved lazily: the node says it again
    /// when it reconnects.
    pub fn update(
        &mut self,
        machine: MachinePublic,
        request: &MapRequest,
        now: Timestamp,
    ) -> Result<NodeId, MapRefusal> {
        accept_version(request.version)?;
        let id = self.directory.node_by_key(&request.node_key).ok_or(MapRefusal::Unknown)?;
        let is_its = self.directory.node(id).is_some_and(|record| record.machine == machine && !record.is_device());
        if !is_its {
            return Err(MapRefusal::Unknown);
        }
        if self.directory.node(id).is_some_and(|record| self.is_suspended(record)) {
            return Err(MapRefusal::Suspended);
        }
        self.heard(machine, &request.node_key, now);
        if request.read_only {
            return Ok(id);
        }
        if self.presence.hear(id, request.disco_key, now) {
            self.outputs.push_back(Output::Noticed(Notice::TwoMachines(id)));
        }
        if self.presence.puts_off(id, &request.disco_key, now) {
            return Err(MapRefusal::TwoMachines);
        }
        let record = self.directory.node(id).ok_or(MapRefusal::Unknown)?;
        let known = self.presence.held(id).unwrap_or(&record.status);
        let mut status = known.clone();
        status.hear(request);
        if status == *known {
            return Ok(id);
        }
        let disco = known.disco;
        if let Some(holder) = self.holder_before(id, &status.disco).filter(|_| status.disco != disco) {
            status.disco = disco;
            self.outputs.push_back(Output::Noticed(Notice::DiscoTaken { node: id, holder }));
        }
        if let Some(status) = self.presence.pace(id, status, now) {
            self.say(id, status, now);
        }
        Ok(id)
    }

    /// Another machine's node that holds this disco key. Nobody knows a key before its holder has said it to us, so whoever
    /// says it second has no claim to it. (A machine may be several nodes, one after the other.)
    fn holder_before(&self, id: NodeId, disco: &DiscoPublic) -> Option<NodeId> {
        let machine = |id: NodeId| self.directory.node(id).map(|record| record.machine);
        self.directory.holders(disco).find(|holder| *holder != id && machine(*holder) != machine(id))
    }

    /// What a node said last may be passed on.
    pub(super) fn say_held(&mut self, id: NodeId, now: Timestamp) {
        if let Some(status) = self.presence.take_held(id, now) {
            self.say(id, status, now);
        }
    }

    fn say(&mut self, id: NodeId, status: NodeStatus, now: Timestamp) {
        let Some(record) = self.directory.node(id).cloned() else { return };
        let mut next = NodeRecord { status, ..record.as_ref().clone() };
        if !next.label_fixed && next.status.hostinfo != record.status.hostinfo {
            let wanted = names::wanted(&next.hostinfo().hostname);
            // A node that was `web-1` among several `web` keeps that name while it calls itself `web`.
            if wanted != names::wanted(&record.hostinfo().hostname)
                && let Some(wanted) = wanted
            {
                next.label =
                    names::unique(&wanted, |label| self.directory.node_named(label).is_some_and(|by| by != id));
            }
        }
        if next != *record {
            self.put_unsaved(next, now);
        }
    }
}

/// Cuts what a stranger says of its machine to what is kept of it, so that whoever owns the state has little to look at,
/// however much was sent. To be called by whoever read the message.
pub fn bound(info: &mut Option<Hostinfo>) {
    let Some(info) = info else { return };
    let cut = |text: &mut String| {
        if text.len() > SHOWN {
            *text = text.chars().take(SHOWN / 4).collect();
        }
    };
    cut(&mut info.hostname);
    cut(&mut info.os);
    info.request_tags.iter_mut().for_each(cut);
    info.routable_ips.truncate(limit::ROUTES.most);
    let derp = info.net_info.take().map(|net| NetInfo { preferred_derp: net.preferred_derp, ..NetInfo::default() });
    let (routes, tags) = (std::mem::take(&mut info.routable_ips), std::mem::take(&mut info.request_tags));
    if limit::HOSTINFO.check(json(info).len()).is_err() {
        *info = Hostinfo {
            os: std::mem::take(&mut info.os),
            hostname: std::mem::take(&mut info.hostname),
            ..Hostinfo::default()
        };
    }
    (info.net_info, info.routable_ips, info.request_tags) = (derp, routes, tags);
}

impl NodeStatus {
    /// What a node says when it registers.
    pub(super) fn at_registration(cap: CapabilityVersion, info: Option<&Hostinfo>) -> Self {
        let mut status = Self { cap, hostinfo: "{}".into(), ..Self::default() };
        if let Some(info) = info {
            status.hear_hostinfo(info);
        }
        status
    }

    fn hear(&mut self, request: &MapRequest) {
        self.cap = request.version;
        if !request.disco_key.is_zero() {
            self.disco = request.disco_key;
        }
        // A stream is often opened before the node knows its endpoints; only a lite update means "none".
        if !(request.stream && request.endpoints.is_empty()) {
            self.endpoints =
                request.endpoints.iter().copied().filter(is_plausible).take(limit::ENDPOINTS.most).collect();
        }
        if let Some(info) = &request.hostinfo {
            self.hear_hostinfo(info);
        }
    }

    fn hear_hostinfo(&mut self, info: &Hostinfo) {
        if let Some(net) = &info.net_info {
            self.home_derp = if net.preferred_derp == RegionId(0) { self.home_derp } else { net.preferred_derp };
        }
        self.routes = offered(&info.routable_ips);
        // The network report changes by the minute and only its home relay concerns us.
        let mut info = Hostinfo { net_info: None, routable_ips: Vec::new(), ..info.clone() };
        let mut text = json(&info);
        if limit::HOSTINFO.check(text.len()).is_err() {
            info = Hostinfo { os: info.os, hostname: info.hostname, ..Hostinfo::default() };
            text = json(&info);
        }
        if limit::HOSTINFO.check(text.len()).is_err() {
            text = "{}".to_owned();
        }
        if *self.hostinfo != *text {
            self.hostinfo = text.into();
        }
    }
}

/// Offered routes as we keep them: no host bits, no doubles, none inside the overlay but those of sites, sorted.
fn offered(routes: &[IpNet]) -> Vec<IpNet> {
    let mut routes: Vec<IpNet> = routes.iter().map(IpNet::trunc).filter(may_be_routed).collect();
    routes.sort_unstable();
    routes.dedup();
    routes.truncate(limit::ROUTES.most);
    routes
}

fn is_plausible(endpoint: &SocketAddr) -> bool {
    endpoint.port() != 0 && !endpoint.ip().is_unspecified() && !endpoint.ip().is_multicast()
}
