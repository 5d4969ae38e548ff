//! What the operator decides about names: the nodes' domain, name servers, search domains and further names.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use warren_core::registry::Names;
use warren_core::types::{Limit, RESOLVER_ADDRESSES};
use warren_core::wire::control::{DerpMap, DnsRecord, Resolver};

use super::relay::RelaySettings;
use super::{ConfigError, Domain, ServerUrl, wrong};

/// For all names, or for one suffix. More are no safer, and nodes ask each in turn.
const NAMESERVERS: Limit = Limit::new("name servers for the same names", 8);
/// Every node is told all of them, and hosts have room for few.
const SPLIT: Limit = Limit::new("suffixes with name servers of their own", 256);
/// What a host tries one after the other for each name without a dot.
const SEARCH: Limit = Limit::new("search domains", 32);
/// They are in every node's map.
const RECORDS: Limit = Limit::new("extra records", 5_000);
/// The longest file of records: several times what so many need.
const RECORDS_LEN: u64 = 4 << 20;
/// The longest address of a name server.
const URL_LEN: usize = 255;

/// Names.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct Dns {
    /// Domain of the nodes' names [default: warren.internal]
    // A domain under `.internal`, which ICANN keeps for private use.
    #[config(
        default = "warren.internal",
        layer_attr(arg(long, env = "WARREN_COORDINATOR_DOMAIN", value_name = "DOMAIN"))
    )]
    pub(crate) domain: Domain,
    /// Whether nodes answer each other's names.
    #[config(default = true, layer_attr(arg(skip)))]
    pub(crate) magic_dns: bool,
    /// Whether `nameservers.global` takes the place of a host's own.
    #[config(default = true, layer_attr(arg(skip)))]
    pub(crate) override_local_dns: bool,
    #[config(layer_attr(arg(skip)))]
    pub(crate) search_domains: Option<Vec<Domain>>,
    #[config(layer_attr(arg(skip)))]
    pub(crate) extra_records: Option<Vec<ExtraRecord>>,
    /// A file of further records in JSON, which is watched.
    #[config(layer_attr(arg(skip)))]
    pub(crate) extra_records_path: Option<PathBuf>,
    #[config(nested, layer_attr(command(flatten)))]
    pub(crate) nameservers: NameServers,
}

/// Who is asked for what.
#[derive(Clone, Debug, confique::Config)]
#[config(layer_attr(derive(Clone, Debug, clap::Args, serde::Serialize)))]
pub(crate) struct NameServers {
    /// For all names that nothing else is said of.
    #[config(layer_attr(arg(skip)))]
    pub(crate) global: Option<Vec<NameServer>>,
    /// By suffix.
    #[config(layer_attr(arg(skip)))]
    pub(crate) split: Option<BTreeMap<String, Vec<NameServer>>>,
}

/// An address, an address and a port, or `https://…`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct NameServer(String);

/// A name that is no node's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "WrittenRecord", into = "WrittenRecord")]
pub(crate) struct ExtraRecord {
    name: Domain,
    address: IpAddr,
}

/// A record as it is written, in this server's file and in Headscale's.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenRecord {
    name: String,
    #[serde(default)]
    r#type: String,
    value: String,
}

impl Dns {
    /// What nodes are told, with what the file of records holds now.
    pub(crate) fn names(&self) -> Result<Names, ConfigError> {
        let global = self.nameservers.global.as_deref().unwrap_or_default();
        within(NAMESERVERS, global.len(), "dns.nameservers.global")?;
        let search = self.search_domains.as_deref().unwrap_or_default();
        within(SEARCH, search.len(), "dns.search_domains")?;
        let mut records = self.extra_records.clone().unwrap_or_default();
        records.extend(self.extra_records_path.as_deref().map(read_records).transpose()?.unwrap_or_default());
        within(RECORDS, records.len(), "dns.extra_records")?;
        Ok(Names {
            magic_dns: self.magic_dns,
            nameservers: global.iter().map(NameServer::resolver).collect(),
            override_local: self.override_local_dns,
            split: self.split()?,
            search_domains: search.iter().map(ToString::to_string).collect(),
            extra_records: records.iter().map(ExtraRecord::told).collect(),
        })
    }

    fn split(&self) -> Result<BTreeMap<String, Vec<Resolver>>, ConfigError> {
        const KEY: &str = "dns.nameservers.split";
        let Some(given) = &self.nameservers.split else { return Ok(BTreeMap::new()) };
        within(SPLIT, given.len(), KEY)?;
        let mut split = BTreeMap::new();
        for (suffix, servers) in given {
            let suffix: Domain = suffix.parse().map_err(|error: String| wrong(KEY, error))?;
            if servers.is_empty() {
                return Err(wrong(KEY, format!("{suffix}: no name server is named for it")));
            }
            within(NAMESERVERS, servers.len(), KEY)?;
            if self.magic_dns && suffix == self.domain {
                return Err(wrong(
                    KEY,
                    format!("{suffix} is the nodes' domain, and nobody else is asked for its names"),
                ));
            }
            if split.insert(suffix.to_string(), servers.iter().map(NameServer::resolver).collect()).is_some() {
                return Err(wrong(KEY, format!("{suffix} is there twice")));
            }
        }
        Ok(split)
    }

    /// Refuses a domain that a name of ours lies in: nodes answer its names alone, do not know that one, and would not
    /// find us any more.
    pub(super) fn check_domain(
        &self,
        server_url: Option<&ServerUrl>,
        relay: Option<&RelaySettings>,
        others: &DerpMap,
    ) -> Result<(), ConfigError> {
        let url: Option<http::Uri> = server_url.and_then(|url| url.as_str().parse().ok());
        let ours = url.iter().filter_map(http::Uri::host).map(|host| ("this server", host));
        let embedded = relay.and_then(|relay| relay.place.as_ref()).map(|place| ("the relay", place.host.as_str()));
        let nodes = others.regions.values().flatten().flat_map(|region| &region.nodes);
        let others = nodes.map(|node| ("a relay", node.host_name.as_str()));
        for (what, host) in ours.chain(embedded).chain(others) {
            if self.domain.contains(host) {
                let domain = &self.domain;
                return Err(wrong(
                    "dns.domain",
                    format!(
                        "{host}, by which nodes reach {what}, is a name within {domain}, where only nodes have names"
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn within(limit: Limit, count: usize, key: &str) -> Result<(), ConfigError> {
    limit.check(count).map_err(|error| wrong(key, error.to_string()))
}

/// Reads a file of records.
fn read_records(file: &Path) -> Result<Vec<ExtraRecord>, ConfigError> {
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(RECORDS_LEN).read_to_string(&mut text))
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|error| ConfigError::Key {
        place: file.display().to_string(),
        key: "dns.extra_records_path".to_owned(),
        reason: error.to_string(),
    })
}

impl NameServer {
    fn resolver(&self) -> Resolver {
        Resolver { addr: self.0.clone(), ..Resolver::default() }
    }
}

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|server| server.ip()));
        match address {
            Some(address) if address.is_loopback() || address.is_unspecified() || address.is_multicast() => {
                Err(format!("{text:?} is another host for each node, or none"))
            }
            Some(address) if RESOLVER_ADDRESSES.contains(&address) => {
                Err(format!("{text:?} is each node's own resolver, which would ask itself"))
            }
            Some(_) => Ok(Self(text.to_owned())),
            None => {
                let url: Option<http::Uri> = text.parse().ok();
                let is_https = url.is_some_and(|url| {
                    url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty())
                });
                match is_https && text.len() <= URL_LEN {
                    true => Ok(Self(text.to_owned())),
                    false => Err(format!("{text:?} is neither ADDRESS, ADDRESS:PORT nor https://HOST/PATH")),
                }
            }
        }
    }
}

impl TryFrom<String> for NameServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NameServer> for String {
    fn from(server: NameServer) -> Self {
        server.0
    }
}

impl ExtraRecord {
    fn told(&self) -> DnsRecord {
        DnsRecord { name: self.name.to_string(), r#type: self.kind().to_owned(), value: self.address.to_string() }
    }

    const fn kind(&self) -> &'static str {
        if self.address.is_ipv4() { "A" } else { "AAAA" }
    }
}

impl TryFrom<WrittenRecord> for ExtraRecord {
    type Error = String;

    fn try_from(WrittenRecord { name, r#type, value }: WrittenRecord) -> Result<Self, String> {
        let address = value.parse().map_err(|_| format!("{name}: {value:?} is not an address"))?;
        let record = Self { name: name.parse()?, address };
        match r#type.as_str() {
            "" => Ok(record),
            "A" | "AAAA" if r#type == record.kind() => Ok(record),
            "A" | "AAAA" => Err(format!("{name}: {value} is no address of type {}", r#type)),
            other => Err(format!("{name}: type {other:?} is neither A nor AAAA")),
        }
    }
}

impl From<ExtraRecord> for WrittenRecord {
    fn from(record: ExtraRecord) -> Self {
        let DnsRecord { name, r#type, value } = record.told();
        Self { name, r#type, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, parse};

    fn names(text: &str) -> Result<Names, String> {
        let settings = parse(text).and_then(Settings::of);
        settings.map(|settings| settings.names).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_of_names_is_what_nodes_are_told() {
        assert_eq!(names("").unwrap(), Names::default());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("records.json");
        fs::write(&file, r#"[{"name": "b.example", "type": "AAAA", "value": "2001:db8::1"}]"#).unwrap();
        let text = format!(
            r#"[dns]
            magic_dns = false
            override_local_dns = false
            search_domains = ["Corp.Example."]
            extra_records = [{{ name = "A.example.", value = "100.64.0.9" }}]
            extra_records_path = {file:?}
            [dns.nameservers]
            global = ["9.9.9.9", "[2001:db8::1]:5353", "https://dns.example/dns-query"]
            [dns.nameservers.split]
            "corp.example" = ["10.0.0.1"]
            "10.in-addr.arpa" = ["10.0.0.1", "10.0.0.2:53"]"#
        );
        let told = names(&text).unwrap();
        assert!(!told.magic_dns && !told.override_local);
        assert_eq!(told.search_domains, ["corp.example"]);
        let records: Vec<_> =
            told.extra_records.iter().map(|record| [&*record.name, &*record.r#type, &*record.value]).collect();
        assert_eq!(records, [["a.example", "A", "100.64.0.9"], ["b.example", "AAAA", "2001:db8::1"]]);
        let addrs = |servers: &[Resolver]| servers.iter().map(|server| server.addr.clone()).collect::<Vec<_>>();
        assert_eq!(addrs(&told.nameservers), ["9.9.9.9", "[2001:db8::1]:5353", "https://dns.example/dns-query"]);
        assert_eq!(told.split.keys().collect::<Vec<_>>(), ["10.in-addr.arpa", "corp.example"]);
        assert_eq!(addrs(&told.split["10.in-addr.arpa"]), ["10.0.0.1", "10.0.0.2:53"]);
    }

    #[test]
    fn a_value_that_nodes_could_not_use_is_refused_by_name() {
        for (text, place, reason) in [
            ("nameservers.global = [\"tls://1.1.1.1\"]", "dns.nameservers.global", "is neither ADDRESS"),
            ("nameservers.global = [\"dns.example\"]", "dns.nameservers.global", "is neither ADDRESS"),
            ("nameservers.global = [\"127.0.0.53\"]", "dns.nameservers.global", "another host for each node"),
            ("nameservers.global = [\"[::1]:53\"]", "dns.nameservers.global", "another host for each node"),
            ("nameservers.global = [\"100.100.100.100\"]", "dns.nameservers.global", "would ask itself"),
            ("nameservers.split = { \"a..b\" = [\"10.0.0.1\"] }", "dns.nameservers.split", "a..b"),
            ("nameservers.split = { \"corp\" = [] }", "dns.nameservers.split", "corp: no name server"),
            ("nameservers.split = { \"corp\" = [\"x\"] }", "dns.nameservers.split", "is neither ADDRESS"),
            ("nameservers.split = { \"corp\" = [\"10.0.0.1\"], \"Corp.\" = [\"10.0.0.1\"] }", "split", "there twice"),
            ("nameservers.split = { \"warren.internal\" = [\"10.0.0.1\"] }", "split", "is the nodes' domain"),
            ("search_domains = [\"a b\"]", "dns.search_domains", "a b"),
            (
                "extra_records = [{ name = \"a.b\", type = \"TXT\", value = \"100.64.0.1\" }]",
                "dns.extra_records",
                "TXT",
            ),
            ("extra_records = [{ name = \"a.b\", type = \"A\", value = \"::1\" }]", "dns.extra_records", "of type A"),
            ("extra_records = [{ name = \"a.b\", value = \"web\" }]", "dns.extra_records", "not an address"),
            ("extra_records = [{ nam = \"a.b\", value = \"::1\" }]", "dns.extra_records", "nam"),
            ("extra_records_path = \"/nonexistent\"", "/nonexistent", "No such file"),
            ("magic_dns = \"yes\"", "dns.magic_dns", "boolean"),
        ] {
            let error = names(&format!("[dns]\n{text}")).unwrap_err();
            assert!(error.contains(place) && error.contains(reason) && !error.contains('\n'), "{text}: {error}");
        }
        let many = ["\"9.9.9.9\""; 9].join(", ");
        let error = names(&format!("[dns]\nnameservers.global = [{many}]")).unwrap_err();
        assert_eq!(
            error,
            "configuration: dns.nameservers.global: 9 name servers for the same names, at most 8 are taken"
        );
    }

    #[test]
    fn a_domain_that_holds_this_servers_name_or_a_relays_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("map.json");
        fs::write(&file, r#"{"Regions":{"901":{"Nodes":[{"HostName":"r.example"}]}}}"#).unwrap();
        for (text, taken) in [
            ("server_url = \"https://c.example\"".to_owned(), "c.example"),
            ("server_url = \"https://C.example:8443\"".to_owned(), "example"),
            ("acme_domains = [\"c.example\"]".to_owned(), "example"),
            ("server_url = \"https://c.test\"\nrelay_host = \"r.example:443\"".to_owned(), "example"),
            (format!("derp_map = {file:?}"), "r.example"),
        ] {
            let error = names(&format!("{text}\ndomain = {taken:?}")).unwrap_err();
            assert!(error.starts_with("configuration: dns.domain: "), "{text}: {error}");
            names(&format!("{text}\ndomain = \"x.{taken}\"")).unwrap();
            names(&format!("{text}\ndomain = \"xample\"")).unwrap();
        }
    }
}
