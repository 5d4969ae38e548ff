//! `/etc/resolv.conf` (resolv.conf(5)): what others wrote, and what we write.

use std::net::IpAddr;

use super::HostNames;
use crate::dns::domain::Domain;
use crate::types::RESOLVER_ADDRESSES;

/// The first line of what we write.
const HEADER: &str = "# By warrend(8), while this host is in a Warren network: warren-dns(7).";
/// What glibc takes of search domains in every version.
const SEARCH: usize = 6;
/// Lines that are kept as they are.
const KEPT: [&str; 2] = ["options", "sortlist"];

/// What resolvconf is told where it leaves out what these others told it.
pub fn record(names: &HostNames, others: &[ResolvConf]) -> String {
    let [server, _] = RESOLVER_ADDRESSES;
    let foreign = others.iter().flat_map(|other| &other.search);
    format!("nameserver {server}\n{}", search_line(names, foreign))
}

/// Ours first, and of theirs as many as every C library takes.
fn search_line<'a>(names: &HostNames, foreign: impl Iterator<Item = &'a String>) -> String {
    let foreign = foreign.filter_map(|domain| domain.parse().ok());
    let mut search: Vec<Domain> = Vec::new();
    for domain in names.search.iter().cloned().chain(foreign) {
        if search.len() < SEARCH && !search.contains(&domain) {
            search.push(domain);
        }
    }
    let search: Vec<&str> = search.iter().map(Domain::as_str).collect();
    if search.is_empty() { String::new() } else { format!("search {}\n", search.join(" ")) }
}

/// Whether a text is one that we wrote.
pub fn is_ours(text: &[u8]) -> bool {
    text.starts_with(HEADER.as_bytes())
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Those that can be asked: a link-local address needs its link, which is left out here.
    pub servers: Vec<IpAddr>,
    search: Vec<String>,
    kept: Vec<String>,
    comments: String,
}

impl ResolvConf {
    /// What is no line that we know of is passed over.
    pub fn read(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines().map(str::trim) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some(word) if word.starts_with(['#', ';']) => {
                    read.comments.push_str(line);
                    read.comments.push('\n');
                }
                Some("nameserver") => read.servers.extend(words.next().and_then(server)),
                // The last one counts.
                Some("search" | "domain") => read.search = words.map(str::to_owned).collect(),
                Some(word) if KEPT.contains(&word) => read.kept.push(line.to_owned()),
                Some(_) | None => {}
            }
        }
        read
    }

    /// Whether a comment names a program.
    pub fn is_by(&self, program: &str) -> bool {
        self.comments.to_ascii_lowercase().contains(&program.to_ascii_lowercase())
    }

    /// What takes its place: we alone are named, because some C libraries ask all at once, and whatever else was said
    /// is kept.
    pub fn ours(&self, names: &HostNames) -> String {
        let [server, _] = RESOLVER_ADDRESSES;
        let mut text = format!("{HEADER}\nnameserver {server}\n{}", search_line(names, self.search.iter()));
        for line in &self.kept {
            text += &format!("{line}\n");
        }
        // Where a longer text is written over, what is left of it stands behind this for a moment.
        text + "#\n"
    }
}

fn server(word: &str) -> Option<IpAddr> {
    let address: IpAddr = word.parse().ok()?;
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    (!is_link_local).then_some(address)
}
