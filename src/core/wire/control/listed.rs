//! A list in which one unreadable entry does not cost the others.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::limit;

/// Entries about peers, at most [`limit::PEERS`]: those that could be read, and a word on those that could not.
///
/// A coordinator that is newer than we are, or wrong about one machine, must not cut a node off from all.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    pub entries: Vec<T>,
    /// What was not, the first [`limit::SMALL`] of it.
    pub unreadable: Vec<Unreadable>,
}

/// An entry that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which one, as far as it says: its number, 0 where it does not say even that.
    pub id: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// As much of a reason as is kept: it may repeat the entry.
const REASON: usize = 200;

/// As much of an entry as names it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    #[serde(rename = "ID", alias = "NodeID")]
    id: u64,
}

impl<T> Listed<T> {
    /// Whether nothing was listed at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.unreadable.is_empty()
    }
}

/// The list is what was read of it.
impl<T> Deref for Listed<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.entries
    }
}

impl<T> DerefMut for Listed<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.entries
    }
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Listed<T> {
    fn from(entries: Vec<T>) -> Self {
        Self { entries, unreadable: Vec::new() }
    }
}

impl<T> FromIterator<T> for Listed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        entries.into_iter().collect::<Vec<_>>().into()
    }
}

impl<T: Serialize> Serialize for Listed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.entries.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for ListVisitor<T> {
    type Value = Listed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} items", limit::PEERS)
    }

    fn visit_unit<E>(self) -> Result<Listed<T>, E> {
        Ok(Listed::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Listed<T>, A::Error> {
        let mut listed = Listed::default();
        let mut count = 0;
        while let Some(raw) = seq.next_element::<Box<RawValue>>()? {
            count += 1;
            if count > limit::PEERS {
                return Err(serde::de::Error::invalid_length(count, &self));
            }
            match serde_json::from_str(raw.get()) {
                Ok(entry) => listed.entries.push(entry),
                Err(error) if listed.unreadable.len() < limit::SMALL => {
                    let named: Named = serde_json::from_str(raw.get()).unwrap_or_default();
                    listed
                        .unreadable
                        .push(Unreadable { id: named.id, reason: error.to_string().chars().take(REASON).collect() });
                }
                Err(_) => {}
            }
        }
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;
    use crate::wire::control::{MapResponse, PeerChange};

    #[test]
    fn an_unreadable_peer_is_named_and_the_others_are_taken() {
        let text = r#"{"Peers":[{"ID":1},{"ID":2,"Key":"nodekey:short"},{"ID":3},7]}"#;
        let message: MapResponse = serde_json::from_str(text).unwrap();
        let ids: Vec<NodeId> = message.peers.entries.iter().map(|node| node.id).collect();
        assert_eq!(ids, [NodeId(1), NodeId(3)]);
        let [second, last] = message.peers.unreadable.as_slice() else { panic!("two are unreadable") };
        assert_eq!((second.id, last.id), (2, 0));
        assert!(second.reason.contains("64 hexadecimal digits"), "{}", second.reason);
    }

    #[test]
    fn a_change_is_named_by_the_node_it_is_about() {
        let listed: Listed<PeerChange> = serde_json::from_str(r#"[{"NodeID":5,"Endpoints":["nowhere"]}]"#).unwrap();
        assert_eq!(listed.unreadable[0].id, 5);
        assert!(listed.entries.is_empty() && !listed.is_empty());
    }

    #[test]
    fn null_is_an_empty_list_and_too_long_a_one_is_refused() {
        assert!(serde_json::from_str::<Listed<u8>>("null").unwrap().is_empty());
        let long = format!("[{}0]", "0,".repeat(limit::PEERS));
        assert!(serde_json::from_str::<Listed<u8>>(&long).unwrap_err().to_string().contains("at most"));
    }

    #[test]
    fn broken_json_is_an_error_of_the_whole_message() {
        assert!(serde_json::from_str::<Listed<u8>>("[1,{").is_err());
    }
}
