//! Who this machine is, and to whom: its keys, the coordinator that they are of, and what becomes of both.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::joining::{joined, new_agent};
use crate::scene::{Agent, PATIENCE, SharedKernel, map, node, store};
use crate::server::Server;
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::tempdir;
use warren_agent::{Network, StateDir, clock};
use warren_core::node::{Answer, CallId, Caller, Effect, Engine, Now, PumpNews, Request, Settings};
use warren_core::plan::Observed;
use warren_core::types::{Fingerprint, MachinePrivate, RegionId};
use warren_core::wire::control::Hostinfo;
use warren_core::wire::local::{BackendState, HealthReply, Status};

const CONFIRMED: &str = "2026-01-01T00:00:00Z";
const NOWHERE: &str = "http://127.0.0.1:9";

fn says(status: &Status, wanted: &str) -> bool {
    status.health.iter().any(|text| text.contains(wanted))
}

/// The key that a coordinator has at this moment.
fn key_of(server: &Server) -> Fingerprint {
    let text = fs::read_to_string(server.state_dir().join("noise.key")).unwrap();
    Fingerprint::of(&text.trim().parse::<MachinePrivate>().unwrap().public())
}

// ---- the coordinator's key ----

#[tokio::test]
async fn the_key_that_a_person_said_is_checked_before_the_auth_key_is_sent() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let (auth_key, url) = (server.key(&[]), server.url());
    let stranger = Fingerprint::of(&MachinePrivate::from_random([9; 32]).public()).to_string();

    let up = ["up", "--coordinator", &url, "--coordinator-key", &stranger, "--auth-key", &auth_key];
    let (exit, said) = agent.warren(&up).await;

    let key = key_of(&server).to_string();
    assert_eq!(exit, 1);
    assert!(said.contains(&key) && said.contains(&stranger) && said.contains("nothing was told to it"), "{said}");
    assert_eq!(agent.kernel.state(), Observed::default());
    let up = ["up", "--coordinator-key", &key, "--auth-key", &auth_key];
    assert_eq!(agent.warren(&up).await, (0, String::new()), "the one-off key was not spent");
    let status = agent.client.status(false).await.unwrap();
    assert_eq!(status.warren.coordinator_key.unwrap().to_string(), key);
    assert!(agent.warren(&["status"]).await.1.contains(&format!("# Coordinator {url}, key {key}")));
}

#[tokio::test]
async fn a_coordinator_with_another_key_is_told_nothing_until_a_person_says_that_it_is_the_right_one() {
    let mut server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    let before = agent.kernel.state();
    let first = agent.client.status(false).await.unwrap();
    // The first start would know the key from its state.
    agent.stop().await;
    server.end(Signal::SIGTERM);
    let other = MachinePrivate::from_random([9; 32]);
    fs::write(server.state_dir().join("noise.key"), other.expose_text().as_bytes()).unwrap();
    server.restart_ended();

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let key = key_of(&server).to_string();
    let advice = format!("`warren up --coordinator-key {key}`");
    let status = agent.until("warned", |status| says(status, &advice)).await;

    assert!(!status.warren.coordinator_connected);
    assert_ne!(status.warren.coordinator_key.unwrap().to_string(), key);
    let status = agent.until_running().await;
    assert_eq!(status.tailscale_ips, first.tailscale_ips, "the network goes on");
    assert_eq!(agent.kernel.state().device, before.device);
    assert!(!server.text(&["node", "list"]).contains("online"));

    assert_eq!(agent.warren(&["up", "--coordinator-key", &key]).await.0, 0);
    let status = agent.until("back", |status| status.warren.coordinator_connected).await;
    assert_eq!(status.tailscale_ips, first.tailscale_ips);
    assert!(!says(&status, "--coordinator-key"), "{:?}", status.health);
}

#[tokio::test]
async fn where_the_file_with_the_coordinators_key_is_broken_nobody_is_taken_before_a_persons_word() {
    let mut server = Server::start(&[]);
    let (root, mut agent) = joined(&server, "ada").await;
    let first = agent.client.status(false).await.unwrap();
    let right = fs::read(server.state_dir().join("noise.key")).unwrap();
    let stranger = MachinePrivate::from_random([9; 32]);
    for (content, what) in [("", "the file is empty"), ("{\"half", "EOF"), ("{}", "missing field")] {
        agent.stop().await;
        server.end(Signal::SIGTERM);
        fs::write(server.state_dir().join("noise.key"), stranger.expose_text().as_bytes()).unwrap();
        server.restart_ended();
        fs::write(root.path().join("state/coordinator.json"), content).unwrap();
        // The second start finds what the first one left.
        for _ in 0..2 {
            agent = Agent::start(root.path(), SharedKernel::default()).await;
            let status = agent.until("warned", |status| says(status, "nothing was told to it")).await;
            assert!(says(&status, "coordinator.json") && says(&status, what), "{:?}", status.health);
            assert!(!status.warren.coordinator_connected && status.warren.coordinator_key.is_none());
            assert_eq!(agent.until_running().await.tailscale_ips, first.tailscale_ips, "the network goes on");
            agent.stop().await;
        }
        server.end(Signal::SIGTERM);
        fs::write(server.state_dir().join("noise.key"), &right).unwrap();
        server.restart_ended();
        assert!(!server.text(&["node", "list"]).contains("online"));

        agent = Agent::start(root.path(), SharedKernel::default()).await;
        agent.until("warned", |status| says(status, "nothing was told to it")).await;
        assert_eq!(agent.warren(&["up", "--coordinator-key", &key_of(&server).to_string()]).await.0, 0);
        let status = agent.until("back", |status| status.warren.coordinator_connected).await;
        assert!(!says(&status, "--coordinator-key"), "{:?}", status.health);
    }
}

#[tokio::test]
async fn over_tls_a_certificate_that_nobody_vouches_for_will_do_where_the_key_is_said() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let url = server.url().replace("http:", "https:");
    let key = key_of(&server).to_string();

    let up = ["up", "--coordinator", &url, "--coordinator-key", &key, "--auth-key", &server.key(&[])];
    assert_eq!(agent.warren(&up).await, (0, String::new()));
}

#[tokio::test]
async fn a_key_that_the_coordinator_changes_is_followed_and_one_that_was_missed_needs_a_persons_word() {
    let mut server = Server::start(&[]);
    let (_one, ada) = joined(&server, "ada").await;
    let (root, bob) = joined(&server, "bob").await;
    let first = key_of(&server);
    bob.stop().await;

    server.text(&["server-key", "rotate"]);
    let second = key_of(&server);
    // The connection from before ends; under the former key the new one is told, and under that one ada comes then.
    ada.until("told", |status| status.warren.coordinator_key == Some(second)).await;
    let unneeded = async {
        while server.json(&["status"])["server_key"]["former"][0]["connected"] != 0
            || !server.text(&["node", "list"]).contains("online")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, unneeded).await.expect("ada comes under the new key");
    // Bob, whose connection may have ended after the change, needs it and is not waited for.
    server.text(&["server-key", "retire", &first.to_string(), "--force"]);
    server.restart(Signal::SIGTERM);
    let back = async {
        while !server.text(&["node", "list"]).contains("online") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("ada comes back under the new key");

    let bob = Agent::start(root.path(), SharedKernel::default()).await;
    let status = bob.until("warned", |status| says(status, "`warren up --coordinator-key")).await;
    assert_eq!(status.warren.coordinator_key, Some(first));
    assert!(!status.warren.coordinator_connected);
}

// ---- where this machine belongs ----

#[tokio::test]
async fn another_coordinator_that_is_not_there_gets_nothing_of_the_first() {
    let server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    assert_eq!(agent.warren(&["down"]).await.0, 0);
    agent.stop().await;

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let (exit, _) = agent.warren(&["up", "--coordinator", NOWHERE, "--auth-key", "k", "--timeout", "1s"]).await;

    assert_eq!(exit, 4);
    let status = agent.client.status(true).await.unwrap();
    assert_ne!(status.backend_state, BackendState::Running);
    assert!(status.tailscale_ips.is_empty() && status.peer.is_empty());
    assert_eq!(agent.kernel.state(), Observed::default());
}

#[tokio::test]
async fn keys_and_map_on_disk_are_left_where_the_preferences_name_another_coordinator() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    fs::write(root.path().join("state/coordinator.json"), r#"{"URL":"http://elsewhere","Pin":"FirstUse"}"#).unwrap();
    private(&root.path().join("state/coordinator.json"));

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until("signed out", |status| status.backend_state == BackendState::NeedsLogin).await;

    assert!(status.tailscale_ips.is_empty() && status.peer.is_empty());
    while agent.dir.join("node.key").exists() || agent.dir.join("map.json").exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_coordinator_that_moved_is_the_same_one_where_its_key_is_said() {
    let server = Server::start(&[]);
    let (_root, agent) = joined(&server, "ada").await;
    let before = agent.client.status(false).await.unwrap();
    let moved = server.url().replace("127.0.0.1", "localhost");

    let up = ["up", "--coordinator", &moved, "--coordinator-key", &key_of(&server).to_string()];
    assert_eq!(agent.warren(&up).await.0, 0);

    let status = agent.until("there", |status| status.warren.coordinator_connected).await;
    assert_eq!(status.warren.coordinator, moved);
    assert_eq!(status.this.public_key, before.this.public_key);
}

// ---- the end ----

#[tokio::test]
async fn logging_out_after_a_restart_asks_the_coordinator() {
    let server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    assert_eq!(agent.warren(&["down"]).await.0, 0);
    agent.stop().await;
    let agent = Agent::start(root.path(), SharedKernel::default()).await;

    assert_eq!(agent.warren(&["logout"]).await, (0, String::new()));

    assert_eq!(server.json(&["node", "show", "ada"])["expired"], true);
}

#[tokio::test]
async fn a_logout_that_nobody_heard_says_so_and_what_remains() {
    let server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    agent.stop().await;
    drop(server);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;

    let (exit, said) = agent.warren(&["logout"]).await;

    assert_eq!(exit, 1);
    assert!(said.contains("did not hear of it (cannot reach the coordinator") && said.contains(" as ada"), "{said}");
    let status = agent.client.status(false).await.unwrap();
    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(says(&status, "did not hear of it"), "{:?}", status.health);
}

#[tokio::test]
async fn a_sign_in_ends_the_word_of_a_logout_that_nobody_heard() {
    let mut server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    let auth_key = server.key(&[]);
    agent.stop().await;
    server.end(Signal::SIGTERM);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    assert_eq!(agent.warren(&["logout"]).await.0, 1);
    let status = agent.client.status(false).await.unwrap();
    assert!(says(&status, "delete it there"), "{:?}", status.health);
    server.restart_ended();

    let up = ["up", "--coordinator", &server.url(), "--auth-key", &auth_key];
    assert_eq!(agent.warren(&up).await, (0, String::new()));

    let status = agent.client.status(false).await.unwrap();
    assert!(!says(&status, "delete it there"), "{:?}", status.health);
}

#[tokio::test]
async fn a_machine_that_was_deleted_while_it_was_away_closes_its_network_for_good() {
    let server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    let kernel = agent.kernel.clone();
    agent.stop().await;
    assert!(kernel.state().device.is_some());
    server.text(&["node", "delete", "ada"]);

    let agent = Agent::start(root.path(), kernel.clone()).await;
    let closed = |status: &Status| status.backend_state == BackendState::NeedsLogin && status.warren.converged;
    let status = agent.until("signed out", closed).await;

    assert_eq!(kernel.state(), Observed::default());
    assert!(says(&status, "does not know this machine any more"), "{:?}", status.health);
    assert!(status.tailscale_ips.is_empty() && status.peer.is_empty());
    let (exit, said) = agent.warren(&["status"]).await;
    assert_eq!(exit, 1);
    assert!(said.starts_with("Logged out."), "{said}");
    while agent.dir.join("map.json").exists() {
        tokio::task::yield_now().await;
    }
    agent.stop().await;
    drop(server);
    let agent = Agent::start(root.path(), kernel.clone()).await;
    let status = agent.until("cut off", |status| says(status, "cannot reach the coordinator")).await;
    assert_ne!(status.backend_state, BackendState::Running);
    assert_eq!(kernel.state(), Observed::default());
}

// ---- what is on disk ----

#[tokio::test]
async fn keys_that_cannot_be_written_are_not_used_and_the_auth_key_is_not_spent() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let (auth_key, url) = (server.key(&[]), server.url());
    let in_the_way = agent.dir.join("node.key.new");
    fs::create_dir_all(in_the_way.join("in-the-way")).unwrap();

    let up = ["up", "--coordinator", &url, "--auth-key", &auth_key, "--hostname", "ada"];
    let (exit, said) = agent.warren(&up).await;

    assert_eq!(exit, 1);
    assert!(said.contains("keys cannot be written") && said.contains("node.key"), "{said}");
    let status = agent.client.status(false).await.unwrap();
    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(says(&status, "node.key"), "{:?}", status.health);
    assert!(!server.text(&["node", "list"]).contains("ada"));
    fs::remove_dir_all(in_the_way).unwrap();
    assert_eq!(agent.warren(&up).await, (0, String::new()));
}

#[tokio::test]
async fn broken_preferences_are_put_aside_and_open_nothing() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    agent.until_running().await;
    agent.stop().await;
    for content in ["", "{\"half"] {
        fs::write(root.path().join("state/prefs.json"), content).unwrap();

        let agent = Agent::start(root.path(), SharedKernel::default()).await;
        let status = agent.until_running().await;

        assert!(says(&status, "prefs.json"), "{:?}", status.health);
        assert_eq!(content.is_empty(), says(&status, "the file is empty"), "{:?}", status.health);
        assert_eq!(fs::read_to_string(agent.dir.join("prefs.json.broken")).unwrap(), content);
        let prefs = agent.client.prefs().await.unwrap();
        assert!(prefs.shields_up && prefs.want_running && prefs.advertise_routes.is_empty());
        assert_eq!(prefs.control_url, NOWHERE);
        assert_eq!(agent.warren(&["set", "--shields-up=false"]).await.0, 0);
        let status = agent.client.status(false).await.unwrap();
        assert!(!says(&status, "prefs.json"), "{:?}", status.health);
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_machine_that_only_booted_has_no_key_that_an_image_of_it_would_share() {
    let server = Server::start(&[]);
    let (root, agent) = new_agent().await;
    let key_file = root.path().join("state/machine.key");
    agent.until("there", |status| status.backend_state == BackendState::NeedsLogin).await;
    assert_eq!(agent.warren(&["set", "--hostname", "image"]).await.0, 0, "the disk was written");
    assert!(!key_file.exists());
    agent.stop().await;
    assert!(!key_file.exists());

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let up = ["up", "--coordinator", &server.url(), "--auth-key", &server.key(&[])];
    assert_eq!(agent.warren(&up).await, (0, String::new()));

    let key: MachinePrivate = fs::read_to_string(&key_file).unwrap().trim().parse().unwrap();
    assert!(server.text(&["--json", "node", "list"]).contains(&key.public().to_string()));
}

#[tokio::test]
async fn without_its_machine_key_a_machine_goes_on_and_signs_in_anew_only_by_a_persons_word() {
    let server = Server::start(&[]);
    let (root, agent) = joined(&server, "ada").await;
    let before = agent.kernel.state();
    agent.stop().await;
    fs::write(root.path().join("state/machine.key"), "").unwrap();

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until("up", |status| status.warren.converged && says(status, "the file is empty")).await;

    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(!status.warren.coordinator_connected);
    assert_eq!(agent.kernel.state().device, before.device);
    assert!(root.path().join("state/machine.key.broken").exists() && !root.path().join("state/machine.key").exists());
    let key = server.key(&[]);
    assert_eq!(agent.warren(&["up", "--auth-key", &key]).await.0, 0);
    let status = agent.until("in", |status| status.warren.coordinator_connected).await;
    assert!(!says(&status, "machine.key"), "{:?}", status.health);
    assert!(root.path().join("state/machine.key").exists());
}

#[tokio::test]
async fn an_empty_node_key_is_named_and_asks_for_a_login() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    fs::write(root.path().join("state/node.key"), "").unwrap();

    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    let status = agent.until("closed", |status| status.warren.converged).await;

    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(says(&status, "node.key: the file is empty; it was put aside"), "{:?}", status.health);
    assert_eq!(agent.kernel.state(), Observed::default());
}

#[tokio::test]
async fn a_disk_that_was_copied_into_another_machine_gets_keys_of_its_own() {
    let server = Server::start(&[]);
    let machine =
        |n: u8| serde_json::from_value(json!({ "Id": format!("{n}"), "Cards": [format!("02::{n}")] })).unwrap();
    let start = |root: std::path::PathBuf, n: u8| {
        let settings = Settings { port: 41_741, machine: machine(n), ..Settings::default() };
        async move { Agent::start_in(&root, SharedKernel::default(), settings, "10.0.0.1/24", Network::default()).await }
    };
    let root = tempdir().unwrap();
    let agent = start(root.path().to_owned(), 1).await;
    let up = ["up", "--coordinator", &server.url(), "--auth-key", &server.key(&[]), "--hostname", "ada"];
    assert_eq!(agent.warren(&up).await.0, 0);
    let before = agent.client.status(false).await.unwrap().this.public_key;
    agent.stop().await;
    let agent = start(root.path().to_owned(), 1).await;
    assert_eq!(agent.until_running().await.this.public_key, before, "the same machine");
    agent.stop().await;

    let agent = start(root.path().to_owned(), 2).await;
    let status = agent.client.status(true).await.unwrap();

    assert_eq!(status.backend_state, BackendState::NeedsLogin);
    assert!(says(&status, "disk was copied from another one"), "{:?}", status.health);
    assert!(root.path().join("state/node.key.other-machine").exists());
    assert_eq!(agent.warren(&["up", "--auth-key", &server.key(&[])]).await.0, 0);
    let status = agent.until("in", |status| status.warren.coordinator_connected).await;
    assert_ne!(status.this.public_key, before);
    assert!(!says(&status, "disk was copied"), "{:?}", status.health);
    let nodes = server.json(&["node", "list"]);
    let keys: std::collections::BTreeSet<_> =
        nodes.as_array().unwrap().iter().map(|node| node["machine_key"].to_string()).collect();
    assert_eq!(keys.len(), 2, "{nodes}");
}

fn private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_relay_that_keeps_seeing_this_machines_key_twice_is_listened_to() {
    let root = tempdir().unwrap();
    store(root.path(), &map(vec![node(2)]), CONFIRMED);
    let dir = StateDir::open(&root.path().join("state")).unwrap();
    let settings = Settings { port: 41_741, relay_port: Some(41_742), ..Settings::default() };
    let start = clock::now();
    let stored = dir.load_all(&settings.machine).unwrap();
    let mut engine = Engine::new(settings, stored, Hostinfo::default(), [1; 32], start);
    engine.proceed(start);
    let mut says = |seconds: u64, text: Option<&str>| {
        let now = Now { tick: start.tick + Duration::from_secs(seconds), ..start };
        if let Some(text) = text {
            engine.handle_pump(PumpNews::Health { region: RegionId(900), text: text.to_owned() }, now);
        }
        engine.handle_timeout(now);
        engine.proceed(now);
        let id = CallId(seconds);
        engine.handle_call(id, &Caller::default(), Request::Health, now);
        let answer = std::iter::from_fn(|| engine.poll_effect()).find_map(|effect| match effect {
            Effect::Answer(to, Answer::Json(json)) if to == id => Some(json),
            _ => None,
        });
        let json = answer.expect("an answer");
        let health: HealthReply = serde_json::from_slice(&json).unwrap();
        health.entries.into_iter().find(|entry| entry.code == "relay-says:900").map(|entry| entry.text)
    };
    assert_eq!(says(0, Some("another machine is here")), None, "a connection that we left may linger there");
    let text = says(61, None).unwrap();
    assert!(text.starts_with("relay 900 says: another machine is here. Where this machine's disk"), "{text}");
    assert_eq!(says(62, Some("")), None);
}
