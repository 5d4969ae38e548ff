//! Everything that happens by itself after a while: one table of what is due when, and what comes of it.
//!
//! No time is kept here: each is asked of whoever it depends on, so none can be forgotten or outlive its reason.

use std::time::{Duration, Instant};

use super::{Engine, Now};
use crate::control::Session;
use crate::types::Timestamp;

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// The session with the coordinator.
    Session,
    /// The next look at the kernel, or the next attempt at a step.
    Reconciler,
    /// Probes of paths.
    Paths,
    /// The next look at the network, and mappings at the gateway.
    Netcheck,
    /// The coordinator is to be told what was found out.
    Facts,
    /// Others are to hear of changed addresses.
    Networks,
    /// A ping has waited long enough.
    Pings,
    /// A request has waited long enough.
    Calls,
    /// A fault has been shown long enough.
    Health,
    /// Watchers are to be told of paths.
    Watchers,
    /// Memory is to be given back.
    Memory,
    /// A file is to be written.
    Saves,
    /// A relay's complaint has lasted long enough to be told.
    Complaints,
    /// A peer's key runs out.
    PeerKeys,
    /// Our own key runs out.
    OwnKey,
    /// The map becomes too old.
    MapAge,
    /// Our key is to be changed, or the change is not answered.
    Rotation,
}

impl Timer {
    const ALL: [Self; 17] = [
        Self::Session,
        Self::Reconciler,
        Self::Paths,
        Self::Netcheck,
        Self::Facts,
        Self::Networks,
        Self::Pings,
        Self::Calls,
        Self::Health,
        Self::Watchers,
        Self::Memory,
        Self::Saves,
        Self::Complaints,
        Self::PeerKeys,
        Self::OwnKey,
        Self::MapAge,
        Self::Rotation,
    ];
}

impl Engine {
    /// When to call [`Engine::handle_timeout`].
    pub fn poll_timeout(&self, now: Now) -> Option<Instant> {
        Timer::ALL.into_iter().filter_map(|timer| self.deadline(timer, now)).min()
    }

    /// Time has passed. Calling it when nothing is due changes nothing.
    pub fn handle_timeout(&mut self, now: Now) {
        for timer in Timer::ALL {
            self.expire(timer, now);
        }
    }

    fn deadline(&self, timer: Timer, now: Now) -> Option<Instant> {
        match timer {
            Timer::Session => self.session.as_ref().and_then(Session::poll_timeout),
            Timer::Reconciler => self.reconciler.poll_timeout(),
            Timer::Paths => self.book.poll_timeout(),
            Timer::Netcheck => self.netcheck.poll_timeout(),
            Timer::Facts => self.surroundings.told.poll_timeout(),
            Timer::Networks => self.surroundings.moved.poll_timeout(),
            Timer::Pings => self.pings.poll_timeout(),
            Timer::Calls => self.calls.poll_timeout(),
            Timer::Health => self.health.poll_timeout(),
            Timer::Watchers => self.watchers.poll_timeout(),
            Timer::Memory => self.memory.due,
            Timer::Saves => self.saves.poll_timeout(),
            Timer::Complaints => self.complaints_timeout(now),
            Timer::PeerKeys => self.on_the_tick(self.netmap.next_expiry(), now),
            Timer::OwnKey => self.on_the_tick(self.own_expiry(), now),
            Timer::MapAge => self.on_the_tick(self.closes_at(), now),
            Timer::Rotation => self.rotation_timeout(now),
        }
    }

    fn expire(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Session => {
                if let Some(session) = &mut self.session {
                    session.handle_timeout(now.tick);
                }
            }
            Timer::Reconciler => self.reconciler.handle_timeout(now.tick),
            Timer::Paths => self.book.handle_timeout(now.tick),
            Timer::Netcheck => self.netcheck.handle_timeout(now.tick),
            Timer::Facts => self.surroundings.expire_facts(now),
            Timer::Networks => self.tell_of_networks(now),
            Timer::Pings => self.expire_pings(now),
            Timer::Calls => self.expire_calls(now),
            Timer::Health => self.health.handle_timeout(now.tick),
            Timer::Memory => self.give_back_memory(now),
            Timer::PeerKeys => {
                let time = self.time(now);
                self.netmap.update(|netmap| netmap.expire(time));
            }
            Timer::Rotation => self.expire_rotation(now),
            // Proceeding looks at these each time.
            Timer::Watchers | Timer::Saves | Timer::Complaints | Timer::OwnKey | Timer::MapAge => {}
        }
    }

    /// When a time on the coordinator's wall comes that is still ahead.
    pub(super) fn on_the_tick(&self, at: Option<Timestamp>, now: Now) -> Option<Instant> {
        let time = self.time(now);
        let at = at.filter(|at| *at > time)?;
        Some(now.tick + Duration::try_from(at.duration_since(time)).unwrap_or_default())
    }
}
