//! The command line of `warren-relay`.
//!
//! What would make a relay open or readable by accident is never a default: the operator says who may use it, and
//! whether it does without TLS.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use http::Uri;

use warren_core::types::text::Lines;
use warren_shell::log_to_stderr;

use super::acme::{AcmeSettings, LETS_ENCRYPT};
use super::serve;
use super::settings::{Clients, Mesh, Settings, Tls};

/// It failed.
const FAILED: u8 = 1;
/// The command line is not understood; clap ends with the same number.
const USAGE: u8 = 2;
const HTTPS_PORT: u16 = 443;
/// What relays without TLS use in tests; 80 belongs to a web server.
const HTTP_PORT: u16 = 3340;
const STUN: &str = "[::]:3478";

/// A relay for nodes that cannot reach each other directly
///
/// It sees ciphertext only. One of --verify-url and --open says who may use it; --acme-domain, or --tls-cert and
/// --tls-key, make it serve HTTPS.
#[derive(Debug, Parser)]
#[command(name = "warren-relay", version)]
pub struct Cli {
    /// Address and port to serve on [default: [::]:443, or [::]:3340 with --plain-http]
    #[arg(long, env = "WARREN_RELAY_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Address and port to answer STUN on, or `none`
    #[arg(long, env = "WARREN_RELAY_STUN_LISTEN", value_name = "ADDRESS:PORT", default_value = STUN)]
    stun_listen: String,
    /// Certificate chain in PEM
    #[arg(long, env = "WARREN_RELAY_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, env = "WARREN_RELAY_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Obtain a certificate for this domain from an ACME server, which asks port 443 for a proof, or port 80 where
    /// --http-listen is given
    #[arg(long = "acme-domain", env = "WARREN_RELAY_ACME_DOMAINS", value_name = "DOMAIN", value_delimiter = ',')]
    acme_domains: Vec<String>,
    /// Directory of the ACME server
    #[arg(long, env = "WARREN_RELAY_ACME_DIRECTORY", value_name = "URL", default_value = LETS_ENCRYPT)]
    acme_directory: String,
    /// Certificate in PEM to trust the ACME server by, in place of this host's
    #[arg(long, env = "WARREN_RELAY_ACME_ROOT", value_name = "FILE")]
    acme_root: Option<PathBuf>,
    /// Serve without TLS
    #[arg(long, env = "WARREN_RELAY_PLAIN_HTTP")]
    plain_http: bool,
    /// Directory of the relay's key
    #[arg(long, env = "WARREN_RELAY_STATE_DIR", value_name = "DIR", default_value = "/var/lib/warren-relay")]
    state_dir: PathBuf,
    /// Ask this URL about each client, such as https://coordinator.example/verify; whoever gets no yes is refused
    #[arg(long, env = "WARREN_RELAY_VERIFY_URL", value_name = "URL")]
    verify_url: Option<Uri>,
    /// Admit clients about which that URL cannot be asked; otherwise only those that it admitted in the last 12 hours
    #[arg(long, env = "WARREN_RELAY_VERIFY_FAIL_OPEN")]
    verify_fail_open: bool,
    /// Seconds until that URL is asked again about a client that stays connected
    #[arg(long, env = "WARREN_RELAY_VERIFY_AGAIN", value_name = "SECONDS", default_value_t = 300)]
    verify_again: u64,
    /// Let everybody use this relay
    #[arg(long, env = "WARREN_RELAY_OPEN")]
    open: bool,
    /// Address and port where plain HTTP answers the question by which clients notice captive portals, and that of an
    /// ACME server, such as [::]:80
    #[arg(long, env = "WARREN_RELAY_HTTP_LISTEN", value_name = "ADDRESS:PORT")]
    http_listen: Option<SocketAddr>,
    /// The secret that the relays of a region share, 64 hexadecimal digits
    #[arg(long, env = "WARREN_RELAY_MESH_KEY_FILE", value_name = "FILE")]
    mesh_key_file: Option<PathBuf>,
    /// The other relays of the region; this one among them is noticed
    #[arg(long = "mesh-peer", env = "WARREN_RELAY_MESH_PEERS", value_name = "URL", value_delimiter = ',')]
    mesh_peers: Vec<Uri>,
    /// Connections at once; further ones wait
    #[arg(long, env = "WARREN_RELAY_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = 20_000)]
    max_connections: usize,
    /// Connections a second from one address, ten times as many at once; 0 for no limit
    #[arg(long, env = "WARREN_RELAY_ACCEPT_RATE", value_name = "NUMBER", default_value_t = 100)]
    accept_rate: u32,
    /// Bytes that one client may send in a second, 0 for no limit
    #[arg(long, env = "WARREN_RELAY_CLIENT_RATE", value_name = "BYTES_PER_SECOND", default_value_t = 0)]
    client_rate: u64,
    /// Loopback address and port for Prometheus metrics
    #[arg(long, env = "WARREN_RELAY_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// What to log: a level, or a filter as in `info,warren=debug`
    #[arg(long, env = "WARREN_RELAY_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Say whether these settings can be used, and exit: 2 where they cannot
    #[arg(long)]
    check: bool,
}

impl Cli {
    /// Serves until told to end.
    pub fn run(self) -> ExitCode {
        let is_check = self.check;
        let settings = match self.settle() {
            Ok(settings) => settings,
            Err(error) => return complain(&error, USAGE),
        };
        if let Err(error) = log_to_stderr(&settings.log) {
            return complain(&format!("--log {}: {error}", settings.log), USAGE);
        }
        if is_check {
            println!("warren-relay: the settings can be used");
            return ExitCode::SUCCESS;
        }
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return complain(&error.to_string(), FAILED),
        };
        match runtime.block_on(serve::run(settings)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error, FAILED),
        }
    }

    fn settle(self) -> Result<Settings, String> {
        let clients = match (self.verify_url, self.open) {
            (Some(url), false) => Clients::Verified {
                url: dialable("--verify-url", url)?,
                fail_open: self.verify_fail_open,
                again_every: Duration::from_secs(self.verify_again.max(1)),
            },
            (None, true) if self.verify_fail_open => return Err("--verify-fail-open needs --verify-url".to_owned()),
            (None, true) => Clients::Everyone,
            (Some(_), true) => return Err("--verify-url and --open exclude each other".to_owned()),
            (None, false) => return Err("say who may use this relay: --verify-url URL, or --open".to_owned()),
        };
        let acme = (!self.acme_domains.is_empty()).then_some(AcmeSettings {
            domains: self.acme_domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            directory: self.acme_directory,
            root: self.acme_root,
            by_http: self.http_listen.is_some(),
        });
        let tls = match (self.tls_cert, self.tls_key, acme, self.plain_http) {
            (Some(cert), Some(key), None, false) => Tls::Files { cert, key },
            (None, None, Some(acme), false) => Tls::Acme(acme),
            (None, None, None, true) => Tls::Off,
            (None, None, None, false) => {
                return Err("give --tls-cert and --tls-key, or --acme-domain, or say --plain-http".to_owned());
            }
            (_, _, Some(_), _) => {
                return Err("--acme-domain excludes --tls-cert, --tls-key and --plain-http".to_owned());
            }
            (_, _, None, true) => return Err("--plain-http excludes --tls-cert and --tls-key".to_owned()),
            _ => return Err("--tls-cert and --tls-key need each other".to_owned()),
        };
        let stun = match self.stun_listen.as_str() {
            "none" => None,
            text => Some(text.parse().map_err(|_| format!("--stun-listen {text}: not ADDRESS:PORT, nor none"))?),
        };
        if !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&self.max_connections) {
            return Err(format!("--max-connections {}: not a usable number", self.max_connections));
        }
        if let Some(metrics) = self.metrics.filter(|metrics| !metrics.ip().is_loopback()) {
            return Err(format!("--metrics {metrics}: not a loopback address"));
        }
        let peers: Result<Vec<Uri>, String> =
            self.mesh_peers.into_iter().map(|url| dialable("--mesh-peer", url)).collect();
        let mesh = match (self.mesh_key_file, peers?) {
            (Some(key_file), peers) => Some(Mesh { key_file, peers }),
            (None, peers) if peers.is_empty() => None,
            (None, _) => return Err("--mesh-peer needs --mesh-key-file".to_owned()),
        };
        let port = if matches!(tls, Tls::Off) { HTTP_PORT } else { HTTPS_PORT };
        Ok(Settings {
            listen: self.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, port).into()),
            stun,
            tls,
            state_dir: self.state_dir,
            clients,
            max_connections: self.max_connections,
            accept_rate: self.accept_rate,
            client_rate: self.client_rate,
            http_listen: self.http_listen,
            mesh,
            metrics: self.metrics,
            log: self.log,
        })
    }
}

fn dialable(option: &str, url: Uri) -> Result<Uri, String> {
    // A password would end up in the log and in the list of processes.
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("{option}: a user or password in the URL is not sent"));
    }
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(_)) => Ok(url),
        _ => Err(format!("{option} {url}: begins with neither http:// nor https://")),
    }
}

fn complain(error: &str, status: u8) -> ExitCode {
    eprintln!("warren-relay: {}", Lines(error));
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(arguments: &[&str]) -> Result<Settings, String> {
        Cli::try_parse_from([&["warren-relay"], arguments].concat()).unwrap().settle()
    }

    #[test]
    fn tls_moves_the_default_port() {
        let plain = settle(&["--open", "--plain-http"]).unwrap();
        let tls = settle(&["--open", "--tls-cert", "a", "--tls-key", "b"]).unwrap();
        assert_eq!((plain.listen.port(), tls.listen.port()), (3340, 443));
        assert_eq!(plain.stun, Some(STUN.parse().unwrap()));
    }

    #[test]
    fn a_relay_is_neither_open_nor_readable_by_accident() {
        for bad in [
            &["--plain-http"][..],
            &["--open"],
            &["--open", "--plain-http", "--verify-url", "http://localhost/verify"],
            &["--open", "--plain-http", "--tls-cert", "a", "--tls-key", "b"],
            &["--open", "--tls-cert", "a"],
            &["--open", "--plain-http", "--acme-domain", "relay.example"],
            &["--plain-http", "--verify-url", "/verify"],
            &["--plain-http", "--verify-url", "http://ada:secret@localhost/verify"],
            &["--open", "--plain-http", "--stun-listen", "3478"],
            &["--open", "--plain-http", "--max-connections", "0"],
            &["--open", "--plain-http", "--metrics", "192.0.2.1:9090"],
            &["--open", "--plain-http", "--mesh-peer", "https://relay.example"],
            &["--open", "--plain-http", "--mesh-key-file", "k", "--mesh-peer", "relay.example"],
        ] {
            assert!(!settle(bad).unwrap_err().contains('\n'), "{bad:?}");
        }
    }
}
