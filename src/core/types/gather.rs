//! Many changes, one consequence.

use std::time::{Duration, Instant};

/// Gathers changes that come in crowds, and says when to act on all of them: a moment after the first, and in a storm at
/// a pace that slows down, so that whatever follows costs little however often something changes.
#[derive(Clone, Debug)]
pub struct Gather {
    moment: Duration,
    least: Duration,
    most: Duration,
    /// The pause between this time and the next.
    pause: Duration,
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Gather {
    /// Waits for a `moment` after the first change, and between two times for `least`, doubled up to `most` while changes
    /// go on.
    pub const fn new(moment: Duration, least: Duration, most: Duration) -> Self {
        Self { moment, least, most, pause: least, due: None, last: None }
    }

    /// Something changed.
    pub fn want(&mut self, now: Instant) {
        let soon = now + self.moment;
        let at = self.last.map_or(soon, |last| soon.max(last + self.pause));
        self.due.get_or_insert(at);
    }

    /// Whether it is time to act; true once.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.due.take_if(|due| *due <= now).is_none() {
            return false;
        }
        let storms = self.last.is_some_and(|last| now.saturating_duration_since(last) <= 2 * self.pause);
        self.pause = if storms { (2 * self.pause).min(self.most) } else { self.least };
        self.last = Some(now);
        true
    }

    /// Nothing is to be done any more.
    pub const fn forget(&mut self) {
        self.due = None;
    }

    /// When [`Gather::take`] says yes.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(300);
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(10);

    #[allow(clippy::disallowed_methods, reason = "any instant will do to count from")]
    fn start() -> Instant {
        Instant::now()
    }

    /// The milliseconds at which it acts on changes at these milliseconds, and whether all were acted on.
    fn acts(changes: &[u64]) -> Vec<u64> {
        let (start, mut gather, mut acts) = (start(), Gather::new(MOMENT, LEAST, MOST), Vec::new());
        let mut pass = |gather: &mut Gather, until: Option<Instant>| {
            while let Some(due) = gather.poll_timeout().filter(|due| until.is_none_or(|until| *due <= until)) {
                assert!(gather.take(due));
                acts.push(u64::try_from(due.duration_since(start).as_millis()).unwrap());
            }
        };
        for change in changes {
            let at = start + Duration::from_millis(*change);
            pass(&mut gather, Some(at));
            gather.want(at);
        }
        pass(&mut gather, None);
        acts
    }

    #[test]
    fn changes_of_a_moment_are_one_and_a_later_one_is_acted_on_as_soon() {
        assert_eq!(acts(&[0, 10, 200, 60_000]), [300, 60_300]);
    }

    #[test]
    fn a_storm_is_acted_on_ever_more_slowly() {
        let storm: Vec<u64> = (0..200).map(|n| n * 100).collect();
        assert_eq!(acts(&storm), [300, 1_300, 3_300, 7_300, 15_300, 25_300]);
    }

    proptest! {
        #[test]
        fn every_change_is_acted_on_within_the_longest_pause(mut changes in prop::collection::vec(0..100_000_u64, 1..50)) {
            changes.sort_unstable();
            let acts = acts(&changes);
            for change in changes {
                prop_assert!(acts.iter().any(|act| (change..=change + 10_300).contains(act)), "{change}: {acts:?}");
            }
            prop_assert!(acts.windows(2).all(|pair| pair[1] - pair[0] >= 1_000), "{acts:?}");
        }
    }
}
