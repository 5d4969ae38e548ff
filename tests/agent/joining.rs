//! The agent and the real coordinator, over loopback: how machines come in, see each other, and leave.

use crate::scene::{Agent, SharedKernel};
use crate::server::Server;
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};
use warren_core::plan::Observed;
use warren_core::types::Ticket;
use warren_core::wire::local::{BackendState, MaskedPrefs, Status};

/// An agent that has just been installed.
pub async fn new_agent() -> (TempDir, Agent) {
    let root = tempdir().unwrap();
    let agent = Agent::start(root.path(), SharedKernel::default()).await;
    (root, agent)
}

/// An agent that came in with a key, under this name.
pub async fn joined(server: &Server, name: &str) -> (TempDir, Agent) {
    let (root, agent) = new_agent().await;
    let key = server.key(&[]);
    let up = ["up", "--coordinator", &server.url(), "--auth-key", &key, "--hostname", name];
    assert_eq!(agent.warren(&up).await, (0, String::new()));
    (root, agent)
}

/// Whether this peer alone is there, with all that it says of itself, and the kernel holds it.
fn is_in(status: &Status, name: &str) -> bool {
    names(status) == [name]
        && status.warren.converged
        && status.peer.values().all(|peer| peer.online && peer.in_engine && !peer.addrs.is_empty())
}

fn names(status: &Status) -> Vec<&str> {
    let mut names: Vec<_> = status.peer.values().map(|peer| peer.host_name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn two_machines_with_keys_come_in_and_the_kernel_holds_each_for_the_other() {
    let server = Server::start(&[]);
    let (_one, ada) = joined(&server, "ada").await;
    let (_two, bob) = joined(&server, "bob").await;

    let status = ada.until("seeing bob", |status| is_in(status, "bob")).await;

    let peer = status.peer.values().next().unwrap();
    assert_eq!(peer.addrs, ["10.0.0.1:41741".parse().unwrap()]);
    let bobs = bob.client.status(false).await.unwrap();
    assert_eq!(peer.tailscale_ips, bobs.tailscale_ips);
    assert_eq!(peer.public_key, bobs.this.public_key);
    let device = ada.kernel.state().device.unwrap();
    let allowed: Vec<_> = device.peers[&peer.public_key].allowed_ips.iter().map(ipnet::IpNet::addr).collect();
    assert_eq!(allowed, bobs.tailscale_ips);
    let table = server.text(&["node", "list"]);
    assert!(table.contains("ada") && table.contains("bob"), "{table}");
}

#[tokio::test]
async fn a_person_lets_a_machine_in_by_the_code_on_the_page() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let url = server.url();

    let arguments = ["up", "--coordinator", &url, "--hostname", "ada"];
    let up = agent.warren(&arguments);
    let approve = async {
        let status = agent.until("waiting for a person", |status| !status.auth_url.is_empty()).await;
        assert_eq!(status.backend_state, BackendState::NeedsLogin);
        let code = Ticket::in_url(&status.auth_url).unwrap().code().to_string();
        server.text(&["user", "create", "ada"]);
        server.text(&["node", "approve", &code, "--user", "ada"]);
        status.auth_url
    };
    let ((exit, said), page) = tokio::join!(up, approve);

    assert_eq!(exit, 0, "{said}");
    let code = Ticket::in_url(&page).unwrap().code();
    let shown = format!("\nTo authenticate, visit:\n\n\t{page}\n\nThe page must show this code: {code}\n\nSuccess.\n");
    assert_eq!(said, shown);
    agent.until_running().await;
}

#[tokio::test]
async fn a_key_that_is_no_good_ends_up_with_the_coordinators_reason() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;

    let (exit, error) = agent.warren(&["up", "--coordinator", &server.url(), "--auth-key", "nonsense"]).await;

    assert_eq!(exit, 1);
    assert!(error.contains("the coordinator does not let this node in"), "{error}");
    assert_eq!(agent.kernel.state(), Observed::default());
}

#[tokio::test]
async fn a_machine_that_logs_out_is_forgotten_on_both_sides_and_can_come_back() {
    let server = Server::start(&[]);
    let (_one, ada) = joined(&server, "ada").await;
    let (_two, bob) = joined(&server, "bob").await;
    ada.until("seeing bob", |status| names(status) == ["bob"]).await;
    let before = bob.client.status(false).await.unwrap().this.public_key;

    assert_eq!(bob.warren(&["logout"]).await, (0, String::new()));

    assert_eq!(bob.kernel.state(), Observed::default());
    // The disk has a pipe of its own.
    while bob.dir.join("node.key").exists() || bob.dir.join("map.json").exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(bob.client.status(false).await.unwrap().backend_state, BackendState::NeedsLogin);
    ada.until("rid of bob", |status| {
        !ada.kernel.state().device.unwrap().peers.contains_key(&before) && status.warren.converged
    })
    .await;

    let key = server.key(&[]);
    assert_eq!(bob.warren(&["up", "--auth-key", &key]).await.0, 0);
    let after = bob.client.status(false).await.unwrap().this.public_key;
    assert_ne!(before, after);
    ada.until("seeing bob again", |status| status.peer.contains_key(&after)).await;
}

#[tokio::test]
async fn what_the_operator_changes_reaches_the_coordinator() {
    let server = Server::start(&[]);
    let (_root, agent) = joined(&server, "ada").await;
    let (_two, bob) = joined(&server, "bob").await;

    assert_eq!(agent.warren(&["set", "--hostname", "lovelace", "--advertise-routes", "192.0.2.0/24"]).await.0, 0);

    bob.until("seeing the new name", |status| names(status) == ["lovelace"]).await;
    assert!(server.text(&["route", "list"]).contains("192.0.2.0/24"));
}

#[tokio::test]
async fn the_coordinator_goes_and_comes_and_the_network_stays() {
    let mut server = Server::start(&[]);
    let (_one, ada) = joined(&server, "ada").await;
    let (_two, _bob) = joined(&server, "bob").await;
    ada.until("seeing bob", |status| is_in(status, "bob")).await;
    let before = ada.kernel.state();

    server.end(Signal::SIGKILL);
    let status = ada.until("alone", |status| !status.warren.coordinator_connected).await;

    assert_eq!(status.backend_state, BackendState::Running);
    assert!(status.health.iter().any(|text| text.contains("cannot reach the coordinator")), "{:?}", status.health);
    assert_eq!(ada.kernel.state(), before);
    server.restart_ended();
    ada.until("back", |status| status.warren.coordinator_connected && status.health.is_empty()).await;
    ada.until("seeing bob", |status| is_in(status, "bob")).await;
    assert_eq!(ada.kernel.state().device.unwrap().peers.len(), 1);
}

#[tokio::test]
async fn a_restart_comes_up_on_the_map_that_was_stored_at_the_end() {
    let mut server = Server::start(&[]);
    let (root, ada) = joined(&server, "ada").await;
    let (_two, _bob) = joined(&server, "bob").await;
    ada.until("seeing bob", |status| is_in(status, "bob")).await;
    let before = ada.kernel.state();
    ada.stop().await;
    server.end(Signal::SIGKILL);

    let ada = Agent::start(root.path(), SharedKernel::default()).await;
    let status = ada.until_running().await;

    assert_eq!(names(&status), ["bob"]);
    let after = ada.kernel.state();
    assert_eq!((after.device, after.firewall), (before.device, before.firewall));
}

#[tokio::test]
async fn a_machine_that_the_coordinator_deleted_is_told_to_sign_in_again() {
    let server = Server::start(&[]);
    let (_root, agent) = joined(&server, "ada").await;

    server.text(&["node", "delete", "ada"]);

    let status = agent.until("signed out", |status| status.backend_state == BackendState::NeedsLogin).await;
    assert!(!status.health.is_empty());
}

#[tokio::test]
async fn a_machine_whose_key_expired_renews_it_with_a_new_login() {
    let server = Server::start(&[]);
    let (_root, agent) = joined(&server, "ada").await;
    let before = agent.client.status(false).await.unwrap();

    server.text(&["node", "expire", "ada"]);
    agent.until("expired", |status| status.backend_state == BackendState::NeedsLogin).await;
    let key = server.key(&[]);
    let (exit, said) = agent.warren(&["up", "--auth-key", &key]).await;

    assert_eq!(exit, 0, "{said}");
    let after = agent.until_running().await;
    assert_ne!(before.this.public_key, after.this.public_key);
    assert_eq!(before.tailscale_ips, after.tailscale_ips);
}

#[tokio::test]
async fn a_machine_whose_key_expired_goes_on_by_itself_once_an_administrator_extends_it() {
    let server = Server::start(&[]);
    let (_root, agent) = joined(&server, "ada").await;
    let before = agent.client.status(false).await.unwrap();
    server.text(&["node", "expire", "ada"]);
    agent.until("expired", |status| status.backend_state == BackendState::NeedsLogin).await;

    server.text(&["node", "extend", "ada"]);

    let after = agent.until_running().await;
    assert_eq!(before.this.public_key, after.this.public_key, "with the key that it had");
    assert!(!after.health.iter().any(|entry| entry.contains("key has expired")), "{:?}", after.health);
}

#[tokio::test]
async fn a_machine_that_is_turned_away_says_why() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let turned_away = async {
        let waits = agent.until("waiting", |status| !status.auth_url.is_empty()).await;
        server.text(&["node", "reject", Ticket::in_url(&waits.auth_url).unwrap().code().as_str()]);
    };
    let url = server.url();
    let arguments = ["up", "--coordinator", &url];
    let (asked, ()) = tokio::join!(agent.warren(&arguments), turned_away);
    assert_ne!(asked.0, 0, "{}", asked.1);
    assert!(asked.1.contains("refused to let this machine in"), "{}", asked.1);
}

#[tokio::test]
async fn another_coordinator_gets_another_key_and_nothing_of_the_first_stays() {
    let (first, second) = (Server::start(&[]), Server::start(&[]));
    let (_one, ada) = joined(&first, "ada").await;
    let (_two, _bob) = joined(&first, "bob").await;
    let before = ada.until("seeing bob", |status| names(status) == ["bob"]).await.this.public_key;

    let key = second.key(&[]);
    assert_eq!(ada.warren(&["up", "--coordinator", &second.url(), "--auth-key", &key]).await.0, 0);

    let status = ada.until("alone at the second", |status| status.peer.is_empty() && status.warren.converged).await;
    assert_ne!(status.this.public_key, before);
    assert!(ada.kernel.state().device.unwrap().peers.is_empty());
}

#[tokio::test]
async fn up_that_takes_too_long_says_so_with_its_own_status() {
    let (_root, agent) = new_agent().await;

    let up = ["up", "--coordinator", "http://127.0.0.1:9", "--auth-key", "k", "--timeout", "1s"];
    let (exit, error) = agent.warren(&up).await;

    assert_eq!((exit, error.as_str()), (4, "not in after 1 seconds; `warren status` says why"));
}

#[tokio::test]
async fn preferences_of_another_agents_client_join_as_well() {
    let server = Server::start(&[]);
    let (_root, agent) = new_agent().await;
    let mut change = MaskedPrefs::default();
    change.set("ControlURL", server.url());
    change.set("WantRunning", true);
    agent.client.edit_prefs(&change).await.unwrap();

    let start = serde_json::json!({ "AuthKey": server.key(&[]) });
    agent.client.post("start", &start).await.unwrap();
    agent.client.post("login-interactive", &()).await.unwrap();

    agent.until_running().await;
}
