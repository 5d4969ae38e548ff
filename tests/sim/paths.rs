//! Law 7: with a working relay there is always a path, it never flaps faster than its hysteresis, and probes are
//! bounded; and a direct path is found exactly where the NATs allow one.

use std::time::Duration;

use crate::net::nat::{DEPENDS, Depends, Kind};
use crate::net::{Weather, World};

const SECOND: Duration = Duration::from_secs(1);
const PACE: Duration = Duration::from_millis(200);

/// Two hosts, each behind its own gateway, or on the Internet.
fn pair(seed: u64, weather: Weather, a: Option<Kind>, b: Option<Kind>) -> World {
    let mut world = World::new(seed, weather);
    for kind in [a, b] {
        let network = kind.map_or(0, |kind| world.network(kind, 0));
        world.host(network, true, false);
    }
    world.run(4 * SECOND);
    world
}

/// What theory says of two NATs with random ports (RFC 4787's terms; a host on the Internet is the loosest NAT).
fn meets(a: (Depends, Depends), b: (Depends, Depends)) -> bool {
    let stays = |side: (Depends, Depends)| side.0 == Depends::Nothing;
    let lets_other_ports_in = |side: (Depends, Depends)| side.1 != Depends::AddressAndPort;
    match (stays(a), stays(b)) {
        (true, true) => true,
        (true, false) => lets_other_ports_in(a),
        (false, true) => lets_other_ports_in(b),
        (false, false) => {
            let one_keeps_its_port_per_host = a.0 == Depends::Address || b.0 == Depends::Address;
            lets_other_ports_in(a) && lets_other_ports_in(b) && one_keeps_its_port_per_host
        }
    }
}

#[test]
fn two_nats_meet_exactly_where_theory_says_and_what_is_offered_arrives_either_way() {
    let all: Vec<_> = DEPENDS.iter().flat_map(|mapping| DEPENDS.map(|filtering| (*mapping, filtering))).collect();
    let mut seed = 0;
    for a in &all {
        for b in &all {
            seed += 1;
            let kinds = [*a, *b].map(|(mapping, filtering)| Some(Kind::nat(mapping, filtering)));
            let mut world = pair(seed, Weather::FAIR, kinds[0], kinds[1]);
            world.talk_both_ways(0, 1, PACE, 30 * SECOND);
            world.run(25 * SECOND);
            assert_eq!(world.are_direct(0, 1), meets(*a, *b), "seed {seed}: {a:?} and {b:?}");
            assert!(world.longest_gap() < SECOND, "seed {seed}: {a:?} and {b:?}: {:?}", world.longest_gap());
        }
    }
}

#[test]
fn a_way_that_loses_large_packets_is_left_for_the_relay_until_it_carries_them() {
    let mut world = pair(7, Weather::FAIR, None, None);
    world.narrow = true;
    world.talk_both_ways(0, 1, PACE, 900 * SECOND);
    world.run(20 * SECOND);
    assert!(!world.is_direct(0, 1) && !world.is_direct(1, 0), "small packets pass, and are not enough");
    let peer = world.hosts[1].key;
    assert!(world.hosts[0].book().narrow().any(|(key, _)| *key == peer), "it is said why");
    world.forget_gaps();
    world.run(400 * SECOND);
    assert!(world.longest_gap() < SECOND, "it is not tried again with packets: {:?}", world.longest_gap());

    world.narrow = false;
    world.run(200 * SECOND);
    assert!(world.are_direct(0, 1));
    assert_eq!(world.hosts[0].book().narrow().count(), 0);

    world.narrow = true;
    world.run(30 * SECOND);
    assert!(!world.is_direct(0, 1) && !world.is_direct(1, 0), "what it carried once counts for nothing");
}

#[test]
fn other_places_of_two_hosts_meet_as_theory_says() {
    let cone = Kind::nat(Depends::Nothing, Depends::Nothing);
    let port_restricted = Kind::nat(Depends::Nothing, Depends::AddressAndPort);
    let hard = Kind::nat(Depends::AddressAndPort, Depends::AddressAndPort);
    let cells = [
        (None, None, true),
        (None, Some(hard), true),
        (Some(Kind::FIREWALL), Some(Kind::FIREWALL), true),
        (Some(Kind::FIREWALL), Some(port_restricted), true),
        (Some(Kind::FIREWALL), Some(hard), false),
        (Some(Kind::BLOCKED), None, false),
        (Some(Kind::BLOCKED), Some(cone), false),
        (Some(hard), Some(port_restricted), false),
        // Ports that are counted are guessed.
        (Some(Kind { counts_ports: true, ..hard }), Some(port_restricted), true),
    ];
    for (number, (a, b, expected)) in cells.into_iter().enumerate() {
        let mut world = pair(number as u64, Weather::FAIR, a, b);
        world.talk_both_ways(0, 1, PACE, 30 * SECOND);
        world.run(25 * SECOND);
        assert_eq!(world.are_direct(0, 1), expected, "{a:?} and {b:?}");
        assert!(world.longest_gap() < SECOND, "{a:?} and {b:?}");
    }
}

#[test]
fn hosts_behind_the_same_nat_behind_two_and_with_ipv6_meet() {
    let nat = Kind::nat(Depends::Nothing, Depends::AddressAndPort);
    let hard = Kind::nat(Depends::AddressAndPort, Depends::AddressAndPort);
    // On one link, whatever stands before it.
    let mut world = World::new(1, Weather::FAIR);
    let link = world.network(hard, 0);
    world.host(link, true, false);
    world.host(link, true, false);
    check_meets(world, true, "one link");
    // Behind a provider's NAT, each with a NAT of its own: it takes a hairpin.
    for hairpins in [true, false] {
        let mut world = World::new(2, Weather::FAIR);
        let provider = world.network(Kind { hairpins, ..nat }, 0);
        let homes = [world.network(nat, provider), world.network(nat, provider)];
        let _ = homes.map(|home| world.host(home, true, false));
        check_meets(world, hairpins, "a provider's NAT");
    }
    // Two NATs in a row on one side.
    let mut world = World::new(3, Weather::FAIR);
    let provider = world.network(nat, 0);
    let home = world.network(nat, provider);
    let other = world.network(nat, 0);
    world.host(home, true, false);
    world.host(other, true, false);
    check_meets(world, true, "two NATs in a row");
    // Hard NATs for IPv4, and firewalls for IPv6.
    let mut world = World::new(4, Weather::FAIR);
    let homes = [world.network(hard, 0), world.network(hard, 0)];
    let _ = homes.map(|home| world.host(home, true, true));
    check_meets(world, true, "both families");
    let mut world = World::new(5, Weather::FAIR);
    let homes = [world.network(hard, 0), world.network(hard, 0)];
    let _ = homes.map(|home| world.host(home, false, true));
    check_meets(world, true, "IPv6 alone");
}

fn check_meets(mut world: World, expected: bool, what: &str) {
    world.run(4 * SECOND);
    world.talk_both_ways(0, 1, PACE, 30 * SECOND);
    world.run(25 * SECOND);
    assert_eq!(world.are_direct(0, 1), expected, "{what}");
    assert!(world.longest_gap() < SECOND, "{what}: {:?}", world.longest_gap());
}

/// Two hosts behind ordinary NATs, direct and talking.
fn direct_pair(seed: u64, weather: Weather) -> World {
    let nat = Some(Kind::nat(Depends::Nothing, Depends::AddressAndPort));
    let mut world = pair(seed, weather, nat, nat);
    world.talk_both_ways(0, 1, PACE, 3_600 * SECOND);
    world.run(20 * SECOND);
    assert!(world.are_direct(0, 1), "seed {seed}");
    world.forget_gaps();
    world
}

#[test]
fn a_path_that_dies_gives_way_to_the_relay_within_seven_seconds_and_comes_back() {
    for seed in 0..20 {
        let mut world = direct_pair(seed, Weather::FAIR);
        world.gateways[1].as_mut().unwrap().kind.blocks_udp = true;
        world.run(20 * SECOND);
        assert!(!world.is_direct(0, 1) && !world.is_direct(1, 0), "seed {seed}");
        assert!(world.longest_gap() <= 7 * SECOND, "seed {seed}: {:?}", world.longest_gap());
        world.gateways[1].as_mut().unwrap().kind.blocks_udp = false;
        world.forget_gaps();
        world.run(70 * SECOND);
        assert!(world.are_direct(0, 1), "seed {seed}");
        assert!(world.longest_gap() <= SECOND, "seed {seed}: {:?}", world.longest_gap());
    }
}

#[test]
fn a_host_that_goes_over_to_another_network_is_reached_within_a_second() {
    for seed in 0..20 {
        let mut world = direct_pair(seed, Weather::FAIR);
        let other = world.network(Kind::nat(Depends::Nothing, Depends::Nothing), 0);
        world.roam(0, other);
        world.run(20 * SECOND);
        assert!(world.are_direct(0, 1), "seed {seed}");
        assert!(world.longest_gap() <= 7 * SECOND, "seed {seed}: {:?}", world.longest_gap());
        assert!(world.gaps[&(0, 1)] <= SECOND, "seed {seed}: {:?}", world.gaps);
    }
}

#[test]
fn nothing_is_lost_while_direct_when_relay_or_agent_end_and_begin_anew() {
    for seed in 0..20 {
        let mut world = direct_pair(seed, Weather::FAIR);
        world.end_all_relays();
        world.kill(0, 3 * SECOND);
        world.run(10 * SECOND);
        world.begin_all_relays();
        world.run(60 * SECOND);
        assert!(world.are_direct(0, 1), "seed {seed}");
        assert!(world.longest_gap() <= PACE + PACE, "seed {seed}: {:?}", world.longest_gap());
        let moves: u32 = world.hosts.iter().flat_map(|host| host.kernel.peers.values()).map(|peer| peer.moves).sum();
        assert!(moves <= 6, "seed {seed}: the kernel's endpoints changed {moves} times");
    }
}

#[test]
fn no_packet_is_lost_from_the_relay_to_the_direct_path_nor_back_when_the_hosts_fall_idle() {
    let nat = Kind::nat(Depends::Nothing, Depends::AddressAndPort);
    for seed in 0..40 {
        let mut world = pair(seed, Weather::FAIR, Some(nat), Some(nat));
        for turn in 0..3 {
            world.talk_both_ways(0, 1, PACE / 10, 20 * SECOND);
            world.run(15 * SECOND);
            assert!(world.are_direct(0, 1), "seed {seed}, turn {turn}");
            world.run(10 * SECOND + 60 * SECOND * turn);
            assert_eq!(world.count, world.offered, "seed {seed}, turn {turn}");
        }
    }
}

#[test]
fn a_quiet_network_never_changes_its_paths_whatever_it_loses() {
    for seed in 0..20 {
        let weather = Weather { loss: 80, doubled: 50, delay: (20, 120) };
        let mut world = direct_pair(seed, weather);
        for host in &mut world.hosts {
            host.changes.clear();
        }
        world.run(300 * SECOND);
        assert!(world.hosts.iter().all(|host| host.changes.is_empty()), "seed {seed}");
        let pings = world.hosts.iter().map(|host| host.pings).max().unwrap();
        assert!(pings < 320 * 2, "seed {seed}: {pings} probes in 320 s");
    }
}

#[test]
fn idle_hosts_send_nothing_and_set_no_timer() {
    let nat = Some(Kind::nat(Depends::Nothing, Depends::AddressAndPort));
    let mut world = pair(1, Weather::FAIR, nat, nat);
    world.talk_both_ways(0, 1, PACE, 10 * SECOND);
    world.run(120 * SECOND);
    let pings: Vec<u64> = world.hosts.iter().map(|host| host.pings).collect();
    world.run(600 * SECOND);
    assert_eq!(pings, world.hosts.iter().map(|host| host.pings).collect::<Vec<_>>());
    assert!(world.hosts.iter().all(|host| host.book().poll_timeout().is_none()));
    world.talk(0, 1, PACE, 10 * SECOND);
    world.run(5 * SECOND);
    assert!(world.are_direct(0, 1), "and wake up at once");
}

#[test]
fn without_any_relay_hosts_meet_by_probes_alone_and_talk_again_after_hours() {
    let cone = Kind::nat(Depends::Nothing, Depends::Nothing);
    for (number, (a, b)) in [(None, None), (Some(cone), None), (Some(cone), Some(cone))].into_iter().enumerate() {
        let mut world = World::new(number as u64, Weather::FAIR);
        world.relayless = true;
        for kind in [a, b] {
            let network = kind.map_or(0, |kind| world.network(kind, 0));
            world.host(network, true, false);
        }
        world.run(4 * SECOND);
        for _ in 0..3 {
            world.forget_gaps();
            world.talk_both_ways(0, 1, PACE, 60 * SECOND);
            world.run(60 * SECOND);
            assert!(world.longest_gap() < 20 * SECOND, "{a:?} and {b:?}: {:?}", world.longest_gap());
            world.run(7_200 * SECOND);
        }
    }
}

#[test]
fn a_path_that_comes_and_goes_is_used_less_and_less() {
    for seed in 0..20 {
        let mut world = direct_pair(seed, Weather::FAIR);
        for _ in 0..60 {
            for blocks_udp in [true, false] {
                world.gateways[1].as_mut().unwrap().kind.blocks_udp = blocks_udp;
                world.run(10 * SECOND);
            }
        }
        for host in &world.hosts {
            let changes = host.changes.values().next().unwrap();
            // Each failure doubles the pause, from a second to two minutes: 15 of them have room, each a change to and fro.
            assert!(changes.len() <= 2 * 15, "seed {seed}: {} changes in 60 turns: {changes:?}", changes.len());
        }
    }
}

#[test]
fn a_machine_that_comes_back_with_its_clock_behind_is_helped_by_its_peer() {
    let nat = Kind::nat(Depends::Nothing, Depends::AddressAndPort);
    for (seed, (a, b)) in [(None, None), (Some(nat), Some(nat)), (Some(Kind::BLOCKED), None)].into_iter().enumerate() {
        let mut world = pair(seed as u64, Weather::FAIR, a, b);
        // It has begun handshakes, which its peer remembers the time of.
        world.talk(0, 1, PACE, 10 * SECOND);
        world.run(10 * SECOND);
        assert!(world.count[&(0, 1)] > 10, "seed {seed}");

        // Longer than the old session is believed in.
        world.reboot(0, 200 * SECOND, 24 * 3_600 * SECOND);
        world.run(204 * SECOND);
        let before = world.count[&(0, 1)];
        world.talk(0, 1, PACE, 120 * SECOND);
        world.run(45 * SECOND);

        assert!(world.count[&(0, 1)] > before + 50, "seed {seed}: nothing comes through");
        world.forget_gaps();
        world.run(60 * SECOND);
        assert!(world.longest_gap() < 2 * SECOND, "seed {seed}: {:?}", world.longest_gap());
        assert_eq!(world.hosts[0].book().one_way().count(), 0, "seed {seed}");
        assert!(!world.hosts[1].book().begins(&world.hosts[0].key), "seed {seed}: it is done");
    }
}

#[test]
fn handshakes_that_nobody_answers_are_told_of_and_end() {
    let mut world = pair(1, Weather::FAIR, None, None);
    world.talk(0, 1, PACE, 60 * SECOND);
    // The other's agent answers probes, and its kernel knows nothing of ours: as with a clock that never catches up.
    world.hosts[1].kernel.behind = Duration::ZERO;
    world.deaf = Some((0, 1));
    world.run(40 * SECOND);
    let key = world.hosts[1].key;
    assert_eq!(world.hosts[0].book().one_way().collect::<Vec<_>>(), [key]);
    assert!(!world.hosts[0].book().path(&key).active, "what gets no answer is not active");

    world.run(400 * SECOND);
    assert_eq!(world.hosts[0].book().one_way().count(), 0, "nobody wants to talk any more");
    assert!(!world.hosts[1].book().is_active(), "the other does not go on for ever either");
}

#[test]
fn nothing_moves_while_direct_when_relay_and_coordinator_are_gone_and_back_with_less_than_they_knew() {
    for seed in 0..21 {
        let delay = [(10, 15), (50, 150), (5, 400)][seed as usize % 3];
        let mut world = direct_pair(seed, Weather { delay, ..Weather::FAIR });
        for host in &mut world.hosts {
            host.changes.clear();
        }
        world.end_all_relays();
        world.end_coordinator();
        world.forget_report(seed as usize % 2);
        world.run(Duration::from_millis(4_000 + 1_300 * seed));
        world.begin_all_relays();
        world.begin_coordinator();
        world.run(20 * SECOND);
        let offered = world.offered.clone();
        world.run(SECOND);
        assert!(offered.iter().all(|(pair, offered)| world.count[pair] >= *offered), "seed {seed}: lost");
        assert!(world.hosts.iter().all(|host| host.changes.is_empty()), "seed {seed}: the path changed");
    }
}
