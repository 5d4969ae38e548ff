//! Everything that is dialled: from a place to a TCP connection.
//!
//! A name and a connection have deadlines of their own, because a name may take long for reasons that are no fault of the
//! place: a resolver goes on to the second name server after five seconds. Addresses that are known are used while a
//! name server is silent. Both families are tried side by side (RFC 8305), through the proxy that the environment names
//! where there is one, and packets carry the mark, so that they never go through the overlay that they help to make.

mod names;
mod proxy;
mod race;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use names::Names;
pub use names::{Found, LookUp, NAME_TIME, System};
use race::race;

/// How long the connection may take, once there are addresses: a lost packet is repeated after one, three and seven
/// seconds, and a second address begins a moment after the first.
pub const CONNECT_TIME: Duration = Duration::from_secs(8);
/// How long a proxy has for the tunnel, once it is connected: it looks the name up, and connects.
const TUNNEL_TIME: Duration = Duration::from_secs(15);
/// How long dialling may take as a whole.
pub const DIAL_TIME: Duration = NAME_TIME.saturating_add(CONNECT_TIME).saturating_add(TUNNEL_TIME);
/// Addresses of one place that are tried.
const ADDRESSES: usize = 16;

/// Where to.
#[derive(Clone, Debug)]
pub struct DialTarget {
    host: String,
    port: u16,
    secure: bool,
    /// Addresses that need no name.
    known: Vec<IpAddr>,
    /// Whether the name's addresses of a family may be used: IPv4, IPv6.
    named: [bool; 2],
}

impl DialTarget {
    /// A name, or an address in its place (an IPv6 one with or without brackets).
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let known: Vec<IpAddr> = host.parse().into_iter().collect();
        let named = [known.is_empty(); 2];
        Self { host, port, secure: true, known, named }
    }

    /// What is spoken there is plain HTTP: the environment may name another proxy for it.
    pub fn plain(mut self) -> Self {
        self.secure = false;
        self
    }

    /// The addresses of the place are these, and those of its name only in the families that say so (IPv4, IPv6).
    pub fn at(mut self, known: Vec<IpAddr>, named: [bool; 2]) -> Self {
        (self.known, self.named) = (known, named);
        self
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    fn uri(&self) -> Result<Uri, String> {
        let scheme = if self.secure { "https" } else { "http" };
        let place = self.authority();
        format!("{scheme}://{place}/").parse().map_err(|_| format!("{place}: not a place"))
    }
}

/// Dials. Clones share what is known of names.
#[derive(Clone)]
pub struct Dialler {
    mark: Option<u32>,
    connect_time: Duration,
    names: Names,
    proxies: Arc<Matcher>,
}

impl Dialler {
    /// One that marks its packets, where the kernel lets us, and uses the proxies that the environment names
    /// (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    pub fn new(mark: Option<u32>) -> Self {
        let mark = mark.filter(|mark| may_mark(*mark));
        Self { mark, connect_time: CONNECT_TIME, names: Names::default(), proxies: Arc::new(Matcher::from_env()) }
    }

    /// The same with these proxies.
    pub fn with_proxies(mut self, proxies: Matcher) -> Self {
        self.proxies = Arc::new(proxies);
        self
    }

    /// The same with another way to look names up.
    pub fn with_names(mut self, look_up: impl LookUp) -> Self {
        self.names = Names::new(look_up);
        self
    }

    /// The same with addresses of names that were found at an earlier time. They are used while nobody answers.
    pub fn remembering(self, known: BTreeMap<String, Vec<IpAddr>>) -> Self {
        self.names.remember(known);
        self
    }

    /// The same with names of its own: those that nobody answers for are not in the way of others.
    pub fn apart(&self) -> Self {
        Self { names: self.names.apart(), ..self.clone() }
    }

    /// One whose packets go where the host's own would, with the same names.
    pub fn unmarked(&self) -> Self {
        Self { mark: None, ..self.clone() }
    }

    /// The same with so much time for a connection.
    pub const fn within(mut self, connect_time: Duration) -> Self {
        self.connect_time = connect_time;
        self
    }

    /// The mark on our packets.
    pub const fn mark(&self) -> Option<u32> {
        self.mark
    }

    /// Whether a proxy of the environment is on the way.
    pub fn is_proxied(&self, place: &DialTarget) -> bool {
        place.uri().is_ok_and(|uri| proxy::towards(&self.proxies, &uri).is_some())
    }

    /// Connects to a place, or to a proxy that passes on to it.
    pub async fn dial(&self, place: &DialTarget) -> Result<TcpStream, String> {
        let uri = place.uri()?;
        let Some(proxy) = proxy::towards(&self.proxies, &uri) else { return self.dial_straight(place).await };
        let dialler = self.clone();
        let connector = tower::service_fn(move |to: Uri| {
            let dialler = dialler.clone();
            async move {
                let place = proxy::place(&to).map_err(io::Error::other)?;
                dialler.dial_straight(&place).await.map(TokioIo::new).map_err(io::Error::other)
            }
        });
        let tunnel = timeout(DIAL_TIME, proxy::tunnel(&proxy, uri, connector)).await;
        tunnel.map_err(|_| format!("the proxy does not answer within {} s", DIAL_TIME.as_secs()))?
    }

    /// The same, whatever the environment says of proxies.
    pub async fn dial_straight(&self, place: &DialTarget) -> Result<TcpStream, String> {
        let known = match place.known.is_empty() {
            true => Err(String::new()),
            false => self.connect(place, &place.known).await,
        };
        match known {
            Err(error) if place.named == [false, false] => {
                Err(if error.is_empty() { format!("{} has no address", place.host) } else { error })
            }
            // The name may lead elsewhere.
            Err(_) => self.dial_by_name(place).await,
            ok => ok,
        }
    }

    async fn dial_by_name(&self, place: &DialTarget) -> Result<TcpStream, String> {
        let found = self.names.look_up(&place.host).await?;
        let [v4, v6] = place.named;
        let found: Vec<IpAddr> = found.into_iter().filter(|found| if found.is_ipv4() { v4 } else { v6 }).collect();
        if found.is_empty() {
            return Err(format!("{} has no address that may be used", place.host));
        }
        let connected = self.connect(place, &found).await;
        match connected.as_ref().map(TcpStream::peer_addr) {
            Ok(Ok(peer)) => self.names.note_worked(&place.host, peer.ip()),
            _ => self.names.doubt(&place.host),
        }
        connected
    }

    /// The addresses of a name, best first.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.names.look_up(name).await
    }

    async fn connect(&self, place: &DialTarget, addresses: &[IpAddr]) -> Result<TcpStream, String> {
        let addresses = addresses.iter().map(|address| SocketAddr::new(*address, place.port));
        let raced = race(addresses.take(ADDRESSES), |address| self.connect_to(address));
        let late = |_| format!("{}: no answer within {} ms", place.authority(), self.connect_time.as_millis());
        timeout(self.connect_time, raced).await.map_err(late)?
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<TcpStream, String> {
        let connecting = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(mark) = self.mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            socket.set_nodelay(true)?;
            socket.connect(address).await
        };
        connecting.await.map_err(|error: io::Error| format!("connect to {address}: {error}"))
    }
}

/// Whether the kernel lets us mark our packets.
fn may_mark(mark: u32) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    match socket.and_then(|socket| socket.set_mark(mark)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "cannot mark our packets; with a default route through the overlay, \
                they would go into it");
            false
        }
    }
}

#[cfg(test)]
mod tests;
