//! What a relay is asked over HTTP: the upgrade to the relay protocol, and the small questions by which clients
//! measure the way to it and notice captive portals. None of them needs a body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::Relay;
use super::acme::Acme;
use warren_core::wire::derp::VERSION;
use warren_shell::{HeldPlace, WebSocketBytes, websocket_accept};

const PROTOCOL: &str = "DERP";
/// The same as a subprotocol of a WebSocket.
const SUBPROTOCOL: &str = "derp";
const VERSION_HEADER: &str = "derp-version";
const KEY_HEADER: &str = "derp-public-key";
const CHALLENGE: &str = "x-tailscale-challenge";
const RESPONSE: &str = "x-tailscale-response";
/// Where an ACME server asks, before its token.
const ACME_CHALLENGE: &str = "/.well-known/acme-challenge/";
/// The longest challenge that is echoed, as the protocol has it.
const CHALLENGE_LEN: usize = 64;

type Answer = Response<Full<Bytes>>;

/// Answers one request; the relay protocol goes on in a task of its own, which keeps `place` as long as it lasts.
pub fn answer<B>(request: Request<B>, relay: &Arc<Relay>, from: SocketAddr, place: Arc<HeldPlace>) -> Answer {
    let path = request.uri().path();
    if path == "/derp" {
        return upgrade(request, relay, from, place);
    }
    let headers = request.headers();
    let answer = match path {
        // A browser that measures runs on a page of another site; there is nothing here to protect from it.
        "/derp/probe" | "/derp/latency-check" => {
            with(StatusCode::OK, header::ACCESS_CONTROL_ALLOW_ORIGIN.as_str(), "*", "")
        }
        "/generate_204" => generate_204(headers),
        // Addresses of servers that a client could not look up by itself; the map names those of relays.
        "/bootstrap-dns" => with(StatusCode::OK, header::CONTENT_TYPE.as_str(), "application/json", "{}\n"),
        "/robots.txt" => text("User-agent: *\nDisallow: /\n"),
        "/" => text("This is a relay for the nodes of a network. There is nothing to see for people.\n"),
        _ => return bare(StatusCode::NOT_FOUND),
    };
    match *request.method() {
        Method::GET => answer,
        Method::HEAD => answer.map(|_| Full::default()),
        _ => with(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW.as_str(), "GET, HEAD", ""),
    }
}

/// Answers on a port that is there for nothing but to be asked whether a captive portal is in between, and by an ACME
/// server whether this is the domain (RFC 8555 §8.3).
pub(super) fn small_question<B>(request: &Request<B>, acme: Option<&Acme>) -> Answer {
    let path = request.uri().path();
    match *request.method() {
        Method::GET | Method::HEAD if path == "/generate_204" => generate_204(request.headers()),
        Method::GET => {
            let word = path.strip_prefix(ACME_CHALLENGE).zip(acme).and_then(|(token, acme)| acme.word(token));
            word.map_or_else(|| bare(StatusCode::NOT_FOUND), |word| Response::new(Full::from(word)))
        }
        _ => bare(StatusCode::NOT_FOUND),
    }
}

fn upgrade<B>(mut request: Request<B>, relay: &Arc<Relay>, from: SocketAddr, place: Arc<HeldPlace>) -> Answer {
    let Some((is_websocket, answer)) = switching(&request, relay) else {
        return with(StatusCode::UPGRADE_REQUIRED, header::UPGRADE.as_str(), PROTOCOL, "");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let relay = Arc::clone(relay);
    tokio::spawn(async move {
        let source = Some(from.ip().to_canonical());
        let serving = async {
            let admitted = || place.belongs();
            match upgraded.await {
                // Few clients speak it. In place, its larger state would be room that every connection keeps.
                Ok(io) if is_websocket => {
                    let io = WebSocketBytes::accept(TokioIo::new(io)).await;
                    Box::pin(relay.serve(io, source, admitted)).await
                }
                Ok(io) => relay.serve(TokioIo::new(io), source, admitted).await,
                Err(error) => {
                    debug!(%from, %error, "upgrading to the relay protocol");
                    Ok(())
                }
            }
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = place.dismissed() => return debug!(%from, "a connection makes room for others"),
        };
        if let Err(error) = ended {
            debug!(%from, %error, "relay connection");
        }
    });
    answer
}

/// The answer that grants the upgrade, and whether it is one to a WebSocket; `None` where the request asks for neither.
fn switching<B>(request: &Request<B>, relay: &Relay) -> Option<(bool, Answer)> {
    let wanted = request.headers().get(header::UPGRADE)?.to_str().ok()?;
    // The official Rust client asks by POST.
    let is_get = request.method() == Method::GET;
    if !(is_get || request.method() == Method::POST) || request.version() != Version::HTTP_11 {
        return None;
    }
    if is_get && wanted.eq_ignore_ascii_case("websocket") {
        let accept = websocket_accept(request.headers(), SUBPROTOCOL).ok()?;
        let mut answer = with(StatusCode::SWITCHING_PROTOCOLS, header::UPGRADE.as_str(), "websocket", "");
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        return Some((true, answer));
    }
    if !wanted.eq_ignore_ascii_case(PROTOCOL) {
        return None;
    }
    let mut answer = with(StatusCode::SWITCHING_PROTOCOLS, header::UPGRADE.as_str(), PROTOCOL, "");
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(VERSION_HEADER, HeaderValue::from(VERSION));
    headers.insert(KEY_HEADER, HeaderValue::from_str(&HEXLOWER.encode(relay.public().as_bytes())).ok()?);
    Some((false, answer))
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

fn text(body: &'static str) -> Answer {
    with(StatusCode::OK, header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8", body)
}

fn with(status: StatusCode, name: &'static str, value: &'static str, body: &'static str) -> Answer {
    let mut answer = bare(status);
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    *answer.body_mut() = Full::from(body);
    answer
}

fn bare(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
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
