//! The framing of the map stream: messages one after another in the body of `POST /machine/map`.
//!
//! ```text
//! length u32, little-endian | payload
//! ```
//!
//! The payload is JSON, or one or several zstd frames in a row whose contents together are JSON. Several frames
//! let a coordinator compress once what many nodes receive alike, and splice it between what only one of them does.
//!
//! The decoder decompresses as bytes come in, so it holds the message it is working on and nothing else.

use thiserror::Error;
use zstd::stream::raw::{DParameter, Decoder, Operation};

use crate::types::{Limit, LimitError};

/// The largest message after decompression. A peer is up to 1.5 KiB of JSON (name, four keys, addresses, endpoints,
/// host information), so 10,000 peers are 15 MiB; this leaves as much again for filter rules and larger peers.
pub const DECODED: Limit = Limit::new("bytes in a map message", 32 * 1024 * 1024);

/// The largest compressed message. Keys and addresses hardly compress, some 300 bytes a peer: 10,000 peers are 3 MiB.
pub const COMPRESSED: Limit = Limit::new("bytes in a compressed map message", 16 * 1024 * 1024);

/// The largest zstd window, as a power of two: a window need never be larger than the whole message, and the
/// decompressor asks for it at once.
const WINDOW_LOG: u32 = 25;
const _: () = assert!(1 << WINDOW_LOG == DECODED.most);

const HEADER_LEN: usize = 4;
/// How much output is made room for at a time.
const STEP: usize = 32 * 1024;

/// How the payloads are packed: what the map request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// JSON as it is.
    Plain,
    /// zstd frames.
    Zstd,
}

/// Why a map stream cannot be read on.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MapStreamError {
    /// A message of length zero.
    #[error("map stream: an empty message")]
    Empty,
    /// A message larger than we take.
    #[error("map stream: {0}")]
    Limit(#[from] LimitError),
    /// Not zstd, or a frame that needs more memory than we give.
    #[error("map stream: zstd: {0}")]
    Zstd(String),
    /// The last zstd frame of a message is not complete.
    #[error("map stream: a message ends inside a zstd frame")]
    CutOff,
}

/// The header of a message whose payload has this length.
pub fn header(payload: usize) -> Result<[u8; HEADER_LEN], LimitError> {
    DECODED.check(payload)?;
    Ok(u32::try_from(payload).unwrap_or(u32::MAX).to_le_bytes())
}

/// A whole message whose payload is these parts in a row.
pub fn encode(parts: &[&[u8]]) -> Result<Vec<u8>, LimitError> {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut message = Vec::with_capacity(HEADER_LEN + length);
    message.extend_from_slice(&header(length)?);
    for part in parts {
        message.extend_from_slice(part);
    }
    Ok(message)
}

/// Reads messages from a stream that comes in any pieces.
pub struct MapStreamDecoder {
    packing: Packing,
    header: Vec<u8>,
    message: Option<Message>,
}

/// A message of which some is still to come.
struct Message {
    missing: usize,
    decoded: Vec<u8>,
    /// `None` where the payload is plain.
    zstd: Option<Frames>,
}

impl MapStreamDecoder {
    /// A decoder for the stream of one map request.
    pub const fn new(packing: Packing) -> Self {
        Self { packing, header: Vec::new(), message: None }
    }

    /// Takes bytes off the front of `input` until one message is whole, and gives its JSON.
    ///
    /// `None` means that the input ran out first. After an error the stream cannot be followed any more.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, MapStreamError> {
        let Some(message) = self.message(input)? else {
            return Ok(None);
        };
        let (now, rest) = input.split_at(message.missing.min(input.len()));
        *input = rest;
        message.missing -= now.len();
        match &mut message.zstd {
            Some(frames) => frames.decode(now, &mut message.decoded)?,
            None => message.decoded.extend_from_slice(now),
        }
        if message.missing > 0 {
            return Ok(None);
        }
        match self.message.take() {
            Some(Message { zstd: Some(frames), .. }) if !frames.at_boundary => Err(MapStreamError::CutOff),
            Some(message) => Ok(Some(message.decoded)),
            None => Ok(None),
        }
    }

    /// The message under way; `None` until its header is whole.
    fn message(&mut self, input: &mut &[u8]) -> Result<Option<&mut Message>, MapStreamError> {
        if self.message.is_none() {
            let (now, rest) = input.split_at((HEADER_LEN - self.header.len()).min(input.len()));
            *input = rest;
            self.header.extend_from_slice(now);
            let Some(header) = self.header.first_chunk() else {
                return Ok(None);
            };
            let missing = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
            self.header.clear();
            self.message = Some(Message::new(missing, self.packing)?);
        }
        Ok(self.message.as_mut())
    }
}

impl Message {
    fn new(missing: usize, packing: Packing) -> Result<Self, MapStreamError> {
        let (limit, zstd) = match packing {
            Packing::Plain => (DECODED, None),
            Packing::Zstd => (COMPRESSED, Some(Frames::new()?)),
        };
        limit.check(missing)?;
        if missing == 0 {
            return Err(MapStreamError::Empty);
        }
        Ok(Self { missing, decoded: Vec::new(), zstd })
    }
}

/// Decompresses zstd frames in a row.
struct Frames {
    decoder: Decoder<'static>,
    /// Whether the last frame is complete, and no other has begun.
    at_boundary: bool,
}

impl Frames {
    fn new() -> Result<Self, MapStreamError> {
        let mut decoder = Decoder::new().map_err(zstd_error)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(zstd_error)?;
        Ok(Self { decoder, at_boundary: true })
    }

    /// Decompresses `input` to the end of `decoded`, growing it a step at a time and never past the limit.
    fn decode(&mut self, mut input: &[u8], decoded: &mut Vec<u8>) -> Result<(), MapStreamError> {
        loop {
            let start = decoded.len();
            // One byte of room past the limit tells a message that fits exactly from one that does not.
            let room = STEP.min(DECODED.most + 1 - start);
            decoded.resize(start + room, 0);
            let status = self.decoder.run_on_buffers(input, &mut decoded[start..]).map_err(zstd_error)?;
            decoded.truncate(start + status.bytes_written);
            DECODED.check(decoded.len())?;
            if status.bytes_read > 0 || status.bytes_written > 0 {
                self.at_boundary = status.remaining == 0;
            }
            input = &input[status.bytes_read..];
            // A full step may mean that more output waits inside; a frame's end means that none does.
            if input.is_empty() && (self.at_boundary || status.bytes_written < room) {
                return Ok(());
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "called by map_err")]
fn zstd_error(error: std::io::Error) -> MapStreamError {
    MapStreamError::Zstd(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(text: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(text, 3).unwrap()
    }

    fn read_all(packing: Packing, stream: &[u8], cut: usize) -> Result<Vec<Vec<u8>>, MapStreamError> {
        let mut decoder = MapStreamDecoder::new(packing);
        let mut messages = Vec::new();
        for mut piece in stream.chunks(cut) {
            while !piece.is_empty() {
                messages.extend(decoder.next(&mut piece)?);
            }
        }
        Ok(messages)
    }

    #[test]
    fn a_plain_message_is_these_bytes() {
        let message = encode(&[b"{\"KeepAlive\"", b":true}"]).unwrap();
        assert_eq!(message, [&[18, 0, 0, 0][..], b"{\"KeepAlive\":true}"].concat(), "u32, little-endian");
        assert_eq!(read_all(Packing::Plain, &message, 5).unwrap(), [b"{\"KeepAlive\":true}"]);
    }

    #[test]
    fn several_frames_in_a_row_are_one_message() {
        let message = encode(&[&pack(b"{\"a\":"), &pack(b""), &pack(b"1"), &pack(b"}")]).unwrap();
        for cut in 1..message.len() {
            assert_eq!(read_all(Packing::Zstd, &message, cut).unwrap(), [b"{\"a\":1}"], "cut at {cut}");
        }
    }

    #[test]
    fn an_empty_message_is_refused() {
        assert_eq!(read_all(Packing::Plain, &[0; 4], 4), Err(MapStreamError::Empty));
        assert_eq!(read_all(Packing::Zstd, &[0; 4], 4), Err(MapStreamError::Empty));
    }

    #[test]
    fn a_message_larger_than_the_limit_is_refused_by_its_header_alone() {
        let length = COMPRESSED.most + 1;
        let header = u32::try_from(length).unwrap().to_le_bytes();
        let error = LimitError { limit: COMPRESSED, found: length };
        assert_eq!(read_all(Packing::Zstd, &header, 4), Err(MapStreamError::Limit(error)));
    }

    #[test]
    fn a_small_message_that_unpacks_to_more_than_the_limit_is_refused() {
        let bomb = [pack(&vec![0; DECODED.most / 2]), pack(&vec![0; DECODED.most / 2 + 1])].concat();
        assert!(bomb.len() < 10_000);
        let refused = read_all(Packing::Zstd, &encode(&[&bomb]).unwrap(), 1000);
        let error = LimitError { limit: DECODED, found: DECODED.most + 1 };
        assert_eq!(refused, Err(MapStreamError::Limit(error)));
    }

    #[test]
    fn a_message_of_exactly_the_limit_is_taken() {
        let message = encode(&[&pack(&vec![b' '; DECODED.most])]).unwrap();
        assert_eq!(read_all(Packing::Zstd, &message, 4096).unwrap()[0].len(), DECODED.most);
    }

    #[test]
    fn a_frame_that_wants_a_larger_window_than_the_limit_is_refused() {
        // Magic, descriptor without a content size, window descriptor of exponent 16 (2^26 bytes).
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 16 << 3, 1, 0, 0];
        let refused = read_all(Packing::Zstd, &encode(&[&frame]).unwrap(), 100);
        assert!(matches!(refused, Err(MapStreamError::Zstd(_))), "{refused:?}");
    }

    #[test]
    fn a_message_that_ends_inside_a_frame_is_refused() {
        let frame = pack(b"a text that is cut off");
        let message = encode(&[&pack(b"whole"), &frame[..frame.len() - 1]]).unwrap();
        assert_eq!(read_all(Packing::Zstd, &message, 7), Err(MapStreamError::CutOff));
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            texts in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4), 1..4),
            repeat in 1_usize..2000,
            cut in 1_usize..5000,
        ) {
            let texts: Vec<Vec<Vec<u8>>> =
                texts.iter().map(|parts| parts.iter().map(|part| part.repeat(repeat)).collect()).collect();
            let mut stream = Vec::new();
            for parts in &texts {
                let packed: Vec<_> = parts.iter().map(|part| pack(part)).collect();
                stream.extend(encode(&packed.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap());
            }
            let whole: Vec<_> = texts.iter().map(|parts| parts.concat()).collect();
            prop_assert_eq!(read_all(Packing::Zstd, &stream, cut).unwrap(), whole);
        }

        #[test]
        fn any_bytes_are_messages_or_an_error_and_never_more_memory_than_the_limit(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            framed in any::<bool>(),
            magic in any::<bool>(),
            cut in 1_usize..50,
        ) {
            if magic {
                bytes.splice(..0, [0x28, 0xb5, 0x2f, 0xfd]);
            }
            if framed {
                bytes = encode(&[&bytes]).unwrap();
            }
            for packing in [Packing::Plain, Packing::Zstd] {
                for message in read_all(packing, &bytes, cut).unwrap_or_default() {
                    prop_assert!(message.len() <= DECODED.most);
                }
            }
        }
    }
}
