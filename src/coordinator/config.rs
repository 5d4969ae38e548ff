//! What the operator decides: from flags, environment and file, in this order of precedence.
//!
//! [`Options`] is one list for all three: the flag `--tls-cert`, the variable
//! `WARREN_COORDINATOR_TLS_CERT` and the key `tls_cert` are the same option. [`Settings`] is the outcome,
//! with every default filled in. Nothing needs to be set.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use thiserror::Error;

use warren_core::wire::control::DerpMap;
use warren_relay::{AcmeSettings, LETS_ENCRYPT};

mod relay;

pub use relay::{RelayPlace, RelaySettings, StunListen};

/// Where the configuration file is looked for when none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/warren/coordinator.toml";
const DEFAULT_STATE_DIR: &str = "/var/lib/warren-coordinator";
const DEFAULT_PORT: u16 = 8080;
/// Where an ACME server asks for its proof.
const ACME_PORT: u16 = 443;
/// A domain under `.internal`, which ICANN keeps for private use.
const DEFAULT_DOMAIN: &str = "warren.internal";
/// A change of network or a restarted client is back within a few seconds.
const DEFAULT_OFFLINE_GRACE: u64 = 10;
/// Long enough for a reboot, short enough that a crowd of build machines does not pile up.
const DEFAULT_EPHEMERAL_GRACE: u64 = 30 * 60;
/// Room for 10,000 nodes, each with a map stream and a relay connection and, for a moment, a second of both.
const DEFAULT_MAX_CONNECTIONS: usize = 40_000;
/// Connections of one address in a second: a site behind one address returns within seconds of an outage.
const DEFAULT_HANDSHAKE_RATE: u32 = 50;

/// Why the configuration cannot be used: one line that names the place and the reason.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that was named cannot be read.
    #[error("{file}: {source}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{file}: line {line}: {reason}", file = file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A key that does not exist or a value that does not fit.
    #[error("{place}: {key}: {reason}")]
    Key {
        /// The file, or `command line or environment`.
        place: String,
        /// The option.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The options that every command needs to find the server.
#[derive(Args, Clone, Debug, Default)]
pub struct Places {
    /// Configuration file [default: /etc/warren/coordinator.toml, which need not exist]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the database and the keys [default: /var/lib/warren-coordinator]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Unix socket for administration [default: admin.sock in the state directory]
    #[arg(long, global = true, env = "WARREN_COORDINATOR_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Every option, as given; absent where it was not.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// See [`Places`].
    #[arg(skip)]
    pub state_dir: Option<PathBuf>,
    /// See [`Places`].
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// Address and port to serve on [default: [::]:8080]
    #[arg(long, env = "WARREN_COORDINATOR_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// How nodes reach this server; needed where a proxy changes the address [default: as they ask for it]
    #[arg(long, env = "WARREN_COORDINATOR_SERVER_URL", value_name = "URL")]
    pub server_url: Option<String>,
    /// Certificate chain in PEM; with --tls-key, HTTPS is served
    #[arg(long, env = "WARREN_COORDINATOR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, env = "WARREN_COORDINATOR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Obtain a certificate for this domain from an ACME server, which asks port 443 for a proof; HTTPS is served, at
    /// [::]:443 unless --listen says otherwise
    #[arg(long = "acme-domain", env = "WARREN_COORDINATOR_ACME_DOMAINS", value_name = "DOMAIN", value_delimiter = ',')]
    pub acme_domains: Option<Vec<String>>,
    /// Directory of the ACME server [default: Let's Encrypt]
    #[arg(long, env = "WARREN_COORDINATOR_ACME_DIRECTORY", value_name = "URL")]
    pub acme_directory: Option<String>,
    /// Certificate in PEM to trust the ACME server by, in place of this host's
    #[arg(long, env = "WARREN_COORDINATOR_ACME_ROOT", value_name = "FILE")]
    pub acme_root: Option<PathBuf>,
    /// Further relays in JSON, as the official DERPMap [default: none]
    #[arg(long, env = "WARREN_COORDINATOR_DERP_MAP", value_name = "FILE")]
    pub derp_map: Option<PathBuf>,
    /// Whether to run a relay for nodes that cannot reach each other directly [default: true]
    #[arg(long, env = "WARREN_COORDINATOR_RELAY", value_name = "BOOL")]
    pub relay: Option<bool>,
    /// Number of the relay's region, 900 to 999 [default: 900]
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_REGION", value_name = "NUMBER")]
    pub relay_region: Option<u16>,
    /// Name of the relay's region [default: Warren]
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_NAME", value_name = "NAME")]
    pub relay_name: Option<String>,
    /// How nodes reach the relay [default: as they reach this server]
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_HOST", value_name = "HOST[:PORT]")]
    pub relay_host: Option<String>,
    /// The relay's IPv4 address, for nodes to look up no name
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_IPV4", value_name = "ADDRESS")]
    pub relay_ipv4: Option<Ipv4Addr>,
    /// The relay's IPv6 address, likewise
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_IPV6", value_name = "ADDRESS")]
    pub relay_ipv6: Option<Ipv6Addr>,
    /// A TLS address and port for the relay alone, past a proxy in front [default: none, it shares --listen]
    #[arg(long, env = "WARREN_COORDINATOR_RELAY_LISTEN", value_name = "ADDRESS:PORT")]
    pub relay_listen: Option<SocketAddr>,
    /// UDP address and port to answer STUN on, or `none` [default: [::]:3478]
    #[arg(long, env = "WARREN_COORDINATOR_STUN_LISTEN", value_name = "ADDRESS:PORT")]
    pub stun_listen: Option<String>,
    /// Domain of the nodes' names [default: warren.internal]
    #[arg(long, env = "WARREN_COORDINATOR_DOMAIN", value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Seconds without a connection until a node counts as offline [default: 10]
    #[arg(long, env = "WARREN_COORDINATOR_OFFLINE_GRACE", value_name = "SECONDS")]
    pub offline_grace: Option<u64>,
    /// Seconds away until an ephemeral node is deleted [default: 1800]
    #[arg(long, env = "WARREN_COORDINATOR_EPHEMERAL_GRACE", value_name = "SECONDS")]
    pub ephemeral_grace: Option<u64>,
    /// How long node keys last, an hour at least, as 180d, for nodes without tags that log in from here on [default: never end]
    #[arg(long, env = "WARREN_COORDINATOR_NODE_KEY_LIFETIME", value_name = "TIME")]
    pub node_key_lifetime: Option<String>,
    /// Connections at once [default: 40000]
    #[arg(long, env = "WARREN_COORDINATOR_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// New node connections a second from one address; 0 for no limit [default: 50]
    #[arg(long, env = "WARREN_COORDINATOR_HANDSHAKE_RATE", value_name = "N")]
    pub handshake_rate: Option<u32>,
    /// What is logged, as a tracing filter [default: info]
    #[arg(long, env = "WARREN_COORDINATOR_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Loopback address and port for Prometheus metrics [default: none]
    #[arg(long, env = "WARREN_COORDINATOR_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
}

/// Every option, decided and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the database and the keys.
    pub state_dir: PathBuf,
    /// Unix socket for administration.
    pub socket: PathBuf,
    /// Where nodes are served.
    pub listen: SocketAddr,
    /// How nodes reach this server, without a final slash; `None` for "as they ask for it".
    pub server_url: Option<String>,
    /// Certificate chain and private key; `None` for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Where a certificate is obtained from, in place of files.
    pub acme: Option<AcmeSettings>,
    /// The embedded relay; `None` where it is off.
    pub relay: Option<RelaySettings>,
    /// Further relays.
    pub derp_map: DerpMap,
    /// Domain of the nodes' names.
    pub domain: String,
    /// How long a node may be without a connection before it counts as offline.
    pub offline_grace: Duration,
    /// How long an ephemeral node may be away before it is deleted.
    pub ephemeral_grace: Duration,
    /// How long node keys last; `None` without end.
    pub node_key_lifetime: Option<Duration>,
    /// Connections at once.
    pub max_connections: usize,
    /// New node connections a second from one address; 0 for no limit.
    pub handshake_rate: u32,
    /// What is logged.
    pub log: String,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

/// The two files that make HTTPS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain in PEM.
    pub cert: PathBuf,
    /// Private key in PEM.
    pub key: PathBuf,
}

impl Options {
    /// Adds the places, and fills the gaps of flags and environment from a file: the named one, or the usual one
    /// where it exists.
    pub fn complete(mut self, places: Places) -> Result<Self, ConfigError> {
        (self.state_dir, self.socket) = (places.state_dir, places.socket);
        let named = places.config.as_deref();
        let file = named.unwrap_or(Path::new(DEFAULT_FILE));
        match fs::read_to_string(file) {
            Ok(text) => Ok(self.or(Self::parse(file, &text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(self),
            // An administrator who may not read the service's file can still use the socket.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && named.is_none() => Ok(self),
            Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
        }
    }

    /// Reads a file key by key, so that an error can name its key.
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            file: file.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            reason: error.message().lines().collect::<Vec<_>>().join(", "),
        })?;
        let mut options = Self::default();
        for (key, value) in table {
            let alone = toml::Table::from_iter([(key.clone(), value)]);
            let one: Self = alone.try_into().map_err(|error: toml::de::Error| ConfigError::Key {
                place: file.display().to_string(),
                key,
                reason: error.message().lines().collect::<Vec<_>>().join(", "),
            })?;
            options = options.or(one);
        }
        Ok(options)
    }

    fn or(self, other: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(other.state_dir),
            socket: self.socket.or(other.socket),
            listen: self.listen.or(other.listen),
            server_url: self.server_url.or(other.server_url),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            acme_domains: self.acme_domains.or(other.acme_domains),
            acme_directory: self.acme_directory.or(other.acme_directory),
            acme_root: self.acme_root.or(other.acme_root),
            derp_map: self.derp_map.or(other.derp_map),
            relay: self.relay.or(other.relay),
            relay_region: self.relay_region.or(other.relay_region),
            relay_name: self.relay_name.or(other.relay_name),
            relay_host: self.relay_host.or(other.relay_host),
            relay_ipv4: self.relay_ipv4.or(other.relay_ipv4),
            relay_ipv6: self.relay_ipv6.or(other.relay_ipv6),
            relay_listen: self.relay_listen.or(other.relay_listen),
            stun_listen: self.stun_listen.or(other.stun_listen),
            domain: self.domain.or(other.domain),
            offline_grace: self.offline_grace.or(other.offline_grace),
            ephemeral_grace: self.ephemeral_grace.or(other.ephemeral_grace),
            node_key_lifetime: self.node_key_lifetime.or(other.node_key_lifetime),
            max_connections: self.max_connections.or(other.max_connections),
            handshake_rate: self.handshake_rate.or(other.handshake_rate),
            log: self.log.or(other.log),
            metrics: self.metrics.or(other.metrics),
        }
    }

    /// Where the administration socket is.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state_path().join("admin.sock"))
    }

    /// Where the state is.
    pub fn state_path(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into())
    }

    /// Where the certificate comes from an ACME server, its domain says where we are, and the proof asks for port 443.
    fn settle_acme(&mut self) -> Result<Option<AcmeSettings>, ConfigError> {
        let domains: Vec<String> = self.acme_domains.iter().flatten().map(|name| name.to_ascii_lowercase()).collect();
        let Some(first) = domains.first() else { return Ok(None) };
        if self.tls_cert.is_some() || self.tls_key.is_some() {
            return Err(wrong("acme_domains", "a certificate comes from an ACME server or from files, not from both"));
        }
        self.listen.get_or_insert((Ipv6Addr::UNSPECIFIED, ACME_PORT).into());
        self.server_url.get_or_insert_with(|| format!("https://{first}"));
        let directory = self.acme_directory.clone().unwrap_or_else(|| LETS_ENCRYPT.to_owned());
        Ok(Some(AcmeSettings { domains, directory, root: self.acme_root.clone(), by_http: false }))
    }

    /// Fills in the defaults and checks what a type cannot.
    pub fn settle(mut self) -> Result<Settings, ConfigError> {
        let acme = self.settle_acme()?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("tls_key", "a certificate needs its private key")),
            (None, Some(_)) => return Err(wrong("tls_cert", "a private key needs its certificate")),
        };
        if let Some(metrics) = self.metrics.filter(|metrics| !metrics.ip().is_loopback()) {
            return Err(wrong("metrics", format!("{metrics} is not a loopback address")));
        }
        let max_connections = self.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
        if !(1..=1_000_000).contains(&max_connections) {
            return Err(wrong("max_connections", format!("{max_connections} is not between 1 and 1000000")));
        }
        Ok(Settings {
            state_dir: self.state_path(),
            socket: self.socket_path(),
            listen: self.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()),
            server_url: self.server_url.as_deref().map(check_url).transpose()?,
            tls,
            acme,
            relay: relay::settle(&self)?,
            derp_map: self.derp_map.as_deref().map(relay::read_derp_map).transpose()?.unwrap_or_default(),
            domain: check_domain(self.domain.as_deref().unwrap_or(DEFAULT_DOMAIN))?,
            offline_grace: Duration::from_secs(self.offline_grace.unwrap_or(DEFAULT_OFFLINE_GRACE)),
            ephemeral_grace: Duration::from_secs(self.ephemeral_grace.unwrap_or(DEFAULT_EPHEMERAL_GRACE)),
            node_key_lifetime: self.node_key_lifetime.as_deref().map_or(Ok(None), check_lifetime)?,
            max_connections,
            handshake_rate: self.handshake_rate.unwrap_or(DEFAULT_HANDSHAKE_RATE),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            metrics: self.metrics,
        })
    }
}

fn check_url(text: &str) -> Result<String, ConfigError> {
    let url: http::Uri = text.parse().map_err(|error| wrong("server_url", format!("{text:?}: {error}")))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(wrong("server_url", format!("{text:?} does not begin with http://HOST or https://HOST")));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong("server_url", format!("{text:?} has a path, and nodes ask at the root")));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Shorter than any log-in takes would lock out whoever logs in.
const LEAST_LIFETIME: Duration = Duration::from_secs(60 * 60);

fn check_lifetime(text: &str) -> Result<Option<Duration>, ConfigError> {
    let lifetime =
        super::admin::lifetime(text).map_err(|error| wrong("node_key_lifetime", format!("{text:?}: {error}")))?;
    match lifetime.0 {
        Some(short) if short < LEAST_LIFETIME => {
            Err(wrong("node_key_lifetime", format!("{text:?} is less than an hour, the least that there is")))
        }
        lifetime => Ok(lifetime),
    }
}

fn check_domain(text: &str) -> Result<String, ConfigError> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    for label in domain.split('.') {
        label.parse::<warren_core::types::HostLabel>().map_err(|error| {
            wrong("domain", format!("{text:?}: {}", error.to_string().replace("host name", "label")))
        })?;
    }
    Ok(domain)
}

fn wrong(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Key { place: "configuration".to_owned(), key: key.to_owned(), reason: reason.into() }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_needs_to_be_set() {
        let settings = Options::default().settle().unwrap();
        assert_eq!(settings.listen, "[::]:8080".parse().unwrap());
        assert_eq!(settings.socket, Path::new("/var/lib/warren-coordinator/admin.sock"));
        assert!(settings.derp_map.regions.is_empty());
        assert_eq!(settings.relay.unwrap().region, warren_core::types::RegionId(900));
    }

    /// The file that the package installs: every key, commented out, with its default.
    #[test]
    fn the_sample_file_names_every_key_with_a_value_that_is_taken() {
        let sample = include_str!("../../packaging/coordinator.toml");
        let keys: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|l| l.contains(" = "))
            .fold(String::new(), |text, line| text + line + "\n");
        let table: toml::Table = keys.parse().unwrap();
        let unknown = parse("nonsense = 1").unwrap_err();
        let known: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        assert!(known.len() > 10, "{unknown}");
        assert_eq!(known.iter().filter(|key| !table.contains_key(**key)).count(), 0, "{known:?}");
        parse(&keys).unwrap();
    }

    #[test]
    fn a_domain_for_a_certificate_says_where_the_server_is() {
        let options = parse("acme_domains = [\"C.example\"]").unwrap();
        let settings = options.clone().settle().unwrap();
        assert_eq!(settings.listen, "[::]:443".parse().unwrap());
        assert_eq!(settings.server_url.as_deref(), Some("https://c.example"));
        assert_eq!(settings.acme.unwrap().directory, LETS_ENCRYPT);
        let relay = settings.relay.unwrap();
        assert!(!relay.is_pinned, "the relay has the same certificate");
        assert_eq!(relay.place, Some(RelayPlace { host: "c.example".to_owned(), port: 443 }));

        let listen = Some("[::]:8443".parse().unwrap());
        let settings =
            Options { listen, server_url: Some("https://c.example:8443".into()), ..options }.settle().unwrap();
        assert_eq!(settings.listen.port(), 8443);
        assert_eq!(settings.server_url.as_deref(), Some("https://c.example:8443"));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = Options { domain: Some("flag.example".to_owned()), ..Options::default() };
        let file = parse("domain = \"file.example\"\noffline_grace = 3").unwrap();
        let settings = flags.or(file).settle().unwrap();
        assert_eq!(settings.domain, "flag.example");
        assert_eq!(settings.offline_grace, Duration::from_secs(3));
    }

    #[test]
    fn an_error_in_a_file_is_one_line_with_file_key_and_reason() {
        for (text, begins) in [
            ("listen = 5", "c.toml: listen: "),
            ("listen = \"nowhere\"", "c.toml: listen: "),
            ("offline_grace = -1", "c.toml: offline_grace: "),
            ("lisen = \"[::]:1\"", "c.toml: lisen: unknown field `lisen`, expected one of"),
            ("domain = \"a\"\n\n= 3", "c.toml: line 3: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(begins) && !error.contains('\n'), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn what_no_type_can_tell_is_checked_too() {
        let base = Options::default;
        for (options, begins) in [
            (Options { tls_cert: Some("c".into()), ..base() }, "configuration: tls_key: "),
            (
                Options { acme_domains: Some(vec!["a.example".into()]), tls_cert: Some("c".into()), ..base() },
                "configuration: acme_domains: ",
            ),
            (Options { server_url: Some("ftp://x".into()), ..base() }, "configuration: server_url: "),
            (Options { server_url: Some("https://x/y".into()), ..base() }, "configuration: server_url: "),
            (Options { domain: Some("a..b".into()), ..base() }, "configuration: domain: "),
            (Options { metrics: Some("192.0.2.1:1".parse().unwrap()), ..base() }, "configuration: metrics: "),
            (Options { node_key_lifetime: Some("1m".into()), ..base() }, "configuration: node_key_lifetime: "),
            (Options { node_key_lifetime: Some("soon".into()), ..base() }, "configuration: node_key_lifetime: "),
            (Options { max_connections: Some(0), ..base() }, "configuration: max_connections: "),
            (Options { derp_map: Some("/nonexistent".into()), ..base() }, "/nonexistent: "),
            (Options { relay_region: Some(1), ..base() }, "configuration: relay_region: "),
            (Options { relay_name: Some(String::new()), ..base() }, "configuration: relay_name: "),
            (Options { relay_host: Some("a b".into()), ..base() }, "configuration: relay_host: "),
            (Options { stun_listen: Some("3478".into()), ..base() }, "configuration: stun_listen: "),
        ] {
            let error = options.settle().unwrap_err().to_string();
            assert!(error.starts_with(begins), "{error:?} should begin with {begins:?}");
        }
    }
}
