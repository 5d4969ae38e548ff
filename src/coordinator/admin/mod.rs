//! The administrator's side: commands as they are typed, the socket's client, answers as text.

mod audit;
mod cells;
mod client;
mod command;
mod fetch;
mod policy_text;
mod table;

pub(crate) use audit::AuditArgs;
pub(crate) use client::{run, run_device, show};
pub(crate) use command::{KeyCommand, NodeCommand, RouteCommand, ServerKeyCommand, UserCommand};
pub(crate) use fetch::fetch_backup;
