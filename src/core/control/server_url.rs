//! Where a coordinator is.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use thiserror::Error;

/// With or without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// Without. The secure channel inside needs none, but the coordinator's key then comes unauthenticated.
    Http,
    /// With.
    Https,
}

/// The URL of a coordinator: scheme, host, port, and the path under which it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    host: String,
    port: Option<u16>,
    path: String,
}

/// Why a text is not a coordinator's URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServerUrlError {
    /// Neither `http://` nor `https://`.
    #[error("a coordinator's URL begins with http:// or https://")]
    Scheme,
    /// No host, or one with characters that no host name has.
    #[error("{0:?} is not a host name or address")]
    Host(String),
    /// Not a port number.
    #[error("{0:?} is not a port")]
    Port(String),
    /// A user name, query or fragment.
    #[error("a coordinator's URL has no user name, query or fragment")]
    Extra,
    /// Longer than [`ServerUrl::MAX_LEN`].
    #[error("a coordinator's URL has at most {max} characters", max = ServerUrl::MAX_LEN)]
    Long,
}

impl ServerUrl {
    /// The longest URL we take: far beyond what anyone types.
    pub const MAX_LEN: usize = 2048;

    /// With or without TLS.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host as it is dialled: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, where the URL names one.
    pub const fn explicit_port(&self) -> Option<u16> {
        self.port
    }

    /// The port to dial.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        })
    }

    /// Host and port as a `Host` header names them.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The path of `tail` (which begins with a slash) on this coordinator.
    pub fn path(&self, tail: &str) -> String {
        format!("{}{tail}", self.path)
    }

    /// Whether a text is short and plain enough to be an address of anything.
    pub fn is_plain(url: &str) -> bool {
        url.len() <= Self::MAX_LEN && url.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Whether `url` is one that this coordinator may make us ask: plain http or https, on its own host.
    pub fn is_own(&self, url: &str) -> bool {
        let origin = url.find(['?', '#']).map_or(url, |end| &url[..end]);
        Self::is_plain(url) && origin.parse::<Self>().is_ok_and(|other| other.host == self.host)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        if text.len() > Self::MAX_LEN {
            return Err(ServerUrlError::Long);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            _ => return Err(ServerUrlError::Scheme),
        };
        if rest.contains(['@', '?', '#']) || rest.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(ServerUrlError::Extra);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rfind(':').filter(|colon| !authority[*colon..].contains(']')) {
            Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
            None => (authority, None),
        };
        let port = match port {
            Some(digits) => Some(parse_port(digits).ok_or_else(|| ServerUrlError::Port(digits.to_owned()))?),
            None => None,
        };
        if !is_host(host) {
            return Err(ServerUrlError::Host(host.to_owned()));
        }
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port, path })
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    digits.parse().ok().filter(|port| *port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_url_is_taken_apart() {
        for (text, host, port, authority, key_path) in [
            ("https://vpn.example.org", "vpn.example.org", 443, "vpn.example.org", "/key"),
            ("HTTP://VPN.example.org/", "vpn.example.org", 80, "vpn.example.org", "/key"),
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1:8080", "/key"),
            ("https://[fd00::1]:8443/net/", "fd00::1", 8443, "[fd00::1]:8443", "/net/key"),
            ("https://[fd00::1]", "fd00::1", 443, "[fd00::1]", "/key"),
        ] {
            let url = url(text);
            assert_eq!(
                (url.host(), url.port(), &*url.authority(), &*url.path("/key")),
                (host, port, authority, key_path)
            );
        }
    }

    #[test]
    fn what_is_no_url_of_a_coordinator_is_refused_with_the_reason() {
        for (text, error) in [
            ("vpn.example.org", ServerUrlError::Scheme),
            ("ftp://vpn.example.org", ServerUrlError::Scheme),
            ("https://", ServerUrlError::Host(String::new())),
            ("https://a b", ServerUrlError::Extra),
            ("https://user@host", ServerUrlError::Extra),
            ("https://host/?key=1", ServerUrlError::Extra),
            ("https://host:0", ServerUrlError::Port("0".to_owned())),
            ("https://host:+1", ServerUrlError::Port("+1".to_owned())),
            ("https://host:65536", ServerUrlError::Port("65536".to_owned())),
            ("https://[::1", ServerUrlError::Host("[".to_owned())),
            ("https://[::zz]", ServerUrlError::Host("[::zz]".to_owned())),
            ("https://h%6fst", ServerUrlError::Host("h%6fst".to_owned())),
        ] {
            let found = text.parse::<ServerUrl>().unwrap_err();
            if text == "https://[::1" {
                assert!(matches!(found, ServerUrlError::Host(_) | ServerUrlError::Port(_)), "{text}");
            } else {
                assert_eq!(found, error, "{text}");
            }
        }
    }

    #[test]
    fn a_coordinator_may_only_make_us_ask_itself() {
        let server = url("https://vpn.example.org:8443/net");
        for (asked, own) in [
            ("https://vpn.example.org/machine/ping-response?id=1", true),
            ("http://VPN.example.org:8080/x?a=b#c", true),
            ("https://vpn.example.org.evil.net/", false),
            ("https://vpn.example.org@evil.net/", false),
            ("https://evil.net/?https://vpn.example.org", false),
            ("https://evil.net#@vpn.example.org/", false),
            ("file:///etc/passwd", false),
            ("https://vpn.example.org/\r\nX: y", false),
            ("", false),
        ] {
            assert_eq!(server.is_own(asked), own, "{asked:?}");
        }
    }

    proptest! {
        #[test]
        fn a_url_reads_back_what_it_prints(
            https in any::<bool>(), host in "[a-z0-9]{1,10}(\\.[a-z]{1,5})?", port in prop::option::of(1_u16..),
            path in "(/[a-z]{1,5}){0,2}",
        ) {
            let scheme = if https { "https" } else { "http" };
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let text = format!("{scheme}://{host}{port}{path}");
            prop_assert_eq!(url(&text).to_string(), text);
        }

        #[test]
        fn any_text_is_a_url_or_an_error(text in "(https?://)?.{0,40}") {
            let server = url("https://vpn.example.org");
            prop_assert!(!server.is_own(&text) || text.contains("vpn.example.org"));
            if let Ok(parsed) = text.parse::<ServerUrl>() {
                prop_assert_eq!(parsed.to_string().parse::<ServerUrl>().unwrap(), parsed);
            }
        }
    }
}
