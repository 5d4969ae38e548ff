//! What nodes ask inside the Noise channel: to register, and for the map.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::SemaphorePermit;

use super::machines::Claim;
use super::map_body::{self, MapBody};
use super::noise::UnderWay;
use super::{NodeFace, too_old};
use crate::ending::Ending;
use crate::face::answer::{later, refuse};
use crate::service::KeyUse;
use crate::service::Registration;
use crate::{clock, limits};
use warren_core::policy::SshAction;
use warren_core::registry::{self, MapRefusal};
use warren_core::types::{CapabilityVersion, MachinePublic};
use warren_core::wire::control::{MapRequest, RegisterRequest, RegisterResponse, ServerKey};
use warren_core::wire::map_stream::Packing;
use warren_shell::HeldPlace;

/// Who is at the other end of a Noise channel.
pub(super) struct Machine {
    /// The key it proved to hold.
    pub(crate) key: MachinePublic,
    /// What its handshake says it speaks.
    pub(crate) version: CapabilityVersion,
    /// How it reaches us, for the address of the page where it is approved.
    pub(crate) base_url: Box<str>,
    /// Turns true when the program ends.
    pub(crate) ending: Ending,
    pub(crate) place: Arc<HeldPlace>,
    /// The machine's share in what one machine may have, from its first request on: only then is it sure who asks.
    pub(crate) claim: OnceLock<Claim>,
    /// The key of ours under which it came.
    pub(crate) key_use: KeyUse,
}

impl Machine {
    /// It turned out to be a node of ours.
    fn belongs(&self) {
        self.place.belongs();
        self.key_use.belongs(self.key);
    }
}

/// Requests of the protocol that this coordinator knows of and does not serve.
const UNSERVED: &[&str] = &[
    "/machine/whoami",
    "/machine/set-dns",
    "/machine/set-device-attr",
    "/machine/audit-log",
    "/machine/id-token",
    "/machine/feature/query",
    "/machine/update-health",
    "/machine/c2n",
    "/machine/webclient/",
    "/machine/tka/",
];

/// Answers one request. `under_way` lives as long as the answer takes, body included.
pub(crate) async fn answer(
    face: Arc<NodeFace>,
    machine: Arc<Machine>,
    request: Request<Incoming>,
    under_way: UnderWay,
) -> Result<Response, Infallible> {
    if let Some(refusal) = too_old(machine.version) {
        return Ok(refusal);
    }
    machine.claim.get_or_init(|| face.machines.claim(machine.key, &machine.place));
    let path = request.uri().path();
    let response = match (request.method(), path) {
        (&Method::POST, "/machine/register") => register(&face, &machine, request.into_body()).await,
        (&Method::POST, "/machine/map") => map(&face, &machine, request.into_body(), under_way).await,
        (&Method::HEAD | &Method::GET, "/machine/ping-response") => Ok(pong(&face, &machine, request.uri().query())),
        (&Method::GET, ServerKey::PATH) => Ok(axum::Json(ServerKey { key: machine.key_use.tell() }).into_response()),
        (&Method::GET, path) if path.starts_with("/machine/ssh/action/") => Ok(session_refused()),
        (_, "/machine/register" | "/machine/map") => Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "POST, please")),
        (_, path) if UNSERVED.iter().any(|unserved| path.starts_with(unserved)) => {
            Err(refuse(StatusCode::NOT_IMPLEMENTED, format!("this coordinator does not serve {path}")))
        }
        (_, path) => Err(refuse(StatusCode::NOT_FOUND, format!("there is no {path}"))),
    };
    let response = response.unwrap_or_else(|refusal| refusal);
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        face.metrics.refused.inc();
    }
    Ok(response)
}

/// An answer, or one that says why not.
type Answer = Result<Response, Response>;

async fn register(face: &NodeFace, machine: &Machine, body: Incoming) -> Answer {
    may_ask(face, machine).map_err(later)?;
    face.registrations.take(&machine.place).map_err(later)?;
    let mut request: RegisterRequest = read(face, body).await?;
    registry::bound(&mut request.hostinfo);
    if request.auth.as_ref().is_some_and(|auth| auth.auth_key.len() > limits::AUTH_KEY_BYTES) {
        return Err(refuse(StatusCode::BAD_REQUEST, "this is longer than any pre-authentication key"));
    }
    let mut ending = machine.ending.clone();
    let deadline = tokio::time::Instant::now() + limits::FOLLOWUP_TIME;
    loop {
        let registration = face.service.register(machine.key, machine.place.site(), request.clone()).await;
        let (woken, meanwhile) = match registration.map_err(IntoResponse::into_response)? {
            Registration::Answer(response) => {
                if response.machine_authorized {
                    machine.belongs();
                }
                return Ok(reply(machine, response));
            }
            Registration::Later(after) => return Err(later(after)),
            Registration::Failed => return Err(unwritten()),
            Registration::Wait { woken, meanwhile } => (woken, meanwhile),
        };
        let decided = tokio::select! {
            woken = tokio::time::timeout_at(deadline, woken) => matches!(woken, Ok(Ok(()))),
            () = ending.wait() => false,
        };
        if !decided {
            return Ok(reply(machine, meanwhile));
        }
    }
}

/// Without a configured address the registry writes the page's address without its beginning.
fn reply(machine: &Machine, mut response: RegisterResponse) -> Response {
    if response.auth_url.starts_with('/') {
        response.auth_url.insert_str(0, &machine.base_url);
    }
    axum::Json(response).into_response()
}

async fn map(face: &NodeFace, machine: &Machine, body: Incoming, under_way: UnderWay) -> Answer {
    may_ask(face, machine).map_err(later)?;
    let mut request: MapRequest = read(face, body).await?;
    registry::bound(&mut request.hostinfo);
    if !request.stream {
        let updated = face.service.update(machine.key, request).await;
        updated.map_err(IntoResponse::into_response)?.map_err(|refusal| refused(&refusal))?;
        machine.belongs();
        return Ok(Response::new(Body::empty()));
    }
    let packing = match request.compress.as_str() {
        "zstd" => Packing::Zstd,
        "" => Packing::Plain,
        other => return Err(refuse(StatusCode::BAD_REQUEST, format!("Compress is \"zstd\" or absent, not {other:?}"))),
    };
    let keep_alive = request.keep_alive;
    let node_key = request.node_key;
    let opened = face.service.open(machine.key, request, &machine.base_url).await;
    match opened.map_err(IntoResponse::into_response)? {
        Ok(subscription) => {
            machine.belongs();
            let body = MapBody::new(subscription, packing, keep_alive, under_way);
            face.machines.replace_map(node_key, body.outgoing());
            Ok(Response::new(Body::from_stream(body)))
        }
        // Clients take a status for trouble on the way and keep the network that they know; this they take for an end.
        Err(MapRefusal::Unknown | MapRefusal::Suspended) => {
            let goodbye = registry::State::goodbye(node_key, machine.key);
            map_body::farewell(goodbye, packing, machine.ending.clone(), under_way)
                .map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("writing the answer: {error}")))
        }
        Err(refusal) => Err(refused(&refusal)),
    }
}

/// The node answers that it is there.
fn pong(face: &NodeFace, machine: &Machine, query: Option<&str>) -> Response {
    if let Err(after) = may_ask(face, machine) {
        return later(after);
    }
    let id = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("id="));
    match id.and_then(|id| id.parse().ok()) {
        Some(id) => {
            face.service.pong(machine.key, id);
            Response::new(Body::empty())
        }
        None => refuse(StatusCode::NOT_FOUND, "no such ping"),
    }
}

/// Takes one token of the machine's bucket.
fn may_ask(face: &NodeFace, machine: &Machine) -> Result<(), Duration> {
    face.machines.may_ask(machine.key, clock::instant())
}

/// The answer about an SSH session that the policy lets pass only after a check, which this coordinator cannot make. An
/// error would be asked again for half an hour, with the user waiting.
fn session_refused() -> Response {
    let message = "# The policy asks for a check before this session, and this network's coordinator makes none: refused.\r\n\
                   # An SSH rule with the action \"accept\" lets it pass.\r\n";
    axum::Json(SshAction { reject: true, message: message.to_owned(), ..SshAction::default() }).into_response()
}

fn refused(refusal: &MapRefusal) -> Response {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = refuse(status, refusal.to_string());
    if let Some(after) = refusal.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

fn unwritten() -> Response {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "the coordinator cannot write its database; its log says why")
}

async fn read<T: DeserializeOwned>(face: &NodeFace, body: Incoming) -> Result<T, Response> {
    let whole = tokio::time::timeout(limits::BODY_TIME, collect(face, body));
    let (bytes, _place) =
        whole.await.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"))??;
    serde_json::from_slice(&bytes).map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

/// The bytes of a body, and for a large one its place among the large ones.
async fn collect(face: &NodeFace, mut body: Incoming) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Response> {
    let (mut bytes, mut place) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length > limits::MACHINE_BODY_BYTES {
            let most = limits::MACHINE_BODY_BYTES;
            return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {most} bytes")));
        }
        if length > limits::SMALL_BODY_BYTES && place.is_none() {
            place = face.large_bodies.acquire().await.ok();
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, place))
}
