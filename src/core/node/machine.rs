//! What tells this machine from another.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What tells a machine from another. Written beside the keys, so that a disk which was copied is noticed.
///
/// Neither fact alone will do: machine IDs are made anew on a machine that stays (images without one, containers, whoever
/// runs `systemd-machine-id-setup`), network cards are replaced, disks move. Where both are others than before, the disk
/// is in another machine *and* that was set up as one of its own, which is what cloning a server comes to. A copy that
/// kept its machine ID is for the coordinator to notice: two machines with one key take each other's place there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Machine {
    /// A hash of the machine ID, which is nobody else's to know; empty where there is none that lasts.
    id: String,
    /// The hardware addresses of its network cards.
    cards: BTreeSet<String>,
}

impl Machine {
    /// A machine of this machine ID, where it has one that lasts, and with these hardware addresses.
    pub fn new(id: Option<&str>, cards: BTreeSet<String>) -> Self {
        let hash = |id: &str| {
            let digest = Sha256::new().chain_update(b"warren machine").chain_update(id).finalize();
            data_encoding::HEXLOWER.encode(&digest)
        };
        Self { id: id.map(hash).unwrap_or_default(), cards }
    }

    /// Whether enough is known to tell it from another.
    pub(super) fn is_known(&self) -> bool {
        !self.id.is_empty() && !self.cards.is_empty()
    }

    /// Whether this is certainly not that one.
    pub(super) fn is_other_than(&self, stored: &Self) -> bool {
        let both = self.is_known() && stored.is_known();
        both && self.id != stored.id && self.cards.is_disjoint(&stored.cards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_another_one_where_both_its_id_and_all_its_cards_are_others() {
        let (one, two) = ("0123456789abcdef0123456789abcdef", "ffffffffffffffffffffffffffffffff");
        let machine = |id, cards: &[&str]| Machine::new(id, cards.iter().map(|card| (*card).to_owned()).collect());
        let here = machine(Some(one), &["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        assert!(here.is_known() && !here.id.contains(one));
        for (other, is_other) in [
            (machine(Some(two), &["02:00:00:00:00:03"]), true),
            // The ID was made anew, or a card was added or replaced, or the disk moved.
            (machine(Some(two), &["02:00:00:00:00:02"]), false),
            (machine(Some(one), &["02:00:00:00:00:03"]), false),
            // Nothing is known of one side.
            (machine(None, &["02:00:00:00:00:03"]), false),
            (machine(Some(two), &[]), false),
            (Machine::default(), false),
        ] {
            assert_eq!((other.is_other_than(&here), here.is_other_than(&other)), (is_other, is_other), "{other:?}");
        }
    }
}
