//! Subnet routes: who serves which, and who is the one router of each.
//!
//! A prefix may be in the allowed IPs of one peer only, so of the nodes that serve a subnet one is
//! *primary*: the one that is, while it stays online, else the first that is online. Exit routes
//! (0.0.0.0/0, ::/0) have no primary: each client chooses its exit node.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::types::{IpNet, NodeId};

/// A route, for administrators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    pub prefix: IpNet,
    /// Who offers it, or is approved for it.
    pub node: NodeId,
    /// Whether the node offers it.
    pub offered: bool,
    /// Whether an administrator approved it.
    pub approved: bool,
    /// Whether peers send the subnet's packets to this node.
    pub primary: bool,
}

/// Who serves which subnet.
#[derive(Debug, Default)]
pub(super) struct Routes {
    subnets: BTreeMap<IpNet, Subnet>,
}

#[derive(Debug, Default)]
struct Subnet {
    servers: BTreeSet<NodeId>,
    primary: Option<NodeId>,
}

impl Routes {
    /// Takes note that a node serves exactly `now` of the subnets in `before` and `now`, elects routers
    /// anew, and returns the nodes whose primary routes changed.
    pub(super) fn set(
        &mut self,
        node: NodeId,
        before: &BTreeSet<IpNet>,
        now: &BTreeSet<IpNet>,
        is_online: impl Fn(NodeId) -> bool,
    ) -> BTreeSet<NodeId> {
        let mut changed = BTreeSet::new();
        for prefix in before.union(now) {
            let subnet = self.subnets.entry(*prefix).or_default();
            if now.contains(prefix) {
                subnet.servers.insert(node);
            } else {
                subnet.servers.remove(&node);
            }
            let elected = subnet.elect(&is_online);
            if elected != subnet.primary {
                changed.extend(subnet.primary);
                changed.extend(elected);
                subnet.primary = elected;
            }
            if subnet.servers.is_empty() {
                self.subnets.remove(prefix);
            }
        }
        changed
    }

    /// Who serves a subnet.
    pub(super) fn servers(&self, prefix: &IpNet) -> impl Iterator<Item = NodeId> + '_ {
        self.subnets.get(prefix).into_iter().flat_map(|subnet| subnet.servers.iter().copied())
    }

    /// Who the one router of a subnet is.
    pub(super) fn primary(&self, prefix: &IpNet) -> Option<NodeId> {
        self.subnets.get(prefix)?.primary
    }
}

impl Subnet {
    fn elect(&self, is_online: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let stays = self.primary.filter(|primary| self.servers.contains(primary));
        stays
            .filter(|primary| is_online(*primary))
            .or_else(|| self.servers.iter().copied().find(|server| is_online(*server)))
            .or(stays)
            .or_else(|| self.servers.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    fn nets() -> BTreeSet<IpNet> {
        BTreeSet::from(["10.0.0.0/8".parse().unwrap()])
    }

    fn primary(routes: &Routes) -> Option<NodeId> {
        routes.primary(nets().first().unwrap())
    }

    #[test]
    fn the_primary_router_stays_until_it_goes_offline_and_another_is_online() {
        let (none, mut routes) = (BTreeSet::new(), Routes::default());
        routes.set(TWO, &none, &nets(), |_| true);
        assert_eq!(primary(&routes), Some(TWO));
        assert!(routes.set(ONE, &none, &nets(), |_| true).is_empty(), "a second router changes nothing");

        let changed = routes.set(TWO, &nets(), &nets(), |node| node == ONE);
        assert_eq!((primary(&routes), changed), (Some(ONE), BTreeSet::from([ONE, TWO])));

        assert!(routes.set(ONE, &nets(), &nets(), |_| false).is_empty(), "nobody is better");
        assert_eq!(primary(&routes), Some(ONE));
    }

    #[test]
    fn a_subnet_that_nobody_serves_is_forgotten() {
        let (none, mut routes) = (BTreeSet::new(), Routes::default());
        routes.set(ONE, &none, &nets(), |_| false);
        assert_eq!(primary(&routes), Some(ONE), "an offline router is better than none");
        assert_eq!(routes.set(ONE, &nets(), &none, |_| true), BTreeSet::from([ONE]));
        assert!(routes.subnets.is_empty());
    }
}
