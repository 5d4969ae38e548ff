//! Bytes to messages and back: bounded, total, fuzzed.

pub mod control;
pub mod local;
pub mod map_stream;
pub mod noise;
