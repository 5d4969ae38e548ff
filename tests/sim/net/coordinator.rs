//! The coordinator, as far as the agents' networks depend on it: it knows everybody, tells each of the others, and passes
//! on what each finds out about itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use warren_core::control::{Received, Reply, RequestId, Transmit};
use warren_core::types::{DiscoPublic, IpNet, MachinePrivate, NodeId, RegionId, StableNodeId};
use warren_core::wire::control::{
    DerpMap, DerpNode, DerpRegion, MapRequest, MapResponse, Node, ROTATES_NODE_KEYS, RegisterRequest, RegisterResponse,
    match_all,
};
use warren_core::wire::map_stream;

use super::pump::{REGIONS, Relay};
use super::run::wall_at;
use super::{Happening, World};

pub(crate) const COORDINATOR: &str = "https://coordinator.example.net";
/// Signs of life on a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(50);

/// What becomes of a host's wish to have another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotations {
    Taken,
    /// It is taken, and the answer is lost.
    Unanswered,
    Refused,
}

/// What the coordinator knows of a host.
#[derive(Default)]
pub(crate) struct Record {
    disco: DiscoPublic,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) home: Option<RegionId>,
    /// The stream of its map.
    stream: Option<RequestId>,
}

impl Record {
    /// The agent, or its connection, is gone.
    pub(super) fn disconnect(&mut self) {
        self.stream = None;
    }
}

impl World {
    // ---- what befalls it ----

    /// It is gone for a while. Streams end, and whatever is asked fails.
    pub(crate) fn end_coordinator(&mut self) {
        self.coordinator_is_up = false;
        for host in 0..self.hosts.len() {
            if let Some(id) = self.hosts[host].record.stream.take() {
                let pause = self.chance.millis(5, 40);
                self.after_for_agent(pause, host, Happening::Coordinator(Received::Closed(id, "reset".to_owned())));
            }
        }
    }

    /// What a host said of itself was not on disk when the coordinator ended.
    pub(crate) fn forget_report(&mut self, host: usize) {
        let record = &mut self.hosts[host].record;
        (record.disco, record.endpoints, record.home) = (DiscoPublic::default(), Vec::new(), None);
    }

    pub(crate) fn begin_coordinator(&mut self) {
        self.coordinator_is_up = true;
    }

    // ---- what is asked ----

    /// Carries out what a session asks for. It comes by TCP, which loses nothing and is let through everywhere.
    pub(super) fn ask_coordinator(&mut self, host: usize, transmit: Transmit) {
        let pause = self.chance.millis(20, 60);
        let up = self.coordinator_is_up;
        let id = match &transmit {
            Transmit::Register { id, .. } | Transmit::Update { id, .. } | Transmit::Stream { id, .. } => *id,
            Transmit::Ping { .. } => return,
            Transmit::Cancel(id) => {
                let record = &mut self.hosts[host].record;
                record.stream = record.stream.take().filter(|of| of != id);
                return;
            }
            Transmit::Disconnect => return self.hosts[host].record.disconnect(),
        };
        if !up {
            let refused = Received::Closed(id, "connection refused".to_owned());
            return self.after_for_agent(pause, host, Happening::Coordinator(refused));
        }
        let Some(local) = self.hosts[host].addresses.first().map(IpNet::addr) else { return };
        self.after_for_agent(pause, host, Happening::Coordinator(Received::Connected(local)));
        let key = MachinePrivate::from_random([99; 32]).public();
        self.after_for_agent(pause, host, Happening::Coordinator(Received::ServerKey(key)));
        let answered = |body| Received::Reply(id, Reply { status: 200, retry_after: None, body });
        match transmit {
            Transmit::Register { request, .. } => {
                let answer = match self.register(host, &request) {
                    Some(response) => answered(serde_json::to_vec(&response).unwrap()),
                    None => Received::Closed(id, "reset".to_owned()),
                };
                self.after_for_agent(pause, host, Happening::Coordinator(answer));
            }
            Transmit::Update { request, .. } | Transmit::Stream { request, .. }
                if request.node_key != self.hosts[host].key =>
            {
                let unknown = Reply { status: 404, retry_after: None, body: b"no such node".to_vec() };
                self.after_for_agent(pause, host, Happening::Coordinator(Received::Reply(id, unknown)));
            }
            Transmit::Update { request, .. } => {
                self.note(host, *request);
                self.after_for_agent(pause, host, Happening::Coordinator(answered(Vec::new())));
            }
            Transmit::Stream { request, .. } => {
                self.note(host, *request);
                self.hosts[host].record.stream = Some(id);
                self.after_for_agent(pause, host, Happening::Coordinator(Received::Opened(id)));
                self.after_for_agent(pause, host, Happening::Map { of: None });
                self.after_for_agent(KEEP_ALIVE, host, Happening::KeepAlive { id });
            }
            Transmit::Ping { .. } | Transmit::Cancel(_) | Transmit::Disconnect => {}
        }
    }

    /// Judges a registration; none where the answer is lost. A key that is not known has to be let in by a person.
    fn register(&mut self, host: usize, request: &RegisterRequest) -> Option<RegisterResponse> {
        let welcome = RegisterResponse { machine_authorized: true, ..RegisterResponse::default() };
        let known = self.hosts[host].key;
        if request.node_key == known {
            return Some(welcome);
        }
        if !request.rotation {
            let auth_url = format!("{COORDINATOR}/a/0");
            return Some(RegisterResponse { auth_url, ..RegisterResponse::default() });
        }
        if request.old_node_key != known || self.rotations == Rotations::Refused {
            return Some(RegisterResponse { error: "no".to_owned(), ..RegisterResponse::default() });
        }
        self.hosts[host].key = request.node_key;
        self.hosts[host].keys.push(request.node_key);
        self.hosts[host].record.stream = None;
        self.tell_others(host);
        (self.rotations == Rotations::Taken).then_some(welcome)
    }

    /// Takes note of what a host says of itself, and tells the others.
    fn note(&mut self, host: usize, request: MapRequest) {
        let record = &mut self.hosts[host].record;
        // An agent that has just begun has nothing to say of its home, and what is known stays.
        let info = request.hostinfo.and_then(|hostinfo| hostinfo.net_info);
        let home = info.map_or(record.home, |info| Some(info.preferred_derp).filter(|region| region.0 != 0));
        let told = (record.disco, &record.endpoints, record.home);
        if told == (request.disco_key, &request.endpoints, home) {
            return;
        }
        (record.disco, record.endpoints, record.home) = (request.disco_key, request.endpoints, home);
        self.tell_others(host);
    }

    fn tell_others(&mut self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            let pause = self.chance.millis(100, 300);
            self.after_for_agent(pause, other, Happening::Map { of: Some(host) });
        }
    }

    // ---- what is told ----

    /// Tells a host all there is, or of one other.
    pub(super) fn tell_map(&mut self, host: usize, of: Option<usize>) {
        let message = match of {
            Some(other) => MapResponse { peers_changed: vec![self.node(other)].into(), ..MapResponse::default() },
            None => MapResponse {
                node: Some(self.node(host)),
                peers: (0..self.hosts.len()).filter(|other| *other != host).map(|other| self.node(other)).collect(),
                derp_map: Some(self.derp_map()),
                domain: "example.net".to_owned(),
                packet_filters: [("base".to_owned(), Some(match_all()))].into(),
                control_time: Some(wall_at(self.now, 0)),
                ..MapResponse::default()
            },
        };
        self.stream(host, &message);
    }

    pub(super) fn keep_alive(&mut self, host: usize, id: RequestId) {
        if self.hosts[host].record.stream == Some(id) {
            self.stream(host, &MapResponse { keep_alive: true, ..MapResponse::default() });
            self.after_for_agent(KEEP_ALIVE, host, Happening::KeepAlive { id });
        }
    }

    fn stream(&mut self, host: usize, message: &MapResponse) {
        let Some(id) = self.hosts[host].record.stream else { return };
        let json = serde_json::to_vec(message).unwrap();
        let packed = zstd::encode_all(json.as_slice(), 1).unwrap();
        let bytes = map_stream::encode(&[&packed]).unwrap();
        let now = self.agent_time(host);
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.handle_received(Received::Bytes(id, bytes), now);
        }
    }

    fn node(&self, number: usize) -> Node {
        let host = &self.hosts[number];
        let last = number + 1;
        let home = host.record.home.filter(|_| !self.relayless);
        Node {
            id: NodeId(last as u64),
            stable_id: StableNodeId(format!("n{last}")),
            name: format!("host-{number}.example.net."),
            key: host.key,
            disco_key: host.record.disco,
            addresses: [format!("100.64.0.{last}/32"), format!("fd7a:115c:a1e0::{last:x}/128")]
                .map(|text| text.parse().unwrap())
                .into(),
            endpoints: host.record.endpoints.clone(),
            home_derp: home.unwrap_or_default(),
            machine_authorized: true,
            cap_map: [(ROTATES_NODE_KEYS.to_owned(), None)].into(),
            ..Node::default()
        }
    }

    /// What it says of the relays.
    fn derp_map(&self) -> DerpMap {
        let node = |relay: &Relay| DerpNode {
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
        DerpMap { regions: BTreeMap::from(regions), ..DerpMap::default() }
    }
}
