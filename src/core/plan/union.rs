//! Two ordered maps side by side.

use std::collections::BTreeMap;
use std::iter::Peekable;

/// Walks two maps side by side: each key of either, with what each has for it.
pub(super) fn union<'a, K: Ord, A, B>(
    left: &'a BTreeMap<K, A>,
    right: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<&'a A>, Option<&'a B>)> {
    let mut left = left.iter().peekable();
    let mut right = right.iter().peekable();
    std::iter::from_fn(move || {
        let key = match (left.peek(), right.peek()) {
            (None, None) => return None,
            (Some((key, _)), None) | (None, Some((key, _))) => *key,
            (Some((a, _)), Some((b, _))) => (*a).min(*b),
        };
        Some((key, next_at(&mut left, key), next_at(&mut right, key)))
    })
}

fn next_at<'a, K: Ord + 'a, V: 'a>(
    entries: &mut Peekable<impl Iterator<Item = (&'a K, &'a V)>>,
    key: &K,
) -> Option<&'a V> {
    entries.next_if(|(next, _)| *next == key).map(|(_, value)| value)
}
