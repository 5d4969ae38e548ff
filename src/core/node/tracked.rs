//! What is made of what, and whether it is up to date.
//!
//! Nobody marks anything as stale: each input counts its changes, and each thing that is computed remembers which state
//! of its inputs it was computed from.

use std::ops::Deref;

/// A value that counts its changes.
#[derive(Debug, Default)]
pub(super) struct Tracked<T> {
    value: T,
    version: u64,
}

impl<T> Tracked<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { value, version: 0 }
    }

    /// Which state of the value this is.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// The value, to be changed.
    pub(super) const fn edit(&mut self) -> &mut T {
        self.version += 1;
        &mut self.value
    }

    /// Lets something be done with the value that says whether it changed it; says so too.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let is_changed = change(&mut self.value);
        self.version += u64::from(is_changed);
        is_changed
    }

    /// The value is this; says whether that is a change.
    pub(super) fn set(&mut self, value: T) -> bool
    where
        T: PartialEq,
    {
        self.update(|held| {
            let is_changed = *held != value;
            *held = value;
            is_changed
        })
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The state of the inputs that something was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inputs<const N: usize>(pub(super) [u64; N]);

/// From which state of its inputs something was computed last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed<const N: usize>(Option<Inputs<N>>);

impl<const N: usize> Computed<N> {
    /// Never yet.
    pub(super) const NEVER: Self = Self(None);

    /// Computed from these.
    pub(super) const fn from(inputs: Inputs<N>) -> Self {
        Self(Some(inputs))
    }

    /// Whether these are the inputs that it was computed from.
    pub(super) fn is_current(&self, inputs: Inputs<N>) -> bool {
        self.0 == Some(inputs)
    }

    /// Whether it has to be computed anew from these, which is taken as done.
    pub(super) fn renew(&mut self, inputs: Inputs<N>) -> bool {
        self.0.replace(inputs) != Some(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_is_stale_exactly_while_an_input_has_changed_since() {
        let (mut one, mut two) = (Tracked::new(1), Tracked::new(vec![2]));
        let mut computed = Computed::NEVER;
        let inputs = |one: &Tracked<i32>, two: &Tracked<Vec<i32>>| Inputs([one.version(), two.version()]);
        assert!(computed.renew(inputs(&one, &two)), "it never was");
        assert!(!computed.renew(inputs(&one, &two)));

        assert!(!one.set(1) && !two.update(|_| false));
        assert!(computed.is_current(inputs(&one, &two)));

        assert!(one.set(3));
        assert!(!computed.is_current(inputs(&one, &two)));
        assert!(computed.renew(inputs(&one, &two)) && !computed.renew(inputs(&one, &two)));
        two.edit().push(4);
        assert!(computed.renew(inputs(&one, &two)));
        assert_eq!((*one, two.len()), (3, 2));
    }
}
