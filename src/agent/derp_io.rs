//! Connections to relays: which machine of a region, by which address, through which proxy, up to where the relay
//! protocol begins.
//!
//! A pipe, not a judge: it tries the nodes of a region once, in the map's order, and says why none would do. Packets
//! carry the mark, so that they never go through the overlay that they help to make.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tower::Service;

use super::control_io::chain;
use super::control_io::connect::may_mark;
use super::proxy;
use super::relay_tls::RelayTls;
use crate::wire::control::{DerpNode, DerpRegion};

/// How long one node of a region has for its name and a TCP connection, before the next is tried.
const NODE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long all of them have, TLS and the upgrade included.
const REGION_TIMEOUT: Duration = Duration::from_secs(10);
/// The head start that the address family tried first has over the other.
const HEAD_START: Duration = Duration::from_millis(100);
/// A peer that acknowledges nothing for this long is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that the kernel takes ahead of what the line carries. Little: what waits there cannot make room for newer
/// packets, what waits with us can.
const UNSENT_BYTES: u32 = 128 << 10;
const HTTPS_PORT: u16 = 443;
/// A map's way of saying that a node has no address of this family.
const NO_ADDRESS: &str = "none";
/// The first node of a region is the one that should serve us; another is told so.
const IDEAL_NODE: &str = "ideal-node";

/// A byte stream, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to a relay, whose HTTP upgrade is done.
pub struct Connection {
    /// The two directions.
    pub stream: Box<dyn Stream>,
    /// What came with the answer already.
    pub begun: Bytes,
    /// Which node of the region it is.
    pub node: DerpNode,
    /// The address of ours that it comes from.
    pub local: Option<IpAddr>,
}

/// Makes connections.
pub struct Dialler {
    mark: Option<u32>,
    tls: RelayTls,
    proxies: Matcher,
}

impl Dialler {
    /// One that uses the proxies that the environment names (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    pub fn new(mark: Option<u32>) -> Self {
        Self { mark: mark.filter(|mark| may_mark(*mark)), tls: RelayTls::default(), proxies: Matcher::from_env() }
    }

    /// The same with these proxies.
    pub fn with_proxies(mut self, proxies: Matcher) -> Self {
        self.proxies = proxies;
        self
    }

    /// Connects to the first node of a region that answers. The error says what became of each.
    pub async fn connect(&self, region: &DerpRegion) -> Result<Connection, String> {
        let mut errors = Vec::new();
        let tried = timeout(REGION_TIMEOUT, async {
            for (place, node) in region.nodes.iter().filter(|node| !node.stun_only).enumerate() {
                let ideal = region.nodes.first().filter(|_| place > 0);
                match self.connect_node(node, ideal).await {
                    Ok(connection) => return Some(connection),
                    Err(error) => errors.push(format!("relay {} ({}): {error}", node.name, node.host_name)),
                }
            }
            None
        });
        match tried.await {
            Ok(Some(connection)) => return Ok(connection),
            Ok(None) if errors.is_empty() => errors.push("the region has no relay".to_owned()),
            Ok(None) => {}
            Err(_) => errors.push(format!("no relay of the region answered within {} s", REGION_TIMEOUT.as_secs())),
        }
        Err(errors.join("; "))
    }

    async fn connect_node(&self, node: &DerpNode, ideal: Option<&DerpNode>) -> Result<Connection, String> {
        let tcp = self.dial(node).await?;
        let local = tcp.local_addr().ok().map(|address| address.ip().to_canonical());
        let name = ServerName::try_from(node.host_name.clone()).map_err(|error| error.to_string())?;
        let connector = self.tls.connector(&node.cert_name, node.insecure_for_tests)?;
        let stream: Box<dyn Stream> = match connector.connect(name, tcp).await {
            Ok(stream) => Box::new(stream),
            // A relay that a map calls insecure may speak no TLS at all.
            Err(error) if node.insecure_for_tests && is_no_tls(&error) => Box::new(self.dial(node).await?),
            Err(error) => return Err(format!("TLS: {}", chain(&error))),
        };
        let (stream, begun) = upgrade(stream, node, ideal).await?;
        Ok(Connection { stream, begun, node: node.clone(), local })
    }

    /// A TCP connection to a node, or to a proxy that passes on to it.
    async fn dial(&self, node: &DerpNode) -> Result<TcpStream, String> {
        let place = authority(node, port(node)?);
        let uri: Uri = format!("https://{place}/").parse().map_err(|_| format!("{place}: not a place"))?;
        let dialling = async {
            match proxy::towards(&self.proxies, &uri) {
                Some(proxy) => {
                    let mut connector = HttpConnector::new();
                    self.tune(&mut connector);
                    proxy::tunnel(&proxy, uri, connector).await
                }
                None => self.dial_straight(node, uri).await,
            }
        };
        let tcp = timeout(NODE_TIMEOUT, dialling)
            .await
            .map_err(|_| format!("{place}: no answer within {} ms", NODE_TIMEOUT.as_millis()))??;
        let socket = SockRef::from(&tcp);
        // Each only makes a difference to how soon something is noticed.
        let _ = socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
        Ok(tcp)
    }

    async fn dial_straight(&self, node: &DerpNode, uri: Uri) -> Result<TcpStream, String> {
        let addresses = addresses(node).await?;
        let resolver = tower::service_fn(move |_: Name| {
            let addresses: Vec<_> = addresses.iter().map(|address| (*address, 0).into()).collect();
            std::future::ready(Ok::<_, Infallible>(addresses.into_iter()))
        });
        let mut connector = HttpConnector::new_with_resolver(resolver);
        self.tune(&mut connector);
        // The map says which addresses a name has, also where the name is an address.
        let port = uri.port_u16().unwrap_or(HTTPS_PORT);
        let uri: Uri = format!("https://relay:{port}/").parse().map_err(|_| format!("{uri}: not a place"))?;
        Ok(connector.call(uri).await.map_err(|error| chain(&error))?.into_inner())
    }

    fn tune<R>(&self, connector: &mut HttpConnector<R>) {
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(NODE_TIMEOUT));
        connector.set_happy_eyeballs_timeout(Some(HEAD_START));
        connector.set_mark(self.mark);
    }
}

/// The addresses that the map gives, and where it gives none of a family those of the name.
async fn addresses(node: &DerpNode) -> Result<Vec<IpAddr>, String> {
    let mut addresses = Vec::new();
    let mut wanted = [false; 2];
    for (told, wanted) in [&node.ipv4, &node.ipv6].into_iter().zip(&mut wanted) {
        match told.as_str() {
            NO_ADDRESS => {}
            "" => *wanted = true,
            told => addresses.push(told.parse().map_err(|_| format!("{told:?} is not an address"))?),
        }
    }
    let [v4, v6] = wanted;
    if v4 || v6 {
        match lookup_host((node.host_name.as_str(), 0)).await {
            Ok(found) => {
                let wanted = |address: &IpAddr| if address.is_ipv4() { v4 } else { v6 };
                addresses.extend(found.map(|found| found.ip()).filter(wanted));
            }
            Err(error) if addresses.is_empty() => return Err(format!("look up {:?}: {error}", node.host_name)),
            Err(error) => tracing::debug!(name = node.host_name, %error, "only the map's addresses are used"),
        }
    }
    if addresses.is_empty() { Err(format!("{:?} has no address", node.host_name)) } else { Ok(addresses) }
}

fn port(node: &DerpNode) -> Result<u16, String> {
    match node.derp_port {
        0 => Ok(HTTPS_PORT),
        port => u16::try_from(port).map_err(|_| format!("{port} is not a port")),
    }
}

fn authority(node: &DerpNode, port: u16) -> String {
    match node.host_name.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{}:{port}", node.host_name),
    }
}

/// Asks for the relay protocol in place of HTTP.
async fn upgrade(
    stream: Box<dyn Stream>,
    node: &DerpNode,
    ideal: Option<&DerpNode>,
) -> Result<(Box<dyn Stream>, Bytes), String> {
    let mut request = Request::get("/derp")
        .header(header::HOST, authority(node, port(node)?))
        .header(header::UPGRADE, "DERP")
        .header(header::CONNECTION, "Upgrade");
    if let Some(ideal) = ideal {
        request = request.header(IDEAL_NODE, &ideal.name);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    // Ends with the answer, and lets go of the stream.
    tokio::spawn(connection.with_upgrades());
    let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("GET /derp: answered {}, which no relay does", response.status()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| chain(&error))?;
    // Without HTTP in between: from here on every packet passes.
    match upgraded.downcast::<TokioIo<Box<dyn Stream>>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(upgraded) => Ok((Box::new(TokioIo::new(upgraded)), Bytes::new())),
    }
}

/// Whether the other end answered TLS with something else.
fn is_no_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}
