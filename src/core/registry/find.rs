//! From what people type to what it names. Where a text may mean two things, nothing is done to either.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::record::{NodeRecord, UserName, UserRecord};
use super::refusal::Refusal;
use super::state::{NodeView, State};
use crate::types::{HostLabel, NodeId, UserId};

/// What is to be looked for under a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookupBy {
    /// Numbers alone: `id:3`.
    Number,
    /// Names alone: `name:3`.
    Name,
    /// Everything.
    Anything,
}

impl LookupBy {
    fn read(text: &str) -> (Self, &str) {
        match text.split_once(':') {
            Some(("id", number)) => (Self::Number, number),
            Some(("name", name)) => (Self::Name, name),
            _ => (Self::Anything, text),
        }
    }

    fn numbers(self) -> bool {
        self != Self::Name
    }

    fn names(self) -> bool {
        self != Self::Number
    }
}

impl State {
    /// A user by name or number, or unmistakably as `name:ada` or `id:3`. No name is a number.
    pub fn find_user(&self, text: &str) -> Result<&UserRecord, Refusal> {
        let (under, plain) = LookupBy::read(text);
        let number = || plain.parse().ok().filter(|_| under.numbers()).map(UserId);
        let name = || plain.parse().ok().filter(|_| under.names());
        let by_name = || name().and_then(|name: UserName| self.directory.user_named(&name));
        number()
            .or_else(by_name)
            .and_then(|id| self.directory.user(id))
            .ok_or_else(|| Refusal::not_found(format!("there is no user `{text}`")))
    }

    /// A node by name (short or full), number, stable identifier or address, or unmistakably as `name:web` or `id:3`.
    pub fn find_node(&self, text: &str) -> Result<NodeView<'_>, Refusal> {
        let (under, plain) = LookupBy::read(text);
        let mut found: BTreeMap<NodeId, String> = BTreeMap::new();
        let number = plain.parse().ok().filter(|_| under.numbers()).map(NodeId);
        if let Some(view) = number.and_then(|id| self.node(id)) {
            found.insert(view.record.id, format!("node {plain}, named `{}`", view.record.label));
        }
        if under.names() {
            for id in self.named(plain, under) {
                found.entry(id).or_insert_with(|| format!("node {id}, known as `{plain}`"));
            }
        }
        let mut ids = found.keys();
        match (ids.next(), ids.next()) {
            (Some(id), None) => self.node(*id).ok_or_else(|| Refusal::not_found(format!("there is no node `{text}`"))),
            (None, _) => Err(Refusal::not_found(format!("there is no node `{text}`"))),
            (Some(_), Some(_)) => {
                let all = found.values().cloned().collect::<Vec<_>>().join(", or ");
                Err(Refusal::conflict(format!("`{text}` may be {all}: say `id:NUMBER` or `name:NAME`")))
            }
        }
    }

    /// The nodes that a text names in one way or another.
    fn named(&self, text: &str, under: LookupBy) -> Vec<NodeId> {
        let domain = format!(".{}", self.config.base_domain);
        let plain = text.trim_end_matches('.').to_ascii_lowercase();
        let label: Option<HostLabel> = plain.strip_suffix(&domain).unwrap_or(&plain).parse().ok();
        let address: Option<IpAddr> = text.parse().ok().filter(|_| under == LookupBy::Anything);
        let is_it = |record: &NodeRecord| {
            record.stable_id.0 == text
                || address.is_some_and(|address| address == record.ipv4 || address == record.ipv6)
        };
        let by_label = label.and_then(|label| self.directory.node_named(&label));
        let others = self.nodes().map(|node| node.record).filter(|record| under == LookupBy::Anything && is_it(record));
        by_label.into_iter().chain(others.map(|record| record.id)).collect()
    }
}
