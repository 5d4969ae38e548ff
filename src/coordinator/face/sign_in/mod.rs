//! What a person sees in a browser: the page of a machine that waits, and sign-in by a provider.
//!
//! GET changes nothing but the attempt that it begins; what lasts takes a form that was shown to this browser, sent from a
//! page of ours. Lost state is a page that says to begin again on the device.

mod browser;
mod pages;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use warren_core::registry::Ticket;

use super::answer::{later, refuse};
use super::connection::{Connection, SiteRate};
use crate::limits;
use crate::service::{Answer, Begun, Busy, CALLBACK, Finished, Service, SignIn, SignInError, Visit, Visitor};
use browser::{Cookies, is_from_here};
use pages::{
    AddedPage, ConsentPage, Home, Link, Machine, NeedsApprovalPage, RefusedPage, SignInPage, UnknownTicket,
    WaitingPage, page, protected, sentence, shown, site_name,
};

/// What this face uses.
pub(crate) struct SignInFace {
    pub(crate) service: Service,
    pub(crate) questions: Arc<SiteRate>,
}

pub(crate) fn routes(face: SignInFace) -> Router {
    Router::new()
        .route("/", get(async || page(StatusCode::OK, &Home)))
        .route("/a/{ticket}", get(waiting_machine))
        .route("/a/{ticket}/with/{provider}", get(to_provider))
        .route(CALLBACK, get(from_provider))
        .route("/a/{ticket}/add", post(add))
        .route("/a/{ticket}/sign-out", post(sign_out))
        // What no face has is answered by this one, for it is people who mistype.
        .fallback(async || refuse(StatusCode::NOT_FOUND, ""))
        // Of answers that the router gives itself too: 404, 405, whatever it comes to refuse.
        .layer(map_response(async |response: Response| protected(response)))
        .with_state(Arc::new(face))
}

impl SignInFace {
    fn sign_in(&self) -> &SignIn {
        self.service.sign_in()
    }

    fn cookies(&self) -> Cookies {
        Cookies::of(self.sign_in().server_url())
    }

    fn visitor(&self, connection: &Connection, headers: &HeaderMap) -> Visitor {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        Visitor {
            address: connection.from.ip().to_canonical(),
            agent: agent.to_owned(),
            session: self.cookies().session(headers),
        }
    }
}

async fn waiting_machine(
    State(face): State<Arc<SignInFace>>,
    Extension(connection): Extension<Connection>,
    Path(ticket): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let Ok(ticket) = ticket.parse::<Ticket>() else { return unknown() };
    let session = face.cookies().session(&headers);
    let visit = face.service.visit(ticket, session.as_ref().map(|session| session.session())).await;
    let (machine, user) = match visit {
        Ok(Some(Visit { machine, user })) => (machine, user),
        Ok(None) => return unknown(),
        Err(busy) => return busy.into_response(),
    };
    let (shown_machine, path) = (Machine::shown(&machine), ticket.path());
    let providers: Vec<Link> = face.sign_in().providers().map(link).collect();
    match (user, session) {
        (_, _) if providers.is_empty() => page(StatusCode::OK, &WaitingPage { machine: shown_machine }),
        (Some(user), Some(session)) => {
            let token = session.form_token(&path);
            let elsewhere = elsewhere(machine.site, connection.place.site());
            let consent = ConsentPage { machine: shown_machine, path, user: shown(&user), elsewhere, token };
            page(StatusCode::OK, &consent)
        }
        (None, _) | (_, None) => page(StatusCode::OK, &SignInPage { machine: shown_machine, path, providers }),
    }
}

/// Where a browser asks from, where its machine asked from elsewhere. Of those behind a proxy of this host nobody knows.
fn elsewhere(machine: IpAddr, browser: IpAddr) -> Option<String> {
    let is_known = !machine.is_loopback() && !browser.is_loopback();
    (is_known && machine != browser).then(|| site_name(browser))
}

fn link((name, title): (&str, &str)) -> Link {
    Link { name: name.to_owned(), title: shown(title) }
}

async fn to_provider(
    State(face): State<Arc<SignInFace>>,
    Extension(connection): Extension<Connection>,
    Path((ticket, provider)): Path<(String, String)>,
) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let Ok(ticket) = ticket.parse::<Ticket>() else { return unknown() };
    match face.service.begin_sign_in(ticket, &provider, connection.place.site()).await {
        Ok(Begun { url, name, secret }) => go(&url, face.cookies().set_attempt(&name, &secret)),
        Err(error) => failed(error),
    }
}

async fn from_provider(
    State(face): State<Arc<SignInFace>>,
    Extension(connection): Extension<Connection>,
    answer: Result<Query<Answer>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let Ok(Query(answer)) = answer else { return unknown() };
    let held = face.cookies().attempt(&headers, &SignIn::attempt_name(answer.state()));
    let visitor = face.visitor(&connection, &headers);
    match face.service.finish_sign_in(answer, held, visitor).await {
        Ok(Finished::SignedIn { ticket, secret }) => go(&ticket.path(), face.cookies().set_session(&secret)),
        Ok(Finished::Already { ticket }) => go(&ticket.path(), None),
        Ok(Finished::NeedsApproval { ticket, user }) => {
            page(StatusCode::OK, &NeedsApprovalPage { user: shown(&user), path: ticket.path() })
        }
        Err(error) => failed(error),
    }
}

async fn add(State(face): State<Arc<SignInFace>>, SentForm { ticket, token, visitor }: SentForm) -> Response {
    match face.service.add_machine(ticket, &token, visitor).await {
        Ok(node) => {
            let addresses = format!("{}, {}", node.ipv4, node.ipv6);
            page(StatusCode::OK, &AddedPage { name: shown(node.label.as_str()), addresses })
        }
        Err(error) => failed(error),
    }
}

async fn sign_out(State(face): State<Arc<SignInFace>>, SentForm { ticket, token, visitor }: SentForm) -> Response {
    match face.service.sign_out(ticket, &token, visitor).await {
        Ok(()) => go(&ticket.path(), face.cookies().forget_session()),
        Err(error) => failed(error),
    }
}

/// What a form says, if it comes from a page of ours; whether it was shown to this browser is the service's to say.
struct SentForm {
    ticket: Ticket,
    token: String,
    visitor: Visitor,
}

impl FromRequest<Arc<SignInFace>> for SentForm {
    type Rejection = Response;

    async fn from_request(request: Request, face: &Arc<SignInFace>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let connection = Extension::<Connection>::from_request_parts(&mut parts, face).await;
        let Extension(connection) = connection.map_err(IntoResponse::into_response)?;
        face.questions.take(&connection.place).map_err(later)?;
        let ticket = Path::<String>::from_request_parts(&mut parts, face).await.map_err(IntoResponse::into_response)?;
        let ticket: Ticket = ticket.parse().map_err(|_| unknown())?;
        if !is_from_here(&parts.headers, face.sign_in().server_url()) {
            return Err(failed(SignInError::Foreign));
        }
        let body = axum::body::to_bytes(body, limits::PLAIN_BODY_BYTES);
        let Ok(Ok(body)) = tokio::time::timeout(limits::BODY_TIME, body).await else {
            return Err(failed(SignInError::Foreign));
        };
        // A token has no letter that a form would write otherwise.
        let text = String::from_utf8_lossy(&body);
        let token = text.split('&').find_map(|field| field.strip_prefix("token=")).unwrap_or_default().to_owned();
        Ok(Self { ticket, token, visitor: face.visitor(&connection, &parts.headers) })
    }
}

fn go(to: &str, cookie: Option<HeaderValue>) -> Response {
    let mut response = protected(Redirect::to(to).into_response());
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn unknown() -> Response {
    page(StatusCode::NOT_FOUND, &UnknownTicket)
}

fn failed(error: SignInError) -> Response {
    match error {
        SignInError::Busy => Busy.into_response(),
        SignInError::Lost => unknown(),
        SignInError::Foreign => {
            let reason = "This page is not up to date. Open the link that the machine shows again.".to_owned();
            page(StatusCode::FORBIDDEN, &RefusedPage { reason, path: String::new() })
        }
        SignInError::Refused { reason, ticket } => {
            page(StatusCode::FORBIDDEN, &RefusedPage { reason: sentence(&reason), path: ticket.path() })
        }
    }
}
