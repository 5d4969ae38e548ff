//! Limits with a name: how much of a thing we take from a stranger.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// A bound on how many or how large, and what it bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is counted, in the plural: "peers in a map".
    pub what: &'static str,
    /// The largest accepted number.
    pub most: usize,
}

/// A collection or message was larger than its [`Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{found} {what}, at most {most} are taken", what = limit.what, most = limit.most)]
pub struct LimitError {
    /// The bound that was passed.
    pub limit: Limit,
    pub found: usize,
}

impl Limit {
    /// Names a bound.
    pub const fn new(what: &'static str, most: usize) -> Self {
        Self { what, most }
    }

    /// Whether `found` is within the bound.
    pub const fn check(self, found: usize) -> Result<(), LimitError> {
        if found > self.most { Err(LimitError { limit: self, found }) } else { Ok(()) }
    }
}

/// For `#[serde(deserialize_with = "…")]`: a list of at most `MOST` items, `null` counting as empty.
///
/// Items past the bound are an error before memory is asked for them.
pub fn bounded_vec<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST} items")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == MOST {
                    return Err(serde::de::Error::invalid_length(MOST + 1, &self));
                }
                items.push(item);
            }
            // A map has ten thousand nodes with several short lists each.
            items.shrink_to_fit();
            Ok(items)
        }
    }

    deserializer.deserialize_any(Bounded::<T, MOST>(PhantomData))
}

/// The same for a map.
pub fn bounded_map<'de, D, K, V, const MOST: usize>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Bounded<K, V, const MOST: usize>(PhantomData<(K, V)>);

    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<K, V, MOST> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map of at most {MOST} entries")
        }

        fn visit_unit<E>(self) -> Result<BTreeMap<K, V>, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BTreeMap<K, V>, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(key) = map.next_key()? {
                if entries.len() == MOST {
                    return Err(serde::de::Error::invalid_length(MOST + 1, &self));
                }
                entries.insert(key, map.next_value()?);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Bounded::<K, V, MOST>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Message {
        #[serde(default, deserialize_with = "bounded_vec::<_, _, 2>")]
        list: Vec<u8>,
    }

    #[test]
    fn a_list_within_its_limit_is_read_and_null_is_empty() {
        assert_eq!(serde_json::from_str::<Message>(r#"{"list":[1,2]}"#).unwrap().list, [1, 2]);
        assert!(serde_json::from_str::<Message>(r#"{"list":null}"#).unwrap().list.is_empty());
        assert!(serde_json::from_str::<Message>("{}").unwrap().list.is_empty());
    }

    #[test]
    fn a_list_past_its_limit_is_refused() {
        let error = serde_json::from_str::<Message>(r#"{"list":[1,2,3]}"#).unwrap_err();
        assert!(error.to_string().contains("at most 2 items"), "{error}");
    }

    #[test]
    fn a_limit_error_says_what_and_how_many() {
        let error = Limit::new("peers in a map", 10).check(11).unwrap_err();
        assert_eq!(error.to_string(), "11 peers in a map, at most 10 are taken");
    }
}
