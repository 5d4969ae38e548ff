//! The accept loop: sockets in, HTTP/1 connections out, each within its limits.
//!
//! The number of connections is bounded before one is accepted: past it the kernel's backlog fills. A connection
//! that does not finish its TLS handshake or its request head in time is closed. A client of the relay protocol
//! takes its connection over and keeps its place, which is a stranger's until the client is admitted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::acme::Acme;
use super::{Relay, clock, http};
use warren_shell::{HeldPlace, Places, Rates, tune};

/// Bytes of one request head, the least that hyper takes; an honest one has a few hundred.
const HEAD_BYTES: usize = 8 * 1024;
/// Headers in one request.
const HEADERS: usize = 64;
/// How long a request head may take, idle time between two requests included: bounds half-open connections.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long a TLS handshake may take.
const TLS_TIME: Duration = Duration::from_secs(10);
/// How long to wait after an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end, and our share in the bound on connections.
#[derive(Clone)]
struct Connection {
    from: SocketAddr,
    /// Held as long as the connection lives, also by what takes it over.
    place: Arc<HeldPlace>,
    purpose: Purpose,
}

/// What a port is there for.
#[derive(Clone)]
pub(super) enum Purpose {
    Relay,
    /// As port 80: for the question by which clients notice captive portals, and for an ACME server's, if there is one.
    SmallQuestions(Option<Arc<Acme>>),
}

/// What comes in, and how much of it.
pub(super) struct Port {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<TlsAcceptor>,
    /// Connections at once.
    pub(super) places: Arc<Places>,
    /// How often one address may come.
    pub(super) rates: Rates,
    pub(super) purpose: Purpose,
}

/// Accepts for as long as the relay runs. Connections end by themselves.
pub(super) async fn serve(mut port: Port, relay: Arc<Relay>) {
    loop {
        let Some(room) = port.places.room().await else { return };
        let (stream, from) = match port.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Closed at once: an answer would cost more than it took to ask.
        if port.rates.take(from.ip(), clock::now()).is_err() {
            relay.tally().too_often();
            continue;
        }
        let Some(place) = port.places.enter(from.ip(), room) else { continue };
        if let Err(error) = tune(&stream) {
            debug!(%from, %error, "setting socket options");
        }
        let connection = Connection { from, place: Arc::clone(&place), purpose: port.purpose.clone() };
        let (relay, tls) = (Arc::clone(&relay), port.tls.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve_one(stream, tls, relay, connection) => {}
                () = place.dismissed() => debug!(%from, "a connection makes room for others"),
            }
        });
    }
}

async fn serve_one(stream: TcpStream, tls: Option<TlsAcceptor>, relay: Arc<Relay>, connection: Connection) {
    let from = connection.from;
    let Some(tls) = tls else { return serve_http(stream, relay, connection).await };
    match timeout(TLS_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(stream, relay, connection).await,
        Ok(Err(error)) => debug!(%from, %error, "TLS handshake"),
        Err(_) => debug!(%from, "TLS handshake took too long"),
    }
}

async fn serve_http<S>(stream: S, relay: Arc<Relay>, connection: Connection)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = connection.from;
    let service = service_fn(move |request| {
        let answer = match &connection.purpose {
            Purpose::SmallQuestions(acme) => http::small_question(&request, acme.as_deref()),
            Purpose::Relay => http::answer(request, &relay, from, Arc::clone(&connection.place)),
        };
        async { Ok::<_, std::convert::Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%from, %error, "HTTP connection");
    }
}
