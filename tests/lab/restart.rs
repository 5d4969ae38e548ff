//! The data path outlives the agent.

use crate::lab::eventually;
use crate::programs::{Agent, Joined};
use crate::snapshot::{Snapshot, Watch};

#[test]
fn a_killed_agent_loses_no_packet() {
    let Some(Joined { mut alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };
    let address = bob.ip(4);
    let ping = alice.host.command(["ping", "-n", "-i", "0.2", "-c", "60", "-W", "5", &address]);

    let mut pinging = Watch::start(ping);
    pinging.wait_for_lines(5, "bytes from");
    alice.kill();
    pinging.wait_for_lines(15, "bytes from");
    alice.start_again();
    let summary = pinging.finish();

    assert!(summary.contains("60 packets transmitted, 60 received"), "{summary}");
}

#[test]
fn a_restarted_agent_adopts_what_it_finds_and_changes_nothing() {
    let Some(Joined { mut alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };
    let before = Snapshot::of(&alice.host);
    let monitor = Watch::start(alice.host.command(["ip", "monitor", "link", "address", "route", "rule"]));
    let firewall = Watch::start(alice.host.command(["nft", "monitor"]));

    alice.kill();
    alice.start_again();
    converged(&alice);
    alice.host.ping(&bob.ip(4));

    let changes = monitor.stop() + &firewall.stop();
    assert!(changes.is_empty(), "the restart changed something:\n{changes}");
    assert_eq!(Snapshot::of(&alice.host).changes_since(&before), "");
}

#[test]
fn a_reboot_with_the_coordinator_down_comes_up_on_the_stored_map() {
    let Some(Joined { mut alice, bob, mut coordinator, lab: _lab }) = Joined::new() else { return };
    let address = bob.ip(4);
    let (file, endpoint) = (alice.state_dir().join("map.json"), format!("{}:41741", bob.host.v4));
    // A map is written within seconds of a change, not at once.
    eventually("the map on disk to say where bob is", || {
        std::fs::read_to_string(&file).is_ok_and(|map| map.contains(&endpoint)).then_some(())
    });

    coordinator.kill();
    alice.kill();
    alice.cleanup();
    alice.start_again();

    alice.host.ping(&address);
    let status = alice.status();
    assert!(!status.warren.coordinator_connected);
    assert!(!status.health.is_empty(), "that the coordinator is away is a health entry");
}

#[test]
fn cleanup_leaves_no_trace() {
    let Some(mut lab) = crate::lab::Lab::new() else { return };
    let coordinator = crate::programs::Coordinator::start(&mut lab);
    let mut alice = Agent::not_started(&mut lab, "alice");
    let before = Snapshot::of(&alice.host);

    alice.start_again();
    alice.join(&coordinator, &coordinator.key(""));
    assert_ne!(Snapshot::of(&alice.host), before);
    alice.kill();
    alice.cleanup();

    assert_eq!(Snapshot::of(&alice.host).changes_since(&before), "");
}

fn converged(agent: &Agent) {
    eventually("the agent to hold the whole wish, confirmed by the coordinator", || {
        let status = agent.status();
        (status.warren.converged && status.warren.coordinator_connected).then_some(())
    });
}
