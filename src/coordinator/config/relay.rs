//! What the operator decides about relays: the embedded one, and others that the map names beside it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::{ConfigError, Options, wrong};
use warren_core::types::RegionId;
use warren_core::wire::control::{DerpMap, DerpRegion};
use warren_shell::CertificatePin;

const DEFAULT_REGION: u16 = 900;
/// The numbers that are left to whoever runs relays of their own.
const OWN_REGIONS: std::ops::RangeInclusive<u16> = 900..=999;
const DEFAULT_NAME: &str = "Warren";
/// A region's short name in status lines.
const CODE: &str = "warren";
/// The longest name of a region; it stands in every map and in tables.
const NAME_LEN: usize = 64;

/// Where nodes find a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayPlace {
    /// Its name, or an address without brackets.
    pub host: String,
    /// The port of its TLS.
    pub port: u16,
}

/// Where STUN is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StunListen {
    /// Nowhere.
    Off,
    /// At the usual port of every address; where that is taken, nowhere.
    Usual,
    /// Here.
    At(SocketAddr),
}

/// The embedded relay.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// Its region's number.
    pub region: RegionId,
    /// Its region's short name.
    pub code: &'static str,
    /// Its region's name.
    pub name: String,
    /// A TLS port of its own; `None` for the coordinator's.
    pub listen: Option<SocketAddr>,
    /// Where all nodes find it; `None` for the host by which each node reaches the coordinator.
    pub place: Option<RelayPlace>,
    /// Its IPv4 address, where names should not be looked up.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, likewise.
    pub ipv6: Option<Ipv6Addr>,
    /// Where STUN is answered.
    pub stun: StunListen,
    /// Whether nodes know it by the hash of a certificate that it makes itself.
    pub is_pinned: bool,
}

/// Settles the embedded relay; `None` where it is off.
pub(super) fn settle(options: &Options) -> Result<Option<RelaySettings>, ConfigError> {
    if options.relay == Some(false) {
        return Ok(None);
    }
    let region = options.relay_region.unwrap_or(DEFAULT_REGION);
    if !OWN_REGIONS.contains(&region) {
        return Err(wrong("relay_region", format!("{region} is not between 900 and 999")));
    }
    let name = options.relay_name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
    if !(1..=NAME_LEN).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(wrong("relay_name", format!("{name:?} is not 1 to {NAME_LEN} bytes of text")));
    }
    let stun = match options.stun_listen.as_deref() {
        None => StunListen::Usual,
        Some("none") => StunListen::Off,
        Some(text) => StunListen::At(
            text.parse().map_err(|_| wrong("stun_listen", format!("{text:?} is neither ADDRESS:PORT nor none")))?,
        ),
    };
    let server_url: Option<http::Uri> = options.server_url.as_deref().and_then(|url| url.parse().ok());
    // Where nodes come over https and we have no certificate, a proxy in between has one.
    let is_behind_tls = server_url.as_ref().is_some_and(|url| url.scheme_str() == Some("https"));
    let has_tls =
        options.tls_cert.is_some() || options.acme_domains.as_ref().is_some_and(|domains| !domains.is_empty());
    let is_pinned = !has_tls && (options.relay_listen.is_some() || !is_behind_tls);
    let port = options.relay_listen.map(|listen| listen.port());
    let place = match (options.relay_host.as_deref(), &server_url) {
        (Some(text), _) => {
            let authority = text.parse::<http::uri::Authority>().ok().filter(|authority| !authority.host().is_empty());
            let authority =
                authority.ok_or_else(|| wrong("relay_host", format!("{text:?} is not HOST or HOST:PORT")))?;
            let served = options.listen.map_or(super::DEFAULT_PORT, |listen| listen.port());
            Some(place_of(&authority, port.unwrap_or(if is_behind_tls { HTTPS } else { served })))
        }
        (None, Some(url)) => url.authority().map(|authority| {
            let usual = if is_behind_tls { HTTPS } else { HTTP };
            match port {
                Some(port) => RelayPlace { port, ..place_of(authority, usual) },
                None => place_of(authority, usual),
            }
        }),
        (None, None) => None,
    };
    Ok(Some(RelaySettings {
        region: RegionId(region),
        code: CODE,
        name,
        listen: options.relay_listen,
        place,
        ipv4: options.relay_ipv4,
        ipv6: options.relay_ipv6,
        stun,
        is_pinned,
    }))
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

fn place_of(authority: &http::uri::Authority, usual_port: u16) -> RelayPlace {
    RelayPlace::new(authority, usual_port)
}

impl RelayPlace {
    /// What an authority as in a URL names.
    pub fn new(authority: &http::uri::Authority, usual_port: u16) -> Self {
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        Self { host, port: authority.port_u16().unwrap_or(usual_port) }
    }

    /// The address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// Reads the map of other relays and completes what it leaves out.
pub(super) fn read_derp_map(file: &Path) -> Result<DerpMap, ConfigError> {
    let wrong =
        |reason: String| ConfigError::Key { place: file.display().to_string(), key: "derp_map".to_owned(), reason };
    let text = fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let mut map: DerpMap = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if map.regions.is_empty() {
        return Err(wrong("it names no region; leave the option out where there are no further relays".to_owned()));
    }
    for (id, region) in &mut map.regions {
        let region = region.as_mut().ok_or_else(|| wrong(format!("region {id}: it is null")))?;
        complete(*id, region).map_err(|reason| wrong(format!("region {id}: {reason}")))?;
    }
    Ok(map)
}

fn complete(id: RegionId, region: &mut DerpRegion) -> Result<(), String> {
    let is_ours = |number: &mut RegionId| {
        if *number == RegionId::default() {
            *number = id;
        }
        *number == id
    };
    if id == RegionId::default() {
        return Err("a region's number is not 0".to_owned());
    }
    if !is_ours(&mut region.region_id) {
        return Err(format!("RegionID says {}", region.region_id));
    }
    if region.nodes.is_empty() {
        return Err("it has no nodes".to_owned());
    }
    for (index, node) in region.nodes.iter_mut().enumerate() {
        if node.name.is_empty() {
            node.name = format!("{id}{}", char::from(b'a' + (index % 26) as u8));
        }
        let name = node.name.clone();
        if !is_ours(&mut node.region_id) {
            return Err(format!("node {name}: RegionID says {}", node.region_id));
        }
        if node.host_name.is_empty() {
            return Err(format!("node {name}: it has no HostName"));
        }
        if node.host_name.chars().any(|c| !c.is_alphanumeric() && !".-_:[]".contains(c)) {
            return Err(format!("node {name}: HostName {:?} is none", node.host_name));
        }
        if let Some(Err(reason)) = CertificatePin::read(&node.cert_name) {
            return Err(format!("node {name}: CertName: {reason}"));
        }
        for (field, port) in [("DERPPort", node.derp_port), ("STUNPort", node.stun_port)] {
            if !(-1..=i32::from(u16::MAX)).contains(&port) {
                return Err(format!("node {name}: {field}: {port} is not a port"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(options: Options) -> RelaySettings {
        settle(&options).unwrap().unwrap()
    }

    #[test]
    fn nodes_find_the_relay_where_the_operator_says_or_where_they_find_us() {
        let base = Options::default;
        let url = |url: &str| Some(url.to_owned());
        let listen = Some("[::]:8443".parse().unwrap());
        for (options, place, is_pinned) in [
            (base(), None, true),
            (Options { server_url: url("https://a.example"), ..base() }, Some(("a.example", 443)), false),
            (Options { server_url: url("http://A.example:81/"), ..base() }, Some(("a.example", 81)), true),
            (Options { server_url: url("http://[2001:db8::1]"), ..base() }, Some(("2001:db8::1", 80)), true),
            (
                Options { server_url: url("https://a.example"), relay_listen: listen, ..base() },
                Some(("a.example", 8443)),
                true,
            ),
            (Options { relay_host: url("r.example"), ..base() }, Some(("r.example", 8080)), true),
            (
                Options { relay_host: url("r.example:99"), relay_listen: listen, ..base() },
                Some(("r.example", 99)),
                true,
            ),
            (Options { tls_cert: Some("c".into()), ..base() }, None, false),
        ] {
            let relay = settled(options.clone());
            let place = place.map(|(host, port)| RelayPlace { host: host.to_owned(), port });
            assert_eq!((relay.place, relay.is_pinned), (place, is_pinned), "{options:?}");
        }
        assert!(settle(&Options { relay: Some(false), ..base() }).unwrap().is_none());
    }

    #[test]
    fn a_map_of_relays_is_completed_and_its_mistakes_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("map.json");
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            read_derp_map(&file).map_err(|error| error.to_string())
        };
        let map = read(r#"{"Regions":{"901":{"Nodes":[{"HostName":"r.example"}]}}}"#).unwrap();
        let region = map.regions[&RegionId(901)].as_ref().unwrap();
        assert_eq!((region.region_id, region.nodes[0].region_id), (RegionId(901), RegionId(901)));
        assert_eq!(region.nodes[0].name, "901a");
        for (text, reason) in [
            ("{", "EOF"),
            ("[]", "it names no region"),
            (r#"{"Regions":{}}"#, "it names no region"),
            (r#"{"Regions":{"901":{"Nodes":[{"HostName":"a\u001b[1m"}]}}}"#, "[1m\" is none"),
            (r#"{"Regions":{"901":null}}"#, "region 901: it is null"),
            (r#"{"Regions":{"901":{}}}"#, "region 901: it has no nodes"),
            (r#"{"Regions":{"901":{"RegionID":2,"Nodes":[]}}}"#, "region 901: RegionID says 2"),
            (r#"{"Regions":{"901":{"Nodes":[{"Name":"x"}]}}}"#, "region 901: node x: it has no HostName"),
            (r#"{"Regions":{"901":{"Nodes":[{"HostName":"x","CertName":"sha256-raw:1"}]}}}"#, "node 901a: CertName: "),
            (r#"{"Regions":{"901":{"Nodes":[{"HostName":"x","DERPPort":70000}]}}}"#, "node 901a: DERPPort: 70000"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains("map.json: derp_map: ") && error.contains(reason), "{text}: {error}");
        }
    }
}
