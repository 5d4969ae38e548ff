//! The policy: HuJSON text in; who sees whom, packet filters, grants, SSH rules and approvals out.
//!
//! ```text
//! text ──syntax──> values with places ──read──> Policy ──┐
//!                                                        ├──Compiled──> per node: filter, peers, SSH, attributes
//!                        users and nodes ── Topology ────┘
//! ```
//!
//! A [`Policy`] is text whose names are all defined and stand where they may; what is wrong with one is said
//! with line, column and caret ([`PolicyErrors`]). [`Compiled`] is a policy against a [`Topology`]. It keeps a
//! set of nodes for each selector and each rule; one node more or less changes those sets and says whose
//! outputs to ask for again ([`Change`]). Prefixes stay prefixes throughout: nothing costs more because a rule
//! says `10.0.0.0/8`.
//!
//! The language is that of the official coordination service. Its captured answers, node by node, are what
//! `tests/policy` compares with.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//! use warren_core::policy::{Compiled, Node, Policy, Role, Topology, User};
//! use warren_core::types::{NodeId, UserId};
//!
//! let policy = Policy::parse(br#"{
//!     "tagOwners": {"tag:web": ["ada@example.com"]},
//!     "acls": [{"action": "accept", "src": ["ada@example.com"], "dst": ["tag:web:443"]}],
//!     "tests": [{"src": "ada@example.com", "accept": ["tag:web:443"], "deny": ["tag:web:22"]}],
//! }"#)?;
//! let ada = User { login: "ada@example.com".into(), role: Role::Owner };
//! let laptop = Node { user: UserId(1), addresses: vec!["100.64.0.1".parse()?], ..Node::default() };
//! let web = Node { tags: vec!["tag:web".into()], addresses: vec!["100.64.0.2".parse()?], ..Node::default() };
//! let topology = Topology {
//!     users: BTreeMap::from([(UserId(1), ada)]),
//!     nodes: BTreeMap::from([(NodeId(1), laptop), (NodeId(2), web)]),
//! };
//!
//! let compiled = Compiled::new(Arc::new(policy), topology);
//! compiled.check()?; // runs the policy's own tests: refuse it if they fail
//! assert_eq!(compiled.packet_filter(NodeId(2))[0].src_ips, ["100.64.0.1"]);
//! assert!(compiled.packet_filter(NodeId(1)).is_empty());
//! assert_eq!(compiled.peers(NodeId(1))[0].id, NodeId(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod approve;
mod check;
mod compile;
mod devices;
mod diff;
mod document;
mod duration;
mod error;
mod filter;
mod imagine;
mod index;
mod internet;
mod ipset;
pub mod limit;
mod login;
mod nodeset;
mod peers;
mod ports;
mod posture;
mod read;
mod roles;
mod selector;
mod sources;
mod ssh;
mod syntax;
mod topology;
mod verdict;

pub use compile::{Change, Compiled, RuleSet};
pub use diff::{Difference, Row};
pub use document::{CheckPeriod, Policy, PolicyErrors};
pub use error::{PolicyError, Span};
pub use filter::{Filter, FilterPart};
pub use login::{BAD_LOGIN, canonical_login, looks_like, nearest_login};
pub use nodeset::NodeSet;
pub use peers::{Carried, NodeKind, View, VisiblePeer};
pub use ports::{PortRange, Protocol};
pub use posture::{Attribute, Posture};
pub use selector::{Autogroup, Selector};
pub use ssh::{SshAccess, SshAction, SshKind, SshPolicy, SshPrincipal};
pub use topology::{Node, Reach, Topology, User};

pub use crate::types::Role;
pub use verdict::Access;
