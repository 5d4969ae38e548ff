//! Routes frames between the clients of one relay, and to its siblings in the region.
//!
//! Model: a key has one or more connections; the one that spoke last is *active* and gets what is sent to the
//! key. Each connection has three queues: control frames, DISCO probes and data. Probes have their own, so that a
//! full data queue never hides a path; each drops its oldest frame when full. A key that is not here but at a
//! sibling is reached through our *link* to that sibling, one hop and no further; the sibling has a link of its own
//! to us.
//!
//! Invariants: every list and queue has a limit in [`Limits`] or a constant; frames in a row for one key are routed
//! by one look-up and, while memory is in stock, without allocating; what a connection may do that is not a sibling's
//! never touches another's connection.

mod held;
mod packets;
mod siblings;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::types::{Limit, NodePublic, TokenBucket};
use crate::wire::derp::{CLIENT_FRAME, DerpError, Frame, FrameType, GoneReason, HEADER_LEN, SERVER_FRAME, header};

use super::handshake::Greeting;
use super::queue::Queue;
use held::Held;
use packets::{Known, Store};

/// Names a connection for as long as it lasts; the shell draws them from a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What one relay takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Data frames that wait for one client: more than one read brings, so that a fast sender alone fills none.
    pub queue_depth: usize,
    /// Bytes that wait for all clients together. Beyond it data is dropped, so that readers that stopped reading
    /// cannot fill memory.
    pub queued_bytes: usize,
    /// Bytes a second that one client may send, 0 for no limit; above it its reads are paused.
    pub bytes_per_second: u64,
    /// Bytes at once, at least one whole packet with its key.
    pub burst_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            queued_bytes: 256 << 20,
            bytes_per_second: 0,
            burst_bytes: (SERVER_FRAME.most + HEADER_LEN) as u64,
        }
    }
}

/// What the relay did, for its metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub forwarded_in: u64,
    pub forwarded_out: u64,
    pub dropped_queue_full: u64,
    pub dropped_unknown_peer: u64,
    pub dropped_memory: u64,
}

/// Connections of one key, of which the protocol wants one: a cloned machine makes more.
const CONNECTIONS_OF_KEY: Limit = Limit::new("connections of one key", 16);
/// How often a quiet client hears from us, up to 5 s of jitter apart: below the 120 s after which clients give up, and below
/// the 60 s after which a proxy in front of us does as it comes (nginx).
const KEEP_ALIVE: Duration = Duration::from_secs(40);
/// Bytes of data that wait for one client: what a queue of usual packets holds, and some large ones.
const DATA_BYTES: usize = 256 << 10;
/// Probes that wait for one client (the protocol's usual depth).
const DISCO_DEPTH: usize = 32;
/// Bytes of probes that wait for one client; an honest probe has a few hundred.
const DISCO_BYTES: usize = 68 << 10;
/// Bytes of control frames for one client, each of some ten bytes.
const CONTROL_BYTES: usize = 64 << 10;
/// Control frames that may wait for one client: it asked for them and does not read.
const CONTROL_DEPTH: usize = 256;
/// Told to a client whose key is in use elsewhere.
const DUPLICATE: &str = "another machine is connected with this node's key; the one that spoke last receives";

/// Everything one relay knows.
#[derive(Debug)]
pub struct Server {
    limits: Limits,
    /// Boxed: what is looked through is then no larger than it has to be.
    connections: BTreeMap<ConnectionId, Box<Connection>>,
    /// The connections of each key, the active one last.
    keys: BTreeMap<NodePublic, Vec<ConnectionId>>,
    /// Where a key that is not here can be reached: a sibling's connection.
    remote: BTreeMap<NodePublic, ConnectionId>,
    /// Who was sent something by a key, and hears when it leaves.
    listeners: BTreeMap<NodePublic, BTreeSet<NodePublic>>,
    watchers: BTreeSet<ConnectionId>,
    held: Held,
    counters: Counters,
    store: Store,
    /// Counts the changes of where any key is reached: what was found out before one has to be found out again.
    routes: u64,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    /// A relay of the region that connected to us.
    Sibling,
    /// A relay of the region that we connected to.
    Link,
}

#[derive(Debug)]
struct Connection {
    key: NodePublic,
    role: Role,
    is_home: bool,
    control: Queue,
    disco: Queue,
    data: Queue,
    pace: Option<TokenBucket>,
    gone_notices: TokenBucket,
    /// For what it sends to those who are not here yet.
    allowance: TokenBucket,
    keep_alive_at: Instant,
    /// Where its last packet went.
    known: Option<Known>,
    /// The state of the routes in which this was its key's active connection.
    active_in: Option<u64>,
}

impl Server {
    /// A relay that nobody is connected to.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: BTreeMap::new(),
            keys: BTreeMap::new(),
            remote: BTreeMap::new(),
            listeners: BTreeMap::new(),
            watchers: BTreeSet::new(),
            held: Held::default(),
            counters: Counters::default(),
            store: Store::new(limits.queued_bytes),
            routes: 0,
        }
    }

    /// The relay begins to serve where there may have been one before: whoever was at that one comes back in a moment.
    pub const fn handle_opened(&mut self, now: Instant) {
        self.held.open(now);
    }

    /// A client was admitted. `jitter` spreads keep-alives (0 to 5 s). `wake` gathers connections with something to write.
    pub fn handle_connected(
        &mut self,
        id: ConnectionId,
        greeting: &Greeting,
        now: Instant,
        jitter: Duration,
        wake: &mut BTreeSet<ConnectionId>,
    ) -> Result<(), DerpError> {
        let of_key = self.keys.entry(greeting.client).or_default();
        CONNECTIONS_OF_KEY.check(of_key.len() + 1)?;
        of_key.push(id);
        self.routes += 1;
        let role = if greeting.is_mesh { Role::Sibling } else { Role::Client };
        let mut connection = self.connection(greeting.client, role, now, jitter);
        if let Some(held) = self.held.give_out(&greeting.client, now, (&mut self.store, &mut self.counters)) {
            connection.data = held.with_room_for(self.limits.queue_depth, DATA_BYTES);
            wake.insert(id);
        }
        self.connections.insert(id, Box::new(connection));
        if self.keys.get(&greeting.client).is_some_and(|all| all.len() > 1) {
            self.tell_all_of(greeting.client, Frame::Health(DUPLICATE), wake);
        } else {
            self.tell_watchers(Frame::PeerPresent(greeting.client), wake);
        }
        Ok(())
    }

    fn connection(&self, key: NodePublic, role: Role, now: Instant, jitter: Duration) -> Connection {
        let Limits { bytes_per_second, burst_bytes, queue_depth, .. } = self.limits;
        Connection {
            key,
            role,
            is_home: false,
            control: Queue::new(CONTROL_DEPTH, CONTROL_BYTES),
            disco: Queue::new(DISCO_DEPTH, DISCO_BYTES),
            data: Queue::new(queue_depth, DATA_BYTES),
            pace: (bytes_per_second > 0 && role == Role::Client)
                .then(|| TokenBucket::new(bytes_per_second, burst_bytes, now)),
            gone_notices: TokenBucket::new(1, 3, now),
            allowance: held::allowance(now),
            keep_alive_at: now + KEEP_ALIVE + jitter,
            known: None,
            active_in: None,
        }
    }

    /// Bytes arrived. Routes every whole frame among them and says how many bytes that took and how long to pause
    /// before reading more. An error ends this connection and no other.
    pub fn handle_bytes(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) -> Result<(usize, Duration), DerpError> {
        let Some(connection) = self.connections.get(&id) else { return Ok((0, Duration::ZERO)) };
        let (key, is_link) = (connection.key, connection.role == Role::Link);
        let limit = if is_link { CLIENT_FRAME } else { SERVER_FRAME };
        let mut taken = 0;
        while let Some((kind, length)) = header(&bytes[taken..], limit)? {
            let start = taken + HEADER_LEN;
            let Some(body) = bytes.get(start..start + length) else { break };
            if is_link {
                self.route_of_link(id, Frame::decode(kind, body)?, wake);
            } else if kind == FrameType::SEND_PACKET {
                // At least this frame, which is whole.
                taken += self.send(id, key, &bytes[taken..], now, wake)?;
                continue;
            } else {
                self.route(id, Frame::decode(kind, body)?, now, wake)?;
            }
            taken = start + length;
        }
        if !is_link {
            self.activate(id);
        }
        let pace = self.connections.get_mut(&id).and_then(|connection| connection.pace.as_mut());
        Ok((taken, pace.map_or(Duration::ZERO, |bucket| bucket.pace(taken, now))))
    }

    /// A connection ended, whoever ended it.
    pub fn handle_closed(&mut self, id: ConnectionId, now: Instant, wake: &mut BTreeSet<ConnectionId>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.store.forget(&connection.disco);
        self.store.forget(&connection.data);
        self.routes += 1;
        self.watchers.remove(&id);
        if connection.role == Role::Link {
            return self.lose_link(id, wake);
        }
        let key = connection.key;
        let Some(of_key) = self.keys.get_mut(&key) else { return };
        of_key.retain(|other| *other != id);
        match of_key.len() {
            0 => {
                self.keys.remove(&key);
                if connection.role == Role::Client {
                    self.held.expect(key, now);
                }
                let gone = Frame::PeerGone { peer: key, reason: GoneReason::Disconnected };
                self.tell_watchers(gone, wake);
                self.tell_listeners(key, wake);
            }
            1 => self.tell_all_of(key, Frame::Health(""), wake),
            _ => {}
        }
    }

    /// A key is admitted no longer: ends its connections, and says how many those were. A sibling is not a client.
    pub fn handle_withdrawn(&mut self, key: &NodePublic, now: Instant, wake: &mut BTreeSet<ConnectionId>) -> usize {
        let is_client = |id: &ConnectionId| self.connections.get(id).is_some_and(|found| found.role == Role::Client);
        let ended: Vec<ConnectionId> = self.keys.get(key).into_iter().flatten().copied().filter(is_client).collect();
        for id in &ended {
            self.handle_closed(*id, now, wake);
            wake.insert(*id);
        }
        self.held.forget(key, (&mut self.store, &mut self.counters));
        ended.len()
    }

    /// Time passed: queues the keep-alives that are due, and lets go of what waits in vain.
    pub fn handle_timeout(&mut self, now: Instant, wake: &mut BTreeSet<ConnectionId>) {
        self.held.expire(now, (&mut self.store, &mut self.counters));
        for (id, connection) in &mut self.connections {
            if connection.role != Role::Link && connection.keep_alive_at <= now {
                connection.keep_alive_at = now + KEEP_ALIVE;
                push_frame(&mut connection.control, Frame::KeepAlive);
                wake.insert(*id);
            }
        }
    }

    /// The relay is about to stop: tells every client when to come back.
    pub fn handle_shutdown(&mut self, reconnect_in: Duration, try_for: Duration, wake: &mut BTreeSet<ConnectionId>) {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let frame = Frame::Restarting { reconnect_in_ms: millis(reconnect_in), try_for_ms: millis(try_for) };
        for (id, connection) in self.connections.iter_mut().filter(|(_, connection)| connection.role != Role::Link) {
            push_frame(&mut connection.control, frame);
            wake.insert(*id);
        }
    }

    /// Moves everything that waits for a connection to `out`: control, then probes, then data.
    pub fn poll_transmit(&mut self, id: ConnectionId, out: &mut Vec<u8>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.control.take(out);
            self.store.take(&mut connection.disco, out);
            self.store.take(&mut connection.data, out);
        }
    }

    /// What [`Server::poll_transmit`] gave was written: its memory serves others.
    pub fn handle_written(&mut self, memory: Vec<u8>) {
        self.store.keep(memory);
    }

    /// Whether the connection still exists: a sibling may have closed it.
    pub fn contains(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// How many connections there are, and how many of them call this their home.
    pub fn connected(&self) -> (usize, usize) {
        (self.connections.len(), self.connections.values().filter(|connection| connection.is_home).count())
    }

    /// What was done so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn route(
        &mut self,
        id: ConnectionId,
        frame: Frame<'_>,
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) -> Result<(), DerpError> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let is_sibling = connection.role == Role::Sibling;
        match frame {
            Frame::NotePreferred(home) => connection.is_home = home,
            Frame::Ping(data) => {
                push_frame(&mut connection.control, Frame::Pong(data));
                wake.insert(id);
            }
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) if !is_sibling => {
                return Err(DerpError::NotAllowed);
            }
            Frame::ForwardPacket { from, to, packet } => self.take_forwarded(id, (from, to), packet, now, wake),
            Frame::WatchConns => self.watch(id, wake),
            Frame::ClosePeer(peer) => {
                for closed in self.keys.get(&peer).cloned().unwrap_or_default() {
                    self.handle_closed(closed, now, wake);
                    wake.insert(closed);
                }
            }
            Frame::ServerKey(_)
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo(_)
            | Frame::SendPacket { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::PeerPresent(_)
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown(_) => {}
        }
        Ok(())
    }

    /// Makes a connection the one that its key's packets go to.
    fn activate(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.active_in == Some(self.routes) {
            return;
        }
        if let Some(of_key) = self.keys.get_mut(&connection.key)
            && of_key.last() != Some(&id)
        {
            of_key.retain(|other| *other != id);
            of_key.push(id);
            self.routes += 1;
        }
        connection.active_in = Some(self.routes);
    }

    fn tell_all_of(&mut self, key: NodePublic, frame: Frame<'_>, wake: &mut BTreeSet<ConnectionId>) {
        for id in self.keys.get(&key).into_iter().flatten() {
            if let Some(connection) = self.connections.get_mut(id) {
                push_frame(&mut connection.control, frame);
                wake.insert(*id);
            }
        }
    }
}

fn push_frame(queue: &mut Queue, frame: Frame<'_>) {
    let mut bytes = Vec::with_capacity(64);
    frame.encode(&mut bytes);
    queue.push(&[&bytes]);
}

#[cfg(test)]
mod tests;
