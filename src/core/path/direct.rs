//! A path that does without the relay, and how long it is believed in.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::rank::Class;
use super::{
    FULL_AGAIN, FULL_EVERY, FULL_SMALL, FULL_TRIES, HEARTBEAT, LOOK, PATIENCE, PING_AGAIN, PING_URGENT, TRUST,
};

/// WireGuard answers one-way traffic at least this often: a keep-alive after 10 s, and 5 s for a handshake instead.
const PATIENCE_ONE_WAY: Duration = Duration::from_secs(16);
/// How soon a path that the peer seems not to use has to prove itself.
const DOUBTED: Duration = Duration::from_secs(2);
/// What came within this before the change means that packets go both ways.
const BRISK: Duration = Duration::from_secs(5);

/// The path in use.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    pub(super) endpoint: SocketAddr,
    pub(super) class: Class,
    pub(super) local: Option<IpAddr>,
    pub(super) latency: Option<Duration>,
    pub(super) since: Instant,
    /// When it last was proven to work both ways: a pong, or a handshake.
    proven: Instant,
    /// Until when bytes are known to have come in by it.
    received: Option<Instant>,
    /// WireGuard itself got something through since it is in use.
    confirmed: bool,
    /// Whether an answer of WireGuard is to be expected at once.
    brisk: bool,
    /// Since when packets go out and nothing comes in.
    waiting: Option<Instant>,
    pub(super) ping_at: Instant,
    /// An interface has gone: it has to prove itself by then.
    urgent: Option<Instant>,
    /// When the next ping of full size is due.
    pub(super) full_at: Instant,
    /// Those without an answer, since when, and the answers to small ones sent meanwhile.
    full_missing: u8,
    full_since: Instant,
    small_answers: u8,
}

/// What a look at the kernel's counters showed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) sent: bool,
    pub(super) received: bool,
    /// A handshake was completed.
    pub(super) handshake: bool,
    /// There is a session, so that no handshake need be expected.
    pub(super) in_session: bool,
}

impl Progress {
    /// Whether the peer was heard of.
    pub(super) const fn is_news(&self) -> bool {
        self.received || self.handshake
    }
}

impl Direct {
    pub(super) fn new(endpoint: SocketAddr, class: Class, now: Instant) -> Self {
        Self {
            endpoint,
            class,
            local: None,
            latency: None,
            since: now,
            proven: now,
            received: None,
            confirmed: false,
            brisk: false,
            waiting: None,
            ping_at: now,
            urgent: None,
            full_at: now,
            full_missing: 0,
            full_since: now,
            small_answers: 0,
        }
    }

    /// One that the kernel took because packets came by it: when is not known, only that it was after the look before, so
    /// that a way that carries nothing since is not believed in longer for it.
    pub(super) fn adopted(endpoint: SocketAddr, class: Class, looked: Option<Instant>, now: Instant) -> Self {
        let earliest = now.checked_sub(LOOK).unwrap_or(now);
        Self { proven: looked.map_or(now, |at| at.clamp(earliest, now)), ..Self::new(endpoint, class, now) }
    }

    /// Whether an answer of WireGuard is to be expected at once: packets came in lately.
    pub(super) fn expect(&mut self, last_received: Option<Instant>) {
        self.brisk = last_received.is_some_and(|at| self.since.saturating_duration_since(at) < BRISK);
    }

    /// A ping went out.
    pub(super) fn handle_pinged(&mut self, now: Instant) {
        self.ping_at = now + if self.urgent.is_some() { PING_URGENT } else { PING_AGAIN };
    }

    /// The ping that went out at `pinged` was answered.
    pub(super) fn handle_pong(&mut self, pinged: Instant, local: Option<IpAddr>, now: Instant) {
        self.latency = Some(now.saturating_duration_since(pinged));
        self.local = local.or(self.local);
        self.proven = now;
        self.urgent = None;
        self.ping_at = self.ping_at.max(pinged + HEARTBEAT);
        if self.full_missing > 0 && pinged >= self.full_since {
            self.small_answers = self.small_answers.saturating_add(1);
        }
    }

    /// A ping of full size was answered.
    pub(super) fn handle_full_pong(&mut self, now: Instant) {
        self.full_missing = 0;
        self.full_at = now + FULL_EVERY;
    }

    /// Whether the last ping of full size has no answer yet.
    pub(super) const fn is_full_missing(&self) -> bool {
        self.full_missing > 0
    }

    /// A ping of full size is due. Whether it is of no use to send more: so many were lost, while small ones came through,
    /// that the path carries none.
    pub(super) fn handle_full_due(&mut self, now: Instant) -> bool {
        if self.full_missing == 0 {
            (self.full_since, self.small_answers) = (now, 0);
        }
        if self.full_missing < FULL_TRIES {
            self.full_missing += 1;
            self.full_at = now + FULL_AGAIN;
            return false;
        }
        self.full_missing = 0;
        self.full_at = now + FULL_EVERY;
        self.small_answers >= FULL_SMALL
    }

    /// The kernel's counters were read, `before` being the time of the reading before. Whether WireGuard gets nothing
    /// through although it should.
    ///
    /// What came in by the relay says nothing of this path, for it or against it.
    pub(super) fn handle_progress(
        &mut self,
        progress: Progress,
        before: Instant,
        by_relay: bool,
        now: Instant,
    ) -> bool {
        if before < self.since || by_relay {
            return false;
        }
        if progress.handshake {
            self.proven = self.proven.max(before);
        }
        if progress.is_news() {
            self.received = Some(before);
            self.confirmed = true;
            self.waiting = None;
        } else if progress.sent {
            let waiting = *self.waiting.get_or_insert(before);
            let at_once = !self.confirmed && self.brisk || !progress.in_session;
            let patience = if at_once { PATIENCE } else { PATIENCE_ONE_WAY };
            return now.saturating_duration_since(waiting) >= patience;
        }
        false
    }

    /// It has to prove itself within a second.
    pub(super) fn hurry(&mut self, within: Duration, now: Instant) {
        self.urgent = Some(now + within);
        self.ping_at = now;
    }

    /// The peer uses the relay although it could do without: unless a pong just came, one has to come soon.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.urgent.is_none() && now.saturating_duration_since(self.proven) >= PING_AGAIN {
            self.hurry(DOUBTED, now);
        }
    }

    /// When it is given up unless something is heard. Bytes that come in put it off, but not for ever: they do not
    /// show that ours arrive.
    pub(super) fn dies_at(&self) -> Instant {
        let heard = self.received.map_or(self.proven, |at| at.max(self.proven).min(self.proven + 2 * TRUST));
        let silent = heard + TRUST;
        self.urgent.map_or(silent, |urgent| urgent.min(silent))
    }

    /// Whether a pong is missing, so that the kernel's counters decide.
    pub(super) fn is_doubtful(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.proven) > HEARTBEAT + PING_AGAIN
    }
}
