//! Law: another node key costs no packet, whatever befalls coordinator and agent on the way; and in the end the
//! coordinator, the kernel and the disk have the same one.

use std::time::Duration;

use warren_core::node::Answer;

use crate::net::{Rotations, Weather, World};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
/// A ping every 10 ms.
const PACE: Duration = Duration::from_millis(10);

/// Two hosts that talk by a direct path for `span`.
fn talking(seed: u64, span: Duration) -> World {
    let mut world = World::new(seed, Weather::FAIR);
    for _ in 0..2 {
        world.host(0, true, false);
    }
    world.run(4 * SECOND);
    world.talk_both_ways(0, 1, PACE, span);
    world.run(8 * SECOND);
    assert!(world.are_direct(0, 1), "seed {seed}");
    world
}

fn lost(world: &World) -> u64 {
    let sum = |counts: &std::collections::BTreeMap<(usize, usize), u64>| counts.values().sum::<u64>();
    sum(&world.offered) - sum(&world.count)
}

/// Everybody has the same key, and it is the only one.
fn assert_agreed(world: &World, host: usize, what: &str) {
    let host = &world.hosts[host];
    assert_eq!(host.kernel.key, host.key, "{what}: kernel and coordinator");
    assert_eq!(host.keys_on_disk(), [host.key], "{what}: disk and coordinator");
}

#[test]
fn no_packet_is_lost_when_either_side_or_one_after_the_other_changes_its_key() {
    for (seed, who) in (0..4).flat_map(|seed| [[0].as_slice(), &[1], &[0, 1]].map(|who| (seed, who))) {
        let what = format!("seed {seed}, {who:?}");
        let mut world = talking(seed, 30 * SECOND);
        let before = [world.hosts[0].key, world.hosts[1].key];
        for host in who {
            world.rotate_keys(*host);
            world.run(5 * SECOND);
        }
        assert!(world.are_direct(0, 1), "{what}: it is where it was");
        assert!(world.longest_gap() < SECOND, "{what}: {:?}", world.longest_gap());
        world.run(23 * SECOND);
        assert_eq!(lost(&world), 0, "{what}");
        for host in [0, 1] {
            assert_eq!(world.hosts[host].key != before[host], who.contains(&host), "{what}");
            assert_agreed(&world, host, &what);
        }
        who.iter().for_each(|host| assert_eq!(world.hosts[*host].answers, [Answer::Done], "{what}"));
    }
}

#[test]
fn two_that_change_their_keys_at_one_moment_lose_no_more_than_one_retry_of_a_handshake_takes() {
    for seed in 0..4 {
        let mut world = talking(seed, 30 * SECOND);
        world.rotate_keys(0);
        world.rotate_keys(1);
        world.run(20 * SECOND);
        assert!(world.longest_gap() < 7 * SECOND, "seed {seed}: {:?}", world.longest_gap());
        [0, 1].into_iter().for_each(|host| assert_agreed(&world, host, "both"));
    }
}

#[test]
fn a_coordinator_that_refuses_leaves_everything_as_it_was() {
    for seed in 0..3 {
        let mut world = talking(seed, 30 * SECOND);
        let before = world.hosts[0].key;
        world.rotations = Rotations::Refused;
        world.rotate_keys(0);
        world.run(30 * SECOND);
        assert_eq!((world.hosts[0].key, lost(&world)), (before, 0), "seed {seed}");
        assert_agreed(&world, 0, "refused");
        let [Answer::Refused(refusal)] = world.hosts[0].answers.as_slice() else { panic!("seed {seed}") };
        assert!(refusal.text.ends_with("The present key stays"), "{}", refusal.text);
    }
}

#[test]
fn a_coordinator_whose_answer_is_lost_is_asked_again_and_the_new_key_stands() {
    for seed in 0..3 {
        let mut world = talking(seed, 40 * SECOND);
        let before = world.hosts[0].key;
        world.rotations = Rotations::Unanswered;
        world.rotate_keys(0);
        world.run(SECOND);
        world.rotations = Rotations::Taken;
        world.run(30 * SECOND);
        assert_ne!(world.hosts[0].key, before, "seed {seed}");
        assert_agreed(&world, 0, "unanswered");
        assert!(world.longest_gap() < 10 * SECOND, "seed {seed}: {:?}", world.longest_gap());
        assert!(world.are_direct(0, 1));
    }
}

#[test]
fn a_coordinator_that_is_away_is_not_asked_and_one_that_goes_meanwhile_costs_little() {
    let mut world = talking(3, 60 * SECOND);
    world.end_coordinator();
    world.run(SECOND);
    world.rotate_keys(0);
    assert!(matches!(world.hosts[0].answers.as_slice(), [Answer::Refused(_)]));
    for pause in (0..60).step_by(12) {
        let mut world = talking(4, 68 * SECOND);
        world.rotate_keys(0);
        world.run(pause * MILLI);
        world.end_coordinator();
        world.run(20 * SECOND);
        world.begin_coordinator();
        world.run(39 * SECOND);
        assert_agreed(&world, 0, "away");
        // Where it took the key and could not tell the peers, they hear of it once they are connected again.
        assert!(world.longest_gap() < 45 * SECOND, "after {pause} ms: {:?}", world.longest_gap());
    }
}

#[test]
fn an_agent_that_is_killed_at_any_moment_of_it_comes_back_to_one_key() {
    for pause in (0..150).step_by(5) {
        let what = format!("killed after {pause} ms");
        let mut world = talking(5, 18 * SECOND);
        world.rotate_keys(0);
        world.run(pause * MILLI);
        world.kill(0, SECOND);
        world.run(15 * SECOND);
        assert_agreed(&world, 0, &what);
        assert!(world.longest_gap() < 10 * SECOND, "{what}: {:?}", world.longest_gap());
        world.forget_gaps();
        world.talk_both_ways(0, 1, PACE, 6 * SECOND);
        world.run(5 * SECOND);
        assert!(world.longest_gap() < SECOND, "{what}: {:?}", world.longest_gap());
    }
}

#[test]
fn a_key_is_changed_by_itself_once_it_is_a_month_old() {
    for (days, changes) in [(26, false), (31, true)] {
        let mut world = World::new(6, Weather::FAIR);
        world.host(0, true, false);
        world.hosts[0].remember_key_since(-days);
        let before = world.hosts[0].key;
        world.run(20 * SECOND);
        assert_eq!(world.hosts[0].key != before, changes, "after {days} days");
        assert_agreed(&world, 0, "a month");
    }
}
