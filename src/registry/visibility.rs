//! Who sees whom: the place of the policy.
//!
//! Nodes that see the same peers (themselves left out) form one [`ViewClass`]; what is told of a change is
//! worked out once for each class, not for each node.

use super::view::Shown;
use crate::wire::control::{FilterRule, match_all};

/// Who sees whom, and what their packet filters admit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Every node sees every other and may reach it on any port.
    #[default]
    Everyone,
}

/// The name of a set of viewers who see the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ViewClass(u32);

impl ViewClass {
    /// Sees nobody and admits nobody: a node whose key has expired.
    const NOBODY: Self = Self(0);
    const EVERYONE: Self = Self(1);
}

impl Visibility {
    /// The class of a viewer.
    pub(super) fn class(self, viewer: &Shown) -> ViewClass {
        match self {
            _ if viewer.expired => ViewClass::NOBODY,
            Self::Everyone => ViewClass::EVERYONE,
        }
    }

    /// Whether viewers of a class see a peer. That nobody is a peer of itself is the caller's business.
    pub(super) fn sees(self, class: ViewClass, _peer: &Shown) -> bool {
        match self {
            Self::Everyone => class != ViewClass::NOBODY,
        }
    }

    /// What nodes of a class let in.
    pub(super) fn filter(self, class: ViewClass) -> Vec<FilterRule> {
        match self {
            _ if class == ViewClass::NOBODY => Vec::new(),
            Self::Everyone => match_all(),
        }
    }
}
