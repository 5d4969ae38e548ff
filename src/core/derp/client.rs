//! A node's end of one connection to a relay.
//!
//! Model: the server says its key, the client who it is, the server its terms; from then on packets flow. What is
//! sent before that waits. What waits is bounded, and the oldest goes first: probes have a queue of their own, so
//! that they pass a tunnel that fills the line. A relay that is silent for too long is given up; how long is
//! too long depends on whether it should have spoken: it answers pings, and is sent one when packets go out and
//! nothing comes back.
//!
//! Invariants: nothing is allocated for a packet, in either direction; a frame past the protocol's limits, or an
//! introduction that is not the relay's, ends the connection.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::types::{NodePrivate, NodePublic, TokenBucket};
use crate::wire::derp::{
    CLIENT_FRAME, ClientInfo, DerpError, Frame, FrameType, GoneReason, HEADER_LEN, MAX_PACKET, ServerInfo, VERSION,
    header, open_server_info, seal_client_info,
};
use crate::wire::disco;

use super::queue::Queue;

/// The introductions are over by then: the time that servers give a client.
const LOGIN: Duration = Duration::from_secs(10);
/// A server speaks once a minute at least; after two it is gone.
const SILENCE: Duration = Duration::from_secs(120);
/// The home relay is asked sooner whether it is there: others reach us by it, and we would not notice.
const HOME_SILENCE: Duration = Duration::from_secs(30);
/// How long packets go out unanswered before the relay is asked whether it is there.
const UNANSWERED: Duration = Duration::from_secs(3);
/// How long it may take to say so. With [`UNANSWERED`] that makes the seven seconds in which a dead path is left.
const PONG: Duration = Duration::from_secs(4);
/// Packets that may wait: at the usual size 340 KB, a third of a second at 8 Mbit/s.
const DATA_DEPTH: usize = 256;
/// Probes that may wait.
const DISCO_DEPTH: usize = 64;
/// Bytes of packets that may wait: as many at the usual size.
const DATA_BYTES: usize = 384 << 10;
/// Bytes of probes that may wait; each has a few hundred.
const DISCO_BYTES: usize = 64 << 10;
/// Bytes of control frames that may wait. A server whose pings come faster than we can write gets no more answers.
const CONTROL_BYTES: usize = 4096;
/// The shortest bucket that lets a whole packet through, whatever the server says.
const LEAST_BURST: u64 = (MAX_PACKET + HEADER_LEN + 32) as u64;

/// Why the connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The other end does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] DerpError),
    /// The introductions did not come to an end.
    #[error("the relay did not introduce itself within {} s", LOGIN.as_secs())]
    Login,
    /// Nothing came for too long.
    #[error("the relay has gone silent")]
    Silent,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// The relay took us in: packets flow.
    Ready,
    /// A packet for us, as long as any.
    Packet {
        /// Who sent it, as the relay says.
        from: NodePublic,
        /// As it was sealed for us: the relay cannot read it.
        payload: &'a [u8],
    },
    /// A peer cannot be reached by this relay.
    PeerGone { peer: NodePublic, reason: GoneReason },
    /// What is wrong with our connection, in the relay's words; empty once it is right again.
    Health(&'a str),
    /// The relay is about to restart.
    Restarting {
        /// How long to wait before coming back.
        reconnect_in: Duration,
        /// How long to try before looking for another relay.
        try_for: Duration,
    },
}

/// Packets that were not sent, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientDrops {
    /// Newer ones came before the line was free.
    pub queue_full: u64,
    /// The relay's terms do not allow so many.
    pub rate: u64,
    /// Longer than any that is relayed.
    pub too_long: u64,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Client {
    key: NodePrivate,
    nonce: [u8; 24],
    stage: Stage,
    is_home: bool,
    pace: Option<TokenBucket>,
    control: Vec<u8>,
    disco: Queue,
    data: Queue,
    drops: ClientDrops,
    began: Instant,
    heard: Instant,
    /// Since when packets went out and nothing came.
    unanswered: Option<Instant>,
    /// When the relay was asked whether it is there.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The server has not said its key.
    Key,
    /// It has, and we who we are.
    Terms(NodePublic),
    Ready,
}

impl Client {
    /// A connection that is made now or soon. `nonce` is 24 random bytes, used once.
    pub fn new(key: NodePrivate, nonce: [u8; 24], is_home: bool, now: Instant) -> Self {
        Self {
            key,
            nonce,
            stage: Stage::Key,
            is_home,
            pace: None,
            control: Vec::new(),
            disco: Queue::new(DISCO_DEPTH, DISCO_BYTES),
            data: Queue::new(DATA_DEPTH, DATA_BYTES),
            drops: ClientDrops::default(),
            began: now,
            heard: now,
            unanswered: None,
            asked: None,
        }
    }

    /// The next connection in the place of this one, which is over: data that it did not send waits there. Its probes do not,
    /// whose answers would measure the wait.
    pub fn again(&mut self, nonce: [u8; 24], now: Instant) -> Self {
        let data = std::mem::replace(&mut self.data, Queue::new(DATA_DEPTH, DATA_BYTES));
        Self { data, ..Self::new(self.key.clone(), nonce, self.is_home, now) }
    }

    /// The HTTP upgrade is done: the relay has the word.
    pub const fn handle_connected(&mut self, now: Instant) {
        (self.began, self.heard, self.unanswered) = (now, now, None);
    }

    /// Reads the first frame of what has arrived: how many bytes it took, and what it says. None until it is whole.
    pub fn handle_bytes<'a>(
        &mut self,
        bytes: &'a [u8],
        now: Instant,
    ) -> Result<Option<(usize, Option<ClientEvent<'a>>)>, ClientError> {
        let Some((kind, length)) = header(bytes, CLIENT_FRAME)? else {
            return Ok(None);
        };
        let Some(body) = bytes.get(HEADER_LEN..HEADER_LEN + length) else {
            return Ok(None);
        };
        (self.heard, self.unanswered, self.asked) = (now, None, None);
        let event = self.handle_frame(Frame::decode(kind, body)?, now)?;
        Ok(Some((HEADER_LEN + length, event)))
    }

    fn handle_frame<'a>(&mut self, frame: Frame<'a>, now: Instant) -> Result<Option<ClientEvent<'a>>, ClientError> {
        match (self.stage, frame) {
            (Stage::Key, Frame::ServerKey(server)) => self.introduce(&server)?,
            // It begins with its key and nothing else.
            (Stage::Key, _) => return Err(DerpError::Magic.into()),
            (Stage::Terms(server), Frame::ServerInfo(sealed)) => {
                let terms = open_server_info(&self.key, &server, sealed)?;
                self.accept(terms, now);
                return Ok(Some(ClientEvent::Ready));
            }
            (Stage::Terms(_), _) => {}
            (Stage::Ready, frame) => return Ok(self.handle_word(frame)),
        }
        Ok(None)
    }

    fn handle_word<'a>(&mut self, frame: Frame<'a>) -> Option<ClientEvent<'a>> {
        match frame {
            Frame::RecvPacket { from, packet } => Some(ClientEvent::Packet { from, payload: packet }),
            Frame::PeerGone { peer, reason } => Some(ClientEvent::PeerGone { peer, reason }),
            Frame::Health(text) => Some(ClientEvent::Health(text)),
            Frame::Restarting { reconnect_in_ms, try_for_ms } => {
                let millis = |ms: u32| Duration::from_millis(ms.into());
                Some(ClientEvent::Restarting { reconnect_in: millis(reconnect_in_ms), try_for: millis(try_for_ms) })
            }
            Frame::Ping(data) => {
                if self.control.len() < CONTROL_BYTES {
                    Frame::Pong(data).encode(&mut self.control);
                }
                None
            }
            Frame::ServerKey(_)
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo(_)
            | Frame::SendPacket { .. }
            | Frame::KeepAlive
            | Frame::NotePreferred(_)
            | Frame::PeerPresent(_)
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_)
            | Frame::Pong(_)
            | Frame::Unknown(_) => None,
        }
    }

    fn introduce(&mut self, server: &NodePublic) -> Result<(), DerpError> {
        let info = ClientInfo { version: VERSION, can_ack_pings: true, ..ClientInfo::default() };
        let sealed = seal_client_info(&self.key, server, self.nonce, &info)?;
        Frame::ClientInfo { client: self.key.public(), sealed: &sealed }.encode(&mut self.control);
        if self.is_home {
            Frame::NotePreferred(true).encode(&mut self.control);
        }
        self.stage = Stage::Terms(*server);
        Ok(())
    }

    fn accept(&mut self, terms: ServerInfo, now: Instant) {
        let ServerInfo { bytes_per_second, burst_bytes, .. } = terms;
        self.pace =
            (bytes_per_second > 0).then(|| TokenBucket::new(bytes_per_second, burst_bytes.max(LEAST_BURST), now));
        self.stage = Stage::Ready;
    }

    /// Whether packets flow.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// Queues a packet. What may not go, or makes room for newer ones, is counted and lost.
    pub fn send(&mut self, to: &NodePublic, packet: &[u8], now: Instant) {
        if packet.len() > MAX_PACKET {
            self.drops.too_long += 1;
            return;
        }
        let length = to.as_bytes().len() + packet.len();
        if self.pace.as_mut().is_some_and(|pace| !pace.take(HEADER_LEN + length, now)) {
            self.drops.rate += 1;
            return;
        }
        let [a, b, c, d] = (length as u32).to_be_bytes();
        let head = [FrameType::SEND_PACKET.0, a, b, c, d];
        let queue = if packet.starts_with(&disco::MAGIC) { &mut self.disco } else { &mut self.data };
        self.drops.queue_full += queue.push(&[&head, to.as_bytes(), packet]) as u64;
        self.unanswered.get_or_insert(now);
    }

    /// Says whether this relay is our home.
    pub fn set_home(&mut self, is_home: bool) {
        if self.is_home != is_home {
            self.is_home = is_home;
            if self.stage != Stage::Key {
                Frame::NotePreferred(is_home).encode(&mut self.control);
            }
        }
    }

    /// Asks the relay whether it is there: the network changed under us.
    pub fn handle_network_changed(&mut self, now: Instant) {
        if self.is_ready() && self.asked.is_none() {
            self.ask(now);
        }
    }

    /// Time passed. An error ends the connection.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ClientError> {
        if now < self.poll_timeout() {
            return Ok(());
        }
        if !self.is_ready() {
            return Err(ClientError::Login);
        }
        if self.asked.is_some() || now >= self.heard + SILENCE {
            return Err(ClientError::Silent);
        }
        self.ask(now);
        Ok(())
    }

    /// When to come back.
    pub fn poll_timeout(&self) -> Instant {
        if !self.is_ready() {
            return self.began + LOGIN;
        }
        if let Some(asked) = self.asked {
            return asked + PONG;
        }
        let silence = self.heard + if self.is_home { HOME_SILENCE } else { SILENCE };
        self.unanswered.map_or(silence, |since| silence.min(since + UNANSWERED))
    }

    fn ask(&mut self, now: Instant) {
        self.asked = Some(now);
        Frame::Ping(*b"are here").encode(&mut self.control);
    }

    /// Moves everything that may be written to `out`: control, then probes, then data.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.control);
        if self.is_ready() {
            self.disco.take(out);
            self.data.take(out);
        }
    }

    /// Packets that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.disco.len() + self.data.len()
    }

    /// What was not sent so far.
    pub const fn drops(&self) -> ClientDrops {
        self.drops
    }
}

#[cfg(test)]
mod tests;
