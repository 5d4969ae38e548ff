//! The coordinator's shell: HTTP, Noise and map-stream IO, the store, administration.

pub mod store;
