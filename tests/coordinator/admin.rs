//! The administrator's commands.

use std::os::unix::fs::PermissionsExt;

use crate::node::Machine;
use crate::server::{Server, program};

#[test]
fn users_are_made_listed_renamed_and_deleted() {
    let server = Server::start(&[]);
    server.text(&["user", "create", "ada", "--display-name", "Ada Lovelace"]);
    assert_eq!(server.json(&["user", "list"])[0]["display_name"], "Ada Lovelace");
    server.text(&["user", "rename", "ada", "ada@example.org"]);
    assert!(server.text(&["user", "list"]).contains("ada@example.org"));
    server.text(&["user", "delete", "ada@example.org"]);
    assert_eq!(server.json(&["user", "list"]), serde_json::json!([]));
}

#[test]
fn a_key_is_shown_once_alone_on_its_line() {
    let server = Server::start(&[]);
    let output = server.admin(&["key", "create", "--user", "ada", "--tag", "tag:web", "--expiry", "12h"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("user ada was made"));
    let key = String::from_utf8(output.stdout).unwrap();
    assert_eq!(key.lines().count(), 1);
    let listed = server.json(&["key", "list"]);
    assert_eq!(listed[0]["tags"], serde_json::json!(["tag:web"]));
    assert!(!listed.to_string().contains(key.trim()) && !server.text(&["key", "list"]).contains(key.trim()));
    assert_eq!(server.json(&["key", "create", "--user", "ada"])["user"], "ada");
}

#[tokio::test]
async fn an_expired_key_admits_nobody() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    server.text(&["key", "expire", "1"]);
    assert_eq!(server.json(&["key", "list"])[0]["valid"], false);
    let machine = Machine::new("web");
    let response = machine.connect(server.address).await.register(&machine.register_request(Some(&key))).await;
    assert!(!response.machine_authorized && !response.error.is_empty());
    server.text(&["key", "delete", "1"]);
    assert_eq!(server.json(&["key", "list"]), serde_json::json!([]));
}

#[tokio::test]
async fn nodes_are_shown_renamed_tagged_and_deleted() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    assert!(server.text(&["node", "show", "100.64.0.1"]).contains("host name:       web"));
    server.text(&["node", "rename", "web", "www"]);
    assert_eq!(server.admin(&["user", "delete", "ada"]).status.code(), Some(1), "a user with nodes stays");
    assert_eq!(server.json(&["node", "tag", "www", "tag:web", "tag:prod"])["tags"].as_array().unwrap().len(), 2);
    let gone = server.json(&["user", "delete", "ada"]);
    assert_eq!(gone["notes"][0], "nodes with tags go on, and belong to their tags alone: www", "{gone}");
    assert!(server.json(&["node", "show", "www"])["user"].is_null());
    server.text(&["node", "delete", "www"]);
    assert_eq!(server.json(&["node", "list"]), serde_json::json!([]));
}

#[tokio::test]
async fn routes_are_approved_and_unapproved_one_by_one() {
    let server = Server::start(&[]);
    let machine = Machine::new("gateway");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let mut request = machine.map_request(&[]);
    request.hostinfo.as_mut().unwrap().routable_ips =
        ["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0", "::/0"].map(|prefix| prefix.parse().unwrap()).to_vec();
    assert_eq!(node.post("/machine/map", &request).await.0, http::StatusCode::OK);
    let approved = |server: &Server| {
        let routes = server.json(&["route", "list"]);
        let routes = routes.as_array().unwrap().iter().filter(|route| route["approved"] == true);
        routes.map(|route| route["prefix"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(approved(&server).is_empty());
    server.text(&["route", "approve", "gateway", "10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!(approved(&server), ["10.1.0.0/16", "10.2.0.0/16"]);
    server.text(&["route", "unapprove", "gateway", "10.1.0.0/16"]);
    assert_eq!(approved(&server), ["10.2.0.0/16"]);
    // Half an exit node is none.
    let routes = server.json(&["route", "approve", "gateway", "0.0.0.0/0"]);
    assert_eq!(approved(&server), ["0.0.0.0/0", "10.2.0.0/16", "::/0"]);
    let exit = routes.as_array().unwrap().iter().find(|route| route["prefix"] == "::/0").unwrap();
    assert_eq!(exit["primary"], true, "{exit}");
    server.text(&["route", "unapprove", "gateway", "::/0"]);
    assert_eq!(approved(&server), ["10.2.0.0/16"]);
    for (verb, prefix, words) in [
        ("unapprove", "10.1.0.0/16", "is not approved for gateway"),
        ("unapprove", "0.0.0.0/0", "is not approved for gateway"),
        ("approve", "10.1.2.3/8", "is 10.0.0.0/8 meant?"),
        ("approve", "127.0.0.0/8", "one host or one link"),
        ("approve", "100.64.0.0/10", "inside the overlay"),
    ] {
        let refused = server.admin(&["route", verb, "gateway", prefix]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(words), "{verb} {prefix}: {said}");
    }
    assert_eq!(approved(&server), ["10.2.0.0/16"]);
}

#[test]
fn what_is_refused_ends_with_1_and_a_sentence() {
    let server = Server::start(&[]);
    for arguments in [
        &["user", "create", "a b"][..],
        &["user", "delete", "nobody"],
        &["node", "show", "nothing"],
        &["node", "approve", "AAAA-AAAA", "--user", "ada"],
        &["node", "approve", "AAAA", "--user", "ada"],
        &["key", "create", "--user", "ada", "--tag", "web"],
        &["key", "expire", "9"],
    ] {
        let output = server.admin(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("warren-coordinator: ") && error.lines().count() == 1, "{error}");
    }
    assert_eq!(server.json(&["user", "list"]), serde_json::json!([]), "no user is made for what is refused");
}

#[test]
fn a_command_line_that_is_not_understood_ends_with_2() {
    for arguments in [
        &["user"][..],
        &["user", "make", "ada"],
        &["key", "create"],
        &["key", "create", "--user", "ada", "--expiry", "soon"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--nonsense"],
    ] {
        assert_eq!(program(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_configuration_that_is_not_understood_ends_with_2_and_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("coordinator.toml");
    for (text, wanted) in [("listen = 8080\n", "listen"), ("listn = \"[::]:1\"\n", "listn"), ("listen\n", "line 1")] {
        std::fs::write(&file, text).unwrap();
        for command in ["serve", "check"] {
            let output = program(&[command, "--config", file.to_str().unwrap()], &[]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
            assert!(error.contains(file.to_str().unwrap()) && error.contains(wanted), "{error}");
        }
    }
    let output = program(&["serve"], &[("WARREN_COORDINATOR_METRICS", "192.0.2.1:9")]);
    assert_eq!(output.status.code(), Some(2));
    std::fs::write(&file, "listen = \"[::]:1\"\n").unwrap();
    assert!(program(&["check", "--config", file.to_str().unwrap()], &[]).status.success());
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_beside_the_server_that_runs_and_by_one_that_starts() {
    use sqlx::{ConnectOptions, Connection};
    let mut server = Server::start(&["--stun-listen", "none"]);
    let checked = server.admin(&["check"]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && said.contains("so can the database"), "{said}");

    server.end(nix::sys::signal::Signal::SIGTERM);
    let database = server.state_dir().join("coordinator.sqlite");
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(&database).connect().await.unwrap();
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9000, 'later', TRUE, x'00', 0)";
    sqlx::query(later).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    for command in ["check", "serve"] {
        let refused = server.admin(&[command]);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{command}: systemd does not try again after this: {error}");
        assert!(error.contains("a newer warren-coordinator wrote it (schema 9000"), "{command}: {error}");
    }

    std::fs::write(&database, "no database").unwrap();
    let checked = server.admin(&["check"]);
    let said = [checked.stdout, checked.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(checked.status.success(), "what is wrong with the file is for the server to say: {said:?}");
    assert!(said[1].contains("not looked at") && !said[0].contains("database"), "{said:?}");
}

#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let file = path("coordinator.toml");
    std::fs::write(&file, format!("socket = {:?}\n", path("from-file"))).unwrap();
    let named = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = program(&[&["--config", &file, "user", "list"], arguments].concat(), environment);
        assert_eq!(output.status.code(), Some(1), "there is no server");
        String::from_utf8(output.stderr).unwrap()
    };
    let variable = path("from-variable");
    let environment = [("WARREN_COORDINATOR_SOCKET", variable.as_str())];
    assert!(named(&[], &[]).contains("from-file"));
    assert!(named(&[], &environment).contains("from-variable"));
    assert!(named(&["--socket", &path("from-flag")], &environment).contains("from-flag"));
}

#[test]
fn secrets_are_for_the_owner_alone() {
    let server = Server::start(&[]);
    let mut looked_at = 0;
    for entry in std::fs::read_dir(server.state_dir()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
        looked_at += 1;
    }
    assert!(looked_at >= 3, "the key, the database and the socket");
}

#[test]
fn a_second_server_on_the_same_state_is_refused() {
    let server = Server::start(&[]);
    let directory = server.state_dir().to_str().unwrap();
    let output = program(&["serve", "--listen", "127.0.0.1:0", "--state-dir", directory], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(server.text(&["user", "list"]).lines().count(), 1, "the first goes on");
}

#[test]
fn a_line_of_usage_asks_for_what_has_to_be_given_alone() {
    let directory = tempfile::tempdir().unwrap();
    let environment = [("WARREN_COORDINATOR_STATE_DIR", directory.path().to_str().unwrap())];
    let output = crate::server::program(&["user", "create"], &environment);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("Usage: warren-coordinator user create <NAME>"), "{said}");
}

const DEVICE_POLICY: &str = r#"{
    "tagOwners": {"tag:phone": [], "tag:web": []},
    "acls": [{"action": "accept", "src": ["tag:phone"], "dst": ["tag:web:80"]}],
    "tests": [{"src": "tag:phone", "accept": ["tag:web:80"], "deny": ["tag:web:22"]}],
}"#;

#[tokio::test]
async fn a_wireguard_device_is_added_with_a_file_and_its_private_key_stays_with_whoever_asked() {
    let server = Server::start(&[]);
    let (gate, web) = (Machine::new("gate"), Machine::new("web"));
    gate.connect(server.address).await.join(&server.key(&[])).await;
    web.connect(server.address).await.join(&server.key(&["--tag", "tag:web"])).await;
    let add =
        ["node", "add-wireguard", "phone", "--generate-key", "--user", "ada", "--tag", "tag:phone", "--via", "gate"];
    let told = [add.as_slice(), &["--gateway-endpoint", "gw.example.org:41641"]].concat();
    let refused = String::from_utf8(server.admin(&told).stderr).unwrap();
    assert!(refused.contains("need a policy"), "{refused}");
    let policy = server.state_dir().join("policy.hujson");
    std::fs::write(&policy, DEVICE_POLICY).unwrap();
    server.text(&["policy", "set", policy.to_str().unwrap()]);
    let refused = String::from_utf8(server.admin(&add).stderr).unwrap();
    assert!(refused.contains("--gateway-endpoint"), "{refused}");

    let file = server.text(&told);
    for line in ["Address = 100.64.0.3/32, fd7a:115c:a1e0::3/128", "MTU = 1280", "Endpoint = gw.example.org:41641"] {
        assert!(file.lines().any(|found| found == line), "{line}: {file}");
    }
    let private = file.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    let bytes: [u8; 32] = data_encoding::BASE64.decode(private.as_bytes()).unwrap().try_into().unwrap();
    let shown = server.json(&["node", "show", "phone"]);
    let public = warren_core::types::NodePrivate::from_random(bytes).public().to_string();
    assert_eq!((shown["node_key"].as_str(), shown["gateway"].as_str()), (Some(public.as_str()), Some("gate")));
    assert!(server.text(&["node", "list"]).contains("wireguard device"));
    for entry in
        std::fs::read_dir(server.state_dir()).unwrap().filter_map(|entry| std::fs::read(entry.unwrap().path()).ok())
    {
        assert!(!entry.windows(32).any(|window| window == bytes || window == &private.as_bytes()[..32]));
    }

    let journal = server.json(&["audit"]);
    let made = journal.as_array().unwrap().iter().find(|record| record["command"] == "add-device").unwrap();
    assert_eq!(made["after"]["gateway"], 1, "{made}");
    assert_eq!(server.admin(&["node", "delete", "gate"]).status.code(), Some(1), "the device would be cut off");
    let taken = ["node", "add-wireguard", "two", "--key", "nonsense", "--via", "gate", "--gateway-endpoint", "gw:1"];
    assert_eq!(server.admin(&taken).status.code(), Some(1));
    server.text(&["node", "delete", "phone"]);
    server.text(&["node", "delete", "gate"]);
}
