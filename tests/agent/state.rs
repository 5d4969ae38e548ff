//! What outlives the agent, and what it makes of what it finds.

use std::fs;
use std::time::Duration;

use crate::scene::{Agent, SharedKernel, key, map, node, store};
use tempfile::tempdir;
use warren_agent::{StateDir, clock};
use warren_core::plan::{Observed, ObservedFirewall};
use warren_core::types::IpNet;
use warren_core::wire::control::Node;
use warren_core::wire::local::{BackendState, Status};

const CONFIRMED: &str = "2026-01-01T00:00:00Z";

/// Whether the health list says this; that the coordinator cannot be reached is there too, sooner or later.
fn names(status: &Status, wanted: &str) -> bool {
    status.health.iter().any(|text| text.contains(wanted))
}

#[tokio::test]
async fn with_the_coordinator_down_the_stored_map_brings_the_network_up() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2), node(3)]), CONFIRMED);

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until_running().await;

    assert!(!status.warren.coordinator_connected);
    assert_eq!(status.warren.map_time, Some(CONFIRMED.parse().unwrap()));
    assert!(status.warren.map_age_seconds.unwrap() > 86_400);
    let device = agent.kernel.state().device.unwrap();
    assert_eq!(device.peers.keys().copied().collect::<Vec<_>>(), [key(2), key(3)]);
    assert_eq!(device.peers[&key(2)].endpoint, Some("10.0.0.2:41741".parse().unwrap()));
}

#[test]
fn services_that_use_the_tunnel_wait_for_a_machine_that_has_a_map_and_for_no_other() {
    let (fresh, member) = (tempdir().unwrap(), tempdir().unwrap());
    store(member.path(), &map(vec![node(2)]), CONFIRMED);

    for (root, is_ready) in [(&fresh, true), (&member, false)] {
        let dir = StateDir::open(&root.path().join("state")).unwrap();
        let mut engine = warren_agent::load(Default::default(), &dir).unwrap();
        engine.proceed(clock::now());
        assert_eq!(engine.stands(), is_ready);
    }
}

#[tokio::test]
async fn a_killed_agent_leaves_the_kernel_alone_and_the_next_one_changes_nothing() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    let kernel = agent.kernel.clone();
    let before = kernel.state();
    agent.kill().await;
    assert_eq!(kernel.state(), before);
    kernel.take_applied();

    let agent = Agent::start(root.path(), kernel.clone()).await;
    agent.until_running().await;

    assert_eq!(kernel.take_applied(), Vec::<String>::new());
    assert_eq!(kernel.state(), before);
}

#[tokio::test]
async fn an_agent_that_lost_its_map_leaves_the_kernel_as_it_is() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    let (kernel, map) = (agent.kernel.clone(), agent.dir.join("map.json"));
    agent.stop().await;
    let before = kernel.state();
    fs::write(&map, b"{\"half").unwrap();

    let agent = Agent::start(root.path(), kernel.clone()).await;
    let status = agent.client.status(true).await.unwrap();

    assert_eq!(status.backend_state, BackendState::Starting);
    assert!(status.health.iter().any(|text| text.contains("map.json")), "{:?}", status.health);
    assert_eq!(kernel.state(), before);
}

#[tokio::test]
async fn what_another_program_removed_comes_back_and_is_named() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    let before = agent.kernel.state();

    agent.kernel.meddle(|kernel| kernel.device.as_mut().unwrap().peers.clear());
    let status = agent.until("repaired", |status| !repairs(&status.health).is_empty()).await;
    assert!(repairs(&status.health)[0].contains(&key(2).short()), "{:?}", status.health);
    agent.until("settled", |status| status.warren.converged).await;
    agent.kernel.meddle(|kernel| kernel.firewall = ObservedFirewall::Absent);
    agent.until("repaired", |status| repairs(&status.health).len() == 2 && status.warren.converged).await;

    assert_eq!(agent.kernel.state(), before);
}

fn repairs(health: &[String]) -> Vec<&String> {
    health.iter().filter(|text| text.contains("put back")).collect()
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_leaves_the_network_up_and_is_named() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    fs::create_dir_all(agent.dir.join("prefs.json.new/in-the-way")).unwrap();

    let (exit, said) = agent.warren(&["set", "--hostname", "other"]).await;

    assert_eq!(exit, 1);
    assert!(said.starts_with("done, but only until the agent starts again") && said.contains("prefs.json"), "{said}");
    let status = agent.until("complaining", |status| names(status, "prefs.json")).await;
    assert_eq!(status.backend_state, BackendState::Running);
    assert!(agent.kernel.state().device.is_some());
}

#[tokio::test]
async fn a_logout_that_cannot_remove_the_keys_says_that_the_next_start_is_signed_in() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    fs::remove_file(agent.dir.join("node.key")).unwrap();
    fs::create_dir_all(agent.dir.join("node.key/in-the-way")).unwrap();
    fs::create_dir_all(agent.dir.join("prefs.json.new/in-the-way")).unwrap();

    let (exit, said) = agent.warren(&["logout"]).await;

    assert_eq!(exit, 1);
    assert!(said.starts_with("signed out only until the agent starts again: the next start would sign this"), "{said}");
    assert!(said.contains("remove ") && said.contains("node.key") && said.contains("prefs.json"), "{said}");
    assert!(said.contains("did not hear of it"), "{said}");
}

#[tokio::test]
async fn past_its_greatest_age_the_map_closes_the_network() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let kernel = SharedKernel::default();
    let agent = Agent::start(root.path(), kernel.clone()).await;
    agent.until_running().await;
    agent.stop().await;
    assert!(kernel.state().device.is_some());

    let agent = Agent::start_with(root.path(), kernel.clone(), Some(Duration::from_secs(3_600))).await;
    agent.until("closed", |status| status.warren.converged && names(status, "--max-map-age")).await;

    assert_eq!(kernel.state(), Observed::default());
}

#[tokio::test]
async fn a_bad_entry_of_the_map_is_left_out_and_named_and_the_rest_is_used() {
    let root = tempdir().unwrap();
    let thief = Node { addresses: node(1).addresses, ..node(2) };
    let exit = Node {
        allowed_ips: Some([node(3).addresses, vec!["0.0.0.0/0".parse::<IpNet>().unwrap()]].concat()),
        ..node(3)
    };
    let twin = Node { key: key(3), ..node(4) };
    store(root.path(), &map(vec![thief, exit, twin, node(5)]), CONFIRMED);

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until_running().await;

    let device = agent.kernel.state().device.unwrap();
    assert_eq!(device.peers.keys().copied().collect::<Vec<_>>(), [key(3), key(5)]);
    for part in ["the address is this node's own", "default route 0.0.0.0/0", "has the same node key"] {
        assert!(status.health.iter().any(|text| text.contains(part)), "{part}: {:?}", status.health);
    }
}

#[tokio::test]
async fn a_key_that_others_could_read_is_an_error_at_start() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![]), CONFIRMED);
    let file = root.path().join("state/node.key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();

    let dir = warren_agent::StateDir::open(&root.path().join("state")).unwrap();
    let error = warren_agent::load(Default::default(), &dir).err().unwrap();

    assert!(error.to_string().contains("node.key: mode 640 lets others in"), "{error}");
}

#[tokio::test]
async fn a_machine_whose_own_key_has_run_out_closes_and_asks_for_a_login() {
    let root = tempdir().unwrap();
    let spent = Node { key_expiry: Some(CONFIRMED.parse().unwrap()), ..node(1) };
    let map = warren_core::wire::control::MapResponse { node: Some(spent), ..map(vec![node(2)]) };
    store(root.path(), &map, CONFIRMED);

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until("closed", |status| status.warren.converged && names(status, "key has expired")).await;

    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert_eq!(agent.kernel.state(), Observed::default());
}
