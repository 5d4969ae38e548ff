//! Times as the protocol writes them: RFC 3339, the year 1 standing for "none".

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The protocol's zero time.
const ZERO: &str = "0001-01-01T00:00:00Z";

pub(in crate::wire) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => time.serialize(serializer),
        None => serializer.serialize_str(ZERO),
    }
}

pub(in crate::wire) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)? else {
        return Ok(None);
    };
    if text.is_empty() || text == ZERO {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}
