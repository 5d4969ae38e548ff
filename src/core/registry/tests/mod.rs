//! Tests of the model as a whole: a [`World`] that owns a state as the shell does, and clients that
//! follow their maps as the protocol says.

mod administration;
mod cleanup;
mod client;
mod clock;
mod devices;
mod joining;
mod law;
mod liveness;
mod maps;
mod people;
mod policy;
mod rights;
mod rotation;
mod sign_in;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::Client;

use super::*;
use crate::types::{DiscoPublic, MachinePublic, NodeId, NodePublic, Timestamp, UserId};
use crate::wire::control::{Hostinfo, MapRequest, MapResponse, RegisterAuth, RegisterRequest, RegisterResponse};

const VERSION: crate::types::CapabilityVersion = crate::types::CapabilityVersion::CURRENT;

/// How a message begins that asks a client whether it is there.
const PING: &[u8] = br#"{"KeepAlive":true,"PingRequest""#;

/// A state, a clock, and the clients that follow it.
struct World {
    state: State,
    now: Timestamp,
    draws: u8,
    clients: BTreeMap<SessionId, (NodeId, Client)>,
    closed: Vec<SessionId>,
    settled: Vec<PendingCode>,
    withdrawn: Vec<NodePublic>,
    notices: Vec<Notice>,
    /// Whose clients do not answer when they are asked whether they are there.
    frozen: BTreeSet<NodeId>,
    asked: Vec<(NodeId, PingId)>,
    sent: Vec<(Vec<SessionId>, Arc<MapMessage>)>,
}

impl World {
    fn new() -> Self {
        Self::with(Config::default(), Records::default())
    }

    fn with(config: Config, records: Records) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self {
            state: State::restore(config, records, now),
            now,
            draws: 0,
            clients: BTreeMap::new(),
            closed: Vec::new(),
            settled: Vec::new(),
            withdrawn: Vec::new(),
            notices: Vec::new(),
            frozen: BTreeSet::new(),
            asked: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// A world with a user and a reusable key of theirs.
    fn with_key() -> (Self, UserId, String) {
        let mut world = Self::new();
        let user = world.user("ada");
        let key = world.key(user, |key| key.reusable = true);
        (world, user, key)
    }

    /// Commands of somebody who may give all of them.
    fn by(&self) -> Commands<'_> {
        self.state.by(&Actor::COORDINATOR, self.now)
    }

    /// Carries out a decision and then what follows from it, as the shell does.
    fn run<R>(&mut self, decision: Decision<R>) -> R {
        self.state.apply(decision.changes, self.now);
        self.pump();
        decision.reply
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now.checked_add(by).unwrap();
        self.pump();
    }

    /// Lets time pass until everyone has been told everything.
    fn settle(&mut self) {
        self.advance(Duration::from_millis(200));
    }

    fn pump(&mut self) {
        self.state.handle_timeout(self.now);
        let due = self.state.due(self.now);
        self.state.apply(due.changes, self.now);
        self.state.handle_timeout(self.now);
        while let Some(output) = self.state.poll_output() {
            match output {
                Output::Send { sessions, message } if message.plain().starts_with(PING) => {
                    self.answer_ping(sessions[0], &message.plain());
                }
                Output::Send { sessions, message } => {
                    for session in &sessions {
                        if let Some((_, client)) = self.clients.get_mut(session) {
                            client.take(&message);
                        }
                    }
                    self.sent.push((sessions, message));
                }
                Output::Close { session } => {
                    self.clients.remove(&session);
                    self.closed.push(session);
                }
                Output::Settled { code } => self.settled.push(code),
                Output::Noticed(notice) => self.notices.push(notice),
                Output::Withdrawn { key } => self.withdrawn.push(key),
            }
        }
    }

    /// A client that is there answers at once.
    fn answer_ping(&mut self, session: SessionId, message: &[u8]) {
        let Some(id) = self.clients.get(&session).map(|(id, _)| *id) else { return };
        let message: MapResponse = serde_json::from_slice(message).unwrap();
        let ping = message.ping_request.unwrap();
        assert!(message.keep_alive && ping.url_is_noise);
        let ping: PingId = ping.url.split("id=").nth(1).unwrap().parse().unwrap();
        self.asked.push((id, ping));
        if !self.frozen.contains(&id) {
            let machine = self.state.node(id).unwrap().record.machine;
            self.state.pong(machine, ping, self.now);
        }
    }

    fn entropy(&mut self) -> [u8; 32] {
        self.draws = self.draws.wrapping_add(1);
        // Every group of five differs from every other draw's.
        std::array::from_fn(|index| self.draws.wrapping_mul(31).wrapping_add(index as u8))
    }

    fn user(&mut self, name: &str) -> UserId {
        let decision = self.by().create_user(name.parse().unwrap(), String::new()).unwrap();
        self.run(decision).id
    }

    fn key(&mut self, user: UserId, wish: impl FnOnce(&mut NewKey)) -> String {
        let mut new =
            NewKey { user, reusable: false, ephemeral: false, tags: Vec::new(), readmits: false, lifetime: None };
        wish(&mut new);
        let entropy = self.entropy();
        let decision = self.by().create_key(new, entropy).unwrap();
        self.run(decision).text.expose().to_owned()
    }

    fn register(&mut self, machine: u8, request: &RegisterRequest) -> Registered {
        let entropy = self.entropy();
        let decision = self.by().register(machine_key(machine), request, entropy);
        self.state.heard(machine_key(machine), &request.node_key, self.now);
        self.run(decision)
    }

    /// Registers and expects an answer.
    fn answer(&mut self, machine: u8, request: &RegisterRequest) -> RegisterResponse {
        match self.register(machine, request) {
            Registered::Answer(answer) => answer,
            other => panic!("not an answer: {other:?}"),
        }
    }

    /// Joins with a key and expects to be in.
    fn join(&mut self, machine: u8, name: &str, key: &str) -> NodeId {
        let answer = self.answer(machine, &request(machine, name, key));
        assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", true));
        self.state.node_by_key(&node_key(machine)).unwrap().record.id
    }

    fn open(&mut self, id: NodeId) -> SessionId {
        let opened = self.state.open(id, VERSION, self.now).unwrap();
        let mut client = Client::default();
        client.take(&opened.message);
        self.clients.insert(opened.session, (id, client));
        self.pump();
        opened.session
    }

    fn close(&mut self, session: SessionId) {
        self.clients.remove(&session);
        self.state.close(session, self.now);
        self.pump();
    }

    fn update(&mut self, machine: u8, request: &MapRequest) -> NodeId {
        let id = self.state.update(machine_key(machine), request, self.now).unwrap();
        self.pump();
        id
    }

    fn client(&self, session: SessionId) -> &Client {
        &self.clients[&session].1
    }

    fn label(&self, id: NodeId) -> &str {
        self.state.node(id).unwrap().record.label.as_str()
    }
}

fn machine_key(number: u8) -> MachinePublic {
    MachinePublic::from_bytes([number; 32])
}

fn node_key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

fn request(machine: u8, name: &str, key: &str) -> RegisterRequest {
    let auth = (!key.is_empty()).then(|| RegisterAuth { auth_key: key.to_owned() });
    let hostinfo = Some(Hostinfo { hostname: name.to_owned(), os: "linux".to_owned(), ..Hostinfo::default() });
    RegisterRequest { version: VERSION, node_key: node_key(machine), auth, hostinfo, ..RegisterRequest::default() }
}

fn lite(machine: u8, change: impl FnOnce(&mut MapRequest)) -> MapRequest {
    let mut request = MapRequest {
        version: VERSION,
        node_key: node_key(machine),
        disco_key: DiscoPublic::from_bytes([machine; 32]),
        omit_peers: true,
        ..MapRequest::default()
    };
    change(&mut request);
    request
}
