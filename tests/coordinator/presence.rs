//! Who is there: routers that freeze, and machines that are two.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;
use warren_core::types::DiscoPublic;
use warren_core::wire::control::{Hostinfo, MapRequest};

use crate::node::{Machine, Map, eventually, get};
use crate::server::Server;

const SUBNET: &str = "10.77.0.0/24";
/// From a router's last sign of life to the next router, as promised.
const FAIL_OVER: Duration = Duration::from_secs(15);

/// A router whose client answers when it is asked whether it is there, until it is told to freeze. It never closes its
/// connection, and the kernel goes on answering for it: what a proxy in between would do too.
struct Router {
    machine: &'static Machine,
    freeze: tokio::sync::watch::Sender<bool>,
    answered: tokio::sync::watch::Receiver<u32>,
}

impl Router {
    async fn start(server: &Server, name: &'static str, key: &str) -> Self {
        let machine: &'static Machine = Box::leak(Box::new(Machine::new(name)));
        let node = machine.connect(server.address).await;
        node.join(key).await;
        let routable_ips = vec![SUBNET.parse().unwrap()];
        let hostinfo = Some(Hostinfo { hostname: name.to_owned(), routable_ips, ..Hostinfo::default() });
        let request = MapRequest { omit_peers: true, hostinfo, ..machine.map_request(&[]) };
        assert_eq!(node.post("/machine/map", &request).await.0, StatusCode::OK);
        server.text(&["route", "approve", name, SUBNET]);
        let request = MapRequest { stream: true, hostinfo: None, ..machine.map_request(&[]) };
        let mut map: Map = node.map_of(&request).await;
        let (freeze, mut frozen) = tokio::sync::watch::channel(false);
        let (count, answered) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = map.next() => message,
                    _ = frozen.wait_for(|frozen| *frozen) => break,
                };
                let Some(message) = message else { break };
                let Some(ping) = message.ping_request else { continue };
                let path = ping.url.strip_prefix("https://unused").unwrap().to_owned();
                assert_eq!(node.send(Method::HEAD, &path, Vec::new()).await.status(), StatusCode::OK);
                count.send_modify(|count| *count += 1);
            }
            // Neither the stream nor the connection is let go.
            std::future::pending::<()>().await;
            drop((map, node));
        });
        Self { machine, freeze, answered }
    }
}

fn primary(server: &Server) -> String {
    let routes = server.json(&["route", "list"]);
    let routes = routes.as_array().unwrap().iter().filter(|route| route["primary"] == true);
    routes.map(|route| route["node"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_freezes_with_its_connection_open_is_replaced_in_time() {
    let server = Server::start(&[]);
    let key = server.key(&["--reusable"]);
    let (mut one, mut two) = (Router::start(&server, "one", &key).await, Router::start(&server, "two", &key).await);
    for router in [&mut one, &mut two] {
        router.answered.wait_for(|count| *count > 0).await.unwrap();
    }
    assert_eq!(primary(&server), "one");
    one.freeze.send_replace(true);
    let begun = Instant::now();
    eventually("another routes", || primary(&server) == "two").await;
    assert!(begun.elapsed() < FAIL_OVER, "{:?}", begun.elapsed());
    assert!(server.has_logged("does not answer though its connection stands"));
    assert!(two.machine.name == "two" && !*two.freeze.borrow());
}

#[tokio::test]
async fn two_machines_with_one_key_are_named_to_the_operator_and_slowed() {
    let server = Server::start(&[]);
    let original = Machine::new("web");
    original.connect(server.address).await.join(&server.key(&[])).await;
    let copy = Machine {
        machine: original.machine.clone(),
        node: original.node.clone(),
        disco: DiscoPublic::from_bytes(rand::random()),
        ..Machine::new("web")
    };
    let (mut streams, mut answers) = (Vec::new(), Vec::new());
    for turn in 0..16 {
        let machine = if turn % 2 == 0 { &original } else { &copy };
        let node = machine.connect(server.address).await;
        let request = MapRequest { stream: true, ..machine.map_request(&[]) };
        let response = node.send(Method::POST, "/machine/map", serde_json::to_vec(&request).unwrap()).await;
        answers.push((response.status(), response.headers().get("retry-after").cloned()));
        streams.push((node, response));
    }
    let (status, after) = answers.last().unwrap();
    let put_off = answers.iter().filter(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS).count();
    assert!(put_off >= 4, "{answers:?}");
    assert!(*status == StatusCode::OK || after.as_ref().unwrap() == "60", "{answers:?}");
    assert!(server.has_logged("two machines use this node's key"));
    assert_eq!(server.json(&["node", "show", "web"])["two_machines"], true);
    assert!(server.text(&["node", "list"]).contains("on two machines"));
    let (status, health) = get(server.address, "/health").await;
    assert!(status == StatusCode::OK && health.contains("two machines use the key of the node web"), "{health}");
}
