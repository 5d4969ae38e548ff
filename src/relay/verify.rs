//! Asks a coordinator whether to admit a client.
//!
//! A clear yes admits and a clear no refuses. While the coordinator cannot be asked, those whom it said yes to within
//! [`REMEMBERED`] stay admitted, so that its restart, or an outage of a night, does not cut off the nodes that need
//! their relay most; all others are refused, or admitted where the operator says so (`--verify-fail-open`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::dial::{Stream, Target};
use super::{Applicant, clock};
use warren_core::types::{Limit, NodePublic};

/// How long the whole question may take; the client waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read; an honest one has 15 bytes.
const ANSWER_BYTES: usize = 4 * 1024;
/// How long a yes counts while the coordinator cannot be asked: a night.
const REMEMBERED: Duration = Duration::from_secs(12 * 3600);
/// After a question that failed nobody whose yes is remembered has to wait for the next to fail.
const PAUSE: Duration = Duration::from_secs(10);
/// Each is a node of the network, of which there are no more.
const ANSWERS: Limit = Limit::new("remembered answers", 20_000);

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
    memory: Mutex<Memory>,
}

impl Verifier {
    /// The error is a sentence.
    pub(super) fn new(url: Uri, fail_open: bool) -> Result<Self, String> {
        Ok(Self { target: Target::new(url)?, memory: Mutex::new(Memory::new(fail_open)) })
    }

    pub(super) async fn admits(&self, applicant: Applicant) -> bool {
        let node = applicant.node;
        if self.memory().is_known_while_paused(&node, clock::now()) {
            return true;
        }
        let answer = match timeout(PATIENCE, self.ask(applicant)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("it took too long".to_owned()),
        };
        let now = clock::now();
        let url = self.target.url();
        match answer {
            Ok(allow) => {
                debug!(%node, allow, "asked about a client");
                if self.memory().handle_answer(node, allow, now) {
                    info!(%url, "the coordinator can be asked about clients again");
                }
                allow
            }
            Err(error) => {
                let (allow, is_first) = self.memory().handle_failure(&node, now);
                if is_first {
                    warn!(%url, error, "asking about clients fails; who was admitted in the last hours stays so");
                }
                allow
            }
        }
    }

    async fn ask(&self, applicant: Applicant) -> Result<bool, Fault> {
        let source = applicant.source.map_or_else(String::new, |source| source.to_string());
        let body = serde_json::to_vec(&AdmitRequest { node_public: applicant.node, source })?;
        post(self.target.connect().await?, &self.target, body).await
    }

    /// Each visit leaves the memory whole.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the coordinator said last, for when it says nothing.
#[derive(Debug)]
struct Memory {
    fail_open: bool,
    /// When it last said yes to whom.
    admitted: BTreeMap<NodePublic, Instant>,
    /// When asking last failed, since the last answer.
    failed: Option<Instant>,
}

impl Memory {
    const fn new(fail_open: bool) -> Self {
        Self { fail_open, admitted: BTreeMap::new(), failed: None }
    }

    /// Whether a client is admitted without a question, because one has just failed.
    fn is_known_while_paused(&self, node: &NodePublic, now: Instant) -> bool {
        self.failed.is_some_and(|at| now < at + PAUSE) && self.remembers(node, now)
    }

    /// The coordinator answered; `true` where it did not before.
    fn handle_answer(&mut self, node: NodePublic, allow: bool, now: Instant) -> bool {
        if allow {
            self.make_room(&node, now);
            self.admitted.insert(node, now);
        } else {
            self.admitted.remove(&node);
        }
        self.failed.take().is_some()
    }

    /// The coordinator did not answer: whether to admit the client all the same, and whether that is news.
    fn handle_failure(&mut self, node: &NodePublic, now: Instant) -> (bool, bool) {
        let is_first = self.failed.replace(now).is_none();
        (self.fail_open || self.remembers(node, now), is_first)
    }

    fn remembers(&self, node: &NodePublic, now: Instant) -> bool {
        self.admitted.get(node).is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED)
    }

    fn make_room(&mut self, node: &NodePublic, now: Instant) {
        if self.admitted.len() < ANSWERS.most || self.admitted.contains_key(node) {
            return;
        }
        self.admitted.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        if self.admitted.len() >= ANSWERS.most
            && let Some(oldest) = self.admitted.iter().min_by_key(|(_, at)| **at).map(|(node, _)| *node)
        {
            self.admitted.remove(&oldest);
        }
    }
}

/// A connection for one question: clients come seldom, and stay.
pub(super) async fn post(stream: Box<dyn Stream>, target: &Target, body: Vec<u8>) -> Result<bool, Fault> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: NodePublic = NodePublic::from_bytes([1; 32]);
    const EVE: NodePublic = NodePublic::from_bytes([2; 32]);

    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_yes_counts_for_hours_while_nobody_can_be_asked_and_a_no_at_once() {
        let (mut memory, now) = (Memory::new(false), origin());
        assert_eq!(memory.handle_failure(&ADA, now), (false, true), "a stranger");
        assert!(memory.handle_answer(ADA, true, now), "it answers again");
        assert!(!memory.is_known_while_paused(&ADA, now), "who can be asked is asked");
        let later = now + REMEMBERED / 2;
        assert_eq!(memory.handle_failure(&ADA, later), (true, true));
        assert!(memory.is_known_while_paused(&ADA, later) && !memory.is_known_while_paused(&EVE, later));
        assert_eq!(memory.handle_failure(&EVE, later), (false, false), "a lasting fault is told once");
        assert!(!memory.is_known_while_paused(&ADA, later + PAUSE));
        assert!(!memory.handle_failure(&ADA, now + REMEMBERED).0, "too long ago");
        memory.handle_answer(ADA, true, now);
        memory.handle_answer(ADA, false, now);
        assert!(!memory.handle_failure(&ADA, now).0, "a no is the last word");
    }

    #[test]
    fn an_operator_may_prefer_strangers_to_an_outage() {
        let (mut memory, now) = (Memory::new(true), origin());
        assert!(memory.handle_failure(&EVE, now).0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let (mut memory, now) = (Memory::new(false), origin());
        for number in 0..=ANSWERS.most {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
            memory.handle_answer(NodePublic::from_bytes(bytes), true, now + Duration::from_millis(number as u64));
        }
        assert_eq!(memory.admitted.len(), ANSWERS.most);
        assert!(!memory.admitted.contains_key(&NodePublic::from_bytes([0; 32])));
    }
}
