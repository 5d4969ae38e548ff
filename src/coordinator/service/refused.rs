//! Why a request was not carried out.

use crate::hub::Busy;
use crate::store::CommandError;
use warren_core::registry::{Refusal, RefusalKind};
use warren_core::wire::admin::Reply;

/// The reply, or a sentence that says why not.
pub(crate) type ServiceResult = Result<Reply, Refused>;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) kind: RefusedKind,
    pub(crate) message: String,
}

/// Whose fault it is, and what would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedKind {
    /// It makes no sense, whatever the state.
    Invalid,
    /// Who asks may not.
    Forbidden,
    /// What it names is not there.
    NotFound,
    /// It contradicts the state.
    Conflict,
    /// There is no room for more.
    Full,
    /// There is too much to do: it may be asked again.
    Busy,
    /// The server could not do it.
    Failed,
}

impl Refused {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: RefusedKind::Invalid, message: message.into() }
    }

    pub(super) fn not_found(message: String) -> Self {
        Self { kind: RefusedKind::NotFound, message }
    }

    pub(super) fn conflict(message: String) -> Self {
        Self { kind: RefusedKind::Conflict, message }
    }

    pub(super) fn failed(message: String) -> Self {
        Self { kind: RefusedKind::Failed, message }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.kind() {
            RefusalKind::NotFound => RefusedKind::NotFound,
            RefusalKind::Conflict => RefusedKind::Conflict,
            RefusalKind::Invalid => RefusedKind::Invalid,
            RefusalKind::Full => RefusedKind::Full,
            RefusalKind::Forbidden => RefusedKind::Forbidden,
        };
        Self { kind, message: refusal.to_string() }
    }
}

impl From<CommandError> for Refused {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::Store(error) => Self::failed(format!("nothing was changed: {error}")),
            CommandError::Busy => Self { kind: RefusedKind::Busy, message: error.to_string() },
        }
    }
}

impl From<Busy> for Refused {
    fn from(busy: Busy) -> Self {
        CommandError::from(busy).into()
    }
}
