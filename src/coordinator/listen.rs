//! The accept loop: sockets in, HTTP/1 connections out, each within its limits.
//!
//! The number of connections is bounded before one is accepted: past it the kernel's backlog fills, and
//! whoever waits there is served when another leaves. A connection that does not finish its TLS handshake
//! or its request head in time is closed. `/ts2021` and `/derp` take their connection over and keep its
//! place, which is a stranger's until a node is at the other end.

use std::io;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::ending::Ending;
use super::face::Connection;
use super::limits;
use super::site::Site;
use warren_shell::{Places, tune};

/// The first byte of a TLS connection, and of no HTTP request (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// How connections are protected.
#[derive(Clone)]
pub(crate) enum Cover {
    /// Not at all.
    Plain,
    /// All of them.
    Tls(TlsAcceptor),
    /// Those that begin with a TLS handshake: relays are reached by TLS also where the coordinator has no certificate
    /// that anybody vouches for.
    Either(TlsAcceptor),
}

impl Cover {
    /// What this connection is to be protected by.
    async fn of(self, stream: &TcpStream) -> io::Result<Option<TlsAcceptor>> {
        match self {
            Self::Plain => Ok(None),
            Self::Tls(tls) => Ok(Some(tls)),
            Self::Either(tls) => {
                let mut first = [0];
                let count = stream.peek(&mut first).await?;
                Ok((first[..count] == [TLS_HANDSHAKE]).then_some(tls))
            }
        }
    }
}

/// Accepts until `ending` turns true. Connections end by themselves; they see the same signal.
pub(crate) async fn serve(
    listener: TcpListener,
    cover: Cover,
    site: Arc<Site>,
    places: Arc<Places>,
    mut ending: Ending,
) {
    loop {
        let Some(room) = places.room().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.wait() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.enter(from.ip(), room) else { continue };
        if let Err(error) = tune(&stream) {
            debug!(%from, %error, "setting socket options");
        }
        let connection = Connection { from, tls: false, place: Arc::clone(&place), ending: ending.clone() };
        let serving = serve_one(stream, cover.clone(), Arc::clone(&site), connection);
        tokio::spawn(async move {
            tokio::select! {
                () = serving => {}
                () = place.dismissed() => debug!(%from, "a connection makes room for others"),
            }
        });
    }
}

async fn serve_one(stream: TcpStream, cover: Cover, site: Arc<Site>, mut connection: Connection) {
    let from = connection.from;
    let tls = match tokio::time::timeout(limits::HEAD_TIME, cover.of(&stream)).await {
        Ok(Ok(Some(tls))) => tls,
        Ok(Ok(None)) => return http(stream, site, connection).await,
        Ok(Err(error)) => return debug!(%from, %error, "reading the first byte"),
        Err(_) => return debug!(%from, "no first byte came in time"),
    };
    connection.tls = true;
    match tokio::time::timeout(limits::TLS_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, site, connection).await,
        Ok(Err(error)) => debug!(%from, %error, "TLS handshake"),
        Err(_) => debug!(%from, "TLS handshake took too long"),
    }
}

async fn http<S>(stream: S, site: Arc<Site>, connection: Connection)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = connection.from;
    let mut ending = connection.ending.clone();
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIME)
        .max_headers(limits::HEADERS)
        .max_buf_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), site.service(connection))
        .with_upgrades();
    tokio::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = ending.wait() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        debug!(%from, %error, "HTTP connection");
    }
}
