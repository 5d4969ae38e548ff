//! The local socket: HTTP on a unix socket, one small question and one answer each.
//!
//! This side knows who asks and what is asked; the loop alone knows the answers. A connection task reads a request whole
//! (`server`), the router says what [`Request`] it is (`route`), and the task looks the caller up and hands it over with a
//! place for the answer.
//! Whoever can reach the socket may read. Changing something needs root, our own user, a member of the operator group
//! or the operator that the preferences name; the kernel says who is at the other end.

mod answer;
mod caller;
mod dial;
mod elsewhere;
mod places;
mod route;
mod server;

pub use caller::Operators;
pub use route::asked;
pub use server::{bind, serve};

use tokio::sync::{mpsc, oneshot};

use warren_core::node::{Answer, Caller, Request};

/// A request with its asker and the place for its answer.
#[derive(Debug)]
pub struct Call {
    pub caller: Caller,
    pub request: Request,
    /// Where the answer goes. Nobody may be waiting any more.
    pub reply: oneshot::Sender<Reply>,
}

/// What comes back for a call.
#[derive(Debug)]
pub enum Reply {
    /// One answer.
    Answer(Answer),
    /// JSON texts, one a line, until either side ends it.
    Stream(mpsc::Receiver<Vec<u8>>),
}
