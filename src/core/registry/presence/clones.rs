//! Whether two machines use one node's key: a disk that was copied.
//!
//! Each of the two displaces the other's stream and asks again, for ever. A client draws a disco key when it starts and
//! never takes up an earlier one, so keys that come back by turns are two machines; copies of a running machine have the
//! same, and are known by the pace at which streams displace one another. Of the two, the one that follows its map stays and
//! the other is put off, so that what is said of the node does not change by turns either.

use std::time::Duration;

use super::add;
use crate::types::{DiscoPublic, Timestamp};

/// Disco keys that are remembered: of two machines, and of one that was started again meanwhile.
const KEYS: usize = 4;
/// Returns of an earlier key that make two machines of one; a client that starts again while a message of its former life is
/// on the way causes two.
const RETURNS: usize = 4;
/// Streams displaced within [`SOON`] of their beginning that make two machines of one.
const DISPLACED: usize = 20;
const SOON: Duration = Duration::from_secs(5);
/// Signs count for this long.
const COUNTED: Duration = Duration::from_secs(300);
/// And the finding, once made.
const FOUND: Duration = Duration::from_secs(600);
/// How long the one that is put off should wait: two requests a minute for both.
pub(in crate::registry) const PUT_OFF: Duration = Duration::from_secs(60);

/// The signs that a node is two machines.
#[derive(Debug, Default)]
pub(super) struct CloneDetector {
    /// The disco keys that were heard, the last one last.
    keys: Vec<DiscoPublic>,
    returns: Vec<Timestamp>,
    displaced: Vec<Timestamp>,
    /// The key of whoever follows the map.
    holder: DiscoPublic,
    opened: Option<Timestamp>,
    found: Option<Timestamp>,
}

impl CloneDetector {
    /// A message of the node came. `true` where it is the one that gives the second machine away.
    pub(super) fn hear(&mut self, key: DiscoPublic, now: Timestamp) -> bool {
        if key.is_zero() || self.keys.last() == Some(&key) {
            return false;
        }
        let returned = self.keys.contains(&key);
        self.keys.retain(|known| *known != key);
        // Nearly all nodes ever have one.
        self.keys.reserve_exact(1);
        self.keys.push(key);
        if self.keys.len() > KEYS {
            self.keys.remove(0);
        }
        returned && count(&mut self.returns, now) >= RETURNS && self.find(now)
    }

    /// The node's stream begins, in place of one that was open or not. `true` where that gives the second machine away.
    pub(super) fn handle_opened(&mut self, displaces: bool, now: Timestamp) -> bool {
        self.holder = self.keys.last().copied().unwrap_or_default();
        let before = self.opened.replace(now);
        let is_soon = before.is_some_and(|before| now < add(before, SOON));
        displaces && is_soon && count(&mut self.displaced, now) >= DISPLACED && self.find(now)
    }

    /// Whether a message with this key is to be put off, because the other machine follows the map.
    pub(super) fn puts_off(&self, key: &DiscoPublic, now: Timestamp) -> bool {
        let is_other = *key != self.holder && self.keys.contains(key);
        let is_soon = self.opened.is_some_and(|opened| now < add(opened, PUT_OFF));
        self.are_two(now) && (is_other || *key == self.holder && self.displaced.len() >= DISPLACED && is_soon)
    }

    /// Whether two machines were found.
    pub(super) fn are_two(&self, now: Timestamp) -> bool {
        self.found.is_some_and(|found| found <= now && now < add(found, FOUND))
    }

    /// The clock was set.
    pub(super) fn move_on(&mut self, move_on: impl Fn(Timestamp) -> Timestamp + Copy) {
        self.returns.iter_mut().chain(&mut self.displaced).for_each(|at| *at = move_on(*at));
        self.opened = self.opened.map(move_on);
        self.found = self.found.map(move_on);
    }

    /// Whether two machines were found, when time was last looked at.
    pub(super) const fn were_two(&self) -> bool {
        self.found.is_some()
    }

    /// Forgets a finding that is old.
    pub(super) fn handle_time(&mut self, now: Timestamp) {
        self.found = self.found.filter(|_| self.are_two(now));
    }

    /// `true` where that is news.
    fn find(&mut self, now: Timestamp) -> bool {
        let is_news = !self.are_two(now);
        self.found = Some(now);
        is_news
    }
}

/// Counts one sign more, and how many there were of late.
fn count(signs: &mut Vec<Timestamp>, now: Timestamp) -> usize {
    signs.retain(|at| *at <= now && now < add(*at, COUNTED));
    if signs.len() < DISPLACED {
        signs.push(now);
    }
    signs.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> DiscoPublic {
        DiscoPublic::from_bytes([number; 32])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn keys_that_come_back_by_turns_are_two_machines_and_the_one_that_follows_stays() {
        let mut clones = CloneDetector::default();
        let found: Vec<bool> = (0..6)
            .map(|turn| {
                let found = clones.hear(key(1 + turn % 2), at(turn.into()));
                clones.handle_opened(turn > 0, at(turn.into()));
                found
            })
            .collect();
        assert_eq!(found, [false, false, false, false, false, true]);
        assert!(clones.are_two(at(6)));
        assert!(clones.puts_off(&key(1), at(6)) && !clones.puts_off(&key(2), at(6)));
        assert!(!clones.puts_off(&key(9), at(6)), "a client that starts again is let in");
        assert!(!clones.are_two(at(5 + 600)));
    }

    #[test]
    fn a_client_that_starts_again_and_again_is_one_machine() {
        let mut clones = CloneDetector::default();
        for turn in 0..100 {
            assert!(!clones.hear(key(1 + turn), at(turn.into())));
            assert!(!clones.handle_opened(false, at(turn.into())));
        }
        // A message of its former life was on the way still.
        assert!(!clones.hear(key(99), at(200)) && !clones.hear(key(100), at(201)));
        assert!(!clones.are_two(at(201)));
    }

    #[test]
    fn copies_of_a_running_machine_are_known_by_their_pace_and_slowed() {
        let mut clones = CloneDetector::default();
        clones.hear(key(1), at(0));
        let found = (0..=20).map(|turn| clones.handle_opened(turn > 0, at(turn))).position(|found| found);
        assert_eq!(found, Some(DISPLACED));
        assert!(clones.puts_off(&key(1), at(21)) && !clones.puts_off(&key(1), at(20 + 60)));
        // A machine whose network changes every half minute is no two.
        let mut clones = CloneDetector::default();
        assert!((0..100).all(|turn| !clones.handle_opened(true, at(turn * 30))));
    }
}
