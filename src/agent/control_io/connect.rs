//! The connection to the coordinator: dial, upgrade, handshake, HTTP/2; and its key, where that is not known yet.
//!
//! The scheme and port of the URL are what is dialled, and nothing else. Official clients try plain HTTP on port 80
//! before an `https` URL, to save the outer TLS and to pass boxes that break it; we do not, because such a URL says
//! which port its owner opened, and because the second scheme saves nothing once the key was fetched over the first.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{IoConfig, read_body};
use warren_core::control::{Pin, REQUEST_TIMEOUT, Scheme, ServerUrl, limit};
use warren_core::types::{CapabilityVersion, MachinePublic};
use warren_core::wire::control::{OverTlsPublicKeys, ServerKey};
use warren_core::wire::noise::{ClientHandshake, Ephemeral};
use warren_shell::{DIAL_TIME, DialTarget, NoiseStream, chain, client_config, tune};

/// How long each step may take once there is a connection: TLS, the key, the upgrade, the handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long all of them may take: whoever waits for the first request on the connection waits longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(55);
const _: () = assert!(DIAL_TIME.as_secs() < CONNECT_TIMEOUT.as_secs());
const _: () = assert!(CONNECT_TIMEOUT.as_secs() < REQUEST_TIMEOUT.as_secs());
const UPGRADE: &str = "tailscale-control-protocol";
const HANDSHAKE_HEADER: &str = "x-tailscale-handshake";

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server there holds this key, and is not the coordinator that we know. Nothing was told to it.
    Stranger(MachinePublic),
    /// What was done, to which address, and what came of it.
    Failed(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// A byte stream, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// HTTP/2 inside the secure channel. Clones share it; the last one gone closes it.
#[derive(Clone)]
pub(super) struct Connection {
    requests: http2::SendRequest<Full<Bytes>>,
    /// The address of ours that it comes from.
    pub(super) local: IpAddr,
    server: Arc<ServerUrl>,
    /// The task that moves the bytes.
    _driver: Arc<JoinSet<()>>,
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// The URI of one of the coordinator's own paths. Inside the channel the scheme is always `https`.
    pub(super) fn uri(&self, path: &str) -> String {
        format!("https://{}{}", self.server.authority(), self.server.path(path))
    }

    pub(super) async fn send(mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        self.requests.ready().await.map_err(|error| chain(&error))?;
        self.requests.send_request(request).await.map_err(|error| chain(&error))
    }

    pub(super) async fn head(self, url: &str) -> Result<(), String> {
        let request = Request::head(url).body(Full::default()).map_err(|error| error.to_string())?;
        self.send(request).await.map(drop)
    }

    /// The key that the coordinator goes by, by its own word under the key that we know. Another kind of coordinator has
    /// no answer.
    pub(super) async fn server_key(self) -> Option<MachinePublic> {
        let request = Request::get(self.uri(ServerKey::PATH)).body(Full::default()).ok()?;
        let response = self.send(request).await.ok().filter(|response| response.status() == StatusCode::OK)?;
        let body = read_body(response, limit::KEY_ANSWER).await.ok()?;
        let said: ServerKey = serde_json::from_slice(&body).ok()?;
        Some(said.key).filter(|key| !key.is_zero())
    }
}

/// Makes connections.
pub(super) struct Dialler {
    config: IoConfig,
    dialler: warren_shell::Dialler,
    /// Whom this system trusts. Asked each time: that changes while we run.
    pub(super) roots: fn() -> rustls::RootCertStore,
}

impl Dialler {
    pub(super) fn new(config: IoConfig) -> Self {
        let dialler = config.dialler.clone();
        Self { config, dialler, roots: system_roots }
    }

    /// The same with another way to places.
    #[cfg(test)]
    pub(super) fn with_dialler(mut self, dialler: warren_shell::Dialler) -> Self {
        self.dialler = dialler;
        self
    }

    /// The whole way to a connection, and the key that the coordinator proved to hold.
    ///
    /// A key that is known is not asked for: whoever holds it is the coordinator, and nobody else can read what we say.
    pub(super) async fn connect(&self, pin: &Pin) -> Result<(Connection, MachinePublic), Fault> {
        let late = |_| {
            let place = self.config.server.authority();
            Fault::Failed(format!("connect to {place}: not done within {} s", CONNECT_TIMEOUT.as_secs()))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, self.try_to_connect(pin)).await.map_err(late)?
    }

    async fn try_to_connect(&self, pin: &Pin) -> Result<(Connection, MachinePublic), Fault> {
        let Some(known) = pin.key() else {
            let key = self.fetch_key().await?;
            if !pin.takes(&key) {
                return Err(Fault::Stranger(key));
            }
            return Ok((self.open_channel(&key).await?, key));
        };
        match self.open_channel(known).await {
            Ok(connection) => Ok((connection, *known)),
            // Whoever answers may be somebody else: then that is what there is to say.
            Err(reason) => match self.fetch_key().await {
                Ok(found) if !pin.takes(&found) => Err(Fault::Stranger(found)),
                _ => Err(Fault::Failed(reason)),
            },
        }
    }

    async fn open_channel(&self, key: &MachinePublic) -> Result<Connection, String> {
        let server = &self.config.server;
        let (handshake, initiation) = ClientHandshake::start(
            &self.config.machine_key,
            key,
            CapabilityVersion::CURRENT,
            Ephemeral::from_random(rand::random()),
        )
        .map_err(|error| error.to_string())?;

        let what = format!("POST {server}/ts2021");
        let request = Request::post(server.path("/ts2021"))
            .header(header::HOST, server.authority())
            .header(header::UPGRADE, UPGRADE)
            .header(header::CONNECTION, "upgrade")
            .header(HANDSHAKE_HEADER, BASE64.encode(&initiation))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let (response, local) = self.ask(server, request, &what).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(&what, response).await);
        }
        let upgraded = within(&what, async { hyper::upgrade::on(response).await.map_err(|e| chain(&e)) }).await?;
        let noise = within(&format!("handshake with {server}"), async {
            NoiseStream::connect(TokioIo::new(upgraded), handshake).await.map_err(|error| chain(&error))
        })
        .await?;

        let (requests, driver) = within(&format!("HTTP/2 with {server}"), async {
            http2::Builder::new(TokioExecutor::new())
                .handshake(TokioIo::new(noise))
                .await
                .map_err(|error| chain(&error))
        })
        .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(error = chain(&error), "the connection to the coordinator ended");
            }
        });
        Ok(Connection { requests, local, server: Arc::new(server.clone()), _driver: Arc::new(tasks) })
    }

    /// Asks a URL of the coordinator outside the secure channel, and drops the answer.
    pub(super) async fn head(&self, url: &str) -> Result<(), String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
        let origin = format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
        let origin = uri.port_u16().map_or(origin.clone(), |port| format!("{origin}:{port}"));
        let server: ServerUrl = origin.parse().map_err(|error| format!("{url}: {error}"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::head(path)
            .header(header::HOST, server.authority())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        self.ask(&server, request, &format!("HEAD {url}")).await.map(drop)
    }

    /// The key of whoever answers. Over `https`, TLS vouches for it.
    async fn fetch_key(&self) -> Result<MachinePublic, String> {
        let server = &self.config.server;
        let path = server.path(&format!("/key?v={}", CapabilityVersion::CURRENT));
        let what = format!("GET {server}/key");
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(header::HOST, server.authority())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let (response, _) = self.ask(server, request, &what).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(&what, response).await);
        }
        let body = within(&what, read_body(response, limit::KEY_ANSWER)).await?;
        let keys: OverTlsPublicKeys = serde_json::from_slice(&body).map_err(|error| format!("{what}: {error}"))?;
        if keys.public_key.is_zero() {
            return Err(format!("{what}: the coordinator names no key; it may be too old"));
        }
        Ok(keys.public_key)
    }

    /// One HTTP/1.1 request on a connection of its own; its answer, and the address of ours that it came from.
    async fn ask<B>(
        &self,
        server: &ServerUrl,
        request: Request<B>,
        what: &str,
    ) -> Result<(Response<Incoming>, IpAddr), String>
    where
        B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    {
        let (stream, local) = self.dial(server).await?;
        within(what, async {
            let (mut requests, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
            // Ends with the request, or lives on as the upgraded stream.
            tokio::spawn(connection.with_upgrades());
            let response = requests.send_request(request).await.map_err(|error| chain(&error))?;
            Ok((response, local))
        })
        .await
    }

    async fn dial(&self, server: &ServerUrl) -> Result<(Box<dyn Stream>, IpAddr), String> {
        let what = format!("connect to {} port {}", server.host(), server.port());
        let place = DialTarget::new(server.host(), server.port());
        let place = if server.scheme() == Scheme::Http { place.plain() } else { place };
        let tcp = self.dialler.dial(&place).await.map_err(|error| format!("{what}: {error}"))?;
        // That the other end is gone is noticed all the same, only later.
        let _ = tune(&tcp);
        let local = tcp.local_addr().map_err(|error| format!("{what}: {error}"))?.ip().to_canonical();
        if server.scheme() == Scheme::Http {
            return Ok((Box::new(tcp), local));
        }
        let name = ServerName::try_from(server.host().to_owned()).map_err(|error| format!("{what}: {error}"))?;
        let tls = self.tls()?;
        let stream = within(&format!("TLS with {}", server.authority()), async {
            tls.connect(name, tcp).await.map_err(|error| chain(&error))
        })
        .await?;
        Ok((Box::new(stream), local))
    }

    /// TLS that trusts what this system trusts. Where a person said which key the coordinator has, any certificate will
    /// do: whoever does not hold that key reads nothing of the channel inside.
    fn tls(&self) -> Result<TlsConnector, String> {
        if self.config.pin.is_vouched() {
            let config = client_config(|_| Ok(())).map_err(|error| format!("TLS: {error}"))?;
            return Ok(TlsConnector::from(Arc::new(config)));
        }
        tls_trusting((self.roots)())
    }
}

/// Whom this system trusts.
pub(crate) fn system_roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "a certificate of this system's trust store cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

pub(super) fn tls_trusting(roots: rustls::RootCertStore) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Runs one step, and names it where it fails.
async fn within<T>(what: &str, step: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(outcome) => outcome.map_err(|error| format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer in {} s", STEP_TIMEOUT.as_secs())),
    }
}

/// What an answer with the wrong status says of itself.
async fn refused(what: &str, response: Response<Incoming>) -> String {
    let status = response.status();
    let text = within(what, read_body(response, limit::REASON)).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    format!("{what}: answered {status}: {text:?}")
}
