//! What every program that listens needs: an open port, and connections whose end is noticed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that wait in the kernel for their turn.
const BACKLOG: i32 = 4096;
/// After this long without an answer to what we sent, the other end is gone. A subnet whose router lost its power is
/// without one until then, and a network that hiccups for less keeps its connections. (Official relays take 15 s.)
const UNANSWERED: Duration = Duration::from_secs(20);
/// How long nothing passes until the kernel asks whether the other end is there, and how often until it answers: ten
/// thousand silent nodes are a thousand packets a second, which no program sees.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// See [`ASK_AFTER`].
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Opens a TCP port. `[::]` serves both families, and falls back to IPv4 where the host has no IPv6.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Opens a UDP port, likewise.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(open(address, Type::DGRAM, Protocol::UDP)?.into())
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let open = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        // For UDP the same option would let two programs share a port.
        socket.set_reuse_address(kind == Type::STREAM)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open(address) {
        Err(error) if no_ipv6(&error) && address.is_ipv6() && address.ip().is_unspecified() => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        other => other,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|code| matches!(Errno::from_raw(code), Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

/// A connection is silent for most of its life: let the kernel find out that its other end is gone.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_end_is_asked_for_and_given_up_before_half_a_minute() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let (time, interval) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        let given_up = socket.tcp_user_timeout().unwrap().unwrap();
        assert!(time < given_up && given_up + interval < Duration::from_secs(30), "{time:?} {interval:?} {given_up:?}");
    }
}
