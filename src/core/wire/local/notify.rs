//! Notices of changes, and the call that starts the agent with given preferences.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackendState, Prefs, Status};
use crate::types::{Fingerprint, NodeId, NodePublic, StableNodeId};
use crate::wire::control::Node;

/// What a watcher asks for, as bits of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask(pub u64);

impl Mask {
    pub const ENGINE_UPDATES: Self = Self(1);
    pub const INITIAL_STATE: Self = Self(1 << 1);
    pub const INITIAL_PREFS: Self = Self(1 << 2);
    pub const INITIAL_NETMAP: Self = Self(1 << 3);
    pub const INITIAL_HEALTH: Self = Self(1 << 7);
    pub const RATE_LIMIT: Self = Self(1 << 8);
    pub const PEER_CHANGES: Self = Self(1 << 12);
    pub const INITIAL_STATUS: Self = Self(1 << 14);
    pub const PEER_PATCHES: Self = Self(1 << 15);

    /// Whether any bit of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One notice. What is absent has not changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Notify {
    pub version: String,
    /// Names the watcher; in its first notice only.
    #[serde(rename = "SessionID", skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    /// Something went wrong that ends what the watcher waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_finished: Option<Finished>,
    /// See [`BackendState::from_number`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefs: Option<Box<Prefs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_change: Option<Box<Node>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_status: Option<Box<Status>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_changed: Vec<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_removed: Vec<NodeId>,
    /// A person should open this page.
    #[serde(rename = "BrowseToURL", skip_serializing_if = "Option::is_none")]
    pub browse_to_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthState>,
    /// Peers that are reached another way than before.
    #[serde(rename = "WarrenPaths", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PeerPath>,
}

/// How a peer is reached: the part of its status that changes while the map stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerPath {
    #[serde(rename = "ID")]
    pub id: StableNodeId,
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    pub public_key: NodePublic,
    /// Where its packets go; empty where that is a relay, or nowhere.
    pub cur_addr: String,
    /// The code of the relay region where it listens.
    pub relay: String,
    /// Whether there was traffic of late.
    pub active: bool,
}

/// Present when a login has just succeeded; holds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {}

impl Notify {
    /// The state that this notice names, if it does.
    pub fn backend_state(&self) -> Option<BackendState> {
        self.state.and_then(BackendState::from_number)
    }
}

/// Everything that is wrong, by code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthState {
    pub warnings: BTreeMap<String, HealthWarning>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthWarning {
    pub warnable_code: String,
    /// `high`, `medium` or `low`.
    pub severity: String,
    pub title: String,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub impacts_connectivity: bool,
}

/// The body of `start`. The key is a secret: this has no `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct StartOptions {
    /// Replaces the preferences as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_prefs: Option<Box<Prefs>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_key: String,
    /// The key that the coordinator has, by the word of whoever starts us.
    #[serde(rename = "WarrenCoordinatorKey", skip_serializing_if = "Option::is_none")]
    pub coordinator_key: Option<Fingerprint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_holds_only_what_changed() {
        let notice = Notify { version: "1".into(), state: Some(BackendState::Running.number()), ..Notify::default() };
        assert_eq!(serde_json::to_string(&notice).unwrap(), r#"{"Version":"1","State":6}"#);
        assert_eq!(notice.backend_state(), Some(BackendState::Running));
    }

    #[test]
    fn nulls_of_other_writers_are_read_as_absent() {
        let notice: Notify =
            serde_json::from_str(r#"{"Version":"1","ErrMessage":null,"State":2,"Prefs":null,"Engine":null}"#).unwrap();
        assert_eq!(notice.backend_state(), Some(BackendState::NeedsLogin));
    }
}
