//! Which relays a node is told of: the embedded one, where this node can find it, and those of the operator's file.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{RelayPlace, RelaySettings};
use warren_core::wire::control::{DerpMap, DerpNode, DerpRegion};
use warren_relay::{NAMELESS, SelfSigned};

const HTTP: u16 = 80;
const HTTPS: u16 = 443;
const STUN: u16 = 3478;
/// For an address family that a relay does not have: nothing is looked up.
const NONE: &str = "none";

/// The relays.
pub(crate) struct RelayMap {
    own: Option<EmbeddedRelay>,
    others: Mutex<DerpMap>,
}

/// What is known of the embedded relay once it listens.
pub(crate) struct EmbeddedRelay {
    pub(crate) settings: RelaySettings,
    /// Where STUN is answered.
    pub(crate) stun_port: Option<u16>,
    /// Where TLS is served, if not on the coordinator's port.
    pub(crate) tls_port: Option<u16>,
    /// What makes the certificate that nodes know by its hash.
    pub(crate) certificate: Option<Arc<SelfSigned>>,
}

impl RelayMap {
    pub(crate) fn new(own: Option<EmbeddedRelay>, others: DerpMap) -> Self {
        let map = Self { own, others: Mutex::default() };
        map.set_others(others);
        map
    }

    /// These are the operator's relays from here on.
    pub(crate) fn set_others(&self, others: DerpMap) {
        // Official clients would otherwise be offered relays of others as well.
        let others = DerpMap { omit_default_regions: true, ..others };
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = others;
    }

    fn others(&self) -> DerpMap {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The embedded relay. A region that the operator describes is described better than by us.
    fn own(&self, others: &DerpMap) -> Option<&EmbeddedRelay> {
        self.own.as_ref().filter(|own| !others.regions.contains_key(&own.settings.region))
    }

    /// The map that all nodes share; `None` where it depends on how a node reaches us.
    pub(crate) fn shared(&self) -> Option<DerpMap> {
        let others = self.others();
        match self.own(&others) {
            None => Some(others),
            Some(own) => own.settings.place.as_ref().map(|place| with(others.clone(), own, place)),
        }
    }

    /// The map of a node that reaches us at this URL; `None` where all share one.
    pub(crate) fn seen_from(&self, base_url: &str) -> Option<DerpMap> {
        let others = self.others();
        let own = self.own(&others).filter(|own| own.settings.place.is_none())?;
        let url: http::Uri = base_url.parse().ok()?;
        let usual = if url.scheme_str() == Some("https") { HTTPS } else { HTTP };
        let mut place = RelayPlace::new(url.authority()?, usual);
        place.port = own.tls_port.unwrap_or(place.port);
        Some(with(others.clone(), own, &place))
    }
}

fn with(mut map: DerpMap, own: &EmbeddedRelay, place: &RelayPlace) -> DerpMap {
    if let Some(region) = own.region(place) {
        map.regions.insert(own.settings.region, Some(region));
    }
    map
}

impl EmbeddedRelay {
    /// `None` where no certificate can bear the name.
    fn region(&self, place: &RelayPlace) -> Option<DerpRegion> {
        let RelaySettings { region, code, name, .. } = &self.settings;
        Some(DerpRegion {
            region_id: *region,
            region_code: (*code).to_owned(),
            region_name: name.clone(),
            nodes: vec![self.node(place)?],
            ..DerpRegion::default()
        })
    }

    fn node(&self, place: &RelayPlace) -> Option<DerpNode> {
        let address = place.address();
        let (mut ipv4, mut ipv6) = match address {
            Some(address) if address.is_ipv4() => (place.host.clone(), NONE.to_owned()),
            Some(_) => (NONE.to_owned(), place.host.clone()),
            None => (String::new(), String::new()),
        };
        if let Some(given) = self.settings.ipv4 {
            ipv4 = given.to_string();
        }
        if let Some(given) = self.settings.ipv6 {
            ipv6 = given.to_string();
        }
        let cert_name = match &self.certificate {
            None => String::new(),
            // Towards an address clients name no host.
            Some(certificate) => certificate.pin(if address.is_some() { NAMELESS } else { &place.host })?.to_string(),
        };
        // Clients write the host into URLs, where an IPv6 address would need brackets that a name must not have.
        let is_bare_ipv6 = address.is_some_and(|address| address.is_ipv6()) && !cert_name.is_empty();
        Some(DerpNode {
            name: format!("{}a", self.settings.region),
            region_id: self.settings.region,
            host_name: if is_bare_ipv6 { NAMELESS.to_owned() } else { place.host.clone() },
            cert_name,
            ipv4,
            ipv6,
            stun_port: match self.stun_port {
                None => -1,
                Some(STUN) => 0,
                Some(port) => port.into(),
            },
            derp_port: if place.port == HTTPS { 0 } else { place.port.into() },
            can_port80: place.port == HTTP,
            ..DerpNode::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, parse};
    use warren_core::types::RegionId;

    fn own(text: &str, directory: &tempfile::TempDir) -> EmbeddedRelay {
        let settings = Settings::of(parse(text).unwrap()).unwrap().relay.unwrap();
        let certificate = settings.is_pinned.then(|| SelfSigned::open(&directory.path().join("key")).unwrap());
        EmbeddedRelay { settings, stun_port: Some(STUN), tls_port: None, certificate }
    }

    fn node(map: &DerpMap) -> DerpNode {
        map.regions[&RegionId(900)].as_ref().unwrap().nodes[0].clone()
    }

    #[test]
    fn with_nothing_configured_each_node_finds_the_relay_where_it_finds_us() {
        let directory = tempfile::tempdir().unwrap();
        let relays = RelayMap::new(Some(own("", &directory)), DerpMap::default());
        assert_eq!(relays.shared(), None);
        for (url, host, ipv4, ipv6, port) in [
            ("http://192.0.2.1:8080", "192.0.2.1", "192.0.2.1", NONE, 8080),
            ("http://[2001:db8::1]:8080", NAMELESS, NONE, "2001:db8::1", 8080),
            ("http://Relay.example", "relay.example", "", "", 80),
            ("https://relay.example", "relay.example", "", "", 0),
        ] {
            let node = node(&relays.seen_from(url).unwrap());
            assert_eq!((&*node.host_name, &*node.ipv4, &*node.ipv6, node.derp_port), (host, ipv4, ipv6, port), "{url}");
            assert!(node.cert_name.starts_with("sha256-raw:"), "{url}");
            assert_eq!(node.stun_port, 0, "{url}");
        }
        let nameless = relays.seen_from("http://coordinator ä").is_none();
        assert!(nameless);
    }

    #[test]
    fn a_configured_address_is_the_same_for_all_and_has_an_ordinary_certificate_over_https() {
        let directory = tempfile::tempdir().unwrap();
        let text = "server_url = \"https://a.example\"";
        let relays = RelayMap::new(Some(own(text, &directory)), DerpMap::default());
        assert_eq!(relays.seen_from("https://b.example"), None);
        let map = relays.shared().unwrap();
        assert!(map.omit_default_regions);
        let node = node(&map);
        assert_eq!((&*node.host_name, &*node.cert_name, node.derp_port), ("a.example", "", 0));
    }

    #[test]
    fn a_region_of_the_file_stands_beside_the_embedded_one_or_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        for (region, shown) in [(901, vec![900, 901]), (900, vec![900])] {
            let regions = [(RegionId(region), Some(DerpRegion::default()))].into();
            let others = DerpMap { regions, ..DerpMap::default() };
            let relays = RelayMap::new(Some(own("", &directory)), others);
            let map = relays.seen_from("http://192.0.2.1").or(relays.shared()).unwrap();
            assert_eq!(map.regions.keys().map(|id| id.0).collect::<Vec<_>>(), shown);
        }
    }
}
