//! What the operator decides about relays: the embedded one, and others that the map names beside it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use http::uri::Authority;
use warren_core::types::RegionId;
use warren_core::wire::control::{DerpMap, DerpRegion};
use warren_shell::CertificatePin;

use super::{ConfigError, Relay, ServerUrl, StunListen};

/// A region's short name in status lines.
const CODE: &str = "warren";

/// Where nodes find a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayPlace {
    /// Its name, or an address without brackets.
    pub(crate) host: String,
    /// The port of its TLS.
    pub(crate) port: u16,
}

/// The embedded relay.
#[derive(Clone, Debug)]
pub(crate) struct RelaySettings {
    pub(crate) region: RegionId,
    /// Its region's short name.
    pub(crate) code: &'static str,
    pub(crate) name: String,
    /// A TLS port of its own; `None` for the coordinator's.
    pub(crate) listen: Option<SocketAddr>,
    /// Where all nodes find it; `None` for the host by which each node reaches the coordinator.
    pub(crate) place: Option<RelayPlace>,
    /// Its IPv4 address, where names should not be looked up.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, likewise.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Where STUN is answered.
    pub(crate) stun: StunListen,
    /// Whether nodes know it by the hash of a certificate that it makes itself.
    pub(crate) is_pinned: bool,
}

/// Settles the embedded relay; `None` where it is off.
pub(super) fn settle(
    relay: &Relay,
    server_url: Option<&ServerUrl>,
    has_certificate: bool,
    listen_port: u16,
) -> Option<RelaySettings> {
    if !relay.enabled {
        return None;
    }
    let server_url: Option<http::Uri> = server_url.and_then(|url| url.as_str().parse().ok());
    // Where nodes come over https and we have no certificate, a proxy in between has one.
    let is_behind_tls = server_url.as_ref().is_some_and(|url| url.scheme_str() == Some("https"));
    let own_port = relay.listen.map(|listen| listen.port());
    let place = match (&relay.host, &server_url) {
        (Some(host), _) => {
            let served = if is_behind_tls { HTTPS } else { listen_port };
            Some(RelayPlace::new(&host.0, own_port.unwrap_or(served)))
        }
        (None, Some(url)) => url.authority().map(|authority| {
            let found = RelayPlace::new(authority, if is_behind_tls { HTTPS } else { HTTP });
            RelayPlace { port: own_port.unwrap_or(found.port), ..found }
        }),
        (None, None) => None,
    };
    Some(RelaySettings {
        region: relay.region.0,
        code: CODE,
        name: relay.name.0.clone(),
        listen: relay.listen,
        place,
        ipv4: relay.ipv4,
        ipv6: relay.ipv6,
        stun: relay.stun_listen,
        is_pinned: !has_certificate && (relay.listen.is_some() || !is_behind_tls),
    })
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

impl RelayPlace {
    /// What an authority as in a URL names.
    pub(crate) fn new(authority: &Authority, usual_port: u16) -> Self {
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        Self { host, port: authority.port_u16().unwrap_or(usual_port) }
    }

    /// The address, where it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
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
    use crate::config::{Settings, parse};

    #[test]
    fn nodes_find_the_relay_where_the_operator_says_or_where_they_find_us() {
        for (text, place, is_pinned) in [
            ("", None, true),
            ("server_url = \"https://a.example\"", Some(("a.example", 443)), false),
            ("server_url = \"http://A.example:81/\"", Some(("a.example", 81)), true),
            ("server_url = \"http://[2001:db8::1]\"", Some(("2001:db8::1", 80)), true),
            ("server_url = \"https://a.example\"\nrelay_listen = \"[::]:8443\"", Some(("a.example", 8443)), true),
            ("relay_host = \"r.example\"", Some(("r.example", 8080)), true),
            ("relay_host = \"r.example:99\"\nrelay_listen = \"[::]:8443\"", Some(("r.example", 99)), true),
            ("tls_cert = \"c\"\ntls_key = \"k\"", None, false),
        ] {
            let relay = Settings::of(parse(text).unwrap()).unwrap().relay.unwrap();
            let place = place.map(|(host, port)| RelayPlace { host: host.to_owned(), port });
            assert_eq!((relay.place, relay.is_pinned), (place, is_pinned), "{text}");
        }
        assert!(Settings::of(parse("relay = false").unwrap()).unwrap().relay.is_none());
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
