//! A digest of the device, to notice that somebody changed it.
//!
//! Kernels send no notice of WireGuard changes, so the monitor compares digests. A digest takes in keys,
//! port, mark, allowed IPs, keep-alive and preshared keys; it leaves out what moves by itself: endpoints,
//! counters and handshake times. It walks the bytes of the dump in place, without making values of them.

use std::hash::{DefaultHasher, Hash, Hasher};

use netlink_packet_core::{DecodeError, Emitable, NLA_TYPE_MASK, NlasIterator, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use netlink_packet_wireguard::WireguardMessage;

/// `WGDEVICE_A_PEERS`.
const DEVICE_PEERS: u16 = 8;
/// `WGPEER_A_ENDPOINT`, `WGPEER_A_LAST_HANDSHAKE_TIME`, `WGPEER_A_RX_BYTES`, `WGPEER_A_TX_BYTES`.
const PEER_MOVES_BY_ITSELF: [u16; 4] = [4, 6, 7, 8];

/// What one message or a whole dump comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    value: u64,
    /// How many peers were read; one that is split counts for as many.
    peers: u64,
    /// What to ask the kernel; only a digest that is about to be sent has it.
    question: Option<WireguardMessage>,
}

impl Digest {
    /// Adds the next message of the dump. A sum, so that it does not matter where one message ends and
    /// the next begins: that moves with the size of what is left out.
    pub(super) fn append(&mut self, next: Self) {
        self.value = self.value.wrapping_add(next.value);
        self.peers += next.peers;
    }

    /// How many peers were read.
    pub(crate) fn peers(&self) -> u64 {
        self.peers
    }
}

impl From<WireguardMessage> for Digest {
    fn from(question: WireguardMessage) -> Self {
        Self { question: Some(question), ..Self::default() }
    }
}

impl GenlFamily for Digest {
    fn family_name() -> &'static str {
        WireguardMessage::family_name()
    }

    fn version(&self) -> u8 {
        1
    }

    fn command(&self) -> u8 {
        self.question.as_ref().map_or(0, GenlFamily::command)
    }
}

impl Emitable for Digest {
    fn buffer_len(&self) -> usize {
        self.question.as_ref().map_or(0, Emitable::buffer_len)
    }

    fn emit(&self, buffer: &mut [u8]) {
        if let Some(question) = &self.question {
            question.emit(buffer);
        }
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Digest {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut value: u64 = 0;
        let mut peers = 0;
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            if attribute.kind() & NLA_TYPE_MASK != DEVICE_PEERS {
                let mut hasher = DefaultHasher::new();
                (attribute.kind(), attribute.value()).hash(&mut hasher);
                value = value.wrapping_add(hasher.finish());
                continue;
            }
            for peer in NlasIterator::new(attribute.value()) {
                let mut hasher = DefaultHasher::new();
                for part in NlasIterator::new(peer?.value()) {
                    let part = part?;
                    if !PEER_MOVES_BY_ITSELF.contains(&(part.kind() & NLA_TYPE_MASK)) {
                        (part.kind(), part.value()).hash(&mut hasher);
                    }
                }
                value = value.wrapping_add(hasher.finish());
                peers += 1;
            }
        }
        Ok(Self { value, peers, question: None })
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_wireguard::{
        WireguardAttribute, WireguardCmd, WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec,
    };

    use super::*;

    fn digest_of(peer: Vec<WireguardPeerAttribute>) -> Digest {
        let message = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::ListenPort(7), WireguardAttribute::Peers(vec![WireguardPeer(peer)])],
        };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut digest = Digest::default();
        digest.append(Digest::parse_with_param(&bytes, GenlHeader { cmd: 0, version: 1 }).unwrap());
        digest
    }

    #[test]
    fn traffic_and_roaming_leave_the_digest_as_it_is() {
        let key = WireguardPeerAttribute::PublicKey([1; 32]);
        let quiet = digest_of(vec![key.clone(), WireguardPeerAttribute::RxBytes(0)]);
        let busy = digest_of(vec![
            key,
            WireguardPeerAttribute::Endpoint(([192, 0, 2, 1], 7).into()),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds: 9, nano_seconds: 9 }),
            WireguardPeerAttribute::RxBytes(9),
            WireguardPeerAttribute::TxBytes(9),
        ]);
        assert_eq!(quiet, busy);
    }

    #[test]
    fn a_changed_peer_changes_the_digest() {
        let key = WireguardPeerAttribute::PublicKey([1; 32]);
        let before = digest_of(vec![key.clone(), WireguardPeerAttribute::PersistentKeepalive(0)]);
        let after = digest_of(vec![key, WireguardPeerAttribute::PersistentKeepalive(25)]);
        let other = digest_of(vec![WireguardPeerAttribute::PublicKey([2; 32])]);
        assert_ne!(before, after);
        assert_ne!(before, other);
    }
}
