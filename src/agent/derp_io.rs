//! Connections to relays: which machine of a region, by which address, through which proxy, up to where the relay
//! protocol begins.
//!
//! A pipe, not a judge: it tries the nodes of a region once, in the map's order, and says why none would do. Packets
//! carry the mark, so that they never go through the overlay that they help to make.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::relay_tls::RelayTls;
use warren_core::wire::control::{DerpNode, DerpRegion};
use warren_shell::{DialTarget, chain};

/// How long one node of a region has for a TCP connection, before the next is tried: one packet may be lost. Its name
/// has time of its own.
const NODE_TIME: Duration = Duration::from_secs(3);
/// How long TLS and the upgrade may take then.
const UPGRADE_TIME: Duration = Duration::from_secs(8);
/// Nodes of a region that are tried.
const NODES: usize = 4;
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
    dialler: warren_shell::Dialler,
    tls: RelayTls,
}

impl Dialler {
    /// One that uses the proxies that the environment names (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    pub fn new(dialler: &warren_shell::Dialler) -> Self {
        Self { dialler: dialler.apart().within(NODE_TIME), tls: RelayTls::default() }
    }

    /// The same with these proxies.
    pub fn with_proxies(mut self, proxies: Matcher) -> Self {
        self.dialler = self.dialler.with_proxies(proxies);
        self
    }

    /// Connects to the first node of a region that answers. The error says what became of each.
    pub async fn connect(&self, region: &DerpRegion) -> Result<Connection, String> {
        let mut errors = Vec::new();
        let nodes = region.nodes.iter().filter(|node| !node.stun_only).take(NODES);
        for (place, node) in nodes.enumerate() {
            let ideal = region.nodes.first().filter(|_| place > 0);
            match self.connect_node(node, ideal).await {
                Ok(connection) => return Ok(connection),
                Err(error) => errors.push(format!("relay {} ({}): {error}", node.name, node.host_name)),
            }
        }
        Err(if errors.is_empty() { "the region has no relay".to_owned() } else { errors.join("; ") })
    }

    async fn connect_node(&self, node: &DerpNode, ideal: Option<&DerpNode>) -> Result<Connection, String> {
        let tcp = self.dial(node).await?;
        let local = tcp.local_addr().ok().map(|address| address.ip().to_canonical());
        let late = |_| format!("TLS and upgrade not done within {} s", UPGRADE_TIME.as_secs());
        let (stream, begun) = timeout(UPGRADE_TIME, self.begin(tcp, node, ideal)).await.map_err(late)??;
        Ok(Connection { stream, begun, node: node.clone(), local })
    }

    async fn begin(
        &self,
        tcp: TcpStream,
        node: &DerpNode,
        ideal: Option<&DerpNode>,
    ) -> Result<(Box<dyn Stream>, Bytes), String> {
        let name = ServerName::try_from(node.host_name.clone()).map_err(|error| error.to_string())?;
        let connector = self.tls.connector(&node.cert_name, node.insecure_for_tests)?;
        let stream: Box<dyn Stream> = match connector.connect(name, tcp).await {
            Ok(stream) => Box::new(stream),
            // A relay that a map calls insecure may speak no TLS at all.
            Err(error) if node.insecure_for_tests && is_no_tls(&error) => Box::new(self.dial(node).await?),
            Err(error) => return Err(format!("TLS: {}", chain(&error))),
        };
        upgrade(stream, node, ideal).await
    }

    /// A TCP connection to a node, or to a proxy that passes on to it.
    async fn dial(&self, node: &DerpNode) -> Result<TcpStream, String> {
        let tcp = self.dialler.dial(&place(node)?).await?;
        let socket = SockRef::from(&tcp);
        // Each only makes a difference to how soon something is noticed.
        let _ = socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
        Ok(tcp)
    }
}

/// The addresses that the map gives, and where it gives none of a family those of the name.
fn place(node: &DerpNode) -> Result<DialTarget, String> {
    let mut place = DialTarget::new(&node.host_name, port(node)?);
    let (mut known, mut named) = (Vec::new(), [false; 2]);
    for (told, named) in [&node.ipv4, &node.ipv6].into_iter().zip(&mut named) {
        match told.as_str() {
            NO_ADDRESS => {}
            "" => *named = true,
            told => known.push(told.parse().map_err(|_| format!("{told:?} is not an address"))?),
        }
    }
    // A name that is an address needs no look-up.
    let own: Option<IpAddr> = node.host_name.parse().ok();
    known.extend(own.filter(|own| named[usize::from(own.is_ipv6())]));
    let named = if own.is_some() { [false; 2] } else { named };
    place = place.at(known, named);
    Ok(place)
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
pub(crate) async fn upgrade(
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
