//! The key by which nodes know the server: how it is told, and how it is changed while nodes go on.

use nix::sys::signal::Signal;
use serde_json::Value;
use warren::types::{Fingerprint, MachinePublic};

use crate::node::get;
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
    assert_eq!(server.json(&["server-key", "retire", &first])["former"], serde_json::json!([]));
    assert!(!server.admin(&["server-key", "retire"]).status.success(), "nothing to retire");
    assert_eq!(Fingerprint::of(&asked(&server).await).to_string(), second);
}
