//! Talks to the gateway as [`PortMapper`](warren_core::netcheck::portmap::PortMapper) says: one UDP socket, and HTTP.
//!
//! A pipe, not a judge. The socket is bound to our address on the gateway's link, because a gateway maps for the address
//! that it hears from; it and the connections carry the mark.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use warren_core::netcheck::portmap::{Action, Input};
use warren_core::wire::portmap::{MAX_DATAGRAM, MAX_XML};
use warren_shell::{DialTarget, Dialler, chain, vital};

/// Actions and news that wait.
const CHANNEL: usize = 32;
/// Questions over HTTP under way at a time; the state machine asks one after the other.
const AT_ONCE: usize = 4;
/// How long a question over HTTP may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(3);
/// How far a question to everybody goes: to the gateway, and not beyond.
const MULTICAST_TTL: u32 = 2;

/// Starts the task; it ends when the sender is dropped and what was asked for is done.
pub(super) fn spawn(dialler: Dialler) -> (mpsc::Sender<Action>, mpsc::Receiver<Input>) {
    let (actions_in, actions) = mpsc::channel(CHANNEL);
    let (out, news) = mpsc::channel(CHANNEL);
    tokio::spawn(vital("port mapper", PortmapIo { dialler, socket: None, tasks: JoinSet::new() }.run(actions, out)));
    (actions_in, news)
}

struct PortmapIo {
    dialler: Dialler,
    socket: Option<(Ipv4Addr, UdpSocket)>,
    tasks: JoinSet<Input>,
}

impl PortmapIo {
    async fn run(mut self, mut actions: mpsc::Receiver<Action>, out: mpsc::Sender<Input>) {
        let mut datagram = vec![0; MAX_DATAGRAM + 1];
        loop {
            let news = tokio::select! {
                action = actions.recv(), if self.tasks.len() < AT_ONCE => match action {
                    Some(action) => {
                        self.carry_out(action).await;
                        continue;
                    }
                    None => break,
                },
                Some(done) = self.tasks.join_next() => match done {
                    Ok(news) => news,
                    Err(_) => continue,
                },
                received = receive(self.socket.as_ref(), &mut datagram) => match received {
                    Ok((length, from)) => Input::Datagram { from, payload: datagram[..length].to_vec() },
                    Err(error) => {
                        // What an earlier datagram met on its way; a socket that is broken for good is made anew.
                        tracing::debug!(%error, "word from the gateway");
                        self.socket = None;
                        continue;
                    }
                },
            };
            if out.send(news).await.is_err() {
                break;
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send { from, to, payload } => {
                if let Err(error) = self.send(from, to, &payload).await {
                    tracing::debug!(%to, %error, "asking the gateway");
                    self.socket = None;
                }
            }
            Action::Http { id, to, path, call } => {
                let dialler = self.dialler.clone();
                self.tasks.spawn(async move {
                    let asked = timeout(HTTP_TIMEOUT, ask(&dialler, to, &path, call)).await;
                    let late = |_| Err(format!("{to}: no answer in {} s", HTTP_TIMEOUT.as_secs()));
                    Input::Http { id, outcome: asked.unwrap_or_else(late) }
                });
            }
        }
    }

    async fn send(&mut self, from: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some((bound, socket)) if bound == from => socket,
            _ => open(self.dialler.mark(), from).await?,
        };
        let (_, socket) = self.socket.insert((from, socket));
        socket.send_to(payload, to).await.map(drop)
    }
}

async fn open(mark: Option<u32>, from: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0)).await?;
    let options = SockRef::from(&socket);
    if let Some(mark) = mark {
        options.set_mark(mark)?;
    }
    options.set_multicast_if_v4(&from)?;
    options.set_multicast_ttl_v4(MULTICAST_TTL)?;
    Ok(socket)
}

async fn receive(socket: Option<&(Ipv4Addr, UdpSocket)>, datagram: &mut [u8]) -> io::Result<(usize, SocketAddrV4)> {
    let Some((_, socket)) = socket else { return std::future::pending().await };
    loop {
        if let (length, SocketAddr::V4(from)) = socket.recv_from(datagram).await? {
            return Ok((length, from));
        }
    }
}

/// One question over HTTP; the body of whatever answer, since faults come with status 500.
async fn ask(
    dialler: &Dialler,
    to: SocketAddrV4,
    path: &str,
    call: Option<(String, String)>,
) -> Result<Vec<u8>, String> {
    // The gateway is on our link: no proxy is.
    let stream = dialler.dial_straight(&DialTarget::new(&to.ip().to_string(), to.port()).plain()).await?;
    let request = Request::builder().uri(path).header(header::HOST, to.to_string()).header(header::CONNECTION, "close");
    let request = match call {
        None => request.body(Full::new(Bytes::new())),
        Some((action, body)) => request
            .method("POST")
            .header("SOAPAction", action)
            .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .body(Full::new(Bytes::from(body))),
    };
    let request = request.map_err(|error| format!("{to}{path}: {error}"))?;
    let (mut requests, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    // Ends with the request.
    tokio::spawn(connection);
    let response = requests.send_request(request).await.map_err(|error| format!("{to}{path}: {}", chain(&error)))?;
    let body = Limited::new(response.into_body(), MAX_XML).collect().await;
    Ok(body.map_err(|error| format!("{to}{path}: {error}"))?.to_bytes().to_vec())
}
