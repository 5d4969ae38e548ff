//! The local socket: HTTP on a unix socket, one small question and one answer each.
//!
//! This side knows who asks and what is asked; the loop alone knows the answers. A connection task reads a request,
//! looks the caller up, turns the request into an [`Ask`] ([`route`]), and hands it over with a place for the answer.
//! Whoever can reach the socket may read. Changing something needs root, our own user, a member of the operator group
//! or the operator that the preferences name; the kernel says who is at the other end.

mod caller;
mod dial;
mod elsewhere;
mod places;
mod route;
mod server;

pub use caller::{Caller, Operators};
pub use route::{Ask, Refusal, Subject, route};
pub use server::{bind, serve};

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};

/// A question with its asker and the place for its answer.
#[derive(Debug)]
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes. Nobody may be waiting any more.
    pub reply: oneshot::Sender<Answer>,
}

/// What the loop says.
#[derive(Debug)]
pub enum Answer {
    /// Done; there is nothing to say.
    Done,
    /// A JSON text.
    Json(Vec<u8>),
    /// Plain text.
    Text(String),
    /// JSON texts, one a line, until either side ends it.
    Stream(mpsc::Receiver<Vec<u8>>),
    /// A connection to there is to be made.
    Dial(SocketAddr),
    /// No, and why.
    Refused(Refusal),
}

impl Answer {
    /// The JSON of a value.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => Self::Json(json),
            Err(error) => Self::refused(500, format!("encode the answer: {error}")),
        }
    }

    /// A refusal with its HTTP status.
    pub fn refused(status: u16, text: impl Into<String>) -> Self {
        Self::Refused(Refusal::new(status, text))
    }
}
