//! Routes in our table.
//!
//! A route is ours by its table or by its protocol number. Looking through every table of a router that
//! carries the whole internet is dear, so the monitor says when that is due; our own table is read every
//! time. What lies there and is not of our making is strange: shown as text, deleted by that text.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use warren_core::plan::{Route, RouteTarget, own};
use warren_core::types::IpNet;

use super::netlink::{RouteSocket, first, is_errno, tolerate};

/// What was found in our places.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Routes as we make them.
    pub(super) routes: BTreeSet<Route>,
    /// The others, each with the text that names it.
    pub(super) strange: Vec<(String, RouteMessage)>,
}

impl Found {
    /// Whether a route of ours lies outside our table.
    pub(super) fn strays(&self) -> bool {
        self.strange.iter().any(|(_, message)| table_of(message) != own::ROUTE_TABLE)
    }
}

/// Reads our table, and with `everywhere` every other table for routes with our protocol number.
/// `link` is the number of our WireGuard link. Without IPv6 the kernel would answer with the routes of other families.
pub(super) async fn observe(
    socket: &RouteSocket,
    link: Option<u32>,
    everywhere: bool,
    has_ipv6: bool,
) -> io::Result<Found> {
    let mut found = Found::default();
    let ipv6 = has_ipv6.then_some(AddressFamily::Inet6);
    for family in [AddressFamily::Inet].into_iter().chain(ipv6) {
        for message in dump(socket, family, true).await? {
            match read(&message, link) {
                Some(route) => {
                    found.routes.insert(route);
                }
                None => found.strange.push((describe(&message), message)),
            }
        }
        if everywhere {
            let others = dump(socket, family, false).await?;
            let strays = others.into_iter().filter(|message| table_of(message) != own::ROUTE_TABLE);
            found.strange.extend(strays.map(|message| (describe(&message), message)));
        }
    }
    Ok(found)
}

pub(super) async fn add(socket: &RouteSocket, route: &Route, link: Option<u32>) -> io::Result<()> {
    let message = write(route, link)?;
    socket.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).await
}

pub(super) async fn remove(socket: &RouteSocket, route: &Route, link: Option<u32>) -> io::Result<()> {
    // Without our link there is no route into it either.
    let Ok(message) = write(route, link) else { return Ok(()) };
    let removed = socket.ask(RouteNetlinkMessage::DelRoute(message), 0).await;
    tolerate(removed, &[Errno::ESRCH, Errno::ENOENT])
}

pub(super) async fn remove_strange(socket: &RouteSocket, message: &RouteMessage) -> io::Result<()> {
    let mut doomed = message.clone();
    doomed.header.flags = Default::default();
    doomed.attributes.retain(names_route);
    let removed = socket.ask(RouteNetlinkMessage::DelRoute(doomed), 0).await;
    tolerate(removed, &[Errno::ESRCH, Errno::ENOENT])
}

pub(super) fn table_of(message: &RouteMessage) -> u32 {
    first!(message.attributes, RouteAttribute::Table).copied().unwrap_or(u32::from(message.header.table))
}

pub(super) fn is_our_protocol(message: &RouteMessage) -> bool {
    u8::from(message.header.protocol) == own::ROUTE_PROTOCOL
}

/// Either our table, or our protocol number in all tables.
async fn dump(socket: &RouteSocket, family: AddressFamily, our_table: bool) -> io::Result<Vec<RouteMessage>> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    if our_table {
        question.attributes.push(RouteAttribute::Table(own::ROUTE_TABLE));
    } else {
        question.header.protocol = RouteProtocol::from(own::ROUTE_PROTOCOL);
    }
    let found = match socket.dump(RouteNetlinkMessage::GetRoute(question)).await {
        // A table exists from its first route on.
        Err(error) if is_errno(&error, Errno::ENOENT) => Vec::new(),
        other => other?,
    };
    Ok(found
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return None };
            Some(message)
        })
        .filter(|message| if our_table { table_of(message) == own::ROUTE_TABLE } else { is_our_protocol(message) })
        .collect())
}

/// A kernel route as ours, or nothing where we would never have made it.
#[expect(clippy::wildcard_enum_match_arm, reason = "of the kernel's kinds and attributes we make few")]
fn read(message: &RouteMessage, link: Option<u32>) -> Option<Route> {
    let header = &message.header;
    let target = match header.kind {
        RouteType::Unicast => RouteTarget::Tunnel,
        RouteType::Unreachable => RouteTarget::Unreachable,
        RouteType::Throw => RouteTarget::Throw,
        _ => return None,
    };
    if !is_our_protocol(message) || header.tos != 0 || header.source_prefix_length != 0 {
        return None;
    }
    let mut metric = 0;
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => out = Some(*index),
            RouteAttribute::Destination(_)
            | RouteAttribute::Table(_)
            | RouteAttribute::CacheInfo(_)
            | RouteAttribute::Preference(_) => {}
            _ => return None,
        }
    }
    // An IPv6 route that refuses names the loopback as its link.
    if target == RouteTarget::Tunnel && (link.is_none() || out != link) {
        return None;
    }
    Some(Route { destination: destination_of(message)?, target, metric })
}

fn write(route: &Route, link: Option<u32>) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = match route.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = RouteProtocol::from(own::ROUTE_PROTOCOL);
    header.scope = RouteScope::Universe;
    header.kind = match route.target {
        RouteTarget::Tunnel => RouteType::Unicast,
        RouteTarget::Unreachable => RouteType::Unreachable,
        RouteTarget::Throw => RouteType::Throw,
    };
    if route.target == RouteTarget::Tunnel {
        let index = link.ok_or(Errno::ENODEV)?;
        message.attributes.push(RouteAttribute::Oif(index));
        if matches!(route.destination, IpNet::V4(_)) {
            message.header.scope = RouteScope::Link;
        }
    }
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message.attributes.push(RouteAttribute::Table(own::ROUTE_TABLE));
    Ok(message)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "of the system's many address families two are ours")]
pub(super) fn destination_of(message: &RouteMessage) -> Option<IpNet> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = match first!(message.attributes, RouteAttribute::Destination) {
        Some(RouteAddress::Inet(address)) => IpAddr::V4(*address),
        Some(RouteAddress::Inet6(address)) => IpAddr::V6(*address),
        _ => unspecified,
    };
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

/// What tells one route from another: these attributes are printed, and sent along when it is deleted.
fn names_route(attribute: &RouteAttribute) -> bool {
    matches!(
        attribute,
        RouteAttribute::Destination(_)
            | RouteAttribute::Source(_)
            | RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Oif(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Table(_)
    )
}

fn describe(message: &RouteMessage) -> String {
    let destination = destination_of(message).map_or("?".to_owned(), |destination| destination.to_string());
    let details: Vec<String> = message
        .attributes
        .iter()
        .filter(|attribute| {
            names_route(attribute) && !matches!(attribute, RouteAttribute::Destination(_) | RouteAttribute::Table(_))
        })
        .map(|attribute| format!("{attribute:?}"))
        .collect();
    format!(
        "route {:?} {destination} table {} protocol {} {}",
        message.header.kind,
        table_of(message),
        u8::from(message.header.protocol),
        details.join(" "),
    )
}
