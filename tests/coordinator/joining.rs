//! How nodes come in, and go.

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use warren_core::types::{CapabilityVersion, NodePrivate, Ticket};
use warren_core::wire::control::{RegisterRequest, RegisterResponse};

use crate::node::{Machine, eventually, get, long_ago};
use crate::server::Server;

#[tokio::test]
async fn a_node_joins_with_a_key_and_is_listed() {
    let server = Server::start(&[]);
    let machine = Machine::new("Web Server.example.org");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let nodes = server.json(&["node", "list"]);
    assert_eq!(nodes[0]["name"], "web-server");
    assert_eq!(nodes[0]["user"], "ada");
    assert_eq!(nodes[0]["addresses"][0], "100.64.0.1");
    assert_eq!(nodes[0]["node_key"], machine.node.public().to_string());
    assert!(server.text(&["node", "list"]).contains("web-server"));
}

#[tokio::test]
async fn a_one_off_key_admits_one_of_many_that_race() {
    let server = Server::start(&[]);
    let key = server.key(&[]);
    let racers = (0..8).map(|number| {
        let (address, key) = (server.address, key.clone());
        tokio::spawn(async move {
            let machine = Machine::new(&format!("racer-{number}"));
            let request = machine.register_request(Some(&key));
            let response = machine.connect(address).await.register(&request).await;
            assert_eq!(response.machine_authorized, response.error.is_empty());
            response.machine_authorized
        })
    });
    let mut admitted = 0;
    for racer in racers.collect::<Vec<_>>() {
        admitted += u32::from(racer.await.unwrap());
    }
    assert_eq!(admitted, 1);
    assert_eq!(server.json(&["node", "list"]).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_wrong_key_is_refused_in_words_and_never_logged() {
    let server = Server::start(&["--log", "trace"]);
    let machine = Machine::new("web");
    let mut key = server.key(&[]);
    key.replace_range(key.len() - 8.., "00000000");
    let response = machine.connect(server.address).await.register(&machine.register_request(Some(&key))).await;
    assert!(!response.error.is_empty() && !response.machine_authorized);
    assert!(!response.error.contains(&key));
    assert!(!server.has_logged(&key) && !server.has_logged("privkey:"));
}

#[tokio::test]
async fn a_node_without_a_key_waits_until_its_code_is_approved() {
    let server = Server::start(&[]);
    let machine = Machine::new("laptop");
    let node = machine.connect(server.address).await;
    let asked = node.register(&machine.register_request(None)).await;
    assert!(!asked.machine_authorized);
    let path = asked.auth_url.strip_prefix(&server.url()).expect("a page of this server").to_owned();
    let code = Ticket::in_url(&asked.auth_url).unwrap().code().to_string();

    let (status, page) = get(server.address, &path).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains(&format!("warren-coordinator node approve {code}")) && page.contains("laptop"), "{page}");
    assert!(!page.contains("<script"));
    assert_eq!(server.json(&["node", "pending"])[0]["code"], code);

    let followup = RegisterRequest { followup: asked.auth_url.clone(), ..machine.register_request(None) };
    let waiting = node.register(&followup);
    let approving = async { server.text(&["node", "approve", &code, "--user", "ada"]) };
    let (answer, shown) = tokio::join!(waiting, approving);
    assert!(answer.machine_authorized && answer.auth_url.is_empty(), "{answer:?}");
    assert!(shown.contains("laptop"));
    assert_eq!(get(server.address, &path).await.0, StatusCode::NOT_FOUND, "an address is good once");
}

#[tokio::test]
async fn the_page_is_where_the_operator_says() {
    let server = Server::start(&["--server-url", "https://coordinator.example.org/"]);
    let machine = Machine::new("laptop");
    let asked = machine.connect(server.address).await.register(&machine.register_request(None)).await;
    assert!(asked.auth_url.starts_with("https://coordinator.example.org/a/"), "{}", asked.auth_url);
}

#[tokio::test]
async fn a_node_logs_out() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    node.register(&RegisterRequest { expiry: Some(long_ago()), ..machine.register_request(None) }).await;
    assert_eq!(server.json(&["node", "list"])[0]["expired"], true);
    let (status, _) = node.post("/machine/map", &machine.map_request(&[])).await;
    let again = node.register(&machine.register_request(None)).await;
    assert!(again.node_key_expired || !again.auth_url.is_empty(), "{status} {again:?}");
}

#[tokio::test]
async fn an_ephemeral_node_that_logs_out_is_gone() {
    let server = Server::start(&[]);
    let machine = Machine::new("job");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&["--ephemeral"])).await;
    node.register(&RegisterRequest { expiry: Some(long_ago()), ..machine.register_request(None) }).await;
    assert_eq!(server.json(&["node", "list"]), serde_json::json!([]));
}

#[tokio::test]
async fn an_expired_node_comes_back_with_a_new_key_and_keeps_its_address() {
    let server = Server::start(&[]);
    let mut machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let before = server.json(&["node", "show", "web"]);
    server.text(&["node", "expire", "web"]);
    let response = machine.connect(server.address).await.register(&machine.register_request(None)).await;
    assert!(response.node_key_expired, "{response:?}");

    let old = std::mem::replace(&mut machine.node, NodePrivate::from_random(rand::random()));
    let key = server.key(&[]);
    let request = RegisterRequest { old_node_key: old.public(), ..machine.register_request(Some(&key)) };
    let response: RegisterResponse = machine.connect(server.address).await.register(&request).await;
    assert!(response.machine_authorized, "{response:?}");
    let after = server.json(&["node", "show", "web"]);
    assert_eq!(after["addresses"], before["addresses"]);
    assert_eq!(after["expired"], false);
    assert_eq!(server.json(&["node", "list"]).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_node_key_is_of_no_use_to_another_machine() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let thief = Machine { node: machine.node.clone(), ..Machine::new("thief") };
    let node = thief.connect(server.address).await;
    let (status, _) = node.post("/machine/map", &thief.map_request(&[])).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(server.json(&["node", "list"]).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_that_is_too_old_is_told_so() {
    let server = Server::start(&[]);
    let machine = Machine { version: CapabilityVersion(112), ..Machine::new("old") };
    let node = machine.connect(server.address).await;
    let (status, body) = node.post("/machine/register", &machine.register_request(None)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("too old"), "{body}");
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_words() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    for (method, path, status) in [
        (Method::POST, "/machine/set-dns", StatusCode::NOT_IMPLEMENTED),
        (Method::PATCH, "/machine/set-device-attr", StatusCode::NOT_IMPLEMENTED),
        (Method::GET, "/machine/tka/bootstrap", StatusCode::NOT_IMPLEMENTED),
        (Method::GET, "/machine/map", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(node.send(method, path, Vec::new()).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn an_ssh_session_that_needs_a_check_is_refused_at_once_and_its_user_is_told() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    let path = "/machine/ssh/action/1/to/2?local_user=root";
    let response = node.send(Method::GET, path, Vec::new()).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let action: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &action["reject"]), (StatusCode::OK, &serde_json::json!(true)));
    assert!(action["message"].as_str().unwrap().contains("check"), "{action}");
}

#[tokio::test]
async fn a_node_joins_through_a_websocket() {
    let server = Server::start(&[]);
    let machine = Machine::new("browser");
    let (handshake, initiation) = machine.handshake(server.address).await;
    let escaped = data_encoding::BASE64.encode(&initiation).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let mut request =
        format!("ws://{}/ts2021?X-Tailscale-Handshake={escaped}", server.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "tailscale-control-protocol".parse().unwrap());
    request.headers_mut().insert("origin", "https://elsewhere.example".parse().unwrap());
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "tailscale-control-protocol");
    let node = machine.inside(crate::node::websocket(socket), handshake, 65_535).await;
    node.join(&server.key(&[])).await;
    let mut map = node.map(&[]).await;
    assert!(map.next().await.unwrap().node.is_some());
}

#[tokio::test]
async fn what_was_answered_outlives_a_kill() {
    let mut server = Server::start(&[]);
    let machine = Machine::new("web");
    machine.connect(server.address).await.join(&server.key(&[])).await;
    let spare = server.key(&["--reusable"]);
    server.restart(Signal::SIGKILL);
    assert_eq!(server.json(&["node", "list"])[0]["name"], "web");
    let second = Machine::new("db");
    second.connect(server.address).await.join(&spare).await;
    let mut map = machine.connect(server.address).await.map(&[]).await;
    let first = map.next().await.unwrap();
    assert_eq!(first.peers.len(), 1);
    eventually("web is online", || server.json(&["node", "show", "web"])["online"] == true).await;
}
