//! What remains of a node's rights, as an administrator sees it: in the reply, in the log, in the list.

use warren_core::types::NodePrivate;
use warren_core::wire::control::RegisterRequest;

use crate::node::{Machine, eventually};
use crate::server::Server;

/// What an administration command says besides its answer.
fn notes(server: &Server, arguments: &[&str]) -> String {
    let output = server.admin(arguments);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {notes}");
    notes
}

#[tokio::test]
async fn rights_that_go_at_a_log_in_are_in_the_log_and_in_the_list() {
    let server = Server::start(&[]);
    let mut machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&["--tag", "tag:web"])).await;
    let node = server.json(&["node", "show", "web"]);
    assert_eq!((&node["tags"][0], &node["admitted_by"]), (&"tag:web".into(), &1.into()));

    let old = std::mem::replace(&mut machine.node, NodePrivate::from_random(rand::random()));
    let key = server.key(&[]);
    let again = RegisterRequest { old_node_key: old.public(), ..machine.register_request(Some(&key)) };
    assert!(machine.connect(server.address).await.register(&again).await.machine_authorized);
    eventually("the log says it", || server.has_logged("web: tags: tag:web before, none from here on")).await;
    let node = server.json(&["node", "show", "web"]);
    assert_eq!((&node["tags"], &node["admitted_by"]), (&serde_json::json!([]), &2.into()));
    assert!(server.text(&["node", "list"]).contains("KEY EXPIRES"));
}

#[tokio::test]
async fn commands_say_what_they_change_and_what_they_leave() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&["--reusable"])).await;
    server.text(&["user", "create", "bob"]);

    assert_eq!(notes(&server, &["node", "tag", "web", "tag:web"]), "web: tags: none before, tag:web from here on\n");
    assert_eq!(notes(&server, &["node", "move", "web", "bob"]), "web: user: ada before, bob from here on\n");
    assert!(notes(&server, &["node", "expire", "web"]).starts_with("web: key expires: never before, 20"));
    let extended = server.json(&["node", "extend", "web", "--for", "30d"]);
    assert_eq!(extended["expired"], false);
    assert!(extended["notes"][0].as_str().unwrap().starts_with("web: key expires: 20"), "{extended}");

    assert_eq!(server.json(&["key", "show", "1"])["nodes"], serde_json::json!(["web"]));
    assert!(notes(&server, &["key", "expire", "1"]).contains("stay as they are: web"));
    assert!(notes(&server, &["key", "delete", "1", "--log-out-nodes"]).contains("must log in again: web"));
    let node = server.json(&["node", "show", "web"]);
    assert_eq!((&node["expired"], &node["admitted_by"]), (&true.into(), &1.into()));
    assert_eq!(server.json(&["user", "show", "bob"])["nodes"], 1);
}

#[tokio::test]
async fn a_suspended_users_machine_hears_of_it_loses_its_stream_and_is_back_once_they_are_restored() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (laptop, desk) = (Machine::new("laptop"), Machine::new("desk"));
    let connection = laptop.connect(server.address).await;
    connection.join(&key).await;
    server.text(&["user", "create", "bob"]);
    let bobs = server.text(&["key", "create", "--user", "bob"]);
    desk.connect(server.address).await.join(bobs.trim()).await;
    let mut map = connection.map(&[]).await;
    map.next().await.unwrap();
    let mut others = desk.connect(server.address).await.map(&[]).await;
    others.next().await.unwrap();

    assert!(server.text(&["user", "suspend", "ada"]).contains("suspended"));
    let mut last = None;
    while let Some(message) = map.next().await {
        last = message.node.or(last);
    }
    let node = last.unwrap();
    assert!(node.expired && node.key_expiry.is_some(), "{node:?}");
    let is_gone = |message: &warren_core::wire::control::MapResponse| {
        message
            .peers_changed
            .entries
            .iter()
            .any(|peer| peer.expired && peer.allowed_ips.as_ref().is_some_and(Vec::is_empty))
    };
    others.until(is_gone).await;
    // Whoever comes back hears the same, and a new key of the machine brings nothing.
    let mut again = laptop.connect(server.address).await.map(&[]).await;
    assert!(again.next().await.unwrap().node.unwrap().expired);
    let node_key = NodePrivate::from_random(rand::random()).public();
    let asks = RegisterRequest { node_key, ..laptop.register_request(Some(&key)) };
    let told = laptop.connect(server.address).await.register(&asks).await;
    assert!(told.error.contains("the user `ada` is suspended"), "{told:?}");

    assert!(server.text(&["user", "restore", "ada"]).contains("active"));
    let back = laptop.connect(server.address).await;
    assert!(back.register(&laptop.register_request(None)).await.machine_authorized);
    let node = back.map(&[]).await.next().await.unwrap().node.unwrap();
    assert!(!node.expired && node.key_expiry.is_none(), "{node:?}");
    let acts = server.json(&["audit"]);
    let acts: Vec<&str> = acts.as_array().unwrap().iter().filter_map(|act| act["command"].as_str()).collect();
    assert!(acts.ends_with(&["suspend-user", "restore-user"]), "{acts:?}");
    assert!(server.text(&["user", "role", "bob", "owner"]).contains("owner"));
    assert!(!server.admin(&["user", "role", "bob", "member"]).status.success(), "the last owner");
}

#[tokio::test]
async fn a_user_that_an_approval_makes_is_told_of() {
    let server = Server::start(&[]);
    for (name, user, said) in [("web", "ghost", "user ghost was made\n"), ("db", "ghost", "")] {
        let machine = Machine::new(name);
        machine.connect(server.address).await.register(&machine.register_request(None)).await;
        let pending = server.json(&["node", "pending"]);
        let code = pending[0]["code"].as_str().unwrap();
        assert_eq!(notes(&server, &["node", "approve", code, "--user", user]), said);
    }
    eventually("the log says it", || server.has_logged("user ghost was made")).await;
}

#[tokio::test]
async fn a_deleted_node_whose_key_still_admits_is_told_of() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&["--reusable"])).await;
    let said = notes(&server, &["node", "delete", "web"]);
    assert_eq!(
        said,
        "whoever holds key 1, which admitted it, can join again: `warren-coordinator key expire 1` ends that\n"
    );
}

#[tokio::test]
async fn how_long_a_users_keys_last_is_said_by_a_command_and_shown() {
    let server = Server::start(&["--node-key-lifetime", "90d"]);
    server.text(&["user", "create", "ada"]);
    assert!(server.text(&["user", "key-lifetime", "ada", "7d"]).contains("keys of nodes last 7d"));
    assert!(!server.admin(&["user", "key-lifetime", "ada", "1m"]).status.success());
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let expiry = |server: &Server| -> warren_core::types::Timestamp {
        server.json(&["node", "show", "web"])["key_expiry"].as_str().unwrap().parse().unwrap()
    };
    let short = expiry(&server);
    assert!(!server.text(&["user", "key-lifetime", "ada"]).contains("keys of nodes last"));
    server.text(&["node", "extend", "web"]);
    assert_eq!(expiry(&server).duration_since(short).as_hours() / 24, 83);
}
