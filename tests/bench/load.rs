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
/// How long a coordinator may take until all nodes are in and know each other.
const JOIN_WITHIN: Duration = Duration::from_secs(600);
/// How long it may take to tell all of a change.
const SPREAD_WITHIN: Duration = Duration::from_secs(60);

/// What a node saw.
enum Seen {
    /// The coordinator let it in, and it has a full map.
    Joined { node: usize },
    /// It knows this many peers.
    Peers { node: usize, count: usize },
    /// A peer's endpoint with this port came in.
    Port { node: usize, port: u16, at: Instant },
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
        let deadline = begun + JOIN_WITHIN;
        let mut joined = BTreeSet::new();
        let mut last = Duration::ZERO;
        let mut peers = BTreeMap::new();
        let mut failures = 0_u32;
        while joined.len() < count || peers.len() < count || peers.values().any(|known| *known < count - 1) {
            match self.seen(deadline).await {
                Some(Seen::Joined { node }) => {
                    if joined.insert(node) {
                        last = begun.elapsed();
                    }
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
                    let limit = JOIN_WITHIN.as_secs();
                    return Err(format!(
                        "not within {limit} s: {whole} of {count} know all others, {failures} failures"
                    ));
                }
            }
        }
        Ok(Joined { last, failures })
    }

    /// Lets one node move to a port that none was at, and gives the times until each other one knew, in order.
    pub(crate) async fn spread(&mut self, node: usize, port: u16) -> Result<Vec<Duration>, String> {
        let (moved, others) = (now(), self.orders.len() - 1);
        let deadline = moved + SPREAD_WITHIN;
        self.orders[node].try_send(port).expect("the node runs, and has done what it was told");
        // By node: one whose stream ended meanwhile is told again.
        let mut times = BTreeMap::new();
        while times.len() < others {
            match self.seen(deadline).await {
                Some(Seen::Port { node, port: seen, at }) if seen == port => {
                    times.entry(node).or_insert(at.saturating_duration_since(moved));
                }
                Some(Seen::Failed(reason)) => eprintln!("a node failed: {reason}"),
                Some(_) => {}
                None => {
                    let (limit, told) = (SPREAD_WITHIN.as_secs(), times.len());
                    return Err(format!("not within {limit} s: a new endpoint reached {told} of {others} nodes"));
                }
            }
        }
        let mut times: Vec<Duration> = times.into_values().collect();
        times.sort_unstable();
        Ok(times)
    }

    /// What any of them saw next, unless it is too late.
    async fn seen(&mut self, deadline: Instant) -> Option<Seen> {
        tokio::time::timeout_at(deadline.into(), self.seen.recv()).await.ok().flatten()
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
                self.tell(Seen::Joined { node: self.number }).await;
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
        let whole = map.peers.iter().chain(map.peers_changed.iter()).flat_map(|peer| &peer.endpoints);
        let patched = map.peers_changed_patch.iter().flat_map(|patch| patch.endpoints.iter().flatten());
        for endpoint in whole.chain(patched).filter(|endpoint| endpoint.port() > 1) {
            self.tell(Seen::Port { node: self.number, port: endpoint.port(), at: now() }).await;
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
