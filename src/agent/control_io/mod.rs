//! Carries out what [`control::Session`](warren_core::control::Session) asks for: one connection to the coordinator, and
//! the requests on it.
//!
//! A pipe, not a judge: it retries nothing and remembers nothing but the connection. A request that comes while there
//! is no connection makes one first; all requests share it. Whatever fails becomes [`Received::Closed`] with a text
//! that says what was done to which address.

pub(crate) mod connect;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::connect::{Connection, Dialler, Fault};
use crate::clock;
use warren_core::control::{Pin, Received, Reply, RequestId, ServerUrl, Transmit, limit, retry_after};
use warren_core::types::{Limit, MachinePrivate, MachinePublic, NodePublic};
use warren_core::wire::control::RegisterRequest;
use warren_shell::{chain, vital};

/// How many messages wait on each of the two channels.
const CHANNEL: usize = 16;
/// How long a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Pings under way at a time. The coordinator sends one every few seconds at most.
const PINGS: usize = 4;
/// A load balancer may keep a node's connections together by this header.
const LOAD_BALANCE: &str = "ts-lb";

/// How to reach the coordinator.
#[derive(Clone)]
pub struct IoConfig {
    pub server: ServerUrl,
    /// Who this machine is to it.
    pub machine_key: MachinePrivate,
    /// The way there: its mark keeps our packets out of the overlay that they make.
    pub dialler: warren_shell::Dialler,
    /// What is known of its key.
    pub pin: Pin,
}

impl IoConfig {
    /// Of a coordinator that nothing is known of, with packets that need no mark.
    pub fn new(server: ServerUrl, machine_key: MachinePrivate) -> Self {
        Self { server, machine_key, dialler: warren_shell::Dialler::new(None), pin: Pin::FirstUse }
    }
}

/// Starts the task. It ends when the sender is dropped.
pub fn spawn(config: IoConfig) -> (mpsc::Sender<Transmit>, mpsc::Receiver<Received>) {
    let (transmits, mut from_session) = mpsc::channel(CHANNEL);
    let (to_session, received) = mpsc::channel(CHANNEL);
    tokio::spawn(vital("connection to the coordinator", async move {
        let mut io = ControlIo {
            pin: config.pin.clone(),
            dialler: Arc::new(Dialler::new(config)),
            link: Link::Down,
            waiting: Vec::new(),
            requests: JoinSet::new(),
            handles: BTreeMap::new(),
            pings: JoinSet::new(),
            announced: JoinSet::new(),
            received: to_session,
        };
        loop {
            tokio::select! {
                transmit = from_session.recv() => match transmit {
                    Some(transmit) => io.handle_transmit(transmit),
                    None => return,
                },
                dialled = io.link.dialled() => io.handle_dialled(dialled),
                Some(done) = io.requests.join_next() => {
                    if let Ok(id) = done {
                        io.handles.remove(&id);
                    }
                }
                Some(_) = io.pings.join_next() => {}
                Some(announced) = io.announced.join_next() => {
                    if let Ok(Some(key)) = announced {
                        io.pin.learn(key);
                    }
                }
            }
        }
    }));
    (transmits, received)
}

struct ControlIo {
    /// The coordinator's key as it is known by now: it may change while we run.
    pin: Pin,
    dialler: Arc<Dialler>,
    link: Link,
    /// Requests that wait for the connection.
    waiting: Vec<Wanted>,
    requests: JoinSet<RequestId>,
    handles: BTreeMap<RequestId, AbortHandle>,
    pings: JoinSet<()>,
    /// Asks the coordinator for the key that it goes by.
    announced: JoinSet<Option<MachinePublic>>,
    received: mpsc::Sender<Received>,
}

enum Link {
    Down,
    /// One task, whose result is the connection.
    Dialling(JoinSet<Dialled>),
    Up(Connection),
}

/// A connection, and the key of whoever is at its other end.
type Dialled = Result<(Connection, MachinePublic), Fault>;

/// A request for the secure channel.
struct Wanted {
    id: RequestId,
    path: &'static str,
    body: Vec<u8>,
    /// For [`LOAD_BALANCE`].
    node_keys: Vec<NodePublic>,
    streams: bool,
}

impl ControlIo {
    fn handle_transmit(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Register { id, request } => self.want(register(id, &request)),
            Transmit::Update { id, request } => self.want(map(id, request.node_key, encode(&*request), false)),
            Transmit::Stream { id, request } => self.want(map(id, request.node_key, encode(&*request), true)),
            Transmit::Ping { url, over_noise } => self.ping(url, over_noise),
            Transmit::Cancel(id) => {
                self.waiting.retain(|wanted| wanted.id != id);
                if let Some(handle) = self.handles.remove(&id) {
                    handle.abort();
                }
            }
            Transmit::Disconnect => {
                self.waiting.clear();
                self.requests.abort_all();
                self.announced.abort_all();
                self.handles.clear();
                self.link = Link::Down;
            }
        }
    }

    /// Sends the request, or dials first.
    fn want(&mut self, wanted: Wanted) {
        match &self.link {
            Link::Up(connection) if !connection.is_closed() => {
                let exchange = exchange(connection.clone(), wanted, self.received.clone());
                self.start(exchange);
            }
            Link::Dialling(_) => self.waiting.push(wanted),
            Link::Up(_) | Link::Down => {
                let dialler = Arc::clone(&self.dialler);
                let (pin, mut dialling) = (self.pin.clone(), JoinSet::new());
                dialling.spawn(async move { dialler.connect(&pin).await });
                self.link = Link::Dialling(dialling);
                self.waiting.push(wanted);
            }
        }
    }

    fn handle_dialled(&mut self, dialled: Dialled) {
        let waiting = std::mem::take(&mut self.waiting);
        match dialled {
            Ok((connection, key)) => {
                // A session that is slow to take it in takes every change of the network for its concern.
                let _ = self.received.try_send(Received::Connected(connection.local));
                self.learn(connection.clone(), key);
                self.link = Link::Up(connection);
                for wanted in waiting {
                    self.want(wanted);
                }
            }
            Err(fault) => {
                self.link = Link::Down;
                for Wanted { id, .. } in waiting {
                    let answer = match &fault {
                        Fault::Stranger(key) => Received::Stranger(id, *key),
                        Fault::Failed(reason) => Received::Closed(id, reason.clone()),
                    };
                    let received = self.received.clone();
                    // In a task of its own: this loop must never wait for the session, which may be waiting for it.
                    self.start((id, async move {
                        let _ = received.send(answer).await;
                    }));
                }
            }
        }
    }

    /// From here on this key is the coordinator's, or the one that it announces on this connection.
    fn learn(&mut self, connection: Connection, key: MachinePublic) {
        self.pin.learn(key);
        let received = self.received.clone();
        self.announced.spawn(async move {
            let _ = received.send(Received::ServerKey(key)).await;
            let said = tokio::time::timeout(PING_TIMEOUT, connection.server_key()).await.ok().flatten();
            let successor = said.filter(|said| *said != key)?;
            let _ = received.send(Received::ServerKey(successor)).await;
            Some(successor)
        });
    }

    fn start(&mut self, (id, work): (RequestId, impl Future<Output = ()> + Send + 'static)) {
        let handle = self.requests.spawn(async move {
            work.await;
            id
        });
        self.handles.insert(id, handle);
    }

    fn ping(&mut self, url: String, over_noise: bool) {
        if self.pings.len() >= PINGS {
            tracing::debug!(url, "too many pings under way, this one is not answered");
            return;
        }
        let connection = match &self.link {
            Link::Up(connection) if over_noise => Some(connection.clone()),
            Link::Down | Link::Dialling(_) if over_noise => return,
            Link::Down | Link::Dialling(_) | Link::Up(_) => None,
        };
        let dialler = Arc::clone(&self.dialler);
        self.pings.spawn(async move {
            let answered = tokio::time::timeout(PING_TIMEOUT, async {
                match connection {
                    Some(connection) => connection.head(&url).await,
                    None => dialler.head(&url).await,
                }
            });
            match answered.await {
                Ok(Ok(())) => tracing::debug!(url, "answered a ping"),
                Ok(Err(error)) => tracing::info!(url, error, "could not answer the coordinator's ping"),
                Err(_) => tracing::info!(url, "the coordinator's ping timed out"),
            }
        });
    }
}

impl Link {
    /// The outcome of dialling; never, while nobody dials.
    async fn dialled(&mut self) -> Dialled {
        let Self::Dialling(task) = self else { return std::future::pending().await };
        match task.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Fault::Failed(format!("dial: {error}"))),
            None => Err(Fault::Failed("dial: nothing under way".to_owned())),
        }
    }
}

fn register(id: RequestId, request: &RegisterRequest) -> Wanted {
    let mut node_keys = vec![request.old_node_key, request.node_key];
    node_keys.retain(|key| !key.is_zero());
    Wanted { id, path: "/machine/register", body: encode(request), node_keys, streams: false }
}

fn map(id: RequestId, node_key: NodePublic, body: Vec<u8>, streams: bool) -> Wanted {
    Wanted { id, path: "/machine/map", body, node_keys: vec![node_key], streams }
}

/// Our own requests hold nothing that JSON cannot say.
fn encode(request: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(request).unwrap_or_default()
}

/// Sends one request and hands in whatever comes back.
fn exchange(
    connection: Connection,
    wanted: Wanted,
    received: mpsc::Sender<Received>,
) -> (RequestId, impl Future<Output = ()>) {
    let Wanted { id, path, body, node_keys, streams } = wanted;
    let work = async move {
        let outcome = async {
            let mut request = Request::builder().method(Method::POST).uri(connection.uri(path));
            for key in node_keys {
                request = request.header(LOAD_BALANCE, key.to_string());
            }
            let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
            let response = connection.send(request).await?;
            if streams && response.status() == StatusCode::OK {
                return follow(id, response, &received).await;
            }
            Ok(Received::Reply(id, read_answer(response).await?))
        };
        let last: Result<Received, String> = outcome.await;
        let last = last.unwrap_or_else(|error| Received::Closed(id, format!("POST {path}: {error}")));
        let _ = received.send(last).await;
    };
    (id, work)
}

/// Hands in the stream, piece by piece. A session that is slow to take them slows the coordinator down.
async fn follow(
    id: RequestId,
    response: Response<Incoming>,
    received: &mpsc::Sender<Received>,
) -> Result<Received, String> {
    let gone = |_| "nobody listens".to_owned();
    received.send(Received::Opened(id)).await.map_err(gone)?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| chain(&error))?;
        if let Some(bytes) = frame.into_data().ok().filter(|bytes| !bytes.is_empty()) {
            received.send(Received::Bytes(id, bytes.to_vec())).await.map_err(gone)?;
        }
    }
    Err("the coordinator ended the stream".to_owned())
}

async fn read_answer(response: Response<Incoming>) -> Result<Reply, String> {
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, clock::wall()));
    let body = read_body(response, limit::ANSWER).await?;
    Ok(Reply { status, retry_after, body })
}

async fn read_body(response: Response<Incoming>, limit: Limit) -> Result<Vec<u8>, String> {
    let body = Limited::new(response.into_body(), limit.most).collect().await;
    Ok(body.map_err(|error| format!("read the answer: {error}"))?.to_bytes().to_vec())
}

#[cfg(test)]
mod tests;
