//! What is asked of a provider over HTTP: with limits on time and size, no redirects, and to no address that the provider
//! should not lead us to.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use openidconnect::url::Url;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use thiserror::Error;

/// How long one answer may take; somebody waits in front of a browser.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read: the keys of the largest providers have some 20 KiB.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Asks one provider.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    client: reqwest::Client,
    /// The provider, as the operator named it.
    issuer: Url,
}

/// Why a provider gave no answer that is of use.
#[derive(Debug, Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("{0} is not an address that it may send us to")]
    Astray(String),
    #[error("it answers with more than {ANSWER_BYTES} bytes")]
    TooLong,
    #[error("{0}")]
    Request(#[from] http::Error),
}

impl Fetch {
    pub(super) fn new(issuer: &str) -> Result<Self, String> {
        let issuer: Url = issuer.parse().map_err(|error| format!("{issuer:?}: {error}"))?;
        let is_here = issuer.host_str().is_some_and(is_this_host);
        if !(issuer.scheme() == "https" || issuer.scheme() == "http" && is_here) {
            return Err(format!("{issuer}: an issuer is asked over https"));
        }
        let resolver = Arc::new(Resolver { issuer: issuer.host_str().unwrap_or_default().to_owned() });
        let tls = tls().map_err(|error| format!("to ask {issuer}: {error}"))?;
        let client = reqwest::Client::builder().redirect(Policy::none()).timeout(PATIENCE).dns_resolver(resolver);
        // A proxy would look names up in our place.
        let client = client.tls_backend_preconfigured(tls).no_proxy();
        let client = client.user_agent(concat!("warren-coordinator/", env!("CARGO_PKG_VERSION"))).build();
        Ok(Self { client: client.map_err(|error| format!("to ask {issuer}: {error}"))?, issuer })
    }

    /// Asks one thing.
    pub(super) async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        let (parts, body) = request.into_parts();
        let url: Url = parts.uri.to_string().parse().map_err(|_| FetchError::Astray(parts.uri.to_string()))?;
        self.may_ask(&url)?;
        let request = self.client.request(parts.method, url).headers(parts.headers).body(body);
        let mut response = request.send().await?;
        let mut answer = http::Response::builder().status(response.status());
        for (name, value) in response.headers() {
            answer = answer.header(name, value);
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await? {
            if bytes.len() + piece.len() > ANSWER_BYTES {
                return Err(FetchError::TooLong);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(answer.body(bytes)?)
    }

    /// Whether people may be sent there.
    pub(super) fn may_show(&self, url: &Url) -> bool {
        url.host_str().is_some() && (url.scheme() == "https" || url.scheme() == self.issuer.scheme())
    }

    /// A provider may send us to where it is itself, and to the world; not to what only we can reach.
    fn may_ask(&self, url: &Url) -> Result<(), FetchError> {
        let is_its_own = url.host_str() == self.issuer.host_str();
        let is_safe = url.scheme() == "https" || is_its_own && url.scheme() == self.issuer.scheme();
        let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        match is_safe && (is_its_own || !literal.is_some_and(is_inner)) {
            true => Ok(()),
            false => Err(FetchError::Astray(url.to_string())),
        }
    }
}

impl<'c> AsyncHttpClient<'c> for Fetch {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.ask(request))
    }
}

/// Looks names up, and finds nothing inner for a name that is not the issuer's.
struct Resolver {
    issuer: String,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let is_its_own = name.as_str() == self.issuer;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.filter(|address| is_its_own || !is_inner(address.ip())).collect();
            if found.is_empty() {
                let reason = format!("{}: no address that a provider may send us to", name.as_str());
                return Err(io::Error::other(reason).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Trusts whom this host trusts.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "reading the host's certificates");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

fn is_this_host(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether an address leads to this host or a network that the world does not reach.
fn is_inner(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified() || is_shared || a >= 224
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            v6.is_loopback() || v6 == Ipv6Addr::UNSPECIFIED || first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_leads_nowhere_that_only_we_can_reach() {
        let fetch = Fetch::new("https://idp.example.org/x").unwrap();
        let may = |url: &str| fetch.may_ask(&url.parse().unwrap()).is_ok();
        for good in ["https://idp.example.org/token", "https://keys.example.net/jwks", "https://192.0.2.1/"] {
            assert!(may(good), "{good}");
        }
        for bad in [
            "http://idp.example.org/token",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/latest",
            "https://10.0.0.1/",
            "https://100.64.0.1/",
            "https://[fd7a:115c:a1e0::1]/",
            "https://[::ffff:127.0.0.1]/",
            "file:///etc/passwd",
        ] {
            assert!(!may(bad), "{bad}");
        }
    }

    #[test]
    fn an_issuer_is_asked_over_https_unless_it_is_on_this_host() {
        for good in ["https://idp.example.org", "http://127.0.0.1:4444", "http://localhost:4444/x"] {
            assert!(Fetch::new(good).is_ok(), "{good}");
        }
        for bad in ["http://idp.example.org", "ftp://127.0.0.1", "idp.example.org", "http://127.0.0.1.example.org"] {
            assert!(Fetch::new(bad).is_err(), "{bad}");
        }
    }
}
