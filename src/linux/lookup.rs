//! What routing makes of a packet: the kernel's own answer, with every rule and table taken into account.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use warren_core::plan::{Egress, RouteLookup, own};

use super::netlink::{RouteSocket, first};
use super::rule::Earlier;
use super::{link, route};

/// Asks about each of the packets. `ours` is the number of our link, `earlier` the rules of others before ours.
pub(super) async fn ask_all(
    socket: &RouteSocket,
    packets: BTreeSet<(IpAddr, bool)>,
    ours: Option<u32>,
    earlier: &[Earlier],
) -> io::Result<Vec<RouteLookup>> {
    let mut lookups = Vec::with_capacity(packets.len());
    for (to, marked) in packets {
        lookups.push(ask(socket, to, marked, ours, earlier).await?);
    }
    Ok(lookups)
}

/// Asks about one packet.
pub(super) async fn ask(
    socket: &RouteSocket,
    to: IpAddr,
    marked: bool,
    ours: Option<u32>,
    earlier: &[Earlier],
) -> io::Result<RouteLookup> {
    let mut question = RouteMessage::default();
    question.header.address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    question.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
    // IPv6 always says which table decided, and kernels that check what they are asked refuse the flag there.
    question.header.flags = if to.is_ipv4() { RouteFlags::LookupTable } else { RouteFlags::empty() };
    question.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    if marked {
        question.attributes.push(RouteAttribute::Mark(own::MARK_BYPASS));
    }
    let leads = |table: Option<u32>| earlier.iter().find(|rule| rule.leads(to, table)).map(|rule| rule.priority);
    let egress = match socket.get(RouteNetlinkMessage::GetRoute(question)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => match out_of(&message).filter(|_| !refuses(&message)) {
            Some(index) if Some(index) == ours => Egress::Tunnel,
            Some(index) => {
                let table = route::table_of(&message);
                Egress::Elsewhere { link: name(socket, index).await, table, rule: leads(Some(table)) }
            }
            None => Egress::Refused { error: format!("the route is {:?}", message.header.kind), rule: leads(None) },
        },
        Ok(_) => Egress::Refused { error: "the kernel knows no route".to_owned(), rule: leads(None) },
        // An answer as good as any: unreachable, prohibited, no route at all.
        Err(error) if error.raw_os_error().is_some() => Egress::Refused { error: error.to_string(), rule: leads(None) },
        Err(error) => return Err(error),
    };
    Ok(RouteLookup { to, marked, egress })
}

/// IPv6 tells of a route that refuses as of any other.
fn refuses(message: &RouteMessage) -> bool {
    matches!(message.header.kind, RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit)
}

fn out_of(message: &RouteMessage) -> Option<u32> {
    first!(message.attributes, RouteAttribute::Oif).copied()
}

async fn name(socket: &RouteSocket, index: u32) -> String {
    let mut question = LinkMessage::default();
    question.header.index = index;
    match socket.get(RouteNetlinkMessage::GetLink(question)).await {
        Ok(Some(RouteNetlinkMessage::NewLink(message))) => link::name_of(&message).map(str::to_owned),
        _ => None,
    }
    .unwrap_or_else(|| format!("link {index}"))
}
