//! Relays that end and begin anew while packets pass through them, the choice of a home among them, and what STUN finds
//! out through the NATs.

use std::time::Duration;

use warren_core::types::RegionId;

use crate::net::nat::{Depends, Kind};
use crate::net::pump::REGIONS;
use crate::net::{Happening, Weather, World};

const SECOND: Duration = Duration::from_secs(1);
const PACE: Duration = Duration::from_millis(100);
const HARD: Kind = Kind::nat(Depends::AddressAndPort, Depends::AddressAndPort);
const EASY: Kind = Kind::nat(Depends::Nothing, Depends::AddressAndPort);

/// Two hosts that only a relay connects, and that talk.
fn relayed_pair(seed: u64, kind: Kind) -> World {
    let mut world = World::new(seed, Weather::FAIR);
    for _ in 0..2 {
        let network = world.network(kind, 0);
        world.host(network, true, false);
    }
    talking(world)
}

fn talking(mut world: World) -> World {
    world.run(4 * SECOND);
    world.talk_both_ways(0, 1, PACE, 7_200 * SECOND);
    world.run(20 * SECOND);
    assert!(world.longest_gap() < SECOND, "{:?}", world.longest_gap());
    world.forget_gaps();
    world
}

fn homes(world: &World) -> Vec<Option<RegionId>> {
    world.hosts.iter().map(|host| host.record.home).collect()
}

#[test]
fn a_relay_that_ends_while_packets_pass_gives_way_to_another_within_two_seconds() {
    for seed in 0..20 {
        for kind in [HARD, Kind::BLOCKED] {
            let mut world = relayed_pair(seed, kind);
            assert!(!world.is_direct(0, 1), "seed {seed}");
            let relay = world.relay_of(0).unwrap();
            world.end_relay(relay);
            world.run(120 * SECOND);
            assert!(world.longest_gap() <= 2 * SECOND, "seed {seed}, {kind:?}: {:?}", world.longest_gap());
            assert!(world.hosts.iter().all(|host| host.homes_had <= 3), "seed {seed}, {kind:?}");
        }
    }
}

#[test]
fn a_region_that_ends_is_left_for_the_other_within_two_seconds() {
    for seed in 0..20 {
        for kind in [HARD, Kind::BLOCKED] {
            let mut world = relayed_pair(seed, kind);
            world.end_relay(0);
            world.end_relay(1);
            world.run(20 * SECOND);
            assert!(world.longest_gap() <= 2 * SECOND, "seed {seed}, {kind:?}: {:?}", world.longest_gap());
            assert_eq!(homes(&world), [Some(REGIONS[1]); 2], "seed {seed}, {kind:?}");
        }
    }
}

#[test]
fn the_only_relay_is_used_again_soon_after_it_has_begun_anew() {
    const DOWN: Duration = Duration::from_millis(1_500);
    for seed in 0..20 {
        for kind in [HARD, Kind::BLOCKED] {
            let mut world = World::new(seed, Weather::FAIR);
            world.relays.truncate(1);
            for _ in 0..2 {
                let network = world.network(kind, 0);
                world.host(network, true, false);
            }
            let mut world = talking(world);
            for turn in 0..3 {
                world.end_relay(0);
                world.after(DOWN, 0, Happening::RelayBack { relay: 0 });
                world.run(30 * SECOND);
                // The waits double, each between half and one and a half of itself: one takes at most three times as long as
                // all those before it.
                let gap = world.longest_gap();
                assert!(gap <= 4 * DOWN + SECOND, "seed {seed}, turn {turn}: {gap:?}");
                world.forget_gaps();
            }
            assert_eq!(homes(&world), [Some(REGIONS[0]); 2], "there is no other");
        }
    }
}

#[test]
fn the_home_is_the_nearest_region_that_works_and_changes_no_more_often_than_that_does() {
    for seed in 0..10 {
        let mut world = World::new(seed, Weather::FAIR);
        for region in REGIONS {
            let network = world.network(EASY, 0);
            let host = world.host(network, true, false);
            world.hosts[host].near = region;
        }
        let mut world = talking(world);
        assert_eq!(homes(&world), REGIONS.map(Some), "seed {seed}");
        world.run(1_200 * SECOND);
        assert!(world.hosts.iter().all(|host| host.homes_had == 1), "seed {seed}");
        world.end_relay(0);
        world.end_relay(1);
        world.run(60 * SECOND);
        assert_eq!(homes(&world), [Some(REGIONS[1]); 2], "seed {seed}");
        world.begin_all_relays();
        world.run(1_800 * SECOND);
        assert_eq!(homes(&world), REGIONS.map(Some), "seed {seed}");
        assert_eq!(world.hosts[0].homes_had, 3, "seed {seed}");
        assert_eq!(world.hosts[1].homes_had, 1, "seed {seed}");
        assert!(world.are_direct(0, 1), "seed {seed}");
        assert!(world.longest_gap() <= 2 * SECOND, "seed {seed}: {:?}", world.longest_gap());
    }
}

#[test]
fn stun_finds_out_what_the_nat_does_and_https_finds_a_home_where_udp_is_blocked() {
    for (kind, udp, varies) in [
        (Some(EASY), true, Some(false)),
        (Some(Kind { filtering: Depends::Nothing, ..EASY }), true, Some(false)),
        (Some(HARD), true, Some(true)),
        (Some(Kind::nat(Depends::Address, Depends::Nothing)), true, Some(true)),
        (Some(Kind::FIREWALL), true, Some(false)),
        (None, true, Some(false)),
        (Some(Kind::BLOCKED), false, None),
    ] {
        let mut world = World::new(1, Weather::FAIR);
        let network = kind.map_or(0, |kind| world.network(kind, 0));
        world.host(network, true, false);
        world.run(10 * SECOND);
        let report = world.hosts[0].report();
        assert_eq!((report.udp, report.mapping_varies), (udp, varies), "{kind:?}");
        assert_eq!(report.home, Some(REGIONS[0]), "{kind:?}");
        let public = world.gateways[network].as_ref().filter(|gateway| gateway.kind.translates && udp);
        if let Some(public) = public.map(|gateway| gateway.public) {
            assert!(world.hosts[0].record.endpoints.iter().any(|endpoint| endpoint.ip() == public), "{kind:?}");
        }
        let asked = world.hosts[0].questions;
        world.run(3_000 * SECOND);
        let asked = world.hosts[0].questions - asked;
        // An idle node looks about once an hour; where nothing answers, after half a minute and doubled waits.
        assert!(asked <= 80, "{kind:?}: {asked} questions in 50 minutes of rest");
    }
}
