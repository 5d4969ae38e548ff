//! Sets of nodes as bits, one per slot of the compiled policy's node table.

use std::fmt;

/// A set of nodes. Means something to the compiled policy that gave it alone, until that is compiled anew; one
/// that a node was removed from since may name the node that took its place besides.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeSet {
    /// No trailing zero words, so that equal sets are equal values.
    words: Vec<u64>,
}

impl NodeSet {
    pub(super) fn insert(&mut self, slot: usize) {
        if self.words.len() <= slot / 64 {
            self.words.resize(slot / 64 + 1, 0);
        }
        self.words[slot / 64] |= 1 << (slot % 64);
    }

    pub(super) fn remove(&mut self, slot: usize) {
        if let Some(word) = self.words.get_mut(slot / 64) {
            *word &= !(1 << (slot % 64));
        }
        self.trim();
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.words.get(slot / 64).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    /// Whether there is nobody in it.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Adds every member of `other`.
    pub fn unite(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Keeps only members of `other`.
    pub(super) fn intersect(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        for (word, kept) in self.words.iter_mut().zip(&other.words) {
            *word &= kept;
        }
        self.trim();
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.intersect(other);
        both
    }

    /// The members in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| bits(index, *word))
    }

    /// The members that `other` lacks, in order.
    pub(super) fn minus<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = usize> + 's {
        let lacking = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(lacking).enumerate().flat_map(|(index, (word, lacking))| bits(index, word & !lacking))
    }

    fn trim(&mut self) {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

/// The members in one word.
fn bits(index: usize, word: u64) -> impl Iterator<Item = usize> {
    let rest = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
    let first = Some(word).filter(|word| *word != 0);
    std::iter::successors(first, rest).map(move |word| index * 64 + word.trailing_zeros() as usize)
}

impl FromIterator<usize> for NodeSet {
    fn from_iter<I: IntoIterator<Item = usize>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_node_set_behaves_like_a_sorted_set(
            a in prop::collection::btree_set(0usize..300, 0..40),
            b in prop::collection::btree_set(0usize..300, 0..40),
        ) {
            let set = |slots: &BTreeSet<usize>| slots.iter().copied().collect::<NodeSet>();
            let list = |set: &NodeSet| set.iter().collect::<Vec<_>>();
            prop_assert_eq!(list(&set(&a)), a.iter().copied().collect::<Vec<_>>());

            let mut union = set(&a);
            union.unite(&set(&b));
            prop_assert_eq!(union, set(&a.union(&b).copied().collect()));
            prop_assert_eq!(set(&a).intersection(&set(&b)), set(&a.intersection(&b).copied().collect()));
            let minus: Vec<usize> = set(&a).minus(&set(&b)).collect();
            prop_assert_eq!(minus, a.difference(&b).copied().collect::<Vec<_>>());

            let mut rest = set(&a);
            b.iter().for_each(|slot| rest.remove(*slot));
            prop_assert_eq!(rest, set(&a.difference(&b).copied().collect()));
        }
    }
}
