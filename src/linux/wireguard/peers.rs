//! Peers as messages, and messages as peers.
//!
//! A change is said in *parts*: each names a peer and at most [`IPS_PER_PART`] of its allowed IPs; what is longer goes
//! on in the next, and nothing here ever replaces a list, so the split needs no care. [`messages`] packs the parts of
//! any number of changes: the kernel takes them one after the other and stops at the first that it refuses. Only
//! [`add`] may bring a peer into being: everything else changes a peer that is there, and is nothing where it is not.

use std::net::SocketAddr;

use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardAttribute,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use warren_core::plan::{DesiredEndpoint, ObservedDevice, ObservedPeer, PeerConfig};
use warren_core::types::{IpNet, NodePrivate, NodePublic, Timestamp};

use super::change;
use crate::netlink::first;

/// The most allowed IPs in one part: about 24 KB.
const IPS_PER_PART: usize = 500;
/// The most bytes of parts in one message, some 200 ordinary peers: a netlink attribute holds at most 64 KiB.
const PARTS_BYTES: usize = 32 << 10;

/// A peer nobody holds the private key of: on its way out it takes the allowed IPs along that it was given.
const THROW_AWAY: NodePublic = NodePublic::from_bytes(*b"warren throws allowed IPs away!!");

/// As few messages as these parts fit in, in the same order.
pub(super) fn messages(parts: impl IntoIterator<Item = WireguardPeer>) -> Vec<WireguardMessage> {
    let mut messages = Vec::new();
    let (mut peers, mut bytes) = (Vec::new(), 0);
    for part in parts {
        let more = part.buffer_len();
        if bytes + more > PARTS_BYTES && !peers.is_empty() {
            messages.push(change(WireguardAttribute::Peers(std::mem::take(&mut peers))));
            bytes = 0;
        }
        bytes += more;
        peers.push(part);
    }
    if !peers.is_empty() {
        messages.push(change(WireguardAttribute::Peers(peers)));
    }
    messages
}

/// Adds a peer whole.
pub(super) fn add(key: &NodePublic, peer: &PeerConfig) -> Vec<WireguardPeer> {
    let mut attributes = vec![WireguardPeerAttribute::PersistentKeepalive(peer.keepalive)];
    if let DesiredEndpoint::Initial(endpoint) | DesiredEndpoint::Move(endpoint) = peer.endpoint {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    let mut chunks = chunks(&peer.allowed_ips, None).into_iter();
    attributes.extend(chunks.next().map(WireguardPeerAttribute::AllowedIps));
    let first = part(key, WireguardPeerFlags::empty(), attributes);
    let rest = chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk)));
    std::iter::once(first).chain(rest).collect()
}

/// Gives a present peer more allowed IPs; each moves here from whoever has it.
pub(super) fn add_allowed_ips<'a>(
    key: &NodePublic,
    allowed_ips: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<WireguardPeer> {
    let chunks = chunks(allowed_ips, None).into_iter();
    chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk))).collect()
}

/// Takes allowed IPs from a present peer; kernels before 6.16 refuse with EINVAL and change nothing.
pub(super) fn remove_allowed_ips<'a>(
    key: &NodePublic,
    allowed_ips: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<WireguardPeer> {
    let chunks = chunks(allowed_ips, Some(WireguardAllowedIpFlags::RemoveMe)).into_iter();
    chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk))).collect()
}

/// Takes allowed IPs from whoever has them: a throw-away peer gets them and is removed at once.
///
/// Giving an allowed IP away takes it from its owner without touching the others, so those that stay have
/// no gap. Should the second half be lost, the stranger is found and removed like any other.
pub(super) fn throw_away<'a>(allowed_ips: impl IntoIterator<Item = &'a IpNet>) -> Vec<WireguardPeer> {
    let mut parts: Vec<_> = chunks(allowed_ips, None)
        .into_iter()
        .map(|chunk| {
            let attributes = vec![WireguardPeerAttribute::AllowedIps(chunk)];
            part(&THROW_AWAY, WireguardPeerFlags::empty(), attributes)
        })
        .collect();
    parts.extend(remove(&THROW_AWAY));
    parts
}

/// Moves a present peer's endpoint.
pub(super) fn set_endpoint(key: &NodePublic, endpoint: SocketAddr) -> Vec<WireguardPeer> {
    vec![update(key, WireguardPeerAttribute::Endpoint(endpoint))]
}

/// Sets a present peer's keep-alive interval.
pub(super) fn set_keepalive(key: &NodePublic, seconds: u16) -> Vec<WireguardPeer> {
    vec![update(key, WireguardPeerAttribute::PersistentKeepalive(seconds))]
}

/// Removes a peer.
pub(super) fn remove(key: &NodePublic) -> Vec<WireguardPeer> {
    vec![part(key, WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly, Vec::new())]
}

/// Adds one message of a dump to the device. A peer too long for one message goes on in the next, so
/// peers are merged by key.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library knows more attributes than are read")]
pub(super) fn read(device: &mut ObservedDevice, message: WireguardMessage) {
    for attribute in message.attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) if key != [0; 32] => {
                device.private_key = Some(NodePrivate::from_random(key));
            }
            WireguardAttribute::ListenPort(port) => device.listen_port = port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    read_peer(device, peer);
                }
            }
            _ => {}
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library knows more attributes than are read")]
fn read_peer(device: &mut ObservedDevice, part: WireguardPeer) {
    let Some(key) = first!(part.0, WireguardPeerAttribute::PublicKey) else { return };
    let peer: &mut ObservedPeer = device.peers.entry(NodePublic::from_bytes(*key)).or_default();
    for attribute in part.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = bytes,
            WireguardPeerAttribute::LastHandshake(time) if time.seconds != 0 || time.nano_seconds != 0 => {
                let nanoseconds = i32::try_from(time.nano_seconds).unwrap_or_default();
                peer.last_handshake = Timestamp::new(time.seconds, nanoseconds).ok();
            }
            WireguardPeerAttribute::AllowedIps(ips) => peer.allowed_ips.extend(ips.iter().filter_map(read_ip)),
            _ => {}
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library knows more attributes than are read")]
fn read_ip(ip: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in &ip.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(value) => address = Some(*value),
            WireguardAllowedIpAttr::Cidr(value) => length = Some(*value),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

fn chunks<'a>(
    allowed_ips: impl IntoIterator<Item = &'a IpNet>,
    flags: Option<WireguardAllowedIpFlags>,
) -> Vec<Vec<WireguardAllowedIp>> {
    let ips: Vec<_> = allowed_ips.into_iter().map(|ip| write_ip(ip, flags)).collect();
    ips.chunks(IPS_PER_PART).map(<[_]>::to_vec).collect()
}

fn write_ip(ip: &IpNet, flags: Option<WireguardAllowedIpFlags>) -> WireguardAllowedIp {
    let family = match ip {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    let mut attributes = vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(ip.addr()),
        WireguardAllowedIpAttr::Cidr(ip.prefix_len()),
    ];
    attributes.extend(flags.map(WireguardAllowedIpAttr::Flags));
    WireguardAllowedIp(attributes)
}

fn update(key: &NodePublic, attribute: WireguardPeerAttribute) -> WireguardPeer {
    part(key, WireguardPeerFlags::UpdateOnly, vec![attribute])
}

fn part(key: &NodePublic, flags: WireguardPeerFlags, more: Vec<WireguardPeerAttribute>) -> WireguardPeer {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes()), WireguardPeerAttribute::Flags(flags)];
    attributes.extend(more);
    WireguardPeer(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    fn many_ips(count: u32) -> Vec<IpNet> {
        (0..count).map(|n| IpNet::from(std::net::IpAddr::from((0x6440_0000 + n).to_be_bytes()))).collect()
    }

    fn peers_of(message: &WireguardMessage) -> &[WireguardPeer] {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                WireguardAttribute::Peers(peers) => Some(peers.as_slice()),
                _ => None,
            })
            .unwrap()
    }

    fn flags_of(peer: &WireguardPeer) -> WireguardPeerFlags {
        peer.0
            .iter()
            .find_map(|attribute| match attribute {
                WireguardPeerAttribute::Flags(flags) => Some(*flags),
                _ => None,
            })
            .unwrap()
    }

    #[test]
    fn a_peer_with_many_allowed_ips_is_split_and_no_message_outgrows_an_attribute() {
        let peer = PeerConfig { allowed_ips: many_ips(1_234).into_iter().collect(), ..PeerConfig::default() };

        let parts = add(&key(1), &peer);

        let flags: Vec<_> = parts.iter().map(flags_of).collect();
        let update_only = WireguardPeerFlags::UpdateOnly;
        assert_eq!(flags, [WireguardPeerFlags::empty(), update_only, update_only]);
        let messages = messages(parts);
        assert_eq!(messages.len(), 2, "the last part is short enough to go with the one before");
        assert!(messages.iter().all(|message| message.buffer_len() < usize::from(u16::MAX) * 3 / 4));
    }

    #[test]
    fn many_peers_go_in_few_messages_that_keep_their_order() {
        let peer = PeerConfig { allowed_ips: many_ips(2).into_iter().collect(), ..PeerConfig::default() };
        let scattered = |number: u16| NodePublic::from_bytes([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let keys: Vec<NodePublic> = (0..1_000).map(scattered).collect();

        let messages = messages(keys.iter().flat_map(|key| add(key, &peer)));

        assert!((3..=6).contains(&messages.len()), "{}", messages.len());
        assert!(messages.iter().all(|message| message.buffer_len() < PARTS_BYTES + 64));
        let named: Vec<_> = messages.iter().flat_map(peers_of).map(|part| part.0[0].clone()).collect();
        let in_order: Vec<_> = keys.iter().map(|key| WireguardPeerAttribute::PublicKey(*key.as_bytes())).collect();
        assert_eq!(named, in_order);
        assert!(super::messages([]).is_empty());
    }

    #[test]
    fn a_split_peer_is_read_back_as_one() {
        let peer =
            PeerConfig { allowed_ips: many_ips(1_234).into_iter().collect(), keepalive: 25, ..PeerConfig::default() };
        let mut device = ObservedDevice::default();

        for message in messages(add(&key(1), &peer)) {
            read(&mut device, message);
        }

        assert_eq!(device.peers.len(), 1);
        let seen = &device.peers[&key(1)];
        assert_eq!(seen.allowed_ips, peer.allowed_ips);
        assert_eq!(seen.keepalive, 25);
    }

    #[test]
    fn no_change_to_a_present_peer_may_bring_it_back() {
        let ips = many_ips(2);
        let changes = [
            add_allowed_ips(&key(1), &ips),
            remove_allowed_ips(&key(1), &ips),
            set_endpoint(&key(1), ([192, 0, 2, 1], 7).into()),
            set_keepalive(&key(1), 25),
            remove(&key(1)),
        ];

        for part in changes.iter().flatten() {
            assert!(flags_of(part).contains(WireguardPeerFlags::UpdateOnly), "{part:?}");
        }
    }

    #[test]
    fn nothing_ever_replaces_a_list() {
        let peer = PeerConfig { allowed_ips: many_ips(2).into_iter().collect(), ..PeerConfig::default() };
        let parts: Vec<_> = add(&key(1), &peer).into_iter().chain(throw_away(&peer.allowed_ips)).collect();
        assert!(!parts.iter().any(|part| flags_of(part).contains(WireguardPeerFlags::ReplaceAllowedIps)));
        for message in messages(parts) {
            assert!(message.attributes.iter().all(|attribute| !matches!(attribute, WireguardAttribute::Flags(_))));
        }
    }

    #[test]
    fn the_throw_away_peer_goes_with_the_last_part() {
        let parts = throw_away(&many_ips(600));

        assert_eq!(parts.len(), 3);
        assert!(flags_of(&parts[2]).contains(WireguardPeerFlags::RemoveMe));
        assert_eq!(parts[2].0[0], WireguardPeerAttribute::PublicKey(*THROW_AWAY.as_bytes()));
    }
}
