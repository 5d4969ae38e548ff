//! The accept loop: sockets in, HTTP/1 connections out, each within its limits.
//!
//! The number of connections is bounded before one is accepted: past it the kernel's backlog fills, and
//! whoever waits there is served when another leaves. A connection that does not finish its TLS handshake
//! or its request head in time is closed. `/ts2021` takes its connection over and keeps its permit.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::ending::Ending;
use super::http::Site;
use super::limits;
use crate::io::tune;

/// Who is at the other end, and our share in the bound on connections.
#[derive(Clone)]
pub(crate) struct Connection {
    /// The address it came from.
    pub(crate) from: SocketAddr,
    /// Whether TLS protects it.
    pub(crate) tls: bool,
    /// Held as long as the connection lives, also by what takes it over.
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
    /// Turns true when the program ends.
    pub(crate) ending: Ending,
}

/// Accepts until `ending` turns true. Connections end by themselves; they see the same signal.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    site: Arc<Site>,
    connections: Arc<Semaphore>,
    mut ending: Ending,
) {
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
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
        if let Err(error) = tune(&stream) {
            debug!(%from, %error, "setting socket options");
        }
        let connection = Connection { from, tls: tls.is_some(), _permit: Arc::new(permit), ending: ending.clone() };
        let (site, tls) = (Arc::clone(&site), tls.clone());
        tokio::spawn(async move {
            let Some(tls) = tls else { return http(stream, site, connection).await };
            match tokio::time::timeout(limits::TLS_TIME, tls.accept(stream)).await {
                Ok(Ok(stream)) => http(stream, site, connection).await,
                Ok(Err(error)) => debug!(%from, %error, "TLS handshake"),
                Err(_) => debug!(%from, "TLS handshake took too long"),
            }
        });
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
