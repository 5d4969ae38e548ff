//! The listener, and one task a connection.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN, REFERER, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::dial;
use super::places::{Place, Places};
use super::{Call, Operators, Reply, route};
use warren_core::node::{Answer, Caller, Refusal, VERSION};
use warren_core::types::CapabilityVersion;
use warren_core::wire::local::{limit, path};

/// How long to wait before accepting again when that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, Infallible>;

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
        let (operators, calls) = (operators.clone(), calls.clone());
        tokio::spawn(connection(stream, peer, operators, calls, place));
    }
}

async fn connection(
    stream: UnixStream,
    peer: UCred,
    operators: Arc<Operators>,
    calls: mpsc::Sender<Call>,
    place: Place,
) {
    // The place is the connection's, also after it has become another one.
    let place = Arc::new(Mutex::new(Some(place)));
    let held = place.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (operators, calls, place) = (operators.clone(), calls.clone(), place.clone());
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            let reply = match ask(request, peer, operators, calls).await {
                Ok(Reply::Answer(Answer::Dial(to))) => match dial::connect(to).await {
                    Ok(there) => {
                        let place = place.lock().unwrap_or_else(PoisonError::into_inner).take();
                        tokio::spawn(dial::carry(upgrade, there, place));
                        return Ok::<_, Infallible>(switch());
                    }
                    Err(refusal) => Reply::Answer(Answer::Refused(refusal)),
                },
                reply => reply.unwrap_or_else(|refusal| Reply::Answer(Answer::Refused(refusal))),
            };
            Ok(respond(reply))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    drop(held);
    if let Err(error) = served {
        tracing::debug!("local socket: {error}");
    }
}

async fn ask(
    request: Request<Incoming>,
    peer: UCred,
    operators: Arc<Operators>,
    calls: mpsc::Sender<Call>,
) -> Result<Reply, Refusal> {
    check_headers(request.headers())?;
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(HEADER_TIMEOUT, Limited::new(body, limit::BODY).collect())
        .await
        .map_err(|_| Refusal::new(408, "the body took too long"))?
        .map_err(|error| Refusal::new(413, format!("body: {error}")))?
        .to_bytes();
    let is_dial = head.uri.path().strip_prefix(path::TAILSCALE) == Some("dial");
    let request = match is_dial && head.method == Method::POST {
        true => dial::wanted(&head.headers)?,
        false => route(&head.method, &head.uri, &body)?,
    };
    let caller = match request.changes() {
        true => {
            let look_up = move || operators.look_up(peer.uid(), peer.gid());
            tokio::task::spawn_blocking(look_up).await.unwrap_or_default()
        }
        // Everybody may look, so nobody has to be looked up.
        false => Caller::default(),
    };
    let (reply, replied) = oneshot::channel();
    let stopping = || Refusal::new(503, "the agent is stopping");
    calls.send(Call { caller, request, reply }).await.map_err(|_| stopping())?;
    replied.await.map_err(|_| stopping())
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

fn respond(reply: Reply) -> Response<Body> {
    const JSON: &str = "application/json";
    let full = |text: Vec<u8>| Full::new(Bytes::from(text)).boxed_unsync();
    let (status, kind, body) = match reply {
        Reply::Answer(Answer::Done) => (204, "", full(Vec::new())),
        Reply::Answer(Answer::Json(json)) => (200, JSON, full(json)),
        Reply::Answer(Answer::Text(text)) => (200, "text/plain", full(text.into_bytes())),
        Reply::Stream(lines) => (200, JSON, stream(lines)),
        Reply::Answer(Answer::Dial(to)) => {
            (500, JSON, full(format!("{{\"error\":\"{to} is not dialled here\"}}").into_bytes()))
        }
        Reply::Answer(Answer::Refused(refusal)) => {
            let error = serde_json::json!({ "error": refusal.text });
            (refusal.status, JSON, full(error.to_string().into_bytes()))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !kind.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    headers.insert(HeaderName::from_static("tailscale-version"), HeaderValue::from_static(VERSION));
    headers.insert(HeaderName::from_static("tailscale-cap"), HeaderValue::from(CapabilityVersion::CURRENT.0));
    response
}

/// The connection is another one's from here on.
fn switch() -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(dial::PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

fn stream(lines: mpsc::Receiver<Vec<u8>>) -> Body {
    let lines = futures_util::stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((line, lines))
    });
    StreamBody::new(lines.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line))))).boxed_unsync()
}
