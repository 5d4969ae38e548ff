//! What a ping train loses while relays, agents, routers and uplinks come and go.
//!
//! Nothing, where the path itself does not break: an idle peer woken up, and while direct the relay, the coordinator
//! or an agent gone. Where it breaks the gap is printed and has a limit: one for what the kernel reports, one for
//! silence, one for the way to another relay.

use std::time::Duration;

use crate::lab::{PATIENCE, eventually, say};
use crate::nat::{Families, Kind};
use crate::train::{Account, INTERVAL, PathWatch, Train};
use crate::world::{Node, SECOND, World};

/// The longest gap after something that the kernel reports to an agent.
const REPORTED: Duration = Duration::from_secs(1);
/// The longest gap where a path falls silent and nothing says so.
const SILENT: Duration = Duration::from_secs(7);
/// The longest gap until another relay carries the packets.
const OTHER_RELAY: Duration = Duration::from_secs(2);
/// After this time without traffic an agent lets go of a direct path (magicsock's `sessionActiveTimeout`, 45 s).
const IDLE: Duration = Duration::from_secs(60);

/// Two nodes of these kinds, a train from the first to the second, and their kernels watched.
struct Scene {
    world: World,
    alice: Node,
    bob: Node,
    train: Train,
    watches: [PathWatch; 2],
}

impl Scene {
    fn new(alice: Kind, bob: Kind) -> Option<Self> {
        Self::in_world(World::new()?, alice, bob)
    }

    fn in_world(mut world: World, alice: Kind, bob: Kind) -> Option<Self> {
        let (alice, bob) = (world.node("alice", alice), world.node("bob", bob));
        let watches = [PathWatch::start(alice.host(), &bob.ip), PathWatch::start(bob.host(), &alice.ip)];
        let train = Train::start(alice.host(), &bob.ip, PATIENCE);
        train.run_on(1, PATIENCE);
        Some(Self { world, alice, bob, train, watches })
    }

    /// Waits until both ends send directly.
    fn direct(self) -> Self {
        for watch in &self.watches {
            watch.wait_until_direct(PATIENCE);
        }
        self.train.run_on(5, PATIENCE);
        self
    }

    fn still_direct(&self) {
        assert!(self.watches.iter().all(PathWatch::is_direct), "{}\n{}", self.alice.account(), self.bob.account());
    }

    /// Goes on for so many answers; where they do not come, says what the agents say.
    fn run_on(&self, answers: usize) {
        if !self.train.try_run_on(answers, PATIENCE) {
            panic!("the train stands still\n{}\n{}", self.alice.account(), self.bob.account());
        }
    }

    /// Ends the train; says what became of it, under this title.
    fn finish(self, title: &str) -> Account {
        let account = self.train.finish();
        say(&format!("train: {title}: {account}"));
        if !account.lost.is_empty() {
            let histories = self.watches.map(|watch| watch.history());
            say(&format!("{}\n{}\nendpoints: {histories:?}", self.alice.account(), self.bob.account()));
        }
        account
    }

    /// The same where a gap is allowed, at most this long.
    fn finish_within(self, limit: Duration, title: &str) {
        let account = self.finish(&format!("{title} (at most {limit:?})"));
        // Two answers are an interval apart where nothing happens.
        assert!(account.gap.saturating_sub(INTERVAL) <= limit, "{title}: {account}");
    }
}

#[test]
fn a_train_that_goes_from_the_relay_to_a_direct_path_loses_nothing() {
    let Some(scene) = Scene::new(Kind::EasyNat, Kind::EasyNat) else { return };

    let scene = scene.direct();

    assert!(scene.finish("relay to direct").lost.is_empty());
}

#[test]
fn a_peer_that_was_idle_went_back_to_the_relay_and_is_reached_again_without_a_loss() {
    let Some(scene) = Scene::new(Kind::EasyNat, Kind::EasyNat) else { return };
    let Scene { alice, bob, train, watches, world: _world } = scene.direct();
    let _ = train.finish();

    for watch in &watches {
        watch.wait_until_relayed(IDLE + PATIENCE);
    }
    let train = Train::start(alice.host(), &bob.ip, PATIENCE);
    train.run_on(1, PATIENCE);
    for watch in &watches {
        watch.wait_until_direct(PATIENCE);
    }
    train.run_on(5, PATIENCE);

    let account = train.finish();
    say(&format!("train: direct to relay when idle, and back: {account}"));
    assert!(account.lost.is_empty(), "{account}");
}

#[test]
fn a_direct_train_loses_nothing_while_relay_and_coordinator_are_gone_and_back() {
    let Some(scene) = Scene::new(Kind::EasyNat, Kind::EasyNat) else { return };
    let mut scene = scene.direct();

    scene.world.coordinator.kill();
    scene.run_on(60);
    scene.still_direct();
    scene.world.coordinator.start_again();
    scene.run_on(40);

    scene.still_direct();
    assert!(scene.finish("relay and coordinator killed and restarted while direct").lost.is_empty());
}

#[test]
fn a_direct_train_loses_nothing_while_either_agent_is_killed_and_restarted() {
    let Some(scene) = Scene::new(Kind::EasyNat, Kind::EasyNat) else { return };
    let mut scene = scene.direct();

    for end in 0..2 {
        let agent = if end == 0 { &mut scene.alice.agent } else { &mut scene.bob.agent };
        agent.kill();
        scene.train.run_on(10, PATIENCE);
        let agent = if end == 0 { &mut scene.alice.agent } else { &mut scene.bob.agent };
        agent.start_again();
        scene.run_on(40);
    }

    assert!(scene.finish("both agents killed and restarted while direct").lost.is_empty());
}

#[test]
fn a_relayed_train_goes_on_after_the_relay_was_killed_and_restarted() {
    let Some(mut scene) = Scene::new(Kind::UdpBlocked, Kind::EasyNat) else { return };
    scene.run_on(10);

    scene.world.coordinator.kill();
    scene.world.coordinator.start_again();
    scene.run_on(20);

    // The only relay is away for as long as its start takes: the gap is printed, and has no limit of ours.
    scene.finish("the only relay killed and restarted while relayed");
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn a_relayed_train_takes_another_relay_within_two_seconds() {
    let Some(world) = World::with_second_relay() else { return };
    let Some(mut scene) = Scene::in_world(world, Kind::UdpBlocked, Kind::HardNat) else { return };
    for node in [&scene.alice, &scene.bob] {
        eventually("the nearer relay to be home", || (node.agent.status().this.relay == SECOND).then_some(()));
    }
    scene.run_on(10);

    scene.world.kill_second_relay();
    scene.run_on(20);

    scene.finish_within(OTHER_RELAY, "the relay killed while relayed, another there");
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn an_uplink_that_goes_down_makes_a_short_gap() {
    let down = |scene: &Scene| drop(scene.alice.host().run("ip link set wan down"));
    change_uplinks(down, "uplink down, another there");
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn a_cable_that_is_pulled_makes_a_short_gap() {
    let unplug = |scene: &Scene| {
        // As those set a host up who give it two uplinks.
        let ignore = "/proc/sys/net/ipv4/conf/all/ignore_routes_with_linkdown";
        scene.alice.host().namespace.inside(move || std::fs::write(ignore, "1").unwrap());
        scene.world.internet.unplug(scene.alice.host());
    };
    change_uplinks(unplug, "cable pulled, another uplink there");
}

/// A train of a host with two uplinks, the better one of which is cut.
fn change_uplinks(cut: impl FnOnce(&Scene), title: &str) {
    let Some(mut world) = World::new() else { return };
    let alice = world.node("alice", Kind::Open);
    world.internet.line(&alice.host().namespace, "wan2", Families::V4);
    let bob = world.node("bob", Kind::EasyNat);
    let watches = [PathWatch::start(alice.host(), &bob.ip), PathWatch::start(bob.host(), &alice.ip)];
    let train = Train::start(alice.host(), &bob.ip, PATIENCE);
    let scene = Scene { world, alice, bob, train, watches }.direct();

    cut(&scene);
    scene.run_on(30);

    scene.finish_within(REPORTED, title);
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn a_router_that_forgets_its_connections_makes_a_short_gap() {
    for kind in [Kind::EasyNat, Kind::HardNat] {
        let Some(scene) = Scene::new(kind, Kind::Open) else { return };
        let scene = scene.direct();

        scene.alice.routers[0].run("conntrack -F");
        scene.run_on(30);

        scene.finish_within(SILENT, &format!("NAT state lost ({})", kind.name()));
    }
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn a_router_that_gets_another_public_address_makes_a_short_gap() {
    let Some(scene) = Scene::new(Kind::EasyNat, Kind::EasyNat) else { return };
    let mut scene = scene.direct();

    let router = &scene.alice.routers[0];
    let line = scene.world.internet.line(router, "wan2", Families::V4);
    for change in ["wan down", "wan name old", "wan2 down", "wan2 name wan", "wan up"] {
        router.run(&format!("ip link set {change}"));
    }
    router.run(&format!("ip route add default via {}", line.gateway));
    scene.run_on(40);

    scene.finish_within(SILENT, "NAT renumbered");
}
