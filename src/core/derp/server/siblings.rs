//! The relays of one region as one: who is at which, and what they tell each other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{CONTROL_BYTES, CONTROL_DEPTH, ConnectionId, Role, Server, push_frame};
use crate::derp::queue::Queue;
use crate::types::{Limit, NodePublic};
use crate::wire::derp::{Frame, GoneReason};

/// Keys that siblings say they have: the network we are built for, on each of a few siblings.
const REMOTE_KEYS: Limit = Limit::new("keys at other relays of the region", 100_000);
/// Bytes that tell a sibling of one key.
const PRESENCE_BYTES: usize = 64;

impl Server {
    /// We are connected and introduced to a sibling, which has this key. It is asked who is there.
    pub fn handle_linked(
        &mut self,
        id: ConnectionId,
        sibling: NodePublic,
        now: Instant,
        wake: &mut BTreeSet<ConnectionId>,
    ) {
        let mut connection = self.connection(sibling, Role::Link, now, Duration::ZERO);
        push_frame(&mut connection.control, Frame::WatchConns);
        self.connections.insert(id, Box::new(connection));
        wake.insert(id);
    }

    /// Keys that are at siblings.
    pub fn remote_keys(&self) -> usize {
        self.remote.len()
    }

    /// A sibling said something over our link to it.
    pub(super) fn route_of_link(&mut self, id: ConnectionId, frame: Frame<'_>, wake: &mut BTreeSet<ConnectionId>) {
        match frame {
            Frame::PeerPresent(peer) if REMOTE_KEYS.check(self.remote.len() + 1).is_ok() => {
                self.remote.insert(peer, id);
                self.routes += 1;
            }
            Frame::PeerGone { peer, reason: GoneReason::Disconnected } if self.remote.get(&peer) == Some(&id) => {
                self.remote.remove(&peer);
                self.routes += 1;
                if !self.keys.contains_key(&peer) {
                    self.tell_listeners(peer, wake);
                }
            }
            Frame::Ping(data) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    push_frame(&mut connection.control, Frame::Pong(data));
                    wake.insert(id);
                }
            }
            Frame::ServerKey(_)
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo(_)
            | Frame::SendPacket { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::NotePreferred(_)
            | Frame::PeerGone { .. }
            | Frame::PeerPresent(_)
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_)
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown(_) => {}
        }
    }

    /// A link is gone, and with it the way to whoever is behind it.
    pub(super) fn lose_link(&mut self, id: ConnectionId, wake: &mut BTreeSet<ConnectionId>) {
        let lost = self.remote.extract_if(.., |_, link| *link == id).map(|(key, _)| key).collect::<Vec<_>>();
        for key in lost.into_iter().filter(|key| !self.keys.contains_key(key)).collect::<Vec<_>>() {
            self.tell_listeners(key, wake);
        }
    }

    pub(super) fn watch(&mut self, id: ConnectionId, wake: &mut BTreeSet<ConnectionId>) {
        self.watchers.insert(id);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        // The list of all keys is a sibling's due and as long as it is: it must not push itself out.
        let depth = CONTROL_DEPTH.max(2 * self.keys.len());
        connection.control = Queue::new(depth, CONTROL_BYTES.max(depth * PRESENCE_BYTES));
        for key in self.keys.keys() {
            push_frame(&mut connection.control, Frame::PeerPresent(*key));
        }
        wake.insert(id);
    }

    pub(super) fn tell_watchers(&mut self, frame: Frame<'_>, wake: &mut BTreeSet<ConnectionId>) {
        for id in &self.watchers {
            if let Some(connection) = self.connections.get_mut(id) {
                push_frame(&mut connection.control, frame);
                wake.insert(*id);
            }
        }
    }

    /// Whoever was sent something by a key that left is told so.
    pub(super) fn tell_listeners(&mut self, left: NodePublic, wake: &mut BTreeSet<ConnectionId>) {
        let gone = Frame::PeerGone { peer: left, reason: GoneReason::Disconnected };
        for listener in self.listeners.remove(&left).unwrap_or_default() {
            self.tell_all_of(listener, gone, wake);
        }
    }
}
