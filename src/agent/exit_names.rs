//! Answers those who leave by this host: DNS over HTTP (RFC 8484) at our own addresses in the overlay, where official
//! clients look for it at their exit node.
//!
//! Who may ask is the packet filter's word: whoever may ask name servers of the internet through this host. The kernel
//! admits nobody else to the port for this, and each request is looked at again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::clock;
use warren_core::dns::QUESTION_LEN;
use warren_core::node::Askers;
use warren_shell::{Buckets, locked};

const PATH: &str = "/dns-query";
const MESSAGE: &str = "application/dns-message";
/// Connections at one time, and of one peer: a client keeps one or two.
const CONNECTIONS: usize = 256;
const OF_PEER: usize = 8;
/// Questions a second of one peer, and at once: a page of the web asks for dozens.
const RATE: f64 = 50.0;
const BURST: u32 = 500;
/// How long the head of a request may take to come, and its body.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take: those who ask wait as long.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a connection may last. Whoever wants more makes another.
const LIFE: Duration = Duration::from_secs(300);
/// How long to wait after a port could not be had.
const PAUSE: Duration = Duration::from_secs(5);

/// Where a question goes, and what answers it.
pub(super) type Ask = Arc<dyn Fn(Vec<u8>) -> oneshot::Receiver<Vec<u8>> + Send + Sync>;

/// See the module.
pub(super) struct ExitNames {
    shared: Arc<Shared>,
    at: Vec<SocketAddr>,
    tasks: JoinSet<()>,
}

struct Shared {
    askers: Mutex<Option<Askers>>,
    rates: Mutex<Buckets<IpAddr>>,
    connections: Mutex<BTreeMap<IpAddr, usize>>,
    ask: Ask,
}

impl ExitNames {
    pub(super) fn new(ask: Ask) -> Self {
        let shared = Shared {
            askers: Mutex::default(),
            rates: Mutex::new(Buckets::new(RATE, BURST)),
            connections: Mutex::default(),
            ask,
        };
        Self { shared: Arc::new(shared), at: Vec::new(), tasks: JoinSet::new() }
    }

    /// Answers these from here on, and nobody else.
    pub(super) fn update(&mut self, askers: Option<Askers>, runtime: &tokio::runtime::Handle) {
        let at = askers.as_ref().map_or_else(Vec::new, |askers| askers.at.clone());
        *locked("names for others", &self.shared.askers) = askers;
        if at != self.at {
            self.tasks.abort_all();
            for address in &at {
                self.tasks.spawn_on(Arc::clone(&self.shared).listen(*address), runtime);
            }
            self.at = at;
        }
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, at: SocketAddr) {
        let mut connections = JoinSet::new();
        let mut told = false;
        loop {
            let listener = match bind(at) {
                Ok(listener) => listener,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "{at}: names are not answered for those who leave by this host");
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            told = false;
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, from)) => {
                            if let Some(place) = self.admit(from.ip()) {
                                let shared = Arc::clone(&self);
                                connections.spawn(async move { shared.serve(stream, at, place).await });
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "{at}: accept");
                            tokio::time::sleep(PAUSE).await;
                            break;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        }
    }

    fn may_ask(&self, from: IpAddr) -> bool {
        let askers = locked("names for others", &self.askers);
        askers.as_ref().is_some_and(|askers| askers.firewall.admits_dns(from))
    }

    /// A place for a connection of somebody who may ask.
    fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        if !self.may_ask(from) {
            return None;
        }
        let mut connections = locked("connections", &self.connections);
        let all: usize = connections.values().sum();
        let of_peer = connections.get(&from).copied().unwrap_or_default();
        if all >= CONNECTIONS || of_peer >= OF_PEER {
            return None;
        }
        connections.insert(from, of_peer + 1);
        Some(Place { shared: Arc::clone(self), from })
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, at: SocketAddr, place: Place) {
        let from = place.from;
        let service = service_fn(move |request| {
            let shared = Arc::clone(&self);
            async move { Ok::<_, Infallible>(shared.answer(request, at, from, clock::now().tick).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(32 << 10)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = timeout(LIFE, served).await {
            tracing::debug!(%from, %error, "names for others");
        }
        drop(place);
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        at: SocketAddr,
        from: IpAddr,
        now: Instant,
    ) -> Response<Full<Bytes>> {
        match self.question(request, at, from, now).await {
            Ok(question) => match timeout(ANSWER, (self.ask)(question)).await {
                Ok(Ok(answer)) => {
                    let mut response = Response::new(Full::from(answer));
                    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MESSAGE));
                    response
                }
                Ok(Err(_)) => status(StatusCode::BAD_REQUEST),
                Err(_) => status(StatusCode::GATEWAY_TIMEOUT),
            },
            Err(refused) => status(refused),
        }
    }

    /// The question of a request of somebody who may ask.
    async fn question(
        &self,
        request: Request<Incoming>,
        at: SocketAddr,
        from: IpAddr,
        now: Instant,
    ) -> Result<Vec<u8>, StatusCode> {
        if !self.may_ask(from) || !is_no_page(request.headers(), at) {
            return Err(StatusCode::FORBIDDEN);
        }
        if request.uri().path() != PATH {
            return Err(StatusCode::NOT_FOUND);
        }
        let taken = locked("rates", &self.rates).take(from, now);
        taken.map_err(|_| StatusCode::TOO_MANY_REQUESTS)?;
        match *request.method() {
            Method::GET => {
                let query = request.uri().query().unwrap_or_default();
                let message = query.split('&').find_map(|part| part.strip_prefix("dns="));
                let message =
                    message.filter(|message| message.len() <= 2 * QUESTION_LEN).ok_or(StatusCode::BAD_REQUEST)?;
                BASE64URL_NOPAD.decode(message.trim_end_matches('=').as_bytes()).map_err(|_| StatusCode::BAD_REQUEST)
            }
            Method::POST => {
                let kind = request.headers().get(header::CONTENT_TYPE);
                if kind.is_none_or(|kind| kind != MESSAGE) {
                    return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
                }
                let body = timeout(PATIENCE, Limited::new(request.into_body(), QUESTION_LEN).collect()).await;
                let body = body.map_err(|_| StatusCode::REQUEST_TIMEOUT)?.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
                Ok(body.to_bytes().to_vec())
            }
            _ => Err(StatusCode::METHOD_NOT_ALLOWED),
        }
    }
}

/// A connection's place, given back with it.
struct Place {
    shared: Arc<Shared>,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = locked("connections", &self.shared.connections);
        if let Some(count) = connections.get_mut(&self.from) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                connections.remove(&self.from);
            }
        }
    }
}

/// Whether nobody's web page asks by the browser of a peer: such a request says where it comes from, or names another host.
fn is_no_page(headers: &HeaderMap, at: SocketAddr) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_ours = host == "peer" || host.parse() == Ok(at);
    is_ours && !headers.contains_key(header::ORIGIN) && !headers.contains_key(header::REFERER)
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

/// At an address that may come later (ip(7), `IP_FREEBIND`).
fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    match at {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use warren_core::plan::{Admit, Class, ClassId, Firewall, PortRange, Protocol, RuleId, Served};

    use super::*;

    /// Who may ask name servers of the internet, or only sites.
    fn firewall(port: u16) -> Arc<Firewall> {
        let all = "0.0.0.0/0".parse().unwrap();
        let admit = Admit { destination: all, protocol: Protocol::TCP, ports: PortRange { first: port, last: port } };
        let class = Class { rules: [(RuleId(1), BTreeSet::from([admit]))].into() };
        Arc::new(Firewall {
            served: Served { internet: BTreeSet::from([all]), ..Served::default() },
            classes: [(ClassId(1), class)].into(),
            hosts: [("127.0.0.1".parse().unwrap(), ClassId(1))].into(),
            ..Firewall::default()
        })
    }

    /// Says a question back to who asks it.
    fn names(firewall: Arc<Firewall>) -> (ExitNames, SocketAddr) {
        let ask: Ask = Arc::new(|question| {
            let (answer, answered) = oneshot::channel();
            answer.send(question).unwrap();
            answered
        });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut names = ExitNames::new(ask);
        names.update(Some(Askers { at: vec![free], firewall }), &tokio::runtime::Handle::current());
        (names, free)
    }

    async fn send(at: SocketAddr, request: &str) -> String {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let mut stream = loop {
            look.tick().await;
            if let Ok(stream) = TcpStream::connect(at).await {
                break stream;
            }
        };
        stream.write_all(request.replace("HOST", &at.to_string()).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // One that may not ask is hung up on.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    const POST: &str = "POST /dns-query HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/dns-message\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    const GET: &str = "GET /dns-query?dns=aGVsbG8 HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_question_comes_in_both_ways_and_what_is_none_is_refused() {
        let (_names, at) = names(firewall(53));
        for request in [POST, GET] {
            let answer = send(at, request).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
            assert!(answer.contains("content-type: application/dns-message"), "{answer}");
        }
        for (request, code) in [
            (POST.replace("Host: HOST", "Host: router.example"), "403"),
            (POST.replace("Host: HOST", "Host: HOST\r\nOrigin: http://a.example"), "403"),
            (POST.replace("Host: HOST", "Host: HOST\r\nReferer: http://a.example/"), "403"),
            (POST.replace("/dns-query", "/v0/put/x"), "404"),
            (POST.replace("application/dns-message", "text/plain"), "415"),
            (POST.replace("Content-Length: 5", "Content-Length: 5000"), "413"),
            (GET.replace("dns=aGVsbG8", "dns=***"), "400"),
            (GET.replace("dns=aGVsbG8", ""), "400"),
            (GET.replace("GET", "DELETE"), "405"),
        ] {
            let body = if code == "413" { "x".repeat(5000) } else { String::new() };
            let answer = send(at, &(request.clone() + &body)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{code}: {answer}");
        }
    }

    #[tokio::test]
    async fn who_may_not_ask_name_servers_through_us_is_hung_up_on() {
        let (mut names, at) = names(firewall(53));
        assert!(send(at, POST).await.starts_with("HTTP/1.1 200"));
        let update = |names: &mut ExitNames, firewall| {
            names.update(Some(Askers { at: vec![at], firewall }), &tokio::runtime::Handle::current());
        };
        for closed in [firewall(443), Arc::default()] {
            update(&mut names, closed);
            assert_eq!(send(at, POST).await, "");
        }
        update(&mut names, firewall(53));
        assert!(send(at, POST).await.starts_with("HTTP/1.1 200"));
        // Nor on a connection that stood before.
        let mut stream = TcpStream::connect(at).await.unwrap();
        let ask = |request: &str| request.replace("HOST", &at.to_string()).replace("Connection: close\r\n", "");
        stream.write_all(ask(POST).as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        update(&mut names, Arc::default());
        stream.write_all(POST.replace("HOST", &at.to_string()).as_bytes()).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("HTTP/1.1 403"), "{rest}");
    }

    #[tokio::test]
    async fn one_peer_has_a_share_of_connections_and_of_questions() {
        let (_names, at) = names(firewall(53));
        send(at, POST).await;
        let mut held = Vec::new();
        for _ in 0..OF_PEER {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream
                .write_all(POST.replace("HOST", &at.to_string()).replace("close", "keep-alive").as_bytes())
                .await
                .unwrap();
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            held.push(stream);
        }
        assert_eq!(send(at, POST).await, "");
        let mut many = held.swap_remove(0);
        let mut sent = 0;
        loop {
            let request = POST.replace("HOST", &at.to_string()).replace("close", "keep-alive");
            many.write_all(request.as_bytes()).await.unwrap();
            sent += 1;
            let mut answer = vec![0; 4096];
            let length = many.read(&mut answer).await.unwrap();
            if String::from_utf8_lossy(&answer[..length]).contains("HTTP/1.1 429") {
                break;
            }
            assert!(sent < 4 * BURST, "no limit");
        }
    }
}
