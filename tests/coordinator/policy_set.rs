//! A policy set on a running coordinator: what nodes are told, versions, refusals, `diff` and `why`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Machine, Map};
use crate::server::Server;

const WEB: &str = r#"{
    "tagOwners": {"tag:web": ["ada@"]},
    "acls": [
        {"action": "accept", "src": ["ada@"], "dst": ["tag:web:443"]},
    ],
}
"#;

/// A policy file beside the server's state.
fn file(server: &Server, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = server.state_dir().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn set(server: &Server, text: &str) -> String {
    server.text(&["policy", "set", &file(server, "policy.hujson", text)])
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "it is refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A laptop of a person and a tagged server, with their map streams.
async fn network(server: &Server) -> (Machine, Machine, Map, Map) {
    let (laptop, web) = (Machine::new("laptop"), Machine::new("web"));
    let (laptop_node, web_node) = (laptop.connect(server.address).await, web.connect(server.address).await);
    laptop_node.join(&server.key(&[])).await;
    web_node.join(&server.key(&["--tag", "tag:web"])).await;
    let (mut laptop_map, mut web_map) = (laptop_node.map(&[]).await, web_node.map(&[]).await);
    assert_eq!(laptop_map.next().await.unwrap().peers.len(), 1, "without a policy everyone sees everyone");
    assert_eq!(web_map.next().await.unwrap().peers.len(), 1);
    drop((laptop_node, web_node));
    (laptop, web, laptop_map, web_map)
}

#[tokio::test]
async fn a_policy_and_its_revocation_reach_every_node_it_concerns() {
    let server = Server::start(&[]);
    let (_laptop, _web, mut laptop_map, mut web_map) = network(&server).await;
    assert_eq!(set(&server, WEB), "version 1 is in force\n");
    let told = web_map.until(|message| !message.packet_filters.is_empty()).await;
    assert_eq!(told.packet_filters["base"].as_ref().map(Vec::len), None, "what let everybody in is gone");
    let mut parts = told.packet_filters.iter().filter_map(|(name, rules)| Some((name, rules.as_ref()?)));
    let (name, rules) = parts.next().unwrap();
    let [rule] = rules.as_slice() else { panic!("one rule: {rules:?}") };
    assert_eq!((rule.dst_ports[0].ports.first, rule.dst_ports[0].ports.last), (443, 443));
    let origin = rule.origin.as_ref().unwrap();
    assert_eq!((&origin.reference, origin.line), (name, 4));
    let told = laptop_map.until(|message| !message.packet_filters.is_empty()).await;
    assert!(told.packet_filters.values().all(Option::is_none), "nobody may open anything on the laptop");
    assert!(told.peers_removed.is_empty(), "it still sees the server");

    set(&server, r#"{"acls": []}"#);
    let told = laptop_map.until(|message| !message.peers_removed.is_empty()).await;
    assert_eq!(told.peers_removed.len(), 1);
    let told = web_map.until(|message| !message.peers_removed.is_empty()).await;
    assert!(told.packet_filters[name].is_none(), "and what it let in is let in no longer");

    let restored = server.text(&["policy", "restore", "1"]);
    assert_eq!(restored, "version 3 is in force\n");
    assert_eq!(laptop_map.until(|message| !message.peers_changed.is_empty()).await.peers_changed.len(), 1);
}

#[tokio::test]
async fn versions_are_kept_with_who_and_when_and_the_last_is_in_force_after_a_restart() {
    let mut server = Server::start(&[]);
    assert!(server.text(&["policy", "get"]).contains("everything is allowed"));
    set(&server, WEB);
    set(&server, "{\"acls\": []}");
    assert_eq!(server.text(&["policy", "get", "--version", "1"]), WEB, "byte for byte");
    let versions = server.json(&["policy", "versions"]);
    let numbers: Vec<_> = versions.as_array().unwrap().iter().map(|version| version["version"].clone()).collect();
    assert_eq!(numbers, [json!(2), json!(1)]);
    assert!(versions[0]["by"].as_str().is_some_and(|by| !by.is_empty()) && versions[0]["at"].is_string());
    assert!(server.text(&["policy", "versions"]).contains("in force"));

    server.restart(Signal::SIGKILL);
    assert_eq!(server.json(&["policy", "get"])["version"], 2);
    let machine = Machine::new("lone");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let first = node.map(&[]).await.next().await.unwrap();
    assert!(first.packet_filters.values().all(Option::is_none), "{:?}", first.packet_filters);
    assert!(error(&server.admin(&["policy", "restore", "9"])).contains("no version 9"));
}

#[test]
fn a_change_that_its_author_did_not_see_is_not_undone() {
    let server = Server::start(&[]);
    let path = file(&server, "policy.hujson", WEB);
    server.text(&["policy", "set", &path, "--if-version", "0"]);
    let other = file(&server, "other.hujson", "{}");
    let refused = error(&server.admin(&["policy", "set", &other, "--if-version", "0"]));
    assert!(refused.contains("the policy in force is version 1, set by"), "{refused}");
    server.text(&["policy", "set", &other, "--if-version", "1"]);
    assert_eq!(server.text(&["policy", "set", &other]), "version 2 is in force\n", "the same again is no version");
}

#[test]
fn what_is_wrong_with_a_policy_is_said_with_its_place_and_the_old_one_stays_in_force() {
    let server = Server::start(&[]);
    set(&server, WEB);
    let rules = "{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:1\"]},\n".repeat(100_000);
    let large = format!("{{\"acls\": [] // {}\n}}", "x".repeat(10 << 20));
    let failing =
        WEB.replace("\"acls\"", "\"tests\": [{\"src\": \"ada@\", \"accept\": [\"tag:web:22\"]}],\n    \"acls\"");
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("10 MiB", large.into_bytes(), "bytes of policy, at most 4194304 are taken"),
        ("100,000 rules", format!("{{\"acls\": [\n{rules}]}}").into_bytes(), "bytes of policy"),
        ("nesting", format!("{{\"acls\": {}", "[".repeat(100_000)).into_bytes(), "levels of nesting"),
        (
            "cyclic groups",
            br#"{"groups": {"group:a": ["group:b"], "group:b": ["group:a"]}}"#.to_vec(),
            "line 1, column",
        ),
        ("unknown field", b"{\n  \"aclz\": []}".to_vec(), "line 2, column 3"),
        ("wrong type", b"{\"acls\": 7}".to_vec(), "line 1, column 10"),
        ("key given twice", b"{\"acls\": [],\n \"acls\": []}".to_vec(), "line 2, column 2"),
        ("not UTF-8", b"{\n \"groups\": {\"group:\xff\": []}}".to_vec(), "line 2, column 20"),
        ("empty", Vec::new(), "the policy is empty"),
        ("its own tests", failing.into_bytes(), "line 3, column 15: test(s) failed"),
    ];
    for (name, bytes, wanted) in cases {
        let refused = error(&server.admin(&["policy", "set", &file(&server, "bad.hujson", bytes)]));
        assert!(refused.contains(wanted), "{name}: {}", refused.chars().take(600).collect::<String>());
        assert!(refused.len() < 20_000, "{name}: an error is short enough to read");
    }
    let json = server.admin(&["--json", "policy", "set", &file(&server, "bad.hujson", "{\"acls\": 7}")]);
    let listed: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(listed["errors"][0]["column"], 10);
    assert_eq!(server.json(&["policy", "get"])["version"], 1);
}

#[test]
fn the_socket_refuses_what_the_command_line_would_not_send() {
    let server = Server::start(&[]);
    set(&server, WEB);
    let ask = |text: &str| {
        let body = json!({"network": {"policy": {"set": {"text": text, "by": "x", "if_version": null}}}});
        let body = body.to_string();
        let mut stream = UnixStream::connect(server.state_dir().join("admin.sock")).unwrap();
        let head =
            format!("POST /admin HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // The server may have refused before all of it was written.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(ask("{\"acls\": 7}").contains("line 1, column 10"));
    let answer = ask(&format!("{{}} // {}", "x".repeat(10 << 20)));
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bytes of policy"), "{answer:.300}");
    assert_eq!(server.json(&["policy", "get"])["version"], 1);
}

#[tokio::test]
async fn a_difference_is_told_before_it_is_made() {
    let server = Server::start(&[]);
    let _network = network(&server).await;
    let path = file(&server, "policy.hujson", WEB);
    let first = server.text(&["policy", "diff", &path]);
    assert!(first.contains("- web -> laptop: port *\n"), "{first}");
    assert!(first.contains("- laptop -> web: tcp/0-442, tcp/444-65535, udp/0-442, udp/444-65535\n"), "{first}");
    assert!(first.ends_with("0 pairs of nodes gain access, 2 lose some\n"), "{first}");
    set(&server, WEB);
    assert_eq!(server.text(&["policy", "diff", &path]), "nothing changes\n");
    let more = file(&server, "more.hujson", WEB.replace(":443\"", ":443,22\""));
    let listed = server.json(&["policy", "diff", &more]);
    assert_eq!(listed["gains"], json!([{"from": ["laptop"], "to": ["web"], "access": ["tcp/22", "udp/22"]}]));
    assert_eq!((&listed["pairs_gaining"], &listed["loses"]), (&json!(1), &json!([])));
    assert_eq!(server.json(&["policy", "get"])["version"], 1, "nothing was set");
}

#[tokio::test]
async fn why_names_the_rule_its_line_and_what_it_says_or_why_not() {
    let server = Server::start(&[]);
    let _network = network(&server).await;
    assert!(server.text(&["why", "laptop", "web"]).contains("no policy was ever set: everything is allowed"));
    set(&server, WEB);
    let why = server.text(&["why", "laptop", "100.64.0.2", "443"]);
    assert!(why.starts_with("allowed: tcp/443 from laptop (100.64.0.1) to web (100.64.0.2)\n"), "{why}");
    assert!(why.contains("line 4 opens port 443"), "{why}");
    assert!(why.contains(r#"{"action": "accept", "src": ["ada@"], "dst": ["tag:web:443"]}"#), "{why}");
    let why = server.text(&["why", "laptop", "web", "tcp/22"]);
    assert!(why.starts_with("denied: tcp/22") && why.contains("line 4 opens only port 443"), "{why}");
    let why = server.json(&["why", "web", "laptop"]);
    assert_eq!(why["allowed"], false);
    assert!(why["reasons"][0].as_str().unwrap().contains("no rule of the policy (version 1) names both"), "{why}");
    let why = server.text(&["why", "laptop", "10.9.8.7", "icmp"]);
    assert!(why.contains("no node that laptop may use serves an approved route to 10.9.8.7"), "{why}");
    server.text(&["node", "expire", "web"]);
    let why = server.text(&["why", "laptop", "web", "443"]);
    assert!(why.starts_with("denied") && why.contains("the key of web is past its time"), "{why}");
    assert!(error(&server.admin(&["why", "laptop", "nowhere"])).contains("there is no node `nowhere`"));
    assert!(error(&server.admin(&["why", "laptop", "web", "x/22"])).contains("proto name \"x\" not known"));
}

#[tokio::test]
async fn a_tag_is_for_its_owners_and_the_refusal_says_so() {
    let server = Server::start(&[]);
    set(&server, WEB);
    for (user, refused) in [("ada", false), ("eve", true)] {
        let machine = Machine::new("web");
        let key = server.text(&["key", "create", "--user", user]);
        let mut request = machine.register_request(Some(key.trim()));
        request.hostinfo.as_mut().unwrap().request_tags = vec!["tag:web".to_owned()];
        let answer = machine.connect(server.address).await.register(&request).await;
        assert_eq!(answer.error.contains("may not have the tag `tag:web`"), refused, "{user}: {}", answer.error);
    }
    assert_eq!(server.json(&["node", "list"])[0]["tags"], json!(["tag:web"]));
    server.text(&["user", "role", "eve", "admin"]);
    assert!(server.text(&["user", "list"]).contains("admin"));
}

#[tokio::test]
async fn what_is_most_likely_not_meant_is_said_at_the_command_and_at_the_health_page() {
    let server = Server::start(&[]);
    server.text(&["user", "create", "ada"]);
    let policy = r#"{
        "tagOwners": {"tag:web": ["ada@"], "tag:db": ["adda@"]},
        "acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}],
        "tests": [{"src": "tag:web", "accept": ["tag:db:5432"], "deny": ["tag:db:22"]}],
    }"#;
    let output = server.admin(&["policy", "set", &file(&server, "policy.hujson", policy)]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("line 4: tried with nodes made up: src \"tag:web\""), "{said}");
    assert!(said.contains("the policy names users that nobody is: adda@"), "{said}");
    let health = crate::node::get(server.address, "/health").await.1;
    assert!(health.contains("\"status\":\"pass\"") && health.contains("adda@"), "{health}");

    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let other = Machine::new("other");
    other.connect(server.address).await.join(&server.key(&[])).await;
    let output = server.admin(&["node", "tag", "web", "tag:wbe"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("tagOwners does not have tag:wbe") && said.contains("web reaches nobody"), "{said}");

    let failing = policy.replace("\"deny\": [\"tag:db:22\"]", "\"deny\": [\"tag:db:5432\"]");
    let refused = error(&server.admin(&["policy", "set", &file(&server, "policy.hujson", failing)]));
    assert!(refused.contains("expected denied, got allowed"), "{refused}");
}
