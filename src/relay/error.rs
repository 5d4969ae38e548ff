//! Why a connection to the relay ends.

use std::io;

use thiserror::Error;
use warren_core::wire::derp::DerpError;

/// Why a connection ended before its client closed it.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] DerpError),
    /// The client did not introduce itself, or stopped reading.
    #[error("the client took too long to {0}")]
    Slow(&'static str),
    /// The client is not one of ours.
    #[error("the client is not admitted")]
    NotAdmitted,
    /// The other end of a link has our key.
    #[error("this relay is linked to itself")]
    Oneself,
}
