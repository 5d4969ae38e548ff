//! The relay protocol: who is connected, and where a packet goes.
//!
//! A relay forwards ciphertext between nodes that have no direct path yet, by node key. [`Handshake`] brings one
//! connection to the point where the client is known; [`Server`] owns every connection's queues and routes
//! frames between them. Both take bytes and times and give bytes and times; the shell around them (`relay`) owns
//! the sockets.

mod bucket;
mod handshake;
mod queue;
mod server;

pub use bucket::Bucket;
pub use handshake::{Greeting, Handshake, MeshKey};
pub use queue::Queue;
pub use server::{ConnectionId, Counters, Limits, Server};
