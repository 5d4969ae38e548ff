//! What a relay is asked over HTTP: the upgrade to the relay protocol, and the small questions by which clients
//! measure the way to it and notice captive portals. None of them needs a body.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::listen::{Connection, Site};
use crate::wire::derp::VERSION;

const PROTOCOL: &str = "DERP";
const VERSION_HEADER: &str = "derp-version";
const KEY_HEADER: &str = "derp-public-key";
const CHALLENGE: &str = "x-tailscale-challenge";
const RESPONSE: &str = "x-tailscale-response";
/// The longest challenge that is echoed, as the protocol has it.
const CHALLENGE_LEN: usize = 64;

type Answer = Response<Empty<Bytes>>;

/// Answers one request; the relay protocol goes on in a task of its own.
pub(super) fn answer(request: Request<Incoming>, site: &Arc<Site>, connection: &Connection) -> Answer {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/derp" => upgrade(request, site, connection),
        "/derp/probe" | "/derp/latency-check" if is_read => {
            // A browser that measures runs on a page of another site; there is nothing here to protect from it.
            with(StatusCode::OK, header::ACCESS_CONTROL_ALLOW_ORIGIN.as_str(), "*")
        }
        "/generate_204" if is_read => generate_204(request.headers()),
        "/derp/probe" | "/derp/latency-check" | "/generate_204" => {
            with(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW.as_str(), "GET, HEAD")
        }
        _ => bare(StatusCode::NOT_FOUND),
    }
}

fn upgrade(mut request: Request<Incoming>, site: &Arc<Site>, connection: &Connection) -> Answer {
    let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    let is_ours = wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(PROTOCOL));
    if !is_ours || request.method() != Method::GET || request.version() != Version::HTTP_11 {
        return with(StatusCode::UPGRADE_REQUIRED, header::UPGRADE.as_str(), PROTOCOL);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let (relay, from, permit) = (Arc::clone(&site.relay), connection.from, Arc::clone(&connection.permit));
    tokio::spawn(async move {
        let ended = match upgraded.await {
            Ok(io) => relay.serve(TokioIo::new(io), Some(from.ip().to_canonical())).await,
            Err(error) => return debug!(%from, %error, "upgrading to the relay protocol"),
        };
        drop(permit);
        if let Err(error) = ended {
            debug!(%from, %error, "relay connection");
        }
    });
    let mut answer = with(StatusCode::SWITCHING_PROTOCOLS, header::UPGRADE.as_str(), PROTOCOL);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(VERSION_HEADER, HeaderValue::from(VERSION));
    if let Ok(key) = HeaderValue::from_str(&HEXLOWER.encode(site.key.as_bytes())) {
        headers.insert(KEY_HEADER, key);
    }
    answer
}

/// What no captive portal answers: nothing, and the word it was asked for.
fn generate_204(headers: &HeaderMap) -> Answer {
    let mut answer = bare(StatusCode::NO_CONTENT);
    let challenge = headers.get(CHALLENGE).and_then(|value| value.to_str().ok()).filter(|text| may_echo(text));
    if let Some(value) = challenge.and_then(|text| HeaderValue::from_str(&format!("response {text}")).ok()) {
        answer.headers_mut().insert(RESPONSE, value);
    }
    answer
}

/// Whether a challenge is harmless wherever its echo may end up.
fn may_echo(challenge: &str) -> bool {
    (1..=CHALLENGE_LEN).contains(&challenge.len())
        && challenge.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
}

fn with(status: StatusCode, name: &'static str, value: &'static str) -> Answer {
    let mut answer = bare(status);
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

fn bare(status: StatusCode) -> Answer {
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_echoed_only_when_it_is_short_and_plain() {
        for good in ["a", "ts-derp.example:3340", &"x".repeat(64)] {
            assert!(may_echo(good), "{good}");
        }
        for bad in ["", "a b", "<script>", "ä", &"x".repeat(65)] {
            assert!(!may_echo(bad), "{bad}");
        }
    }
}
