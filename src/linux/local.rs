//! The host's own addresses outside the overlay: what peers may reach us at, and what the overlay must
//! never swallow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;

use warren_core::plan::{KernelError, own};
use warren_core::types::{EXIT_ROUTES, IpNet, SOMEWHERE, in_overlay};

use super::netlink::{RouteSocket, first, is_errno};
use super::subscription::{Subscription, route_message};
use super::{Attempt, attempt, link, route};

/// Networks of routes that are kept: more than any host but a router of the internet has.
const ROUTES: usize = 4_096;
/// The main table.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// An address of an interface that is up, is not the loopback and is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address with the length of its on-link prefix.
    pub address: IpNet,
    /// The interface that has it.
    pub interface: String,
    /// Whether that interface can send and receive at this moment. An address outlives a cable that is pulled.
    pub has_carrier: bool,
    /// Whether the way to the rest of the world leaves by that interface.
    pub is_way_out: bool,
    /// Whether that interface is made of software that ends on this host: a bridge without a port to elsewhere, one end
    /// of a pair, a tunnel.
    pub is_virtual: bool,
}

/// Where routes of the main table lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// The networks, but for default routes and what is ours.
    pub networks: BTreeSet<IpNet>,
    /// By which links those are reached that have any, default routes among them.
    pub links: BTreeMap<IpNet, BTreeSet<String>>,
}

/// The host's links and addresses other than ours, and word of their changes.
pub struct LocalNetwork {
    socket: RouteSocket,
    subscription: Subscription,
}

impl LocalNetwork {
    /// Opens the door. Call it within a Tokio runtime; changes are noticed from here on.
    pub fn new() -> Result<Self, KernelError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let subscription = Subscription::open_route(&groups).during("subscribe to links and addresses")?;
        let socket = RouteSocket::open().during("open an rtnetlink socket")?;
        Ok(Self { socket, subscription })
    }

    /// Every address that others may use, in a stable order: no link-local ones, and none that the kernel
    /// still tries out, gave up or phases out.
    pub async fn addresses(&mut self) -> Result<Vec<LocalAddress>, KernelError> {
        let links = self.socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = attempt("list links", links).await?;
        let with_hardware: BTreeSet<u32> = links.iter().filter_map(controller_of_hardware).collect();
        let mut links: BTreeMap<u32, Link> = links.iter().filter_map(usable_link).collect();
        for (index, link) in &mut links {
            link.is_virtual &= !with_hardware.contains(index);
        }
        let ways_out = self.ways_out().await;

        let addresses = self.socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let addresses = attempt("list addresses", addresses).await?;
        let mut found: Vec<LocalAddress> = addresses
            .iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                let Link { interface, has_carrier, is_virtual } = links.get(&message.header.index)?.clone();
                let address = link::address_of(message).filter(|_| is_settled(message))?;
                let is_way_out = ways_out.contains(&message.header.index);
                let local = LocalAddress { address, interface, has_carrier, is_way_out, is_virtual };
                (!link::is_link_local(address.addr())).then_some(local)
            })
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// The interfaces by which the rest of the world is reached beside the tunnel, as the kernel itself would send there. Where it does not
    /// say, none is known.
    async fn ways_out(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for somewhere in SOMEWHERE {
            let question = RouteNetlinkMessage::GetRoute(route_to(somewhere));
            if let Ok(Some(RouteNetlinkMessage::NewRoute(route))) = self.socket.get(question).await {
                found.extend(first!(route.attributes, RouteAttribute::Oif));
            }
        }
        found
    }

    /// Where routes of the main table lead, but for what is ours: at most [`ROUTES`] networks, those of private ranges
    /// first. A router may carry the whole internet, so they are sorted out as they come.
    pub async fn routes(&mut self) -> Result<HostRoutes, KernelError> {
        let names = self.names().await?;
        let ours = names.iter().find(|(_, name)| *name == own::LINK).map(|(index, _)| *index);
        let (mut private, mut public) = (BTreeMap::new(), BTreeMap::new());
        let mut defaults = BTreeMap::new();
        let mut take = |message: &RouteMessage| {
            let by: BTreeSet<String> = links_of(message).filter_map(|index| names.get(&index).cloned()).collect();
            if let Some(net) = network_of(message, ours) {
                let nets = if is_private(&net) { &mut private } else { &mut public };
                if nets.len() < ROUTES || nets.contains_key(&net) {
                    nets.entry(net).or_insert_with(BTreeSet::new).extend(by);
                }
            } else if let Some(net) = default_of(message, ours) {
                defaults.entry(net).or_insert_with(BTreeSet::new).extend(by);
            }
        };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            question.attributes.push(RouteAttribute::Table(MAIN));
            let listed = self.socket.each(RouteNetlinkMessage::GetRoute(question), |message| {
                if let RouteNetlinkMessage::NewRoute(message) = message
                    && message.header.address_family == family
                {
                    take(&message);
                }
            });
            match listed.await {
                // A table exists from its first route on, and a family where the kernel has it.
                Err(error)
                    if [Errno::ENOENT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP].iter().any(|e| is_errno(&error, *e)) => {
                }
                other => other.during("list the routes of the main table")?,
            }
        }
        let room = ROUTES.saturating_sub(private.len());
        let networks: BTreeMap<_, _> = private.into_iter().chain(public.into_iter().take(room)).collect();
        let mut found = HostRoutes { networks: networks.keys().copied().collect(), links: defaults };
        found.links.extend(networks);
        found.links.retain(|_, by| !by.is_empty());
        Ok(found)
    }

    /// The links by their numbers.
    async fn names(&self) -> Result<BTreeMap<u32, String>, KernelError> {
        let links = self.socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let named = |message: &RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewLink(message) = message else { return None };
            Some((message.header.index, link::name_of(message)?.to_owned()))
        };
        Ok(attempt("list links", links).await?.iter().filter_map(named).collect())
    }

    /// Waits until a link or an address outside the overlay may have changed, or a route to a private network or to
    /// everything. May be
    /// dropped at any time.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        self.subscription
            .next(|kind, payload| match route_message(kind, payload) {
                Some(RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) => {
                    link::name_of(&message) != Some(own::LINK)
                }
                Some(RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) => {
                    network_of(&message, None).is_some_and(|net| is_private(&net))
                        || default_of(&message, None).is_some()
                }
                _ => true,
            })
            .await;
        Ok(())
    }
}

/// Where a route of the main table leads to, if it is no default route, none of ours, and to other machines.
fn network_of(message: &RouteMessage, our_link: Option<u32>) -> Option<IpNet> {
    // What is refused in the main table is the host's own word on that network.
    let kinds = [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    let is_own = is_of_host(message, our_link) && kinds.contains(&message.header.kind);
    let net = route::destination_of(message).filter(|net| is_own && net.prefix_len() > 0)?;
    let is_far = !net.addr().is_multicast() && !link::is_link_local(net.addr());
    is_far.then(|| net.trunc())
}

/// A default route of the main table, none of ours, as the network that it is for.
fn default_of(message: &RouteMessage, our_link: Option<u32>) -> Option<IpNet> {
    let is_default = message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast;
    let [v4, v6] = EXIT_ROUTES;
    let net = if message.header.address_family == AddressFamily::Inet { v4 } else { v6 };
    (is_default && is_of_host(message, our_link)).then_some(net)
}

fn is_of_host(message: &RouteMessage, our_link: Option<u32>) -> bool {
    let is_ours = route::is_our_protocol(message) || links_of(message).any(|index| Some(index) == our_link);
    route::table_of(message) == MAIN && !is_ours
}

/// The links by which a route leads, of which there may be several.
fn links_of(message: &RouteMessage) -> impl Iterator<Item = u32> {
    let hops = first!(message.attributes, RouteAttribute::MultiPath).into_iter().flatten();
    let one = first!(message.attributes, RouteAttribute::Oif).copied();
    one.into_iter().chain(hops.map(|hop| hop.interface_index))
}

/// Whether it lies in a range that is nobody's on the internet, as those do that networks of peers lie in.
fn is_private(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => address.is_private() || in_overlay(address.into()),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// What is told of a link that is up.
#[derive(Clone)]
struct Link {
    interface: String,
    has_carrier: bool,
    is_virtual: bool,
}

/// A link that is up, and its number. It runs where `IFF_RUNNING` says that its operational state (RFC 2863) is up, or
/// that its driver knows of none.
fn usable_link(message: &RouteNetlinkMessage) -> Option<(u32, Link)> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let name = link::name_of(message)?;
    let usable = flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && name != own::LINK;
    let (has_carrier, is_virtual) = (flags.contains(LinkFlags::Running), is_virtual(message));
    usable.then(|| (message.header.index, Link { interface: name.to_owned(), has_carrier, is_virtual }))
}

/// The bridge that a port belongs to that leads to other machines: it is no network of guests alone.
fn controller_of_hardware(message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    first!(message.attributes, LinkAttribute::Controller).copied().filter(|_| !is_virtual(message))
}

/// Hardware names no kind. Of those that do, some stand for hardware below them.
fn is_virtual(message: &LinkMessage) -> bool {
    let infos = first!(message.attributes, LinkAttribute::LinkInfo);
    let kind = infos.and_then(|infos| first!(infos, LinkInfo::Kind));
    let stands_for_hardware = |kind: &InfoKind| {
        matches!(
            kind,
            InfoKind::Bond | InfoKind::Vlan | InfoKind::Vrf | InfoKind::MacVlan | InfoKind::IpVlan | InfoKind::Hsr
        ) || matches!(kind, InfoKind::Other(name) if name == "team")
    };
    kind.is_some_and(|kind| !stands_for_hardware(kind))
}

fn route_to(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(destination));
    message.attributes.push(RouteAttribute::Mark(own::MARK_BYPASS));
    message
}

fn is_settled(message: &AddressMessage) -> bool {
    let unsettled = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    match first!(message.attributes, AddressAttribute::Flags) {
        Some(flags) => !flags.intersects(unsettled),
        None => !message.header.flags.intersects(AddressHeaderFlags::from_bits_retain(unsettled.bits() as u8)),
    }
}
