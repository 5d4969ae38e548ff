//! Where others may send to on this host at all, whatever the policy says.
//!
//! What we serve is three things, and a fourth where devices that speak nothing but WireGuard are behind us (the addresses
//! of all peers, which those reach by us): our own addresses; the subnets that the operator of this host offers *and* the
//! coordinator approves; and, of a default route that both want, the internet. The internet is what is public and
//! nobody's beside us: a default route opens neither this host by its other addresses, nor a network that it stands
//! in, nor anything that only hosts around it may ask (a router's page, a cloud's metadata). Such a network is
//! served as a subnet, by name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netmap::overlap;
use crate::types::{EXIT_ROUTES, IpNet, Ipv4Net, Ipv6Net, is_default_route};

/// What of IPv4 is no part of the internet: the registry of special addresses (RFC 6890 and its successors), and
/// the public address at which one cloud's hosts answer their guests.
const NOT_INTERNET_V4: [Ipv4Net; 17] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([168, 63, 129, 16], 32),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 31, 196, 0], 24),
    v4([192, 52, 193, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 3),
];

/// All of IPv6 that is given out to the public. What carries IPv4 addresses within (6to4, Teredo) is no part of it,
/// for those may be private ones.
const INTERNET_V6: Ipv6Net = v6([0x2000, 0, 0], 3);
const NOT_INTERNET_V6: [Ipv6Net; 4] =
    [v6([0x2001, 0, 0], 23), v6([0x2001, 0x0db8, 0], 32), v6([0x2002, 0, 0], 16), v6([0x3fff, 0, 0], 20)];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c]: [u16; 3], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// See the module. The default serves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Our own addresses and the subnets that we carry, and where devices are behind us those of all peers; none lies
    /// within another.
    pub listed: BTreeSet<IpNet>,
    /// What a default route comes to, in pieces that overlap neither each other nor what is listed. The kernel
    /// besides takes every address of its own out of it.
    pub internet: BTreeSet<IpNet>,
}

impl Served {
    /// What we serve by these offers, of which the coordinator approves those, where the host stands in these
    /// networks.
    pub(super) fn of(
        addresses: &BTreeSet<IpNet>,
        offered: &BTreeSet<IpNet>,
        approved: &BTreeSet<IpNet>,
        networks: &BTreeSet<IpNet>,
    ) -> Self {
        let (defaults, subnets): (Vec<IpNet>, Vec<IpNet>) =
            offered.iter().map(IpNet::trunc).filter(|route| approved.contains(route)).partition(is_default_route);
        let listed = widest(addresses.iter().copied().chain(subnets));
        let not_internet = || {
            let special_v4 = NOT_INTERNET_V4.into_iter().map(IpNet::V4);
            let special_v6 = NOT_INTERNET_V6.into_iter().map(IpNet::V6);
            special_v4.chain(special_v6).chain(networks.iter().map(IpNet::trunc)).chain(listed.iter().copied())
        };
        let mut internet = BTreeSet::new();
        for default in defaults {
            let all = if default.addr().is_ipv4() { default } else { IpNet::V6(INTERNET_V6) };
            let mut pieces = vec![all];
            for taken in not_internet() {
                pieces = pieces.into_iter().flat_map(|piece| without(piece, taken)).collect();
            }
            internet.extend(pieces);
        }
        Self { listed, internet }
    }

    /// What devices of ours and peers send one another passes here, so these addresses of theirs are served, too.
    pub(super) fn pass_on(&mut self, addresses: impl Iterator<Item = IpNet>) {
        self.listed = widest(std::mem::take(&mut self.listed).into_iter().chain(addresses));
    }

    /// Whether others may send to this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.pieces().any(|net| net.contains(&address))
    }

    /// Whether anything is served beside these addresses of this host.
    pub(super) fn is_more_than(&self, addresses: &BTreeSet<IpNet>) -> bool {
        !self.internet.is_empty() || self.listed.iter().any(|net| !addresses.contains(net))
    }

    /// Whether everything here is served there, too.
    pub fn is_within(&self, other: &Self) -> bool {
        let lasts = |net: &IpNet| other.pieces().any(|around| around.contains(net));
        self.listed.is_subset(&other.listed) && self.internet.iter().all(lasts)
    }

    /// What is served as people name it: a default route is one thing to them.
    pub fn routes(&self) -> BTreeSet<IpNet> {
        let is_any = |route: &IpNet| self.internet.iter().any(|piece| route.contains(piece));
        self.listed.iter().copied().chain(EXIT_ROUTES.into_iter().filter(is_any)).collect()
    }

    /// The part of a destination that we serve. One that reaches into the internet stays whole: what of it is
    /// served is asked of each packet before its rights are, and so rights stay the same however the host moves
    /// from one network to the next.
    pub(super) fn within(&self, destination: IpNet) -> BTreeSet<IpNet> {
        let is_all = |net: &IpNet| destination.prefix_len() == 0 && destination.contains(net);
        if self.internet.iter().any(|piece| overlap(piece, &destination)) || self.listed.iter().any(is_all) {
            return BTreeSet::from([destination]);
        }
        let common = self.listed.iter().filter_map(|listed| match destination.contains(listed) {
            true => Some(*listed),
            false => listed.contains(&destination).then_some(destination),
        });
        common.collect()
    }

    fn pieces(&self) -> impl Iterator<Item = &IpNet> {
        self.listed.iter().chain(&self.internet)
    }
}

/// A host that carries these and is no exit node.
impl FromIterator<IpNet> for Served {
    fn from_iter<I: IntoIterator<Item = IpNet>>(listed: I) -> Self {
        Self { listed: widest(listed.into_iter()), internet: BTreeSet::new() }
    }
}

/// The prefixes that lie in no other.
pub(super) fn widest(nets: impl Iterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let all: BTreeSet<IpNet> = nets.map(|net| net.trunc()).collect();
    let is_covered = |prefix: &&IpNet| all.iter().any(|other| other != *prefix && other.contains(*prefix));
    all.iter().filter(|prefix| !is_covered(prefix)).copied().collect()
}

/// A prefix without another, as the fewest prefixes.
fn without(net: IpNet, taken: IpNet) -> Vec<IpNet> {
    if taken.contains(&net) {
        return Vec::new();
    }
    let mut pieces = Vec::new();
    let mut rest = net;
    while rest != taken && rest.contains(&taken) {
        let Ok(halves) = rest.subnets(rest.prefix_len() + 1) else { break };
        let (with, free): (Vec<IpNet>, Vec<IpNet>) = halves.partition(|half| half.contains(&taken));
        pieces.extend(free);
        let Some(half) = with.into_iter().next() else { break };
        rest = half;
    }
    if rest != taken {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// An exit node whose host stands in these networks, and that carries these subnets besides.
    fn exit_node(networks: &[&str], subnets: &[&str]) -> Served {
        let offered = nets(&[&["0.0.0.0/0", "::/0"], subnets].concat());
        let ours = nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
        Served::of(&ours, &offered, &offered, &nets(networks))
    }

    #[test]
    fn a_default_route_is_the_internet_and_nothing_nearer() {
        let served = exit_node(&["198.41.0.7/24", "2600:1:2:3::7/64"], &[]);
        for public in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "168.63.129.15", "223.255.255.255", "2606:4700::1111"] {
            assert!(served.contains(address(public)), "{public}");
        }
        for near in [
            // This host by another address, and what is beside it.
            "198.41.0.7",
            "198.41.0.1",
            "2600:1:2:3::1",
            // Private, link-local (a cloud's metadata among it), shared, loopback.
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.9",
            "100.100.100.200",
            "127.0.0.1",
            "fd00:ec2::254",
            "fe80::1",
            "::1",
            "fd7a:115c:a1e0::9",
            // A cloud's hosts towards their guests, at public addresses.
            "168.63.129.16",
            "192.0.0.192",
            // To many, to nobody, for documents.
            "224.0.0.251",
            "239.1.2.3",
            "255.255.255.255",
            "240.0.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "203.0.113.1",
            "ff02::1",
            "2001:db8::1",
            // IPv4 in IPv6's clothes: 169.254.169.254.
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::",
        ] {
            assert!(!served.contains(address(near)), "{near}");
        }
        assert!(served.contains(address("100.64.0.1")) && served.contains(address("fd7a:115c:a1e0::1")));
    }

    #[test]
    fn a_network_nearby_is_served_by_name() {
        let served = exit_node(&["192.168.1.7/24", "198.41.0.7/24"], &["192.168.1.0/24", "198.41.0.0/25"]);
        for (near, is_served) in [
            ("192.168.1.1", true),
            ("192.168.2.1", false),
            ("198.41.0.7", true),
            ("198.41.0.200", false),
            ("198.41.1.1", true),
        ] {
            assert_eq!(served.contains(address(near)), is_served, "{near}");
        }
    }

    #[test]
    fn what_is_offered_and_what_is_approved_is_served_together_alone() {
        let (ours, offered) = (nets(&["100.64.0.1/32"]), nets(&["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0"]));
        let served = Served::of(&ours, &offered, &nets(&["10.2.0.0/16", "10.3.0.0/16", "::/0"]), &BTreeSet::new());
        assert_eq!(served, nets(&["100.64.0.1/32", "10.2.0.0/16"]).into_iter().collect());

        let none = Served::of(&ours, &offered, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(none, ours.into_iter().collect());
    }

    #[test]
    fn a_destination_that_reaches_into_the_internet_stays_whole() {
        let served = exit_node(&["198.41.0.7/24"], &["10.1.0.0/16"]);
        for (destination, expected) in [
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("198.0.0.0/8", "198.0.0.0/8"),
            ("10.0.0.0/8", "10.1.0.0/16"),
            ("10.1.2.0/24", "10.1.2.0/24"),
        ] {
            assert_eq!(served.within(destination.parse().unwrap()), nets(&[expected]), "{destination}");
        }
        assert!(served.within("198.41.0.0/24".parse().unwrap()).is_empty());
        assert_eq!(served.routes().len(), 5);
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 4_u8..=32)
            .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from_bits(bits).into(), length).unwrap());
        let v6 = (any::<u128>(), 4_u8..=128).prop_map(|(bits, length)| {
            let bits = 0x2 << 124 | bits >> 4;
            IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        /// Whatever the host stands in and carries.
        #[test]
        fn of_a_default_route_nothing_special_and_nothing_nearby_is_served(
            networks in prop::collection::btree_set(any_net(), 0..6),
            subnets in prop::collection::btree_set(any_net(), 0..4),
            bits in any::<u128>(),
        ) {
            let subnets: BTreeSet<IpNet> = subnets.iter().map(IpNet::trunc).collect();
            let offered: BTreeSet<IpNet> = subnets.iter().copied().chain(EXIT_ROUTES).collect();
            let served = Served::of(&BTreeSet::new(), &offered, &offered, &networks);
            let near = networks.iter().map(IpNet::trunc);
            let special = NOT_INTERNET_V4.into_iter().map(IpNet::V4).chain(NOT_INTERNET_V6.into_iter().map(IpNet::V6));
            let taken: Vec<IpNet> = near.chain(special).collect();
            let edges = taken.iter().flat_map(|net| [net.network(), net.broadcast()]);
            let beyond = taken.iter().flat_map(|net| neighbours(*net));
            let any = [IpAddr::V4(Ipv4Addr::from_bits(bits as u32)), IpAddr::V6(Ipv6Addr::from_bits(0x2 << 124 | bits >> 4))];
            for address in edges.chain(beyond).chain(any) {
                let by_name = subnets.iter().any(|net| net.contains(&address));
                let is_public = address.is_ipv4() || INTERNET_V6.contains(&as_v6(address));
                let is_internet = is_public && !taken.iter().any(|net| net.contains(&address));
                prop_assert_eq!(served.contains(address), by_name || is_internet, "{}", address);
            }
            let pieces: Vec<&IpNet> = served.pieces().collect();
            for (place, piece) in pieces.iter().enumerate() {
                prop_assert!(!pieces[..place].iter().any(|other| overlap(other, piece)), "{} twice", piece);
            }
        }
    }

    fn neighbours(net: IpNet) -> Vec<IpAddr> {
        match (net.network(), net.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => [first.to_bits().wrapping_sub(1), last.to_bits().wrapping_add(1)]
                .map(|b| Ipv4Addr::from(b).into())
                .into(),
            (IpAddr::V6(first), IpAddr::V6(last)) => [first.to_bits().wrapping_sub(1), last.to_bits().wrapping_add(1)]
                .map(|b| Ipv6Addr::from(b).into())
                .into(),
            _ => Vec::new(),
        }
    }

    fn as_v6(address: IpAddr) -> Ipv6Addr {
        match address {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        }
    }
}
