//! What nodes are told, and when.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use warren_core::wire::control::MapRequest;

use crate::node::{Machine, eventually};
use crate::server::Server;

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

#[tokio::test]
async fn two_nodes_see_each_other_and_each_change() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (web, db) = (Machine::new("web"), Machine::new("db"));
    let (web_node, db_node) = (web.connect(server.address).await, db.connect(server.address).await);
    web_node.join(&key).await;
    let mut map = web_node.map(&["192.0.2.1:41641"]).await;
    let first = map.next().await.unwrap();
    let myself = first.node.unwrap();
    assert_eq!(myself.key, web.node.public());
    assert_eq!(myself.name, "web.warren.internal.");
    assert!(first.derp_map.is_some() && !first.packet_filters.is_empty() && first.dns_config.is_some());
    assert!(first.peers.is_empty());

    db_node.join(&key).await;
    db_node.update(&["192.0.2.2:41641"]).await;
    let came = map.until(|message| !message.peers_changed.is_empty()).await;
    let peer = came.peers_changed.iter().find(|peer| peer.key == db.node.public()).expect("the new node");
    let id = peer.id;
    let _db_map = db_node.map(&["192.0.2.2:41641"]).await;

    db_node.update(&["192.0.2.3:41641"]).await;
    map.until(|message| {
        let patches = message.peers_changed_patch.iter();
        let wanted = Some(addresses(&["192.0.2.3:41641"]));
        patches.filter(|patch| patch.node_id == id).any(|patch| patch.endpoints == wanted)
    })
    .await;

    server.text(&["node", "delete", "db"]);
    map.until(|message| message.peers_removed.contains(&id)).await;
}

#[tokio::test]
async fn a_map_is_plain_where_the_node_does_not_ask_for_zstd() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let request = MapRequest { stream: true, compress: String::new(), ..machine.map_request(&[]) };
    let response = node.send(http::Method::POST, "/machine/map", serde_json::to_vec(&request).unwrap()).await;
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while bytes.len() < 5 {
        let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
        bytes.extend_from_slice(&frame.into_data().unwrap());
    }
    assert_eq!(bytes[4], b'{');

    let request = MapRequest { stream: true, compress: "lz4".to_owned(), ..machine.map_request(&[]) };
    assert_eq!(node.post("/machine/map", &request).await.0, http::StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_new_stream_of_a_node_ends_its_old_one() {
    let server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let mut old = node.map(&[]).await;
    old.next().await.unwrap();
    let mut new = machine.connect(server.address).await.map(&[]).await;
    assert!(new.next().await.unwrap().node.is_some());
    old.ended().await;
}

#[tokio::test]
async fn a_node_that_goes_is_offline_after_a_grace_and_one_that_comes_is_online() {
    let server = Server::start(&["--offline-grace", "1"]);
    let key = server.key(&["--reusable"]);
    let (web, db) = (Machine::new("web"), Machine::new("db"));
    let (web_node, db_node) = (web.connect(server.address).await, db.connect(server.address).await);
    web_node.join(&key).await;
    db_node.join(&key).await;
    let mut map = web_node.map(&[]).await;
    let peer = map.next().await.unwrap().peers.remove(0);
    assert_eq!(peer.online, Some(false));

    let mut online = false;
    let mut turns = |message: &warren_core::wire::control::MapResponse, wanted: bool| {
        let patches = message.peers_changed_patch.iter().filter(|patch| patch.node_id == peer.id);
        let entries = message.peers_changed.iter().filter(|changed| changed.id == peer.id);
        let said = patches.filter_map(|patch| patch.online).chain(entries.filter_map(|entry| entry.online));
        online = said.chain(message.online_change.get(&peer.id).copied()).last().unwrap_or(online);
        online == wanted
    };
    let db_map = db_node.map(&[]).await;
    map.until(|message| turns(message, true)).await;
    assert_eq!(server.json(&["node", "show", "db"])["online"], true);
    drop(db_map);
    map.until(|message| turns(message, false)).await;
    assert_eq!(server.json(&["node", "show", "db"])["online"], false);
}

#[tokio::test]
async fn an_ephemeral_node_that_stays_away_is_removed() {
    let server = Server::start(&["--offline-grace", "1", "--ephemeral-grace", "3"]);
    let key = server.key(&["--reusable"]);
    let (web, job) = (Machine::new("web"), Machine::new("job"));
    let (web_node, job_node) = (web.connect(server.address).await, job.connect(server.address).await);
    web_node.join(&key).await;
    let mut map = web_node.map(&[]).await;
    job_node.join(&server.key(&["--ephemeral"])).await;
    let job_map = job_node.map(&[]).await;
    let came = map.until(|message| !message.peers_changed.is_empty() || !message.peers.is_empty()).await;
    let id = came.peers_changed.iter().chain(came.peers.iter()).next().unwrap().id;
    drop(job_map);
    map.until(|message| message.peers_removed.contains(&id)).await;
    assert_eq!(server.json(&["node", "list"]).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_node_that_reads_too_slowly_is_cut_off_and_holds_nobody_up() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (slow, busy) = (Machine::new("slow"), Machine::new("busy"));
    let (handshake, initiation) = slow.handshake(server.address).await;
    // A window of one byte: nothing flows until the node reads.
    let io = crate::node::upgrade(server.address, &initiation).await;
    let slow_node = slow.inside(io, handshake, 1).await;
    let busy_node = busy.connect(server.address).await;
    slow_node.join(&key).await;
    busy_node.join(&key).await;
    let mut stuck = slow_node.map(&[]).await;
    let mut name = "busy".to_owned();
    for round in 0.. {
        let next = format!("busy-{round}");
        server.text(&["node", "rename", &name, &next]);
        name = next;
        if server.has_logged("reads too slowly") {
            break;
        }
        assert!(round < 1_000);
    }
    stuck.ended().await;
    let mut again = slow.connect(server.address).await.map(&[]).await;
    assert_eq!(again.next().await.unwrap().peers.len(), 1);
}

#[tokio::test]
async fn streams_end_cleanly_with_the_server_and_nodes_are_back_after_a_restart() {
    let mut server = Server::start(&[]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let mut map = node.map(&[]).await;
    let before = map.next().await.unwrap().node.unwrap();
    assert!(server.end(Signal::SIGTERM), "the server ends with status 0");
    map.ended().await;

    server.restart_ended();
    let mut map = machine.connect(server.address).await.map(&[]).await;
    let after = map.next().await.unwrap().node.unwrap();
    assert_eq!((after.id, after.addresses), (before.id, before.addresses));
    eventually("it is online again", || server.json(&["node", "show", "web"])["online"] == true).await;
}

#[tokio::test]
async fn relays_of_a_file_are_in_the_map() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let relays = r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"home","RegionName":"Home","Nodes":[
        {"Name":"900a","RegionID":900,"HostName":"relay.example.org"}]}}}"#;
    std::fs::write(file.path(), relays).unwrap();
    let server = Server::start(&["--derp-map", file.path().to_str().unwrap()]);
    let machine = Machine::new("web");
    let node = machine.connect(server.address).await;
    node.join(&server.key(&[])).await;
    let first = node.map(&[]).await.next().await.unwrap();
    let regions = first.derp_map.unwrap().regions;
    let region = regions.values().next().unwrap().as_ref().unwrap();
    assert_eq!(region.nodes[0].host_name, "relay.example.org");
}

/// What one connected node may cost, its entry in the registry and its share of everybody's map included. HTTP/2
/// buffers are two thirds of it. 10,000 nodes fit a machine of 1 GiB.
const NODE_KIB: u64 = 96;

#[tokio::test]
async fn a_connected_node_costs_no_more_than_its_figure() {
    const NODES: u64 = 100;
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let machines: Vec<_> = (0..=NODES).map(|number| Machine::new(&format!("node-{number}"))).collect();
    let mut readers = Vec::new();
    let mut before = 0;
    for machine in &machines {
        let node = machine.connect(server.address).await;
        node.join(&key).await;
        let mut map = node.map(&["192.0.2.1:41641"]).await;
        map.next().await.unwrap();
        readers.push(tokio::spawn(async move {
            let renamed = |name: &str| name.starts_with("renamed.");
            map.until(|message| {
                let nodes = message.peers_changed.iter().chain(message.peers.iter()).chain(&message.node);
                nodes.into_iter().any(|node| renamed(&node.name))
            })
            .await;
            map
        }));
        if before == 0 {
            before = server.resident_kib();
        }
    }
    // When the last change has reached everyone, nothing waits in a queue.
    server.text(&["node", "rename", "node-0", "renamed"]);
    let mut maps = Vec::new();
    for reader in readers {
        maps.push(reader.await.unwrap());
    }
    let grown = server.resident_kib() - before;
    assert!(grown < NODES * NODE_KIB, "{} KiB for each node", grown / NODES);
    println!("{} KiB for each connected node", grown / NODES);
}

/// What a node hears that asks for its map.
async fn heard(machine: &Machine, server: &Server) -> warren_core::wire::control::MapResponse {
    machine.connect(server.address).await.map(&[]).await.next().await.unwrap()
}

#[tokio::test]
async fn a_node_that_was_deleted_or_expired_while_it_was_away_hears_of_it_when_it_asks_for_its_map() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (web, db) = (Machine::new("web"), Machine::new("db"));
    web.connect(server.address).await.join(&key).await;
    db.connect(server.address).await.join(&key).await;
    server.text(&["node", "delete", "web"]);
    server.text(&["node", "expire", "db"]);

    let now = warren_core::types::Timestamp::from_second(1_600_000_000).unwrap();
    let gone = heard(&web, &server).await;
    let node = gone.node.unwrap();
    assert_eq!((node.key, node.expired), (web.node.public(), true));
    assert!(node.key_expiry.unwrap() < now);
    assert!(gone.peers.is_empty() && gone.derp_map.is_none() && gone.packet_filters.is_empty(), "and nothing else");

    let node = heard(&db, &server).await.node.unwrap();
    assert_eq!((node.key, node.expired), (db.node.public(), true));
    assert!(node.key_expiry.is_some());

    // Whoever never was a node hears the same.
    assert!(heard(&Machine::new("stranger"), &server).await.node.unwrap().expired);
}

#[tokio::test]
async fn the_goodbye_is_held_so_that_a_client_does_not_ask_for_it_again_at_once_and_ends_with_the_server() {
    let mut server = Server::start(&[]);
    let machine = Machine::new("stranger");
    let mut map = machine.connect(server.address).await.map(&[]).await;
    assert!(map.next().await.unwrap().node.unwrap().expired);
    let is_held = tokio::time::timeout(std::time::Duration::from_secs(1), map.next()).await.is_err();
    assert!(is_held);
    assert!(server.end(Signal::SIGTERM));
    map.ended().await;
}
