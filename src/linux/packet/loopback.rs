//! The socket between WireGuard and the relay: every relayed peer is a loopback address of its own on it.

use std::array;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::header::MAX_PAYLOAD;
use super::{bind_near, enlarge_buffers};
use warren_shell::{keep_for_next, kept_by_last};

/// Room for one datagram of any length. Pages that no packet reaches are never touched.
const SLOT: usize = 64 << 10;
/// Packets that the kernel takes in one piece, as `UDP_MAX_SEGMENTS` of `udp.h` has it.
const SEGMENTS: usize = 64;
/// What the service manager knows the socket by.
const KEPT: &str = "relay-queue";

/// The socket, bound, and not yet listened to.
pub struct LoopbackSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    /// What the kernel had dropped before this process had it.
    dropped_before: u64,
}

impl LoopbackSocket {
    /// The one that the last agent left with the service manager, or else a new one. What WireGuard sends while no agent
    /// runs waits in it. It is left to the next agent.
    pub fn open(port: u16) -> io::Result<Self> {
        let left = kept().map(Self::adopt).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the relay socket of the last agent is not taken over");
            None
        });
        if let Some(left) = left {
            return Ok(left);
        }
        let socket = Self::bind(port)?;
        keep_for_next(KEPT, socket.socket.as_fd());
        Ok(socket)
    }

    /// Takes over a socket with all that waits in it, if it is one that [`Self::bind`] makes in this network namespace.
    pub fn adopt(left: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(left);
        let other = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if socket.domain()? != Domain::IPV4 || socket.protocol()? != Some(Protocol::UDP) {
            return other("it is no socket for UDP over IPv4");
        }
        let address = socket.local_addr()?.as_socket_ipv4();
        let Some(address) = address.filter(|address| address.ip().is_unspecified() && address.port() != 0) else {
            return other("it is not bound to a port");
        };
        if socket.device()?.as_deref() != Some(b"lo") {
            return other("it is not bound to the loopback");
        }
        let probe = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        probe.bind_device(Some(b"lo"))?;
        if probe.bind(&address.into()).is_ok() {
            return other("it belongs to another network namespace");
        }
        Self::new(socket)
    }

    /// Binds the port on the loopback alone, or another where somebody has it.
    pub fn bind(port: u16) -> io::Result<Self> {
        bind_near(port, |port| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind_device(Some(b"lo"))?;
            enlarge_buffers(&socket);
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            Self::new(socket)
        })
    }

    fn new(socket: Socket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from(socket);
        let port = socket.local_addr()?.port();
        let dropped_before = kernel_drops(&socket).unwrap_or_default();
        Ok(Self { socket, state, port, dropped_before })
    }

    /// The port it has.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Begins to listen for WireGuard, whose port is `wireguard_port`. Call it within the Tokio runtime that will
    /// receive.
    pub fn listen(self, wireguard_port: u16) -> io::Result<Loopback> {
        let Self { socket, state, port: _, dropped_before } = self;
        let wireguard = (Ipv4Addr::LOCALHOST, wireguard_port).into();
        Ok(Loopback { socket: tokio::net::UdpSocket::from_std(socket)?, state, wireguard, dropped_before })
    }
}

/// The socket at work.
pub struct Loopback {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    wireguard: SocketAddr,
    dropped_before: u64,
}

impl Loopback {
    /// Waits for packets and takes as many as are there and fit. Nothing is lost when this is dropped.
    pub async fn recv(&self, batch: &mut Batch) -> io::Result<()> {
        batch.count = 0;
        batch.count = self
            .socket
            .async_io(Interest::READABLE, || {
                let mut slots = batch.bytes.chunks_mut(SLOT);
                let mut slots: [IoSliceMut<'_>; BATCH_SIZE] =
                    array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
                self.state.recv((&self.socket).into(), &mut slots, &mut batch.metas)
            })
            .await?;
        Ok(())
    }

    /// The packets of a batch that WireGuard sent, each with the loopback address it was sent to. Others on this
    /// host may send here as well: nobody but WireGuard has its port.
    pub fn packets<'a>(&self, batch: &'a Batch) -> impl Iterator<Item = (Ipv4Addr, &'a [u8])> {
        let wireguard_port = self.wireguard.port();
        let slots = batch.bytes.chunks(SLOT).zip(&batch.metas).take(batch.count);
        let ours = slots.filter_map(move |(slot, meta)| match (meta.addr, meta.dst_ip) {
            (SocketAddr::V4(from), Some(IpAddr::V4(to))) if from.port() == wireguard_port => Some((to, slot, meta)),
            _ => None,
        });
        ours.flat_map(|(to, slot, meta)| {
            slot[..meta.len.min(SLOT)].chunks(meta.stride.max(1)).map(move |packet| (to, packet))
        })
    }

    /// Hands packets to WireGuard as from this loopback address: one, or several of `size` bytes of which the last
    /// may be shorter. At most [`Loopback::most`] bytes fit. Never waits: what does not fit is an error, and lost.
    pub fn send(&self, from: Ipv4Addr, packets: &[u8], size: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.wireguard,
            ecn: None,
            contents: packets,
            segment_size: Some(size),
            src_ip: Some(from.into()),
        };
        self.socket.try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// How many bytes of packets of this size go in one piece.
    pub fn most(&self, size: usize) -> usize {
        let segments = self.state.max_gso_segments().min(SEGMENTS).min(MAX_PAYLOAD / size.max(1));
        size * segments.max(1)
    }

    /// Packets from WireGuard that the kernel dropped since this process has the socket, because nobody took them in time.
    pub fn dropped(&self) -> u64 {
        kernel_drops(&self.socket).unwrap_or_default().saturating_sub(self.dropped_before)
    }
}

/// Room for packets from WireGuard, used again and again.
pub struct Batch {
    bytes: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
    count: usize,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self { bytes: vec![0; BATCH_SIZE * SLOT], metas: [RecvMeta::default(); BATCH_SIZE], count: 0 }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// What the last agent left, once.
#[allow(unsafe_code, reason = "a descriptor comes from the service manager as a number")]
fn kept() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let descriptor = kept_by_last(KEPT)?;
    // SAFETY: the service manager opened it for this process, and nobody but the first caller of this takes it.
    (!TAKEN.swap(true, Ordering::SeqCst)).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `SK_MEMINFO_DROPS` of what `SO_MEMINFO` tells (`sock_diag.h`).
#[allow(unsafe_code, reason = "no library has this socket option")]
fn kernel_drops(socket: &impl AsFd) -> Option<u64> {
    const FIELDS: usize = 9;
    const DROPS: usize = 8;
    let mut info = [0_u32; FIELDS];
    let mut length = u32::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the descriptor is open while it is borrowed, and `info` has `length` bytes, which is all that the
    // kernel writes.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (outcome == 0 && length as usize == size_of_val(&info)).then(|| u64::from(info[DROPS]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 41_799;

    #[tokio::test]
    async fn what_wireguard_sent_while_nobody_listened_is_there_for_the_next() {
        let wireguard = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wireguard_port = wireguard.local_addr().unwrap().port();
        let last = LoopbackSocket::bind(PORT).unwrap();
        let (port, left) = (last.port(), OwnedFd::from(last.socket.try_clone().unwrap()));
        drop(last.listen(wireguard_port).unwrap());
        wireguard.send_to(b"meanwhile", ("127.128.0.2", port)).unwrap();

        let next = LoopbackSocket::adopt(left).unwrap();

        assert_eq!(next.port(), port);
        let next = next.listen(wireguard_port).unwrap();
        let mut batch = Batch::new();
        next.recv(&mut batch).await.unwrap();
        let packets: Vec<_> = next.packets(&batch).collect();
        assert_eq!(packets, [(Ipv4Addr::new(127, 128, 0, 2), &b"meanwhile"[..])]);
        assert_eq!(next.dropped(), 0);
    }

    #[test]
    fn what_is_left_and_is_not_such_a_socket_is_refused() {
        let elsewhere = UdpSocket::bind("0.0.0.0:0").unwrap();
        let six = UdpSocket::bind("[::1]:0").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = tempfile::tempfile().unwrap();
        let unbound = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        unbound.bind_device(Some(b"lo")).unwrap();
        let others: [OwnedFd; 5] = [elsewhere.into(), six.into(), listener.into(), file.into(), unbound.into()];
        for other in others {
            assert!(LoopbackSocket::adopt(other).is_err());
        }
    }
}
