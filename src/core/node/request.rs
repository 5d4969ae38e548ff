//! What the local socket asks, and what it is answered.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::types::{NodeId, NodePublic, UserId};
use crate::wire::local::{Mask, MaskedPrefs, PingKind, Prefs, StartOptions, WhyQuestion};

/// Names a request, so that its answer finds back. Whoever hands requests in never uses a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The user at the other end, as the kernel and the user database know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The name of the user, where it has one.
    pub name: Option<String>,
    /// Root, our own user, or a member of the operator group.
    pub is_operator: bool,
}

/// What is asked of the agent.
pub enum Request {
    /// The state of this node, with or without its peers.
    Status {
        /// Whether the peers are wanted.
        peers: bool,
    },
    /// Whose an address or a key is.
    WhoIs(Subject),
    /// The node of a number.
    Peer(NodeId),
    /// The user of a number.
    User(UserId),
    /// The preferences.
    Prefs,
    /// Change some preferences.
    EditPrefs(MaskedPrefs),
    /// Whether these preferences would be taken.
    CheckPrefs(Box<Prefs>),
    /// Start, with these preferences and this key.
    Start(StartOptions),
    /// Ask the coordinator for a page where a person lets this node in.
    Login,
    /// Leave the network.
    Logout,
    /// Give this node another key.
    RotateKeys,
    /// Tell of changes.
    Watch(Mask),
    /// Whether and how a peer answers.
    Ping(IpAddr, PingKind),
    /// What this host's network allows.
    Netcheck,
    /// How the connections to relays stand.
    Relays,
    /// Where the relays are.
    DerpMap,
    /// What the coordinator says of names.
    DnsConfig,
    /// The records of a name, of a type by its number.
    DnsQuery(String, u16),
    /// What of this host's resolver we have set.
    DnsOsConfig,
    /// How names are resolved here.
    DnsStatus,
    /// Connect to a port of a node.
    Dial(String, u16),
    /// Everything that the coordinator has told.
    NetMap,
    /// Figures for a monitor: those that official clients have, or all.
    Metrics {
        /// Whether ours are wanted too.
        all: bool,
    },
    /// Write the agent's state into the log, with a mark and this note.
    BugReport(String),
    /// The state of the network's lock.
    LockStatus,
    /// What may be wanted of a client that is built without it.
    Features,
    /// Whether a host is set up for many packets.
    CheckGro,
    /// The domains that certificates can be had for.
    CertDomains,
    /// What this node serves to others: nothing yet.
    ServeConfig,
    /// The present login profile.
    Profile,
    /// All login profiles.
    Profiles,
    /// The steps that would be done.
    Plan,
    /// What is wrong.
    Health,
    /// Wait until the kernel holds the whole wish.
    Settled,
    /// The faults, once the disk holds what it should or could not be made to.
    Kept,
    /// Who may open what here.
    Acl,
    /// Why a packet passes or does not.
    Why(WhyQuestion),
    /// Which program this is.
    Version,
}

/// What `whois` asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An overlay address.
    Address(IpAddr),
    /// A node key.
    Key(NodePublic),
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Refusal {
    pub status: u16,
    /// The reason, for people.
    pub text: String,
}

impl Refusal {
    /// Puts the two together.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl Request {
    /// Whether answering it changes anything or tells everything, so that not everybody may ask.
    pub fn changes(&self) -> bool {
        match self {
            Self::EditPrefs(_) | Self::CheckPrefs(_) | Self::Start(_) | Self::Login | Self::Logout => true,
            Self::RotateKeys => true,
            // It holds all there is; the official agent asks for as much.
            Self::NetMap => true,
            Self::Status { .. }
            | Self::WhoIs(_)
            | Self::Peer(_)
            | Self::User(_)
            | Self::Prefs
            | Self::Watch(_)
            | Self::Ping(..)
            | Self::Netcheck
            | Self::Relays
            | Self::DerpMap
            | Self::DnsConfig
            | Self::DnsQuery(..)
            | Self::DnsOsConfig
            | Self::DnsStatus
            | Self::Dial(..)
            | Self::Metrics { .. }
            | Self::BugReport(_)
            | Self::LockStatus
            | Self::Features
            | Self::CheckGro
            | Self::CertDomains
            | Self::ServeConfig
            | Self::Profile
            | Self::Profiles
            | Self::Plan
            | Self::Health
            | Self::Settled
            | Self::Kept
            | Self::Acl
            | Self::Why(_)
            | Self::Version => false,
        }
    }
}

/// Prints the name only: a start may carry a key.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.changes() { "change" } else { "question" })
    }
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; there is nothing to say.
    Done,
    /// A JSON text.
    Json(Vec<u8>),
    /// Plain text.
    Text(String),
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

impl From<Result<Self, Refusal>> for Answer {
    fn from(answer: Result<Self, Refusal>) -> Self {
        answer.unwrap_or_else(Self::Refused)
    }
}
