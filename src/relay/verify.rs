//! Asks a coordinator whether to admit a client. Whatever is not a clear yes in time is a no.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::Applicant;
use super::dial::{Stream, Target};
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
    target: Target,
}

impl Verifier {
    /// The error is a sentence.
    pub(super) fn new(url: Uri) -> Result<Self, String> {
        Target::new(url).map(|target| Self { target })
    }

    pub(super) async fn admits(&self, applicant: Applicant) -> bool {
        match timeout(PATIENCE, self.ask(applicant)).await {
            Ok(Ok(allow)) => {
                debug!(node = %applicant.node, allow, "asked about a client");
                allow
            }
            Ok(Err(error)) => {
                warn!(url = %self.target.url(), %error, "a client is refused: asking about it failed");
                false
            }
            Err(_) => {
                warn!(url = %self.target.url(), "a client is refused: asking about it took too long");
                false
            }
        }
    }

    async fn ask(&self, applicant: Applicant) -> Result<bool, Fault> {
        let source = applicant.source.map_or_else(String::new, |source| source.to_string());
        let body = serde_json::to_vec(&AdmitRequest { node_public: applicant.node, source })?;
        post(self.target.connect().await?, &self.target, body).await
    }
}

/// A connection for one question: clients come seldom, and stay.
async fn post(stream: Box<dyn Stream>, target: &Target, body: Vec<u8>) -> Result<bool, Fault> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(target.url().path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, target.authority())
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
