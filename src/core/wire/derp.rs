//! The relay protocol's frames: `type u8 | length u32be | body`.
//!
//! A node is addressed by its node key. The server opens with its key, the client answers with who it is, sealed
//! to that key (which proves that it holds its own), the server seals its terms in return; then packets flow. A
//! [`Frame`] borrows its body, so that relaying copies nothing here. Unknown types are [`Frame::Unknown`] and are
//! ignored by both ends.

use crypto_box::SalsaBox;
use crypto_box::aead::AeadInPlace;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::types::{Limit, LimitError, NodePrivate, NodePublic};

/// The protocol version that both ends announce.
pub const VERSION: u32 = 2;
/// Type and length.
pub const HEADER_LEN: usize = 5;
/// The longest packet that is relayed: a UDP datagram.
pub const MAX_PACKET: usize = 64 << 10;
/// What a client may send before it is known: the introduction is small.
pub const CLIENT_INFO: Limit = Limit::new("bytes of client information", 4 << 10);
/// The longest frame a server takes from a known client: a forwarded packet with both keys.
pub const SERVER_FRAME: Limit = Limit::new("bytes in a frame to the relay", MAX_PACKET + 2 * KEY_LEN);
/// The longest frame a client takes from a server: the protocol's own bound.
pub const CLIENT_FRAME: Limit = Limit::new("bytes in a frame from the relay", 1 << 20);
/// The longest ping body; more is a way to make the other end work.
pub const MAX_PING: usize = 1000;

const MAGIC: &[u8; 8] = b"DERP\xf0\x9f\x94\x91";
const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// A frame's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameType(pub u8);

impl FrameType {
    pub const SERVER_KEY: Self = Self(0x01);
    pub const CLIENT_INFO: Self = Self(0x02);
    pub const SERVER_INFO: Self = Self(0x03);
    pub const SEND_PACKET: Self = Self(0x04);
    pub const RECV_PACKET: Self = Self(0x05);
    pub const KEEP_ALIVE: Self = Self(0x06);
    pub const NOTE_PREFERRED: Self = Self(0x07);
    pub const PEER_GONE: Self = Self(0x08);
    pub const PEER_PRESENT: Self = Self(0x09);
    pub const FORWARD_PACKET: Self = Self(0x0a);
    pub const WATCH_CONNS: Self = Self(0x10);
    pub const CLOSE_PEER: Self = Self(0x11);
    pub const PING: Self = Self(0x12);
    pub const PONG: Self = Self(0x13);
    pub const HEALTH: Self = Self(0x14);
    pub const RESTARTING: Self = Self(0x15);
}

/// A frame, its body borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Server to client, first: the server's key.
    ServerKey(NodePublic),
    /// Client to server: who it is; open with [`open_client_info`].
    ClientInfo {
        /// The client's node key.
        client: NodePublic,
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Server to client: its terms; open with [`open_server_info`].
    ServerInfo(&'a [u8]),
    /// Client to server: relay this.
    SendPacket { to: NodePublic, packet: &'a [u8] },
    /// Server to client: this came for you.
    RecvPacket { from: NodePublic, packet: &'a [u8] },
    /// Server to client, about once a minute.
    KeepAlive,
    /// Client to server: whether this is the client's home.
    NotePreferred(bool),
    /// Server to client: do not send to this one here.
    PeerGone { peer: NodePublic, reason: GoneReason },
    /// Server to a mesh peer: this one is connected here.
    PeerPresent(NodePublic),
    /// From a mesh peer: relay this for a client of mine.
    ForwardPacket { from: NodePublic, to: NodePublic, packet: &'a [u8] },
    /// From a mesh peer: tell me who comes and goes.
    WatchConns,
    /// From a mesh peer: close this one's connection.
    ClosePeer(NodePublic),
    /// Answer with the same eight bytes.
    Ping([u8; 8]),
    /// The answer to a ping.
    Pong([u8; 8]),
    /// Server to client: what is wrong with the connection; empty when nothing is.
    Health(&'a str),
    /// Server to client: about to restart.
    Restarting {
        /// Wait so long before connecting again, in milliseconds.
        reconnect_in_ms: u32,
        /// Keep trying for so long, in milliseconds.
        try_for_ms: u32,
    },
    /// A type that this version does not know.
    Unknown(FrameType),
}

/// Why a peer cannot be reached through this relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// It was here and left.
    Disconnected,
    /// It is not here.
    NotHere,
    /// A reason that this version does not know.
    Other(u8),
}

/// What a client says of itself.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    pub version: u32,
    /// The secret that relays of one region share; empty for a node.
    #[serde(rename = "meshKey", skip_serializing_if = "String::is_empty")]
    pub mesh_key: String,
    /// Whether it answers pings.
    #[serde(rename = "CanAckPings", skip_serializing_if = "std::ops::Not::not")]
    pub can_ack_pings: bool,
    /// Whether it only measures.
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
}

/// The server's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    pub version: u32,
    /// How fast the client may send, in bytes a second; 0 for no limit. More than that the client drops.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub bytes_per_second: u64,
    /// How many bytes at once.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub burst_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DerpError {
    /// The frame is longer than the receiver takes.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The body is too short for its type.
    #[error("a relay frame of type {0:#04x} is cut short")]
    Short(u8),
    /// The server's first frame does not begin with the protocol's magic.
    #[error("this is not a relay: its first frame has the wrong magic")]
    Magic,
    /// The introduction was not sealed by the key it names, or not for us.
    #[error("the introduction does not open")]
    Sealed,
    /// The frame is for relays of the same region only.
    #[error("this client is no relay of the region")]
    NotAllowed,
    /// What was sealed is not the JSON it should be.
    #[error("the introduction does not parse: {0}")]
    Json(String),
}

/// The next frame's type and body length, once its header has arrived. The length is within `limit`.
pub fn header(bytes: &[u8], limit: Limit) -> Result<Option<(FrameType, usize)>, DerpError> {
    let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    limit.check(length)?;
    Ok(Some((FrameType(kind), length)))
}

impl<'a> Frame<'a> {
    /// Reads a body.
    pub fn decode(kind: FrameType, body: &'a [u8]) -> Result<Self, DerpError> {
        Self::read(kind, body)?.ok_or(DerpError::Short(kind.0))
    }

    fn read(kind: FrameType, body: &'a [u8]) -> Result<Option<Self>, DerpError> {
        let key = |at: usize| body.get(at..)?.first_chunk().copied().map(NodePublic::from_bytes);
        let eight = || body.first_chunk().copied().filter(|_| body.len() <= MAX_PING);
        Ok(match kind {
            FrameType::SERVER_KEY => {
                if !body.starts_with(MAGIC) {
                    return Err(DerpError::Magic);
                }
                key(MAGIC.len()).map(Self::ServerKey)
            }
            FrameType::CLIENT_INFO => key(0).map(|client| Self::ClientInfo { client, sealed: &body[KEY_LEN..] }),
            FrameType::SERVER_INFO => Some(Self::ServerInfo(body)),
            FrameType::SEND_PACKET => key(0).map(|to| Self::SendPacket { to, packet: &body[KEY_LEN..] }),
            FrameType::RECV_PACKET => key(0).map(|from| Self::RecvPacket { from, packet: &body[KEY_LEN..] }),
            FrameType::KEEP_ALIVE => Some(Self::KeepAlive),
            FrameType::NOTE_PREFERRED => body.first().map(|home| Self::NotePreferred(*home != 0)),
            FrameType::PEER_GONE => {
                let reason = GoneReason::from_byte(body.get(KEY_LEN).copied().unwrap_or_default());
                key(0).map(|peer| Self::PeerGone { peer, reason })
            }
            FrameType::PEER_PRESENT => key(0).map(Self::PeerPresent),
            FrameType::FORWARD_PACKET => key(0).zip(key(KEY_LEN)).map(|(from, to)| Self::ForwardPacket {
                from,
                to,
                packet: &body[2 * KEY_LEN..],
            }),
            FrameType::WATCH_CONNS => Some(Self::WatchConns),
            FrameType::CLOSE_PEER => key(0).map(Self::ClosePeer),
            FrameType::PING => eight().map(Self::Ping),
            FrameType::PONG => eight().map(Self::Pong),
            FrameType::HEALTH => std::str::from_utf8(body).ok().map(Self::Health),
            FrameType::RESTARTING => body.first_chunk::<8>().map(|&[a, b, c, d, e, f, g, h]| Self::Restarting {
                reconnect_in_ms: u32::from_be_bytes([a, b, c, d]),
                try_for_ms: u32::from_be_bytes([e, f, g, h]),
            }),
            kind => Some(Self::Unknown(kind)),
        })
    }

    /// The frame's type.
    pub const fn kind(&self) -> FrameType {
        match self {
            Self::ServerKey(_) => FrameType::SERVER_KEY,
            Self::ClientInfo { .. } => FrameType::CLIENT_INFO,
            Self::ServerInfo(_) => FrameType::SERVER_INFO,
            Self::SendPacket { .. } => FrameType::SEND_PACKET,
            Self::RecvPacket { .. } => FrameType::RECV_PACKET,
            Self::KeepAlive => FrameType::KEEP_ALIVE,
            Self::NotePreferred(_) => FrameType::NOTE_PREFERRED,
            Self::PeerGone { .. } => FrameType::PEER_GONE,
            Self::PeerPresent(_) => FrameType::PEER_PRESENT,
            Self::ForwardPacket { .. } => FrameType::FORWARD_PACKET,
            Self::WatchConns => FrameType::WATCH_CONNS,
            Self::ClosePeer(_) => FrameType::CLOSE_PEER,
            Self::Ping(_) => FrameType::PING,
            Self::Pong(_) => FrameType::PONG,
            Self::Health(_) => FrameType::HEALTH,
            Self::Restarting { .. } => FrameType::RESTARTING,
            Self::Unknown(kind) => *kind,
        }
    }

    /// Appends the frame, header and all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.kind().0);
        out.extend([0; 4]);
        match self {
            Self::ServerKey(key) => {
                out.extend(MAGIC);
                out.extend(key.as_bytes());
            }
            Self::ClientInfo { client: key, sealed: rest }
            | Self::SendPacket { to: key, packet: rest }
            | Self::RecvPacket { from: key, packet: rest } => {
                out.extend(key.as_bytes());
                out.extend(*rest);
            }
            Self::ServerInfo(sealed) => out.extend(*sealed),
            Self::KeepAlive | Self::WatchConns | Self::Unknown(_) => {}
            Self::NotePreferred(home) => out.push(u8::from(*home)),
            Self::PeerGone { peer, reason } => {
                out.extend(peer.as_bytes());
                out.push(reason.to_byte());
            }
            Self::PeerPresent(peer) | Self::ClosePeer(peer) => out.extend(peer.as_bytes()),
            Self::ForwardPacket { from, to, packet } => {
                out.extend(from.as_bytes());
                out.extend(to.as_bytes());
                out.extend(*packet);
            }
            Self::Ping(data) | Self::Pong(data) => out.extend(data),
            Self::Health(text) => out.extend(text.as_bytes()),
            Self::Restarting { reconnect_in_ms, try_for_ms } => {
                out.extend(reconnect_in_ms.to_be_bytes());
                out.extend(try_for_ms.to_be_bytes());
            }
        }
        let length = (out.len() - start - HEADER_LEN) as u32;
        out[start + 1..start + HEADER_LEN].copy_from_slice(&length.to_be_bytes());
    }
}

impl GoneReason {
    const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }

    const fn to_byte(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(other) => other,
        }
    }
}

/// Seals a client's introduction to a server. A nonce is used once: 24 random bytes.
pub fn seal_client_info(
    ours: &NodePrivate,
    server: &NodePublic,
    nonce: [u8; NONCE_LEN],
    info: &ClientInfo,
) -> Result<Vec<u8>, DerpError> {
    seal(ours, server, nonce, info)
}

/// Opens a client's introduction: proof that the client holds the key it names.
pub fn open_client_info(ours: &NodePrivate, client: &NodePublic, sealed: &[u8]) -> Result<ClientInfo, DerpError> {
    open(ours, client, sealed)
}

/// Seals a server's terms to a client. A nonce is used once: 24 random bytes.
pub fn seal_server_info(
    ours: &NodePrivate,
    client: &NodePublic,
    nonce: [u8; NONCE_LEN],
    info: ServerInfo,
) -> Result<Vec<u8>, DerpError> {
    seal(ours, client, nonce, &info)
}

/// Opens a server's terms.
pub fn open_server_info(ours: &NodePrivate, server: &NodePublic, sealed: &[u8]) -> Result<ServerInfo, DerpError> {
    open(ours, server, sealed)
}

fn seal<T: Serialize>(
    ours: &NodePrivate,
    theirs: &NodePublic,
    nonce: [u8; NONCE_LEN],
    value: &T,
) -> Result<Vec<u8>, DerpError> {
    let mut text = serde_json::to_vec(value).map_err(|error| DerpError::Json(error.to_string()))?;
    let tag =
        shared(ours, theirs).encrypt_in_place_detached(&nonce.into(), b"", &mut text).map_err(|_| DerpError::Sealed)?;
    Ok([nonce.as_slice(), &tag, &text].concat())
}

fn open<T: for<'de> Deserialize<'de>>(ours: &NodePrivate, theirs: &NodePublic, sealed: &[u8]) -> Result<T, DerpError> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(DerpError::Sealed)?;
    let (tag, text) = rest.split_first_chunk::<TAG_LEN>().ok_or(DerpError::Sealed)?;
    let mut text = text.to_vec();
    shared(ours, theirs)
        .decrypt_in_place_detached(nonce.into(), b"", &mut text, tag.into())
        .map_err(|_| DerpError::Sealed)?;
    serde_json::from_slice(&text).map_err(|error| DerpError::Json(error.to_string()))
}

fn shared(ours: &NodePrivate, theirs: &NodePublic) -> SalsaBox {
    // The secret crosses into the cryptography library here, which zeroes its copy.
    let ours = crypto_box::SecretKey::from_bytes(*ours.expose_bytes());
    SalsaBox::new(&crypto_box::PublicKey::from_bytes(*theirs.as_bytes()), &ours)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(frame: Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn frames_have_the_bytes_that_other_ends_expect() {
        let key = NodePublic::from_bytes([7; 32]);
        let cases: [(Frame<'_>, &[&[u8]]); 6] = [
            (Frame::ServerKey(key), &[b"\x01\x00\x00\x00\x28DERP\xf0\x9f\x94\x91", &[7; 32]]),
            (Frame::SendPacket { to: key, packet: b"hi" }, &[b"\x04\x00\x00\x00\x22", &[7; 32], b"hi"]),
            (Frame::KeepAlive, &[b"\x06\x00\x00\x00\x00"]),
            (Frame::PeerGone { peer: key, reason: GoneReason::NotHere }, &[b"\x08\x00\x00\x00\x21", &[7; 32], b"\x01"]),
            (Frame::Ping(*b"abcdefgh"), &[b"\x12\x00\x00\x00\x08abcdefgh"]),
            (
                Frame::Restarting { reconnect_in_ms: 1, try_for_ms: 2 },
                &[b"\x15\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x02"],
            ),
        ];
        for (frame, expected) in cases {
            assert_eq!(bytes_of(frame), expected.concat(), "{frame:?}");
        }
    }

    #[test]
    fn an_introduction_opens_only_for_whom_it_is_sealed_and_from_whom_it_says() {
        let (client, server, stranger) = ([1, 2, 3]).map(|n| NodePrivate::from_random([n; 32])).into();
        let info = ClientInfo { version: VERSION, can_ack_pings: true, ..ClientInfo::default() };
        let sealed = seal_client_info(&client, &server.public(), [9; 24], &info).unwrap();
        assert!(open_client_info(&server, &client.public(), &sealed).unwrap().can_ack_pings);
        assert_eq!(open_client_info(&server, &stranger.public(), &sealed).err(), Some(DerpError::Sealed));
        assert_eq!(open_client_info(&stranger, &client.public(), &sealed).err(), Some(DerpError::Sealed));
        assert_eq!(open_client_info(&server, &client.public(), &sealed[..20]).err(), Some(DerpError::Sealed));
    }

    #[test]
    fn terms_are_written_only_where_there_are_any() {
        let (client, server): (NodePrivate, NodePrivate) = ([1, 2]).map(|n| NodePrivate::from_random([n; 32])).into();
        let terms = ServerInfo { version: VERSION, bytes_per_second: 1000, burst_bytes: 64 };
        let sealed = seal_server_info(&server, &client.public(), [9; 24], terms).unwrap();
        assert_eq!(open_server_info(&client, &server.public(), &sealed), Ok(terms));
        let free = ServerInfo { version: VERSION, ..ServerInfo::default() };
        assert_eq!(serde_json::to_string(&free).unwrap(), r#"{"version":2}"#);
    }

    #[test]
    fn a_frame_past_the_limit_is_refused_by_its_header_alone() {
        assert_eq!(header(b"\x04\x00\x01", SERVER_FRAME), Ok(None));
        assert_eq!(header(b"\x04\x00\x01\x00\x40", SERVER_FRAME), Ok(Some((FrameType::SEND_PACKET, 0x1_0040))));
        assert!(matches!(header(b"\x04\x00\x01\x00\x41", SERVER_FRAME), Err(DerpError::Limit(_))));
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_a_panic_and_what_was_read_is_written_the_same(
            kind: u8,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(frame) = Frame::decode(FrameType(kind), &body) {
                let bytes = bytes_of(frame);
                let (again, length) = header(&bytes, CLIENT_FRAME).unwrap().unwrap();
                prop_assert_eq!(length, bytes.len() - HEADER_LEN);
                prop_assert_eq!(Frame::decode(again, &bytes[HEADER_LEN..]), Ok(frame));
            }
        }
    }
}
