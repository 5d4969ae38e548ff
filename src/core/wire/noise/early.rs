//! What the coordinator may say before HTTP/2 begins.
//!
//! ```text
//! ff ff ff 'T' 'S' | length u32be | JSON
//! ```
//!
//! The first three bytes would be the length of an HTTP/2 frame far larger than any first frame may be, so the two
//! beginnings cannot be taken for each other.

use serde::{Deserialize, Serialize};

use super::NoiseError;
use crate::types::{ChallengePublic, Limit};

const MAGIC: &[u8] = b"\xff\xff\xffTS";
const HEADER_LEN: usize = MAGIC.len() + 4;

/// The largest early payload we take. It holds one key; the rest is room for fields to come.
pub const EARLY_PAYLOAD: Limit = Limit::new("bytes in the early payload", 64 * 1024);

/// The early payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EarlyNoise {
    /// A node that re-registers with an old key signs this.
    pub node_key_challenge: ChallengePublic,
}

/// The early payload as it goes on the wire.
pub fn encode_early(payload: &EarlyNoise) -> Result<Vec<u8>, NoiseError> {
    let json = serde_json::to_vec(payload).map_err(|error| NoiseError::EarlyJson(error.to_string()))?;
    EARLY_PAYLOAD.check(json.len())?;
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes();
    Ok([MAGIC, &length, &json].concat())
}

/// How the coordinator began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Early {
    /// `None` where it began with HTTP/2 at once.
    pub payload: Option<EarlyNoise>,
    /// The first bytes of HTTP/2, as far as they have come.
    pub rest: Vec<u8>,
}

/// Reads the beginning of the plaintext stream, in any pieces.
#[derive(Default)]
pub struct EarlyDecoder {
    begun: Vec<u8>,
}

impl EarlyDecoder {
    /// Takes more of the stream; the answer once there is one. Feed it no more than a record at a time, which bounds
    /// what it holds.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<Early>, NoiseError> {
        self.begun.extend_from_slice(input);
        let magic = MAGIC.len().min(self.begun.len());
        if self.begun[..magic] != MAGIC[..magic] {
            return Ok(Some(Early { payload: None, rest: std::mem::take(&mut self.begun) }));
        }
        let Some(header) = self.begun.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        EARLY_PAYLOAD.check(length)?;
        if self.begun.len() < HEADER_LEN + length {
            return Ok(None);
        }
        let payload = serde_json::from_slice(&self.begun[HEADER_LEN..HEADER_LEN + length])
            .map_err(|error| NoiseError::EarlyJson(error.to_string()))?;
        let rest = self.begun.split_off(HEADER_LEN + length);
        Ok(Some(Early { payload: Some(payload), rest }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

    #[test]
    fn the_payload_is_these_bytes() {
        let payload = EarlyNoise { node_key_challenge: ChallengePublic::from_bytes([0xab; 32]) };
        let bytes = encode_early(&payload).unwrap();
        assert_eq!(bytes[..5], *b"\xff\xff\xffTS");
        assert_eq!(bytes[5..9], [0, 0, 0, 95], "u32, big-endian");
        let json = format!(r#"{{"nodeKeyChallenge":"chalpub:{}"}}"#, "ab".repeat(32));
        assert_eq!(String::from_utf8_lossy(&bytes[9..]), json);
    }

    #[test]
    fn a_coordinator_that_begins_with_http2_loses_no_byte_of_it() {
        let early = EarlyDecoder::default().read(SETTINGS).unwrap().unwrap();
        assert_eq!(early, Early { payload: None, rest: SETTINGS.to_vec() });
    }

    #[test]
    fn a_payload_larger_than_the_limit_is_refused_by_its_header_alone() {
        let error = EarlyDecoder::default().read(b"\xff\xff\xffTS\0\x01\0\x01").unwrap_err();
        assert_eq!(error.to_string(), "early payload: 65537 bytes in the early payload, at most 65536 are taken");
    }

    proptest! {
        #[test]
        fn a_payload_is_read_however_it_is_cut(key in any::<[u8; 32]>(), cut in 0_usize..120) {
            let payload = EarlyNoise { node_key_challenge: ChallengePublic::from_bytes(key) };
            let stream = [&encode_early(&payload).unwrap(), SETTINGS].concat();
            let mut decoder = EarlyDecoder::default();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            let early = match decoder.read(first).unwrap() {
                Some(early) => Early { rest: [&early.rest, second].concat(), ..early },
                None => decoder.read(second).unwrap().unwrap(),
            };
            prop_assert_eq!(early, Early { payload: Some(payload), rest: SETTINGS.to_vec() });
        }

        #[test]
        fn any_bytes_are_an_answer_an_error_or_held_within_the_limit(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            magic in any::<bool>(),
        ) {
            if magic {
                bytes.splice(..0, MAGIC.iter().copied().chain([0, 0]));
            }
            let mut decoder = EarlyDecoder::default();
            for byte in bytes {
                if !matches!(decoder.read(&[byte]), Ok(None)) {
                    break;
                }
                prop_assert!(decoder.begun.len() < HEADER_LEN + EARLY_PAYLOAD.most);
            }
        }
    }
}
