//! Asks a coordinator whether to admit a client. Whatever is not a clear yes in time is a no.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::{debug, warn};

use super::Applicant;
use crate::types::NodePublic;

/// How long the whole question may take; the client waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read; an honest one has 15 bytes.
const ANSWER_BYTES: usize = 4 * 1024;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitRequest {
    node_public: NodePublic,
    /// Empty where the transport does not tell.
    source: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AdmitResponse {
    allow: bool,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Asks one URL.
pub(super) struct Verifier {
    url: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Verifier {
    /// The error is a sentence.
    pub(super) fn new(url: Uri) -> Result<Self, String> {
        let is_https = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let tls = is_https.then(|| -> Result<_, String> {
            let name = ServerName::try_from(host.clone()).map_err(|error| format!("{url}: {error}"))?;
            Ok((connector(), name))
        });
        Ok(Self { host, port, tls: tls.transpose()?, url })
    }

    pub(super) async fn admits(&self, applicant: Applicant) -> bool {
        match timeout(PATIENCE, self.ask(applicant)).await {
            Ok(Ok(allow)) => {
                debug!(node = %applicant.node, allow, "asked about a client");
                allow
            }
            Ok(Err(error)) => {
                warn!(url = %self.url, %error, "a client is refused: asking about it failed");
                false
            }
            Err(_) => {
                warn!(url = %self.url, "a client is refused: asking about it took too long");
                false
            }
        }
    }

    async fn ask(&self, applicant: Applicant) -> Result<bool, Fault> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let source = applicant.source.map_or_else(String::new, |source| source.to_string());
        let body = serde_json::to_vec(&AdmitRequest { node_public: applicant.node, source })?;
        match &self.tls {
            Some((tls, name)) => post(tls.connect(name.clone(), stream).await?, &self.url, body).await,
            None => post(stream, &self.url, body).await,
        }
    }
}

/// A connection for one question: clients come seldom, and stay.
async fn post<S>(stream: S, url: &Uri, body: Vec<u8>) -> Result<bool, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let host = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answers {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
        Ok(serde_json::from_slice::<AdmitResponse>(&body)?.allow)
    };
    // The connection moves the bytes; the answer is whole even where it ends first.
    let (answer, _) = tokio::join!(asking, connection);
    answer
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
