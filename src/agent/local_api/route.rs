//! The calls of the local socket, and what each asks for.
//!
//! The router is built once. A request brings the [`Answerer`] of its connection, which knows who asks and whom to ask; a
//! handler reads what the call says and gives it that.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, OriginalUri, Query};
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, any, on};
use futures_util::FutureExt;
use http::{HeaderMap, Method, StatusCode, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::refused;
use super::{dial, elsewhere};
use warren_core::dns::record_type;
use warren_core::node::{Refusal, Request, Subject};
use warren_core::types::{NodeId, UserId};
use warren_core::wire::local::{Mask, MaskedPrefs, PingKind, path};

/// Answers what one request asks.
#[derive(Clone)]
pub(super) struct Answerer(Arc<dyn Fn(Request) -> Answering + Send + Sync>);

/// An answer on its way.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

impl Answerer {
    /// One that answers by this.
    pub(super) fn new(answer: impl Fn(Request) -> Answering + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    async fn answer(self, asked: Result<Request, Refusal>) -> Response {
        match asked {
            Ok(request) => (self.0)(request).await,
            Err(refusal) => refused(&refusal),
        }
    }
}

/// The answer to a request, by the [`Answerer`] that it brings.
pub(super) async fn route(request: http::Request<Body>) -> Response {
    static ROUTER: LazyLock<TowerToHyperService<Router>> = LazyLock::new(|| TowerToHyperService::new(router()));
    let Ok(response) = ROUTER.call(request).await;
    response
}

/// What a request asks for, or the status of its refusal.
pub fn asked(method: Method, uri: Uri, body: Vec<u8>) -> Result<Request, StatusCode> {
    let place = Arc::new(Mutex::new(None));
    let held = Arc::clone(&place);
    let answerer = Answerer::new(move |request| {
        *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        Box::pin(std::future::ready(Response::default()))
    });
    let mut request = http::Request::new(Body::from(body));
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    request.extensions_mut().insert(answerer);
    // All of it is there already, so nothing is waited for.
    let status = route(request).now_or_never().map(|response| response.status());
    let asked = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    asked.ok_or(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
}

/// The calls: those that Tailscale's clients know, and our own.
fn router() -> Router {
    let theirs = Router::new()
        .route("/status", query(GET, |asked: Peers| Ok(Request::Status { peers: flag(asked.peers.as_deref(), true) })))
        .route("/whois", query(GET, |asked: WhoIs| Ok(Request::WhoIs(subject(&asked.addr)?))))
        .route("/peer-by-id", query(GET, |asked: Number| Ok(Request::Peer(NodeId(asked.id)))))
        .route("/user-profile", query(GET, |asked: Number| Ok(Request::User(UserId(asked.id)))))
        .route("/prefs", call(GET, || Request::Prefs).patch(edit_prefs))
        .route("/check-prefs", json(POST, Request::CheckPrefs))
        .route("/start", json(POST, Request::Start))
        .route("/login-interactive", call(POST, || Request::Login))
        .route("/logout", call(POST, || Request::Logout))
        .route("/watch-ipn-bus", query(GET, |asked: Watch| Ok(Request::Watch(Mask(asked.mask)))))
        .route("/ping", query(POST, |asked: Ping| ping(&asked)))
        .route("/derpmap", call(GET, || Request::DerpMap))
        .route("/dns-config", call(GET, || Request::DnsConfig))
        .route("/dns-query", query(GET, dns_query))
        .route("/dns-osconfig", call(GET, || Request::DnsOsConfig))
        .route("/usermetrics", call(GET, || Request::Metrics { all: false }))
        .route("/metrics", call(GET, || Request::Metrics { all: true }))
        .route("/bugreport", query(POST, |asked: Note| Ok(Request::BugReport(asked.short()))))
        .route("/debug", query(POST, |asked: Debug| debug(&asked.action)))
        .route("/dial", on(MethodFilter::POST, dialled).fallback(unknown))
        .route("/tka/status", call(GET, || Request::LockStatus))
        // Clients ask for features in either way.
        .route("/optional-features", any(answered(|| Request::Features)))
        .route("/check-udp-gro-forwarding", call(GET, || Request::CheckGro))
        .route("/cert-domains", call(GET, || Request::CertDomains))
        .route("/serve-config", call(GET, || Request::ServeConfig))
        .route("/profiles/current", call(GET, || Request::Profile))
        .route("/profiles/", call(GET, || Request::Profiles));
    let ours = Router::new()
        .route("/plan", call(GET, || Request::Plan))
        .route("/health", call(GET, || Request::Health))
        .route("/settled", call(GET, || Request::Settled))
        .route("/kept", call(GET, || Request::Kept))
        .route("/rotate-keys", call(POST, || Request::RotateKeys))
        .route("/version", call(GET, || Request::Version))
        .route("/netcheck", call(GET, || Request::Netcheck))
        .route("/relays", call(GET, || Request::Relays))
        .route("/dns-status", call(GET, || Request::DnsStatus))
        .route("/acl", call(GET, || Request::Acl))
        .route("/why", query(GET, |asked| Ok(Request::Why(asked))));
    Router::new()
        .nest(path::TAILSCALE.trim_end_matches('/'), theirs)
        .nest(path::WARREN.trim_end_matches('/'), ours)
        .fallback(unknown)
        // The body's size was judged when it was read.
        .layer(DefaultBodyLimit::disable())
}

/// The method that a call takes, and its name.
type Verb = (MethodFilter, &'static str);

const GET: Verb = (MethodFilter::GET, "GET");
const POST: Verb = (MethodFilter::POST, "POST");

/// A call that takes this method alone.
fn only<T: 'static>((method, name): Verb, handler: impl Handler<T, ()>) -> MethodRouter {
    on(method, handler).fallback(move || async move { refused(&Refusal::new(405, format!("use {name}"))) })
}

/// A call that says nothing more.
fn call(method: Verb, request: fn() -> Request) -> MethodRouter {
    only(method, answered(request))
}

fn answered(request: fn() -> Request) -> impl Fn(Extension<Answerer>) -> Answering + Clone + Send + Sync + 'static {
    move |Extension(answerer)| Box::pin(answerer.answer(Ok(request())))
}

/// A call that says more in its query.
fn query<T: DeserializeOwned + 'static>(method: Verb, request: fn(T) -> Result<Request, Refusal>) -> MethodRouter {
    only(method, move |Extension(answerer): Extension<Answerer>, uri: Uri| {
        let asked = Query::try_from_uri(&uri).map_err(|error| Refusal::new(400, error.body_text()));
        answerer.answer(asked.and_then(|Query(asked)| request(asked)))
    })
}

/// A call that says more in its body. Clients name no type of it.
fn json<T: DeserializeOwned + 'static>(method: Verb, request: fn(T) -> Request) -> MethodRouter {
    only(method, move |Extension(answerer): Extension<Answerer>, body: Bytes| answerer.answer(read(&body).map(request)))
}

async fn edit_prefs(Extension(answerer): Extension<Answerer>, body: Bytes) -> Response {
    answerer.answer(read::<MaskedPrefs>(&body).map(Request::EditPrefs)).await
}

async fn dialled(Extension(answerer): Extension<Answerer>, headers: HeaderMap) -> Response {
    answerer.answer(dial::wanted(&headers)).await
}

/// There is no such call, or none that is served: of those that official clients know it is said why.
async fn unknown(OriginalUri(uri): OriginalUri) -> Response {
    let known = uri.path().strip_prefix(path::TAILSCALE).and_then(elsewhere::refusal);
    refused(&known.unwrap_or_else(|| Refusal::new(404, format!("no call {}", uri.path()))))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("body: {error}")))
}

#[derive(Deserialize)]
struct Peers {
    peers: Option<String>,
}

#[derive(Deserialize)]
struct WhoIs {
    addr: String,
}

#[derive(Deserialize)]
struct Number {
    id: u64,
}

#[derive(Deserialize)]
struct Watch {
    #[serde(default)]
    mask: u64,
}

#[derive(Deserialize)]
struct Ping {
    ip: IpAddr,
    #[serde(default)]
    r#type: String,
}

#[derive(Deserialize)]
struct Note {
    #[serde(default)]
    note: String,
}

impl Note {
    fn short(self) -> String {
        self.note.chars().take(NOTE_LEN).collect()
    }
}

#[derive(Deserialize)]
struct Debug {
    #[serde(default)]
    action: String,
}

#[derive(Deserialize)]
struct DnsQuery {
    name: String,
    #[serde(default)]
    r#type: String,
}

/// A boolean as Go reads one; anything else counts as not said.
fn flag(text: Option<&str>, default: bool) -> bool {
    match text {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        _ => default,
    }
}

/// Longer ones are nobody's remark on a fault.
const NOTE_LEN: usize = 1_024;

fn debug(action: &str) -> Result<Request, Refusal> {
    match action {
        "current-netmap" => Ok(Request::NetMap),
        "" => Err(Refusal::new(400, "no action")),
        _ => Err(Refusal::new(501, format!("this agent does not serve `debug` with the action `{action}`"))),
    }
}

fn dns_query(asked: DnsQuery) -> Result<Request, Refusal> {
    let kind = match asked.r#type.as_str() {
        "" => "A",
        // As official clients say it.
        "ALL" => "ANY",
        other => other,
    };
    let number = record_type(kind).ok_or_else(|| Refusal::new(501, format!("no records of type `{kind}`")))?;
    Ok(Request::DnsQuery(asked.name, number))
}

fn ping(asked: &Ping) -> Result<Request, Refusal> {
    let kind = PingKind::from_name(&asked.r#type);
    let kind =
        kind.ok_or_else(|| Refusal::new(400, format!("no ping of type `{}`; use disco or ICMP", asked.r#type)))?;
    Ok(Request::Ping(asked.ip, kind))
}

fn subject(text: &str) -> Result<Subject, Refusal> {
    if let Ok(key) = text.parse() {
        return Ok(Subject::Key(key));
    }
    let address = text.parse::<SocketAddr>().map(|socket| socket.ip()).or_else(|_| text.parse());
    address.map(Subject::Address).map_err(|_| Refusal::new(400, format!("`{text}` is no address and no node key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, uri: &str, body: &str) -> Result<Request, StatusCode> {
        asked(method, uri.parse().unwrap(), body.as_bytes().to_vec())
    }

    fn refusal(method: Method, uri: &str, body: &str) -> StatusCode {
        ask(method, uri, body).err().unwrap()
    }

    #[test]
    fn a_status_has_peers_unless_they_are_not_wanted() {
        for (uri, wanted) in [("", true), ("?peers=false", false), ("?peers=perhaps", true)] {
            let asked = ask(Method::GET, &format!("/localapi/v0/status{uri}"), "");
            assert!(matches!(asked, Ok(Request::Status { peers }) if peers == wanted), "{uri}");
        }
    }

    #[test]
    fn whois_takes_an_address_an_address_with_a_port_and_a_key() {
        let key = "nodekey:8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        for (text, subject) in [
            ("100.64.0.1", Subject::Address("100.64.0.1".parse().unwrap())),
            ("100.64.0.1%3A80", Subject::Address("100.64.0.1".parse().unwrap())),
            ("%5Bfd7a%3A115c%3Aa1e0%3A%3A1%5D%3A80", Subject::Address("fd7a:115c:a1e0::1".parse().unwrap())),
            (key, Subject::Key(key.parse().unwrap())),
        ] {
            let asked = ask(Method::GET, &format!("/localapi/v0/whois?addr={text}"), "");
            assert!(matches!(asked, Ok(Request::WhoIs(found)) if found == subject), "{text}");
        }
        assert_eq!(refusal(Method::GET, "/localapi/v0/whois?addr=web", ""), 400);
        assert_eq!(refusal(Method::GET, "/localapi/v0/whois", ""), 400);
    }

    #[test]
    fn only_calls_that_change_something_need_an_operator() {
        for (method, uri, body, changes) in [
            (Method::GET, "/localapi/v0/prefs", "", false),
            (Method::PATCH, "/localapi/v0/prefs", "{}", true),
            (Method::POST, "/localapi/v0/start", "{}", true),
            (Method::POST, "/localapi/v0/login-interactive", "", true),
            (Method::POST, "/localapi/v0/logout", "", true),
            (Method::GET, "/localapi/v0/watch-ipn-bus?mask=2", "", false),
            (Method::GET, "/warren/v0/plan", "", false),
        ] {
            assert_eq!(ask(method, uri, body).unwrap().changes(), changes, "{uri}");
        }
    }

    #[test]
    fn a_wrong_method_a_broken_body_and_an_unknown_call_are_told_apart() {
        assert_eq!(refusal(Method::GET, "/localapi/v0/start", ""), 405);
        assert_eq!(refusal(Method::DELETE, "/localapi/v0/prefs", ""), 405);
        assert_eq!(refusal(Method::POST, "/warren/v0/plan", ""), 405);
        assert_eq!(refusal(Method::PATCH, "/localapi/v0/prefs", "{"), 400);
        assert_eq!(refusal(Method::GET, "/localapi/v0/no-such-call", ""), 404);
        assert_eq!(refusal(Method::GET, "/etc/passwd", ""), 404);
    }

    #[test]
    fn printing_a_question_never_prints_its_key() {
        let start = ask(Method::POST, "/localapi/v0/start", r#"{"AuthKey":"secret"}"#).unwrap();
        assert!(!format!("{start:?}").contains("secret"));
    }
}
