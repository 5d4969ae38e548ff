//! Records: what the two ends say once the handshake is done.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use super::{HEADER_LEN, KEY_LEN, MAX_FRAME, MAX_PLAINTEXT, NoiseError, RECORD, TAG_LEN, header, take};

/// An established channel: one half to send with, one to receive with.
pub struct Transport {
    /// Seals what this end sends.
    pub sealer: Sealer,
    /// Opens what the other end sent.
    pub opener: Opener,
}

impl Transport {
    pub(super) fn new(send: &[u8; KEY_LEN], receive: &[u8; KEY_LEN]) -> Self {
        Self { sealer: Sealer(Direction::new(send)), opener: Opener::new(receive) }
    }
}

/// The sending half.
pub struct Sealer(Direction);

impl Sealer {
    /// Appends `plaintext` to `out` as one or more records; nothing for an empty plaintext.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        for part in plaintext.chunks(MAX_PLAINTEXT) {
            let nonce = self.0.next_nonce()?;
            out.extend_from_slice(&header(RECORD, part.len() + TAG_LEN));
            let start = out.len();
            out.extend_from_slice(part);
            let tag = self.0.cipher.encrypt_in_place_detached(&nonce, &[], &mut out[start..]);
            out.extend_from_slice(&tag.map_err(|_| NoiseError::Closed)?);
        }
        Ok(())
    }
}

/// The receiving half. Takes the stream in any pieces, and holds back at most one unfinished record.
pub struct Opener {
    direction: Direction,
    /// The beginning of a record whose end has not come; allocated only then, so an idle channel holds nothing.
    partial: Vec<u8>,
}

impl Opener {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self { direction: Direction::new(key), partial: Vec::new() }
    }

    /// Takes bytes off the front of `input` until one record is complete, and appends its plaintext to `out`.
    ///
    /// `false` means that the input ran out first. A record may be empty, so `true` need not mean more plaintext.
    pub fn open(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, NoiseError> {
        match self.open_one(input, out) {
            Err(error) => {
                self.direction.close();
                self.partial = Vec::new();
                Err(error)
            }
            opened => opened,
        }
    }

    /// Whether a record has begun and not ended: a stream that stops here was cut off.
    pub fn is_mid_record(&self) -> bool {
        !self.partial.is_empty()
    }

    fn open_one(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, NoiseError> {
        if self.direction.next.is_none() {
            return Err(NoiseError::Closed);
        }
        if self.partial.is_empty()
            && let Some(length) = record_length(input)?
            && input.len() >= length
        {
            self.direction.open(take(input, length), out)?;
            return Ok(true);
        }
        while !input.is_empty() {
            let wanted = record_length(&self.partial)?.unwrap_or(HEADER_LEN);
            self.partial.extend_from_slice(take(input, wanted - self.partial.len()));
            if record_length(&self.partial)? == Some(self.partial.len()) {
                let record = std::mem::take(&mut self.partial);
                self.direction.open(&record, out)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How long the record that begins here is, header included; `None` until its header is whole.
fn record_length(bytes: &[u8]) -> Result<Option<usize>, NoiseError> {
    let Some(&[kind, high, low]) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind != RECORD || !(TAG_LEN..=MAX_FRAME - HEADER_LEN).contains(&length) {
        return Err(NoiseError::NotARecord { kind, length });
    }
    Ok(Some(HEADER_LEN + length))
}

/// One direction's cipher and its counter.
struct Direction {
    cipher: ChaCha20Poly1305,
    /// `None` once closed. The largest number is never used.
    next: Option<u64>,
}

impl Direction {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(key.into()), next: Some(0) }
    }

    fn close(&mut self) {
        self.next = None;
    }

    /// The counter, big-endian, in the last eight of twelve bytes.
    fn next_nonce(&mut self) -> Result<Nonce, NoiseError> {
        let counter = self.next.filter(|counter| *counter != u64::MAX).ok_or(NoiseError::Closed)?;
        self.next = Some(counter + 1);
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        Ok(nonce)
    }

    /// Appends the plaintext of one whole record.
    fn open(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let nonce = self.next_nonce()?;
        let (ciphertext, tag) = record[HEADER_LEN..].split_at(record.len() - HEADER_LEN - TAG_LEN);
        let start = out.len();
        out.extend_from_slice(ciphertext);
        let opened = self.cipher.decrypt_in_place_detached(&nonce, &[], &mut out[start..], Tag::from_slice(tag));
        if opened.is_err() {
            out.truncate(start);
            return Err(NoiseError::Record);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Transport, Transport) {
        (Transport::new(&[1; 32], &[2; 32]), Transport::new(&[2; 32], &[1; 32]))
    }

    fn open_all(opener: &mut Opener, mut input: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut out = Vec::new();
        while opener.open(&mut input, &mut out)? {}
        Ok(out)
    }

    #[test]
    fn the_nonce_counts_big_endian() {
        let (mut here, _) = pair();
        let counters = [0, 1, 2].map(|_| here.sealer.0.next_nonce().unwrap());
        assert_eq!(counters[2].as_slice(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_counter_that_has_run_out_closes_the_channel() {
        let (mut here, _) = pair();
        here.sealer.0.next = Some(u64::MAX);
        assert_eq!(here.sealer.seal(b"x", &mut Vec::new()), Err(NoiseError::Closed));
    }

    #[test]
    fn a_long_text_is_cut_into_records_of_the_largest_size() {
        let (mut here, _) = pair();
        let mut sent = Vec::new();
        here.sealer.seal(&[7; MAX_PLAINTEXT + 1], &mut sent).unwrap();
        assert_eq!(sent.len(), MAX_FRAME + HEADER_LEN + 1 + TAG_LEN);
        assert_eq!(sent[..3], [4, 0x0f, 0xfd], "type record, 4093 bytes");
        assert_eq!(sent[MAX_FRAME..MAX_FRAME + 3], [4, 0, 17]);
    }

    #[test]
    fn an_empty_record_is_legal() {
        let (_, mut there) = pair();
        let tag =
            ChaCha20Poly1305::new(&[1; 32].into()).encrypt_in_place_detached(&Nonce::default(), &[], &mut []).unwrap();
        let mut record: &[u8] = &[&[4, 0, 16][..], &tag[..]].concat();
        let mut out = Vec::new();
        assert_eq!(there.opener.open(&mut record, &mut out), Ok(true));
        assert!(out.is_empty() && record.is_empty());
    }

    #[test]
    fn a_channel_that_failed_once_stays_failed() {
        let (mut here, mut there) = pair();
        let mut sent = Vec::new();
        here.sealer.seal(b"hello", &mut sent).unwrap();
        let last = sent.len() - 1;
        sent[last] ^= 1;
        assert_eq!(open_all(&mut there.opener, &sent), Err(NoiseError::Record));
        sent[last] ^= 1;
        assert_eq!(open_all(&mut there.opener, &sent), Err(NoiseError::Closed));
    }

    #[test]
    fn a_header_that_is_no_record_is_refused_before_its_body_is_awaited() {
        for (bytes, kind, length) in [([4, 0xff, 0xff], 4, 0xffff), ([3, 0, 20], 3, 20), ([4, 0, 15], 4, 15)] {
            let (_, mut there) = pair();
            assert_eq!(open_all(&mut there.opener, &bytes), Err(NoiseError::NotARecord { kind, length }));
        }
    }

    #[test]
    fn a_stream_that_stops_inside_a_record_is_seen_as_cut_off() {
        let (mut here, mut there) = pair();
        let mut sent = Vec::new();
        here.sealer.seal(b"hello", &mut sent).unwrap();
        open_all(&mut there.opener, &sent[..4]).unwrap();
        assert!(there.opener.is_mid_record());
        open_all(&mut there.opener, &sent[4..]).unwrap();
        assert!(!there.opener.is_mid_record());
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_however_the_stream_is_cut(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 1..4),
            cuts in prop::collection::vec(1_usize..5000, 1..20),
        ) {
            let (mut here, mut there) = pair();
            let mut sent = Vec::new();
            for text in &texts {
                here.sealer.seal(text, &mut sent).unwrap();
            }
            let mut received = Vec::new();
            let mut rest = &sent[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                received.extend(open_all(&mut there.opener, take(&mut rest, *cut)).unwrap());
            }
            prop_assert_eq!(received, texts.concat());
        }

        #[test]
        fn any_bytes_are_an_error_or_held_back_within_one_frame(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..30),
            honest_start in any::<bool>(),
        ) {
            let (_, mut there) = pair();
            if honest_start {
                prop_assert!(open_all(&mut there.opener, &[4, 0x0f, 0xfd]).is_ok());
            }
            for chunk in chunks {
                let opened = open_all(&mut there.opener, &chunk);
                prop_assert!(opened.is_err() || opened.unwrap().is_empty());
                prop_assert!(there.opener.partial.len() <= MAX_FRAME);
            }
        }
    }
}
