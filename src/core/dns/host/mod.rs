//! What this host's own resolver is told: that names of the network are to be asked of us, and nothing else.
//!
//! What should be so is one value, [`HostNames`]; its default is that the host is as it was. How a host is told is
//! decided from [`Facts`] by [`detect`]: by systemd-resolved, by its file, or not at all where that could break
//! something. A [`Lease`] keeps it so for as long as somebody wants it: whoever holds it and dies leaves a host as it
//! was before.

mod contest;
mod detect;
mod facts;
mod file;
mod lease;
mod report;
mod resolv_conf;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::domain::Domain;
use super::zones::Zones;
use crate::types::{Limit, bounded_vec};

pub use contest::Contest;
pub use detect::{Leave, Method, Note, detect};
pub use facts::{Facts, FileFact, FileKind, Gatherer, Obstacle, ResolvConfMode, Resolvconf};
pub use file::{Current, FileStep, Original, Record, Seen, hold, release};
pub use lease::{Lease, PATIENCE};
pub use report::{HostReport, MESSAGE_LEN};
pub use resolv_conf::{ResolvConf, is_ours, record};

/// More of them and systemd-resolved takes none at all.
const ROUTES: usize = 256;
/// What a host tries one after the other for each name without a dot.
const SEARCH: usize = 32;
/// The same, as it is told.
const MATCH_DOMAINS: Limit = Limit::new("domains that this host asks us for", ROUTES);

/// What a host is to ask us. The default is nothing: it is as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostNames {
    /// Names within these.
    #[serde(deserialize_with = "bounded_vec::<_, _, ROUTES>")]
    pub routes: Vec<Domain>,
    /// What is tried after a name without a dot.
    #[serde(deserialize_with = "bounded_vec::<_, _, SEARCH>")]
    pub search: Vec<Domain>,
    /// All other names too.
    pub everything: bool,
    /// Our resolver's port; 53 leads there too where this kernel can translate.
    pub port: u16,
    pub has_port_53: bool,
}

impl HostNames {
    /// What the map says of names. The second is what had to be left out, for people.
    pub fn of(zones: &Zones, port: u16, has_port_53: bool) -> (Self, Option<String>) {
        let mut routes: Vec<Domain> = zones.suffixes().cloned().collect();
        let uncovered = zones.records().filter(|name| !routes.iter().any(|route| name.is_within(route)));
        let uncovered: Vec<Domain> = uncovered.cloned().collect();
        routes.extend(uncovered);
        let (found, mut left_out) = (routes.len(), None);
        if let Err(error) = MATCH_DOMAINS.check(found) {
            left_out = Some(format!("{error}; the rest of them this host asks of others"));
            // Reverse names are for people who read logs; names are for everybody.
            routes.sort_by_key(|route| route.as_str().ends_with(".arpa"));
            routes.truncate(MATCH_DOMAINS.most);
        }
        routes.sort();
        let search = zones.search().iter().take(SEARCH).cloned().collect();
        let everything = zones.takes_everything();
        (Self { routes, search, everything, port, has_port_53 }, left_out)
    }

    /// Whether the host is to be as it was.
    pub fn is_nothing(&self) -> bool {
        self.routes.is_empty() && self.search.is_empty() && !self.everything
    }
}
