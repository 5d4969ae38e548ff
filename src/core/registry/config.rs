//! What the coordinator's owner decides, and the limits.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::HostLabel;
use crate::wire::control::{DerpMap, DnsConfig, DnsRecord, Resolver};

/// What the owner decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients reach us, without a final slash; pages to approve a machine are below it.
    pub server_url: String,
    /// The domain that nodes' names are in, without a final dot.
    pub base_domain: String,
    pub names: Names,
    /// Where the relays are; `None` where that depends on the node and whoever sends a full map adds it.
    pub derp_map: Option<DerpMap>,
    /// How long a node key lasts; `None` for ever. Tagged nodes always last.
    pub key_lifetime: Option<Duration>,
    /// How long an ephemeral node may be offline before it is deleted.
    pub ephemeral_timeout: Duration,
    /// How long a closed map stream may take to come back before peers are told that the node is offline.
    pub offline_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_url: "http://localhost:8080".to_owned(),
            base_domain: "warren.internal".to_owned(),
            names: Names::default(),
            derp_map: Some(DerpMap::default()),
            key_lifetime: None,
            // Long enough for a reboot or a slow deployment, short enough that a crowd of build machines
            // does not pile up.
            ephemeral_timeout: Duration::from_secs(30 * 60),
            // A change of network or a restarted client is back within a few seconds.
            offline_grace: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// A node's full name, with the final dot.
    pub(super) fn full_name(&self, label: &HostLabel) -> String {
        format!("{label}.{}.", self.base_domain)
    }

    /// As every node is told.
    pub(super) fn dns(&self) -> DnsConfig {
        let Names { magic_dns, nameservers, override_local, split, search_domains, extra_records } = self.names.clone();
        let mut routes: BTreeMap<String, Option<Vec<Resolver>>> =
            split.into_iter().map(|(suffix, servers)| (suffix, Some(servers))).collect();
        if magic_dns {
            // Names of our own domain are never asked of anyone else.
            routes.insert(self.base_domain.clone(), None);
        }
        let (resolvers, fallback_resolvers) = match override_local {
            true => (nameservers, Vec::new()),
            false => (Vec::new(), nameservers),
        };
        let domains = [self.base_domain.clone()].into_iter().chain(search_domains).collect();
        DnsConfig {
            resolvers,
            routes,
            fallback_resolvers,
            domains,
            proxied: magic_dns,
            extra_records,
            ..DnsConfig::default()
        }
    }
}

/// What nodes do with names, beside the domain that they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Whether nodes' names are answered (MagicDNS).
    pub magic_dns: bool,
    /// Who is asked for names that nothing else is said of; nobody means that nodes keep their own.
    pub nameservers: Vec<Resolver>,
    /// Whether these take the place of those that a node has. If not, they are for nodes that know none.
    pub override_local: bool,
    /// Who is asked for names below a suffix.
    pub split: BTreeMap<String, Vec<Resolver>>,
    /// What is tried after a name without a dot, behind the domain of the nodes.
    pub search_domains: Vec<String>,
    /// Names that are no node's.
    pub extra_records: Vec<DnsRecord>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            magic_dns: true,
            nameservers: Vec::new(),
            override_local: true,
            split: BTreeMap::new(),
            search_domains: Vec::new(),
            extra_records: Vec::new(),
        }
    }
}

/// Limits on what the registry holds.
pub mod limit {
    use crate::types::Limit;

    /// Twice the network we are built for; also the most peers that a client of ours takes.
    pub const NODES: Limit = Limit::new("nodes", 20_000);
    /// Devices that speak nothing but WireGuard, of one user: whoever is asked for more has a network there, and that has
    /// a router which can be a node.
    pub const DEVICES_OF_USER: Limit = Limit::new("WireGuard devices of a user", 64);
    /// Devices behind one gateway: its packet filter has their part of every rule.
    pub const DEVICES_OF_GATEWAY: Limit = Limit::new("WireGuard devices behind a gateway", 256);
    /// A user or two for each node.
    pub const USERS: Limit = Limit::new("users", 20_000);
    /// Enough to give each node a key of its own. Those that admit nobody any more make room for new ones.
    pub const KEYS: Limit = Limit::new("pre-authentication keys", 20_000);
    /// Host numbers that wait to be given again: a week of 10,000 machines a day that come and go.
    pub const FREED: Limit = Limit::new("addresses of nodes that are gone", 100_000);
    /// Tags of one node or key: they are in every peer's map.
    pub const TAGS: Limit = Limit::new("tags", 64);
    /// Anyone can cause one, so few: each holds a few KiB.
    pub const PENDING: Limit = Limit::new("machines that wait for approval", 1_000);
    /// Of them at one address (or IPv6 /64): a room of people who set up their machines.
    pub const PENDING_OF_SITE: Limit = Limit::new("machines at one address that wait for approval", 64);
    /// Endpoints kept of one node: more than any client tries, and they are in every peer's map.
    pub const ENDPOINTS: Limit = Limit::new("endpoints of a node", 64);
    /// Versions of the policy that are kept.
    pub const POLICIES: Limit = Limit::new("versions of the policy", 1_000);
    /// All of them together: several of the largest, thousands of usual ones.
    pub const POLICY_BYTES: Limit = Limit::new("bytes of all versions of the policy", 16 << 20);
    /// Entries of the journal: a year of a change each half minute. The oldest give way.
    pub const JOURNAL: Limit = Limit::new("entries of the journal", 1_000_000);
    /// Routes offered by or approved for one node. A gateway may serve many subnets.
    pub const ROUTES: Limit = Limit::new("routes of a node", 1_024);
    /// Host information of one node, as JSON text.
    pub const HOSTINFO: Limit = Limit::new("bytes of host information", 16 * 1024);
}
