//! What waits to be written to one client: few packets, the oldest dropped first.

use std::collections::VecDeque;

/// Frames in one ring of bytes. Bounded by count; what no longer fits pushes out the oldest, because a newer
/// packet is worth more to a tunnel than an older one.
#[derive(Debug)]
pub struct Queue {
    bytes: VecDeque<u8>,
    lengths: VecDeque<u32>,
    most: usize,
    kept: usize,
}

/// Memory that an empty queue may keep: one packet of the usual size, so that a quiet client costs little.
const KEPT_BYTES: usize = 2048;

impl Queue {
    /// An empty queue for `most` frames.
    pub const fn new(most: usize) -> Self {
        Self::keeping(most, KEPT_BYTES)
    }

    /// The same, which keeps `kept` bytes of memory when emptied: for a sender that fills it again and again.
    pub const fn keeping(most: usize, kept: usize) -> Self {
        Self { bytes: VecDeque::new(), lengths: VecDeque::new(), most, kept }
    }

    /// Appends a frame given in pieces. Returns how many older ones were dropped for it.
    pub fn push(&mut self, pieces: &[&[u8]]) -> usize {
        let mut dropped = 0;
        while self.lengths.len() >= self.most {
            let Some(oldest) = self.lengths.pop_front() else { break };
            self.bytes.drain(..oldest as usize);
            dropped += 1;
        }
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.bytes.reserve(length);
        pieces.iter().for_each(|piece| self.bytes.extend(*piece));
        self.lengths.push_back(length as u32);
        dropped
    }

    /// Moves everything to `out`.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        let (front, back) = self.bytes.as_slices();
        out.extend_from_slice(front);
        out.extend_from_slice(back);
        self.bytes.clear();
        self.lengths.clear();
        self.bytes.shrink_to(self.kept);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_frames_make_room() {
        let mut queue = Queue::new(2);
        assert_eq!([queue.push(&[b"a", b"1"]), queue.push(&[b"bb2"]), queue.push(&[b"c"])], [0, 0, 1]);
        let mut out = Vec::new();
        queue.take(&mut out);
        assert_eq!(out, b"bb2c");
        assert!(queue.is_empty());
    }

    #[test]
    fn an_emptied_queue_gives_its_memory_back() {
        let mut queue = Queue::new(32);
        queue.push(&[&[0; 60_000]]);
        queue.take(&mut Vec::new());
        assert!(queue.bytes.capacity() <= 2 * KEPT_BYTES);
    }
}
