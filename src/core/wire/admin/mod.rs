//! Administration in JSON: what is asked of a coordinator and what it answers.
//!
//! `POST /admin` with a [`Request`] answers 200 with a [`Reply`], or another status with a sentence. The command line, the
//! socket that serves it and whatever else administers speak these words; what they do is decided elsewhere.

mod journal;
mod policy;
mod reply;
mod request;

pub use journal::{JournalQuery, JournalRecord, Named, Selector};
pub use policy::{PolicyDiffView, PolicyView, RowView, RuleView, WhyView};
pub use reply::{
    DeviceView, FormerKeyView, GoneView, IdentityView, InvitationView, KeyView, NewKeyView, NodeView, PRIVATE_KEY,
    PendingView, Reply, RouteView, ServerKeyView, StatusView, UserView,
};
pub use request::{
    KeyRequest, Life, NetworkRequest, NodeRequest, PolicyRequest, Request, RouteRequest, ServerKeyRequest, UserRequest,
    WithNodes,
};

/// Where a request goes.
pub const PATH: &str = "/admin";
/// Where a backup is asked for.
pub const BACKUP_PATH: &str = "/backup";
