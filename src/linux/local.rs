//! The host's own addresses outside the overlay: what peers may reach us at, and what the overlay must
//! never swallow.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::MulticastGroup;

use crate::plan::{KernelError, own};
use crate::types::IpNet;

use super::link;
use super::netlink::RouteSocket;
use super::subscription::{Subscription, route_message};
use super::{Attempt, attempt};

/// An address of an interface that is up, is not the loopback and is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address with the length of its on-link prefix.
    pub address: IpNet,
    /// The interface that has it.
    pub interface: String,
    /// Whether that interface can send and receive at this moment. An address outlives a cable that is pulled.
    pub has_carrier: bool,
}

/// The host's links and addresses other than ours, and word of their changes.
pub struct LocalNetwork {
    socket: RouteSocket,
    subscription: Subscription,
}

impl LocalNetwork {
    /// Opens the door. Call it within a Tokio runtime; changes are noticed from here on.
    pub fn new() -> Result<Self, KernelError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let subscription = Subscription::open_route(&groups).during("subscribe to links and addresses")?;
        let socket = RouteSocket::open().during("open an rtnetlink socket")?;
        Ok(Self { socket, subscription })
    }

    /// Every address that others may use, in a stable order: no link-local ones, and none that the kernel
    /// still tries out, gave up or phases out.
    pub async fn addresses(&mut self) -> Result<Vec<LocalAddress>, KernelError> {
        let links = self.socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = attempt("list links", links).await?;
        let links: BTreeMap<u32, (String, bool)> = links.iter().filter_map(usable_link).collect();

        let addresses = self.socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let addresses = attempt("list addresses", addresses).await?;
        let mut found: Vec<LocalAddress> = addresses
            .iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                let (interface, has_carrier) = links.get(&message.header.index)?.clone();
                let address = link::address_of(message).filter(|_| is_settled(message))?;
                (!link::is_link_local(address.addr())).then_some(LocalAddress { address, interface, has_carrier })
            })
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Waits until a link or an address outside the overlay may have changed. May be dropped at any time.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        self.subscription
            .next(|kind, payload| match route_message(kind, payload) {
                Some(RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) => {
                    link::name_of(&message) != Some(own::LINK)
                }
                _ => true,
            })
            .await;
        Ok(())
    }
}

/// Number and name of a link that is up, and whether it runs: `IFF_RUNNING` says that its operational state (RFC 2863)
/// is up, or that its driver knows of none.
fn usable_link(message: &RouteNetlinkMessage) -> Option<(u32, (String, bool))> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let name = link::name_of(message)?;
    let usable = flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && name != own::LINK;
    usable.then(|| (message.header.index, (name.to_owned(), flags.contains(LinkFlags::Running))))
}

fn is_settled(message: &AddressMessage) -> bool {
    let unsettled = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    match flags {
        Some(flags) => !flags.intersects(unsettled),
        None => !message.header.flags.intersects(AddressHeaderFlags::from_bits_retain(unsettled.bits() as u8)),
    }
}
