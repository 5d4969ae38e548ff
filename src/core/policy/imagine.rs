//! A network made up for a policy, so that its tests can run where no network is: one node for every user and
//! every tag that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{NodeId, OVERLAY_V4, OVERLAY_V6, Role, UserId};

use super::document::Policy;
use super::login::canonical_login;
use super::selector::Selector;
use super::ssh::local_part_domain;
use super::topology::{Node, Topology, User};

/// How far into the overlay imagined addresses begin: past those that policies usually write out.
const FIRST: u32 = 1 << 21;

impl Topology {
    /// One untagged node for each user and one node for each tag that the policy names.
    pub fn imagined(policy: &Policy) -> Self {
        let named = policy.selectors().chain(policy.groups.values().flatten());
        let logins = named.filter_map(|selector| match selector {
            Selector::User(name) => Some(name.clone()),
            Selector::Domain(domain) => Some(format!("somebody@{domain}")),
            Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_) => None,
        });
        let accounts = policy.ssh.iter().flat_map(|rule| &rule.users);
        let domains = accounts.filter_map(|user| local_part_domain(&user.value));
        let logins = logins.chain(domains.map(|domain| format!("somebody@{domain}")));
        let logins: BTreeSet<_> = logins.filter_map(|login| canonical_login(&login)).collect();

        let mut topology = Self::default();
        for (number, login) in (1..).zip(logins) {
            topology.add(Node { name: login.clone(), user: UserId(number), ..Node::default() });
            topology.users.insert(UserId(number), User { login, role: Role::Member });
        }
        for tag in policy.tag_owners.keys() {
            topology.add(Node { name: tag.clone(), tags: vec![tag.clone()], ..Node::default() });
        }
        topology
    }

    /// The same network, with one made up for each user and tag of a policy that has none.
    pub(super) fn completed(mut self, policy: &Policy) -> Self {
        /// Past every number that was ever given.
        const FAR: u64 = 1 << 62;
        let imagined = Self::imagined(policy);
        let known = |login: &str| self.users.iter().find(|(_, user)| user.login == login).map(|(id, _)| *id);
        let ids: BTreeMap<UserId, UserId> = imagined
            .users
            .iter()
            .map(|(id, user)| (*id, known(&user.login).unwrap_or(UserId(FAR.saturating_add(id.0)))))
            .collect();
        let tags: BTreeSet<&String> = self.nodes.values().flat_map(|node| &node.tags).collect();
        let owners: BTreeSet<UserId> =
            self.nodes.values().filter(|node| !node.is_tagged()).map(|node| node.user).collect();
        let is_missing = |node: &Node| match node.tags.first() {
            Some(tag) => !tags.contains(tag),
            None => ids.get(&node.user).is_some_and(|user| !owners.contains(user)),
        };
        let missing = imagined.nodes.iter().filter(|(_, node)| is_missing(node));
        let missing: Vec<(NodeId, Node)> = missing
            .map(|(id, node)| {
                let user = ids.get(&node.user).copied().unwrap_or_default();
                (NodeId(FAR.saturating_add(id.0)), Node { user, ..node.clone() })
            })
            .collect();
        for (id, user) in imagined.users {
            if let Some(id) = ids.get(&id) {
                self.users.entry(*id).or_insert(user);
            }
        }
        self.nodes.extend(missing);
        self
    }

    fn add(&mut self, node: Node) {
        let number = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let offset = FIRST.saturating_add(number);
        let v4: IpAddr = Ipv4Addr::from(u32::from(OVERLAY_V4.network()).saturating_add(offset)).into();
        let v6: IpAddr = Ipv6Addr::from(u128::from(OVERLAY_V6.network()).saturating_add(offset.into())).into();
        self.nodes.insert(NodeId(u64::from(number) + 1), Node { addresses: vec![v4, v6], ..node });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Compiled;

    fn check(port: u16) -> Result<(), String> {
        let text = format!(
            r#"{{
                "groups": {{"group:a": ["ada@example.com", "grace@"]}}, "tagOwners": {{"tag:web": []}},
                "acls": [{{"action": "accept", "src": ["group:a"], "dst": ["tag:web:{port}"]}}],
                "ssh": [{{"action": "accept", "src": ["group:a"], "dst": ["tag:web"], "users": ["localpart:*@example.org"]}}],
                "tests": [{{"src": "grace@", "accept": ["tag:web:443"]}}]
            }}"#
        );
        let policy = Arc::new(Policy::parse(text.as_bytes()).map_err(|errors| errors.to_string())?);
        let topology = Topology::imagined(&policy);
        Compiled::new(policy, topology).check().map_err(|errors| errors.to_string())
    }

    #[test]
    fn tests_run_without_a_network() {
        assert_eq!(check(443), Ok(()));
        let refused = check(80).unwrap_err();
        assert!(refused.contains("grace@ -> tag:web:443: expected allowed, got denied"), "{refused}");
    }
}
