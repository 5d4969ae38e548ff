//! Peers as messages, and messages as peers.
//!
//! A message names a peer and at most [`IPS_PER_MESSAGE`] of its allowed IPs; what is longer goes on in
//! the next, and nothing here ever replaces a list, so the split needs no care. Only [`add`] may bring a
//! peer into being: everything else changes a peer that is there, and is nothing where it is not.

use std::net::SocketAddr;

use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use crate::plan::{EndpointWish, ObservedDevice, ObservedPeer, Peer, own};
use crate::types::{IpNet, NodePrivate, NodePublic, Timestamp};

/// The most allowed IPs in one message: about 24 KB of the 64 KB that a netlink attribute can hold.
const IPS_PER_MESSAGE: usize = 500;

/// A peer nobody holds the private key of: on its way out it takes the allowed IPs along that it was given.
const THROW_AWAY: NodePublic = NodePublic::from_bytes(*b"warren throws allowed IPs away!!");

/// Adds a peer whole.
pub(super) fn add(key: &NodePublic, peer: &Peer) -> Vec<WireguardMessage> {
    let mut attributes = vec![WireguardPeerAttribute::PersistentKeepalive(peer.keepalive)];
    if let EndpointWish::Initial(endpoint) | EndpointWish::Move(endpoint) = peer.endpoint {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    let mut chunks = chunks(&peer.allowed_ips, None).into_iter();
    attributes.extend(chunks.next().map(WireguardPeerAttribute::AllowedIps));
    let first = message(key, WireguardPeerFlags::empty(), attributes);
    let rest = chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk)));
    std::iter::once(first).chain(rest).collect()
}

/// Gives a present peer more allowed IPs; each moves here from whoever has it.
pub(super) fn add_allowed_ips<'a>(
    key: &NodePublic,
    allowed_ips: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<WireguardMessage> {
    let chunks = chunks(allowed_ips, None).into_iter();
    chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk))).collect()
}

/// Takes allowed IPs from a present peer; kernels before 6.16 refuse with EINVAL and change nothing.
pub(super) fn remove_allowed_ips<'a>(
    key: &NodePublic,
    allowed_ips: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<WireguardMessage> {
    let chunks = chunks(allowed_ips, Some(WireguardAllowedIpFlags::RemoveMe)).into_iter();
    chunks.map(|chunk| update(key, WireguardPeerAttribute::AllowedIps(chunk))).collect()
}

/// Takes allowed IPs from whoever has them: a throw-away peer gets them and is removed at once.
///
/// Giving an allowed IP away takes it from its owner without touching the others, so those that stay have
/// no gap. Should the second half be lost, the stranger is found and removed like any other.
pub(super) fn throw_away<'a>(allowed_ips: impl IntoIterator<Item = &'a IpNet>) -> Vec<WireguardMessage> {
    let mut messages: Vec<_> = chunks(allowed_ips, None)
        .into_iter()
        .map(|chunk| {
            let attributes = vec![WireguardPeerAttribute::AllowedIps(chunk)];
            message(&THROW_AWAY, WireguardPeerFlags::empty(), attributes)
        })
        .collect();
    messages.extend(remove(&THROW_AWAY));
    messages
}

/// Moves a present peer's endpoint.
pub(super) fn set_endpoint(key: &NodePublic, endpoint: SocketAddr) -> Vec<WireguardMessage> {
    vec![update(key, WireguardPeerAttribute::Endpoint(endpoint))]
}

/// Sets a present peer's keep-alive interval.
pub(super) fn set_keepalive(key: &NodePublic, seconds: u16) -> Vec<WireguardMessage> {
    vec![update(key, WireguardPeerAttribute::PersistentKeepalive(seconds))]
}

/// Removes a peer.
pub(super) fn remove(key: &NodePublic) -> Vec<WireguardMessage> {
    vec![message(key, WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly, Vec::new())]
}

/// Adds one message of a dump to the device. A peer too long for one message goes on in the next, so
/// peers are merged by key.
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

fn read_peer(device: &mut ObservedDevice, part: WireguardPeer) {
    let key = part.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(NodePublic::from_bytes(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer: &mut ObservedPeer = device.peers.entry(key).or_default();
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
    ips.chunks(IPS_PER_MESSAGE).map(<[_]>::to_vec).collect()
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

fn update(key: &NodePublic, attribute: WireguardPeerAttribute) -> WireguardMessage {
    message(key, WireguardPeerFlags::UpdateOnly, vec![attribute])
}

fn message(key: &NodePublic, flags: WireguardPeerFlags, more: Vec<WireguardPeerAttribute>) -> WireguardMessage {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes()), WireguardPeerAttribute::Flags(flags)];
    attributes.extend(more);
    WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: vec![
            WireguardAttribute::IfName(own::LINK.to_owned()),
            WireguardAttribute::Peers(vec![WireguardPeer(attributes)]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

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
        let peer = Peer { allowed_ips: many_ips(1_234).into_iter().collect(), ..Peer::default() };

        let messages = add(&key(1), &peer);

        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|message| message.buffer_len() < usize::from(u16::MAX) / 2));
        let flags: Vec<_> = messages.iter().map(|message| flags_of(&peers_of(message)[0])).collect();
        let update_only = WireguardPeerFlags::UpdateOnly;
        assert_eq!(flags, [WireguardPeerFlags::empty(), update_only, update_only]);
    }

    #[test]
    fn a_split_peer_is_read_back_as_one() {
        let peer = Peer { allowed_ips: many_ips(1_234).into_iter().collect(), keepalive: 25, ..Peer::default() };
        let mut device = ObservedDevice::default();

        for message in add(&key(1), &peer) {
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

        for message in changes.iter().flatten() {
            assert!(flags_of(&peers_of(message)[0]).contains(WireguardPeerFlags::UpdateOnly), "{message:?}");
        }
    }

    #[test]
    fn nothing_ever_replaces_a_list() {
        let peer = Peer { allowed_ips: many_ips(2).into_iter().collect(), ..Peer::default() };
        for message in add(&key(1), &peer).iter().chain(&throw_away(&peer.allowed_ips)) {
            assert!(message.attributes.iter().all(|attribute| !matches!(attribute, WireguardAttribute::Flags(_))));
            let peer = &peers_of(message)[0];
            assert!(!flags_of(peer).contains(WireguardPeerFlags::ReplaceAllowedIps));
        }
    }

    #[test]
    fn the_throw_away_peer_goes_with_the_last_message() {
        let messages = throw_away(&many_ips(600));

        assert_eq!(messages.len(), 3);
        let last = &peers_of(&messages[2])[0];
        assert!(flags_of(last).contains(WireguardPeerFlags::RemoveMe));
        assert_eq!(last.0[0], WireguardPeerAttribute::PublicKey(*THROW_AWAY.as_bytes()));
    }
}
