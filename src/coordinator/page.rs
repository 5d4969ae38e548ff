//! The few pages that a person sees in a browser: plain HTML, no JavaScript, nothing loaded from elsewhere.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use warren_core::types::text::clean;

/// Bytes of a name or a code on a page.
const NAME_BYTES: usize = 255;

/// What a person should do with the code of a node that waits for approval.
pub(crate) fn register(code: &str, hostname: &str) -> Response {
    let (code, hostname) = (escape(code), escape(hostname));
    page(
        StatusCode::OK,
        &format!(
            "<h1>Let {hostname} join</h1>\
             <p>This machine asks to join the network. Its code is</p><p class=\"code\">{code}</p>\
             <p>Check that it is the code the machine shows. Then run this on the coordinator, with the user whose \
             machine it is in place of NAME:</p>\
             <pre>warren-coordinator node approve {code} --user NAME</pre>\
             <p>The machine notices by itself. You can close this page.</p>"
        ),
    )
}

/// The code is not, or no longer, known.
pub(crate) fn unknown_code() -> Response {
    page(
        StatusCode::NOT_FOUND,
        "<h1>No machine waits with this code</h1>\
         <p>It was approved already, or too much time passed. Start the log-in on the machine again for a new code.</p>",
    )
}

/// What stands at the root.
pub(crate) fn home() -> Response {
    page(StatusCode::OK, "<h1>Warren coordinator</h1><p>Nodes join here. There is nothing to see for people.</p>")
}

fn page(status: StatusCode, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Warren</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>\
         body{{font-family:sans-serif;max-width:42em;margin:3em auto;padding:0 1em;line-height:1.5}}\
         .code{{font:bold 1.6em monospace}}pre{{background:#eee;color:#111;padding:1em;overflow-x:auto}}\
         </style></head><body>{body}</body></html>\n"
    );
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

fn escape(text: &str) -> String {
    let text = clean(text, NAME_BYTES);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::types::text::is_seen;

    #[tokio::test]
    async fn what_a_node_calls_itself_cannot_become_markup() {
        let response = register("abcd-efgh", "<script>alert('x')</script>\u{202e}\0");
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("&lt;script&gt;alert(&#39;x&#39;)") && !text.contains("<script"));
        assert!(text.contains("script&gt;\u{fffd}\u{fffd} join") && text.chars().all(|c| c == '\n' || is_seen(c)));
        assert!(text.contains("warren-coordinator node approve abcd-efgh --user NAME"));
    }
}
