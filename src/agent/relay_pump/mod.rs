//! The pump: packets between WireGuard and the relays. They never pass through the loop.

mod message;

pub use message::{Direct, PumpCommand, PumpConfig, PumpCounters, PumpNews, PumpPeer, RegionState};
