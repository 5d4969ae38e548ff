//! The journal of a coordinator: who changed what, and which entries somebody wants to see.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::Timestamp;

/// An entry of the journal, as it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// Its number: one more than that of the entry before.
    pub n: u64,
    /// The number of the first entry of the decision that it is part of.
    pub decision: u64,
    pub at: Timestamp,
    pub actor: Named,
    pub door: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    pub command: String,
    /// `create`, `update` or `delete`.
    pub action: String,
    pub object: Named,
    pub before: Map<String, Value>,
    pub after: Map<String, Value>,
}

/// Somebody or something, as it was called when something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub kind: String,
    pub id: String,
    pub name: String,
}

/// Which entries somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalQuery {
    /// Those after this number, from there on. Without it, the newest.
    pub after: Option<u64>,
    /// Those before this number.
    pub before: Option<u64>,
    /// From this second on.
    pub since: Option<Timestamp>,
    /// Up to this second, which is not part of it.
    pub until: Option<Timestamp>,
    pub actor: Option<Selector>,
    pub object: Option<Selector>,
    pub limit: u32,
}

/// Actors or objects: `user`, `ada`, or unmistakably `user:ada`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    pub kind: Option<String>,
    /// A name or an identifier.
    pub name: Option<String>,
}

impl JournalQuery {
    /// Entries that are read at once: a page of some hundred KiB.
    pub const MOST: u32 = 1_000;
}

impl Named {
    fn display(&self) -> (&str, &str) {
        if self.name.is_empty() { (&self.kind, &self.id) } else { (&self.kind, &self.name) }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.display() {
            (kind, "") => f.write_str(kind),
            (kind, name) => write!(f, "{kind} {name}"),
        }
    }
}

impl FromStr for Selector {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let is_kind = |text: &str| KINDS.contains(&text);
        Ok(match text.split_once(':') {
            Some((kind, name)) if is_kind(kind) => Self { kind: Some(kind.to_owned()), name: Some(name.to_owned()) },
            _ if is_kind(text) => Self { kind: Some(text.to_owned()), name: None },
            _ => Self { kind: None, name: Some(text.to_owned()) },
        })
    }
}

/// The kinds of actors and objects.
const KINDS: &[&str] = &["coordinator", "account", "user", "token", "node", "machine", "key", "policy", "server-key"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_kind_a_name_or_both() {
        let read = |text: &str| {
            let Ok(Selector { kind, name }) = text.parse();
            (kind.unwrap_or_default(), name.unwrap_or_default())
        };
        let pair = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        assert_eq!(read("node"), pair("node", ""));
        assert_eq!(read("web"), pair("", "web"));
        assert_eq!(read("node:web"), pair("node", "web"));
        assert_eq!(read("machine:mkey:01"), pair("machine", "mkey:01"));
        assert_eq!(read("mkey:01"), pair("", "mkey:01"), "what only looks like a kind is a name");
    }
}
