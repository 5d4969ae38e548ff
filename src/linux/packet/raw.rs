//! Packets whose headers we write ourselves.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::enlarge_buffers;
use super::header::{self, MAX_PAYLOAD};

/// `IPPROTO_RAW` of `in.h`: the packet brings its IP header along. Such a socket never receives.
const IPPROTO_RAW: i32 = 255;
/// The packet is longer than the link carries.
const EMSGSIZE: i32 = nix::errno::Errno::EMSGSIZE as i32;
/// Source addresses that are remembered; candidates of peers that are active, twice over.
const SOURCES: usize = 4096;

/// Sends UDP from WireGuard's own port, which the kernel's socket has.
pub struct UdpSender {
    raw: Raw,
    sources: Sources,
    port: u16,
}

impl UdpSender {
    /// Opens the sockets. `port` is WireGuard's, `mark` goes on every packet so that none enters the overlay.
    pub fn open(port: u16, mark: Option<u32>) -> io::Result<Self> {
        Ok(Self { raw: Raw::open(mark)?, sources: Sources::new(mark), port })
    }

    /// Sends a datagram, from this address of ours (an answer goes from where the question arrived) or else from the
    /// one that the kernel's routing picks. Never waits: what does not fit is an error, and lost.
    pub fn send(&mut self, to: SocketAddr, from: Option<IpAddr>, payload: &[u8]) -> io::Result<()> {
        let from = match from {
            Some(from) => from.to_canonical(),
            None => self.source_for(to)?,
        };
        self.raw.send(SocketAddr::new(from, self.port), canonical(to), payload)
    }

    /// Which address of ours packets to `to` come from.
    pub fn source_for(&mut self, to: SocketAddr) -> io::Result<IpAddr> {
        self.sources.of(canonical(to))
    }

    /// Addresses or routes changed: what was picked may be no longer right.
    pub fn handle_network_changed(&mut self) {
        self.sources.known.clear();
    }
}

/// Hands WireGuard packets that look as if they came from a peer's direct endpoint.
pub struct Injector {
    raw: Raw,
    sources: Sources,
    port: u16,
}

impl Injector {
    /// Opens the sockets. `port` is WireGuard's.
    pub fn open(port: u16, mark: Option<u32>) -> io::Result<Self> {
        Ok(Self { raw: Raw::open(mark)?, sources: Sources::new(mark), port })
    }

    /// Gives WireGuard a packet as if `endpoint` had sent it to `local`, the address of ours that the direct path
    /// uses. WireGuard answers from there, so over IPv6 it must be the right one; where it is not known, it is the
    /// one that routing picks. Over IPv4 the kernel checks and forgets a wrong one.
    pub fn inject(&mut self, endpoint: SocketAddr, local: Option<IpAddr>, packet: &[u8]) -> io::Result<()> {
        let endpoint = canonical(endpoint);
        let local = match (local.map(|local| local.to_canonical()), endpoint) {
            (Some(local), _) if local.is_ipv4() == endpoint.is_ipv4() => local,
            (_, SocketAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (_, SocketAddr::V6(_)) => self.sources.of(endpoint)?,
        };
        self.raw.send(endpoint, SocketAddr::new(local, self.port), packet)
    }

    /// Addresses or routes changed.
    pub fn handle_network_changed(&mut self) {
        self.sources.known.clear();
    }
}

/// A socket of each family, and the packet that is written.
struct Raw {
    v4: Socket,
    /// None where the host has no IPv6.
    v6: Option<Socket>,
    buffer: Vec<u8>,
    /// Counts the packets that were cut in two.
    cut: u32,
}

impl Raw {
    fn open(mark: Option<u32>) -> io::Result<Self> {
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
            socket.set_nonblocking(true)?;
            if let Some(mark) = mark {
                socket.set_mark(mark)?;
            }
            enlarge_buffers(&socket);
            io::Result::Ok(socket)
        };
        let v6 = open(Domain::IPV6).inspect_err(|error| tracing::info!(%error, "no packets of ours over IPv6"));
        Ok(Self { v4: open(Domain::IPV4)?, v6: v6.ok(), buffer: Vec::new(), cut: 0 })
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        if !header::write(&mut self.buffer, from, to, payload) {
            let reason = format!("from {from} to {to}, {} bytes of at most {MAX_PAYLOAD}", payload.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let socket = match to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?,
        };
        // Raw sockets know no ports: over IPv6 one other than zero is refused.
        let mut address = to;
        address.set_port(0);
        let address = SockAddr::from(address);
        match socket.send_to(&self.buffer, &address) {
            // The kernel cuts packets of a socket like this one nowhere. WireGuard's it does, and ours go their way.
            Err(error) if error.raw_os_error() == Some(EMSGSIZE) => {
                self.cut = self.cut.wrapping_add(2);
                for part in header::fragments(&self.buffer, self.cut).ok_or(error)? {
                    socket.send_to(&part, &address)?;
                }
                Ok(())
            }
            sent => sent.map(drop),
        }
    }
}

/// Which of our addresses packets to another come from, as routing says of marked packets.
struct Sources {
    mark: Option<u32>,
    known: BTreeMap<IpAddr, IpAddr>,
}

impl Sources {
    const fn new(mark: Option<u32>) -> Self {
        Self { mark, known: BTreeMap::new() }
    }

    fn of(&mut self, to: SocketAddr) -> io::Result<IpAddr> {
        if let Some(source) = self.known.get(&to.ip()) {
            return Ok(*source);
        }
        let source = self.ask(to)?;
        if self.known.len() >= SOURCES {
            self.known.clear();
        }
        self.known.insert(to.ip(), source);
        Ok(source)
    }

    /// Connecting a UDP socket sends nothing; it looks the route up.
    fn ask(&self, to: SocketAddr) -> io::Result<IpAddr> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        let socket = UdpSocket::from(socket);
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    }
}

/// An IPv4 address in IPv6 clothes is an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        // With its scope, which a link-local address needs.
        IpAddr::V6(_) => address,
    }
}
