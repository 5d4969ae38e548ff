//! The short form of a coordinator's key: what people compare, and type.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::MachinePublic;

/// Bytes of the hash: 160 bits, which nobody finds a second key for.
const LENGTH: usize = 20;
/// Characters between two hyphens.
const GROUP: usize = 4;
/// What is hashed before the key, so that no other hash of a key passes for this one.
const DOMAIN: &[u8] = b"warren coordinator key";

/// Names a coordinator's key in eight groups of four letters and digits, among which no two look alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; LENGTH]);

/// Why a text names no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} names no coordinator's key: that is eight groups of four letters and digits, as `warren-coordinator \
     status` prints them, or `mkey:` and 64 hexadecimal digits"
)]
pub struct FingerprintError(String);

impl Fingerprint {
    /// Of this key.
    pub fn of(key: &MachinePublic) -> Self {
        let digest = Sha256::new().chain_update(DOMAIN).chain_update(key.as_bytes()).finalize();
        let mut bytes = [0; LENGTH];
        bytes.copy_from_slice(&digest[..LENGTH]);
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
        for (at, character) in text.chars().enumerate() {
            if at > 0 && at % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{character}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Takes the whole key as well: another coordinator may print no other form.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let text = text.trim();
        if let Ok(key) = text.parse() {
            return Ok(Self::of(&key));
        }
        let wrong = || FingerprintError(text.chars().take(100).collect());
        let letters: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
        let bytes = BASE32_NOPAD.decode(letters.to_ascii_uppercase().as_bytes()).map_err(|_| wrong())?;
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_short_form_which_reads_back_however_it_is_typed() {
        let key = MachinePublic::from_bytes([7; 32]);
        let short = Fingerprint::of(&key);
        let text = short.to_string();
        assert_eq!(text.len(), 39);
        assert!(text.split('-').all(|group| group.len() == 4), "{text}");
        for typed in [text.clone(), text.to_uppercase(), text.replace('-', ""), text.replace('-', " "), key.to_string()]
        {
            assert_eq!(typed.parse(), Ok(short), "{typed}");
        }
        assert_ne!(short, Fingerprint::of(&MachinePublic::from_bytes([8; 32])));
        assert_eq!(serde_json::from_str::<Fingerprint>(&serde_json::to_string(&short).unwrap()).unwrap(), short);
    }

    #[test]
    fn what_names_no_key_is_refused_with_the_forms_that_do() {
        let short = Fingerprint::of(&MachinePublic::from_bytes([7; 32])).to_string();
        for text in
            ["", "abcd", &short[5..], &format!("{short}-abcd"), "mkey:00", "nodekey:00", &short.replace('-', "1")]
        {
            let error = text.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(error.contains("eight groups of four"), "{error}");
        }
    }
}
