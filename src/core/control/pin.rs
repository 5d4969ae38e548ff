//! Whom we take for the coordinator.

use serde::{Deserialize, Serialize};

use crate::types::{Fingerprint, MachinePublic};

/// What is known of the coordinator's key before it is talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pin {
    /// Nothing: the first key that is met is taken, and no other from then on.
    #[default]
    FirstUse,
    /// A person said its short form.
    Told(Fingerprint),
    /// This is it.
    Known {
        key: MachinePublic,
        /// Whether a person's word stands behind it, and not the first meeting alone.
        vouched: bool,
    },
    /// It was known, and what was known is lost: nobody is taken until a person says who it is.
    Lost,
}

impl Pin {
    /// Whether a server with this key is the coordinator.
    pub fn takes(&self, found: &MachinePublic) -> bool {
        match self {
            Self::FirstUse => true,
            Self::Told(told) => *told == Fingerprint::of(found),
            Self::Known { key, .. } => key == found,
            Self::Lost => false,
        }
    }

    /// The key, where it is known.
    pub const fn key(&self) -> Option<&MachinePublic> {
        match self {
            Self::Known { key, .. } => Some(key),
            Self::FirstUse | Self::Told(_) | Self::Lost => None,
        }
    }

    /// The short form of the key, where it is known or was told.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::FirstUse | Self::Lost => None,
            Self::Told(told) => Some(*told),
            Self::Known { key, .. } => Some(Fingerprint::of(key)),
        }
    }

    /// Whether a person said who the coordinator is. Then nobody else has to vouch for it.
    pub const fn is_vouched(&self) -> bool {
        match self {
            Self::FirstUse | Self::Lost => false,
            Self::Told(_) => true,
            Self::Known { vouched, .. } => *vouched,
        }
    }

    /// The coordinator proved to hold this key, or announced it under the one that is known.
    pub const fn learn(&mut self, key: MachinePublic) {
        *self = Self::Known { key, vouched: self.is_vouched() };
    }

    /// A person says who the coordinator is. Whether that is somebody else than before.
    pub fn tell(&mut self, told: Fingerprint) -> bool {
        match self {
            Self::Known { key, vouched } if Fingerprint::of(key) == told => {
                *vouched = true;
                false
            }
            Self::FirstUse | Self::Told(_) | Self::Known { .. } | Self::Lost => {
                let is_new = *self != Self::Told(told);
                *self = Self::Told(told);
                is_new
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(n: u8) -> MachinePublic {
        MachinePublic::from_bytes([n; 32])
    }

    #[test]
    fn the_first_key_is_taken_and_no_other_from_then_on() {
        let mut pin = Pin::FirstUse;
        assert!(pin.takes(&key(1)) && pin.takes(&key(2)));
        pin.learn(key(1));
        assert!(pin.takes(&key(1)) && !pin.takes(&key(2)) && !pin.is_vouched());
    }

    #[test]
    fn a_persons_word_is_checked_and_stays_with_the_key_and_its_successor() {
        let mut pin = Pin::FirstUse;
        assert!(pin.tell(Fingerprint::of(&key(1))));
        assert!(pin.takes(&key(1)) && !pin.takes(&key(2)));
        pin.learn(key(1));
        pin.learn(key(3));
        assert_eq!(pin, Pin::Known { key: key(3), vouched: true });
    }

    #[test]
    fn where_the_key_is_lost_nobody_is_taken_before_a_persons_word() {
        let mut pin = Pin::Lost;
        assert!(!pin.takes(&key(1)) && !pin.is_vouched() && pin.fingerprint().is_none());
        assert!(pin.tell(Fingerprint::of(&key(1))));
        assert!(pin.takes(&key(1)) && !pin.takes(&key(2)));
    }

    #[test]
    fn a_word_for_the_known_key_vouches_for_it_and_one_for_another_replaces_it() {
        let mut pin = Pin::Known { key: key(1), vouched: false };
        assert!(!pin.tell(Fingerprint::of(&key(1))));
        assert_eq!(pin, Pin::Known { key: key(1), vouched: true });
        assert!(pin.tell(Fingerprint::of(&key(2))));
        assert!(!pin.takes(&key(1)) && pin.takes(&key(2)));
    }
}
