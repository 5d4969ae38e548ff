//! What all peers share: our own keys and endpoints, chance, the limits on probes in all, and what waits to go out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::pace::{Bucket, Tick};
use super::secrets::Secrets;
use super::{ENDPOINTS_FRESH, FULL_SIZE, PathEvent, Ranking, Target, Transmit};
use crate::types::{DiscoPrivate, DiscoPublic, NodePublic};
use crate::wire::disco::{Message, PING_LEN, TransactionId};

/// Probes of candidates, of all peers together: what a start with a thousand busy peers needs, and what liars get.
const PROBE_BURST: u32 = 4_096;
const PROBES_PER_SECOND: u32 = 512;
/// Packets that wait to be taken; past it the oldest is lost, as on any network.
const MAX_WAITING: usize = 16_384;
/// Room kept for events while there are none.
const IDLE_ROOM: usize = 256;
/// Fresh endpoints are not asked for more often.
const FRESH_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Common {
    pub(super) node: NodePublic,
    pub(super) us: DiscoPublic,
    pub(super) secrets: Secrets,
    pub(super) ranking: Ranking,
    /// Direct paths that carry no packets of full size, by the peer that is engaged.
    pub(super) narrow: BTreeMap<NodePublic, SocketAddr>,
    pub(super) own_endpoints: Vec<SocketAddr>,
    own_endpoints_at: Option<Instant>,
    fresh_asked: Option<Instant>,
    /// When the kernel was looked at before the present look.
    pub(super) looked_at: Option<Instant>,
    /// A look that somebody wants earlier than the next regular one.
    pub(super) look_wanted: Option<Instant>,
    chance: ChaCha20Rng,
    probes: Bucket,
    origin: Option<Instant>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<PathEvent>,
}

impl Common {
    pub(super) fn new(disco: DiscoPrivate, node: NodePublic, seed: [u8; 32]) -> Self {
        Self {
            node,
            us: disco.public(),
            secrets: Secrets::new(disco),
            ranking: Ranking::default(),
            narrow: BTreeMap::new(),
            own_endpoints: Vec::new(),
            own_endpoints_at: None,
            fresh_asked: None,
            looked_at: None,
            look_wanted: None,
            chance: ChaCha20Rng::from_seed(seed),
            probes: Bucket::default(),
            origin: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn tick(&mut self, now: Instant) -> Tick {
        Tick::new(*self.origin.get_or_insert(now), now)
    }

    /// Whether one more candidate may be probed.
    pub(super) fn may_probe(&mut self, now: Instant) -> bool {
        let tick = self.tick(now);
        self.probes.take(PROBE_BURST, PROBES_PER_SECOND, tick)
    }

    /// A random part of a span, so that what began together does not stay together.
    pub(super) fn part_of(&mut self, span: Duration) -> Duration {
        span * (self.chance.next_u32() % 1_000) / 1_000
    }

    /// Seals and queues a ping, of full size or as small as it can be.
    pub(super) fn ping(&mut self, disco: &DiscoPublic, to: Target, full: bool) -> TransactionId {
        const PADDING: u16 = (FULL_SIZE - PING_LEN) as u16;
        let transaction = TransactionId(self.draw());
        let padding = if full { PADDING } else { 0 };
        self.send(disco, to, &Message::Ping { transaction, node: Some(self.node), padding });
        transaction
    }

    /// Seals and queues a message.
    pub(super) fn send(&mut self, disco: &DiscoPublic, to: Target, message: &Message) {
        let nonce = self.draw();
        let payload = self.secrets.to(disco).seal(&self.us, nonce, message);
        self.transmit(Transmit { to, payload });
    }

    pub(super) fn transmit(&mut self, transmit: Transmit) {
        if self.transmits.len() >= MAX_WAITING {
            self.transmits.pop_front();
        }
        self.transmits.push_back(transmit);
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub(super) fn tell(&mut self, event: PathEvent) {
        self.events.push_back(event);
    }

    pub(super) fn poll_event(&mut self) -> Option<PathEvent> {
        let event = self.events.pop_front();
        if event.is_none() {
            // The first map is an event of every peer; that much room is not needed again.
            self.events.shrink_to(IDLE_ROOM);
        }
        event
    }

    pub(super) fn set_own_endpoints(&mut self, endpoints: &[SocketAddr], now: Instant) {
        self.own_endpoints = endpoints.to_vec();
        self.own_endpoints_at = Some(now);
    }

    /// Whether our own endpoints can be told to a peer as they are; if not, fresh ones are asked for.
    pub(super) fn endpoints_are_fresh(&mut self, now: Instant) -> bool {
        let within = |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        let fresh = within(self.own_endpoints_at, ENDPOINTS_FRESH);
        if !fresh && !within(self.fresh_asked, FRESH_PAUSE) {
            self.fresh_asked = Some(now);
            self.events.push_back(PathEvent::NeedsFreshEndpoints);
        }
        fresh
    }

    /// Our own endpoints are probably not what they were.
    pub(super) fn forget_freshness(&mut self) {
        self.own_endpoints_at = None;
        self.fresh_asked = None;
    }

    pub(super) fn want_look(&mut self, at: Instant) {
        self.look_wanted = Some(self.look_wanted.map_or(at, |wanted| wanted.min(at)));
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.chance.fill_bytes(&mut bytes);
        bytes
    }
}
