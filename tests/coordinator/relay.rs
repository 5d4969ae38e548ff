//! The relay that the coordinator runs by itself, as a client finds and uses it.

use std::net::SocketAddr;
use std::sync::Arc;

use nix::sys::signal::Signal;
use warren_core::types::{NodePrivate, RegionId};
use warren_core::wire::control::DerpNode;
use warren_core::wire::derp::Frame;
use warren_core::wire::stun::{self, TransactionId};
use warren_shell::CertificatePin;

use crate::node::{Machine, get};
use crate::relay_client::{Client, open};
use crate::server::{PATIENCE, Server};

/// The embedded relay as a new node is told of it.
async fn told(server: &Server, machine: &Machine, key: &str) -> Option<DerpNode> {
    let node = machine.connect(server.address).await;
    node.join(key).await;
    let first = node.map(&[]).await.next().await.unwrap();
    let mut regions = first.derp_map.unwrap().regions;
    Some(regions.remove(&RegionId(900))??.nodes.remove(0))
}

/// Connects as the map says: by the address, to the port, and only to the pinned certificate.
fn connect(told: &DerpNode, key: NodePrivate) -> Client {
    let address = format!("{}:{}", told.ipv4, told.derp_port).parse::<SocketAddr>().unwrap();
    let pin = CertificatePin::read(&told.cert_name).unwrap().unwrap();
    let name = told.host_name.clone().try_into().unwrap();
    let tls = rustls::ClientConnection::new(Arc::new(pin.client_config().unwrap()), name).unwrap();
    Client::with_key(Box::new(rustls::StreamOwned::new(tls, open(address))), key)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_a_coordinator_without_configuration_meet_at_its_relay() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (web, db) = (Machine::new("web"), Machine::new("db"));
    let web_told = told(&server, &web, &key).await.unwrap();
    let db_told = told(&server, &db, &key).await.unwrap();
    assert_eq!(web_told.ipv4, server.address.ip().to_string());
    assert_eq!(web_told.derp_port, i32::from(server.address.port()));
    let (mut one, mut two) =
        (connect(&web_told, web.node.clone()).admitted(), connect(&db_told, db.node.clone()).admitted());
    let packet = &[7; 1400];
    one.say(Frame::SendPacket { to: two.key.public(), packet });
    let (kind, body) = two.frame().unwrap();
    assert_eq!(Frame::decode(kind, &body), Ok(Frame::RecvPacket { from: one.key.public(), packet }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_admits_nodes_of_the_network_only() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let relay = told(&server, &machine, &server.key(&[])).await.unwrap();
    assert_eq!(connect(&relay, NodePrivate::from_random([9; 32])).frame(), None);
    assert!(connect(&relay, machine.node.clone()).frame().is_some());
    server.text(&["node", "delete", "web"]);
    assert_eq!(connect(&relay, machine.node.clone()).frame(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_that_the_coordinator_restarts_and_find_the_same_relay_after_it() {
    let mut server = Server::start(&[]);
    let machine = Machine::new("web");
    let relay = told(&server, &machine, &server.key(&[])).await.unwrap();
    let mut client = connect(&relay, machine.node.clone()).admitted();
    assert!(server.end(Signal::SIGTERM));
    let (kind, body) = client.frame().unwrap();
    assert!(matches!(Frame::decode(kind, &body), Ok(Frame::Restarting { .. })), "{kind:?}");
    server.restart_ended();
    assert_eq!(connect(&relay, machine.node.clone()).admitted().server, client.server);
}

#[tokio::test(flavor = "multi_thread")]
async fn stun_is_answered_where_the_map_says() {
    let server = Server::start(&["--stun-listen", "127.0.0.1:0"]);
    let relay = told(&server, &Machine::new("web"), &server.key(&[])).await.unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = u16::try_from(relay.stun_port).unwrap();
    socket.send_to(&stun::request(TransactionId([7; 12])), ("127.0.0.1", port)).unwrap();
    let mut answer = [0; 100];
    let (length, _) = socket.recv_from(&mut answer).unwrap();
    let expected = (TransactionId([7; 12]), socket.local_addr().unwrap());
    assert_eq!(stun::read_response(&answer[..length]), Ok(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_off_is_neither_served_nor_told() {
    let server = Server::start(&["--relay", "false"]);
    assert_eq!(told(&server, &Machine::new("web"), &server.key(&[])).await, None);
    assert_eq!(get(server.address, "/derp/probe").await.0, http::StatusCode::NOT_FOUND);
    let server = Server::start(&["--stun-listen", "none"]);
    assert_eq!(get(server.address, "/derp/probe").await.0, http::StatusCode::OK);
    assert_eq!(get(server.address, "/generate_204").await.0, http::StatusCode::NO_CONTENT);
    let relay = told(&server, &Machine::new("web"), &server.key(&[])).await.unwrap();
    assert_eq!(relay.stun_port, -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_a_node_that_is_deleted_or_expires_ends_at_once() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    for (name, verb) in [("web", "delete"), ("db", "expire")] {
        let machine = Machine::new(name);
        let relay = told(&server, &machine, &key).await.unwrap();
        let mut client = connect(&relay, machine.node.clone()).admitted();
        server.text(&["node", verb, name]);
        assert_eq!(client.frame(), None, "{verb}");
        assert_eq!(connect(&relay, machine.node.clone()).frame(), None, "{verb}");
    }
}
