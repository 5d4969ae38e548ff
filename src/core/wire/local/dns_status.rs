//! `dns-status`: how names are resolved here.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatusReply {
    /// Whether this host's own resolver may be told (`--accept-dns`).
    pub accept_dns: bool,
    /// Whether names of nodes are answered.
    pub magic_dns: bool,
    /// The domain of the nodes; empty where this machine is in no network.
    pub domain: String,
    /// Whether this machine answers at the resolver's addresses.
    pub answers: bool,
    /// By what the host is told; empty where it is as it was.
    pub told_by: String,
    /// Why it is not told, or what could be better.
    pub trouble: Vec<String>,
    /// What the coordinator says and cannot be used.
    pub faults: Vec<String>,
    pub search: Vec<String>,
    pub routes: Vec<DnsRoute>,
    /// Who is asked for all other names.
    pub others: Vec<String>,
}

/// Who is asked for names within a suffix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRoute {
    pub suffix: String,
    /// Nobody where this machine alone answers.
    pub servers: Vec<String>,
}
