//! Logging in and out.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Next, Phase, REQUEST_TIMEOUT, Session, Update, cut, failure_of};
use crate::control::{Failure, Reply, SessionEvent, Transmit};
use crate::types::{CapabilityVersion, NodePublic};
use crate::wire::control::{RegisterAuth, RegisterRequest, RegisterResponse};

/// How long we wait for a person before asking again: longer than any coordinator or proxy between holds the
/// request, short enough that a connection lost without a sign is noticed.
pub(super) const APPROVAL_TIMEOUT: Duration = Duration::from_secs(600);
/// How long to wait before asking about an approval again.
const APPROVAL_PAUSE: Duration = Duration::from_secs(1);

impl Session {
    pub(super) fn register(&mut self, now: Instant) {
        let id = self.next_id();
        let timeout = if self.credentials.auth_url.is_some() { APPROVAL_TIMEOUT } else { REQUEST_TIMEOUT };
        let request = Box::new(self.register_request());
        self.transmits.push_back(Transmit::Register { id, request });
        self.phase = Phase::Registering { id, since: now, deadline: now + timeout };
    }

    pub(super) fn register_request(&self) -> RegisterRequest {
        let credentials = &self.credentials;
        RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key: credentials.node_key,
            old_node_key: credentials.old_node_key,
            // The coordinator checks it.
            auth: credentials.auth_key.as_ref().map(|key| RegisterAuth { auth_key: key.expose_text().to_owned() }),
            followup: credentials.auth_url.clone().unwrap_or_default(),
            hostinfo: Some(self.facts.hostinfo.clone()),
            ephemeral: credentials.ephemeral,
            rotation: credentials.rotates,
            ..RegisterRequest::default()
        }
    }

    pub(super) fn handle_registered(&mut self, answer: &Reply, now: Instant) {
        let response = match read_registered(answer) {
            Ok(response) => response,
            Err(failure) => return self.register_failed(failure, now),
        };
        if !response.error.is_empty() {
            // A page that leads nowhere must not be waited for again.
            self.credentials.auth_url = None;
            return self.wait(Failure::Refused(cut(&response.error)), Next::Register, now);
        }
        if self.credentials.rotates && (response.node_key_expired || !response.auth_url.is_empty()) {
            let failure =
                Failure::Refused("it wants somebody to sign in before this machine has another key".to_owned());
            return self.wait(failure, Next::Register, now);
        }
        if response.node_key_expired {
            if self.credentials.renewed {
                let failure = Failure::Refused("it calls a node key expired that was made just now".to_owned());
                return self.wait(failure, Next::Register, now);
            }
            self.credentials.auth_url = None;
            return self.want_new_key();
        }
        if !response.auth_url.is_empty() {
            return self.await_approval(response.auth_url, now);
        }
        self.credentials.auth_key = None;
        self.credentials.auth_url = None;
        self.credentials.old_node_key = NodePublic::default();
        self.credentials.rotates = false;
        // The map is read anew, and so is said anew that all is in order.
        self.online = false;
        self.events.push_back(SessionEvent::LoggedIn { user: response.user, login: response.login });
        self.update = Update::Due;
        self.phase = Phase::Ready;
    }

    pub(super) fn want_new_key(&mut self) {
        self.phase = Phase::NewKey;
        self.events.push_back(SessionEvent::NodeKeyWanted);
    }

    /// Shows the page, once, and asks again: the coordinator answers when the page was used.
    fn await_approval(&mut self, url: String, now: Instant) {
        let asked_before = self.credentials.auth_url.replace(url.clone());
        if asked_before.as_ref() != Some(&url) {
            self.events.push_back(SessionEvent::AuthUrl(url));
        }
        if asked_before.is_none() {
            return self.register(now);
        }
        // It answered without an approval, so it may do so again at once.
        self.phase = Phase::Waiting { until: now + self.backoff.spread(APPROVAL_PAUSE), then: Next::Register };
    }

    pub(super) fn logged_out(&mut self, unheard: Option<Failure>) {
        self.disconnect();
        self.online = false;
        self.events.push_back(SessionEvent::LoggedOut { unheard });
    }
}

fn read_registered(answer: &Reply) -> Result<RegisterResponse, Failure> {
    match failure_of(answer) {
        Some(Failure::Status { status: 401 | 403, text }) => Err(Failure::Refused(text)),
        Some(failure) => Err(failure),
        None => serde_json::from_slice(&answer.body).map_err(|error| Failure::NotUnderstood(error.to_string())),
    }
}

/// The moment that the official clients name to log out.
pub(super) fn long_past() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(123)
}
