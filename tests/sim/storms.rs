//! Thousands of random networks in which much happens: one seed, one run. A seed that once failed stays in [`KEPT`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use warren_core::node::Engine;

use crate::net::nat::{DEPENDS, Kind};
use crate::net::pump::REGIONS;
use crate::net::{Happening, Weather, World};

const SEEDS: u64 = 2_000;
/// Seeds that once failed.
const KEPT: [u64; 4] = [12_194, 12_549, 13_192, 13_449];

const SECOND: Duration = Duration::from_secs(1);
const PACE: Duration = Duration::from_millis(250);
/// Time between two blows of fate: what one of them did is over by then.
const CALM: Duration = Duration::from_secs(20);
/// Dead path to relay: 7 s. The rest is for a connection to the peer's relay that is made only then, for packets that are
/// lost on the way there, and the pause between them.
const LONGEST_GAP: Duration = Duration::from_millis(7_900);
/// Where a path dies in one direction alone, the end that is still heard learns of it when the other goes back to the relay,
/// and gives the path 2 s to prove itself.
const LONGEST_ONE_WAY: Duration = Duration::from_millis(9_900);
/// What one peer may be sent in probes: the burst, the pace, a heartbeat a second at worst, and answers.
const PROBES_AT_ONCE: u64 = 64 + 100;
const PROBES_PER_SECOND: u64 = 4 + 1 + 5;
/// STUN: a full look asks two regions four times each; a blow may bring a few looks. A short one comes every 20 s at best,
/// or with each wish for fresh endpoints, which have 27 s.
const QUESTIONS_AT_ONCE: u64 = 4 * 8;
const QUESTIONS_PER_LOOK: u64 = 8;
const LOOK_EVERY: u64 = 10;
/// The home goes where a relay answers, and comes back.
const HOMES_PER_BLOW: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Blow {
    /// A NAT forgets everything.
    Reboot,
    /// A network lets UDP through no longer, or again.
    Block,
    /// A host goes over to another network.
    Roam,
    /// An agent is killed and begins anew.
    Kill,
    /// An agent is killed and begins anew with what its disk holds: the coordinator is away meanwhile.
    Outage,
    /// The clock on the wall is set.
    Clock,
    /// A relay ends and begins anew.
    RelayRestarts,
    /// A relay ends, and another of its region lives.
    RelayDies,
    /// All relays of a region end, and those of the other live.
    RegionDies,
    Nothing,
}

const BLOWS: [Blow; 10] = [
    Blow::Reboot,
    Blow::Block,
    Blow::Roam,
    Blow::Kill,
    Blow::Outage,
    Blow::Clock,
    Blow::RelayRestarts,
    Blow::RelayDies,
    Blow::RegionDies,
    Blow::Nothing,
];

fn random_world(seed: u64) -> World {
    let mut world = World::new(seed, Weather::FAIR);
    world.weather = Weather {
        loss: world.chance.pick(&[0, 0, 10, 50]),
        doubled: world.chance.pick(&[0, 30]),
        delay: world.chance.pick(&[(5, 10), (10, 60), (80, 140)]),
    };
    let hosts = 2 + world.chance.below(2);
    for _ in 0..hosts {
        let network = random_network(&mut world);
        let v6 = world.chance.permille(200);
        let host = world.host(network, true, v6);
        world.hosts[host].near = REGIONS[usize::from(world.chance.permille(300))];
    }
    world
}

fn random_network(world: &mut World) -> usize {
    let kind = random_kind(world);
    match world.chance.below(10) {
        0 | 1 => 0,
        // Where somebody is already.
        2 if world.gateways.len() > 1 => 1 + world.chance.below(world.gateways.len() as u64 - 1) as usize,
        3 => {
            let provider = world.network(kind, 0);
            let home = random_kind(world);
            world.network(home, provider)
        }
        _ => world.network(kind, 0),
    }
}

fn random_kind(world: &mut World) -> Kind {
    let (mapping, filtering) = (world.chance.pick(&DEPENDS), world.chance.pick(&DEPENDS));
    let kind = match world.chance.below(10) {
        0 => Kind::BLOCKED,
        1 => Kind::FIREWALL,
        _ => Kind::nat(mapping, filtering),
    };
    let (counts_ports, hairpins) = (world.chance.permille(300), world.chance.permille(500));
    Kind { counts_ports, hairpins, ..kind }
}

/// Lets the seed's network live for some minutes and says what broke the law.
fn faults(seed: u64) -> Vec<String> {
    let mut world = random_world(seed);
    let mut faults = Vec::new();
    world.run(4 * SECOND);
    let pairs: Vec<(usize, usize)> = (1..world.hosts.len()).map(|other| (0, other)).collect();
    for (a, b) in &pairs {
        world.talk_both_ways(*a, *b, PACE, 3_600 * SECOND);
    }
    world.run(CALM);
    let mut blows = Vec::new();
    for _ in 0..4 {
        world.forget_gaps();
        let blow = world.chance.pick(&BLOWS);
        strike(&mut world, blow);
        blows.push(blow);
        world.run(CALM);
        let most = |(a, b): &(usize, usize)| match world.gaps.get(&(*b, *a)) {
            Some(back) if *back < SECOND => LONGEST_ONE_WAY,
            _ => LONGEST_GAP,
        };
        if world.gaps.iter().any(|(pair, gap)| *gap > most(pair)) {
            faults.push(format!("after {blows:?} at {:?} nothing came through: {:?}", world.now, world.gaps));
        }
    }
    for (number, host) in world.hosts.iter().enumerate() {
        if !host.engine.as_ref().is_some_and(Engine::is_settled) {
            faults.push(format!("the kernel of host {number} is not as wished after {blows:?}"));
        }
        let most = (PROBES_AT_ONCE + PROBES_PER_SECOND * world.now.as_secs()) * (world.hosts.len() as u64 - 1);
        if host.pings > most {
            faults.push(format!("host {number} sent {} probes, at most {most} are allowed", host.pings));
        }
        let most = QUESTIONS_AT_ONCE * (1 + blows.len() as u64) + QUESTIONS_PER_LOOK * world.now.as_secs() / LOOK_EVERY;
        if host.questions > most {
            faults.push(format!("host {number} asked {} times by STUN, at most {most} are allowed", host.questions));
        }
        if host.homes_had > 1 + HOMES_PER_BLOW * blows.len() {
            faults.push(format!("host {number} had {} homes through {blows:?}", host.homes_had));
        }
        for (peer, changes) in &host.changes {
            let most = 6 + 4 * blows.len();
            if changes.len() > most {
                faults.push(format!("host {number} changed its way to {peer} at {changes:?} through {blows:?}"));
            }
        }
    }
    faults
}

fn strike(world: &mut World, blow: Blow) {
    let gateway = world.chance.below(world.gateways.len() as u64) as usize;
    let host = world.chance.below(world.hosts.len() as u64) as usize;
    match blow {
        Blow::Reboot => world.gateways[gateway].iter_mut().for_each(|gateway| gateway.reboot()),
        Blow::Block => world.gateways[gateway].iter_mut().for_each(|g| g.kind.blocks_udp = !g.kind.blocks_udp),
        Blow::Roam => {
            let network = random_network(world);
            world.roam(host, network);
        }
        Blow::Kill => world.kill(host, SECOND),
        Blow::Outage => {
            world.end_coordinator();
            world.kill(host, SECOND);
            world.after(CALM / 2, host, Happening::CoordinatorBack);
        }
        Blow::Clock => {
            let hours = world.chance.below(48) as i64 - 24;
            world.hosts[host].wall_offset += hours * 3_600;
        }
        Blow::RelayRestarts => {
            world.begin_all_relays();
            let relay = world.chance.below(world.relays.len() as u64) as usize;
            let pause = world.chance.millis(300, 3_000);
            world.end_relay(relay);
            world.after(pause, host, Happening::RelayBack { relay });
        }
        Blow::RelayDies => {
            world.begin_all_relays();
            // The first region has two.
            let relay = world.chance.below(2) as usize;
            world.end_relay(relay);
        }
        Blow::RegionDies => {
            world.begin_all_relays();
            let region = world.chance.pick(&REGIONS);
            for relay in 0..world.relays.len() {
                if world.relays[relay].region == region {
                    world.end_relay(relay);
                }
            }
        }
        Blow::Nothing => {}
    }
}

#[test]
fn what_is_offered_arrives_whatever_befalls_the_network_while_the_relay_works() {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let seed = KEPT.get(number as usize).copied().unwrap_or(number);
                    if number >= SEEDS + KEPT.len() as u64 {
                        return;
                    }
                    let faults = faults(seed);
                    if !faults.is_empty() {
                        failed.lock().unwrap().push((seed, faults));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let list: Vec<String> =
        failed.iter().take(5).map(|(seed, faults)| format!("{seed}: {}", faults.join("; "))).collect();
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed:\n{}", failed.len(), list.join("\n"));
}
