//! What a policy decides about a node before any other node is looked at: approved routes, attributes, tags.

use std::collections::BTreeSet;

use crate::types::{IpNet, NodeId, UserId};
use crate::wire::control::CapMap;

use super::compile::Compiled;
use super::document::Policy;
use super::login::canonical_login;
use super::selector::Selector;
use super::topology::{Node, is_subnet};

/// The attribute that takes a node's IPv4 address away.
const DISABLE_IPV4: &str = "disable-ipv4";
/// What comes with an attribute that needs the help of others.
const COMPANIONS: &[(&str, &[&str])] = &[(
    "funnel",
    &["https://tailscale.com/cap/funnel-ports?ports=443,8443,10000", "https://tailscale.com/cap/warn-funnel-no-https"],
)];

impl Policy {
    /// The advertised routes that are approved: by hand, or because an approver of a covering prefix owns the
    /// node. Exit routes have approvers of their own.
    pub(super) fn approved(&self, node: &Node, means: impl Fn(&Selector) -> bool) -> Vec<IpNet> {
        let is_approver = |owners: &[Selector]| owners.iter().any(&means);
        let automatic = |route: &IpNet| {
            if is_subnet(route) {
                self.approvers.routes.iter().any(|(prefix, owners)| prefix.contains(route) && is_approver(owners))
            } else {
                is_approver(&self.approvers.exit)
            }
        };
        let routes: BTreeSet<IpNet> = node.advertised.iter().map(IpNet::trunc).collect();
        routes.into_iter().filter(|route| node.approved.contains(route) || automatic(route)).collect()
    }

    pub(super) fn disables_ipv4(&self, means: impl Fn(&Selector) -> bool) -> bool {
        let disabling = |entry: &&super::document::NodeAttributes| entry.attributes.contains_key(DISABLE_IPV4);
        self.node_attributes.iter().filter(disabling).any(|entry| entry.targets.iter().any(&means))
    }

    /// Every selector in use.
    pub(super) fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let rules = self.rules.iter().flatten();
        let rules = rules.flat_map(|rule| rule.sources.iter().chain(rule.targets.iter()).chain(&rule.via));
        let approvers = self.approvers.routes.iter().flat_map(|(_, owners)| owners).chain(&self.approvers.exit);
        let attributes = self.node_attributes.iter().flat_map(|entry| &entry.targets);
        let ssh = self.ssh.iter().flat_map(|rule| rule.sources.iter().chain(&rule.targets));
        let owners = self.tag_owners.values().flatten();
        let probes = self.tests.iter().flat_map(|test| test.accept.iter().chain(&test.deny));
        let probes = probes.filter_map(|probe| probe.target.as_ref().ok()).map(|(selector, _)| selector);
        let named = self.tests.iter().map(|test| &test.source);
        let named = named.chain(self.ssh_tests.iter().flat_map(|test| test.targets.iter().chain([&test.source])));
        let named = named.filter_map(|named| named.selector.as_ref().ok());
        rules.chain(approvers).chain(attributes).chain(ssh).chain(owners).chain(probes).chain(named)
    }
}

impl Compiled {
    /// The node's advertised routes that are approved, exit routes included.
    pub fn approved_routes(&self, id: NodeId) -> &[IpNet] {
        self.place_of(id).map(|place| place.routes.as_slice()).unwrap_or_default()
    }

    /// The addresses the node goes by: none of IPv4 where `nodeAttrs` disable it.
    pub fn addresses(&self, id: NodeId) -> &[std::net::IpAddr] {
        self.place_of(id).map(|place| place.addresses.as_slice()).unwrap_or_default()
    }

    /// What `nodeAttrs` give to the node itself, for its `CapMap`.
    pub fn attributes(&self, id: NodeId) -> CapMap {
        let mut attributes = CapMap::new();
        for entry in &self.policy().node_attributes {
            if entry.targets.iter().any(|target| self.means(target, id)) {
                attributes.extend(entry.attributes.iter().map(|(name, args)| (name.clone(), args.clone())));
            }
        }
        for (name, companions) in COMPANIONS {
            if attributes.contains_key(*name) {
                attributes.extend(companions.iter().map(|companion| ((*companion).to_owned(), None)));
            }
        }
        attributes
    }

    /// The pools that the node's IPv4 address is to be drawn from; none means the whole overlay.
    pub fn address_pools(&self, id: NodeId) -> Vec<IpNet> {
        let entries = self.policy().node_attributes.iter();
        let meant = entries.filter(|entry| entry.targets.iter().any(|target| self.means(target, id)));
        meant.flat_map(|entry| entry.ip_pool.iter().copied()).collect()
    }

    /// Whether somebody may give a node the tag: a user who owns it, or a node whose tags own it.
    pub fn may_tag(&self, user: UserId, tags: &[String], tag: &str) -> bool {
        let owners = self.policy().tag_owners.get(tag).map(Vec::as_slice).unwrap_or_default();
        let owns = |owner: &Selector| match owner {
            Selector::Tag(owner) => tags.contains(owner),
            owner @ (Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Auto(_)) => tags.is_empty() && self.means_user(owner, user),
        };
        owners.iter().any(owns)
    }

    /// The users of a policy that nobody answers to, for a warning: most often a misspelt login.
    pub fn unknown_users(&self) -> BTreeSet<String> {
        let named = self.policy().selectors().chain(self.policy().groups.values().flatten());
        let known: BTreeSet<_> = self.users().values().filter_map(|user| canonical_login(&user.login)).collect();
        let is_known = |name: &str| canonical_login(name).is_some_and(|name| known.contains(&name));
        let users = named.filter_map(|selector| match selector {
            Selector::User(name) if !is_known(name) => Some(name.clone()),
            Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_) => None,
        });
        users.collect()
    }
}
