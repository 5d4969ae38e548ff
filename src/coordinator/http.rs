//! What is asked outside of Noise: the server's key, the upgrade to Noise, and the small siblings.
//!
//! Nothing here changes anything and nothing here is secret, so it needs no authentication; a page of
//! another site gains nothing by asking. What counts is bounded in `limits`.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tracing::warn;

use super::hub::{Busy, Hub};
use super::listen::Connection;
use super::machines::Machines;
use super::metrics::Metrics;
use super::relay_map::RelayMap;
use super::server_key::ServerKeys;
use super::{clock, limits, noise, page};
use warren_core::registry;
use warren_core::types::{CapabilityVersion, MachinePublic, NodePublic};
use warren_core::wire::control::OverTlsPublicKeys;
use warren_relay::Relay;
use warren_shell::{HeldPlace, Rates};

/// What every handler may use.
pub(crate) struct Shared {
    /// The registry.
    pub(crate) hub: Hub,
    /// Who we are to the nodes.
    pub(crate) keys: Arc<ServerKeys>,
    /// How nodes reach us, if the operator said so.
    pub(crate) server_url: Option<String>,
    /// Where the relays are.
    pub(crate) relays: Arc<RelayMap>,
    /// The embedded relay.
    pub(crate) relay: Option<Arc<Relay>>,
    /// What we count.
    pub(crate) metrics: Arc<Metrics>,
    /// Places for the large request bodies that are read at once.
    pub(crate) large_bodies: Semaphore,
    /// How often who came in where.
    pub(crate) doors: Doors,
    /// What each machine has of us at once.
    pub(crate) machines: Arc<Machines>,
}

/// How often who came in at which door. Locked for a few steps at a time, never across an `await`.
pub(crate) struct Doors {
    /// New Noise channels: each costs elliptic-curve multiplications.
    pub(crate) handshakes: Mutex<Rates>,
    /// Questions outside of Noise that the registry answers.
    pub(crate) questions: Mutex<Rates>,
    /// Requests to register, by whatever machine.
    pub(crate) registrations: Mutex<Rates>,
    /// A request said that it came through a proxy that speaks TLS, and nobody said how nodes reach us.
    pub(crate) unnamed_proxy: OnceLock<()>,
}

impl Doors {
    pub(crate) fn new(handshake_rate: u32) -> Self {
        Self {
            handshakes: Mutex::new(Rates::new(handshake_rate)),
            questions: Mutex::new(Rates::new(limits::QUESTION_RATE)),
            registrations: Mutex::new(Rates::new(limits::REGISTRATION_RATE)),
            unnamed_proxy: OnceLock::new(),
        }
    }
}

/// The routes.
pub(crate) struct Site {
    router: Router,
}

impl Site {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let router = Router::new()
            .route("/", get(async || page::home()))
            .route("/key", get(key))
            .route("/ts2021", any(noise::upgrade))
            .route("/health", get(health))
            .route("/verify", post(verify))
            .route("/register/{code}", get(register_page))
            .route("/machine/ping-response", get(ping_response))
            .route("/derp", any(relay_request))
            .route("/derp/probe", any(relay_request))
            .route("/derp/latency-check", any(relay_request))
            .route("/generate_204", any(relay_request))
            .route("/bootstrap-dns", get(bootstrap_dns))
            .route("/robots.txt", get(async || "User-agent: *\nDisallow: /\n"))
            .with_state(shared);
        Self { router }
    }

    /// Answers the requests of one connection.
    pub(crate) fn service(
        &self,
        connection: Connection,
    ) -> impl hyper::service::Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send + use<>
    {
        let router = self.router.clone();
        let service = tower::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            router.clone().oneshot(request)
        });
        TowerToHyperService::new(service)
    }
}

/// Plain text that says what went wrong.
pub(crate) fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    let mut response = (status, text.into()).into_response();
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// 429: nodes honour it and come back.
pub(crate) fn later(after: Duration) -> Response {
    let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, "the coordinator is busy, try again later");
    let seconds = after.as_secs().saturating_add(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

impl IntoResponse for Busy {
    fn into_response(self) -> Response {
        later(limits::RETRY_AFTER)
    }
}

/// Refuses a client of a version that is not served.
pub(crate) fn too_old(version: CapabilityVersion) -> Option<Response> {
    registry::State::check_version(version).err().map(|refusal| refuse(StatusCode::BAD_REQUEST, refusal.to_string()))
}

/// How the client reaches us: what the operator said, else what the client itself asked for.
pub(crate) fn base_url(shared: &Shared, connection: &Connection, headers: &HeaderMap) -> String {
    if let Some(url) = &shared.server_url {
        return url.clone();
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.filter(|host| host.parse::<http::uri::Authority>().is_ok()).unwrap_or("localhost");
    let through_tls = !connection.tls && came_by_tls(headers);
    if through_tls {
        // It may be said by anybody who can ask, so it is said once, and counts for who says it alone.
        shared.doors.unnamed_proxy.get_or_init(|| warn!("{UNNAMED_PROXY}"));
    }
    format!("{}://{host}", if connection.tls || through_tls { "https" } else { "http" })
}

/// Whether a proxy says that TLS ends at it.
fn came_by_tls(headers: &HeaderMap) -> bool {
    let said = headers.get("x-forwarded-proto").and_then(|said| said.to_str().ok()).unwrap_or_default();
    said.split(',').next().is_some_and(|first| first.trim().eq_ignore_ascii_case("https"))
}

#[derive(Deserialize)]
struct KeyQuery {
    v: Option<u32>,
}

async fn key(State(shared): State<Arc<Shared>>, Query(query): Query<KeyQuery>) -> Response {
    let Some(version) = query.v else {
        return refuse(StatusCode::BAD_REQUEST, "say which capability version you speak: /key?v=NUMBER");
    };
    if let Some(refusal) = too_old(CapabilityVersion(version)) {
        return refusal;
    }
    // The legacy key served protocols from before Noise, which nobody speaks here.
    let keys = OverTlsPublicKeys { legacy_public_key: MachinePublic::default(), public_key: shared.keys.public() };
    axum::Json(keys).into_response()
}

/// What an operator whose proxy was noticed should know.
const UNNAMED_PROXY: &str = "a request came through a proxy that speaks TLS (X-Forwarded-Proto: https), and server_url is not \
                             set: set it to the address of the proxy, so that links and the relay's place do not depend on \
                             what it passes on";

#[derive(Serialize)]
struct Health {
    status: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// What is not as it should be, and stops nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

async fn health(State(shared): State<Arc<Shared>>, Extension(connection): Extension<Connection>) -> Response {
    if let Err(after) = rated(&shared.doors.questions, &connection.place) {
        return later(after);
    }
    let (output, mut warnings) = match tokio::time::timeout(limits::HUB_PATIENCE, shared.hub.health()).await {
        Ok(Ok(health)) => (health.fault, health.warnings),
        _ => (Some("the registry does not answer".to_owned()), Vec::new()),
    };
    warnings.extend(shared.doors.unnamed_proxy.get().map(|()| UNNAMED_PROXY.to_owned()));
    match output {
        None => axum::Json(Health { status: "pass", output, warnings }).into_response(),
        Some(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Health { status: "fail", output, warnings })).into_response()
        }
    }
}

/// A relay asks whether it should serve a client.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitRequest {
    node_public: NodePublic,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitResponse {
    allow: bool,
}

async fn verify(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Connection>,
    body: Body,
) -> Response {
    if let Err(after) = rated(&shared.doors.questions, &connection.place) {
        return later(after);
    }
    let body = axum::body::to_bytes(body, limits::PLAIN_BODY_BYTES);
    let Ok(Ok(body)) = tokio::time::timeout(limits::BODY_TIME, body).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or took too long to arrive");
    };
    // Relays do not set a content type, so the body is read as what it has to be.
    let Ok(request) = serde_json::from_slice::<AdmitRequest>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "the body is not a DERPAdmitClientRequest in JSON");
    };
    match shared.hub.knows(request.node_public).await {
        Ok(allow) => axum::Json(AdmitResponse { allow }).into_response(),
        Err(busy) => busy.into_response(),
    }
}

async fn register_page(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Connection>,
    Path(code): Path<String>,
) -> Response {
    if let Err(after) = rated(&shared.doors.questions, &connection.place) {
        return later(after);
    }
    let Ok(code) = code.parse() else { return page::unknown_code() };
    match shared.hub.pending(code).await {
        Ok(Some(waiting)) => page::register(&waiting.code, &waiting.hostname),
        Ok(None) => page::unknown_code(),
        Err(busy) => busy.into_response(),
    }
}

/// The answer to a ping that we never sent: this coordinator asks for none.
async fn ping_response() -> Response {
    refuse(StatusCode::NOT_FOUND, "no such ping")
}

/// Addresses of servers a client could not look up by itself. A client asks this of the relays it knows from
/// its map, where they already stand with their addresses.
async fn bootstrap_dns() -> Response {
    axum::Json(serde_json::Map::new()).into_response()
}

/// What is asked of the embedded relay.
async fn relay_request(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Connection>,
    request: axum::extract::Request,
) -> Response {
    let Some(embedded) = &shared.relay else {
        return refuse(StatusCode::NOT_FOUND, "this coordinator runs no relay");
    };
    let from = connection.from;
    warren_relay::answer(request, embedded, from, connection.place).map(Body::new)
}

/// Takes one token of the asker's bucket at a door.
pub(crate) fn rated(door: &Mutex<Rates>, place: &HeldPlace) -> Result<(), Duration> {
    door.lock().unwrap_or_else(PoisonError::into_inner).take(place.site(), clock::instant())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_often_is_told_when_to_come_again() {
        for response in [Busy.into_response(), later(limits::RETRY_AFTER)] {
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], "11");
        }
    }
}
