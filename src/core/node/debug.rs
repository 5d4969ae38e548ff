//! What monitors and people who look for a fault ask: figures, the map, a mark in the log, names, connections.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

use super::{Answer, Engine, Now, Refusal, VERSION};
use crate::types::{IpNet, in_overlay};
use crate::wire::control::Node;
use crate::wire::local::{NetMapReply, RelayCounters, Severity};

/// Errors of writing to a text do not happen; so below.
fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{labels} {value}");
}

impl Engine {
    /// Figures for a monitor, in the text format of Prometheus: those that official clients have, or all.
    pub(super) fn metrics(&self, all: bool, relayed: &RelayCounters) -> String {
        let own = self.netmap.addresses();
        let approved = self.netmap.node().and_then(|node| node.allowed_ips.as_ref());
        let approved = approved.map_or(0, |served| served.iter().filter(|net| !own.contains(*net)).count());
        let warnings = self.health.entries().iter().filter(|entry| entry.severity != Severity::Low).count();
        let home = self.netcheck.report().home.unwrap_or_default();
        let mut text = String::new();
        let gauges = [
            ("tailscaled_advertised_routes", "", "Routes that this node offers", self.prefs.advertise_routes.len()),
            ("tailscaled_approved_routes", "", "Routes of this node that the coordinator approves", approved),
            ("tailscaled_health_messages", r#"{type="warning"}"#, "Faults that `warren status` shows", warnings),
            ("tailscaled_home_derp_region_id", "", "The relay region where this node listens", usize::from(home.0)),
        ];
        let of_ours = [
            ("warren_peers", "", "Peers in the map", self.netmap.peers().len()),
            ("warren_coordinator_connected", "", "Whether the coordinator is connected", self.login.online.into()),
            ("warren_settled", "", "Whether the kernel holds what it should", self.is_settled().into()),
        ];
        for (name, labels, help, value) in gauges.into_iter().chain(of_ours.into_iter().filter(|_| all)) {
            head(&mut text, name, "gauge", help);
            line(&mut text, name, labels, value as u64);
        }
        let device = self.reconciler.observed().and_then(|observed| observed.device.as_ref());
        let (mut received_bytes, mut sent_bytes) = (0, 0);
        for peer in device.iter().flat_map(|device| device.peers.values()) {
            received_bytes += peer.rx_bytes;
            sent_bytes += peer.tx_bytes;
        }
        for (name, help, whole, by_relay) in [
            ("inbound_bytes", "Bytes received from peers", received_bytes, relayed.received_bytes),
            ("outbound_bytes", "Bytes sent to peers", sent_bytes, relayed.sent_bytes),
        ] {
            let name = format!("tailscaled_{name}_total");
            head(&mut text, &name, "counter", help);
            line(&mut text, &name, r#"{path="derp"}"#, by_relay);
            line(&mut text, &name, r#"{path="direct"}"#, whole.saturating_sub(by_relay));
        }
        for (name, help, by_relay) in [
            ("inbound_packets", "Packets received from peers through relays", relayed.received),
            ("outbound_packets", "Packets sent to peers through relays", relayed.sent),
        ] {
            let name = format!("tailscaled_{name}_total");
            head(&mut text, &name, "counter", help);
            line(&mut text, &name, r#"{path="derp"}"#, by_relay);
        }
        if all {
            let name = "warren_relay_dropped_packets_total";
            head(&mut text, name, "counter", "Packets that were lost between WireGuard and a relay");
            for (reason, count) in relayed.drops() {
                line(&mut text, name, &format!("{{reason={reason:?}}}"), count);
            }
        }
        text
    }

    /// Everything that the coordinator has told.
    pub(super) fn net_map(&self) -> Answer {
        let node = self.netmap.node();
        Answer::json(&NetMapReply {
            self_node: node,
            node_key: self.identity.node_key.as_ref().map(|key| key.public()).unwrap_or_default(),
            machine_key: self.identity.machine_key.public(),
            name: node.map_or("", |node| &node.name),
            domain: self.netmap.domain(),
            peers: Peers(self),
            dns: self.netmap.dns(),
            derp_map: self.netmap.derp(),
            user_profiles: self.netmap.users().map(|user| (user.id, user)).collect::<BTreeMap<_, _>>(),
            tka_enabled: false,
        })
    }

    /// Writes what is known of faults into the log, under a mark that a person can pass on.
    pub(super) fn bug_report(&mut self, note: &str, now: Now) -> Answer {
        let [one, two, three] = [(); 3].map(|()| self.entropy.number());
        let mark = format!("BUG-{one:016x}{two:016x}-{}-{three:016x}", now.wall.strftime("%Y%m%d%H%M%SZ"));
        let state = self.state(now);
        tracing::info!("{mark}: version {VERSION}, state {state}, coordinator {}", self.prefs.control_url);
        if !note.is_empty() {
            tracing::info!("{mark}: note: {note:?}");
        }
        let node = self.netmap.node();
        tracing::info!(
            "{mark}: node {:?}, machine key {}, {} peers, connected: {}, settled: {}",
            node.map(|node| &node.stable_id),
            self.identity.machine_key.public(),
            self.netmap.peers().len(),
            self.login.online,
            self.is_settled()
        );
        for entry in self.health.entries() {
            tracing::info!("{mark}: health {:?} {}: {}", entry.severity, entry.code, entry.text);
        }
        Answer::Text(format!("{mark}\n"))
    }

    /// Where a client wants to be connected to: a node, or an address behind one.
    pub(super) fn dial(&self, host: &str, port: u16) -> Result<Answer, Refusal> {
        let address = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => {
                let node = self.named(host.trim_end_matches('.'));
                let node = node.ok_or_else(|| Refusal::new(502, format!("no node has the name {host:?}")))?;
                let first = node.addresses.first().map(IpNet::addr);
                first.ok_or_else(|| Refusal::new(502, format!("{host:?} has no address")))?
            }
        };
        let is_behind = || self.netmap.peers().flat_map(|peer| &peer.routes).any(|net| net.contains(&address));
        if !in_overlay(address) && !is_behind() {
            return Err(Refusal::new(502, format!("{address} is not in this network: connect to it directly")));
        }
        Ok(Answer::Dial(SocketAddr::new(address, port)))
    }

    /// The node of a name, whole or only its first label.
    fn named(&self, name: &str) -> Option<&Node> {
        let is_named = |node: &&Node| {
            let whole = node.name.trim_end_matches('.');
            let label = whole.split('.').next().unwrap_or_default();
            !name.is_empty() && (whole.eq_ignore_ascii_case(name) || label.eq_ignore_ascii_case(name))
        };
        let peers = self.netmap.told_peers().map(|node| &**node);
        self.netmap.node().into_iter().chain(peers).find(is_named)
    }
}

/// The peers of a core, written one after the other.
struct Peers<'a>(&'a Engine);

impl Serialize for Peers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.netmap.told_peers().map(|node| &**node))
    }
}
