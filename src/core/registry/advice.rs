//! What is allowed and most likely not meant: said at the command, in the log and at `/health`, and never refused.

use std::collections::BTreeMap;

use super::record::Tag;
use super::state::State;
use crate::types::NodeId;

/// Names in one sentence; more of them help nobody.
const SHOWN: usize = 10;

impl State {
    /// What the policy in force and the network make of each other.
    pub fn advice(&self) -> Vec<String> {
        let Some(compiled) = self.compiled() else { return Vec::new() };
        let mut advice = Vec::new();
        let unknown: Vec<String> = compiled.unknown_users().into_iter().collect();
        if !unknown.is_empty() {
            advice.push(format!("the policy names users that nobody is: {}", first(&unknown)));
        }
        let mut without_owners: BTreeMap<&Tag, Vec<String>> = BTreeMap::new();
        for record in self.nodes().map(|node| node.record) {
            for tag in record.tags.iter().filter(|tag| !compiled.policy().has_tag(tag.as_str())) {
                without_owners.entry(tag).or_default().push(record.label.to_string());
            }
        }
        advice.extend(without_owners.into_iter().take(SHOWN).map(|(tag, nodes)| {
            format!(
                "the policy's tagOwners does not have {tag}, so that no rule can name it; nodes that have it: {}",
                first(&nodes)
            )
        }));
        advice
    }

    /// What to know of tags before they are of use.
    pub fn advice_on_tags(&self, tags: &[Tag]) -> Vec<String> {
        let Some(compiled) = self.compiled() else { return Vec::new() };
        let unknown = tags.iter().filter(|tag| !compiled.policy().has_tag(tag.as_str()));
        unknown.map(|tag| format!("the policy's tagOwners does not have {tag}, so that no rule can name it")).collect()
    }

    /// What to know of a node whose owner has just changed.
    pub fn advice_on_node(&self, id: NodeId) -> Vec<String> {
        let (Some(compiled), Some(node)) = (self.compiled(), self.node(id)) else { return Vec::new() };
        let mut advice = self.advice_on_tags(&node.record.tags);
        if !node.expired && self.nodes().len() > 1 && compiled.is_alone(id) {
            let name = &node.record.label;
            advice.push(format!("by the policy in force {name} reaches nobody, and nobody reaches it"));
        }
        advice
    }
}

fn first(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
