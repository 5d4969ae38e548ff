//! One message of a map stream, in parts: what many nodes receive alike exists once.
//!
//! The text of a message is its parts in a row. Compressed, each part is a zstd frame of its own, and
//! frames in a row decompress to the texts in a row. So a [`Chunk`] is compressed once, by whoever needs it
//! first, and the frame is shared like the text; only the private parts are compressed for one node.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

/// How hard shared parts are compressed: once for many receivers, so a little harder than the default of
/// one-off messages would be.
const LEVEL: i32 = 5;

/// Items in one chunk of a long list. A node's own place in the list is cut out by making its chunk
/// private, so a chunk should be small to compress and large to share: about 80 KiB of peers.
pub(super) const CHUNK: usize = 128;

/// One message of a map stream.
#[derive(Clone, Debug, Default)]
pub struct MapMessage {
    parts: Vec<Part>,
}

/// A piece of a message's text.
#[derive(Clone, Debug)]
pub enum Part {
    /// For one receiver.
    Private(Vec<u8>),
    /// For many.
    Shared(Arc<Chunk>),
}

/// A text that many receive.
#[derive(Debug)]
pub struct Chunk {
    /// The text, in pieces that are themselves shared: a node's entry is in its chunk and in deltas.
    pieces: Vec<Arc<str>>,
    separator: &'static str,
    frame: OnceLock<Vec<u8>>,
}

impl MapMessage {
    /// The pieces, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The JSON text.
    pub fn plain(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.parts.iter().map(Part::len).sum());
        for part in &self.parts {
            match part {
                Part::Private(bytes) => text.extend_from_slice(bytes),
                Part::Shared(chunk) => chunk.write_plain(&mut text),
            }
        }
        text
    }

    /// Writes zstd frames: shared ones as they are, private ones by `compress(text, out)`.
    pub fn write_zstd<E>(
        &self,
        out: &mut Vec<u8>,
        mut compress: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        for part in &self.parts {
            match part {
                Part::Private(bytes) => compress(bytes, out)?,
                Part::Shared(chunk) => out.extend_from_slice(chunk.zstd()),
            }
        }
        Ok(())
    }

    /// Adds a field that is this receiver's alone.
    pub fn insert(&mut self, name: &str, value: &impl Serialize) {
        // A message begins with its brace, in a private part, and is never without a field.
        if let Some(Part::Private(first)) = self.parts.first_mut().filter(|part| part.len() > "{".len()) {
            first.splice(1..1, format!("\"{name}\":{},", json(value)).into_bytes());
        }
    }

    /// A message that is the same for all its receivers.
    pub(super) fn shared(self) -> Self {
        let chunk = match self.parts.as_slice() {
            [Part::Shared(_)] => return self,
            _ => Chunk::of_text(&String::from_utf8_lossy(&self.plain())),
        };
        Self { parts: vec![Part::Shared(chunk)] }
    }
}

impl Part {
    /// Bytes of text.
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Shared(chunk) => chunk.len(),
        }
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Chunk {
    pub(super) fn new(pieces: Vec<Arc<str>>, separator: &'static str) -> Arc<Self> {
        Arc::new(Self { pieces, separator, frame: OnceLock::new() })
    }

    pub(super) fn of_text(text: &str) -> Arc<Self> {
        Self::new(vec![text.into()], "")
    }

    /// Bytes of text.
    pub fn len(&self) -> usize {
        let texts: usize = self.pieces.iter().map(|piece| piece.len()).sum();
        texts + self.separator.len() * self.pieces.len().saturating_sub(1)
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the text.
    pub fn write_plain(&self, out: &mut Vec<u8>) {
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(self.separator.as_bytes());
            }
            out.extend_from_slice(piece.as_bytes());
        }
    }

    /// Appends some of the text: whole pieces from this one on, at least one, until `out` has `most` bytes. The piece to go
    /// on with, if there is one left.
    pub fn write_some(&self, from: usize, most: usize, out: &mut Vec<u8>) -> Option<usize> {
        for (index, piece) in self.pieces.iter().enumerate().skip(from) {
            if index > from && out.len() >= most {
                return Some(index);
            }
            if index > 0 {
                out.extend_from_slice(self.separator.as_bytes());
            }
            out.extend_from_slice(piece.as_bytes());
        }
        None
    }

    /// The text as one zstd frame, compressed on first use.
    pub fn zstd(&self) -> &[u8] {
        self.frame.get_or_init(|| {
            let mut text = Vec::with_capacity(self.len());
            self.write_plain(&mut text);
            // The compressor fails only without memory; a frame that stores the text needs none of its.
            zstd::bulk::compress(&text, LEVEL).unwrap_or_else(|_| stored_frame(&text))
        })
    }
}

/// A zstd frame of uncompressed blocks (RFC 8878 §3.1.1).
fn stored_frame(text: &[u8]) -> Vec<u8> {
    const MAX_BLOCK: usize = 128 * 1024;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend_from_slice(&(text.len() as u64).to_le_bytes());
    let mut blocks = text.chunks(MAX_BLOCK).peekable();
    if blocks.peek().is_none() {
        frame.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = (u32::try_from(block.len()).unwrap_or(0) << 3) | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// Items of a JSON list or object, by number, in chunks that are shared.
#[derive(Clone, Debug, Default)]
pub(super) struct Items {
    groups: Vec<Group>,
}

/// Some items in a row.
#[derive(Clone, Debug)]
pub(super) struct Group {
    items: Arc<[(u64, Arc<str>)]>,
    chunk: Arc<Chunk>,
}

impl Items {
    /// Items in rising order of their numbers.
    pub(super) fn new(items: &[(u64, Arc<str>)]) -> Self {
        Self { groups: items.chunks(CHUNK).map(|items| Group::new(items.to_vec())).collect() }
    }

    pub(super) fn of_groups(groups: Vec<Group>) -> Self {
        Self { groups }
    }

    pub(super) fn holds(&self, number: u64) -> bool {
        self.groups.iter().any(|group| group.holds(number))
    }

    pub(super) fn is_empty_without(&self, except: Option<u64>) -> bool {
        self.groups.iter().all(|group| group.items.iter().all(|(number, _)| Some(*number) == except))
    }
}

impl Group {
    pub(super) fn new(items: Vec<(u64, Arc<str>)>) -> Self {
        let chunk = Chunk::new(items.iter().map(|(_, text)| Arc::clone(text)).collect(), ",");
        Self { items: items.into(), chunk }
    }

    fn holds(&self, number: u64) -> bool {
        self.items.binary_search_by_key(&number, |(number, _)| *number).is_ok()
    }
}

/// Builds a message field by field.
#[derive(Debug)]
pub(super) struct Builder {
    parts: Vec<Part>,
    text: String,
    empty: bool,
    /// The comma between two shared chunks is a frame of its own, the same everywhere.
    comma: Arc<Chunk>,
}

impl Builder {
    pub(super) fn new(comma: &Arc<Chunk>) -> Self {
        Self { parts: Vec::new(), text: "{".to_owned(), empty: true, comma: Arc::clone(comma) }
    }

    /// Whether no field was written.
    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// Writes one field.
    pub(super) fn field(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        self.text.push_str(&json(value));
    }

    /// Writes one field whose value is JSON already.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.text.push_str(value);
    }

    /// Writes fields that are the same for many: `"A":1,"B":2`.
    pub(super) fn shared_fields(&mut self, fields: &Arc<Chunk>) {
        if fields.is_empty() {
            return;
        }
        self.comma();
        self.share(fields);
    }

    /// Writes a list of the items but one; nothing at all where none is left, since an empty list would be
    /// read as "unchanged" anyway.
    pub(super) fn list(&mut self, name: &str, items: &Items, except: Option<u64>) {
        self.group(name, items, except, ["[", "]"]);
    }

    /// Like [`Builder::list`], for items that are members of an object.
    pub(super) fn object(&mut self, name: &str, items: &Items, except: Option<u64>) {
        self.group(name, items, except, ["{", "}"]);
    }

    fn group(&mut self, name: &str, items: &Items, except: Option<u64>, [open, close]: [&str; 2]) {
        if items.is_empty_without(except) {
            return;
        }
        self.name(name);
        self.text.push_str(open);
        let mut first = true;
        for group in items.groups.iter().filter(|group| !group.items.is_empty()) {
            match except {
                Some(number) if group.holds(number) => {
                    for (_, text) in group.items.iter().filter(|(other, _)| *other != number) {
                        if !std::mem::take(&mut first) {
                            self.text.push(',');
                        }
                        self.text.push_str(text);
                    }
                }
                _ => {
                    if !std::mem::take(&mut first) {
                        self.separate();
                    }
                    self.share(&group.chunk);
                }
            }
        }
        self.text.push_str(close);
    }

    pub(super) fn finish(mut self) -> MapMessage {
        self.text.push('}');
        self.parts.push(Part::Private(self.text.into_bytes()));
        MapMessage { parts: self.parts }
    }

    fn name(&mut self, name: &str) {
        self.comma();
        // Writing to a string cannot fail.
        let _ = write!(self.text, "\"{name}\":");
    }

    fn comma(&mut self) {
        if !std::mem::take(&mut self.empty) {
            self.separate();
        }
    }

    fn separate(&mut self) {
        if self.text.is_empty() {
            self.parts.push(Part::Shared(Arc::clone(&self.comma)));
        } else {
            self.text.push(',');
        }
    }

    fn share(&mut self, chunk: &Arc<Chunk>) {
        if !self.text.is_empty() {
            self.parts.push(Part::Private(std::mem::take(&mut self.text).into_bytes()));
        }
        self.parts.push(Part::Shared(Arc::clone(chunk)));
    }
}

/// The JSON text of a value. Our own types always have one.
pub(in crate::registry) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// The fields of an object, without its braces.
pub(super) fn fields(fields: &BTreeMap<&str, String>) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "\"{name}\":{value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(range: std::ops::RangeInclusive<u64>) -> Items {
        Items::new(&range.map(|n| (n, Arc::from(n.to_string()))).collect::<Vec<_>>())
    }

    fn decompress(message: &MapMessage) -> Vec<u8> {
        let mut frames = Vec::new();
        message
            .write_zstd(&mut frames, |text, out| {
                out.extend(zstd::bulk::compress(text, 1)?);
                std::io::Result::Ok(())
            })
            .unwrap();
        zstd::stream::decode_all(frames.as_slice()).unwrap()
    }

    #[test]
    fn a_list_leaves_one_item_out_wherever_it_stands() {
        for except in [None, Some(1), Some(2), Some(128), Some(129), Some(300), Some(301)] {
            let mut builder = Builder::new(&Chunk::of_text(","));
            builder.field("A", &1);
            builder.list("L", &numbers(1..=300), except);
            builder.shared_fields(&Chunk::of_text("\"B\":2"));
            let message = builder.finish();
            let value: serde_json::Value = serde_json::from_slice(&message.plain()).unwrap();
            let wanted: Vec<u64> = (1..=300).filter(|n| Some(*n) != except).collect();
            assert_eq!(value, serde_json::json!({"A": 1, "L": wanted, "B": 2}), "without {except:?}");
        }
    }

    #[test]
    fn a_text_written_in_parts_is_the_text() {
        let chunk = Chunk::new((0..50).map(|n: u32| Arc::from(n.to_string().repeat(7))).collect(), ",");
        let mut whole = Vec::new();
        chunk.write_plain(&mut whole);
        for most in [0, 1, 20, 10_000] {
            let (mut from, mut parts) = (Some(0), Vec::new());
            while let Some(next) = from {
                let mut part = Vec::new();
                from = chunk.write_some(next, most, &mut part);
                parts.extend(part);
            }
            assert_eq!(parts, whole, "{most}");
        }
    }

    #[test]
    fn a_field_for_one_receiver_joins_the_others() {
        let mut builder = Builder::new(&Chunk::of_text(","));
        builder.field("A", &1);
        builder.shared_fields(&Chunk::of_text("\"B\":2"));
        let mut message = builder.finish();
        message.insert("C", &3);
        let value: serde_json::Value = serde_json::from_slice(&message.plain()).unwrap();
        assert_eq!(value, serde_json::json!({"A": 1, "B": 2, "C": 3}));
    }

    #[test]
    fn a_list_of_only_the_one_left_out_is_not_written() {
        let mut builder = Builder::new(&Chunk::of_text(","));
        builder.list("L", &numbers(7..=7), Some(7));
        assert!(builder.is_empty());
        assert_eq!(builder.finish().plain(), b"{}");
    }

    #[test]
    fn frames_in_a_row_decompress_to_the_plain_text() {
        let mut builder = Builder::new(&Chunk::of_text(","));
        builder.list("L", &numbers(1..=1000), Some(500));
        let message = builder.finish();
        assert_eq!(decompress(&message), message.plain());
        assert!(message.parts().len() > 8, "chunks are shared, not copied");
        assert_eq!(decompress(&message.clone().shared()), message.plain());
    }

    #[test]
    fn a_stored_frame_is_a_zstd_frame() {
        for text in [Vec::new(), b"abc".to_vec(), vec![7; 300_000]] {
            assert_eq!(zstd::stream::decode_all(stored_frame(&text).as_slice()).unwrap(), text);
        }
    }
}
