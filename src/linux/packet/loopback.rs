//! The socket between WireGuard and the relay: every relayed peer is a loopback address of its own on it.

use std::array;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::header::MAX_PAYLOAD;
use super::{bind_near, enlarge_buffers};

/// Room for one datagram of any length. Pages that no packet reaches are never touched.
const SLOT: usize = 64 << 10;
/// Packets that the kernel takes in one piece, as `UDP_MAX_SEGMENTS` of `udp.h` has it.
const SEGMENTS: usize = 64;

/// The socket, bound, and not yet listened to.
pub struct LoopbackSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
}

impl LoopbackSocket {
    /// Binds the port on the loopback alone, or another where somebody has it.
    pub fn bind(port: u16) -> io::Result<Self> {
        bind_near(port, |port| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind_device(Some(b"lo"))?;
            enlarge_buffers(&socket);
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            let state = UdpSocketState::new((&socket).into())?;
            let socket = UdpSocket::from(socket);
            let port = socket.local_addr()?.port();
            Ok(Self { socket, state, port })
        })
    }

    /// The port it has.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Begins to listen for WireGuard, whose port is `wireguard_port`. Call it within the Tokio runtime that will
    /// receive.
    pub fn listen(self, wireguard_port: u16) -> io::Result<Loopback> {
        let wireguard = (Ipv4Addr::LOCALHOST, wireguard_port).into();
        Ok(Loopback { socket: tokio::net::UdpSocket::from_std(self.socket)?, state: self.state, wireguard })
    }
}

/// The socket at work.
pub struct Loopback {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    wireguard: SocketAddr,
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

    /// Packets from WireGuard that the kernel dropped since the socket was bound, because nobody took them in time.
    pub fn dropped(&self) -> u64 {
        kernel_drops(&self.socket).unwrap_or_default()
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
