//! Many nodes on one coordinator, as their own agents would be: registered, streaming, answering nothing but the map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use warren_agent::control_io::{self, IoConfig};
use warren_core::control::{AuthKey, Login, ServerUrl, Session, SessionEvent, Setup};
use warren_core::types::{DiscoPrivate, MachinePrivate, NodeId, NodePrivate};
use warren_core::wire::control::{EndpointType, Hostinfo, MapResponse};

/// How many nodes join at a time. A coordinator meets more only after a restart.
const JOINING: usize = 32;
/// How long nothing may happen before the coordinator counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a node saw.
enum Seen {
    /// The coordinator let it in, and it has its first map.
    Joined,
    /// It knows this many peers.
    Peers { node: usize, count: usize },
    /// A peer's endpoint with this port came in.
    Port { port: u16, at: Instant },
    /// Something went wrong; it tries again.
    Failed(String),
}

/// How the nodes got in.
pub(crate) struct Joined {
    /// Until the last one was in.
    pub(crate) last: Duration,
    /// Attempts that failed on the way.
    pub(crate) failures: u32,
}

/// The nodes; they leave when this is dropped.
pub(crate) struct Nodes {
    orders: Vec<mpsc::Sender<u16>>,
    seen: mpsc::Receiver<Seen>,
    _tasks: JoinSet<()>,
}

impl Nodes {
    pub(crate) fn start(server: &ServerUrl, key: &AuthKey, count: usize) -> Self {
        let (report, seen) = mpsc::channel(4 * count);
        let joining = Arc::new(Semaphore::new(JOINING));
        let mut tasks = JoinSet::new();
        let mut orders = Vec::new();
        for number in 0..count {
            let (order, ordered) = mpsc::channel(1);
            orders.push(order);
            let node = Node { number, peers: BTreeSet::new(), report: report.clone() };
            let (server, key, joining) = (server.clone(), key.clone(), Arc::clone(&joining));
            tasks.spawn(async move { node.run(server, key, &joining, ordered).await });
        }
        Self { orders, seen, _tasks: tasks }
    }

    /// Waits until all are in and know each other. The error says how far they came.
    pub(crate) async fn join(&mut self) -> Result<Joined, String> {
        let (begun, count) = (now(), self.orders.len());
        let mut joined = 0;
        let mut last = Duration::ZERO;
        let mut peers = BTreeMap::new();
        let mut failures = 0_u32;
        while joined < count || peers.len() < count || peers.values().any(|known| *known < count - 1) {
            match self.seen().await {
                Some(Seen::Joined) => {
                    joined += 1;
                    last = begun.elapsed();
                }
                Some(Seen::Peers { node, count }) => {
                    peers.insert(node, count);
                }
                Some(Seen::Failed(reason)) => {
                    failures += 1;
                    if failures == 1 {
                        eprintln!("first failure: {reason}");
                    }
                }
                Some(Seen::Port { .. }) => {}
                None => {
                    let whole = peers.values().filter(|known| **known >= count - 1).count();
                    return Err(format!(
                        "stuck: {joined} of {count} nodes are in, {whole} know all others, {failures} failures"
                    ));
                }
            }
        }
        Ok(Joined { last, failures })
    }

    /// Lets one node move to a port, and gives the times until each other one knew, in order.
    pub(crate) async fn spread(&mut self, node: usize, port: u16) -> Result<Vec<Duration>, String> {
        let (moved, others) = (now(), self.orders.len() - 1);
        self.orders[node].send(port).await.expect("the node runs");
        let mut times = Vec::new();
        while times.len() < others {
            match self.seen().await {
                Some(Seen::Port { port: seen, at }) if seen == port => times.push(at.saturating_duration_since(moved)),
                Some(Seen::Failed(reason)) => eprintln!("a node failed: {reason}"),
                Some(_) => {}
                None => return Err(format!("stuck: a new endpoint reached {} of {others} nodes", times.len())),
            }
        }
        times.sort_unstable();
        Ok(times)
    }

    /// What any of them saw next.
    async fn seen(&mut self) -> Option<Seen> {
        tokio::time::timeout(PATIENCE, self.seen.recv()).await.ok().flatten()
    }
}

struct Node {
    number: usize,
    peers: BTreeSet<NodeId>,
    report: mpsc::Sender<Seen>,
}

impl Node {
    async fn run(mut self, server: ServerUrl, key: AuthKey, joining: &Semaphore, mut orders: mpsc::Receiver<u16>) {
        let turn = joining.acquire().await;
        let machine_key = MachinePrivate::from_random(rand::random());
        let (transmits, mut received) = control_io::spawn(IoConfig::new(server.clone(), machine_key));
        let mut session = Session::new(self.setup(server), rand::random());
        session.handle_start(Login { auth_key: Some(key), renew: false }, now());
        let mut turn = Some(turn);
        loop {
            while let Some(transmit) = session.poll_transmit() {
                transmits.send(transmit).await.expect("the connection's task runs");
            }
            while let Some(event) = session.poll_event() {
                if matches!(event, SessionEvent::Online) {
                    turn = None;
                }
                self.handle_event(event).await;
            }
            let deadline = session.poll_timeout().unwrap_or_else(|| now() + Duration::from_secs(3600));
            tokio::select! {
                Some(message) = received.recv() => session.handle_received(message, now()),
                Some(port) = orders.recv(), if turn.is_none() => {
                    session.handle_endpoints(vec![endpoint(port)], now());
                }
                () = tokio::time::sleep_until(deadline.into()) => session.handle_timeout(now()),
            }
        }
    }

    fn setup(&self, server: ServerUrl) -> Setup {
        let hostname = format!("load-{}", self.number);
        let hostinfo = Hostinfo {
            ipn_version: warren_agent::VERSION.to_owned(),
            backend_log_id: format!("{:064x}", self.number),
            os: "linux".to_owned(),
            hostname,
            ..Hostinfo::default()
        };
        Setup {
            server,
            node_key: NodePrivate::from_random(rand::random()).public(),
            hostinfo,
            disco_key: DiscoPrivate::from_random(rand::random()).public(),
            endpoints: vec![endpoint(1)],
            ephemeral: true,
        }
    }

    async fn handle_event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::FullMap(map) => {
                self.peers.clear();
                self.handle_map(&map).await;
                self.tell(Seen::Joined).await;
            }
            SessionEvent::Delta(map) => self.handle_map(&map).await,
            SessionEvent::Failed(failure) => self.tell(Seen::Failed(failure.to_string())).await,
            _ => {}
        }
    }

    async fn handle_map(&mut self, map: &MapResponse) {
        let before = self.peers.len();
        self.peers.extend(map.peers.iter().chain(map.peers_changed.iter()).map(|peer| peer.id));
        for gone in &map.peers_removed {
            self.peers.remove(gone);
        }
        if self.peers.len() != before {
            self.tell(Seen::Peers { node: self.number, count: self.peers.len() }).await;
        }
        let whole = map.peers_changed.iter().flat_map(|peer| &peer.endpoints);
        let patched = map.peers_changed_patch.iter().flat_map(|patch| patch.endpoints.iter().flatten());
        for endpoint in whole.chain(patched).filter(|endpoint| endpoint.port() > 1) {
            self.tell(Seen::Port { port: endpoint.port(), at: now() }).await;
        }
    }

    async fn tell(&self, seen: Seen) {
        let _ = self.report.send(seen).await;
    }
}

#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Where a node says it is: an address of the documentation range, and the port that tells one change from another.
fn endpoint(port: u16) -> (SocketAddr, EndpointType) {
    (SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port)), EndpointType::LOCAL)
}
