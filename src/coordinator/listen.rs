//! The accept loop: sockets in, HTTP/1 connections out, each within its limits.
//!
//! The number of connections is bounded before one is accepted: past it the kernel's backlog fills, and
//! whoever waits there is served when another leaves. A connection that does not finish its TLS handshake
//! or its request head in time is closed. `/ts2021` takes its connection over and keeps its permit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::config::TlsFiles;
use super::ending::Ending;
use super::http::Site;
use super::limits;

/// Connections that wait in the kernel for their turn.
const BACKLOG: i32 = 4096;
/// After this long without an answer to what we sent, the other end is gone.
const UNANSWERED: Duration = Duration::from_secs(30);

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

/// Opens the port. `[::]` serves both families, and falls back to IPv4 where the host has no IPv6.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let open = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
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

/// Reads certificate and key; the error names the file.
pub(crate) fn tls(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.cert).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|error| format!("{}: {error}", files.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| format!("{}: {error}", files.key.display()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("{}: {error}", files.cert.display()))?;
    // The upgrade to the control protocol exists in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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

/// A map stream is silent for most of its life: let the kernel find out that its other end is gone.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNANSWERED).with_interval(UNANSWERED / 3))
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
