//! The link of our name and its addresses.
//!
//! A link of our name that is not WireGuard belongs to somebody else: it is reported and never changed.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use warren_core::plan::{ObservedLink, own};
use warren_core::types::{IpNet, RESOLVER_ADDRESSES};

use super::netlink::{RouteSocket, first, is_errno, tolerate};

/// The link of our name, if there is one.
pub(super) async fn observe(socket: &RouteSocket) -> io::Result<Option<ObservedLink>> {
    let Some(message) = find(socket).await? else { return Ok(None) };
    let mut link = ObservedLink {
        index: message.header.index,
        is_wireguard: is_wireguard(&message),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: first!(message.attributes, LinkAttribute::Mtu).copied().unwrap_or_default(),
        addresses: BTreeSet::new(),
    };
    link.addresses = match addresses(socket, link.index).await {
        // The link went away between the two questions.
        Err(error) if is_errno(&error, Errno::ENODEV) => return Ok(None),
        other => other?,
    };
    Ok(Some(link))
}

/// Whether IPv6 is switched off on our link, or would be on a new one.
pub(super) fn is_ipv6_off() -> bool {
    let setting = |link: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
    // Without a setting to read, the kernel's own word on an address has to do.
    setting(own::LINK).or_else(|_| setting("default")).is_ok_and(|value| value.trim() == "1")
}

/// The number of our own link: an error where there is none or where it is somebody else's.
pub(super) async fn own_index(socket: &RouteSocket) -> io::Result<u32> {
    match find(socket).await? {
        Some(message) if is_wireguard(&message) => Ok(message.header.index),
        Some(_) => Err(io::Error::other(format!("the link {} is not WireGuard, so it is not ours", own::LINK))),
        None => Err(Errno::ENODEV.into()),
    }
}

/// Makes the link; one that is there already stays as it is.
pub(super) async fn create(socket: &RouteSocket) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(own::LINK.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    let created = socket.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).await;
    tolerate(created, &[Errno::EEXIST])
}

/// Deletes the link by its number, so that a stranger that takes the name meanwhile is safe.
pub(super) async fn delete(socket: &RouteSocket, index: u32) -> io::Result<()> {
    let deleted = socket.ask(RouteNetlinkMessage::DelLink(message_for(index)), 0).await;
    tolerate(deleted, &[Errno::ENODEV])
}

pub(super) async fn set_mtu(socket: &RouteSocket, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = message_for(index);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    socket.ask(RouteNetlinkMessage::SetLink(message), 0).await
}

pub(super) async fn set_up(socket: &RouteSocket, index: u32) -> io::Result<()> {
    let mut message = message_for(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    socket.ask(RouteNetlinkMessage::SetLink(message), 0).await
}

/// Gives the link an address that is usable at once and brings no route of its own.
pub(super) async fn add_address(socket: &RouteSocket, index: u32, address: IpNet) -> io::Result<()> {
    let mut message = address_message(index, address);
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(flags));
    if RESOLVER_ADDRESSES.contains(&address.addr()) {
        never_as_source(&mut message);
    }
    socket.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Has the kernel take the address for packets to itself alone. As the nearest address it would be the source of packets
/// to some peers, and be dropped by them.
fn never_as_source(message: &mut AddressMessage) {
    if message.header.family == AddressFamily::Inet {
        message.header.scope = AddressScope::Host;
        return;
    }
    let mut lifetimes = CacheInfo::default();
    lifetimes.ifa_valid = u32::MAX;
    message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
}

pub(super) async fn remove_address(socket: &RouteSocket, index: u32, address: IpNet) -> io::Result<()> {
    let removed = socket.ask(RouteNetlinkMessage::DelAddress(address_message(index, address)), 0).await;
    tolerate(removed, &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
}

/// The WireGuard links of other names, each with its number and its addresses.
pub(super) async fn other_wireguard(socket: &RouteSocket) -> io::Result<Vec<(String, u32, BTreeSet<IpNet>)>> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    let mut others = Vec::new();
    for message in socket.dump(RouteNetlinkMessage::GetLink(question)).await? {
        let RouteNetlinkMessage::NewLink(message) = message else { continue };
        let name = name_of(&message).filter(|name| is_wireguard(&message) && *name != own::LINK);
        if let Some(name) = name {
            let index = message.header.index;
            others.push((name.to_owned(), index, addresses(socket, index).await.unwrap_or_default()));
        }
    }
    Ok(others)
}

async fn find(socket: &RouteSocket) -> io::Result<Option<LinkMessage>> {
    named(socket, own::LINK).await
}

async fn named(socket: &RouteSocket, name: &str) -> io::Result<Option<LinkMessage>> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match socket.get(RouteNetlinkMessage::GetLink(question)).await {
        Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(message)),
        Ok(_) => Ok(None),
        Err(error) if is_errno(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn addresses(socket: &RouteSocket, index: u32) -> io::Result<BTreeSet<IpNet>> {
    let mut question = AddressMessage::default();
    question.header.index = index;
    let found = socket.dump(RouteNetlinkMessage::GetAddress(question)).await?;
    Ok(found
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            address_of(message).filter(|_| message.header.index == index)
        })
        .filter(|address| !is_link_local(address.addr()))
        .collect())
}

/// The address with its prefix length. `IFA_LOCAL` is the address itself where the two differ.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = first!(message.attributes, AddressAttribute::Local);
    let address = local.or_else(|| first!(message.attributes, AddressAttribute::Address))?;
    IpNet::new(*address, message.header.prefix_len).ok()
}

pub(super) fn name_of(message: &LinkMessage) -> Option<&str> {
    first!(message.attributes, LinkAttribute::IfName).map(String::as_str)
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn is_wireguard(message: &LinkMessage) -> bool {
    let infos = first!(message.attributes, LinkAttribute::LinkInfo);
    infos.is_some_and(|infos| infos.contains(&LinkInfo::Kind(InfoKind::Wireguard)))
}

fn message_for(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}
