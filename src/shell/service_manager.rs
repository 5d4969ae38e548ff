//! What the service manager is told, how far the program is and that it is alive; and what it keeps for the next one.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// Tells the service manager. Where there is none, there is nobody to tell.
pub fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "telling the service manager");
    }
}

/// Gives a descriptor to the service manager, whose next process of this unit gets it by this name; nothing else is kept
/// under it from now on. How many it keeps, the unit says.
pub fn keep_for_next(name: &str, descriptor: BorrowedFd<'_>) {
    tell_manager(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    // An error that waits in a socket is no reason to forget it.
    let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&states, &[descriptor]) {
        warn!(%error, name, "giving a descriptor to the service manager");
    }
}

/// The number of the descriptor that the last process of this unit left under this name.
pub fn kept_by_last(name: &str) -> Option<RawFd> {
    match sd_notify::listen_fds_with_names() {
        Ok(mut kept) => kept.find(|(_, kept)| kept == name).map(|(descriptor, _)| descriptor),
        Err(error) => {
            warn!(%error, "what the service manager kept");
            None
        }
    }
}

/// The proof that a loop turns: whoever owns the loop calls [`Heartbeat::beat`] in each round, so that a program whose
/// loop hangs is ended and started anew.
#[derive(Debug)]
pub struct Heartbeat {
    /// A quarter of what the manager waits for; none where it does not wait.
    every: Option<Duration>,
    last: Option<Instant>,
}

impl Heartbeat {
    /// As the service manager wants it of this process.
    pub fn expected() -> Self {
        Self::within(sd_notify::watchdog_enabled())
    }

    fn within(patience: Option<Duration>) -> Self {
        Self { every: patience.map(|patience| patience / 4), last: None }
    }

    /// The loop has come round.
    pub fn beat(&mut self, now: Instant) {
        if self.is_due(now) {
            tell_manager(&[NotifyState::Watchdog]);
        }
    }

    /// When the loop has to come round at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.last? + self.every?)
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.every.is_some() && self.poll_timeout().is_none_or(|at| at <= now);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_loop_is_heard_at_most_four_times_within_the_managers_patience_however_fast_it_turns() {
        let start = origin();
        let mut heartbeat = Heartbeat::within(Some(Duration::from_secs(180)));

        let heard = (0..1_800).filter(|tenth| heartbeat.is_due(start + Duration::from_millis(100 * tenth))).count();

        assert_eq!(heard, 4);
        assert_eq!(heartbeat.poll_timeout(), Some(start + Duration::from_secs(180)));
    }

    #[test]
    fn a_manager_that_does_not_wait_hears_nothing() {
        let mut heartbeat = Heartbeat::within(None);
        assert!(!heartbeat.is_due(origin()));
        assert_eq!(heartbeat.poll_timeout(), None);
    }
}
