//! What a person sees in a browser: plain HTML, no JavaScript, nothing loaded from elsewhere.
//!
//! The pages are `templates/*.html`; whatever is put into one is escaped by the template, and cleaned of what nobody sees.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{Extension, Path, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use warren_core::types::text::clean;

use super::answer::{later, refuse};
use super::connection::{Connection, SiteRate};
use crate::service::Service;

/// Bytes of a name or a code on a page.
const NAME_BYTES: usize = 255;

/// What this face uses.
pub(crate) struct SignInFace {
    pub(crate) service: Service,
    pub(crate) questions: Arc<SiteRate>,
}

pub(crate) fn routes(face: SignInFace) -> Router {
    Router::new()
        .route("/", get(async || page(StatusCode::OK, &Home)))
        .route("/a/{ticket}", get(waiting_machine))
        .with_state(Arc::new(face))
}

/// What stands at the root.
#[derive(Template)]
#[template(path = "home.html")]
struct Home;

/// What a person should do with the code of a node that waits for approval.
#[derive(Template)]
#[template(path = "waiting.html")]
struct WaitingPage<'a> {
    code: &'a str,
    hostname: &'a str,
}

/// Nobody waits there, or not any more.
#[derive(Template)]
#[template(path = "unknown_ticket.html")]
struct UnknownTicket;

async fn waiting_machine(
    State(face): State<Arc<SignInFace>>,
    Extension(connection): Extension<Connection>,
    Path(ticket): Path<String>,
) -> Response {
    if let Err(after) = face.questions.take(&connection.place) {
        return later(after);
    }
    let Ok(ticket) = ticket.parse() else { return page(StatusCode::NOT_FOUND, &UnknownTicket) };
    match face.service.pending(ticket).await {
        Ok(Some(machine)) => waiting(&machine.code, &machine.hostname),
        Ok(None) => page(StatusCode::NOT_FOUND, &UnknownTicket),
        Err(busy) => busy.into_response(),
    }
}

fn waiting(code: &str, hostname: &str) -> Response {
    let (code, hostname) = (clean(code, NAME_BYTES), clean(hostname, NAME_BYTES));
    page(StatusCode::OK, &WaitingPage { code: &code, hostname: &hostname })
}

fn page(status: StatusCode, template: &impl Template) -> Response {
    let html = match template.render() {
        Ok(html) => html,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("writing the page: {error}")),
    };
    let mut response = (status, Html(html)).into_response();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::types::text::is_seen;

    #[tokio::test]
    async fn what_a_node_calls_itself_cannot_become_markup() {
        let response = waiting("abcd-efgh", "<script>alert('x')</script>\u{202e}\0");
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("&#60;script&#62;alert(&#39;x&#39;)") && !text.contains("<script"));
        assert!(text.contains("script&#62;\u{fffd}\u{fffd} join") && text.chars().all(|c| c == '\n' || is_seen(c)));
        assert!(text.contains("warren-coordinator node approve abcd-efgh --user NAME"));
    }
}
