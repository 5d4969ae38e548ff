//! The coordinator that this machine belongs to: its address and its key. Node key and map are of no use anywhere else.

use serde::{Deserialize, Serialize};

use super::health::code;
use super::{Effect, Engine, Now, StateFile};
use crate::control::{Pin, ServerUrl, Session};
use crate::types::{Fingerprint, MachinePublic, NodePublic, Timestamp};
use crate::wire::local::Severity;

/// The code of the fault that another server answers in the coordinator's place.
const STRANGER: &str = "coordinator-key";

/// Where this machine belongs. The default is a machine that never belonged anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Home {
    /// The coordinator's address, as the preferences had it.
    #[serde(rename = "URL")]
    pub(super) url: String,
    /// Who the coordinator must be.
    pub(super) pin: Pin,
    /// Since when the node key is in use there, as far as this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_since: Option<Timestamp>,
    /// Which key that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<NodePublic>,
    /// Another key was refused, or given up: it is not tried by itself before then.
    #[serde(skip)]
    pub(super) rotate_not_before: Option<Timestamp>,
}

impl Home {
    /// Whether this is the address of the same coordinator, however it is written.
    pub(super) fn is_at(&self, url: &str) -> bool {
        match (self.url.parse::<ServerUrl>(), url.parse::<ServerUrl>()) {
            (Ok(ours), Ok(other)) => ours == other,
            _ => self.url == url,
        }
    }
}

impl Engine {
    /// The coordinator will be at this address. Where a person says that it has the key that we know, it is the same one;
    /// of another, nothing that we have of the first is any good.
    pub(super) fn go_to(&mut self, url: &str, told: Option<Fingerprint>, now: Now) {
        if self.home.is_at(url) {
            return;
        }
        self.drop_session();
        self.health.clear(STRANGER);
        self.health.clear(code::COORDINATOR);
        let is_same = self.home.pin.key().is_some_and(|key| told == Some(Fingerprint::of(key)));
        if !is_same && !self.home.url.is_empty() {
            self.forget(now);
            self.home.pin = Pin::FirstUse;
        }
        url.clone_into(&mut self.home.url);
        self.saves.want(StateFile::Coordinator, now);
    }

    /// A person says which key the coordinator has.
    pub(super) fn take_word(&mut self, told: Fingerprint, now: Now) {
        let before = self.home.pin.clone();
        self.home.pin.tell(told);
        if self.home.pin != before {
            // Whom the connection was made to is decided when it begins.
            self.drop_session();
            self.health.clear(STRANGER);
            self.health.clear(code::COORDINATOR);
            self.saves.want(StateFile::Coordinator, now);
        }
    }

    /// The coordinator proved to hold this key, or announced it.
    pub(super) fn handle_server_key(&mut self, key: MachinePublic, now: Now) {
        self.health.clear(STRANGER);
        if self.home.pin.key() == Some(&key) {
            return;
        }
        if let Some(known) = self.home.pin.key() {
            let (known, new) = (Fingerprint::of(known), Fingerprint::of(&key));
            tracing::info!("the coordinator, known by its key {known}, announces that it goes by {new} from here on");
        }
        self.home.pin.learn(key);
        self.saves.want(StateFile::Coordinator, now);
    }

    /// Another server answers in the coordinator's place. Only a person can say whether that is so.
    pub(super) fn report_stranger(&mut self, found: Fingerprint, now: Now) -> String {
        let known = match self.home.pin.fingerprint() {
            Some(known) => format!("its key is {known} as far as this machine knows"),
            None => "this machine no longer knows which key is its".to_owned(),
        };
        let text = format!(
            "{} answers with the key {found}, and {known}; nothing was told to it{}. Ask whoever runs the coordinator \
             (`warren-coordinator status` prints its key): if this one is right, `warren up --coordinator-key {found}` \
             takes it, else somebody stands in its place",
            self.home.url,
            self.by_last_map(),
        );
        self.health.set(STRANGER, Severity::High, text.clone(), now.wall);
        text
    }

    /// What holds without the coordinator, as the end of a sentence about it.
    pub(super) fn by_last_map(&self) -> &'static str {
        if self.netmap.node().is_some() { "; the network goes on with the last map" } else { "" }
    }

    /// Ends the session; the next one makes a connection of its own.
    fn drop_session(&mut self) {
        if let Some(session) = &mut self.session {
            session.handle_stop();
            while let Some(transmit) = Session::poll_transmit(session) {
                self.effects.push_back(Effect::Transmit(transmit));
            }
        }
        self.session = None;
        self.login.online = false;
    }
}
