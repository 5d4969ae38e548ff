//! Bytes to messages and back: bounded, total, fuzzed.

pub mod admin;
pub mod control;
pub mod derp;
pub mod disco;
pub mod local;
pub mod map_stream;
pub mod noise;
pub mod portmap;
pub mod stun;
