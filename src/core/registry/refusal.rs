//! Why a command was not carried out.

use std::time::Duration;

use thiserror::Error;

use super::presence::PUT_OFF;
use crate::types::LimitError;

/// Why an administrator's command was refused. Prints as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Refusal {
    kind: RefusalKind,
    message: String,
}

/// What sort of refusal it is; the shell turns it into a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The object named does not exist.
    NotFound,
    /// It contradicts what is.
    Conflict,
    /// It is not well formed.
    Invalid,
    /// A limit is reached.
    Full,
    /// Whoever asks has no right to it.
    Forbidden,
}

impl Refusal {
    /// What sort of refusal it is.
    pub const fn kind(&self) -> RefusalKind {
        self.kind
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::NotFound, message: message.into() }
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Conflict, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, message: message.into() }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Forbidden, message: message.into() }
    }

    pub(super) fn full(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Full, message: message.into() }
    }
}

impl From<LimitError> for Refusal {
    fn from(error: LimitError) -> Self {
        Self::full(error.to_string())
    }
}

/// Why a map request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MapRefusal {
    /// The client speaks too old a version.
    #[error("{0}")]
    TooOld(String),
    /// No node of this machine has this key: it was deleted, or never registered.
    #[error("this node is not registered; log in again")]
    Unknown,
    /// Its user is suspended, or nobody approved them yet.
    #[error("the user of this node is suspended in this network; ask its administrator")]
    Suspended,
    /// Another machine follows the map with this node's key.
    #[error("another machine uses this node's key, as after a copy of its disk; log in again on one of them")]
    TwoMachines,
    /// No policy is in force that could be, and everything is not allowed.
    #[error("the coordinator cannot read its policy and serves no map until its administrator sets another")]
    NoPolicy,
}

impl MapRefusal {
    /// When to come again, where that is of use.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TwoMachines => Some(PUT_OFF),
            Self::TooOld(_) | Self::Unknown | Self::Suspended | Self::NoPolicy => None,
        }
    }

    /// The HTTP status to answer with.
    pub const fn status(&self) -> u16 {
        match self {
            Self::TooOld(_) => 400,
            Self::Unknown => 404,
            Self::Suspended => 403,
            Self::TwoMachines => 429,
            Self::NoPolicy => 503,
        }
    }
}
