//! How much of the public addresses peers may carry for us without an explicit word.
//!
//! Whoever accepts the subnets of peers wants to reach their networks, and gives nobody the whole of what this host
//! sends: that takes an exit node, chosen by name. But the internet can be had in pieces. So there is a bound on each
//! piece and on their sum. No single organisation was given more than a few /8 of IPv4, nor more than a /20 or so of
//! IPv6; who carries more than four of these carries not its own network but everybody's. Private addresses are not
//! counted: they are nobody's outside.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netmap::Reason;
use crate::types::{IpNet, Ipv4Net, Ipv6Net};

/// The widest route to public addresses, in each family.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 20;
/// How many of these all routes together may come to, in each family.
const SUM: u128 = 4;

/// Private addresses (RFC 1918, RFC 4193).
const PRIVATE: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)),
];

/// See the module. The default has taken nothing yet.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    taken: BTreeSet<IpNet>,
    v4: u128,
    v6: u128,
}

impl Allowance {
    /// Takes a route into the sum, or says why not.
    pub(super) fn take(&mut self, route: &IpNet) -> Result<(), Reason> {
        if PRIVATE.iter().any(|private| private.contains(route)) {
            return Ok(());
        }
        let (widest, sum) = match route {
            IpNet::V4(_) => (WIDEST_V4, &mut self.v4),
            IpNet::V6(_) => (WIDEST_V6, &mut self.v6),
        };
        if route.prefix_len() < widest {
            return Err(Reason::TooWide(widest));
        }
        let around = (widest..=route.prefix_len()).filter_map(|length| IpNet::new(route.addr(), length).ok());
        if around.into_iter().any(|around| self.taken.contains(&around.trunc())) {
            return Ok(());
        }
        let size = |length: u8| 1_u128 << (route.max_prefix_len() - length);
        let most = SUM * size(widest);
        if *sum + size(route.prefix_len()) > most {
            return Err(Reason::TooMuchOfInternet);
        }
        *sum += size(route.prefix_len());
        self.taken.insert(route.trunc());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many of these are taken.
    fn taken(routes: impl IntoIterator<Item = String>) -> usize {
        let mut allowance = Allowance::default();
        routes.into_iter().filter(|route| allowance.take(&route.parse().unwrap()).is_ok()).count()
    }

    fn texts(routes: &[&str]) -> Vec<String> {
        routes.iter().map(|route| (*route).to_owned()).collect()
    }

    #[test]
    fn the_internet_is_not_to_be_had_in_pieces() {
        assert_eq!(taken(texts(&["0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/7", "2000::/3", "2000::/19", "::/1"])), 0);
        assert_eq!(taken((1..=9).chain(11..=126).map(|first| format!("{first}.0.0.0/8"))), 4);
        assert_eq!(taken((0..2_000).map(|n| format!("{}.{}.0.0/16", 11 + n / 256, n % 256))), 4 * 256);
        assert_eq!(taken((0..16).map(|n| format!("2{n:03x}::/20"))), 4);
    }

    #[test]
    fn networks_of_ones_own_are_taken_however_many() {
        assert_eq!(taken(texts(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8", "17.0.0.0/8"])), 5);
        assert_eq!(taken((0..10_000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))), 10_000);
        // One within the other counts once.
        assert_eq!(taken((0..10).map(|_| "17.0.0.0/8".to_owned())), 10);
        assert_eq!(taken(["17.0.0.0/8".to_owned()].into_iter().chain((0..256).map(|n| format!("17.{n}.0.0/16")))), 257);
    }

    proptest! {
        /// Whatever comes in whatever order.
        #[test]
        fn what_is_taken_never_comes_to_more(routes in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..200)) {
            let mut allowance = Allowance::default();
            let nets = routes.iter().map(|(bits, length)| {
                IpNet::new(Ipv4Addr::from_bits(*bits).into(), *length).unwrap().trunc()
            });
            let taken: Vec<IpNet> = nets.filter(|net| allowance.take(net).is_ok()).collect();
            let public = taken.iter().filter(|net| !PRIVATE.iter().any(|private| private.contains(*net)));
            let outer: BTreeSet<&IpNet> = public.collect();
            let outer = outer.iter().filter(|net| !outer.iter().any(|other| other != *net && other.contains(**net)));
            let sum: u128 = outer.map(|net| 1_u128 << (32 - net.prefix_len())).sum();
            prop_assert!(sum <= SUM << 24, "{}", sum);
        }
    }
}
