//! What holds for the whole network and is set while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::Tag;
use crate::types::Lifetime;

/// What holds for the whole network and is set while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Nodes that people add need somebody's approval before they see anybody.
    pub node_approval: bool,
    /// Users that sign in for the first time need somebody's approval, by whatever rule they are let in.
    pub user_approval: bool,
    /// How long the keys of nodes with a tag last; the shortest counts. Those of other nodes with tags do not end.
    pub tag_lifetimes: BTreeMap<Tag, Lifetime>,
}
