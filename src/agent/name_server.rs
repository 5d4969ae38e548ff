//! Questions to one name server, each from a socket of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(4);
/// The largest datagram that is heard.
pub(super) const DATAGRAM: usize = 4096;

/// Sends a question in a datagram. What comes back comes by this socket; anybody may send something.
pub(super) async fn send(server: SocketAddr, mark: Option<u32>, question: &[u8]) -> io::Result<UdpSocket> {
    let from: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((from, 0)).await?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(server).await?;
    socket.send(question).await?;
    Ok(socket)
}

/// Asks over a connection, and gives the answer.
pub(super) async fn ask_by_stream(server: SocketAddr, mark: Option<u32>, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    let mut stream = timeout(CONNECT, socket.connect(server)).await??;
    let question = framed(question).ok_or(io::ErrorKind::InvalidInput)?;
    stream.write_all(&question).await?;
    read_message(&mut stream, usize::from(u16::MAX)).await.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Reads a message behind its length (RFC 1035 §4.2.2).
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin), most: usize) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > most {
        return None;
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// The same of a message that is sent.
pub(super) fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes(), message].concat())
}
