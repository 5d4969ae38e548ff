//! What the operator decides: from flags, environment and file, in this order of precedence.
//!
//! [`Config`] declares each option once, in its section: its name in the file, its type, its default, and the flag and
//! variable of those that a person types. The file may also use the names that options had before there were sections
//! (`file`). [`Settings`] is what follows from all of them together. Nothing needs to be set.

mod file;
mod names;
mod oidc;
mod relay;
mod settings;
mod values;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use confique::Layer;
use thiserror::Error;

pub(crate) use names::Dns;
pub(crate) use relay::{RelayPlace, RelaySettings};
pub(crate) use settings::{Certificate, Settings};
pub(crate) use values::{
    Domain, Grace, HostAndPort, KeyLifetime, LoopbackAddress, MaxConnections, OwnRegion, RegionName, ServerUrl,
    StunListen,
};

/// Where the configuration file is looked for when none is named; it need not exist.
pub(crate) const DEFAULT_FILE: &str = "/etc/warren/coordinator.toml";

/// The options that somebody gave, in a file or as flags and variables.
pub(crate) type Options = <Config as confique::Config>::Layer;

/// The options that every command needs to find the server.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct GlobalOptions {
    /// Configuration file [default: /etc/warren/coordinator.toml, which need not exist]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of the database and the keys [default: /var/lib/warren-coordinator]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Unix socket for administration [default: admin.sock in the state directory]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Every option.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Config {
    /// See [`GlobalOptions`].
    #[config(layer_attr(arg(skip)))]
    pub(crate) state_dir: Option<PathBuf>,
    /// See [`GlobalOptions`].
    #[config(layer_attr(arg(skip)))]
    pub(crate) socket: Option<PathBuf>,
    /// Address and port to serve on [default: [::]:8080]
    #[config(layer_attr(arg(long, env = "WARREN_COORDINATOR_LISTEN", value_name = "ADDRESS:PORT")))]
    pub(crate) listen: Option<SocketAddr>,
    /// How nodes reach this server; needed where a proxy changes the address [default: as they ask for it]
    #[config(layer_attr(arg(long, env = "WARREN_COORDINATOR_SERVER_URL", value_name = "URL")))]
    pub(crate) server_url: Option<ServerUrl>,
    /// Further relays in JSON, as the official DERPMap [default: none]
    #[config(layer_attr(arg(long, env = "WARREN_COORDINATOR_DERP_MAP", value_name = "FILE")))]
    pub(crate) derp_map: Option<PathBuf>,
    /// HTTPS with a certificate from files.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) tls: Tls,
    /// HTTPS with a certificate from an ACME server.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) acme: Acme,
    /// The embedded relay.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) relay: Relay,
    /// Names.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) dns: Dns,
    /// What holds for all nodes.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) nodes: Nodes,
    /// How much is taken from others.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) limits: Limits,
    /// The log.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) log: Log,
    /// Figures for a monitor.
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) metrics: Metrics,
    /// Providers by which people sign in; in the file alone.
    #[config(layer_attr(arg(skip)))]
    pub(crate) oidc: Option<oidc::Providers>,
}

/// HTTPS with a certificate from files.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Tls {
    /// Certificate chain in PEM; with --tls-key, HTTPS is served
    #[config(layer_attr(arg(long = "tls-cert", env = "WARREN_COORDINATOR_TLS_CERT", value_name = "FILE")))]
    pub(crate) cert: Option<PathBuf>,
    /// Private key in PEM
    #[config(layer_attr(arg(long = "tls-key", env = "WARREN_COORDINATOR_TLS_KEY", value_name = "FILE")))]
    pub(crate) key: Option<PathBuf>,
}

/// HTTPS with a certificate from an ACME server.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Acme {
    /// Obtain a certificate for this domain from an ACME server, which asks port 443 for a proof; HTTPS is served, at
    /// [::]:443 unless --listen says otherwise
    #[config(layer_attr(arg(
        long = "acme-domain",
        env = "WARREN_COORDINATOR_ACME_DOMAINS",
        value_name = "DOMAIN",
        value_delimiter = ','
    )))]
    pub(crate) domains: Option<Vec<String>>,
    /// Directory of the ACME server [default: Let's Encrypt]
    #[config(
        default = "https://acme-v02.api.letsencrypt.org/directory",
        layer_attr(arg(long = "acme-directory", env = "WARREN_COORDINATOR_ACME_DIRECTORY", value_name = "URL"))
    )]
    pub(crate) directory: String,
    /// Certificate in PEM to trust the ACME server by, in place of this host's
    #[config(layer_attr(arg(long = "acme-root", env = "WARREN_COORDINATOR_ACME_ROOT", value_name = "FILE")))]
    pub(crate) root: Option<PathBuf>,
}

/// The embedded relay.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Relay {
    /// Whether to run a relay for nodes that cannot reach each other directly [default: true]
    #[config(default = true, layer_attr(arg(long = "relay", env = "WARREN_COORDINATOR_RELAY", value_name = "BOOL")))]
    pub(crate) enabled: bool,
    /// Number of the relay's region, 900 to 999 [default: 900]
    #[config(
        default = 900,
        layer_attr(arg(long = "relay-region", env = "WARREN_COORDINATOR_RELAY_REGION", value_name = "NUMBER"))
    )]
    pub(crate) region: OwnRegion,
    /// Name of the relay's region [default: Warren]
    #[config(
        default = "Warren",
        layer_attr(arg(long = "relay-name", env = "WARREN_COORDINATOR_RELAY_NAME", value_name = "NAME"))
    )]
    pub(crate) name: RegionName,
    /// How nodes reach the relay [default: as they reach this server]
    #[config(layer_attr(arg(
        long = "relay-host",
        env = "WARREN_COORDINATOR_RELAY_HOST",
        value_name = "HOST[:PORT]"
    )))]
    pub(crate) host: Option<HostAndPort>,
    /// The relay's IPv4 address, for nodes to look up no name
    #[config(layer_attr(arg(long = "relay-ipv4", env = "WARREN_COORDINATOR_RELAY_IPV4", value_name = "ADDRESS")))]
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The relay's IPv6 address, likewise
    #[config(layer_attr(arg(long = "relay-ipv6", env = "WARREN_COORDINATOR_RELAY_IPV6", value_name = "ADDRESS")))]
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// A TLS address and port for the relay alone, past a proxy in front [default: none, it shares --listen]
    #[config(layer_attr(arg(
        id = "relay_listen",
        long = "relay-listen",
        env = "WARREN_COORDINATOR_RELAY_LISTEN",
        value_name = "ADDRESS:PORT"
    )))]
    pub(crate) listen: Option<SocketAddr>,
    /// UDP address and port to answer STUN on, or `none` [default: [::]:3478]
    #[config(
        default = "usual",
        layer_attr(arg(long, env = "WARREN_COORDINATOR_STUN_LISTEN", value_name = "ADDRESS:PORT"))
    )]
    pub(crate) stun_listen: StunListen,
}

/// What holds for all nodes.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Nodes {
    /// Seconds without a connection until a node counts as offline [default: 10]
    // A change of network or a restarted client is back within a few seconds.
    #[config(default = 10, layer_attr(arg(long, env = "WARREN_COORDINATOR_OFFLINE_GRACE", value_name = "SECONDS")))]
    pub(crate) offline_grace: Grace,
    /// Seconds away until an ephemeral node is deleted [default: 1800]
    // Long enough for a reboot, short enough that a crowd of build machines does not pile up.
    #[config(
        default = 1800,
        layer_attr(arg(long, env = "WARREN_COORDINATOR_EPHEMERAL_GRACE", value_name = "SECONDS"))
    )]
    pub(crate) ephemeral_grace: Grace,
    /// How long node keys last, an hour at least, as 180d, for nodes without tags that log in from here on
    /// [default: never end]
    #[config(
        default = "never",
        layer_attr(arg(
            long = "node-key-lifetime",
            env = "WARREN_COORDINATOR_NODE_KEY_LIFETIME",
            value_name = "TIME"
        ))
    )]
    pub(crate) key_lifetime: KeyLifetime,
}

/// How much is taken from others.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Limits {
    /// Connections at once [default: 40000]
    // Room for 10,000 nodes, each with a map stream and a relay connection and, for a moment, a second of both.
    #[config(
        default = 40_000,
        layer_attr(arg(long = "max-connections", env = "WARREN_COORDINATOR_MAX_CONNECTIONS", value_name = "N"))
    )]
    pub(crate) connections: MaxConnections,
    /// New node connections a second from one address; 0 for no limit [default: 50]
    // A site behind one address returns within seconds of an outage.
    #[config(default = 50, layer_attr(arg(long, env = "WARREN_COORDINATOR_HANDSHAKE_RATE", value_name = "N")))]
    pub(crate) handshake_rate: u32,
}

/// The log.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Log {
    /// What is logged, as a tracing filter [default: info]
    #[config(default = "info", layer_attr(arg(long = "log", env = "WARREN_COORDINATOR_LOG", value_name = "FILTER")))]
    pub(crate) filter: String,
}

/// Figures for a monitor.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Metrics {
    /// Loopback address and port for Prometheus metrics [default: none]
    #[config(layer_attr(arg(
        id = "metrics_listen",
        long = "metrics",
        env = "WARREN_COORDINATOR_METRICS",
        value_name = "ADDRESS:PORT"
    )))]
    pub(crate) listen: Option<LoopbackAddress>,
}

/// Why the configuration cannot be used: one line that names the place and the reason.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// A file that was named cannot be read.
    #[error("{file}: {source}", file = file.display())]
    Read {
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{file}: line {line}: {reason}", file = file.display())]
    Syntax {
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// An option that does not exist or a value that does not fit.
    #[error("{place}: {key}: {reason}")]
    Key {
        /// The file, or `configuration` where several options do not fit each other.
        place: String,
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl GlobalOptions {
    /// What was given, completed from a file: the named one, or the usual one where it exists.
    pub(crate) fn complete(&self, given: Options) -> Result<Options, ConfigError> {
        let given = Options { state_dir: self.state_dir.clone(), socket: self.socket.clone(), ..given };
        Ok(given.with_fallback(file::read(self.config.as_deref())?))
    }

    /// The state directory, and the socket for administration.
    pub(crate) fn find(&self) -> Result<(PathBuf, PathBuf), ConfigError> {
        let options = self.complete(Options::empty())?;
        let dir = settings::state_dir(options.state_dir);
        let socket = settings::socket(options.socket, &dir);
        Ok((dir, socket))
    }
}

fn wrong(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Key { place: "configuration".to_owned(), key: key.to_owned(), reason: reason.into() }
}

/// Reads the text of a configuration file.
pub(super) fn parse(text: &str) -> Result<Options, ConfigError> {
    file::parse(std::path::Path::new("coordinator.toml"), text)
}
