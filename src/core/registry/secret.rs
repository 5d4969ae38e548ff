//! Pre-authentication keys as text, and what browsers hold: made once, shown once, kept as a hash.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::people::BrowserSessionId;
use super::record::KeyId;

const PREFIX: &str = "warren-key-";
/// What the token of a form is a digest of, before the secret itself.
const FORM: &[u8] = b"warren: a form that was shown to this browser\0";

/// The text of a pre-authentication key: `warren-key-NUMBER-SECRET`. Prints as `[redacted]`.
#[derive(Clone)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// Makes the key of this number out of 32 random bytes.
    pub fn new(id: KeyId, secret: &[u8; 32]) -> Self {
        Self(Zeroizing::new(format!("{PREFIX}{id}-{}", HEXLOWER.encode(secret))))
    }

    /// The text, secret included: to show to the person who asked for the key, once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a browser holds, to be known again by: 256 random bits. Prints as `[redacted]`.
#[derive(Clone)]
pub struct BrowserSecret(Zeroizing<String>);

impl BrowserSecret {
    /// Makes one of 32 random bytes.
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(BASE64URL_NOPAD.encode(bytes)))
    }

    /// What a browser showed, where it has the form of one.
    pub fn shown(text: &str) -> Option<Self> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().filter(|bytes| bytes.len() == 32);
        bytes.map(|_| Self(Zeroizing::new(text.to_owned())))
    }

    /// The text, for the browser alone.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.0)
    }

    /// The session that whoever holds it is signed in with.
    pub fn session(&self) -> BrowserSessionId {
        BrowserSessionId(self.hash())
    }

    /// What a form about a subject carries that was shown to this browser: no other page can make it.
    pub fn form_token(&self, subject: &str) -> String {
        let digest = Sha256::new().chain_update(FORM).chain_update(self.0.as_bytes());
        BASE64URL_NOPAD.encode(&digest.chain_update(subject).finalize())
    }

    /// Whether a form about a subject was shown to this browser.
    pub fn made(&self, token: &str, subject: &str) -> bool {
        self.form_token(subject).as_bytes().ct_eq(token.as_bytes()).into()
    }
}

impl fmt::Debug for BrowserSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What is kept of a secret.
pub(super) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Which key a text names, and the hash to compare. `None` where it is no key of ours.
pub(super) fn parse(text: &str) -> Option<(KeyId, [u8; 32])> {
    let (number, secret) = text.trim().strip_prefix(PREFIX)?.split_once('-')?;
    Some((KeyId(number.parse().ok()?), hash(secret)))
}

/// Compares two hashes in a time that does not depend on them.
pub(super) fn matches(given: &[u8; 32], kept: &[u8; 32]) -> bool {
    given.ct_eq(kept).into()
}

/// The secret part of a key's text, hashed: what its record keeps.
pub(super) fn hash_of(text: &KeyText) -> [u8; 32] {
    parse(text.expose()).map_or([0; 32], |(_, hash)| hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_its_number_and_the_hash_of_its_secret() {
        let text = KeyText::new(KeyId(7), &[0xab; 32]);
        assert_eq!(text.expose(), format!("warren-key-7-{}", "ab".repeat(32)));
        let (id, given) = parse(text.expose()).unwrap();
        assert_eq!(id, KeyId(7));
        assert!(matches(&given, &hash_of(&text)));
        let (_, other) = parse(KeyText::new(KeyId(7), &[0xac; 32]).expose()).unwrap();
        assert!(!matches(&other, &hash_of(&text)));
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in ["", "tskey-auth-x-y", "warren-key-", "warren-key-x-y", "warren-key-7"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_form_is_the_browsers_that_it_was_shown_to_and_about_one_thing() {
        let (one, other) = (BrowserSecret::from_random(&[1; 32]), BrowserSecret::from_random(&[2; 32]));
        let token = one.form_token("add this");
        assert!(one.made(&token, "add this") && BrowserSecret::shown(one.expose()).unwrap().made(&token, "add this"));
        assert!(!other.made(&token, "add this") && !one.made(&token, "add that") && !one.made("", "add this"));
        assert_ne!(one.session(), other.session());
        for bad in ["", "a", &"=".repeat(43), &"A".repeat(44)] {
            assert!(BrowserSecret::shown(bad).is_none(), "{bad}");
        }
        assert_eq!(format!("{one:?}"), "[redacted]");
    }

    #[test]
    fn a_key_never_prints() {
        assert_eq!(format!("{:?}", KeyText::new(KeyId(1), &[1; 32])), "[redacted]");
    }
}
