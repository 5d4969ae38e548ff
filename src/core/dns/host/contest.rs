//! Two programs that write one file: after a while the other one has its way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So often within [`WINDOW`] others may write the file and we anew. DHCP does so a few times when a link comes up.
const MOST: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How long the other one has its way then.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// See the module.
#[derive(Debug, Default)]
pub struct Contest {
    written: VecDeque<Instant>,
    until: Option<Instant>,
}

impl Contest {
    /// Somebody else wrote over what we wrote.
    pub fn handle_written_over(&mut self, now: Instant) {
        self.written.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        self.written.push_back(now);
        if self.written.len() > MOST {
            self.written.clear();
            self.until = Some(now + PAUSE);
        }
    }

    /// Whether the other one has its way.
    pub fn is_given_up(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
