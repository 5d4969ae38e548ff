//! The local socket, asked by a client that we did not write, by our own, and by hand.

use crate::scene::{Agent, SharedKernel, key, map, node, store};
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use warren_core::wire::control::Hostinfo;
use warren_core::wire::local::{BackendState, Mask, MaskedPrefs};

const CONFIRMED: &str = "2026-01-01T00:00:00Z";

async fn agent(root: &std::path::Path) -> Agent {
    let hostinfo = Hostinfo { os: "linux".into(), hostname: "Two".into(), ..Hostinfo::default() };
    let web = warren_core::wire::control::Node { hostinfo: Some(hostinfo), ..node(2) };
    store(root, &map(vec![web, node(3)]), CONFIRMED);
    let agent = Agent::start(root, SharedKernel::default()).await;
    agent.until_running().await;
    agent
}

#[tokio::test]
async fn tslocal_reads_the_status_with_and_without_peers() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;

    let status = agent.tslocal().status().await.unwrap();
    let alone = agent.tslocal().status_without_peers().await.unwrap();

    assert_eq!(status.backend_state, "Running");
    assert!(status.tun && status.have_node_key);
    assert_eq!(status.tailscale_ips, ["100.64.0.1", "fd7a:115c:a1e0::1"]);
    assert_eq!(status.self_.dns_name, "node-1.example.net.");
    assert_eq!(status.magic_dns_suffix, "example.net");
    assert_eq!(status.user[&1].login_name, "ada");
    let peer = &status.peer[&key(2).to_string()];
    assert_eq!((peer.host_name.as_str(), peer.os.as_str()), ("Two", "linux"));
    assert!(peer.online && peer.in_network_map && peer.in_engine);
    assert_eq!(peer.addrs, ["10.0.0.2:41741"]);
    assert_eq!(peer.last_handshake, "0001-01-01T00:00:00Z");
    assert_eq!(status.peer.len(), 2);
    assert!(alone.peer.is_empty());
}

#[tokio::test]
async fn tslocal_learns_whose_an_address_or_a_key_is() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let client = agent.tslocal();

    for subject in ["100.64.0.2", "100.64.0.2:443", "[fd7a:115c:a1e0::2]:443"] {
        let found = client.who_is(subject).await.unwrap();
        assert_eq!((found.node.name.as_str(), found.user_profile.login_name.as_str()), ("node-2.example.net.", "ada"));
    }
    assert_eq!(client.who_is_proto("tcp", "100.64.0.3:22").await.unwrap().node.stable_id, "n3");
    assert_eq!(client.who_is_node_key(&key(3).to_string()).await.unwrap().node.stable_id, "n3");
    assert_eq!(client.who_is("100.64.0.1").await.unwrap().node.stable_id, "n1", "ourselves");
    assert!(client.who_is("100.64.0.99").await.unwrap_err().is_peer_not_found());
}

#[tokio::test]
async fn tslocal_is_told_plainly_what_there_is_not() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;

    let error = agent.tslocal().id_token("somebody").await.unwrap_err();
    let served = agent.tslocal().get_serve_config().await.unwrap();

    assert_eq!(
        error.to_string(),
        "HTTP error 501: this agent does not serve `id-token`: the coordinator issues no tokens"
    );
    assert_eq!(served.tcp.len(), 0);
}

#[tokio::test]
async fn preferences_change_what_the_kernel_holds_and_survive_a_restart() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let mut change = MaskedPrefs::default();
    change.set("ShieldsUp", true);
    change.set("Hostname", "other");

    agent.client.edit_prefs(&change).await.unwrap();
    agent.until("settled", |status| status.warren.converged).await;

    let firewall = agent.kernel.state().firewall;
    let hosts = match firewall {
        warren_core::plan::ObservedFirewall::Table(table) => table.hosts.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(hosts, 0, "shields are up");
    let kernel = agent.kernel.clone();
    agent.stop().await;
    let agent = Agent::start(root.path(), kernel).await;
    let prefs = agent.client.prefs().await.unwrap();
    assert!(prefs.shields_up);
    assert_eq!(prefs.hostname, "other");
}

#[tokio::test]
async fn preferences_that_cannot_be_honoured_are_refused_whole() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let mut change = MaskedPrefs::default();
    change.set("RunSSH", true);
    change.set("ShieldsUp", true);

    let error = agent.client.edit_prefs(&change).await.unwrap_err();

    assert_eq!(error.to_string(), "RunSSH: not supported by this agent");
    assert!(!agent.client.prefs().await.unwrap().shields_up);
}

#[tokio::test]
async fn a_watcher_is_told_of_down_and_of_coming_back() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let mut notices = agent.client.watch(Mask::INITIAL_STATE).await.unwrap();
    assert_eq!(notices.next().await.unwrap().backend_state(), Some(BackendState::Running));

    assert_eq!(agent.warren(&["down"]).await, (0, String::new()));
    let mut states = Vec::new();
    while states.last() != Some(&BackendState::Stopped) {
        states.extend(notices.next().await.unwrap().backend_state());
    }
    assert_eq!(agent.kernel.state(), warren_core::plan::Observed::default(), "nothing of ours is left");

    let mut change = MaskedPrefs::default();
    change.set("WantRunning", true);
    agent.client.edit_prefs(&change).await.unwrap();
    while states.last() != Some(&BackendState::Running) {
        states.extend(notices.next().await.unwrap().backend_state());
    }
    assert_eq!(states, [BackendState::Stopped, BackendState::Starting, BackendState::Running]);
}

#[tokio::test]
async fn the_command_line_shows_status_addresses_and_plan() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;

    let (exit, status) = agent.warren(&["status"]).await;
    assert_eq!(exit, 0);
    assert!(status.starts_with("100.64.0.1  node-1  ada  linux"), "{status}");
    assert!(status.contains("\n100.64.0.2  node-2  ada  linux"), "{status}");
    assert_eq!(agent.warren(&["ip", "-4"]).await, (0, "100.64.0.1\n".to_owned()));
    assert_eq!(agent.warren(&["ip", "-6", "node-2"]).await, (0, "fd7a:115c:a1e0::2\n".to_owned()));
    assert_eq!(agent.warren(&["plan"]).await, (0, "nothing to do: the kernel is as it should be\n".to_owned()));
    let (_, json) = agent.warren(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["BackendState"], "Running");
    assert_eq!(json["Warren"]["CoordinatorConnected"], false);
}

#[tokio::test]
async fn a_user_who_is_no_operator_may_look_and_not_change_anything() {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let root = tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let agent = agent(root.path()).await;
    let program = root.path().join("warren");
    // By another program: a child that a test starts meanwhile would inherit a file open for writing, and what is open for
    // writing cannot be run.
    let copied = std::process::Command::new("cp").arg(crate::program::program_path("warren")).arg(&program).status();
    assert!(copied.unwrap().success());
    let nobody = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(&program);
        command.arg("--socket").arg(&agent.socket).args(arguments).uid(65_534).gid(65_534).env_clear();
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };

    let (exit, text) = nobody(&["ip", "-4"]).await;
    assert_eq!((exit, text.as_str()), (Some(0), "100.64.0.1\n"));
    for change in [&["down"][..], &["set", "--shields-up"], &["logout"], &["rotate-keys"]] {
        let (exit, text) = nobody(change).await;
        assert_eq!(exit, Some(1));
        assert!(text.starts_with("warren: this needs root or a member of the operator group; use sudo"), "{text}");
    }

    let mut change = MaskedPrefs::default();
    change.set("OperatorUser", "nobody");
    agent.client.edit_prefs(&change).await.unwrap();
    assert_eq!(nobody(&["set", "--shields-up"]).await, (Some(0), String::new()), "named by the preferences");
}

#[tokio::test]
async fn starting_what_runs_already_is_answered_with_the_present_state() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    let mut notices = agent.client.watch(Mask::default()).await.unwrap();

    agent.client.post("start", &serde_json::json!({})).await.unwrap();

    let mut state = None;
    while state.is_none() {
        state = notices.next().await.unwrap().backend_state();
    }
    assert_eq!(state, Some(BackendState::Running));
}

#[tokio::test]
async fn what_smells_of_a_browser_is_turned_away() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;
    for header in ["Host: evil.example", "Origin: http://evil.example", "Referer: http://evil.example/"] {
        let request = format!("GET /localapi/v0/status HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n");
        let answer = raw(&agent, &request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{header}: {answer}");
    }
}

#[tokio::test]
async fn garbage_closes_its_own_connection_and_no_other() {
    let root = tempdir().unwrap();
    let agent = agent(root.path()).await;

    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PATCH /localapi/v0/prefs HTTP/1.1\r\nHost:\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{",
    ] {
        raw(&agent, garbage).await;
    }
    let large = format!(
        "PATCH /localapi/v0/prefs HTTP/1.1\r\nHost:\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n{}",
        "x".repeat(300_000)
    );
    assert!(raw(&agent, &large).await.starts_with("HTTP/1.1 413"));

    assert_eq!(agent.tslocal().status().await.unwrap().backend_state, "Running");
}

/// Sends bytes and reads until the agent closes.
async fn raw(agent: &Agent, request: &str) -> String {
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    // The agent may have refused before all of it was written.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    // A connection that is cut off ends in an error; what came before counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
