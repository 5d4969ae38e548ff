//! The policy: its versions, the one in force compiled against the nodes there are, and what it gives to each.
//!
//! If after an upgrade the last version cannot be read, no map is served: nodes keep what they were last sent, and nothing
//! opens that an earlier version would open.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Directory, TAGGED};
use crate::policy::{Attribute, Change, Compiled, Node, Policy, Reach, User};
use crate::registry::record::{NodeRecord, PolicyRecord};
use crate::types::{IpNet, NodeId, UserId};
use crate::wire::control::Hostinfo;

/// What a node has besides what it says and what was decided about it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct Grants {
    /// The routes that it offers and that are approved, exit routes included.
    pub(in crate::registry) routes: Vec<IpNet>,
    /// Whether its IPv4 address is taken away.
    pub(in crate::registry) without_ipv4: bool,
    /// The attributes that it is told, as JSON; empty for none.
    pub(in crate::registry) attributes: Arc<str>,
}

/// What the policy asks about a node that the directory does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct PolicyFacts {
    /// Whether its key is past its time.
    pub(in crate::registry) expired: bool,
    /// The subnets that it is the one router of.
    pub(in crate::registry) primary: Vec<IpNet>,
}

impl Directory {
    /// The versions of the policy that are kept, by number.
    pub(in crate::registry) fn policies(&self) -> impl DoubleEndedIterator<Item = &Arc<PolicyRecord>> {
        self.policies.values()
    }

    pub(in crate::registry) fn policy_version(&self, version: u64) -> Option<&Arc<PolicyRecord>> {
        self.policies.get(&version)
    }

    /// The last version.
    pub(in crate::registry) fn policy(&self) -> Option<&Arc<PolicyRecord>> {
        self.policies.last_key_value().map(|(_, policy)| policy)
    }

    /// Why the last version is not in force: it cannot be read.
    pub(in crate::registry) fn policy_fault(&self) -> Option<&str> {
        self.policy_fault.as_deref()
    }

    /// The policy in force, against the nodes there are; nothing while nobody ever set one.
    pub(in crate::registry) fn compiled(&self) -> Option<&Compiled> {
        self.rules.as_deref()
    }

    pub(in crate::registry) fn keep_policy(&mut self, policy: Arc<PolicyRecord>) {
        self.policies.insert(policy.version, policy);
    }

    pub(in crate::registry) fn forget_policy(&mut self, version: u64) {
        self.policies.remove(&version);
    }

    /// Puts the last version in force: compiled as given, or why it cannot be.
    pub(in crate::registry) fn enforce(&mut self, compiled: Result<Compiled, String>) -> Option<&Compiled> {
        match compiled {
            Ok(compiled) => {
                self.policy_fault = None;
                self.rules = Some(Box::new(compiled));
                self.rules.as_deref()
            }
            Err(fault) => {
                self.policy_fault = Some(fault);
                None
            }
        }
    }

    /// Asks the policy about a node anew. Comes with what that changes for others.
    pub(in crate::registry) fn judge(&mut self, id: NodeId, standing: &PolicyFacts) -> Option<Change> {
        let row = self.nodes.get_mut(&id)?;
        let Some(rules) = &mut self.rules else {
            let routes: Vec<IpNet> = row.record.served_routes().collect();
            if row.grants.routes != routes {
                row.grants = Arc::new(Grants { routes, ..Grants::default() });
            }
            return None;
        };
        let node = node_of(&row.record, standing, rules.policy());
        let change = (rules.node(id) != Some(&node)).then(|| rules.upsert(id, node));
        let attributes = rules.attributes(id);
        let grants = Grants {
            routes: rules.approved_routes(id).to_vec(),
            without_ipv4: !rules.addresses(id).iter().any(IpAddr::is_ipv4),
            attributes: if attributes.is_empty() { Arc::from("") } else { json(&attributes) },
        };
        if *row.grants != grants {
            row.grants = Arc::new(grants);
        }
        change
    }

    /// A node that is gone, for the policy.
    pub(in crate::registry) fn judge_gone(&mut self, id: NodeId) -> Option<Change> {
        self.rules.as_mut().map(|rules| rules.remove(id))
    }

    /// A user as the policy sees them.
    pub(in crate::registry) fn judge_user(&mut self, id: UserId) -> Option<Change> {
        let rules = self.rules.as_mut()?;
        match self.users.get(&id) {
            Some(user) => Some(rules.put_user(id, User { login: user.name.as_str().to_owned(), role: user.role })),
            None => {
                rules.remove_user(id);
                None
            }
        }
    }

    /// The users as policies see them.
    pub(in crate::registry) fn policy_users(&self) -> BTreeMap<UserId, User> {
        let user = |user: &crate::registry::UserRecord| User { login: user.name.as_str().to_owned(), role: user.role };
        self.users.iter().map(|(id, record)| (*id, user(record))).collect()
    }
}

fn json(attributes: &impl serde::Serialize) -> Arc<str> {
    serde_json::to_string(attributes).unwrap_or_default().into()
}

/// A node the way policies see it. One whose key is past its time serves no routes, and nobody stands before it.
pub(in crate::registry) fn node_of(record: &NodeRecord, standing: &PolicyFacts, policy: &Policy) -> Node {
    let (advertised, primary) = match standing.expired {
        true => (Vec::new(), Vec::new()),
        false => (record.status.routes.clone(), standing.primary.clone()),
    };
    let reach = match record.gateway {
        None => Reach::Itself,
        Some(_) if standing.expired => Reach::Nowhere,
        Some(gateway) => Reach::Behind(gateway),
    };
    Node {
        name: record.label.to_string(),
        user: record.user.unwrap_or(TAGGED),
        tags: record.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
        addresses: vec![record.ipv4.into(), record.ipv6.into()],
        advertised,
        approved: record.approved_routes.clone(),
        primary,
        attributes: if policy.has_postures() { attributes(&record.hostinfo()) } else { BTreeMap::new() },
        reach,
    }
}

/// What posture conditions may look at, as far as a node reports it.
fn attributes(info: &Hostinfo) -> BTreeMap<String, Attribute> {
    let version = info.ipn_version.split(['-', '+']).next().unwrap_or_default();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u64>().ok());
    // Of the official client's versions those with an odd second number are trials.
    let track = minor.map(|minor| if minor % 2 == 0 { "stable" } else { "unstable" });
    let texts = [
        ("node:os", info.os.to_lowercase()),
        ("node:osVersion", info.os_version.clone()),
        ("node:tsVersion", version.to_owned()),
        ("node:tsReleaseTrack", track.unwrap_or_default().to_owned()),
        ("node:distro", info.distro.to_lowercase()),
        ("node:distroVersion", info.distro_version.clone()),
    ];
    let known = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let texts = known.map(|(name, text)| (name.to_owned(), Attribute::Text(text)));
    let flags = [("node:tsAutoUpdate", Some(info.allows_update)), ("node:tsStateEncrypted", info.state_encrypted)];
    let flags = flags.into_iter().filter_map(|(name, flag)| Some((name.to_owned(), Attribute::Bool(flag?))));
    texts.chain(flags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_may_look_at_what_a_node_reports_of_its_system_and_its_client() {
        let info = r#"{"IPNVersion": "1.90.9-t1-g2", "OS": "Linux", "OSVersion": "6.12", "StateEncrypted": true}"#;
        let found = attributes(&serde_json::from_str(info).unwrap());
        let text = |text: &str| Attribute::Text(text.to_owned());
        let expected = [
            ("node:os", text("linux")),
            ("node:osVersion", text("6.12")),
            ("node:tsAutoUpdate", Attribute::Bool(false)),
            ("node:tsReleaseTrack", text("stable")),
            ("node:tsStateEncrypted", Attribute::Bool(true)),
            ("node:tsVersion", text("1.90.9")),
        ];
        assert_eq!(found, expected.map(|(name, attribute)| (name.to_owned(), attribute)).into());
    }
}
