//! The way of a packet: from a connection's bytes to the queue of whom it is for.
//!
//! Nearly all that a relay does happens here. A tunnel's packets come in rows for one key, and its next row is for the
//! same one: a row costs one look-up of the connection, and where a key is reached is remembered until any key comes or
//! goes. Memory for what waits comes from a small stock, of which the piece given back last is handed out first: it is
//! in the processor's cache.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Connection, ConnectionId, Counters, Server, push_frame};
use crate::derp::queue::Queue;
use crate::types::NodePublic;
use crate::wire::derp::{DerpError, Frame, FrameType, GoneReason, HEADER_LEN, SERVER_FRAME, header};
use crate::wire::disco;

/// Keys that hear when a key leaves; those beyond it find out by their own time-outs.
const LISTENERS: usize = 1024;
/// Pieces of memory in stock: more than there are threads that write.
const STOCK: usize = 32;
/// The least that is worth keeping: a packet of the usual size.
const STOCK_LEAST: usize = 2 << 10;

/// Where a key is reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hop {
    Here(ConnectionId),
    There(ConnectionId),
    Nowhere,
}

/// Where a connection's last packet went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    to: NodePublic,
    hop: Hop,
    /// The state of the routes that this follows from.
    routes: u64,
}

/// Memory of what waits in all queues of data and probes.
#[derive(Debug)]
pub(super) struct Store {
    /// Bytes that wait.
    queued: usize,
    /// How many may.
    most: usize,
    stock: Vec<Vec<u8>>,
}

impl Store {
    pub(super) const fn new(most: usize) -> Self {
        Self { queued: 0, most, stock: Vec::new() }
    }

    /// Moves everything that waits in a queue to `out`.
    pub(super) fn take(&mut self, queue: &mut Queue, out: &mut Vec<u8>) {
        self.forget(queue);
        queue.take(out);
        self.keep(queue.release());
    }

    /// What waits in a queue will never be taken.
    pub(super) fn forget(&mut self, queue: &Queue) {
        self.queued -= queue.waiting();
    }

    /// Whether so many bytes more may wait.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        self.queued + bytes <= self.most
    }

    /// More waits in a queue, or less.
    pub(super) fn changed(&mut self, before: usize, queue: &Queue) {
        self.queued = self.queued + queue.waiting() - before;
    }

    /// Takes memory that was used into stock.
    pub(super) fn keep(&mut self, mut memory: Vec<u8>) {
        if self.stock.len() < STOCK && memory.capacity() >= STOCK_LEAST {
            memory.clear();
            self.stock.push(memory);
        }
    }

    #[cfg(test)]
    pub(super) const fn queued(&self) -> usize {
        self.queued
    }
}

impl Server {
    /// Routes the packets in a row that are for one key. Says how many bytes they took: none where they begin with
    /// something else.
    pub(super) fn send(
        &mut self,
        id: ConnectionId,
        from: NodePublic,
        bytes: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) -> Result<usize, DerpError> {
        let Some(mut row) = Row::begin(bytes)? else { return Ok(0) };
        let to = row.to;
        match self.hop(id, from, to) {
            Hop::Here(at) => self.deliver(&mut row, at, FrameType::RECV_PACKET, &[from], wake)?,
            Hop::There(link) => {
                let before = self.counters.packets_in;
                self.deliver(&mut row, link, FrameType::FORWARD_PACKET, &[from, to], wake)?;
                self.counters.forwarded_out += self.counters.packets_in - before;
            }
            Hop::Nowhere => {
                while let Some(packet) = row.next()? {
                    self.counters.came(packet);
                    self.refuse(id, (from, to), packet, now, wake);
                }
            }
        }
        Ok(row.taken)
    }

    /// Queues the packets of a row at one connection.
    fn deliver(
        &mut self,
        row: &mut Row<'_>,
        at: ConnectionId,
        kind: FrameType,
        keys: &[NodePublic],
        wake: &mut BTreeSet<ConnectionId>,
    ) -> Result<(), DerpError> {
        wake.insert(at);
        let mut connection = self.connections.get_mut(&at);
        while let Some(packet) = row.next()? {
            self.counters.came(packet);
            if let Some(connection) = &mut connection {
                connection.deliver(&Packet { kind, keys, packet }, &mut self.store, &mut self.counters);
            }
        }
        Ok(())
    }

    /// A packet that a sibling passed on: to whom it is for if that is here, and no further.
    pub(super) fn take_forwarded(
        &mut self,
        id: ConnectionId,
        (from, to): (NodePublic, NodePublic),
        packet: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) {
        self.counters.forwarded_in += 1;
        let Some(active) = self.active(to) else { return self.refuse(id, (from, to), packet, now, wake) };
        if let Some(connection) = self.connections.get_mut(&active) {
            let packet = Packet { kind: FrameType::RECV_PACKET, keys: &[from], packet };
            connection.deliver(&packet, &mut self.store, &mut self.counters);
        }
        self.listen(from, to);
        wake.insert(active);
    }

    /// Where packets of a connection to a key go.
    fn hop(&mut self, id: ConnectionId, from: NodePublic, to: NodePublic) -> Hop {
        let routes = self.routes;
        let known = self.connections.get(&id).and_then(|connection| connection.known);
        if let Some(known) = known.filter(|known| known.to == to && known.routes == routes) {
            return known.hop;
        }
        let hop = match (self.active(to), self.remote.get(&to)) {
            (Some(active), _) => Hop::Here(active),
            (None, Some(link)) => Hop::There(*link),
            (None, None) => Hop::Nowhere,
        };
        if let Hop::Here(_) = hop {
            self.listen(from, to);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.known = Some(Known { to, hop, routes });
        }
        hop
    }

    fn active(&self, key: NodePublic) -> Option<ConnectionId> {
        self.keys.get(&key)?.last().copied()
    }

    /// From here on `to` hears when `from` leaves.
    fn listen(&mut self, from: NodePublic, to: NodePublic) {
        let listeners = self.listeners.entry(from).or_default();
        if listeners.len() < LISTENERS {
            listeners.insert(to);
        }
    }

    /// Nobody here has that key. Data waits where it is expected; else that is said, only in answer to probes and seldom, so
    /// that it cannot be used to flood.
    fn refuse(
        &mut self,
        id: ConnectionId,
        (from, to): (NodePublic, NodePublic),
        packet: &[u8],
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let is_probe = packet.starts_with(&disco::MAGIC);
        let framed = Packet { kind: FrameType::RECV_PACKET, keys: &[from], packet };
        let at = (&mut self.store, &mut self.counters);
        if !is_probe && self.held.take_in(to, &framed, &mut connection.allowance, at, now) {
            return;
        }
        self.counters.dropped_unknown_peer += 1;
        if is_probe && connection.gone_notices.allow(now) {
            push_frame(&mut connection.control, Frame::PeerGone { peer: to, reason: GoneReason::NotHere });
            wake.insert(id);
        }
    }
}

impl Counters {
    fn came(&mut self, packet: &[u8]) {
        self.packets_in += 1;
        self.bytes_in += packet.len() as u64;
    }

    /// What was received for a key and waited leaves for it.
    pub(super) fn went(&mut self, data: &Queue) {
        self.packets_out += data.len() as u64;
        self.bytes_out += (data.waiting() - data.len() * (HEADER_LEN + size_of::<NodePublic>())) as u64;
    }
}

impl Connection {
    /// Queues a packet.
    fn deliver(&mut self, packet: &Packet<'_>, store: &mut Store, counters: &mut Counters) {
        if !store.has_room(packet.len()) {
            counters.dropped_memory += 1;
            return;
        }
        let queue = if packet.packet.starts_with(&disco::MAGIC) { &mut self.disco } else { &mut self.data };
        let before = queue.waiting();
        queue.borrow_from(&mut store.stock);
        counters.dropped_queue_full += packet.push_to(queue) as u64;
        store.changed(before, queue);
        counters.packets_out += 1;
        counters.bytes_out += packet.packet.len() as u64;
    }
}

/// Packets one after another that are for the same key.
struct Row<'a> {
    bytes: &'a [u8],
    to: NodePublic,
    /// Bytes of those that were given out.
    taken: usize,
}

impl<'a> Row<'a> {
    /// None where something else comes first.
    fn begin(bytes: &'a [u8]) -> Result<Option<Self>, DerpError> {
        Ok(first(bytes)?.map(|(to, _)| Self { bytes, to, taken: 0 }))
    }

    fn next(&mut self) -> Result<Option<&'a [u8]>, DerpError> {
        let Some((to, packet)) = first(&self.bytes[self.taken..])?.filter(|(to, _)| *to == self.to) else {
            return Ok(None);
        };
        self.taken += HEADER_LEN + size_of_val(&to) + packet.len();
        Ok(Some(packet))
    }
}

/// The first frame, where it is whole and a packet: whom it is for, and what it says.
fn first(bytes: &[u8]) -> Result<Option<(NodePublic, &[u8])>, DerpError> {
    let Some((FrameType::SEND_PACKET, length)) = header(bytes, SERVER_FRAME)? else { return Ok(None) };
    let Some(body) = bytes.get(HEADER_LEN..HEADER_LEN + length) else { return Ok(None) };
    let Frame::SendPacket { to, packet } = Frame::decode(FrameType::SEND_PACKET, body)? else { return Ok(None) };
    Ok(Some((to, packet)))
}

/// A packet as it is written to whom it goes.
pub(super) struct Packet<'a> {
    kind: FrameType,
    keys: &'a [NodePublic],
    packet: &'a [u8],
}

impl Packet<'_> {
    /// Bytes of the frame.
    pub(super) fn len(&self) -> usize {
        HEADER_LEN + size_of_val(self.keys) + self.packet.len()
    }

    pub(super) fn push_to(&self, queue: &mut Queue) -> usize {
        let [a, b, c, d] = ((self.len() - HEADER_LEN) as u32).to_be_bytes();
        let head = [self.kind.0, a, b, c, d];
        match self.keys {
            [from, to] => queue.push(&[&head, from.as_bytes(), to.as_bytes(), self.packet]),
            [from, ..] => queue.push(&[&head, from.as_bytes(), self.packet]),
            [] => 0,
        }
    }
}
