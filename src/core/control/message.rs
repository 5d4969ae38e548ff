//! What goes in and out of a [`Session`](super::Session).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use zeroize::Zeroizing;

use super::ServerUrl;
use crate::types::{DiscoPublic, Fingerprint, MachinePublic, NodePublic};
use crate::wire::control::{
    EndpointType, Hostinfo, Login as LoginName, MapRequest, MapResponse, RegisterRequest, User,
};

/// How much of an answer the shell reads.
pub mod limit {
    use crate::types::Limit;

    /// The answer to a registration or an update: one small object.
    pub const ANSWER: Limit = Limit::new("bytes in an answer", 1024 * 1024);
    /// The answer to `GET /key`: two keys.
    pub const KEY_ANSWER: Limit = Limit::new("bytes in the answer to /key", 64 * 1024);
    /// What a failed request says of itself, for people.
    pub const REASON: Limit = Limit::new("bytes of an error text", 4 * 1024);
}

/// A pre-authentication key.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey(Zeroizing<String>);

impl AuthKey {
    /// Takes the key's text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself. Name the reason where this is called.
    pub fn expose_text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a session begins with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub server: ServerUrl,
    /// The node key that this node holds.
    pub node_key: NodePublic,
    /// What we say of this host.
    pub hostinfo: Hostinfo,
    /// The key that seals our path probes.
    pub disco_key: DiscoPublic,
    /// Where we can be reached.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// Whether the coordinator should forget us once we are gone.
    pub ephemeral: bool,
}

/// How to log in.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// Lets the node in without a person. Without one, and where the coordinator does not know the node key, a
    /// person has to open [`SessionEvent::AuthUrl`].
    pub auth_key: Option<AuthKey>,
    /// Whether to change the node key first: what renews one that expires.
    pub renew: bool,
}

/// Names a request, so that its answer finds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the shell is to do.
pub enum Transmit {
    /// `POST /machine/register`, answered by [`Received::Reply`].
    Register { id: RequestId, request: Box<RegisterRequest> },
    /// `POST /machine/map` whose answer's body does not matter, answered by [`Received::Reply`].
    Update { id: RequestId, request: Box<MapRequest> },
    /// `POST /machine/map` whose answer never ends: [`Received::Opened`] and [`Received::Bytes`], or, where the
    /// status is not 200, [`Received::Reply`].
    Stream { id: RequestId, request: Box<MapRequest> },
    /// `HEAD` of this URL; nobody waits for the answer.
    Ping {
        /// On the coordinator's own host.
        url: String,
        /// Through the secure channel.
        over_noise: bool,
    },
    /// Stop the request; nothing more is wanted of it.
    Cancel(RequestId),
    /// Drop the connection, and with it whatever is under way, unanswered. The next request dials a new one.
    Disconnect,
}

impl fmt::Debug for Transmit {
    /// Names the request and leaves out its body, which may hold an authentication key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register { id, .. } => write!(f, "Register({})", id.0),
            Self::Update { id, .. } => write!(f, "Update({})", id.0),
            Self::Stream { id, .. } => write!(f, "Stream({})", id.0),
            Self::Ping { url, .. } => write!(f, "Ping({url})"),
            Self::Cancel(id) => write!(f, "Cancel({})", id.0),
            Self::Disconnect => f.write_str("Disconnect"),
        }
    }
}

/// What the shell hands in.
#[derive(Clone, Debug)]
pub enum Received {
    /// There is a connection, and this is the address of ours that it comes from.
    Connected(IpAddr),
    /// A whole answer.
    Reply(RequestId, Reply),
    /// The stream's answer has begun, with status 200.
    Opened(RequestId),
    /// More of the stream.
    Bytes(RequestId, Vec<u8>),
    /// The request failed, or the stream ended; says why.
    Closed(RequestId, String),
    /// The request was not sent: the server there holds this key, and is not the coordinator that we know.
    Stranger(RequestId, MachinePublic),
    /// The coordinator proved to hold this key, or announced it under the one it held before.
    ServerKey(MachinePublic),
}

/// A whole answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// What [`retry_after`](super::retry_after) made of the header of that name.
    pub retry_after: Option<Duration>,
    /// The body, within [`limit::ANSWER`].
    pub body: Vec<u8>,
}

/// What a session tells its owner.
#[derive(Debug)]
pub enum SessionEvent {
    /// A person must open this page and approve the node.
    AuthUrl(String),
    /// Make and store a new node key, and call `handle_node_key`.
    NodeKeyWanted,
    /// The coordinator knows us. The map follows.
    LoggedIn {
        /// Who owns this node.
        user: User,
        /// Under which name they logged in.
        login: LoginName,
    },
    /// Everything the coordinator tells us: replaces what we knew.
    FullMap(Box<MapResponse>),
    /// What changed since.
    Delta(Box<MapResponse>),
    /// The coordinator says that our node key has expired: log in with `renew`.
    KeyExpired,
    /// We are logged out here.
    LoggedOut {
        /// Why the coordinator may not have heard of it; `None` where it acknowledged.
        unheard: Option<Failure>,
    },
    /// All is in order: the map is here and the coordinator knows our facts.
    Online,
    /// Something is wrong, and is tried again. Stands until `Online`.
    Failed(Failure),
}

/// What is wrong between us and the coordinator, and what a person can do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// No connection, or it broke.
    #[error("cannot reach the coordinator: {0}. Check its address and this host's connection")]
    Unreachable(String),
    /// Nothing came for too long.
    #[error("the coordinator has been silent for {}; connecting anew", seconds(*.0))]
    Silent(Duration),
    /// It answers 429.
    #[error("the coordinator is busy and asks to wait {}; nothing needs to be done", seconds(*.0))]
    Busy(Duration),
    /// It does not let this node in.
    #[error("the coordinator does not let this node in: {0}. Log in again, with a valid key if you use one")]
    Refused(String),
    /// Another server answers in its place.
    #[error("another server answers in the coordinator's place, with the key {0}; nothing was told to it")]
    Stranger(Fingerprint),
    /// It answers with an error.
    #[error("the coordinator answered {status}: {text}; tried again later. Its log says more")]
    Status {
        status: u16,
        /// The beginning of what it said.
        text: String,
    },
    /// What it says does not follow the protocol.
    #[error("the coordinator's answer is not understood: {0}; tried again later. Its version may not fit this one")]
    NotUnderstood(String),
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
