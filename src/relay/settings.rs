//! What the operator decided.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::acme::AcmeSettings;

/// Who may use the relay.
#[derive(Clone, Debug)]
pub(super) enum Clients {
    Everyone,
    Verified {
        url: Uri,
        /// Whether to admit whom nobody can be asked about.
        fail_open: bool,
        /// How often to ask about a client that stays.
        again_every: Duration,
    },
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub(super) enum Tls {
    /// There is none.
    Off,
    Files {
        cert: PathBuf,
        key: PathBuf,
    },
    Acme(AcmeSettings),
}

/// What the operator decided, every default filled in.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) listen: SocketAddr,
    pub(super) stun: Option<SocketAddr>,
    pub(super) tls: Tls,
    pub(super) state_dir: PathBuf,
    pub(super) clients: Clients,
    pub(super) max_connections: usize,
    pub(super) accept_rate: u32,
    pub(super) client_rate: u64,
    pub(super) http_listen: Option<SocketAddr>,
    pub(super) mesh: Option<Mesh>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) log: String,
}

/// The region's other relays.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    pub(super) key_file: PathBuf,
    pub(super) peers: Vec<Uri>,
}
