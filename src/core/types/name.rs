//! Host names as they may appear in DNS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a host label.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing was left.
    #[error("a host name needs at least one letter or digit")]
    Empty,
    /// Longer than 63 bytes (RFC 1035 §2.3.4).
    #[error("a host name has at most 63 characters, this has {0}")]
    Long(usize),
    /// A character outside `a-z0-9-`, or a hyphen at either end (RFC 1123 §2.1).
    #[error("a host name is made of a-z, 0-9 and inner hyphens, not {0:?}")]
    Character(char),
}

/// One DNS label, lower case: the first part of a node's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostLabel(String);

impl HostLabel {
    /// The longest label (RFC 1035 §2.3.4).
    pub const MAX_LEN: usize = 63;

    /// The nearest label to whatever a machine calls itself; `None` where nothing is left of it.
    ///
    /// Takes the first part of a dotted name, lower-cases it, and turns each run of other characters
    /// into one hyphen.
    pub fn from_any(text: &str) -> Option<Self> {
        let first = text.trim().split('.').next().unwrap_or_default();
        let mut label = String::new();
        for c in first.chars() {
            match c.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9') => label.push(c),
                '\'' => {}
                _ if label.ends_with('-') || label.is_empty() => {}
                _ => label.push('-'),
            }
            if label.len() == Self::MAX_LEN {
                break;
            }
        }
        let label = label.trim_end_matches('-');
        (!label.is_empty()).then(|| Self(label.to_owned()))
    }

    /// The label as DNS has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostLabel {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(NameError::Long(text.len()));
        }
        if let Some(c) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(NameError::Character(c));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Character('-'));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for HostLabel {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<HostLabel> for String {
    fn from(label: HostLabel) -> Self {
        label.0
    }
}

impl fmt::Display for HostLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_machine_name_becomes_a_label_or_nothing() {
        for (given, label) in [
            ("Web-1.example.org", Some("web-1")),
            ("Ada's MacBook Pro", Some("adas-macbook-pro")),
            ("__x__", Some("x")),
            ("日本", None),
            ("", None),
        ] {
            assert_eq!(HostLabel::from_any(given).as_ref().map(HostLabel::as_str), label, "{given:?}");
        }
        assert_eq!(HostLabel::from_any(&"a".repeat(80)).unwrap().as_str().len(), 63);
    }

    #[test]
    fn a_label_is_parsed_strictly() {
        assert!("web-1".parse::<HostLabel>().is_ok());
        assert_eq!("".parse::<HostLabel>(), Err(NameError::Empty));
        assert_eq!("a.b".parse::<HostLabel>(), Err(NameError::Character('.')));
        assert_eq!("-a".parse::<HostLabel>(), Err(NameError::Character('-')));
        assert_eq!("a".repeat(64).parse::<HostLabel>(), Err(NameError::Long(64)));
    }
}
