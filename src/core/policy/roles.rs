//! Which rules a node takes part in, the other way round than rules keep it: so that what concerns one node is found
//! without a look at every rule.

use super::nodeset::NodeSet;

/// For each slot of the node table, the numbers of source lists and of flows.
#[derive(Clone, Debug, Default)]
pub(super) struct Roles {
    /// The source lists that the node is in.
    lists: Vec<NodeSet>,
    /// The flows that are part of the node's filter.
    flows: Vec<NodeSet>,
    /// The flows of each source list.
    of_list: Vec<Vec<usize>>,
    /// The flows that are about each user's own nodes.
    to_self: NodeSet,
}

impl Roles {
    /// Of flows, each with its list and whether it is about users' own nodes.
    pub(super) fn new(flows: impl Iterator<Item = (usize, bool)>) -> Self {
        let mut roles = Self::default();
        for (number, (list, to_self)) in flows.enumerate() {
            if roles.of_list.len() <= list {
                roles.of_list.resize(list + 1, Vec::new());
            }
            roles.of_list[list].push(number);
            if to_self {
                roles.to_self.insert(number);
            }
        }
        roles
    }

    /// The nodes of a source list were these, and are those.
    pub(super) fn move_list(&mut self, number: usize, old: &NodeSet, new: &NodeSet) {
        shift(&mut self.lists, number, old, new);
    }

    /// The nodes that a flow concerns were these, and are those.
    pub(super) fn move_flow(&mut self, number: usize, old: &NodeSet, new: &NodeSet) {
        shift(&mut self.flows, number, old, new);
    }

    /// The flows that a node is a source of, in no particular order.
    pub(super) fn from(&self, slot: usize) -> impl Iterator<Item = usize> + '_ {
        let lists = self.lists.get(slot).into_iter().flat_map(NodeSet::iter);
        lists.filter_map(|list| self.of_list.get(list)).flatten().copied()
    }

    /// The flows of a source list.
    pub(super) fn of_list(&self, list: usize) -> &[usize] {
        self.of_list.get(list).map(Vec::as_slice).unwrap_or_default()
    }

    /// The flows that are part of a node's filter, in order.
    pub(super) fn to(&self, slot: usize) -> impl Iterator<Item = usize> + '_ {
        self.flows.get(slot).into_iter().flat_map(NodeSet::iter)
    }

    /// The same, and those about users' own nodes.
    pub(super) fn to_or_self(&self, slot: usize) -> NodeSet {
        let mut flows = self.flows.get(slot).cloned().unwrap_or_default();
        flows.unite(&self.to_self);
        flows
    }

    /// The flows that are about users' own nodes.
    pub(super) fn to_self(&self) -> &NodeSet {
        &self.to_self
    }
}

fn shift(sets: &mut Vec<NodeSet>, number: usize, old: &NodeSet, new: &NodeSet) {
    for slot in old.minus(new) {
        if let Some(set) = sets.get_mut(slot) {
            set.remove(number);
        }
    }
    for slot in new.minus(old) {
        if sets.len() <= slot {
            sets.resize(slot + 1, NodeSet::default());
        }
        sets[slot].insert(number);
    }
}
