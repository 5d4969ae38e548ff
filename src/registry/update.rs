//! What a running node says of itself, in a lite update or when it opens its stream.

use std::net::SocketAddr;
use std::sync::Arc;

use super::config::limit;
use super::message::json;
use super::names;
use super::record::Said;
use super::refusal::MapRefusal;
use super::state::State;
use crate::types::{CapabilityVersion, IpNet, MachinePublic, NodeId, RegionId, Timestamp, may_be_routed};
use crate::wire::control::{Hostinfo, MapRequest};

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
        let id = *self.by_key.get(&request.node_key).ok_or(MapRefusal::Unknown)?;
        let member = self.members.get(&id).ok_or(MapRefusal::Unknown)?;
        if member.shown.record.machine != machine {
            return Err(MapRefusal::Unknown);
        }
        self.heard(machine, &request.node_key, now);
        if request.read_only {
            return Ok(id);
        }
        let record = &self.members.get(&id).ok_or(MapRefusal::Unknown)?.shown.record;
        let mut next = record.as_ref().clone();
        next.said.hear(request);
        if let Some(info) = request.hostinfo.as_ref().filter(|_| !next.label_fixed) {
            let wanted = names::wanted(&info.hostname);
            // A node that was `web-1` among several `web` keeps that name while it calls itself `web`.
            if wanted != names::wanted(&record.hostinfo().hostname)
                && let Some(wanted) = wanted
            {
                next.label = names::unique(&wanted, |label| self.labels.get(label).is_some_and(|by| *by != id));
            }
        }
        if next != **record {
            self.unsaved.insert(id);
            self.put_node(Arc::new(next), now);
        }
        Ok(id)
    }
}

impl Said {
    /// What a node says when it registers.
    pub(super) fn at_registration(cap: CapabilityVersion, info: Option<&Hostinfo>) -> Self {
        let mut said = Self { cap, hostinfo: "{}".into(), ..Self::default() };
        if let Some(info) = info {
            said.hear_hostinfo(info);
        }
        said
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
