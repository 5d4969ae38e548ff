//! `/ts2021`: from HTTP/1.1 to a Noise channel to HTTP/2 inside it.
//!
//! The client's first handshake message is in the request: in a header of a `POST`, or in the query of the
//! `GET` by which a browser opens a WebSocket. It is verified before the upgrade is granted, so a stranger
//! gets an HTTP error in words. After it come our half, the early payload and HTTP/2, one after the other
//! without waiting for the client.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use data_encoding::{BASE64, BASE64URL};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use super::NodeFace;
use super::machine::{self, Machine};
use super::map_body::Outgoing;
use crate::face::answer::{later, refuse};
use crate::face::connection::Connection;
use crate::limits;
use crate::service::KeyUse;
use warren_core::types::ChallengePublic;
use warren_core::wire::noise::{EarlyNoise, INITIATION_LEN, ServerHandshake, encode_early};
use warren_shell::{NoiseStream, WebSocketBytes, websocket_accept};

/// The name of the protocol, in `Upgrade` and as WebSocket subprotocol.
const PROTOCOL: &str = "tailscale-control-protocol";
/// Where the first handshake message is, as header and in the query.
const HANDSHAKE: &str = "x-tailscale-handshake";

/// Answers `/ts2021`.
pub(crate) async fn upgrade(
    State(face): State<Arc<NodeFace>>,
    Extension(connection): Extension<Connection>,
    mut request: Request,
) -> Response {
    match prepare(&face, &connection, &mut request) {
        Ok((accepted, response)) => {
            tokio::spawn(accepted.serve(face, connection));
            response
        }
        Err(refusal) => refusal,
    }
}

/// An upgrade that is granted, before the bytes begin.
struct Accepted {
    handshake: ServerHandshake,
    key_use: KeyUse,
    on_upgrade: OnUpgrade,
    websocket: bool,
    base_url: String,
}

#[allow(clippy::result_large_err, reason = "the error is the response itself, made once a connection")]
fn prepare(face: &NodeFace, connection: &Connection, request: &mut Request) -> Result<(Accepted, Response), Response> {
    face.handshakes.take(&connection.place).map_err(later)?;
    let Some(on_upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "this address speaks HTTP/1.1 with an upgrade; is a proxy in between?",
        ));
    };
    let headers = request.headers();
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (text, websocket, response) = if request.method() == Method::POST && upgrade.eq_ignore_ascii_case(PROTOCOL) {
        let text = headers.get(HANDSHAKE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        (text.to_owned(), false, switching(PROTOCOL))
    } else if request.method() == Method::GET && upgrade.eq_ignore_ascii_case("websocket") {
        (handshake_in_query(request.uri().query()), true, switching_to_websocket(headers)?)
    } else {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!(
                "upgrade to {PROTOCOL} by POST or to a WebSocket by GET; a proxy in between must pass the upgrade on"
            ),
        ));
    };
    let Some(initiation) = decode(&text) else {
        return Err(refuse(StatusCode::BAD_REQUEST, format!("{HANDSHAKE} is not {INITIATION_LEN} bytes in base64")));
    };
    let handshake = face.service.handshake(&initiation);
    let (handshake, key_use) = handshake.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    let base_url = face.url.seen_by(connection, request.headers());
    Ok((Accepted { handshake, key_use, on_upgrade, websocket, base_url }, response))
}

fn switching(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

#[allow(clippy::result_large_err, reason = "the error is the response itself, made once a connection")]
fn switching_to_websocket(headers: &HeaderMap) -> Result<Response, Response> {
    let accept = websocket_accept(headers, PROTOCOL).map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?;
    let mut response = switching("websocket");
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn handshake_in_query(query: Option<&str>) -> String {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(HANDSHAKE)).map(|(_, value)| value).next();
    // Only three characters of base64 are escaped in a query.
    ["%2B", "%2b", "%2F", "%2f", "%3D", "%3d"]
        .iter()
        .zip(["+", "+", "/", "/", "=", "="])
        .fold(value.unwrap_or_default().to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

fn decode(text: &str) -> Option<[u8; INITIATION_LEN]> {
    let bytes = BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes())).ok()?;
    bytes.try_into().ok()
}

impl Accepted {
    async fn serve(self, face: Arc<NodeFace>, connection: Connection) {
        let from = connection.from;
        face.metrics.handshakes.inc();
        let ready = async {
            let io = TokioIo::new(self.on_upgrade.await.map_err(|error| error.to_string())?);
            let machine = Machine {
                key: self.handshake.machine(),
                version: self.handshake.version(),
                base_url: self.base_url.into(),
                ending: connection.ending.clone(),
                place: Arc::clone(&connection.place),
                claim: OnceLock::new(),
                key_use: self.key_use,
            };
            Ok::<_, String>((io, machine))
        };
        let (io, machine) = match tokio::time::timeout(limits::HANDSHAKE_TIME, ready).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return debug!(%from, error, "upgrading to Noise"),
            Err(_) => return debug!(%from, "upgrading to Noise took too long"),
        };
        let served = if self.websocket {
            channel(WebSocketBytes::accept(io).await, self.handshake, machine, face, connection).await
        } else {
            channel(io, self.handshake, machine, face, connection).await
        };
        if let Err(error) = served {
            debug!(%from, error, "Noise connection");
        }
    }
}

async fn channel<S>(
    io: S,
    handshake: ServerHandshake,
    machine: Machine,
    face: Arc<NodeFace>,
    connection: Connection,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let beginning = async {
        let mut stream = NoiseStream::accept(io, handshake).await.map_err(|error| error.to_string())?;
        // Any 32 bytes are a public key. Nobody is asked to prove anything about it yet.
        let payload = EarlyNoise { node_key_challenge: ChallengePublic::from_bytes(rand::random()) };
        let early = encode_early(&payload).map_err(|error| error.to_string())?;
        stream.write_all(&early).await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(stream)
    };
    let stream = tokio::time::timeout(limits::HANDSHAKE_TIME, beginning)
        .await
        .map_err(|_| "the Noise handshake took too long".to_owned())??;
    http2(stream, Arc::new(machine), face, connection).await
}

/// Requests of one connection: how many came, how many are under way.
#[derive(Default)]
struct Activity {
    begun: AtomicU64,
    under_way: AtomicUsize,
    /// The maps that are on their way.
    maps: Mutex<Vec<Weak<Outgoing>>>,
}

/// A request that is under way until this is dropped.
pub(crate) struct UnderWay(Arc<Activity>);

impl Activity {
    fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Whether the node has long taken nothing of a map that it asked for.
    fn is_stalled(&self) -> bool {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.iter().filter_map(Weak::upgrade).any(|map| map.is_stalled(tokio::time::Instant::now()))
    }
}

impl UnderWay {
    /// The answer is this map.
    pub(crate) fn is_map(&self, map: &Arc<Outgoing>) {
        let mut maps = self.0.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| map.strong_count() > 0);
        maps.push(Arc::downgrade(map));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn http2<S>(stream: S, machine: Arc<Machine>, face: Arc<NodeFace>, connection: Connection) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let (place, metrics) = (Arc::clone(&connection.place), Arc::clone(&face.metrics));
    let mut ending = connection.ending.clone();
    let held = Arc::clone(&machine);
    let outdated = held.key_use.outdated();
    let service = service_fn({
        let activity = Arc::clone(&activity);
        move |request| {
            let under_way = activity.begin();
            machine::answer(Arc::clone(&face), Arc::clone(&machine), request, under_way)
        }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(limits::STREAMS)
        .initial_stream_window_size(limits::RECEIVE_WINDOW)
        .initial_connection_window_size(limits::RECEIVE_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER)
        .max_header_list_size(limits::H2_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving, outdated);
    let mut begun = 0;
    loop {
        tokio::select! {
            served = serving.as_mut() => return served.map_err(|error| error.to_string()),
            () = ending.wait() => break,
            () = outdated.as_mut() => break,
            () = place.dismissed() => return Err("it makes room for others".to_owned()),
            () = tokio::time::sleep(limits::IDLE_TIME) => {
                if activity.is_stalled() {
                    metrics.stalled.inc();
                    return Err("the node does not read what it asked for".to_owned());
                }
                let idle = activity.under_way.load(Ordering::Relaxed) == 0;
                if idle && activity.begun.load(Ordering::Relaxed) == begun {
                    break;
                }
                begun = activity.begun.load(Ordering::Relaxed);
            }
        }
    }
    serving.as_mut().graceful_shutdown();
    // Streams end at the same signal; who does not read our farewell is not waited for.
    match tokio::time::timeout(limits::FAREWELL_TIME, serving).await {
        Ok(served) => served.map_err(|error| error.to_string()),
        Err(_) => Ok(()),
    }
}
