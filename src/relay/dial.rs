//! Connections to URLs that the operator named: the coordinator's `/verify`, the other relays of the region.

use std::sync::Arc;

use http::Uri;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tracing::warn;

use warren_shell::{DialTarget, Dialler, tune};

/// With TLS or without.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a URL leads.
pub struct Target {
    url: Uri,
    host: String,
    port: u16,
    dialler: Dialler,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// The error is a sentence.
    pub fn new(url: Uri) -> Result<Self, String> {
        let is_https = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let tls = is_https.then(|| -> Result<_, String> {
            let name = ServerName::try_from(host.clone()).map_err(|error| format!("{url}: {error}"))?;
            Ok((connector(), name))
        });
        Ok(Self { host, port, dialler: Dialler::new(None), tls: tls.transpose()?, url })
    }

    /// The URL.
    pub const fn url(&self) -> &Uri {
        &self.url
    }

    /// What a request says in `Host`.
    pub fn authority(&self) -> &str {
        self.url.authority().map_or("", |authority| authority.as_str())
    }

    /// Connects, with TLS where the URL says so.
    pub async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let place = DialTarget::new(&self.host, self.port);
        let place = if self.tls.is_some() { place } else { place.plain() };
        let stream = self.dialler.dial(&place).await.map_err(std::io::Error::other)?;
        tune(&stream)?;
        Ok(match &self.tls {
            Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await?),
            None => Box::new(stream),
        })
    }
}

/// Trusts whom this host trusts.
fn connector() -> TlsConnector {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        warn!(%error, "reading the host's certificates");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
