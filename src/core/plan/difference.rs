//! What differs between two maps.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Each key whose value is not the same in both, with its value before and after. One walk through both, since ten
/// thousand entries of which one differs are the rule.
pub fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> Vec<(&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return found,
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let (before_value, after_value) = (before.map(|(_, value)| value), after.map(|(_, value)| value));
        if let (true, Some((key, _))) = (before_value != after_value, before.or(after)) {
            found.push((key, before_value, after_value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_come_go_or_change_are_told_and_no_others() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c'), (7, 'g')]);
        let new = BTreeMap::from([(0, 'z'), (1, 'a'), (3, 'd'), (7, 'g'), (9, 'i')]);
        let expected =
            [(&0, None, Some(&'z')), (&2, Some(&'b'), None), (&3, Some(&'c'), Some(&'d')), (&9, None, Some(&'i'))];
        assert_eq!(differences(&old, &new), expected);
        assert_eq!(differences(&old, &old), []);
        assert_eq!(differences(&BTreeMap::new(), &old).len(), 4);
    }
}
