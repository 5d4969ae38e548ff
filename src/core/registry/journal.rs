//! What is written down of every decision: who, by which door, what for, and what of what was changed.
//!
//! One [`Entry`] for each object that a decision changes, with the fields that differ, before and after. What is hot
//! (endpoints, disco key, home relay, when a node was last seen) and what follows from something else (counters, addresses
//! that rest) is not in it, nor is any secret.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::actor::Actor;
use super::commands::Command;
use super::record::{
    BrowserSession, Change, ClientRecord, KeyRecord, NodeRecord, Pending, PolicyRecord, TokenRecord, UserRecord,
};
use super::state::State;
use crate::types::Timestamp;

/// Items of one list that are written down: whoever offers a thousand routes must not fill the journal.
const LISTED: usize = 64;

/// Who is answerable for a decision, what it was, and what it changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    pub at: Timestamp,
    pub actor: Actor,
    pub command: Command,
    pub entries: Vec<Entry>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub object: Object,
    pub action: Action,
    /// The fields that differ, as they were.
    pub before: Map<String, Value>,
    /// The fields that differ, as they are from here on.
    pub after: Map<String, Value>,
}

/// What something happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: ObjectKind,
    /// What never changes of it: a number, as a rule.
    pub id: String,
    /// What it was called when it happened.
    pub name: String,
}

/// What a record of the journal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    User,
    /// A pre-authentication key.
    Key,
    Node,
    Policy,
    /// A machine that is no node.
    Machine,
    /// The server's own keys.
    ServerKey,
    /// What a program shows to give commands.
    Token,
    /// A program that asks for tokens.
    Client,
    /// A browser in which a user is signed in.
    Session,
    /// What holds for the whole network.
    Settings,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Create,
    Update,
    Delete,
}

impl Audit {
    /// What these changes mean for the state as it is.
    pub(super) fn of(state: &State, actor: &Actor, command: Command, at: Timestamp, changes: &[Change]) -> Self {
        let entries = changes.iter().filter_map(|change| Entry::of(state, change)).collect();
        Self { at, actor: actor.clone(), command, entries }
    }
}

impl Entry {
    /// What a change means; nothing where it changes nothing, or nothing that is written down.
    fn of(state: &State, change: &Change) -> Option<Self> {
        match change {
            Change::User(user) => {
                let before = state.directory.user(user.id).map(user_facts);
                Self::changed(user_object(user), before, user_facts(user))
            }
            Change::UserGone(id) => {
                state.directory.user(*id).map(|user| Self::gone(user_object(user), user_facts(user)))
            }
            Change::Key(key) => {
                Self::changed(key_object(key), state.directory.key(key.id).map(key_facts), key_facts(key))
            }
            Change::KeyUsed(id, at) => {
                let key = state.directory.key(*id)?;
                let used = KeyRecord { used: Some(*at), ..key.clone() };
                Self::changed(key_object(key), Some(key_facts(key)), key_facts(&used))
            }
            Change::KeyGone(id) => state.directory.key(*id).map(|key| Self::gone(key_object(key), key_facts(key))),
            Change::Node(node) => {
                let before = state.node(node.id).map(|before| node_facts(before.record));
                Self::changed(node_object(node), before, node_facts(node))
            }
            Change::NodeFields(id, _, fields) => {
                let before = state.directory.node(*id)?;
                let after = fields.applied_to(before);
                Self::changed(node_object(&after), Some(node_facts(before)), node_facts(&after))
            }
            Change::NodeGone(id) => {
                state.node(*id).map(|node| Self::gone(node_object(node.record), node_facts(node.record)))
            }
            Change::Policy(policy) => Self::changed(policy_object(policy), None, policy_facts(policy)),
            Change::PolicyGone(version) => {
                let policy = state.directory.policy_version(*version)?;
                Some(Self::gone(policy_object(policy), policy_facts(policy)))
            }
            Change::ServerKeys(before, after) => {
                let object = Object { kind: ObjectKind::ServerKey, id: String::new(), name: String::new() };
                Self::changed(object, Some(facts(json!(before))), facts(json!(after)))
            }
            Change::Rejected(code, _) => state.pending(code).map(Self::of_machine),
            Change::Token(token) => {
                let before = state.directory.access().token(token.id).map(|token| facts(json!(token)));
                Self::changed(token_object(token), before, facts(json!(token)))
            }
            Change::TokenGone(id) => {
                state.directory.access().token(*id).map(|token| Self::gone(token_object(token), facts(json!(token))))
            }
            Change::Client(client) => {
                let before = state.directory.access().client(client.id).map(|client| facts(json!(client)));
                Self::changed(client_object(client), before, facts(json!(client)))
            }
            Change::ClientGone(id) => {
                let client = state.directory.access().client(*id)?;
                Some(Self::gone(client_object(client), facts(json!(client))))
            }
            Change::Settings(settings) => {
                let object = Object { kind: ObjectKind::Settings, id: String::new(), name: String::new() };
                Self::changed(object, Some(facts(json!(state.directory.settings()))), facts(json!(settings)))
            }
            Change::Session(session) => Self::of_session(state, session),
            Change::Counters(_)
            | Change::SessionGone(_)
            | Change::Forgiven(_)
            | Change::HostFreed(..)
            | Change::HostReady(_)
            | Change::Pending(_)
            | Change::PendingGone(_)
            // What it offers is told by the node itself, as often as it likes.
            | Change::NodeReport(_) => None,
        }
    }

    /// A machine that was turned away.
    fn of_machine(waiting: &Pending) -> Self {
        let object =
            Object { kind: ObjectKind::Machine, id: waiting.machine.to_string(), name: waiting.hostname.clone() };
        let facts = facts(json!({"code": waiting.code, "os": waiting.os, "requested_tags": waiting.requested_tags}));
        Self::gone(object, facts)
    }

    /// That somebody signed in is an entry; that the browser was used since is none, nor that time ended it.
    fn of_session(state: &State, session: &BrowserSession) -> Option<Self> {
        let is_new = state.directory.access().session(&session.id).is_none();
        let user = state.directory.user(session.user).filter(|_| is_new)?;
        let object = Object { kind: ObjectKind::Session, id: user.id.to_string(), name: user.name.to_string() };
        Self::changed(object, None, facts(json!({"address": session.address, "agent": session.agent})))
    }

    fn changed(object: Object, before: Option<Map<String, Value>>, after: Map<String, Value>) -> Option<Self> {
        let Some(mut before) = before else {
            return Some(Self { object, action: Action::Create, before: Map::new(), after });
        };
        let after: Map<_, _> = after.into_iter().filter(|(name, value)| before.get(name) != Some(value)).collect();
        before.retain(|name, _| after.contains_key(name));
        (!after.is_empty()).then_some(Self { object, action: Action::Update, before, after })
    }

    fn gone(object: Object, before: Map<String, Value>) -> Self {
        Self { object, action: Action::Delete, before, after: Map::new() }
    }
}

impl ObjectKind {
    /// Its name, as the journal and programs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Key => "key",
            Self::Node => "node",
            Self::Policy => "policy",
            Self::Machine => "machine",
            Self::ServerKey => "server-key",
            Self::Token => "token",
            Self::Client => "client",
            Self::Session => "session",
            Self::Settings => "settings",
        }
    }
}

impl Action {
    /// Its name, as the journal and programs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

// ---- objects and their facts ----

fn user_object(user: &UserRecord) -> Object {
    Object { kind: ObjectKind::User, id: user.id.to_string(), name: user.name.to_string() }
}

fn key_object(key: &KeyRecord) -> Object {
    Object { kind: ObjectKind::Key, id: key.id.to_string(), name: String::new() }
}

fn node_object(node: &NodeRecord) -> Object {
    Object { kind: ObjectKind::Node, id: node.id.to_string(), name: node.label.to_string() }
}

fn policy_object(policy: &PolicyRecord) -> Object {
    Object { kind: ObjectKind::Policy, id: policy.version.to_string(), name: String::new() }
}

fn token_object(token: &TokenRecord) -> Object {
    Object { kind: ObjectKind::Token, id: token.id.0.to_string(), name: token.description.clone() }
}

fn client_object(client: &ClientRecord) -> Object {
    Object { kind: ObjectKind::Client, id: client.id.0.to_string(), name: client.description.clone() }
}

fn user_facts(user: &UserRecord) -> Map<String, Value> {
    facts(json!(user))
}

/// The hash of its secret is not among them.
fn key_facts(key: &KeyRecord) -> Map<String, Value> {
    facts(json!(key))
}

fn node_facts(node: &NodeRecord) -> Map<String, Value> {
    let mut facts = facts(json!(node));
    // What it says of itself is hot, but for the routes that it offers: those change the way of others.
    facts.remove("status");
    facts.remove("last_seen");
    facts.insert("offered_routes".to_owned(), bounded(json!(node.status.routes)));
    facts
}

/// The text is kept by its version, and known here by its digest.
fn policy_facts(policy: &PolicyRecord) -> Map<String, Value> {
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(policy.text.as_bytes()));
    facts(json!({"by": policy.by, "bytes": policy.text.len(), "sha256": digest}))
}

fn facts(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(facts) => facts.into_iter().map(|(name, value)| (name, bounded(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn bounded(value: Value) -> Value {
    match value {
        Value::Array(mut items) if items.len() > LISTED => {
            let more = items.len() - LISTED;
            items.truncate(LISTED);
            items.push(Value::String(format!("and {more} more")));
            Value::Array(items)
        }
        other @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_)) => other,
    }
}
