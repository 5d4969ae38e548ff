//! The kernel's WireGuard as far as paths are concerned: handshakes and their retries, sessions, keep-alives, roaming,
//! counters. Packets are what they would be if they were opened.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use warren_core::types::{NodePrivate, NodePublic};

const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Packets that wait for a handshake.
const QUEUE: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Initiation {
        time: Duration,
    },
    Response {
        session: u64,
    },
    /// A keep-alive has no number.
    Data {
        session: u64,
        number: Option<u64>,
    },
}

impl Packet {
    pub(crate) const fn length(&self) -> u64 {
        match self {
            Self::Initiation { .. } => 148,
            Self::Response { .. } => 92,
            Self::Data { number: None, .. } => 32,
            Self::Data { number: Some(_), .. } => 128,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: u64,
    since: Duration,
    initiator: bool,
    /// The responder may not send before it has received.
    confirmed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct KernelPeer {
    /// Its node key.
    pub(crate) key: NodePublic,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) last_handshake: Option<Duration>,
    keepalive: bool,
    /// Times that the endpoint changed.
    pub(crate) moves: u32,
    session: Option<Session>,
    next_session: Option<Session>,
    queue: Vec<u64>,
    initiated: Option<Duration>,
    wanted_since: Option<Duration>,
    newest_initiation: Option<Duration>,
    /// Data came in and nothing was sent since.
    owes_since: Option<Duration>,
    /// Data was sent and nothing came in since.
    unanswered_since: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) peers: BTreeMap<usize, KernelPeer>,
    /// The device's own key, and what it was made from.
    pub(crate) key: NodePublic,
    private: Option<NodePrivate>,
    /// By how much the clock that is written into handshakes is behind.
    pub(crate) behind: Duration,
}

impl Kernel {
    pub(super) fn set_own_key(&mut self, private: Option<NodePrivate>) {
        if self.private != private {
            self.key = private.as_ref().map(NodePrivate::public).unwrap_or_default();
            self.private = private;
            self.peers.values_mut().for_each(KernelPeer::handle_own_key);
        }
    }
}

/// What every clock shows as the world begins.
const EPOCH: Duration = Duration::from_secs(864_000);

impl Kernel {
    /// A packet as it leaves.
    pub(crate) fn stamped(&self, packet: Packet) -> Packet {
        match packet {
            Packet::Initiation { time } => Packet::Initiation { time: time + EPOCH - self.behind },
            other => other,
        }
    }
}

impl KernelPeer {
    /// The device has another key: what comes under the old sessions is still taken, and nothing is sent under them.
    pub(crate) fn handle_own_key(&mut self) {
        self.session.iter_mut().for_each(|session| session.confirmed = false);
        (self.next_session, self.initiated) = (None, None);
    }

    /// The first keep-alive is sent as they are switched on.
    pub(crate) fn set_keepalive(&mut self, is_on: bool, now: Duration) -> Vec<Packet> {
        let was_on = std::mem::replace(&mut self.keepalive, is_on);
        let mut out = Vec::new();
        if is_on && !was_on {
            match self.usable(now) {
                Some(session) => out.push(Packet::Data { session: session.id, number: None }),
                None => self.want(now, &mut out),
            }
        }
        self.note_sent(&out, now);
        out
    }

    pub(crate) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        if self.endpoint != Some(endpoint) {
            self.moves += 1;
            self.endpoint = Some(endpoint);
        }
    }

    /// An application sends a packet.
    pub(crate) fn offer(&mut self, number: u64, now: Duration) -> Vec<Packet> {
        let mut out = Vec::new();
        match self.usable(now) {
            Some(session) => {
                out.push(Packet::Data { session: session.id, number: Some(number) });
                if session.initiator && now - session.since >= REKEY_AFTER {
                    self.want(now, &mut out);
                }
            }
            None => {
                if self.queue.len() < QUEUE {
                    self.queue.push(number);
                }
                self.want(now, &mut out);
            }
        }
        self.note_sent(&out, now);
        out
    }

    /// A packet of the peer that is authentic came from this address: what is answered, and what was delivered.
    pub(crate) fn receive(
        &mut self,
        packet: Packet,
        from: SocketAddr,
        fresh: u64,
        now: Duration,
    ) -> (Vec<Packet>, Option<u64>) {
        let mut out = Vec::new();
        let mut delivered = None;
        match packet {
            Packet::Initiation { time } => {
                if self.newest_initiation.is_some_and(|newest| time <= newest) {
                    return (out, None);
                }
                self.newest_initiation = Some(time);
                self.next_session = Some(Session { id: fresh, since: now, initiator: false, confirmed: false });
                out.push(Packet::Response { session: fresh });
            }
            Packet::Response { session } => {
                if self.initiated.take().is_none() {
                    return (out, None);
                }
                self.wanted_since = None;
                self.session = Some(Session { id: session, since: now, initiator: true, confirmed: true });
                self.last_handshake = Some(now);
                let queued = std::mem::take(&mut self.queue);
                out.extend(queued.iter().map(|number| Packet::Data { session, number: Some(*number) }));
                if queued.is_empty() {
                    out.push(Packet::Data { session, number: None });
                }
            }
            Packet::Data { session, number } => {
                if let Some(next) = self.next_session.filter(|next| next.id == session) {
                    self.session = Some(Session { confirmed: true, ..next });
                    self.next_session = None;
                    self.last_handshake = Some(now);
                    self.wanted_since = None;
                    let queued = std::mem::take(&mut self.queue);
                    out.extend(queued.iter().map(|number| Packet::Data { session, number: Some(*number) }));
                }
                if self.session.is_none_or(|known| now.saturating_sub(known.since) >= REJECT_AFTER) {
                    return (out, None);
                }
                self.unanswered_since = None;
                if number.is_some() {
                    self.owes_since.get_or_insert(now);
                }
                delivered = number;
            }
        }
        self.rx_bytes += packet.length();
        self.set_endpoint(from);
        self.note_sent(&out, now);
        (out, delivered)
    }

    /// Timers.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Packet> {
        let mut out = Vec::new();
        if self.wanted_since.is_some_and(|since| now - since > REKEY_ATTEMPT) {
            self.wanted_since = None;
            self.initiated = None;
            self.queue.clear();
        }
        if self.unanswered_since.is_some_and(|since| now - since >= KEEPALIVE + REKEY_TIMEOUT) {
            self.unanswered_since = Some(now);
            self.want(now, &mut out);
        }
        if self.wanted_since.is_some() && self.initiated.is_none_or(|at| now - at >= REKEY_TIMEOUT) {
            self.initiated = Some(now);
            out.push(Packet::Initiation { time: now });
        }
        if self.owes_since.is_some_and(|since| now - since >= KEEPALIVE)
            && let Some(session) = self.usable(now)
        {
            out.push(Packet::Data { session: session.id, number: None });
        }
        self.note_sent(&out, now);
        out
    }

    fn usable(&self, now: Duration) -> Option<Session> {
        self.session.filter(|session| session.confirmed && now - session.since < REJECT_AFTER)
    }

    fn want(&mut self, now: Duration, out: &mut Vec<Packet>) {
        self.wanted_since.get_or_insert(now);
        if self.initiated.is_none_or(|at| now - at >= REKEY_TIMEOUT) {
            self.initiated = Some(now);
            out.push(Packet::Initiation { time: now });
        }
    }

    fn note_sent(&mut self, out: &[Packet], now: Duration) {
        for packet in out {
            self.tx_bytes += packet.length();
            if let Packet::Data { number, .. } = packet {
                self.owes_since = None;
                if number.is_some() {
                    self.unanswered_since.get_or_insert(now);
                }
            }
        }
    }
}
