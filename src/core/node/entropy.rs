//! Chance, drawn from one seed: what makes two runs with the same seed the same.

use std::fmt;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

/// Draws keys and seeds. Whoever reads its state learns nothing of what was drawn before.
pub(super) struct Entropy(Zeroizing<[u8; 32]>);

impl Entropy {
    /// Goes on from a seed that nobody else knows.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self(Zeroizing::new(seed))
    }

    /// The bytes of a key.
    pub(super) fn key(&mut self) -> [u8; 32] {
        let mut stream = ChaCha20Rng::from_seed(*self.0);
        let mut key = [0; 32];
        stream.fill_bytes(self.0.as_mut_slice());
        stream.fill_bytes(&mut key);
        key
    }

    /// A number.
    pub(super) fn number(&mut self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.key();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_depends_on_the_seed_alone_and_never_repeats() {
        let draw = |seed| {
            let mut entropy = Entropy::new([seed; 32]);
            [entropy.key(), entropy.key(), entropy.key()]
        };
        assert_eq!(draw(1), draw(1));
        let all: std::collections::BTreeSet<_> = draw(1).into_iter().chain(draw(2)).collect();
        assert_eq!(all.len(), 6);
        assert_eq!(format!("{:?}", Entropy::new([7; 32])), "[redacted]");
    }
}
