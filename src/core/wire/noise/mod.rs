//! The secure channel under the control protocol (ts2021), both ends: a Noise IK handshake, then records.
//!
//! ```text
//! initiation, 101 bytes: version u16be | 01 | length u16be = 96 | ephemeral 32 | machine key 32+16 | tag 16
//! response,    51 bytes: 02 | length u16be = 48 | ephemeral 32 | tag 16
//! refusal             : 03 | length u16be | text, which nothing authenticates
//! record              : 04 | length u16be | ciphertext | tag 16
//! ```
//!
//! The handshake is `Noise_IK_25519_ChaChaPoly_BLAKE2s` with the prologue `Tailscale Control Protocol v<version>`:
//! the client knows the coordinator's key from `GET /key`, the coordinator learns the machine key. `snow` computes
//! the handshake; the records are sealed here, because this protocol counts nonces big-endian and Noise
//! little-endian. A channel that failed once (a bad tag, a bad header) stays failed.
//!
//! Inside the channel the coordinator may send one [early payload](EarlyNoise) first; the rest is HTTP/2.

mod early;
mod handshake;
mod record;

pub use early::{EARLY_PAYLOAD, Early, EarlyDecoder, EarlyNoise, encode_early};
pub use handshake::{ClientHandshake, Ephemeral, ServerHandshake, refusal};
pub use record::{Opener, Sealer, Transport};

use thiserror::Error;

use crate::types::LimitError;

/// The length of the client's first message.
pub const INITIATION_LEN: usize = 101;
/// The length of the coordinator's answer.
pub const RESPONSE_LEN: usize = 51;
/// The longest frame on the wire, header included: the protocol's own bound.
pub const MAX_FRAME: usize = 4096;
/// The most plaintext that one record carries.
pub const MAX_PLAINTEXT: usize = MAX_FRAME - HEADER_LEN - TAG_LEN;

const HEADER_LEN: usize = 3;
const TAG_LEN: usize = 16;
const KEY_LEN: usize = 32;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const REFUSAL: u8 = 3;
const RECORD: u8 = 4;

/// Why a secure channel did not come about, or ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoiseError {
    /// The first bytes are not a handshake message.
    #[error("the first message is not a handshake: {0}")]
    NotAHandshake(&'static str),
    /// The two sides do not hold the keys they name.
    #[error("the handshake does not verify: wrong coordinator key, or a message was altered")]
    Handshake,
    /// The coordinator answered with a text in the clear. Nothing vouches for it.
    #[error("the coordinator refused the handshake: {0:?}")]
    Refused(String),
    /// The version does not fit the 16 bits that the handshake has for it.
    #[error("capability version {0} does not fit the handshake")]
    Version(u32),
    /// A frame that is no record, or longer or shorter than one can be.
    #[error("a frame of type {kind} and length {length} is not a record")]
    NotARecord {
        /// The first byte of the frame.
        kind: u8,
        /// What its header says of its length.
        length: usize,
    },
    /// A record's tag is wrong: the channel was tampered with, or lost bytes.
    #[error("a record does not verify")]
    Record,
    /// This end failed before, or has used up its nonces.
    #[error("the secure channel is closed")]
    Closed,
    /// The early payload is too large.
    #[error("early payload: {0}")]
    EarlyLimit(#[from] LimitError),
    /// The early payload is not what it should be.
    #[error("early payload: {0}")]
    EarlyJson(String),
}

fn header(kind: u8, length: usize) -> [u8; HEADER_LEN] {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [kind, high, low]
}

/// Splits up to `most` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}
