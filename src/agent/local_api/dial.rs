//! Connections that the agent makes for a client: `dial`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;
use http::header::{CONNECTION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::places::Place;
use warren_core::node::{Refusal, Request};

/// What the connection becomes.
pub(super) const PROTOCOL: &str = "ts-dial";
/// How long a peer may take: its first packet may have to find the way to it.
const CONNECT: Duration = Duration::from_secs(15);

/// Whom a client wants to be connected to.
pub(super) fn wanted(headers: &HeaderMap) -> Result<Request, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let upgrades = text(CONNECTION.as_str()).eq_ignore_ascii_case("upgrade");
    if !upgrades || !text(UPGRADE.as_str()).eq_ignore_ascii_case(PROTOCOL) {
        return Err(Refusal::new(400, format!("this connection has to be upgraded to {PROTOCOL}")));
    }
    if !matches!(text("dial-network"), "" | "tcp") {
        return Err(Refusal::new(501, "only TCP is dialled; the kernel lets every program send UDP by itself"));
    }
    let (host, port) = (text("dial-host"), text("dial-port"));
    if host.is_empty() {
        return Err(Refusal::new(400, "no Dial-Host"));
    }
    let port = port.parse().map_err(|_| Refusal::new(400, format!("Dial-Port: `{port}` is no port")))?;
    Ok(Request::Dial(host.to_owned(), port))
}

/// Connects, by the kernel's routes as any program of this host would.
pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream, Refusal> {
    let failed = |error: io::Error| Refusal::new(502, format!("connect to {to}: {error}"));
    match timeout(CONNECT, TcpStream::connect(to)).await {
        Ok(connected) => connected.map_err(failed),
        Err(_) => Err(Refusal::new(504, format!("connect to {to}: no answer within {} s", CONNECT.as_secs()))),
    }
}

/// Carries bytes both ways until both ends are done. The place is held until then.
pub(super) async fn carry(client: OnUpgrade, mut there: TcpStream, place: Option<Place>) {
    let carried = async {
        let client = client.await.map_err(io::Error::other)?;
        copy_bidirectional(&mut TokioIo::new(client), &mut there).await
    };
    if let Err(error) = carried.await {
        tracing::debug!("a connection made for a client: {error}");
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};
    use tokio::sync::mpsc;

    use super::super::{Call, Operators, Reply, bind, serve};
    use super::*;
    use warren_core::node::Answer;

    #[tokio::test]
    async fn a_client_talks_to_the_other_end_as_if_it_had_connected_itself() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = echo.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (calls, mut asked) = mpsc::channel::<Call>(1);
        tokio::spawn(serve(bind(&path).unwrap(), Operators::new("no-such-group"), calls));
        tokio::spawn(async move {
            let Call { request, reply, .. } = asked.recv().await.unwrap();
            assert!(matches!(request, Request::Dial(host, 22) if host == "node-2"));
            reply.send(Reply::Answer(Answer::Dial(to))).unwrap();
        });

        let mut client = UnixStream::connect(&path).await.unwrap();
        let request = "POST /localapi/v0/dial HTTP/1.1\r\nHost: local-tailscaled.sock\r\nUpgrade: ts-dial\r\n\
                       Connection: upgrade\r\nDial-Host: node-2\r\nDial-Port: 22\r\nDial-Network: tcp\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).await.unwrap();
        assert_eq!(echoed, b"hello");
    }
}
