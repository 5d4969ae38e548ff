//! The listener, and one task a connection.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{HOST, HeaderValue, ORIGIN, REFERER};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::answer::{refused, response, switched, with_version};
use super::places::{Place, Places};
use super::route::{Answerer, route};
use super::{Call, Operators, Reply, dial};
use warren_core::node::{self, Answer, Caller, Refusal};
use warren_core::wire::local::{limit, path};

/// How long to wait before accepting again when that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whoever is at the other end of a connection.
struct Client {
    peer: UCred,
    operators: Arc<Operators>,
    calls: mpsc::Sender<Call>,
    /// The connection's, also after it has become another one.
    place: Mutex<Option<Place>>,
}

/// Makes the socket, in place of one that nobody listens on.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another warrend listens there"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    // Everybody may ask; each call is checked by who makes it.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves the socket for ever. Questions go to `calls`.
pub async fn serve(listener: UnixListener, operators: Operators, calls: mpsc::Sender<Call>) {
    let operators = Arc::new(operators);
    let places = Places::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others have to close theirs first.
                tracing::warn!("local socket: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let Some(place) = places.take(peer.uid()) else { continue };
        let place = Mutex::new(Some(place));
        let client = Client { peer, operators: operators.clone(), calls: calls.clone(), place };
        tokio::spawn(connection(stream, Arc::new(client)));
    }
}

async fn connection(stream: UnixStream, client: Arc<Client>) {
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(answer(request, client).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("local socket: {error}");
    }
}

async fn answer(mut request: Request<Incoming>, client: Arc<Client>) -> Response {
    let upgrade = Mutex::new(Some(hyper::upgrade::on(&mut request)));
    let mut request = match whole(request).await {
        Ok(request) => request,
        Err(refusal) => return with_version(refused(&refusal)),
    };
    let answerer = Answerer::new(move |request| {
        let upgrade = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
        let client = client.clone();
        Box::pin(async move { client.answer(request, upgrade).await.unwrap_or_else(|refusal| refused(&refusal)) })
    });
    request.extensions_mut().insert(answerer);
    with_version(route(request).await)
}

/// A request that may be looked at, with all of its body.
async fn whole(request: Request<Incoming>) -> Result<Request<Body>, Refusal> {
    check_headers(request.headers())?;
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(HEADER_TIMEOUT, Limited::new(body, limit::BODY).collect())
        .await
        .map_err(|_| Refusal::new(408, "the body took too long"))?
        .map_err(|error| Refusal::new(413, format!("body: {error}")))?
        .to_bytes();
    Ok(Request::from_parts(head, Body::from(body)))
}

impl Client {
    async fn answer(&self, request: node::Request, upgrade: Option<OnUpgrade>) -> Result<Response, Refusal> {
        match (self.ask(request).await?, upgrade) {
            (Reply::Answer(Answer::Dial(to)), Some(upgrade)) => {
                let there = dial::connect(to).await?;
                let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::spawn(dial::carry(upgrade, there, place));
                Ok(switched())
            }
            (reply, _) => Ok(response(reply)),
        }
    }

    async fn ask(&self, request: node::Request) -> Result<Reply, Refusal> {
        let caller = match request.changes() {
            true => {
                let (operators, peer) = (self.operators.clone(), self.peer);
                let look_up = move || operators.look_up(peer.uid(), peer.gid());
                tokio::task::spawn_blocking(look_up).await.unwrap_or_default()
            }
            // Everybody may look, so nobody has to be looked up.
            false => Caller::default(),
        };
        let (reply, replied) = oneshot::channel();
        let stopping = || Refusal::new(503, "the agent is stopping");
        self.calls.send(Call { caller, request, reply }).await.map_err(|_| stopping())?;
        replied.await.map_err(|_| stopping())
    }
}

/// A browser can be made to talk to many things; whatever smells of one is turned away.
fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    if headers.contains_key(ORIGIN) || headers.contains_key(REFERER) {
        return Err(Refusal::new(403, "requests of web pages are not served"));
    }
    if !host.is_empty() && host != path::HOST.as_bytes() {
        return Err(Refusal::new(403, format!("the host of this socket is {}", path::HOST)));
    }
    Ok(())
}
