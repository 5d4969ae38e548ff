//! Carries out what [`Netcheck`](warren_core::netcheck::Netcheck) asks for beside STUN: names, HTTPS, captive portals,
//! the gateway.
//!
//! A pipe, not a judge: each thing is tried once, within its time, and what comes of it is told. All connections carry
//! the mark, so that they never go through the overlay.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::clock;
use super::portmap_io;
use super::relay_tls::RelayTls;
use warren_core::netcheck::{Action, Gateway, HttpsTarget, Input, limit};
use warren_core::types::RegionId;
use warren_linux::DefaultRoute;
use warren_shell::{DialTarget, Dialler, chain, vital};

/// Actions that wait: the names of a whole map, and what is asked over HTTPS.
const ACTIONS: usize = limit::REGIONS * limit::NODES + 2 * limit::HTTPS;
/// Inputs that wait for the loop.
const NEWS: usize = 64;
/// Actions under way at a time.
const AT_ONCE: usize = 32;
/// How long one address may take to be connected; a relay that takes longer is no home.
const CONNECT_TIME: Duration = Duration::from_millis(1_500);
/// How long an HTTPS measurement may take as a whole.
const HTTPS_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the look for a captive portal may take.
const CAPTIVE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// How long to wait before asking again for the gateway where that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the task; it ends when the sender is dropped. HTTPS goes as the connections to relays do.
/// `gateways` tells the default gateway whenever it changes.
pub fn spawn(
    dialler: Dialler,
    mut gateways: mpsc::Receiver<Option<Gateway>>,
) -> (mpsc::Sender<Action>, mpsc::Receiver<Input>) {
    let (actions_in, mut actions) = mpsc::channel(ACTIONS);
    let (out, news) = mpsc::channel(NEWS);
    let (to_gateway, mut from_gateway) = portmap_io::spawn(dialler.clone());
    let io = NetcheckIo { dialler: dialler.within(CONNECT_TIME), tls: RelayTls::default() };
    tokio::spawn(vital("look at the network", async move {
        let mut tasks = JoinSet::new();
        let mut watching = true;
        let os_has_ipv6 = tokio::net::UdpSocket::bind("[::1]:0").await.is_ok();
        if out.send(Input::OsHasIpv6(os_has_ipv6)).await.is_err() {
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
                Some(news) = from_gateway.recv() => Input::Map(news),
                gateway = gateways.recv(), if watching => match gateway {
                    Some(gateway) => Input::Gateway(gateway),
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
    dialler: Dialler,
    tls: RelayTls,
}

impl NetcheckIo {
    fn start(&self, action: Action, tasks: &mut JoinSet<Input>) {
        let io = self.clone();
        match action {
            Action::Resolve { host } => {
                tasks.spawn(async move { Input::Resolved { addresses: io.resolve(&host).await, host } });
            }
            Action::MeasureHttps(target) => {
                tasks.spawn(async move {
                    let region: RegionId = target.region;
                    let measured = timeout(HTTPS_TIMEOUT, io.measure(&target)).await;
                    let late = |_| Err(format!("no answer in {} s", HTTPS_TIMEOUT.as_secs()));
                    Input::Https { region, outcome: measured.unwrap_or_else(late) }
                });
            }
            Action::CheckCaptive { host, addresses, port, challenge } => {
                tasks.spawn(async move {
                    let checked = timeout(CAPTIVE_TIMEOUT, io.is_captive(&host, &addresses, port, &challenge)).await;
                    Input::Captive(checked.ok().and_then(Result::ok))
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
        let place = place(&target.host, &target.addresses, target.port);
        let stream = self.dialler.dial(&place).await?;
        let peer = stream.peer_addr().map_err(|error| format!("connect to {}: {error}", place.authority()))?.ip();
        let proxied = target.addresses.first().filter(|_| self.dialler.is_proxied(&place));
        Ok((stream, proxied.copied().unwrap_or(peer)))
    }

    /// Whether what answers in a relay's name is not the relay. Errors say that nothing answered.
    async fn is_captive(&self, host: &str, addresses: &[IpAddr], port: u16, challenge: &str) -> Result<bool, String> {
        // A portal answers on the way, so no proxy is asked.
        let tcp = self.dialler.dial_straight(&place(host, addresses, port).plain()).await?;
        let mut request = get("/generate_204", host)?;
        let value = challenge.parse().map_err(|_| "not a header value".to_owned())?;
        request.headers_mut().insert("x-tailscale-challenge", value);
        let mut requests = open(tcp).await?;
        let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
        Ok(!is_relays_own(&response, challenge))
    }

    async fn resolve(&self, host: &str) -> Vec<IpAddr> {
        let found = self.dialler.look_up(host).await.inspect_err(|error| tracing::debug!(error, "a relay's name"));
        found.unwrap_or_default()
    }
}

/// A host whose addresses were looked up already, unless there are none.
fn place(host: &str, addresses: &[IpAddr], port: u16) -> DialTarget {
    let place = DialTarget::new(host, port);
    if addresses.is_empty() { place } else { place.at(addresses.to_vec(), [false; 2]) }
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
