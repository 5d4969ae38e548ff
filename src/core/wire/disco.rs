//! DISCO: the probes by which two nodes find a path, sealed from one disco key to another.
//!
//! ```text
//! magic 6 | sender's disco key 32 | nonce 24 | NaCl box of ( type u8 | version u8 = 0 | payload )
//! ```
//!
//! What follows a known payload is ignored, and so is a type that is not known: newer peers may say more.
//! The public half of the sender is in the clear, so that the receiver finds the shared secret, which
//! costs 30 times as much to compute as a message costs to open and is therefore kept.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crypto_box::SalsaBox;
use crypto_box::aead::AeadInPlace;
use thiserror::Error;

use crate::types::{DiscoPrivate, DiscoPublic, NodePublic};

/// `TS💬`: how a receiver tells a probe from WireGuard and STUN on the same port.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// The longest probe that is opened: the largest path MTU that is ever probed.
pub const MAX_LEN: usize = 9_000;
/// Endpoints taken from one `CallMeMaybe`; a node has interfaces × (local, mapped) of them, liars have more.
pub const MAX_CALLED_ENDPOINTS: usize = 64;

/// Bytes of a ping without padding, sealed.
pub const PING_LEN: usize = HEADER_LEN + TAG_LEN + 2 + 12 + KEY_LEN;

const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const HEADER_LEN: usize = MAGIC.len() + KEY_LEN + NONCE_LEN;
const ENDPOINT_LEN: usize = 18;

/// Binds a pong to its ping; 96 random bits, which the caller draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

/// What a probe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Are you there, on this path?
    Ping {
        /// What the pong must repeat.
        transaction: TransactionId,
        /// Who asks, by node key; absent from very old peers.
        node: Option<NodePublic>,
        /// Bytes of zero after it, to probe the path's MTU.
        padding: u16,
    },
    /// Yes, and I saw you come from there.
    Pong {
        /// From the ping.
        transaction: TransactionId,
        /// The source address of the ping as its receiver saw it.
        source: SocketAddr,
    },
    /// Sent through the relay: probe me at these addresses at once.
    CallMeMaybe {
        /// Where the sender may be reached.
        endpoints: Vec<SocketAddr>,
    },
    /// A type that this version does not act on: peer relays, and whatever comes.
    Other {
        /// The byte that says which message it is.
        kind: u8,
    },
}

/// Why a datagram is not a probe for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DiscoError {
    /// It does not begin with the magic and a key, or is longer than any probe.
    #[error("not a DISCO message")]
    NotDisco,
    /// It was not sealed for us by the key it names.
    #[error("a DISCO message does not open")]
    Sealed,
    /// It opened, but its payload is cut short.
    #[error("a DISCO message of type {0} is cut short")]
    Short(u8),
}

/// The secret that two disco keys share.
pub struct SharedKey(SalsaBox);

impl SharedKey {
    /// Computes it: 0.1 ms, so keep it per peer.
    pub fn new(ours: &DiscoPrivate, theirs: &DiscoPublic) -> Self {
        // The secret crosses into the cryptography library here, which zeroes its copy.
        let ours = crypto_box::SecretKey::from_bytes(*ours.expose_bytes());
        Self(SalsaBox::new(&crypto_box::PublicKey::from_bytes(*theirs.as_bytes()), &ours))
    }

    /// Seals a message from `us` into a datagram. A nonce is used once: 24 random bytes.
    pub fn seal(&self, us: &DiscoPublic, nonce: [u8; NONCE_LEN], message: &Message) -> Vec<u8> {
        let mut payload = message.encode();
        let Ok(tag) = self.0.encrypt_in_place_detached(&nonce.into(), b"", &mut payload) else {
            unreachable!("a message is far below the cipher's limit of 2^38 bytes")
        };
        let mut datagram = Vec::with_capacity(HEADER_LEN + TAG_LEN + payload.len());
        datagram.extend(MAGIC);
        datagram.extend(us.as_bytes());
        datagram.extend(nonce);
        datagram.extend(tag);
        datagram.extend(payload);
        datagram
    }

    /// Opens a datagram whose [`sender`] this secret is shared with.
    pub fn open(&self, datagram: &[u8]) -> Result<Message, DiscoError> {
        sender(datagram)?;
        let nonce: [u8; NONCE_LEN] = array(datagram, MAGIC.len() + KEY_LEN).ok_or(DiscoError::NotDisco)?;
        let tag: [u8; TAG_LEN] = array(datagram, HEADER_LEN).ok_or(DiscoError::NotDisco)?;
        let mut payload = datagram[HEADER_LEN + TAG_LEN..].to_vec();
        self.0
            .decrypt_in_place_detached(&nonce.into(), b"", &mut payload, &tag.into())
            .map_err(|_| DiscoError::Sealed)?;
        Message::decode(&payload)
    }
}

/// Whose key a datagram names, if it is a probe at all. Nothing vouches for it before it was opened.
pub fn sender(datagram: &[u8]) -> Result<DiscoPublic, DiscoError> {
    if !datagram.starts_with(&MAGIC) || datagram.len() < HEADER_LEN + TAG_LEN || datagram.len() > MAX_LEN {
        return Err(DiscoError::NotDisco);
    }
    array(datagram, MAGIC.len()).map(DiscoPublic::from_bytes).ok_or(DiscoError::NotDisco)
}

impl Message {
    const PING: u8 = 1;
    const PONG: u8 = 2;
    const CALL_ME_MAYBE: u8 = 3;
    const VERSION: u8 = 0;

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Ping { transaction, node, padding } => {
                bytes.extend([Self::PING, Self::VERSION]);
                bytes.extend(transaction.0);
                if let Some(node) = node {
                    bytes.extend(node.as_bytes());
                }
                bytes.resize(bytes.len() + usize::from(*padding), 0);
            }
            Self::Pong { transaction, source } => {
                bytes.extend([Self::PONG, Self::VERSION]);
                bytes.extend(transaction.0);
                push_endpoint(&mut bytes, *source);
            }
            Self::CallMeMaybe { endpoints } => {
                bytes.extend([Self::CALL_ME_MAYBE, Self::VERSION]);
                endpoints.iter().for_each(|endpoint| push_endpoint(&mut bytes, *endpoint));
            }
            Self::Other { kind } => bytes.extend([*kind, Self::VERSION]),
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, DiscoError> {
        let [kind, _version, payload @ ..] = bytes else {
            return Err(DiscoError::Short(0));
        };
        let short = DiscoError::Short(*kind);
        match *kind {
            Self::PING => {
                let transaction = TransactionId(array(payload, 0).ok_or(short)?);
                let node = array(payload, 12).map(NodePublic::from_bytes);
                let padding = payload.len().saturating_sub(12 + KEY_LEN);
                Ok(Self::Ping { transaction, node, padding: u16::try_from(padding).unwrap_or(u16::MAX) })
            }
            Self::PONG => {
                let transaction = TransactionId(array(payload, 0).ok_or(short)?);
                let source = payload.get(12..12 + ENDPOINT_LEN).and_then(read_endpoint).ok_or(short)?;
                Ok(Self::Pong { transaction, source })
            }
            Self::CALL_ME_MAYBE => {
                let endpoints = payload.chunks_exact(ENDPOINT_LEN).take(MAX_CALLED_ENDPOINTS);
                Ok(Self::CallMeMaybe { endpoints: endpoints.filter_map(read_endpoint).collect() })
            }
            kind => Ok(Self::Other { kind }),
        }
    }
}

/// An address as 16 bytes, IPv4 mapped into IPv6, and the port, big-endian.
fn push_endpoint(bytes: &mut Vec<u8>, endpoint: SocketAddr) {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    bytes.extend(ip.octets());
    bytes.extend(endpoint.port().to_be_bytes());
}

fn read_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let ip = Ipv6Addr::from(array::<16>(bytes, 0)?).to_canonical();
    Some(SocketAddr::new(ip, u16::from_be_bytes(array(bytes, 16)?)))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> (DiscoPrivate, DiscoPrivate) {
        (DiscoPrivate::from_random([1; 32]), DiscoPrivate::from_random([2; 32]))
    }

    fn round_trip(message: &Message) -> Message {
        let (ours, theirs) = keys();
        let datagram = SharedKey::new(&ours, &theirs.public()).seal(&ours.public(), [9; 24], message);
        assert_eq!(sender(&datagram), Ok(ours.public()));
        SharedKey::new(&theirs, &ours.public()).open(&datagram).unwrap()
    }

    #[test]
    fn a_ping_has_the_payload_that_peers_expect() {
        let node = NodePublic::from_bytes([7; 32]);
        let ping = Message::Ping { transaction: TransactionId([3; 12]), node: Some(node), padding: 2 };
        let expected: &[&[u8]] = &[b"\x01\x00", &[3; 12], &[7; 32], &[0; 2]];
        assert_eq!(ping.encode(), expected.concat());
        assert_eq!(round_trip(&ping), ping);
    }

    #[test]
    fn a_ping_is_as_long_as_its_padding_makes_it() {
        let (ours, theirs) = keys();
        for padding in [0, 1_188] {
            let node = Some(NodePublic::from_bytes([7; 32]));
            let ping = Message::Ping { transaction: TransactionId([3; 12]), node, padding };
            let datagram = SharedKey::new(&ours, &theirs.public()).seal(&ours.public(), [9; 24], &ping);
            assert_eq!(datagram.len(), PING_LEN + usize::from(padding));
        }
    }

    #[test]
    fn a_pong_maps_ipv4_into_ipv6() {
        let pong = Message::Pong { transaction: TransactionId([3; 12]), source: "192.0.2.1:41741".parse().unwrap() };
        let expected: &[&[u8]] = &[b"\x02\x00", &[3; 12], &[0; 10], b"\xff\xff", b"\xc0\x00\x02\x01", b"\xa3\x0d"];
        assert_eq!(pong.encode(), expected.concat());
        assert_eq!(round_trip(&pong), pong);
    }

    #[test]
    fn a_call_me_maybe_carries_its_endpoints_up_to_the_limit() {
        let endpoints: Vec<SocketAddr> = (0..100).map(|n| ([192, 0, 2, 1], 1000 + n).into()).collect();
        let Message::CallMeMaybe { endpoints: read } =
            round_trip(&Message::CallMeMaybe { endpoints: endpoints.clone() })
        else {
            panic!("another type came back")
        };
        assert_eq!(read, endpoints[..MAX_CALLED_ENDPOINTS]);
    }

    #[test]
    fn a_newer_type_is_read_and_left_alone() {
        assert_eq!(round_trip(&Message::Other { kind: 9 }), Message::Other { kind: 9 });
    }

    #[test]
    fn an_altered_probe_or_one_for_somebody_else_does_not_open() {
        let (ours, theirs) = keys();
        let message = Message::CallMeMaybe { endpoints: Vec::new() };
        let mut datagram = SharedKey::new(&ours, &theirs.public()).seal(&ours.public(), [9; 24], &message);
        let stranger = DiscoPrivate::from_random([5; 32]);
        assert_eq!(SharedKey::new(&stranger, &ours.public()).open(&datagram), Err(DiscoError::Sealed));
        *datagram.last_mut().unwrap() ^= 1;
        assert_eq!(SharedKey::new(&theirs, &ours.public()).open(&datagram), Err(DiscoError::Sealed));
    }

    proptest! {
        #[test]
        fn any_payload_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn any_datagram_is_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() >= 6 {
                bytes[..6].copy_from_slice(&MAGIC);
            }
            let (ours, theirs) = keys();
            let _ = sender(&bytes);
            prop_assert!(SharedKey::new(&ours, &theirs.public()).open(&bytes).is_err());
        }
    }
}
