//! The key by which nodes know the server: how it is told, and how it is changed while nodes go on.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use warren_core::types::{Fingerprint, MachinePublic};

use crate::node::{Machine, eventually, get};
use crate::server::Server;

/// What `GET /key` names.
async fn asked(server: &Server) -> MachinePublic {
    let (_, body) = get(server.address, "/key?v=145").await;
    serde_json::from_str::<Value>(&body).unwrap()["publicKey"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn status_and_a_new_key_tell_the_short_form_of_the_servers_key() {
    let server = Server::start(&[]);
    let key = Fingerprint::of(&asked(&server).await).to_string();

    let status = server.text(&["status"]);
    assert!(status.starts_with(&format!("key:             {key}\n")) && status.contains("in order"), "{status}");
    let made = server.admin(&["key", "create", "--user", "ada"]);
    assert!(!String::from_utf8_lossy(&made.stdout).contains(&key), "the key stands alone, for scripts");
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(said.contains(&format!("--coordinator-key {key}")), "{said}");
    assert_eq!(server.json(&["key", "create", "--user", "ada"])["coordinator_key"], key.as_str());
}

#[tokio::test]
async fn a_changed_key_is_told_at_once_and_the_former_one_stays_until_it_is_retired() {
    let mut server = Server::start(&[]);
    let first = Fingerprint::of(&asked(&server).await).to_string();

    let rotated = server.json(&["server-key", "rotate"]);
    let second = Fingerprint::of(&asked(&server).await).to_string();
    assert_ne!(first, second);
    assert_eq!((rotated["key"].as_str(), rotated["former"][0]["key"].as_str()), (Some(&*second), Some(&*first)));
    server.restart(Signal::SIGTERM);
    assert!(server.text(&["status"]).contains(&format!("former key:      {first}, not used since the start")));

    assert!(!server.admin(&["server-key", "retire", &second]).status.success(), "the present one");
    assert_eq!(server.json(&["server-key", "retire", &first])["former"], json!([]));
    assert!(!server.admin(&["server-key", "retire"]).status.success(), "nothing to retire");
    assert_eq!(Fingerprint::of(&asked(&server).await).to_string(), second);

    let journal = server.json(&["audit", "--object", "server-key"]);
    let keys = |present: &str, former: &[&str]| json!({"present": present, "former": former});
    let (rotated, retired) = (&journal[0], &journal[1]);
    assert_eq!((&rotated["command"], &retired["command"]), (&json!("rotate-server-key"), &json!("retire-server-key")));
    assert_eq!((&rotated["before"], &rotated["after"]), (&keys(&first, &[]), &keys(&second, &[&first])));
    assert_eq!((&retired["before"], &retired["after"]), (&json!({"former": [first]}), &json!({"former": []})));
    assert_eq!((&rotated["actor"]["kind"], &rotated["door"]), (&json!("account"), &json!("socket")));
    assert_eq!(journal.as_array().map(Vec::len), Some(2), "what was refused is not in it: {journal}");
}

#[tokio::test]
async fn a_former_key_is_not_retired_while_a_node_needs_it() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let open = machine.connect(server.address).await;
    open.join(&server.key(&["--reusable"])).await;
    server.json(&["server-key", "rotate"]);
    assert!(server.text(&["status"]).contains("nodes connected under it: 1\n"), "{}", server.text(&["status"]));
    let refused = |words: &str| {
        let output = server.admin(&["server-key", "retire"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(words) && said.contains("--force"), "{said}");
    };
    refused("1 connected under it: web");

    drop(open);
    let away = "away and not under the new one yet: 1\n";
    eventually("it is gone", || server.text(&["status"]).contains(away)).await;
    refused("1 away, and came only under it: web");
    machine.connect(server.address).await.map(&[]).await;
    assert_eq!(server.json(&["server-key", "retire"])["former"], json!([]));

    let open = machine.connect(server.address).await;
    let _map = open.map(&[]).await;
    server.json(&["server-key", "rotate"]);
    refused("web");
    assert_eq!(server.json(&["server-key", "retire", "--force"])["former"], json!([]));
}
