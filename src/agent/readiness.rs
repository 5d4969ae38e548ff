//! When services that use the overlay's addresses may start, and that the loop turns.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use warren_shell::{Heartbeat, tell_manager};

/// A kernel that cannot be brought to what it should hold delays the boot no longer than this; what is wrong is in the
/// health list, and the agent goes on trying.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the service manager is waiting for.
pub(super) struct Readiness {
    heartbeat: Heartbeat,
    /// Until when it may have to wait; none once it was told.
    until: Option<Instant>,
}

impl Readiness {
    pub(super) fn new(now: Instant) -> Self {
        Self { heartbeat: Heartbeat::expected(), until: Some(now + PATIENCE) }
    }

    /// The loop has come round; `stands` says whether the kernel holds what is known so far.
    pub(super) fn proceed(&mut self, stands: bool, now: Instant) {
        self.heartbeat.beat(now);
        if self.is_reached(stands, now) {
            tell_manager(&[NotifyState::Ready]);
        }
    }

    /// When the loop has to come round at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.until.into_iter().chain(self.heartbeat.poll_timeout()).min()
    }

    fn is_reached(&mut self, stands: bool, now: Instant) -> bool {
        self.until.take_if(|until| stands || *until <= now).is_some()
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
    fn ready_is_said_once_when_the_tunnel_stands() {
        let start = origin();
        let mut readiness = Readiness::new(start);
        assert!(!readiness.is_reached(false, start));
        assert_eq!(readiness.poll_timeout(), Some(start + PATIENCE));

        assert!(readiness.is_reached(true, start + Duration::from_secs(1)));

        assert!(!readiness.is_reached(true, start + Duration::from_secs(2)));
        assert_eq!(readiness.poll_timeout(), None);
    }

    #[test]
    fn a_kernel_that_fails_delays_the_boot_only_so_long() {
        let start = origin();
        let mut readiness = Readiness::new(start);
        assert!(readiness.is_reached(false, start + PATIENCE));
    }
}
