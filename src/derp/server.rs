//! Routes frames between the clients of one relay, and to its siblings in the region.
//!
//! Model: a key has one or more connections; the one that spoke last is *active* and gets what is sent to the
//! key. Each connection has three queues: control frames, DISCO probes and data. Probes have their own, so that a
//! full data queue never hides a path; each drops its oldest frame when full. A key that is not here but at a
//! sibling is reached through that sibling's connection, one hop and no further.
//!
//! Invariants: every list and queue has a limit in [`Limits`] or a constant; a frame is routed without
//! allocating; what a connection may do that is not a sibling's never touches another's connection.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::types::{Limit, NodePublic};
use crate::wire::derp::{DerpError, Frame, GoneReason, HEADER_LEN, Kind, SERVER_FRAME, header};
use crate::wire::disco;

use super::bucket::Bucket;
use super::handshake::Greeting;
use super::queue::Queue;

/// Names a connection for as long as it lasts; the shell draws them from a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What one relay takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Frames that wait for one client, for data and for probes each (the protocol's usual depth).
    pub queue_depth: usize,
    /// Bytes a second that one client may send, 0 for no limit; above it its reads are paused.
    pub bytes_per_second: u64,
    /// Bytes at once, at least one whole packet with its key.
    pub burst_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue_depth: 32, bytes_per_second: 0, burst_bytes: (SERVER_FRAME.most + HEADER_LEN) as u64 }
    }
}

/// What the relay did, for its metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its name")]
pub struct Counters {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub forwarded_in: u64,
    pub forwarded_out: u64,
    pub dropped_queue_full: u64,
    pub dropped_unknown_peer: u64,
}

/// Connections of one key, of which the protocol wants one: a cloned machine makes more.
const CONNECTIONS_OF_KEY: Limit = Limit::new("connections of one key", 16);
/// Keys that hear when a key leaves; those beyond it find out by their own time-outs.
const LISTENERS: usize = 1024;
/// How often a quiet client hears from us: below the 120 s after which clients give up.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Control frames that may wait for one client: it asked for them and does not read.
const CONTROL_DEPTH: usize = 256;
/// Told to a client whose key is in use elsewhere.
const DUPLICATE: &str = "another machine is connected with this node's key; the one that spoke last receives";

/// Everything one relay knows.
#[derive(Debug)]
pub struct Server {
    limits: Limits,
    connections: BTreeMap<ConnectionId, Connection>,
    /// The connections of each key, the active one last.
    keys: BTreeMap<NodePublic, Vec<ConnectionId>>,
    /// Where a key that is not here can be reached: a sibling's connection.
    remote: BTreeMap<NodePublic, ConnectionId>,
    /// Who was sent something by a key, and hears when it leaves.
    listeners: BTreeMap<NodePublic, BTreeSet<NodePublic>>,
    watchers: BTreeSet<ConnectionId>,
    counters: Counters,
}

#[derive(Debug)]
struct Connection {
    key: NodePublic,
    is_mesh: bool,
    is_home: bool,
    control: Queue,
    disco: Queue,
    data: Queue,
    pace: Option<Bucket>,
    gone_notices: Bucket,
    keep_alive_at: Instant,
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
            counters: Counters::default(),
        }
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
        let pace = (self.limits.bytes_per_second > 0 && !greeting.is_mesh)
            .then(|| Bucket::new(self.limits.bytes_per_second, self.limits.burst_bytes, now));
        let connection = Connection {
            key: greeting.client,
            is_mesh: greeting.is_mesh,
            is_home: false,
            control: Queue::new(CONTROL_DEPTH),
            disco: Queue::new(self.limits.queue_depth),
            data: Queue::new(self.limits.queue_depth),
            pace,
            gone_notices: Bucket::new(1, 3, now),
            keep_alive_at: now + KEEP_ALIVE + jitter,
        };
        self.connections.insert(id, connection);
        if self.keys.get(&greeting.client).is_some_and(|all| all.len() > 1) {
            self.tell_all_of(greeting.client, Frame::Health(DUPLICATE), wake);
        } else {
            self.tell_watchers(Frame::PeerPresent(greeting.client), wake);
        }
        Ok(())
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
        let mut taken = 0;
        while let Some((kind, length)) = header(&bytes[taken..], SERVER_FRAME)? {
            let start = taken + HEADER_LEN;
            let Some(body) = bytes.get(start..start + length) else { break };
            self.route(id, Frame::decode(kind, body)?, now, wake)?;
            taken = start + length;
        }
        self.activate(id);
        let pace = self.connections.get_mut(&id).and_then(|connection| connection.pace.as_mut());
        Ok((taken, pace.map_or(Duration::ZERO, |bucket| bucket.pace(taken, now))))
    }

    /// A sibling that we connected to said something about who is there. `id` is that connection's.
    pub fn handle_sibling(&mut self, id: ConnectionId, frame: Frame<'_>) {
        match frame {
            Frame::PeerPresent(peer) => {
                self.remote.insert(peer, id);
            }
            Frame::PeerGone { peer, .. } if self.remote.get(&peer) == Some(&id) => {
                self.remote.remove(&peer);
            }
            _ => {}
        }
    }

    /// A connection ended, whoever ended it.
    pub fn handle_closed(&mut self, id: ConnectionId, wake: &mut BTreeSet<ConnectionId>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.watchers.remove(&id);
        self.remote.retain(|_, through| *through != id);
        let key = connection.key;
        let Some(of_key) = self.keys.get_mut(&key) else { return };
        of_key.retain(|other| *other != id);
        match of_key.len() {
            0 => {
                self.keys.remove(&key);
                let gone = Frame::PeerGone { peer: key, reason: GoneReason::Disconnected };
                self.tell_watchers(gone, wake);
                for listener in self.listeners.remove(&key).unwrap_or_default() {
                    self.tell_all_of(listener, gone, wake);
                }
            }
            1 => self.tell_all_of(key, Frame::Health(""), wake),
            _ => {}
        }
    }

    /// Time passed: queues the keep-alives that are due.
    pub fn handle_timeout(&mut self, now: Instant, wake: &mut BTreeSet<ConnectionId>) {
        for (id, connection) in &mut self.connections {
            if connection.keep_alive_at <= now {
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
        for (id, connection) in &mut self.connections {
            push_frame(&mut connection.control, frame);
            wake.insert(*id);
        }
    }

    /// Moves everything that waits for a connection to `out`: control, then probes, then data.
    pub fn poll_transmit(&mut self, id: ConnectionId, out: &mut Vec<u8>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.control.take(out);
            connection.disco.take(out);
            connection.data.take(out);
        }
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
        let (key, is_mesh) = (connection.key, connection.is_mesh);
        match frame {
            Frame::SendPacket { to, packet } => {
                self.counters.packets_in += 1;
                self.counters.bytes_in += packet.len() as u64;
                self.send(id, key, to, packet, now, wake);
            }
            Frame::NotePreferred(home) => connection.is_home = home,
            Frame::Ping(data) => {
                push_frame(&mut connection.control, Frame::Pong(data));
                wake.insert(id);
            }
            Frame::ForwardPacket { from, to, packet } if is_mesh => {
                self.counters.forwarded_in += 1;
                if !self.deliver(from, to, packet, wake) {
                    self.refuse(id, to, packet, now, wake);
                }
            }
            Frame::WatchConns if is_mesh => self.watch(id, wake),
            Frame::ClosePeer(peer) if is_mesh => {
                for closed in self.keys.get(&peer).cloned().unwrap_or_default() {
                    self.handle_closed(closed, wake);
                    wake.insert(closed);
                }
            }
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) => return Err(DerpError::NotAllowed),
            _ => {}
        }
        Ok(())
    }

    fn send(
        &mut self,
        id: ConnectionId,
        from: NodePublic,
        to: NodePublic,
        packet: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) {
        if self.deliver(from, to, packet, wake) {
            let listeners = self.listeners.entry(from).or_default();
            if listeners.len() < LISTENERS {
                listeners.insert(to);
            }
            return;
        }
        let sibling = self.remote.get(&to).and_then(|through| Some((*through, self.connections.get_mut(through)?)));
        if let Some((through, connection)) = sibling {
            self.counters.forwarded_out += 1;
            let head = packet_header(Kind::FORWARD_PACKET, 2, packet);
            self.counters.dropped_queue_full +=
                connection.queue_for(packet).push(&[&head, from.as_bytes(), to.as_bytes(), packet]) as u64;
            wake.insert(through);
        } else {
            self.refuse(id, to, packet, now, wake);
        }
    }

    /// Queues a packet at the active connection of `to`; false where there is none.
    fn deliver(&mut self, from: NodePublic, to: NodePublic, packet: &[u8], wake: &mut BTreeSet<ConnectionId>) -> bool {
        let Some(&active) = self.keys.get(&to).and_then(|all| all.last()) else {
            return false;
        };
        let Some(connection) = self.connections.get_mut(&active) else {
            return false;
        };
        let head = packet_header(Kind::RECV_PACKET, 1, packet);
        let dropped = connection.queue_for(packet).push(&[&head, from.as_bytes(), packet]);
        self.counters.dropped_queue_full += dropped as u64;
        self.counters.packets_out += 1;
        self.counters.bytes_out += packet.len() as u64;
        wake.insert(active);
        true
    }

    /// Nobody here has that key. Said only in answer to probes and seldom, so that it cannot be used to flood.
    fn refuse(
        &mut self,
        id: ConnectionId,
        to: NodePublic,
        packet: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) {
        self.counters.dropped_unknown_peer += 1;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if packet.starts_with(&disco::MAGIC) && connection.gone_notices.allow(now) {
            push_frame(&mut connection.control, Frame::PeerGone { peer: to, reason: GoneReason::NotHere });
            wake.insert(id);
        }
    }

    fn watch(&mut self, id: ConnectionId, wake: &mut BTreeSet<ConnectionId>) {
        self.watchers.insert(id);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        // The list of all keys is a sibling's due and as long as it is: it must not push itself out.
        connection.control = Queue::new(CONTROL_DEPTH.max(2 * self.keys.len()));
        for key in self.keys.keys() {
            push_frame(&mut connection.control, Frame::PeerPresent(*key));
        }
        wake.insert(id);
    }

    /// Makes a connection the one that its key's packets go to.
    fn activate(&mut self, id: ConnectionId) {
        let Some(key) = self.connections.get(&id).map(|connection| connection.key) else { return };
        if let Some(of_key) = self.keys.get_mut(&key)
            && of_key.last() != Some(&id)
        {
            of_key.retain(|other| *other != id);
            of_key.push(id);
        }
    }

    fn tell_all_of(&mut self, key: NodePublic, frame: Frame<'_>, wake: &mut BTreeSet<ConnectionId>) {
        for id in self.keys.get(&key).into_iter().flatten() {
            if let Some(connection) = self.connections.get_mut(id) {
                push_frame(&mut connection.control, frame);
                wake.insert(*id);
            }
        }
    }

    fn tell_watchers(&mut self, frame: Frame<'_>, wake: &mut BTreeSet<ConnectionId>) {
        for id in &self.watchers {
            if let Some(connection) = self.connections.get_mut(id) {
                push_frame(&mut connection.control, frame);
                wake.insert(*id);
            }
        }
    }
}

impl Connection {
    fn queue_for(&mut self, packet: &[u8]) -> &mut Queue {
        if packet.starts_with(&disco::MAGIC) { &mut self.disco } else { &mut self.data }
    }
}

fn push_frame(queue: &mut Queue, frame: Frame<'_>) {
    let mut bytes = Vec::with_capacity(64);
    frame.encode(&mut bytes);
    queue.push(&[&bytes]);
}

/// The header of a frame that holds `keys` keys and a packet.
fn packet_header(kind: Kind, keys: usize, packet: &[u8]) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = ((keys * 32 + packet.len()) as u32).to_be_bytes();
    [kind.0, a, b, c, d]
}

#[cfg(test)]
mod tests;
