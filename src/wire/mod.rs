//! Bytes to messages and back: bounded, total, fuzzed.

pub mod control;
pub mod local;
