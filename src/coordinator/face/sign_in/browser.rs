//! What a browser says besides what it asks for: its cookies, and which page a form was sent from.

use http::{HeaderMap, HeaderValue, header};
use warren_core::registry::BrowserSecret;

/// How long a browser keeps what it holds of an attempt.
const ATTEMPT_SECONDS: u32 = 600;
/// How long it keeps what it is signed in by; the session may end before.
const SESSION_SECONDS: u32 = 7 * 24 * 60 * 60;

/// The cookies of this server. With TLS their names say that they are of this host alone, and no other host can set them.
#[derive(Clone, Copy)]
pub(super) struct Cookies {
    is_secure: bool,
}

impl Cookies {
    pub(super) fn of(server_url: &str) -> Self {
        Self { is_secure: server_url.starts_with("https://") }
    }

    /// What the browser is signed in by.
    pub(super) fn session(self, headers: &HeaderMap) -> Option<BrowserSecret> {
        find(headers, &self.name(None))
    }

    /// What it holds of an attempt.
    pub(super) fn attempt(self, headers: &HeaderMap, attempt: &str) -> Option<BrowserSecret> {
        find(headers, &self.name(Some(attempt)))
    }

    pub(super) fn set_session(self, secret: &BrowserSecret) -> Option<HeaderValue> {
        self.set(None, secret.expose(), SESSION_SECONDS)
    }

    pub(super) fn forget_session(self) -> Option<HeaderValue> {
        self.set(None, "", 0)
    }

    pub(super) fn set_attempt(self, attempt: &str, secret: &BrowserSecret) -> Option<HeaderValue> {
        self.set(Some(attempt), secret.expose(), ATTEMPT_SECONDS)
    }

    fn name(self, attempt: Option<&str>) -> String {
        let prefix = if self.is_secure { "__Host-" } else { "" };
        attempt.map_or_else(|| format!("{prefix}warren"), |attempt| format!("{prefix}warren-attempt-{attempt}"))
    }

    fn set(self, attempt: Option<&str>, value: &str, seconds: u32) -> Option<HeaderValue> {
        let (name, secure) = (self.name(attempt), if self.is_secure { "; Secure" } else { "" });
        // Lax: the provider sends people back from another site.
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
        let mut cookie = HeaderValue::from_str(&cookie).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }
}

/// Whether a form was sent from a page of this server, as far as the browser says; one that says nothing is not believed.
pub(super) fn is_from_here(headers: &HeaderMap, server_url: &str) -> bool {
    let said = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (said("sec-fetch-site"), said("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin.eq_ignore_ascii_case(server_url),
        (None, None) => false,
    }
}

fn find(headers: &HeaderMap, wanted: &str) -> Option<BrowserSecret> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut cookies = lines.flat_map(|line| line.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    cookies.find(|(name, _)| *name == wanted).and_then(|(_, value)| BrowserSecret::shown(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_form_counts_only_from_a_page_of_this_server() {
        let url = "https://vpn.example.org";
        for (said, is_ours) in [
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")][..], true),
            (&[("sec-fetch-site", "same-site"), ("origin", url)], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("origin", url)], true),
            (&[("origin", "https://vpn.example.org.evil.net")], false),
            (&[("origin", "http://vpn.example.org")], false),
            (&[("origin", "null")], false),
            (&[], false),
        ] {
            assert_eq!(is_from_here(&headers(said), url), is_ours, "{said:?}");
        }
    }

    #[test]
    fn a_cookie_is_read_by_its_whole_name_and_only_this_host_can_set_it() {
        let secret = BrowserSecret::from_random(&[7; 32]);
        let cookies = Cookies::of("https://vpn.example.org");
        let set = cookies.set_session(&secret).unwrap();
        let set = set.to_str().unwrap();
        assert!(
            set.starts_with("__Host-warren=")
                && set.contains("; Path=/; HttpOnly; SameSite=Lax; ")
                && set.ends_with("; Secure")
        );
        let value = secret.expose();
        for (line, is_it) in [
            (format!("a=b; __Host-warren={value}"), true),
            (format!("warren={value}; x__Host-warren={value}"), false),
            ("__Host-warren=".to_owned(), false),
            ("__Host-warren=abc".to_owned(), false),
        ] {
            assert_eq!(cookies.session(&headers(&[("cookie", &line)])).is_some(), is_it, "{line}");
        }
        let plain = Cookies::of("http://127.0.0.1:8080").set_attempt("abc", &secret).unwrap();
        assert!(plain.to_str().unwrap().starts_with("warren-attempt-abc=") && !format!("{plain:?}").contains(value));
    }
}
