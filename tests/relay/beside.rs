//! What stands beside the relay's own port: WebSockets, metrics, the port of captive portals.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use warren_core::types::NodePrivate;
use warren_core::wire::derp::{ClientInfo, Frame, HEADER_LEN, VERSION, seal_client_info};

use crate::client::{Client, get, get_body};
use crate::place::place;
use crate::server::Server;

fn bytes(frame: Frame<'_>) -> Message {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    Message::binary(bytes)
}

#[tokio::test]
async fn a_client_in_a_browser_comes_by_websocket() {
    let server = Server::start(&["--open"]);
    let mut request = format!("ws://{}/derp", server.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "derp".parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "derp");
    let key = NodePrivate::from_random([2; 32]);
    let first = socket.next().await.unwrap().unwrap().into_data();
    let Ok(Frame::ServerKey(relay)) =
        Frame::decode(warren_core::wire::derp::FrameType::SERVER_KEY, &first[HEADER_LEN..])
    else {
        panic!("the relay's first frame is its key")
    };
    let info = ClientInfo { version: VERSION, ..ClientInfo::default() };
    let sealed = seal_client_info(&key, &relay, [2; 24], &info).unwrap();
    socket.send(bytes(Frame::ClientInfo { client: key.public(), sealed: &sealed })).await.unwrap();
    socket.next().await.unwrap().unwrap();
    socket.send(bytes(Frame::Ping(*b"12345678"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), bytes(Frame::Pong(*b"12345678")));
}

#[test]
fn metrics_count_without_names() {
    let metrics = place();
    let server = Server::start(&["--open", "--metrics", &metrics.to_string()]);
    let (mut one, mut two) = (Client::joined(server.address, 2), Client::joined(server.address, 3));
    one.say(Frame::SendPacket { to: two.key.public(), packet: &[7; 100] });
    two.packet();
    let text = get_body(metrics, "/metrics");
    for line in
        ["warren_relay_connections 2", "warren_relay_packets_sent_total 1", "warren_relay_bytes_received_total 100"]
    {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(!text.contains("127.") && !text.contains("nodekey"), "{text}");
    assert!(get(metrics, "GET", "/metrics", "X: y\r\n").starts_with("http/1.1 403"), "another name than an address");
}

#[test]
fn port_80_answers_the_one_question_it_is_there_for() {
    let portal = place();
    let _server = Server::start(&["--open", "--http-listen", &portal.to_string()]);
    let head = get(portal, "GET", "/generate_204", "X-Tailscale-Challenge: ts.example\r\n");
    assert!(head.starts_with("http/1.1 204") && head.contains("x-tailscale-response: response ts.example"), "{head}");
    let upgrade = "Connection: Upgrade\r\nUpgrade: derp\r\n";
    assert!(get(portal, "GET", "/derp", upgrade).starts_with("http/1.1 404"));
}
