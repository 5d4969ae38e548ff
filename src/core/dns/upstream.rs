//! The name servers of others that questions are passed on to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::wire::control::Resolver;

/// The port of name servers (RFC 1035 §4.2).
const PORT: u16 = 53;
/// The longest address of a server that speaks HTTP.
const URL_LEN: usize = 512;

/// A name server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upstream {
    /// Speaks DNS over UDP and TCP.
    Plain(SocketAddr),
    /// Speaks DNS over HTTP (RFC 8484).
    Http {
        /// Where questions are posted to: `https://…`, or `http://ADDRESS:PORT/dns-query` of a peer.
        url: Box<str>,
        /// Addresses of its host, so that nobody needs to be asked for them.
        addresses: Vec<IpAddr>,
    },
}

impl Upstream {
    /// Whether it runs on this host.
    pub fn is_on_this_host(&self) -> bool {
        match self {
            Self::Plain(server) => server.ip().is_loopback(),
            Self::Http { .. } => false,
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(server) if server.port() == PORT => server.ip().fmt(f),
            Self::Plain(server) => server.fmt(f),
            Self::Http { url, .. } => f.write_str(url),
        }
    }
}

impl From<IpAddr> for Upstream {
    fn from(address: IpAddr) -> Self {
        Self::Plain(SocketAddr::new(address, PORT))
    }
}

/// Why a resolver that the coordinator names cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// Such as `tls://…`.
    #[error("name server {0:?}: neither an address nor https://…")]
    Unknown(String),
    /// Would ask ourselves for ever.
    #[error("name server {0}: it would ask us again")]
    Loop(SocketAddr),
}

impl TryFrom<&Resolver> for Upstream {
    type Error = UpstreamError;

    fn try_from(resolver: &Resolver) -> Result<Self, UpstreamError> {
        let text = resolver.addr.as_str();
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Plain(address));
        }
        let is_url = (text.starts_with("https://") || text.starts_with("http://")) && text.len() <= URL_LEN;
        if is_url && !text.chars().any(char::is_whitespace) {
            return Ok(Self::Http { url: text.into(), addresses: resolver.bootstrap_resolution.clone() });
        }
        Err(UpstreamError::Unknown(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_resolver_is_read_or_refused() {
        let read = |addr: &str| Upstream::try_from(&Resolver { addr: addr.to_owned(), ..Resolver::default() });
        assert_eq!(read("192.0.2.1"), Ok(Upstream::Plain("192.0.2.1:53".parse().unwrap())));
        assert_eq!(read("2001:db8::1"), Ok(Upstream::Plain("[2001:db8::1]:53".parse().unwrap())));
        assert_eq!(read("192.0.2.1:5353"), Ok(Upstream::Plain("192.0.2.1:5353".parse().unwrap())));
        assert!(matches!(read("https://dns.example/dns-query"), Ok(Upstream::Http { .. })));
        for unknown in ["", "tls://192.0.2.1", "dns.example", "https://a b", "tailscale-app:x"] {
            assert_eq!(read(unknown), Err(UpstreamError::Unknown(unknown.to_owned())));
        }
    }
}
