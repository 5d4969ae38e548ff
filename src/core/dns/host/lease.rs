//! Who wants the host told, and until when: somebody who is gone for a while wants nothing any more.

use std::time::{Duration, Instant};

use super::HostNames;

/// How long whoever holds the lease may be gone: longer than an agent takes to be started anew, and shorter than a
/// person waits for a name.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Lease {
    /// What is wanted; nothing where what is there stays as it is.
    names: Option<HostNames>,
    holder: Option<u64>,
    ends: Option<Instant>,
}

impl Lease {
    /// Nobody has said anything yet, and somebody may have been told something before: that stays for a while.
    pub fn new(now: Instant) -> Self {
        Self { names: None, holder: None, ends: Some(now + PATIENCE) }
    }

    /// Whoever held it cannot come back: the machine was started anew.
    pub fn over(now: Instant) -> Self {
        Self { names: None, holder: None, ends: Some(now) }
    }

    /// Somebody says what is to be so. The last one who does holds the lease.
    pub fn handle_names(&mut self, holder: u64, names: HostNames) {
        *self = Self { names: Some(names), holder: Some(holder), ends: None };
    }

    /// Somebody is gone.
    pub fn handle_gone(&mut self, holder: u64, now: Instant) {
        if self.holder == Some(holder) {
            (self.holder, self.ends) = (None, Some(now + PATIENCE));
        }
    }

    /// Time has passed: what nobody holds any more ends.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ends.is_some_and(|ends| ends <= now) {
            *self = Self { names: Some(HostNames::default()), holder: None, ends: None };
        }
    }

    /// When to call [`Lease::handle_timeout`].
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.ends
    }

    /// What is to be so; `None` where it stays as it is.
    pub const fn names(&self) -> Option<&HostNames> {
        self.names.as_ref()
    }

    /// Whether nobody is there and nothing is wanted.
    pub fn is_over(&self) -> bool {
        self.holder.is_none() && self.names.as_ref().is_some_and(HostNames::is_nothing)
    }
}
