//! The coordinator's model: users, nodes, keys and routes; commands in, records and per-node maps out.
//!
//! Model: [`State`] is one value with one owner. A command that must outlast a crash is *decided* against
//! `&State` and gives a [`Decision`]: a reply and the [`Change`]s that make it true. The owner commits the
//! changes to its store, then hands them to [`State::apply`], then releases the reply, so that memory never
//! holds what the disk does not, and a full disk costs one caller an error and nobody else anything.
//! What a running node says of itself (endpoints, disco key, home relay) is applied at once and saved
//! lazily: it will say so again.
//!
//! [`State`] is made of three parts that do not change each other: `directory` (records, what they are found by, the policy),
//! `presence` (streams, deadlines, who routes what) and `broadcast` (who sees whom, and what every stream was last sent).
//! `state` puts what concerns several of them in order. What nodes are sent is derived: each flush compares what was last
//! sent of every changed node with what is true, and sends the difference. The JSON of a node is written once and shared by
//! all who see it ([`MapMessage`]).
//!
//! Invariants: a number is never given twice, even after deletion, and an address not for a week; a node's DNS name is
//! unique; a one-off key admits one node; a device that speaks nothing but WireGuard is behind one gateway and no machine's; a map with its deltas applied equals the full map; what a node is shown
//! and lets in is what the policy in force says, and everything only while nobody set one.

mod actor;
mod admin;
mod advice;
mod attributes;
mod broadcast;
mod cleanup;
mod clock_set;
mod commands;
mod config;
mod credential;
mod devices;
mod directory;
mod find;
mod journal;
mod names;
mod people;
mod policy;
mod presence;
mod record;
mod refusal;
mod register;
mod rights;
mod secret;
mod session;
mod settings;
mod settle;
mod sign_in;
mod snapshot;
mod state;
mod update;
mod waiting;
mod welcome;

#[cfg(test)]
mod tests;

pub use actor::{Actor, Area, Door, Rights, Who};
pub use admin::{NewKey, NewKeyAnswer};
pub use attributes::{Attribute, AttributeName, AttributeValue, Attributes};
pub use broadcast::{Chunk, MapMessage, Part};
pub use commands::{Command, Commands, Decision};
pub use config::{Config, Names, limit};
pub use credential::{ClientId, ClientRecord, KeyId, KeyRecord, Scope, Subject, TokenHolder, TokenId, TokenRecord};
pub use devices::NewDevice;
pub use journal::{Action, Audit, Entry, Object, ObjectKind};
pub use people::{
    BrowserSession, BrowserSessionId, Email, Identity, Invitation, ProviderName, UserName, UserRecord, canonical_email,
};
pub use presence::{PingId, RouteView, SessionId};
pub use record::{
    Change, Counters, NodeFields, NodeRecord, NodeReport, NodeStatus, PolicyRecord, Records, ServerKeyNames, Tag,
};
pub use refusal::{MapRefusal, Refusal, RefusalKind};
pub use register::Registered;
pub use secret::{BrowserSecret, KeyText};
pub use session::{Notice, Opened, Output};
pub use settings::Settings;
pub use sign_in::{Arrival, Browser, SignedIn};
pub use snapshot::{CheckedPolicy, Snapshot};
pub use state::{NodeView, State};
pub use update::bound;
pub use waiting::Pending;
pub use welcome::{Rules, Welcome, domain_of};

pub use crate::types::{PendingCode, Ticket, UserStatus};
pub use crate::wire::admin::{Life, WithNodes};
