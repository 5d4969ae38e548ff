//! What programs know of a node and write down beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::refusal::Refusal;
use crate::types::Timestamp;

/// The attributes of a node, by name.
pub type Attributes = BTreeMap<AttributeName, Attribute>;

/// The name of an attribute: `custom:` and letters, digits, `_` and `:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttributeName(String);

/// What an attribute says, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    pub value: AttributeValue,
    /// From when on it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// One of the three kinds of JSON that conditions compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    Flag(bool),
    Number(Number),
    Text(String),
}

impl FromStr for AttributeName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let rest = text.strip_prefix("custom:").unwrap_or_default();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        match (1..=128).contains(&text.len()) && !rest.is_empty() && rest.chars().all(is_part) {
            true => Ok(Self(text.to_owned())),
            false => Err(Refusal::invalid(
                "an attribute is `custom:` and letters, digits, `_` and `:`, at most 128 together",
            )),
        }
    }
}

impl TryFrom<String> for AttributeName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<AttributeName> for String {
    fn from(name: AttributeName) -> Self {
        name.0
    }
}

impl fmt::Display for AttributeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_what_a_program_may_write_and_nothing_else() {
        let text = r#"{"custom:tier":{"value":"gold"},"custom:score":{"value":1.5},"custom:ok":{"value":true}}"#;
        let read: Attributes = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::from_str::<Attributes>(&serde_json::to_string(&read).unwrap()).unwrap(), read);
        for bad in ["", "custom:", "tier", "node:os", "custom:a b", "custom:ä", &format!("custom:{}", "x".repeat(200))]
        {
            assert!(bad.parse::<AttributeName>().is_err(), "{bad}");
        }
    }
}
