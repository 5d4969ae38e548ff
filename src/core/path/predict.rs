//! Guesses at the port under which a peer's NAT will show it to us.
//!
//! A NAT that gives every destination a mapping of its own (RFC 4787 §4.1, address- and port-dependent) shows us a
//! port that no STUN server saw. Two guesses pay: many such NATs count ports upwards, so the next ones are near those
//! that the peer tells of; and many keep the port of the host where it is free. A NAT that draws its ports at random
//! is left to the relay: with one socket at each end a guess hits once in sixty thousand.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::rank::{Class, Rank};
use crate::netcheck::NEAR_PORTS;

/// Ports guessed in one round.
pub(super) const GUESSES: usize = 8;

/// Guesses for one round of a search; each round goes on where the last one ended.
pub(super) fn guesses(candidates: impl Iterator<Item = (SocketAddr, Rank)>, round: u16) -> Vec<SocketAddr> {
    let mut seen: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    let mut local = Vec::new();
    for (endpoint, rank) in candidates {
        match rank.class() {
            Class::Global if endpoint.is_ipv4() => seen.entry(endpoint.ip()).or_default().push(endpoint.port()),
            Class::Global => {}
            Class::OnLink | Class::Private => local.push(endpoint.port()),
        }
    }
    let mut guesses = Vec::new();
    for (ip, mut ports) in seen.into_iter().filter(|(_, ports)| ports.len() >= 2) {
        ports.sort_unstable();
        let kept = local.iter().copied();
        let step = u16::try_from(GUESSES).unwrap_or(u16::MAX);
        // One that was forwarded by hand lies apart from the row.
        let row = ports.windows(2).filter(|pair| pair[1] - pair[0] <= NEAR_PORTS).map(|pair| pair[1]).next_back();
        let next =
            |last: u16| (1..=step).map(move |next| last.wrapping_add(round.wrapping_mul(step)).wrapping_add(next));
        let counted = row.into_iter().flat_map(next);
        for port in kept.chain(counted).filter(|port| *port >= 1_024 && !ports.contains(port)) {
            let guess = SocketAddr::new(ip, port);
            if guesses.len() < GUESSES && !guesses.contains(&guess) {
                guesses.push(guess);
            }
        }
    }
    guesses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(endpoints: &[(&str, Rank)], round: u16) -> Vec<String> {
        let endpoints = endpoints.iter().map(|(endpoint, rank)| (endpoint.parse().unwrap(), *rank));
        guesses(endpoints, round).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_that_were_counted_upwards_are_counted_on_and_the_host_s_own_port_is_tried() {
        let endpoints = [
            ("203.0.113.5:4000", Rank::GlobalV4),
            ("203.0.113.5:4001", Rank::GlobalV4),
            ("192.168.1.5:41741", Rank::Private),
        ];
        let first = guessed(&endpoints, 0);
        assert_eq!(first[..3], ["203.0.113.5:41741", "203.0.113.5:4002", "203.0.113.5:4003"]);
        assert_eq!(first.len(), GUESSES);
        assert_eq!(guessed(&endpoints, 1)[1], "203.0.113.5:4010");
    }

    #[test]
    fn a_port_that_was_forwarded_by_hand_does_not_hide_that_the_others_were_counted() {
        let endpoints = ["203.0.113.5:4000", "203.0.113.5:4001", "203.0.113.5:41741"].map(|at| (at, Rank::GlobalV4));
        assert_eq!(guessed(&endpoints, 0)[..2], ["203.0.113.5:4002", "203.0.113.5:4003"]);
    }

    #[test]
    fn nothing_is_guessed_of_a_peer_with_one_mapping_or_with_random_ones_and_no_local_port() {
        assert!(guessed(&[("203.0.113.5:4000", Rank::GlobalV4)], 0).is_empty());
        let far = [("203.0.113.5:4000", Rank::GlobalV4), ("203.0.113.5:50000", Rank::GlobalV4)];
        assert!(guessed(&far, 0).is_empty());
    }
}
