//! What is answered here and who is asked for the rest: a function of the map and of the name servers of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::{Name, RecordType};

use super::domain::Domain;
use super::hosts::{Host, Hosts};
use super::upstream::{Upstream, UpstreamError};
use crate::netmap::Netmap;
use crate::types::{Limit, RESOLVER_ADDRESSES, SITES_V6};
use crate::wire::control::{DnsConfig, DnsRecord, Resolver};

/// Suffixes with name servers of their own: several times what the largest networks have.
const ROUTES: Limit = Limit::new("domains with name servers of their own", 4_096);
/// Name servers for one suffix. More are no safer, and each is asked in turn.
const UPSTREAMS: Limit = Limit::new("name servers of one domain", 8);
/// Domains that are tried for each name without a dot. Hosts take a few.
const SEARCH: Limit = Limit::new("search domains", 32);
/// What is wrong with the settings, as far as people read on.
const FAULTS: Limit = Limit::new("faults of DNS settings", 32);
/// Lets nodes that have an IPv4 address answer with their IPv6 address too: many hosts that have the family cannot use it.
const BOTH_FAMILIES: &str = "magicdns-aaaa";
/// Questions for services of this network segment (RFC 6763 §11), which nobody far away can answer.
const BROWSING: [&str; 5] = ["b", "db", "r", "dr", "lb"];

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is a node's, or a record's: the addresses of the type that was asked for.
    Addresses(Vec<IpAddr>),
    /// It is the reverse name of an address of this node.
    Pointer(Domain),
    /// It is there, and has nothing of this type. With the zone that it is in.
    NoData(Domain),
    /// There is no such name. With the zone that says so.
    NoSuchName(Domain),
    /// These know.
    Ask(Arc<[Upstream]>),
    /// Nobody is there to be asked.
    Nobody,
}

/// By whom what leaves this host leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WayOut {
    /// By itself.
    #[default]
    Own,
    /// By an exit node, which can be asked here where it says so.
    Exit(Option<Upstream>),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    hosts: Hosts,
    /// The network's domain, where it has one.
    base: Option<Domain>,
    settings: DnsConfig,
    records: BTreeMap<Domain, Vec<IpAddr>>,
    /// By suffix who is asked; nobody where we answer alone.
    routes: BTreeMap<Domain, Arc<[Upstream]>>,
    search: Vec<Domain>,
    default: Arc<[Upstream]>,
    /// Who is asked for those who leave by us.
    for_others: Arc<[Upstream]>,
    takes_everything: bool,
    way_out: WayOut,
    /// What was read was read with another way out.
    is_stale: bool,
    local: Vec<Upstream>,
    /// Addresses of ours: asking them would go round for ever.
    ours: BTreeSet<IpAddr>,
    both_families: bool,
    faults: Vec<String>,
}

impl Zones {
    /// Brings the answers up to date with the map, and with the name servers that this host asks by itself.
    pub fn update(&mut self, map: &Netmap, local: &[Upstream]) {
        self.hosts.update(map);
        self.update_settings(map, local);
    }

    /// The same without the names of nodes; whether anything is another than before.
    pub fn update_settings(&mut self, map: &Netmap, local: &[Upstream]) -> bool {
        self.both_families = map.node().is_some_and(|node| node.cap_map.contains_key(BOTH_FAMILIES));
        let base = map.node().and_then(|node| node.name.split_once('.')?.1.parse().ok());
        let ours = map.addresses().iter().map(|address| address.addr()).chain(RESOLVER_ADDRESSES).collect();
        let is_other = std::mem::take(&mut self.is_stale)
            || self.settings != *map.dns()
            || self.local != local
            || self.ours != ours
            || self.base != base;
        if is_other {
            self.base = base;
            self.settings = map.dns().clone();
            self.local = local.to_vec();
            self.ours = ours;
            self.read_settings();
        }
        is_other
    }

    /// Says by whom what leaves this host leaves. It counts from the next update on.
    pub fn set_way_out(&mut self, way_out: WayOut) {
        self.is_stale |= self.way_out != way_out;
        self.way_out = way_out;
    }

    /// What is wrong with the settings, for people.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The network's domain.
    pub fn base(&self) -> Option<&Domain> {
        self.base.as_ref()
    }

    /// The suffixes that we answer, or pass on, otherwise than the rest.
    pub fn suffixes(&self) -> impl Iterator<Item = &Domain> {
        self.routes.keys()
    }

    /// The same, and who is asked for names within each; nobody where we answer alone.
    pub fn routes(&self) -> impl Iterator<Item = (&Domain, &[Upstream])> {
        self.routes.iter().map(|(suffix, upstreams)| (suffix, &**upstreams))
    }

    /// Names that are no node's.
    pub fn records(&self) -> impl Iterator<Item = &Domain> {
        self.records.keys()
    }

    /// What is tried after a name without a dot.
    pub fn search(&self) -> &[Domain] {
        &self.search
    }

    /// Who is asked for all other names.
    pub fn others(&self) -> &[Upstream] {
        &self.default
    }

    /// Whether the coordinator names servers for all other names, in the place of the host's own.
    pub fn takes_everything(&self) -> bool {
        self.takes_everything
    }

    /// What is known of a name; see [`Finding`].
    pub fn find(&self, name: &Domain, kind: RecordType) -> Finding {
        if is_never_looked_up(name) {
            return Finding::NoSuchName(name.clone());
        }
        if let Some(address) = reverse(name)
            && let Some(host) = self.hosts.with_address(address)
        {
            let pointer = matches!(kind, RecordType::PTR | RecordType::ANY);
            return if pointer { Finding::Pointer(host.domain.clone()) } else { Finding::NoData(self.zone(name)) };
        }
        if let Some(addresses) = self.addresses(name) {
            let asked = |of: RecordType| kind == of || kind == RecordType::ANY;
            let of_kind = |address: &IpAddr| asked(if address.is_ipv4() { RecordType::A } else { RecordType::AAAA });
            let found: Vec<IpAddr> = addresses.into_iter().filter(of_kind).collect();
            return if found.is_empty() { Finding::NoData(self.zone(name)) } else { Finding::Addresses(found) };
        }
        match self.route(name) {
            Some((zone, upstreams)) if upstreams.is_empty() => Finding::NoSuchName(zone.clone()),
            Some((_, upstreams)) => Finding::Ask(Arc::clone(upstreams)),
            None if self.default.is_empty() => Finding::Nobody,
            None => Finding::Ask(Arc::clone(&self.default)),
        }
    }

    /// What somebody who leaves by this host hears of a name: whatever others know of it. What we know beside that is
    /// not for them, who have a map of their own.
    pub fn find_for_others(&self, name: &Domain) -> Finding {
        let is_known = self.records.contains_key(name)
            || self.hosts.named(name.as_str()).is_some()
            || reverse(name).is_some_and(|address| self.hosts.with_address(address).is_some());
        let is_within_ours = self.base.as_ref().is_some_and(|base| name.is_within(base));
        let is_single = name.split().1.is_none();
        if is_known || is_within_ours || is_single || is_never_looked_up(name) || self.is_filtered(name) {
            return Finding::NoSuchName(name.clone());
        }
        match self.route(name) {
            Some((zone, _)) => Finding::NoSuchName(zone.clone()),
            None if self.for_others.is_empty() => Finding::Nobody,
            None => Finding::Ask(Arc::clone(&self.for_others)),
        }
    }

    /// Whether the coordinator keeps this name from those who leave by us.
    fn is_filtered(&self, name: &Domain) -> bool {
        self.settings.exit_node_filtered_set.iter().any(|filtered| match filtered.strip_prefix('.') {
            Some(suffix) => suffix.parse().is_ok_and(|suffix| name.is_within(&suffix) && *name != suffix),
            None => filtered.parse::<Domain>().is_ok_and(|filtered| *name == filtered),
        })
    }

    /// The addresses of a name that is answered here.
    fn addresses(&self, name: &Domain) -> Option<Vec<IpAddr>> {
        if let Some(address) = self.behind_a_site(name) {
            return Some(vec![address]);
        }
        if let Some(addresses) = self.records.get(name) {
            return Some(addresses.clone());
        }
        if let Some(host) = self.hosts.named(name.as_str()) {
            return Some(self.told(host));
        }
        match (name.split(), &self.base) {
            ((label, None), Some(base)) => Some(self.told(self.hosts.named(&format!("{label}.{base}"))?)),
            _ => {
                let mut above = name.lineage().skip(1);
                let host = above.find_map(|parent| self.hosts.named(parent))?;
                host.has_subdomains.then(|| self.told(host))
            }
        }
    }

    /// The addresses of a node that are told.
    fn told(&self, host: &Host) -> Vec<IpAddr> {
        let has_ipv4 = host.addresses.iter().any(IpAddr::is_ipv4);
        let told = |address: &&IpAddr| address.is_ipv4() || self.both_families || !has_ipv4;
        host.addresses.iter().filter(told).copied().collect()
    }

    /// `10-1-1-16-via-7`: the IPv4 address 10.1.1.16 of the site 7.
    fn behind_a_site(&self, name: &Domain) -> Option<IpAddr> {
        let (label, rest) = name.split();
        let is_ours = rest.is_none_or(|rest| self.base.as_ref().is_some_and(|base| base.as_str() == rest));
        let (address, site) = label.rsplit_once("-via-").filter(|_| is_ours)?;
        let address: Ipv4Addr = address.replace('-', ".").parse().ok()?;
        let site: u32 = match site.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => site.parse().ok()?,
        };
        let bits = SITES_V6.network().to_bits() | u128::from(site) << 32 | u128::from(address.to_bits());
        Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
    }

    /// The longest suffix with an answer of its own.
    fn route(&self, name: &Domain) -> Option<(&Domain, &Arc<[Upstream]>)> {
        name.lineage().find_map(|suffix| self.routes.get_key_value(suffix))
    }

    /// Whose word it is that a name has nothing of a type.
    fn zone(&self, name: &Domain) -> Domain {
        self.route(name).map(|(zone, _)| zone).or(self.base.as_ref()).unwrap_or(name).clone()
    }

    fn read_settings(&mut self) {
        let settings = std::mem::take(&mut self.settings);
        self.faults.clear();
        self.routes = self.read_routes(&settings);
        self.records = self.read_records(&settings.extra_records);
        self.search = self.read_search(&settings.domains);
        let chosen = self.upstreams(&settings.resolvers);
        self.for_others = if !chosen.is_empty() {
            Arc::clone(&chosen)
        } else if !self.local.is_empty() {
            self.local.iter().filter(|upstream| self.check(upstream).is_ok()).cloned().collect()
        } else {
            self.upstreams(&settings.fallback_resolvers)
        };
        let by_exit = self.by_exit(&settings);
        self.takes_everything = !chosen.is_empty() || by_exit.is_some();
        self.default = by_exit.unwrap_or_else(|| Arc::clone(&self.for_others));
        self.settings = settings;
    }

    /// Whom an exit node that is used has us ask: those who may be asked beside it, or itself.
    fn by_exit(&mut self, settings: &DnsConfig) -> Option<Arc<[Upstream]>> {
        let WayOut::Exit(itself) = self.way_out.clone() else { return None };
        let beside: Vec<Resolver> =
            settings.resolvers.iter().filter(|resolver| resolver.use_with_exit_node).cloned().collect();
        let beside = self.upstreams(&beside);
        if beside.is_empty() { itself.map(|itself| Arc::from([itself])) } else { Some(beside) }
    }

    fn read_routes(&mut self, settings: &DnsConfig) -> BTreeMap<Domain, Arc<[Upstream]>> {
        let mut routes = BTreeMap::new();
        if settings.proxied {
            let nobody: Arc<[Upstream]> = Arc::default();
            let ours = reverse_zones().chain(self.base.clone());
            routes.extend(ours.map(|zone| (zone, Arc::clone(&nobody))));
        }
        if let Err(error) = ROUTES.check(settings.routes.len()) {
            self.fault(error.to_string());
        }
        for (suffix, resolvers) in settings.routes.iter().take(ROUTES.most) {
            let named = resolvers.as_deref().unwrap_or_default();
            // With an exit node those are asked that may be asked beside it.
            let is_asked = |resolver: &&Resolver| self.way_out == WayOut::Own || resolver.use_with_exit_node;
            let asked: Vec<Resolver> = named.iter().filter(is_asked).cloned().collect();
            if asked.is_empty() && !named.is_empty() {
                continue;
            }
            let upstreams = self.upstreams(&asked);
            match suffix.parse() {
                // Where all who are named are of no use, the names are nobody else's all the same.
                Ok(suffix) => drop(routes.insert(suffix, upstreams)),
                Err(error) => self.fault(format!("domain with name servers of its own: {error}")),
            }
        }
        routes
    }

    fn read_search(&mut self, given: &[String]) -> Vec<Domain> {
        let mut search = Vec::new();
        for domain in given.iter().take(SEARCH.most) {
            match domain.parse() {
                Ok(domain) => search.push(domain),
                Err(error) => self.fault(format!("search domain: {error}")),
            }
        }
        search
    }

    fn read_records(&mut self, given: &[DnsRecord]) -> BTreeMap<Domain, Vec<IpAddr>> {
        let mut records: BTreeMap<Domain, Vec<IpAddr>> = BTreeMap::new();
        for record in given {
            let wanted = |address: &IpAddr| match record.r#type.as_str() {
                "" => true,
                "A" => address.is_ipv4(),
                "AAAA" => address.is_ipv6(),
                _ => false,
            };
            let address = record.value.parse().ok().filter(wanted);
            match (record.name.parse(), address) {
                (Ok(name), Some(address)) => records.entry(name).or_default().push(address),
                (Ok(_), None) => {
                    let DnsRecord { name, r#type, value } = record;
                    self.fault(format!("record {name} {type} {value:?}: not an address of this type"));
                }
                (Err(error), _) => self.fault(format!("record: {error}")),
            }
        }
        records
    }

    /// Those of these that can be asked.
    fn upstreams(&mut self, resolvers: &[Resolver]) -> Arc<[Upstream]> {
        if let Err(error) = UPSTREAMS.check(resolvers.len()) {
            self.fault(error.to_string());
        }
        let mut usable = Vec::new();
        for resolver in resolvers.iter().take(UPSTREAMS.most) {
            match Upstream::try_from(resolver).and_then(|upstream| self.check(&upstream).map(|()| upstream)) {
                Ok(upstream) => usable.push(upstream),
                Err(error) => self.fault(error.to_string()),
            }
        }
        usable.into()
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS.most {
            self.faults.push(text);
        }
    }

    /// That asking it is not asking ourselves.
    fn check(&self, upstream: &Upstream) -> Result<(), UpstreamError> {
        match upstream {
            Upstream::Plain(server) if self.ours.contains(&server.ip()) => Err(UpstreamError::Loop(*server)),
            Upstream::Plain(_) | Upstream::Http { .. } => Ok(()),
        }
    }
}

/// Names that nobody outside may be asked for.
fn is_never_looked_up(name: &Domain) -> bool {
    let labels: Vec<&str> = name.as_str().split('.').take(3).collect();
    // RFC 7686 §2.
    let is_onion = name.as_str() == "onion" || name.as_str().ends_with(".onion");
    is_onion || matches!(labels[..], [kind, "_dns-sd", "_udp"] if BROWSING.contains(&kind))
}

/// The address that a reverse name is of (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse(name: &Domain) -> Option<IpAddr> {
    if !name.as_str().ends_with(".arpa") {
        return None;
    }
    let parsed = name.to_name()?.parse_arpa_name().ok()?;
    (parsed.prefix_len() == parsed.max_prefix_len()).then(|| parsed.addr())
}

/// The zones of the reverse names of the overlay: 64 for 100.64.0.0/10, and one for fd7a:115c:a1e0::/48.
fn reverse_zones() -> impl Iterator<Item = Domain> {
    let ipv4 = (64..128_u8).map(|second| format!("{second}.100.in-addr.arpa"));
    let zones = ipv4.chain(["0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa".to_owned()]);
    zones.filter_map(|zone| Some(Domain::of(&Name::from_ascii(zone).ok()?)))
}
