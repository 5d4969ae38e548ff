//! Answers as HTTP has them.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE};
use tokio::sync::mpsc;

use super::{Reply, dial};
use warren_core::node::{Answer, Refusal, VERSION};
use warren_core::types::CapabilityVersion;

const JSON: &str = "application/json";

pub(super) fn response(reply: Reply) -> Response {
    match reply {
        Reply::Answer(Answer::Done) => of(204, "", Body::empty()),
        Reply::Answer(Answer::Json(json)) => of(200, JSON, Body::from(json)),
        Reply::Answer(Answer::Text(text)) => of(200, "text/plain", Body::from(text)),
        Reply::Stream(lines) => of(200, JSON, stream(lines)),
        Reply::Answer(Answer::Dial(to)) => refused(&Refusal::new(500, format!("{to} is not dialled here"))),
        Reply::Answer(Answer::Refused(refusal)) => refused(&refusal),
    }
}

/// No, and why.
pub(super) fn refused(refusal: &Refusal) -> Response {
    let error = serde_json::json!({ "error": refusal.text });
    of(refusal.status, JSON, Body::from(error.to_string()))
}

/// The connection is another one's from here on.
pub(super) fn switched() -> Response {
    let mut response = of(101, "", Body::empty());
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(dial::PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// Every answer says which program gives it.
pub(super) fn with_version(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("tailscale-version"), HeaderValue::from_static(VERSION));
    headers.insert(HeaderName::from_static("tailscale-cap"), HeaderValue::from(CapabilityVersion::CURRENT.0));
    response
}

fn of(status: u16, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !kind.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

fn stream(lines: mpsc::Receiver<Vec<u8>>) -> Body {
    Body::from_stream(futures_util::stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((Ok::<_, Infallible>(line), lines))
    }))
}
