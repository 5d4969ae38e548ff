//! The resolver of a node: answers what it knows and passes the rest on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::flight::Flight;
use super::id::{AskId, QueryId};
use super::message::{Request, Transport, Unanswerable};
use super::upstream::Upstream;
use super::zones::{Finding, WayOut, Zones};
use crate::netmap::Netmap;

/// The longest question: four times what any client asks.
pub const QUESTION_LEN: usize = 4096;
/// Questions that wait for others at one time. The oldest gives way: those who asked it have asked again since.
pub const IN_FLIGHT: usize = 256;

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send this.
    Answer(Vec<u8>),
    /// [`Effect::Answer`] comes within 10 s.
    Later,
    /// Nothing is sent.
    Silence,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The answer to a question that was put off.
    Answer {
        /// Which one.
        query: QueryId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Ask another server, from a socket of its own. What comes back goes to [`Server::handle_reply`].
    Ask {
        /// Under which number.
        ask: AskId,
        /// Whom.
        upstream: Upstream,
        /// How. Means nothing for a server that speaks HTTP.
        transport: Transport,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Nothing more is expected: close the socket.
    Forget(AskId),
}

/// See the module. Time and chance come in; what is to be done comes out of [`Server::poll_effect`].
pub struct Server {
    zones: Zones,
    rng: ChaCha20Rng,
    flights: BTreeMap<u64, Flight>,
    /// Which flight each question of ours is of.
    asks: BTreeMap<AskId, u64>,
    next: u64,
    effects: VecDeque<Effect>,
}

impl Server {
    /// Knows nothing yet. Nobody else may know the seed: the numbers of questions are drawn from it.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            zones: Zones::default(),
            rng: ChaCha20Rng::from_seed(seed),
            flights: BTreeMap::new(),
            asks: BTreeMap::new(),
            next: 0,
            effects: VecDeque::new(),
        }
    }

    /// Brings the answers up to date with the map, and with the name servers that this host asks by itself.
    pub fn update(&mut self, map: &Netmap, local: &[Upstream]) {
        self.zones.update(map, local);
    }

    /// By whom what leaves this host leaves; counts from the next update on.
    pub fn set_way_out(&mut self, way_out: WayOut) {
        self.zones.set_way_out(way_out);
    }

    /// What is answered here, and who is asked for the rest.
    pub const fn zones(&self) -> &Zones {
        &self.zones
    }

    /// A client asks.
    pub fn handle_query(&mut self, now: Instant, query: QueryId, transport: Transport, bytes: &[u8]) -> Outcome {
        self.handle(now, query, transport, bytes, |zones, asked| zones.find(&asked.domain, asked.query.query_type))
    }

    /// Somebody asks who leaves by this host.
    pub fn handle_query_of_others(&mut self, now: Instant, query: QueryId, bytes: &[u8]) -> Outcome {
        self.handle(now, query, Transport::Tcp, bytes, |zones, asked| zones.find_for_others(&asked.domain))
    }

    fn handle(
        &mut self,
        now: Instant,
        query: QueryId,
        transport: Transport,
        bytes: &[u8],
        find: impl FnOnce(&Zones, &Request) -> Finding,
    ) -> Outcome {
        if bytes.len() > QUESTION_LEN {
            return Outcome::Silence;
        }
        let request = match Request::read(bytes, transport) {
            Ok(request) => request,
            Err(Unanswerable::Silence) => return Outcome::Silence,
            Err(Unanswerable::Refused(answer)) => return Outcome::Answer(answer),
        };
        match find(&self.zones, &request) {
            Finding::Addresses(addresses) => Outcome::Answer(request.addresses(&addresses)),
            Finding::Pointer(domain) => Outcome::Answer(match domain.to_name() {
                Some(name) => request.pointer(name),
                None => request.failed(ResponseCode::ServFail),
            }),
            Finding::NoData(zone) => Outcome::Answer(request.nothing(ResponseCode::NoError, &zone)),
            Finding::NoSuchName(zone) => Outcome::Answer(request.nothing(ResponseCode::NXDomain, &zone)),
            Finding::Nobody => Outcome::Answer(request.failed(ResponseCode::ServFail)),
            Finding::Ask(upstreams) => {
                self.pass_on(now, Flight::new(now, query, request, bytes.to_vec(), upstreams));
                Outcome::Later
            }
        }
    }

    /// Another server said something. Whatever is no answer to the question is dropped.
    pub fn handle_reply(&mut self, now: Instant, ask: AskId, bytes: &[u8]) {
        self.with_flight(ask, |flight| flight.handle_reply(now, ask, bytes));
    }

    /// Another server cannot be asked, or ended the connection.
    pub fn handle_failure(&mut self, now: Instant, ask: AskId) {
        self.with_flight(ask, |flight| flight.handle_failure(now, ask));
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |(_, flight): &(&u64, &Flight)| flight.next_step() <= now;
        let due: Vec<u64> = self.flights.iter().filter(due).map(|(id, _)| *id).collect();
        for id in due {
            self.proceed(id, |flight| flight.handle_timeout(now));
        }
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Server::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.flights.values().map(Flight::next_step).min()
    }

    fn pass_on(&mut self, now: Instant, flight: Flight) {
        if self.flights.len() >= IN_FLIGHT
            && let Some(oldest) = self.flights.keys().next().copied()
        {
            self.proceed(oldest, Flight::give_up);
        }
        let id = self.number();
        self.flights.insert(id, flight);
        self.proceed(id, |flight| flight.handle_timeout(now));
    }

    fn with_flight(&mut self, ask: AskId, act: impl FnOnce(&mut Flight)) {
        if let Some(id) = self.asks.get(&ask).copied() {
            self.proceed(id, act);
        }
    }

    /// Does something with a flight, and what it then wants.
    fn proceed(&mut self, id: u64, act: impl FnOnce(&mut Flight)) {
        let Some(mut flight) = self.flights.remove(&id) else { return };
        act(&mut flight);
        for ask in flight.closed() {
            self.asks.remove(&ask);
            self.effects.push_back(Effect::Forget(ask));
        }
        if let Some(bytes) = flight.answer() {
            self.effects.push_back(Effect::Answer { query: flight.query(), bytes });
            return;
        }
        for wanted in flight.wanted() {
            let ask = AskId(self.number());
            let mut number = [0; 2];
            self.rng.fill_bytes(&mut number);
            let (upstream, transport, bytes) = flight.ask(wanted, ask, u16::from_be_bytes(number));
            self.asks.insert(ask, id);
            self.effects.push_back(Effect::Ask { ask, upstream, transport, bytes });
        }
        self.flights.insert(id, flight);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
