//! How nodes leave: logged out, expired, deleted, ephemeral. And what a bad disk does.

use std::fs;
use std::process::Command;

use warren_core::wire::local::BackendState;

use crate::lab::{Lab, eventually};
use crate::programs::{Agent, Coordinator, Joined};
use crate::snapshot::Snapshot;

#[test]
fn a_node_that_logged_out_leaves_its_kernel_and_its_peers_clean() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let mut alice = Agent::not_started(&mut lab, "alice");
    let before = Snapshot::of(&alice.host);
    alice.start_again();
    let bob = Agent::start(&mut lab, "bob");
    alice.join(&coordinator, &coordinator.key(""));
    bob.join(&coordinator, &coordinator.key(""));
    eventually("bob to have a peer", || (bob.status().peer.len() == 1).then_some(()));

    alice.warren("logout");

    alice.wait_for(BackendState::NeedsLogin);
    assert_eq!(Snapshot::of(&alice.host).changes_since(&before), "");
    eventually("bob's kernel to have no peer", || {
        bob.host.run("wg show warren0 peers").trim().is_empty().then_some(())
    });
}

#[test]
fn a_node_whose_key_the_administrator_expired_is_cut_off_and_says_so() {
    let Some(Joined { alice, bob, coordinator, lab: _lab }) = Joined::new() else { return };

    coordinator.run("node expire alice");

    eventually("bob's kernel to have no peer", || {
        bob.host.run("wg show warren0 peers").trim().is_empty().then_some(())
    });
    alice.wait_for(BackendState::NeedsLogin);
}

#[test]
fn a_deleted_node_is_gone_from_its_peers() {
    let Some(Joined { alice: _alice, bob, coordinator, lab: _lab }) = Joined::new() else { return };

    coordinator.run("node delete alice");

    eventually("bob's kernel to have no peer", || {
        bob.host.run("wg show warren0 peers").trim().is_empty().then_some(())
    });
    assert!(!coordinator.run("node list").contains("alice"));
}

#[test]
fn an_ephemeral_node_is_removed_once_it_logs_out() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let alice = Agent::start(&mut lab, "alice");
    alice.join(&coordinator, &coordinator.key("--ephemeral"));
    assert!(coordinator.run("node list").contains("alice"));

    alice.warren("logout");

    eventually("the node to be gone", || (!coordinator.run("node list").contains("alice")).then_some(()));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_said_and_the_network_stays_up() {
    let Some(Joined { alice, bob, coordinator, mut lab }) = Joined::new() else { return };
    let state = alice.state_dir();
    fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let owned = Command::new("chown").args(["-R", "0:0"]).arg(&state).status().unwrap();
    assert!(owned.success());

    let carol = Agent::start(&mut lab, "carol");
    carol.join(&coordinator, &coordinator.key(""));

    alice.wait_for_health(&["state"]);
    alice.host.ping(&bob.ip(4));
    alice.host.ping(&carol.ip(4));
}
