//! The router that this host's IPv4 traffic leaves by: whom port mapping asks.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;

use warren_core::plan::KernelError;

use super::netlink::{RouteSocket, first};
use super::subscription::{Subscription, route_message};
use super::{Attempt, attempt, link, route};

/// The main table's default route, as far as port mapping needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub address: Ipv4Addr,
    /// Our own address on its link.
    pub local: Ipv4Addr,
}

/// A look at the main table's IPv4 default route, and word of its changes. Nothing is ever written.
pub struct DefaultRoute {
    socket: RouteSocket,
    subscription: Subscription,
}

impl DefaultRoute {
    /// Opens the door. Call it within a Tokio runtime; changes are noticed from here on.
    pub fn new() -> Result<Self, KernelError> {
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr];
        let subscription = Subscription::open_route(&groups).during("subscribe to IPv4 routes")?;
        let socket = RouteSocket::open().during("open an rtnetlink socket")?;
        Ok(Self { socket, subscription })
    }

    /// The router of the default route that the kernel prefers, if there is one on a link of ours.
    pub async fn gateway(&mut self) -> Result<Option<Gateway>, KernelError> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        question.attributes.push(RouteAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN)));
        let routes = self.socket.dump(RouteNetlinkMessage::GetRoute(question));
        let routes = match attempt("list the routes of the main table", routes).await {
            // A table without any route does not exist.
            Err(error) if error.reason.contains("No such file") => Vec::new(),
            other => other?,
        };
        let defaults = routes.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return None };
            is_default(message).then_some(message)
        });
        let preferred = defaults.min_by_key(|message| metric_of(message));
        let Some((router, link, source)) = preferred.and_then(read_hop) else { return Ok(None) };
        let local = match source {
            Some(source) => Some(source),
            None => self.address_towards(router, link).await?,
        };
        Ok(local.map(|local| Gateway { address: router, local }))
    }

    /// Waits until a default route or an address may have changed. May be dropped at any time.
    pub async fn changed(&mut self) {
        self.subscription
            .next(|kind, payload| match route_message(kind, payload) {
                Some(RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) => {
                    is_default(&message)
                }
                _ => true,
            })
            .await;
    }

    /// Our address on a link whose prefix has the router in it.
    async fn address_towards(&self, router: Ipv4Addr, index: u32) -> Result<Option<Ipv4Addr>, KernelError> {
        let addresses = self.socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let addresses = attempt("list addresses", addresses).await?;
        Ok(addresses.iter().find_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let address = link::address_of(message).filter(|_| message.header.index == index)?;
            match address.addr() {
                IpAddr::V4(local) => address.contains(&IpAddr::V4(router)).then_some(local),
                IpAddr::V6(_) => None,
            }
        }))
    }
}

fn is_default(message: &RouteMessage) -> bool {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    message.header.destination_prefix_length == 0 && route::table_of(message) == main
}

fn metric_of(message: &RouteMessage) -> u32 {
    first!(message.attributes, RouteAttribute::Priority).copied().unwrap_or_default()
}

/// Router, link and preferred source of an ordinary route by way of a router; of the first one where there are several.
#[expect(clippy::wildcard_enum_match_arm, reason = "of a route's many attributes three say where it leads")]
fn read_hop(message: &RouteMessage) -> Option<(Ipv4Addr, u32, Option<Ipv4Addr>)> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut router, mut link, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => router = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                link = Some(hop.interface_index);
                router = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((router?, link?, source))
}
