//! The pages: plain HTML, no JavaScript, nothing loaded from elsewhere.
//!
//! They are `templates/*.html`; whatever is put into one is escaped by the template, and cleaned of what nobody sees.

use std::net::IpAddr;

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use warren_core::types::text::clean;

use super::super::answer::refuse;
use crate::service::WaitingMachine;

/// Bytes of a name or a code on a page.
const NAME_BYTES: usize = 255;
/// Bytes of a sentence that says why not.
const REASON_BYTES: usize = 1024;

/// What stands at the root.
#[derive(Template)]
#[template(path = "home.html")]
pub(super) struct Home;

/// A machine that waits, by what it says of itself, cleaned.
pub(super) struct Machine {
    code: String,
    hostname: String,
    system: String,
    tags: String,
    from: String,
    since: String,
}

/// A provider to sign in by.
pub(super) struct Link {
    pub(super) name: String,
    pub(super) title: String,
}

/// What a person should do with the code of a node that waits for approval, where there is no provider.
#[derive(Template)]
#[template(path = "waiting.html")]
pub(super) struct WaitingPage {
    pub(super) machine: Machine,
}

/// Who is it that adds this machine?
#[derive(Template)]
#[template(path = "sign_in.html")]
pub(super) struct SignInPage {
    pub(super) machine: Machine,
    pub(super) path: String,
    pub(super) providers: Vec<Link>,
}

/// Is this machine theirs?
#[derive(Template)]
#[template(path = "consent.html")]
pub(super) struct ConsentPage {
    pub(super) machine: Machine,
    pub(super) path: String,
    pub(super) user: String,
    /// Where the browser asks from, where that is elsewhere.
    pub(super) elsewhere: Option<String>,
    pub(super) token: String,
}

/// It is in.
#[derive(Template)]
#[template(path = "added.html")]
pub(super) struct AddedPage {
    pub(super) name: String,
    pub(super) addresses: String,
}

/// Somebody else has to let them in first.
#[derive(Template)]
#[template(path = "needs_approval.html")]
pub(super) struct NeedsApprovalPage {
    pub(super) user: String,
    pub(super) path: String,
}

/// Why not, and where to try again.
#[derive(Template)]
#[template(path = "refused.html")]
pub(super) struct RefusedPage {
    pub(super) reason: String,
    pub(super) path: String,
}

/// Nobody waits there, or not any more.
#[derive(Template)]
#[template(path = "unknown_ticket.html")]
pub(super) struct UnknownTicket;

impl Machine {
    pub(super) fn shown(machine: &WaitingMachine) -> Self {
        let WaitingMachine { code, hostname, os, version, tags, site, since } = machine;
        let system = [os.as_str(), version].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        Self {
            code: shown(code),
            hostname: shown(hostname),
            system: shown(&system),
            tags: shown(&tags.join(", ")),
            from: site_name(*site),
            since: since.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        }
    }
}

/// A name or a code, as it may come before a person's eyes.
pub(super) fn shown(text: &str) -> String {
    clean(text, NAME_BYTES).into_owned()
}

/// A sentence, likewise.
pub(super) fn sentence(text: &str) -> String {
    clean(text, REASON_BYTES).into_owned()
}

/// A site: of IPv6 half of an address is known.
pub(super) fn site_name(site: IpAddr) -> String {
    match site {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) if address.is_loopback() => address.to_string(),
        IpAddr::V6(address) => format!("{address}/64"),
    }
}

pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => protected((status, Html(html)).into_response()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("writing the page: {error}")),
    }
}

/// With what keeps others from showing, reading or remembering it.
pub(super) fn protected(mut response: Response) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; \
                          frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
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

    fn machine() -> Machine {
        Machine::shown(&WaitingMachine {
            code: "abcd-efgh".to_owned(),
            hostname: "<script>alert('x')</script>\u{202e}\0".to_owned(),
            os: "<img src=x>".to_owned(),
            version: "\"'>".to_owned(),
            tags: vec!["tag:<b>".to_owned(), "x".repeat(10_000)],
            site: "2001:db8::".parse().unwrap(),
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
        })
    }

    async fn text(page_of: &impl Template) -> String {
        let body = axum::body::to_bytes(page(StatusCode::OK, page_of).into_body(), 1 << 16).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_a_node_calls_itself_cannot_become_markup() {
        let text = text(&WaitingPage { machine: machine() }).await;
        assert!(text.contains("&#60;script&#62;alert(&#39;x&#39;)") && !text.contains("<script"));
        assert!(text.contains("script&#62;\u{fffd}\u{fffd} join") && text.chars().all(|c| c == '\n' || is_seen(c)));
        assert!(text.contains("warren-coordinator node approve abcd-efgh --user NAME"));
    }

    #[tokio::test]
    async fn nor_can_what_anybody_else_says_of_themselves() {
        let (evil, path) = ("<a href=//x>\u{202e}\"'", "/a/x".to_owned());
        let pages = [
            text(&SignInPage {
                machine: machine(),
                path: path.clone(),
                providers: vec![Link { name: "corp".to_owned(), title: shown(evil) }],
            })
            .await,
            text(&ConsentPage {
                machine: machine(),
                path: path.clone(),
                user: shown(evil),
                elsewhere: Some("192.0.2.1".to_owned()),
                token: "t".to_owned(),
            })
            .await,
            text(&NeedsApprovalPage { user: shown(evil), path: path.clone() }).await,
            text(&RefusedPage { reason: sentence(evil), path }).await,
        ];
        for text in pages {
            assert!(
                !["<script", "<img", "<a href=//x", "<b>", "\u{202e}"].iter().any(|bad| text.contains(bad)),
                "{text}"
            );
            assert!(text.len() < 8_000 && text.chars().all(|c| c == '\n' || is_seen(c)));
        }
    }
}
