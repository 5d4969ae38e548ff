//! What waits to be written to one client: few packets, the oldest dropped first.

use std::collections::VecDeque;

/// Frames in a row of bytes. Bounded by count and size; what no longer fits pushes out the oldest, because a newer
/// packet is worth more to a tunnel than an older one.
#[derive(Debug)]
pub struct Queue {
    bytes: Vec<u8>,
    /// Where the oldest frame begins; what is before it was dropped.
    start: usize,
    lengths: VecDeque<u32>,
    most: usize,
    most_bytes: usize,
}

impl Queue {
    /// An empty queue for `most` frames of `most_bytes` together; one frame always fits.
    pub const fn new(most: usize, most_bytes: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, lengths: VecDeque::new(), most, most_bytes }
    }

    /// The same frames, with room for others from here on.
    pub const fn with_room_for(mut self, most: usize, most_bytes: usize) -> Self {
        (self.most, self.most_bytes) = (most, most_bytes);
        self
    }

    /// Appends a frame given in pieces. Returns how many older ones were dropped for it.
    pub fn push(&mut self, pieces: &[&[u8]]) -> usize {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut dropped = 0;
        while self.lengths.len() >= self.most || self.waiting() + length > self.most_bytes {
            let Some(oldest) = self.lengths.pop_front() else { break };
            self.start += oldest as usize;
            dropped += 1;
        }
        // Moved together once half is waste, so that each byte is moved about once.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.reserve(length);
        pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
        self.lengths.push_back(length as u32);
        dropped
    }

    /// Moves everything to `out`. Where that is empty, the two trade their memory and nothing is copied.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        if out.is_empty() && self.start == 0 {
            std::mem::swap(out, &mut self.bytes);
        } else {
            out.extend_from_slice(&self.bytes[self.start..]);
            self.bytes.clear();
        }
        self.start = 0;
        self.lengths.clear();
    }

    /// Takes memory from a stock where it has none of its own.
    pub fn borrow_from(&mut self, stock: &mut Vec<Vec<u8>>) {
        if self.bytes.capacity() == 0 {
            self.bytes = stock.pop().unwrap_or_default();
        }
    }

    /// Gives up its memory, if nothing waits.
    pub fn release(&mut self) -> Vec<u8> {
        if self.is_empty() { std::mem::take(&mut self.bytes) } else { Vec::new() }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Frames that wait.
    pub fn len(&self) -> usize {
        self.lengths.len()
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
        let mut queue = Queue::new(2, 100);
        assert_eq!([queue.push(&[b"a", b"1"]), queue.push(&[b"bb2"]), queue.push(&[b"c"])], [0, 0, 1]);
        let mut out = Vec::new();
        queue.take(&mut out);
        assert_eq!(out, b"bb2c");
        assert!(queue.is_empty());
        assert_eq!([queue.push(&[&[0; 60]]), queue.push(&[&[0; 60]]), queue.push(&[&[0; 200]])], [0, 1, 1]);
    }

    #[test]
    fn what_was_dropped_does_not_pile_up() {
        let mut queue = Queue::new(4, 1000);
        for number in 0..1000_u16 {
            queue.push(&[&number.to_be_bytes(), &[0; 100]]);
        }
        assert!(queue.bytes.len() <= 2 * 4 * 102 + 102, "{}", queue.bytes.len());
        let mut out = b"before".to_vec();
        queue.take(&mut out);
        assert_eq!((out.len(), &out[6..8]), (6 + 4 * 102, &996_u16.to_be_bytes()[..]));
    }

    #[test]
    fn memory_comes_from_a_stock_and_goes_back_when_nothing_waits() {
        let mut stock = vec![Vec::with_capacity(4096)];
        let mut queue = Queue::new(32, 100_000);
        queue.borrow_from(&mut stock);
        assert!(stock.is_empty());
        queue.push(&[&[0; 1000]]);
        assert_eq!(queue.release().capacity(), 0, "it is in use");
        let mut out = Vec::new();
        queue.take(&mut out);
        assert_eq!((out.len(), out.capacity()), (1000, 4096));
        queue.borrow_from(&mut stock);
        assert_eq!(queue.push(&[b"more"]), 0, "with an empty stock it finds its own");
    }
}
