//! Any bytes on any socket: an error or a closed connection, and everyone else goes on.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use warren_core::wire::control::MapRequest;

use crate::node::{Machine, get};
use crate::server::{PATIENCE, Server};

/// Memory that a handful of broken connections may cost: far below what any of these tests sends.
const GROWTH_KIB: u64 = 48 * 1024;

/// Sends bytes and reads what comes back, until the server closes.
async fn shout(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    // The server may close while we still send.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
    answer
}

/// Sends a request by hand and reads the beginning of the answer.
async fn ask(server: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.expect("an answer in time");
    answer.truncate(read.unwrap());
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn random_bytes_close_only_their_own_connection() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let mut map = node.map(&[]).await;
    map.next().await.unwrap();
    let before = server.resident_kib();
    for round in 0..200_usize {
        let mut bytes = vec![0; round * 37];
        rand::fill(&mut bytes[..]);
        let answer = shout(server.address, &bytes).await;
        // Bytes that begin as TLS does are answered by an alert of TLS (RFC 8446 §5.1: 0x16 a handshake, 0x15 an alert).
        let is_alert = bytes.first() == Some(&0x16) && answer.first() == Some(&0x15);
        let is_refusal = answer.is_empty() || answer.starts_with(b"HTTP/1.1 400") || is_alert;
        assert!(is_refusal, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(server.resident_kib() < before + GROWTH_KIB);
    node.update(&["192.0.2.1:1"]).await;
    server.text(&["node", "rename", "web", "still-here"]);
    map.until(|message| message.node.as_ref().is_some_and(|node| node.name.starts_with("still-here."))).await;
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let server = Server::start(&[]);
    let before = server.resident_kib();
    let line = format!("GET /key HTTP/1.1\r\nx: {}\r\n", "a".repeat(4 * 1024 * 1024));
    let many = format!("GET /key HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    for head in [line, many] {
        let answer = shout(server.address, head.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(server.resident_kib() < before + GROWTH_KIB);
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn half_open_connections_are_closed_and_do_not_keep_others_out() {
    let server = Server::start(&["--max-connections", "50"]);
    let mut silent = Vec::new();
    for _ in 0..49 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK, "the last place is good");
    let mut answer = Vec::new();
    let closed = silent[0].read_to_end(&mut answer);
    let _ = tokio::time::timeout(PATIENCE, closed).await.expect("a silent connection is closed");
    let mut others = Vec::new();
    for _ in 0..49 {
        others.push(get(server.address, "/health").await.0);
    }
    assert!(others.iter().all(|status| *status == StatusCode::OK));
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused_in_words() {
    let server = Server::start(&[]);
    let forged = data_encoding::BASE64.encode(&[1; 101]);
    for (handshake, status) in [("", 400), ("AAAA", 400), ("%%%", 400), (forged.as_str(), 400)] {
        let request = format!(
            "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n\
             X-Tailscale-Handshake: {handshake}\r\nContent-Length: 0\r\n\r\n"
        );
        let answer = ask(server.address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{handshake:?}: {answer}");
    }
    assert!(ask(server.address, "GET /ts2021 HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("upgrade"));
}

#[tokio::test]
async fn garbage_inside_the_channel_closes_it() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let frames: [&[u8]; 4] = [
        // A record longer than the protocol allows.
        &[4, 0xff, 0xff],
        // A record whose tag is wrong.
        &[4, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
        // Not a record.
        &[9, 0, 1, 0],
        // A record that is never finished.
        &[4, 0x0f, 0xf0, 1, 2, 3],
    ];
    for frame in frames {
        let (_, initiation) = machine.handshake(server.address).await;
        let mut io = crate::node::upgrade(server.address, &initiation).await;
        io.write_all(frame).await.unwrap();
        // The server may have closed already.
        let _ = io.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut rest)).await.expect("the server closes");
        assert!(rest.len() < 4096, "nothing but the handshake and the beginning of HTTP/2");
    }
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn bodies_that_are_not_requests_are_refused_in_words() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    let deep = "[".repeat(500_000).into_bytes();
    let many = format!("{{\"Endpoints\":[{}\"192.0.2.1:1\"]}}", "\"192.0.2.1:1\",".repeat(10_000)).into_bytes();
    for path in ["/machine/register", "/machine/map"] {
        for body in [b"".to_vec(), b"{".to_vec(), vec![0xff; 1000], deep.clone()] {
            assert_eq!(node.send(Method::POST, path, body).await.status(), StatusCode::BAD_REQUEST, "{path}");
        }
    }
    assert_eq!(node.send(Method::POST, "/machine/map", many).await.status(), StatusCode::BAD_REQUEST);
    node.join(&server.key(&[])).await;
}

#[tokio::test]
async fn a_body_past_its_limit_is_refused_before_it_is_kept() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    let before = server.resident_kib();
    let status = node.send(Method::POST, "/machine/register", vec![b' '; 64 * 1024 * 1024]).await.status();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(server.resident_kib() < before + GROWTH_KIB);
    node.join(&server.key(&[])).await;
}

#[tokio::test]
async fn garbage_on_the_administration_socket_is_refused() {
    let socket = tempfile::tempdir().unwrap();
    let path = socket.path().join("s");
    let server = Server::start(&["--socket", path.to_str().unwrap()]);
    let body = b"POST /admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{}}";
    for bytes in [&b"\x00\x01\x02\r\n\r\n"[..], body] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        // Our half stays open: a client that hangs up before the answer gets none.
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(server.address, "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn maps_that_are_asked_for_and_never_read_cost_little_and_the_oldest_connection_of_a_machine_ends() {
    const NODES: usize = 200;
    const STREAMS: usize = 32;
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    for number in 0..NODES {
        let machine = Machine::new(&format!("node-{number}"));
        let mut request = machine.register_request(Some(&key));
        // Host keys are told to peers: a map of some 2 MB.
        request.hostinfo.as_mut().unwrap().ssh_host_keys = vec!["k".repeat(1_000); 10];
        machine.connect(server.address).await.register(&request).await;
    }
    let machine = Machine::new("greedy");
    machine.connect(server.address).await.join(&key).await;
    let before = server.resident_kib();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (handshake, initiation) = machine.handshake(server.address).await;
        // A window of one byte: nothing flows until the node reads.
        let node = machine.inside(crate::node::upgrade(server.address, &initiation).await, handshake, 1).await;
        let request = MapRequest { stream: true, compress: String::new(), ..machine.map_request(&[]) };
        let response = node.send(Method::POST, "/machine/map", serde_json::to_vec(&request).unwrap()).await;
        // At such a pace it is taken for two machines, and put off.
        let is_put_off = response.status() == StatusCode::TOO_MANY_REQUESTS && streams.len() > 10;
        assert!(response.status() == StatusCode::OK || is_put_off, "{}", response.status());
        streams.push((node, response));
    }
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for {STREAMS} maps of 2 MB");
    let (_, mut oldest) = streams.swap_remove(0);
    while let Some(Ok(_)) = tokio::time::timeout(PATIENCE, oldest.body_mut().frame()).await.expect("it ends") {}
    // Everybody else goes on.
    let other = Machine::new("other");
    let node = other.connect(server.address).await;
    node.join(&key).await;
    assert_eq!(node.map(&[]).await.next().await.unwrap().peers.len(), NODES + 1);
}

#[tokio::test]
async fn silent_connections_make_room_and_cut_off_no_node() {
    let server = Server::start(&["--max-connections", "40"]);
    let key = server.key(&["--reusable"]);
    let (web, db) = (Machine::new("web"), Machine::new("db"));
    let node = web.connect(server.address).await;
    node.join(&key).await;
    let mut map = node.map(&[]).await;
    map.next().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    db.connect(server.address).await.join(&key).await;
    map.until(|message| !message.peers.is_empty() || !message.peers_changed.is_empty()).await;
    assert!(silent.len() == 400 && server.admin(&["node", "list"]).status.success());
}

#[tokio::test]
async fn a_machine_that_asks_without_end_is_put_off_and_others_are_not() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (loud, web) = (Machine::new("loud"), Machine::new("web"));
    let node = loud.connect(server.address).await;
    node.join(&key).await;
    let request = MapRequest { omit_peers: true, ..loud.map_request(&[]) };
    let mut put_off = false;
    for _ in 0..200 {
        put_off |= node.post("/machine/map", &request).await.0 == StatusCode::TOO_MANY_REQUESTS;
    }
    assert!(put_off);
    let other = web.connect(server.address).await;
    other.join(&key).await;
    other.update(&["192.0.2.1:1"]).await;
}

#[tokio::test]
async fn what_a_stranger_says_of_itself_fills_neither_log_nor_list() {
    let server = Server::start(&[]);
    let machine = Machine { name: "x".repeat(500_000), ..Machine::new("") };
    let node = machine.connect(server.address).await;
    let asked = node.register(&machine.register_request(None)).await;
    assert!(!asked.auth_url.is_empty());
    let pending = server.text(&["--json", "node", "pending"]);
    assert!(pending.len() < 2_000 && pending.contains("xxx"), "{} bytes", pending.len());
    assert!(!server.has_logged(&"x".repeat(300)));
    let key = "k".repeat(100_000);
    let (status, _) = node.post("/machine/register", &machine.register_request(Some(&key))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}
