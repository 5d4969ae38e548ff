//! Where path probes arrive that the firewall diverts from WireGuard's port.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{bind_near, enlarge_buffers};

/// Room for the longest datagram, or for several of one sender that the kernel hands over in one piece.
const BUFFER: usize = 64 << 10;

/// A datagram that came to WireGuard's port and is none of WireGuard's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it, as the network says.
    pub from: SocketAddr,
    /// At which of our addresses it arrived.
    pub local: Option<IpAddr>,
    pub payload: Vec<u8>,
}

/// A socket of each family on one port. It only receives: answers go out by [`UdpSender`](super::UdpSender).
pub struct ProbeSocket {
    v4: Side,
    /// None where the host has no IPv6.
    v6: Option<Side>,
    port: u16,
    waiting: VecDeque<Datagram>,
}

impl ProbeSocket {
    /// Binds the port, or another where somebody has it. Call it within a Tokio runtime.
    pub fn bind(port: u16) -> io::Result<Self> {
        bind_near(port, |port| {
            let v4 = Side::bind((Ipv4Addr::UNSPECIFIED, port).into())?;
            let port = v4.socket.local_addr()?.port();
            let v6 = match Side::bind((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                other => other.inspect_err(|error| tracing::info!(%error, "no path probes over IPv6")).ok(),
            };
            Ok(Self { v4, v6, port, waiting: VecDeque::new() })
        })
    }

    /// The port it has.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The next datagram. Nothing is lost when this is dropped.
    pub async fn recv(&mut self) -> io::Result<Datagram> {
        loop {
            if let Some(datagram) = self.waiting.pop_front() {
                return Ok(datagram);
            }
            let Self { v4, v6, waiting, .. } = self;
            tokio::select! {
                ready = v4.socket.readable() => ready.and_then(|()| v4.read(waiting))?,
                ready = readable(v6.as_ref()) => {
                    ready?;
                    if let Some(v6) = v6 {
                        v6.read(waiting)?;
                    }
                }
            }
        }
    }
}

async fn readable(side: Option<&Side>) -> io::Result<()> {
    match side {
        Some(side) => side.socket.readable().await,
        None => std::future::pending().await,
    }
}

/// One family's socket.
struct Side {
    socket: UdpSocket,
    state: UdpSocketState,
    buffer: Vec<u8>,
}

impl Side {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        enlarge_buffers(&socket);
        socket.bind(&address.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, state, buffer: vec![0; BUFFER] })
    }

    /// Takes what the kernel has, if it has something.
    fn read(&mut self, waiting: &mut VecDeque<Datagram>) -> io::Result<()> {
        let Self { socket, state, buffer } = self;
        let mut meta = [RecvMeta::default()];
        let received = socket
            .try_io(Interest::READABLE, || state.recv((&*socket).into(), &mut [IoSliceMut::new(buffer)], &mut meta));
        match received {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let [RecvMeta { addr, len, stride, dst_ip, .. }] = meta;
        for payload in buffer[..len.min(BUFFER)].chunks(stride.max(1)) {
            waiting.push_back(Datagram { from: addr, local: dst_ip, payload: payload.to_vec() });
        }
        Ok(())
    }
}
