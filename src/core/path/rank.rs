//! The order in which a peer's endpoints are tried.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use prefix_trie::PrefixSet;

use crate::netcheck::LinkKind;
use crate::types::{IpNet, Ipv4Net, Ipv6Net, in_overlay};

/// Where we stand: what decides the rank of an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranking {
    /// The addresses of our interfaces outside the overlay, each with the length of its on-link prefix.
    links: Vec<IpNet>,
    link_kinds: BTreeMap<IpNet, LinkKind>,
    advertised_v4: PrefixSet<Ipv4Net>,
    advertised_v6: PrefixSet<Ipv6Net>,
}

/// Lower is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    OnLink,
    GlobalV6,
    GlobalV4,
    Private,
    /// On a link of ours that leads to guests. Bridges of containers have the same addresses on every host, so this is
    /// rarely what it seems to be.
    OnVirtualLink,
}

/// Among ways that work, one of a lower class is better however slow it is; within a class, latency decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    OnLink,
    Global,
    Private,
}

impl Rank {
    pub(super) const fn class(self) -> Class {
        match self {
            Self::OnLink | Self::OnVirtualLink => Class::OnLink,
            Self::GlobalV6 | Self::GlobalV4 => Class::Global,
            Self::Private => Class::Private,
        }
    }
}

impl Ranking {
    /// Takes our own interface addresses, and all subnets that anybody in the network advertises.
    pub fn new(links: Vec<IpNet>, advertised: impl IntoIterator<Item = IpNet>) -> Self {
        let mut ranking = Self { links, ..Self::default() };
        for prefix in advertised {
            match prefix {
                IpNet::V4(prefix) => ranking.advertised_v4.insert(prefix),
                IpNet::V6(prefix) => ranking.advertised_v6.insert(prefix),
            };
        }
        ranking
    }

    /// The same where this is known of the links; of those that are not named, nothing is.
    pub fn with_link_kinds(mut self, link_kinds: BTreeMap<IpNet, LinkKind>) -> Self {
        self.link_kinds = link_kinds;
        self
    }

    /// The usable endpoints among these, best first; equal ones keep their order.
    pub fn candidates(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut ranked: Vec<_> = endpoints.iter().filter_map(|e| Some((self.rank(*e)?, *e))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut candidates = Vec::with_capacity(ranked.len());
        for (_, endpoint) in ranked {
            if !candidates.contains(&endpoint) {
                candidates.push(endpoint);
            }
        }
        candidates
    }

    /// The rank of an endpoint, if it may be one at all.
    pub(super) fn rank(&self, endpoint: SocketAddr) -> Option<Rank> {
        let address = endpoint.ip();
        if endpoint.port() == 0 || !is_unicast(address) || in_overlay(address) || !self.has_family_of(address) {
            return None;
        }
        let on = self.links.iter().filter(|link| link.contains(&address));
        match on.map(|link| self.link_kinds.get(link).copied().unwrap_or_default()).min() {
            Some(LinkKind::Uplink | LinkKind::Plain) => return Some(Rank::OnLink),
            Some(LinkKind::Virtual) => return Some(Rank::OnVirtualLink),
            None => {}
        }
        if self.is_advertised(address) {
            return None;
        }
        Some(match address {
            IpAddr::V4(v4) if v4.is_private() => Rank::Private,
            IpAddr::V6(v6) if v6.is_unique_local() => Rank::Private,
            IpAddr::V4(_) => Rank::GlobalV4,
            IpAddr::V6(_) => Rank::GlobalV6,
        })
    }

    fn has_family_of(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.addr().is_ipv4() == address.is_ipv4())
    }

    fn is_advertised(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.advertised_v4.get_lpm(&v4.into()).is_some_and(|prefix| prefix.prefix_len() > 0),
            IpAddr::V6(v6) => self.advertised_v6.get_lpm(&v6.into()).is_some_and(|prefix| prefix.prefix_len() > 0),
        }
    }
}

/// Whether an address can belong to one other machine that may be beyond our link.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !v4.is_unspecified() && !v4.is_loopback() && !v4.is_link_local() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_unicast_link_local()
                && !v6.is_multicast()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(links: &[&str], advertised: &[&str]) -> Ranking {
        Ranking::new(links.iter().map(|l| l.parse().unwrap()).collect(), advertised.iter().map(|a| a.parse().unwrap()))
    }

    fn candidates(ranking: &Ranking, endpoints: &[&str]) -> Vec<String> {
        let endpoints: Vec<_> = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        ranking.candidates(&endpoints).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_endpoint_on_our_link_comes_first_and_private_ones_of_other_places_last() {
        let ranking = ranking(&["192.168.1.7/24", "2001:db8:1::7/64"], &[]);

        let order =
            candidates(&ranking, &["10.0.0.5:1", "203.0.113.5:1", "[2001:db8:2::5]:1", "192.168.1.5:1", "10.0.0.6:1"]);

        assert_eq!(order, ["192.168.1.5:1", "[2001:db8:2::5]:1", "203.0.113.5:1", "10.0.0.5:1", "10.0.0.6:1"]);
    }

    #[test]
    fn what_seems_to_be_on_a_bridge_of_ours_comes_last_unless_the_default_route_leaves_by_it() {
        let link = |text: &str| -> IpNet { text.parse().unwrap() };
        let link_kinds = [(link("172.17.0.1/16"), LinkKind::Virtual), (link("10.0.0.2/24"), LinkKind::Uplink)];
        let ranking =
            ranking(&["172.17.0.1/16", "10.0.0.2/24", "192.168.9.2/24"], &[]).with_link_kinds(link_kinds.into());

        let order =
            candidates(&ranking, &["172.17.0.9:1", "203.0.113.5:1", "10.8.0.1:1", "192.168.9.5:1", "10.0.0.5:1"]);

        assert_eq!(order, ["192.168.9.5:1", "10.0.0.5:1", "203.0.113.5:1", "10.8.0.1:1", "172.17.0.9:1"]);
    }

    #[test]
    fn a_family_that_we_do_not_have_is_left_out() {
        let endpoints = ["203.0.113.5:1", "[2001:db8:2::5]:1"];
        assert_eq!(candidates(&ranking(&["192.168.1.7/24"], &[]), &endpoints), ["203.0.113.5:1"]);
        assert_eq!(candidates(&ranking(&["2001:db8:1::7/64"], &[]), &endpoints), ["[2001:db8:2::5]:1"]);
        assert!(candidates(&ranking(&[], &[]), &endpoints).is_empty());
    }

    #[test]
    fn the_overlay_and_advertised_subnets_are_never_candidates_but_our_own_link_is() {
        let ranking = ranking(&["10.1.0.7/24"], &["10.0.0.0/8", "198.51.100.0/24", "0.0.0.0/0"]);

        let order =
            candidates(&ranking, &["100.64.0.9:1", "10.2.0.5:1", "198.51.100.5:1", "10.1.0.5:1", "203.0.113.5:1"]);

        assert_eq!(order, ["10.1.0.5:1", "203.0.113.5:1"]);
    }

    #[test]
    fn addresses_that_name_no_other_machine_are_left_out() {
        let ranking = ranking(&["10.1.0.7/24", "2001:db8:1::7/64"], &[]);
        let endpoints = [
            "0.0.0.0:1",
            "127.0.0.1:1",
            "169.254.0.1:1",
            "224.0.0.1:1",
            "10.1.0.5:0",
            "[::1]:1",
            "[fe80::1]:1",
            "[::ffff:10.1.0.5]:1",
            "[ff02::1]:1",
        ];
        assert!(candidates(&ranking, &endpoints).is_empty());
    }

    #[test]
    fn an_endpoint_named_twice_is_tried_once() {
        let ranking = ranking(&["10.1.0.7/24"], &[]);
        assert_eq!(
            candidates(&ranking, &["10.1.0.5:1", "203.0.113.5:1", "10.1.0.5:1"]),
            ["10.1.0.5:1", "203.0.113.5:1"]
        );
    }
}
