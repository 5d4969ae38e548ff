//! What follows from all options together: every default filled in, and what contradicts itself refused.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use confique::{Config as _, Layer};
use toml::{Table, Value};
use warren_core::registry::Names;
use warren_core::wire::control::DerpMap;
use warren_relay::AcmeSettings;

use super::oidc;
use super::relay::{self, RelaySettings};
use super::{Config, ConfigError, Dns, Limits, Log, LoopbackAddress, Nodes, Options, ServerUrl, wrong};
use crate::service::Described;

const STATE_DIR: &str = "/var/lib/warren-coordinator";
pub(super) const PORT: u16 = 8080;
/// Where an ACME server asks for its proof.
const ACME_PORT: u16 = 443;

/// Every option, decided and checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Directory of the database and the keys.
    pub(crate) state_dir: PathBuf,
    /// Unix socket for administration.
    pub(crate) socket: PathBuf,
    /// Where nodes are served.
    pub(crate) listen: SocketAddr,
    /// How nodes reach this server; `None` for "as they ask for it".
    pub(crate) server_url: Option<ServerUrl>,
    pub(crate) certificate: Certificate,
    /// The embedded relay; `None` where it is off.
    pub(crate) relay: Option<RelaySettings>,
    /// Relays beside the embedded one.
    pub(crate) derp_map: DerpMap,
    pub(crate) dns: Dns,
    /// What nodes do with names, beside the domain that they are in.
    pub(crate) names: Names,
    /// What holds for all nodes.
    pub(crate) nodes: Nodes,
    /// How much is taken from others.
    pub(crate) limits: Limits,
    pub(crate) log: Log,
    /// Where metrics are served.
    pub(crate) metrics: Option<LoopbackAddress>,
    /// By whom people sign in.
    pub(crate) oidc: Vec<Described>,
    /// Each option by its name, as it was given or is by default.
    given: BTreeMap<String, Value>,
}

/// What makes HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// Nothing that anybody vouches for.
    None,
    /// Two files in PEM.
    Files {
        /// PEM, with what leads to the root.
        cert: PathBuf,
        key: PathBuf,
    },
    /// An ACME server.
    Acme(AcmeSettings),
}

impl Certificate {
    /// Whether somebody vouches for this server.
    pub(crate) const fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }
}

impl Settings {
    /// Fills in the defaults, and checks what no option can tell alone.
    pub(crate) fn of(given: Options) -> Result<Self, ConfigError> {
        let given = given.with_fallback(Options::default_values());
        let table = Table::try_from(&given).map_err(|error| wrong("configuration", error.to_string()))?;
        let config = Config::from_layer(given).map_err(|error| wrong("configuration", error.to_string()))?;
        let certificate = certificate(&config)?;
        let (mut listen, mut server_url) = (config.listen, config.server_url.clone());
        // The certificate's domain says where we are, and the proof asks for port 443.
        if let Certificate::Acme(AcmeSettings { domains, .. }) = &certificate {
            listen.get_or_insert((Ipv6Addr::UNSPECIFIED, ACME_PORT).into());
            server_url = server_url.or_else(|| domains.first().map(|domain| ServerUrl::https(domain)));
        }
        let listen_port = listen.map_or(PORT, |listen| listen.port());
        let relay = relay::settle(&config.relay, server_url.as_ref(), certificate.is_some(), listen_port);
        let derp_map = config.derp_map.as_deref().map(relay::read_derp_map).transpose()?.unwrap_or_default();
        config.dns.check_domain(server_url.as_ref(), relay.as_ref(), &derp_map)?;
        let state_dir = state_dir(config.state_dir);
        Ok(Self {
            socket: socket(config.socket, &state_dir),
            state_dir,
            listen: listen.unwrap_or((Ipv6Addr::UNSPECIFIED, PORT).into()),
            oidc: oidc::settle(config.oidc, server_url.as_ref())?,
            server_url,
            certificate,
            relay,
            derp_map,
            names: config.dns.names()?,
            dns: config.dns,
            nodes: config.nodes,
            limits: config.limits,
            log: config.log,
            metrics: config.metrics.listen,
            given: leaves(table, ""),
        })
    }

    /// The names of the options that are others here than there.
    pub(crate) fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let names = self.given.keys().chain(other.given.keys().filter(|name| !self.given.contains_key(*name)));
        names.filter(|name| self.given.get(*name) != other.given.get(*name)).map(String::as_str)
    }
}

pub(super) fn state_dir(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| STATE_DIR.into())
}

pub(super) fn socket(given: Option<PathBuf>, state_dir: &Path) -> PathBuf {
    given.unwrap_or_else(|| state_dir.join("admin.sock"))
}

fn certificate(config: &Config) -> Result<Certificate, ConfigError> {
    let domains: Vec<String> = config.acme.domains.iter().flatten().map(|domain| domain.to_ascii_lowercase()).collect();
    let files = (config.tls.cert.clone(), config.tls.key.clone());
    match (domains.is_empty(), files) {
        (false, (None, None)) => {
            let (directory, root) = (config.acme.directory.clone(), config.acme.root.clone());
            Ok(Certificate::Acme(AcmeSettings { domains, directory, root, by_http: false }))
        }
        (false, _) => {
            Err(wrong("acme.domains", "a certificate comes from an ACME server or from files, not from both"))
        }
        (true, (Some(cert), Some(key))) => Ok(Certificate::Files { cert, key }),
        (true, (None, None)) => Ok(Certificate::None),
        (true, (Some(_), None)) => Err(wrong("tls.key", "a certificate needs its private key")),
        (true, (None, Some(_))) => Err(wrong("tls.cert", "a private key needs its certificate")),
    }
}

fn leaves(table: Table, within: &str) -> BTreeMap<String, Value> {
    let leaves = table.into_iter().flat_map(|(key, value)| {
        let key = format!("{within}{key}");
        if let Value::Table(section) = value {
            leaves(section, &format!("{key}."))
        } else {
            BTreeMap::from([(key, value)])
        }
    });
    leaves.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use warren_core::types::RegionId;
    use warren_relay::LETS_ENCRYPT;

    use super::*;
    use crate::config::{RelayPlace, parse};

    /// Flags of `serve`.
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        options: Options,
    }

    fn flags(flags: &[&str]) -> Result<Options, clap::Error> {
        Flags::try_parse_from([&["serve"], flags].concat()).map(|parsed| parsed.options)
    }

    fn settled(text: &str) -> Settings {
        Settings::of(parse(text).unwrap()).unwrap()
    }

    #[test]
    fn nothing_needs_to_be_set() {
        let settings = settled("");
        assert_eq!(settings.listen, "[::]:8080".parse().unwrap());
        assert_eq!(settings.socket, Path::new("/var/lib/warren-coordinator/admin.sock"));
        assert!(settings.derp_map.regions.is_empty() && !settings.certificate.is_some());
        assert_eq!(settings.relay.unwrap().region, RegionId(900));
        assert_eq!(settings.nodes.key_lifetime.0, None);
    }

    #[test]
    fn a_domain_for_a_certificate_says_where_the_server_is() {
        let text = "[acme]\ndomains = [\"C.example\"]";
        let settings = settled(text);
        assert_eq!(settings.listen, "[::]:443".parse().unwrap());
        assert_eq!(settings.server_url.unwrap().as_str(), "https://c.example");
        let Certificate::Acme(acme) = settings.certificate else { panic!("{:?}", settings.certificate) };
        assert_eq!(acme.directory, LETS_ENCRYPT);
        let relay = settings.relay.unwrap();
        assert!(!relay.is_pinned, "the relay has the same certificate");
        assert_eq!(relay.place, Some(RelayPlace { host: "c.example".to_owned(), port: 443 }));

        let settings = settled(&format!("listen = \"[::]:8443\"\nserver_url = \"https://c.example:8443\"\n{text}"));
        assert_eq!(settings.listen.port(), 8443);
        assert_eq!(settings.server_url.unwrap().as_str(), "https://c.example:8443");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let given = flags(&["--domain", "flag.example", "--relay", "false", "--metrics", "127.0.0.1:9"]).unwrap();
        let file = parse("domain = \"file.example\"\noffline_grace = 3\nephemeral_grace = \"1h\"").unwrap();
        let settings = Settings::of(given.with_fallback(file)).unwrap();
        assert_eq!(settings.dns.domain.to_string(), "flag.example");
        assert_eq!((settings.nodes.offline_grace.0.as_secs(), settings.nodes.ephemeral_grace.0.as_secs()), (3, 3_600));
        assert!(settings.relay.is_none() && settings.metrics.is_some());
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        for (text, begins) in [
            ("[tls]\ncert = \"c\"", "configuration: tls.key: "),
            ("[tls]\nkey = \"c\"", "configuration: tls.cert: "),
            ("[tls]\ncert = \"c\"\n[acme]\ndomains = [\"a.example\"]", "configuration: acme.domains: "),
            ("derp_map = \"/nonexistent\"", "/nonexistent: "),
        ] {
            let error = Settings::of(parse(text).unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(begins), "{error:?} should begin with {begins:?}");
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused_in_the_file_and_as_a_flag() {
        for (text, begins, flag) in [
            ("server_url = \"ftp://x\"", "server_url: ", "--server-url=ftp://x"),
            ("server_url = \"https://x/y\"", "server_url: ", "--server-url=https://x/y"),
            ("domain = \"a..b\"", "domain: ", "--domain=a..b"),
            ("metrics = \"192.0.2.1:1\"", "metrics: ", "--metrics=192.0.2.1:1"),
            ("node_key_lifetime = \"1m\"", "node_key_lifetime: ", "--node-key-lifetime=1m"),
            ("node_key_lifetime = \"soon\"", "node_key_lifetime: ", "--node-key-lifetime=soon"),
            ("max_connections = 0", "max_connections: ", "--max-connections=0"),
            ("relay_region = 1", "relay_region: ", "--relay-region=1"),
            ("relay_name = \"\"", "relay_name: ", "--relay-name="),
            ("relay_host = \"a b\"", "relay_host: ", "--relay-host=a b"),
            ("stun_listen = \"3478\"", "stun_listen: ", "--stun-listen=3478"),
            ("[relay]\nregion = \"901\"", "relay.region: ", "--relay-region=x"),
            ("[dns]\ndomain = 1", "dns.domain: ", "--domain=-"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("coordinator.toml: {begins}")), "{text}: {error}");
            assert!(flags(&[flag]).is_err(), "{flag}");
        }
    }

    #[test]
    fn the_options_that_differ_are_named_and_a_default_that_is_written_out_is_none() {
        let (before, after) = (settled(""), settled("[nodes]\noffline_grace = 10\n[limits]\nhandshake_rate = 7"));
        assert_eq!(before.differing(&after).collect::<Vec<_>>(), ["limits.handshake_rate"]);
        let after = settled("listen = \"[::]:1\"");
        assert_eq!(before.differing(&after).collect::<Vec<_>>(), ["listen"]);
        assert_eq!(after.differing(&before).collect::<Vec<_>>(), ["listen"]);
    }
}
