//! The relay protocol: who is connected, and where a packet goes.
//!
//! A relay forwards ciphertext between nodes that have no direct path yet, by node key. [`Handshake`] brings one
//! connection to the point where the client is known; [`Server`] owns every connection's queues and routes
//! frames between them; [`Client`] is the other end of one connection. All take bytes and times and give bytes and
//! times; the shells around them (`relay`, and the agent's pump) own the sockets.

mod client;
mod handshake;
pub mod presentation;
mod queue;
mod server;

pub use client::{Client, ClientDrops, ClientError, ClientEvent};
pub use handshake::{Greeting, Handshake, MeshKey};
pub use queue::Queue;
pub use server::{ConnectionId, Counters, Limits, Server};
