//! Names: what `ping web` asks for.
//!
//! [`Server`] is the resolver that each node runs for itself. It answers the names of nodes, their addresses' names,
//! the coordinator's records and the names of subnets behind sites ([`Zones`]), and passes everything else on to the
//! name servers that are named for it, or to those of the host ([`Upstream`]). A name inside our own zones is never
//! asked of anybody else.
//!
//! Like all cores it has no socket and no clock: [`Server::handle_query`] and its like say what happened,
//! [`Server::poll_effect`] what is to be done, [`Server::poll_timeout`] when to come back.

mod domain;
mod explain;
mod flight;
mod found;
pub mod host;
mod hosts;
mod id;
mod message;
mod server;
mod upstream;
mod zones;

#[cfg(test)]
mod tests;

pub use domain::{Domain, DomainError};
pub use explain::{Described, Explained, describe, question, record_type};
pub use found::addresses;
pub use id::{AskId, QueryId};
pub use message::Transport;
pub use server::{Effect, IN_FLIGHT, Outcome, QUESTION_LEN, Server};
pub use upstream::{Upstream, UpstreamError};
pub use zones::{Finding, WayOut, Zones};
