//! Many nodes on one coordinator, as their own agents would be: registered, streaming, answering nothing but the map.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use warren_agent::control_io::{self, IoConfig};
use warren_core::control::{AuthKey, Event, Login, ServerUrl, Session, Setup};
use warren_core::types::{DiscoPrivate, MachinePrivate, NodeId, NodePrivate};
use warren_core::wire::control::{EndpointType, Hostinfo, MapResponse};

/// How many nodes join at a time. A coordinator meets more only after a restart.
const JOINING: usize = 32;

/// What a node saw.
pub(crate) enum Seen {
    /// The coordinator let it in, and it has its first map.
    Joined,
    /// It knows this many peers.
    Peers { node: usize, count: usize },
    /// A peer's endpoint with this port came in.
    Port { port: u16, at: Instant },
    /// Something went wrong; it tries again.
    Failed(String),
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

    /// Lets a node move to this port.
    pub(crate) async fn move_to(&self, node: usize, port: u16) -> Instant {
        let at = now();
        self.orders[node].send(port).await.expect("the node runs");
        at
    }

    /// What any of them saw next.
    pub(crate) async fn seen(&mut self, patience: Duration) -> Option<Seen> {
        tokio::time::timeout(patience, self.seen.recv()).await.ok().flatten()
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
                if matches!(event, Event::Online) {
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

    async fn handle_event(&mut self, event: Event) {
        match event {
            Event::FullMap(map) => {
                self.peers.clear();
                self.handle_map(&map).await;
                self.tell(Seen::Joined).await;
            }
            Event::Delta(map) => self.handle_map(&map).await,
            Event::Failed(failure) => self.tell(Seen::Failed(failure.to_string())).await,
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
