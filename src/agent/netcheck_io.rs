//! Carries out what [`Netcheck`](crate::path::netcheck::Netcheck) asks for beside STUN: names, HTTPS, captive portals,
//! the gateway.
//!
//! A pipe, not a judge: each thing is tried once, within its time, and what comes of it is told. All connections carry
//! the mark, so that they never go through the overlay.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::Service;

use super::clock;
use super::control_io::chain;
use super::control_io::connect::may_mark;
use super::portmap_io;
use super::proxy;
use super::relay_tls::RelayTls;
use crate::io::vital;
use crate::linux::DefaultRoute;
use crate::path::netcheck::{Action, Gateway, HttpsTarget, News, limit};
use crate::types::RegionId;

/// Actions that wait: the names of a whole map, and what is asked over HTTPS.
const ACTIONS: usize = limit::REGIONS * limit::NODES + 2 * limit::HTTPS;
/// News that wait for the loop.
const NEWS: usize = 64;
/// Actions under way at a time.
const AT_ONCE: usize = 32;
/// How long a name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one address may take to be connected; a relay that takes longer is no home.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long an HTTPS measurement may take as a whole.
const HTTPS_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the look for a captive portal may take.
const CAPTIVE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// How long to wait before asking again for the gateway where that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the task; it ends when the sender is dropped. HTTPS goes through the proxies, as the connections to relays do.
/// `gateways` tells the default gateway whenever it changes.
pub fn spawn(
    mark: Option<u32>,
    proxies: Matcher,
    mut gateways: mpsc::Receiver<Option<Gateway>>,
) -> (mpsc::Sender<Action>, mpsc::Receiver<News>) {
    let (actions_in, mut actions) = mpsc::channel(ACTIONS);
    let (out, news) = mpsc::channel(NEWS);
    let mark = mark.filter(|mark| may_mark(*mark));
    let (to_gateway, mut from_gateway) = portmap_io::spawn(mark);
    let io = NetcheckIo::new(mark, proxies);
    tokio::spawn(vital("look at the network", async move {
        let mut tasks = JoinSet::new();
        let mut watching = true;
        let os_has_ipv6 = tokio::net::UdpSocket::bind("[::1]:0").await.is_ok();
        if out.send(News::OsHasIpv6(os_has_ipv6)).await.is_err() {
            return;
        }
        loop {
            let told = tokio::select! {
                action = actions.recv(), if tasks.len() < AT_ONCE => match action {
                    Some(Action::Map(action)) => {
                        // What is lost here is asked again: the state machine waits for no answer for long.
                        let _ = to_gateway.try_send(action);
                        continue;
                    }
                    Some(action) => {
                        io.start(action, &mut tasks);
                        continue;
                    }
                    None => return,
                },
                Some(done) = tasks.join_next() => match done {
                    Ok(news) => news,
                    Err(_) => continue,
                },
                Some(news) = from_gateway.recv() => News::Map(news),
                gateway = gateways.recv(), if watching => match gateway {
                    Some(gateway) => News::Gateway(gateway),
                    None => {
                        watching = false;
                        continue;
                    }
                },
            };
            if out.send(told).await.is_err() {
                return;
            }
        }
    }));
    (actions_in, news)
}

/// Tells the default gateway, at first and whenever it changes.
pub fn watch_gateway(mut route: DefaultRoute) -> mpsc::Receiver<Option<Gateway>> {
    let (out, gateways) = mpsc::channel(1);
    tokio::spawn(vital("watch on the gateway", async move {
        let mut told = None;
        loop {
            match route.gateway().await {
                Ok(found) => {
                    let found = found.map(|found| Gateway { address: found.address, local: found.local });
                    if told != Some(found) {
                        told = Some(found);
                        if out.send(found).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!("the default gateway: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            tokio::select! {
                () = route.changed() => {}
                () = out.closed() => return,
            }
        }
    }));
    gateways
}

#[derive(Clone)]
struct NetcheckIo {
    connector: HttpConnector,
    tls: RelayTls,
    proxies: Arc<Matcher>,
}

impl NetcheckIo {
    fn new(mark: Option<u32>, proxies: Matcher) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.set_mark(mark);
        Self { connector, tls: RelayTls::default(), proxies: Arc::new(proxies) }
    }

    fn start(&self, action: Action, tasks: &mut JoinSet<News>) {
        let io = self.clone();
        match action {
            Action::Resolve { host } => {
                tasks.spawn(async move { News::Resolved { addresses: resolve(&host).await, host } });
            }
            Action::MeasureHttps(target) => {
                tasks.spawn(async move {
                    let region: RegionId = target.region;
                    let measured = timeout(HTTPS_TIMEOUT, io.measure(&target)).await;
                    let late = |_| Err(format!("no answer in {} s", HTTPS_TIMEOUT.as_secs()));
                    News::Https { region, outcome: measured.unwrap_or_else(late) }
                });
            }
            Action::CheckCaptive { host, addresses, port, challenge } => {
                tasks.spawn(async move {
                    let checked = timeout(CAPTIVE_TIMEOUT, io.is_captive(&host, &addresses, port, &challenge)).await;
                    News::Captive(checked.ok().and_then(Result::ok))
                });
            }
            Action::Map(_) => {}
        }
    }

    /// The time of one request on an open connection: one round trip, and little of the server's work.
    async fn measure(&self, target: &HttpsTarget) -> Result<(Duration, IpAddr), String> {
        let host = &target.host;
        let (tcp, address) = self.reach(target).await?;
        let name = ServerName::try_from(host.clone()).map_err(|error| format!("{host:?}: {error}"))?;
        let tls = self.tls.connector(&target.cert_name, target.insecure)?;
        let stream = tls.connect(name, tcp).await.map_err(|error| format!("TLS with {host}: {}", chain(&error)))?;
        let request = get("/derp/latency-check", host)?;
        let mut requests = open(stream).await?;
        let began = clock::now().tick;
        let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
        let latency = clock::now().tick.duration_since(began);
        if response.status().is_success() {
            Ok((latency, address))
        } else {
            Err(format!("{host}: answered {}", response.status()))
        }
    }

    /// Connects to a relay, or to a proxy that passes on to it: then by whichever of the relay's addresses.
    async fn reach(&self, target: &HttpsTarget) -> Result<(TcpStream, IpAddr), String> {
        let HttpsTarget { host, addresses, port, .. } = target;
        let place = match host.parse() {
            Ok(address) => SocketAddr::new(address, *port).to_string(),
            Err(_) => format!("{host}:{port}"),
        };
        let uri: Uri = format!("https://{place}/").parse().map_err(|_| format!("{place}: not a place"))?;
        match proxy::towards(&self.proxies, &uri) {
            None => self.connect(host, addresses, *port).await,
            Some(proxy) => {
                let stream = proxy::tunnel(&proxy, uri, self.connector.clone()).await?;
                let proxy = stream.peer_addr().map_err(|error| format!("connect to a proxy: {error}"))?;
                Ok((stream, addresses.first().copied().unwrap_or(proxy.ip())))
            }
        }
    }

    /// Whether what answers in a relay's name is not the relay. Errors say that nothing answered.
    async fn is_captive(&self, host: &str, addresses: &[IpAddr], port: u16, challenge: &str) -> Result<bool, String> {
        let (tcp, _) = self.connect(host, addresses, port).await?;
        let mut request = get("/generate_204", host)?;
        let value = challenge.parse().map_err(|_| "not a header value".to_owned())?;
        request.headers_mut().insert("x-tailscale-challenge", value);
        let mut requests = open(tcp).await?;
        let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
        Ok(!is_relays_own(&response, challenge))
    }

    /// Connects to the first address that answers; to what the name leads to where none is known.
    async fn connect(&self, host: &str, addresses: &[IpAddr], port: u16) -> Result<(TcpStream, IpAddr), String> {
        let known = addresses.iter().map(|address| SocketAddr::new(*address, port).to_string());
        let places = if addresses.is_empty() { vec![format!("{host}:{port}")] } else { known.collect() };
        let mut last = String::new();
        for place in places {
            let uri: Uri = format!("http://{place}").parse().map_err(|_| format!("{place}: not an address"))?;
            match self.connector.clone().call(uri).await {
                Ok(stream) => {
                    let stream = stream.into_inner();
                    let peer = stream.peer_addr().map_err(|error| format!("connect to {place}: {error}"))?;
                    return Ok((stream, peer.ip()));
                }
                Err(error) => last = format!("connect to {place}: {}", chain(&error)),
            }
        }
        Err(last)
    }
}

async fn resolve(host: &str) -> Vec<IpAddr> {
    match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).take(4 * limit::ADDRESSES).collect(),
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "looking up a relay");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn get(path: &str, host: &str) -> Result<Request<Empty<Bytes>>, String> {
    let request = Request::get(path).header(header::HOST, host).body(Empty::new());
    request.map_err(|error| format!("GET {path} of {host:?}: {error}"))
}

async fn open<S>(stream: S) -> Result<http1::SendRequest<Empty<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    // Ends with the request.
    tokio::spawn(connection);
    Ok(requests)
}

/// A relay answers the challenge; a portal redirects to its page, or says yes to everything.
fn is_relays_own(response: &Response<Incoming>, challenge: &str) -> bool {
    let answer = response.headers().get("x-tailscale-response").and_then(|value| value.to_str().ok());
    response.status() == StatusCode::NO_CONTENT && answer == Some(&format!("response {challenge}"))
}
