//! What is known of how a host resolves names, before anything is decided.

use std::net::IpAddr;

/// How a host resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `/etc/resolv.conf`, as it is or as it was before it was ours.
    pub file: FileFact,
    /// Where `hosts` are looked up, in order (nsswitch.conf(5)).
    pub hosts: Vec<String>,
    /// What systemd-resolved says of the file, where it is on the bus.
    pub resolved: Option<ResolvConfMode>,
    /// The version of NetworkManager, where it is on the bus.
    pub network_manager: Option<(u32, u32, u32)>,
    pub resolvconf: Resolvconf,
    /// Whom others told resolvconf of.
    pub gathered: Vec<IpAddr>,
    /// A link that containers of this host are behind.
    pub containers: Option<String>,
}

/// A file that names name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFact {
    pub kind: FileKind,
    pub text: String,
    /// Something is mounted over it, as in containers.
    pub is_mount: bool,
    /// Why it cannot be written.
    pub obstacle: Option<Obstacle>,
}

/// What a name in a folder leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FileKind {
    #[default]
    Missing,
    Plain,
    /// To here.
    Link(String),
}

/// Why a file cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its file system is mounted so.
    ReadOnly,
    /// Somebody said `chattr +i`.
    Immutable,
    /// What the system says.
    Other(String),
}

/// How systemd-resolved sees `/etc/resolv.conf` (its property of this name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolvConfMode {
    /// It leads to resolved.
    Stub,
    /// It names those that resolved asks.
    Uplink,
    /// Somebody else's, which resolved reads.
    Foreign,
    Static,
    Missing,
    /// A version that does not say.
    Unknown,
}

impl From<&str> for ResolvConfMode {
    fn from(text: &str) -> Self {
        match text {
            "stub" => Self::Stub,
            "uplink" => Self::Uplink,
            "foreign" => Self::Foreign,
            "static" => Self::Static,
            "missing" => Self::Missing,
            _ => Self::Unknown,
        }
    }
}

/// Which program of this name there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolvconf {
    #[default]
    Absent,
    /// Another name of `resolvectl`.
    Resolvectl,
    /// One that makes the file of what several programs tell it.
    Gathers(Gatherer),
}

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gatherer {
    Openresolv,
    Debian,
}
