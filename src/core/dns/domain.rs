//! Domain names as they are compared: lower case, without the final dot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name in text, without its final dot (RFC 1035 §2.3.4).
const NAME_LEN: usize = 253;
/// The longest label (RFC 1035 §2.3.4).
const LABEL_LEN: usize = 63;

/// Why a text is no domain name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DomainError {
    /// Two dots without anything between them, or nothing at all.
    #[error("a domain name has no empty part: {0:?}")]
    EmptyLabel(String),
    /// See [`NAME_LEN`] and [`LABEL_LEN`].
    #[error("a domain name has at most 253 characters, and 63 between two dots: {0:?}")]
    TooLong(String),
    /// Not printable ASCII. Other scripts come as punycode.
    #[error("{character:?} cannot be in a domain name: {text:?}")]
    Character {
        /// The first such character.
        character: char,
        /// The whole text.
        text: String,
    },
}

/// A domain name. Cheap to clone.
///
/// Bytes that no host name has are kept as `\DDD` (RFC 4343 §2.1), so that a name with a dot inside a label is never
/// taken for one with a label more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(Arc<str>);

impl Domain {
    /// The name of a question.
    pub fn of(name: &Name) -> Self {
        use fmt::Write as _;

        let mut text = String::with_capacity(name.len());
        for label in name.iter() {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' | 0..=32 | 127..=255 => {
                        let _ = write!(text, "\\{byte:03}");
                    }
                    plain => text.push(char::from(plain.to_ascii_lowercase())),
                }
            }
        }
        Self(text.into())
    }

    /// The text, without a final dot. The root is empty.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `suffix` or a name below it.
    pub fn is_within(&self, suffix: &Self) -> bool {
        match self.0.strip_suffix(&*suffix.0) {
            Some(rest) => rest.is_empty() || suffix.0.is_empty() || rest.ends_with('.'),
            None => false,
        }
    }

    /// The name itself, the one above it, and so on up to the root, which is left out.
    pub fn lineage(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(&*self.0).filter(|text| !text.is_empty()), |text| Some(text.split_once('.')?.1))
    }

    /// The first label, and the rest where there is any.
    pub fn split(&self) -> (&str, Option<&str>) {
        match self.0.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (&self.0, None),
        }
    }

    /// For an answer.
    pub fn to_name(&self) -> Option<Name> {
        let mut name = Name::from_labels(self.0.split('.').map(unescaped).collect::<Option<Vec<_>>>()?).ok()?;
        name.set_fqdn(true);
        Some(name)
    }
}

/// The bytes of a label.
fn unescaped(label: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend(plain.bytes());
        bytes.push(escape.get(..3)?.parse().ok()?);
        rest = &escape[3..];
    }
    bytes.extend(rest.bytes());
    Some(bytes)
}

impl FromStr for Domain {
    type Err = DomainError;

    /// Takes a name with or without its final dot.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if let Some(character) = bare.chars().find(|c| !c.is_ascii_graphic() || *c == '\\') {
            return Err(DomainError::Character { character, text: text.to_owned() });
        }
        if bare.len() > NAME_LEN || bare.split('.').any(|label| label.len() > LABEL_LEN) {
            return Err(DomainError::TooLong(text.to_owned()));
        }
        if bare.split('.').any(str::is_empty) {
            return Err(DomainError::EmptyLabel(text.to_owned()));
        }
        Ok(Self(bare.to_ascii_lowercase().into()))
    }
}

impl TryFrom<String> for Domain {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0.to_string()
    }
}

/// So that a part of a name finds the whole name in a map.
impl std::borrow::Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain(text: &str) -> Domain {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_compared_in_lower_case_and_without_its_final_dot() {
        assert_eq!(domain("Web.Example.COM."), domain("web.example.com"));
        assert_eq!(Domain::of(&Name::from_ascii("WEB.example.com.").unwrap()), domain("web.example.com"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (text, error) in [
            ("", "no empty part"),
            (".", "no empty part"),
            ("a..b", "no empty part"),
            ("a b", "' ' cannot be"),
            ("bücher.example", "'ü' cannot be"),
            (&"x".repeat(64), "at most 253"),
            (&"ab.".repeat(100), "at most 253"),
        ] {
            assert!(text.parse::<Domain>().unwrap_err().to_string().contains(error), "{text:?}");
        }
    }

    #[test]
    fn a_suffix_ends_between_labels() {
        let zone = domain("example.com");
        assert!(domain("example.com").is_within(&zone) && domain("a.b.example.com").is_within(&zone));
        assert!(!domain("badexample.com").is_within(&zone) && !domain("com").is_within(&zone));
        // A dot within a label is no dot between labels.
        let sly = Name::from_labels([&b"x.example"[..], b"com"]).unwrap();
        assert!(!Domain::of(&sly).is_within(&zone), "{sly}");
        assert_eq!(Domain::of(&sly).as_str(), "x\\046example.com");
    }

    #[test]
    fn the_lineage_goes_up_to_the_last_label() {
        assert_eq!(domain("a.b.c").lineage().collect::<Vec<_>>(), ["a.b.c", "b.c", "c"]);
        assert_eq!(Domain::of(&Name::root()).lineage().count(), 0);
    }

    proptest! {
        #[test]
        fn any_labels_are_read_and_written_back_as_the_same_name(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 1..8)
        ) {
            let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
            let domain = Domain::of(&name);
            prop_assert_eq!(domain.as_str().split('.').count(), labels.len());
            let again = domain.to_name().unwrap();
            prop_assert!(again.eq_ignore_root(&name), "{:?} {:?}", again, name);
        }
    }
}
