//! Which node is connected, and whom TLS believes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use hyper_util::client::proxy::matcher::Matcher;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_agent::derp_io::{Connection, Dialler};
use warren_core::derp::{Client, ClientEvent};
use warren_core::types::NodePrivate;
use warren_core::wire::control::{DerpNode, DerpRegion};
use warren_shell::CertificatePin;

use crate::place::place;
use crate::server::Server;

fn node(address: SocketAddr) -> DerpNode {
    DerpNode {
        name: "a".to_owned(),
        host_name: "relay.test".to_owned(),
        ipv4: address.ip().to_string(),
        ipv6: "none".to_owned(),
        derp_port: address.port().into(),
        ..DerpNode::default()
    }
}

fn insecure(address: SocketAddr) -> DerpNode {
    DerpNode { insecure_for_tests: true, ..node(address) }
}

fn region(nodes: impl Into<Vec<DerpNode>>) -> DerpRegion {
    DerpRegion { nodes: nodes.into(), ..DerpRegion::default() }
}

fn dialler() -> Dialler {
    Dialler::new(&warren_shell::Dialler::new(None)).with_proxies(Matcher::builder().build())
}

/// Connects; again where the machine was too slow for the bounds of a connection.
async fn connected(dialler: &Dialler, region: &DerpRegion) -> Connection {
    loop {
        match dialler.connect(region).await {
            Ok(connection) => return connection,
            Err(error) => assert!(error.contains("within"), "{error}"),
        }
    }
}

async fn error(dialler: &Dialler, region: &DerpRegion) -> String {
    dialler.connect(region).await.err().unwrap()
}

/// A relay with a certificate that nobody vouches for, in files that stay until the directory goes.
fn relay_with_tls(directory: &Path) -> (Server, CertificatePin) {
    let made = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let pin = CertificatePin::of(&CertificateDer::from_pem_file(&cert).unwrap());
    let options = ["--open", "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    (Server::start(&options), pin)
}

/// A client of the relay protocol over a connection.
struct Member {
    client: Client,
    connection: Connection,
    bytes: Vec<u8>,
}

impl Member {
    async fn join(n: u8, connection: Connection) -> Self {
        let client = Client::new(NodePrivate::from_random([n; 32]), [n; 24], false, now());
        let bytes = connection.begun.to_vec();
        let mut member = Self { client, connection, bytes };
        assert_eq!(member.event().await, "Ready");
        // The relay knows us a moment after it says so.
        member.send(n, b"echo").await;
        assert_eq!(member.event().await, "echo");
        member
    }

    async fn send(&mut self, to: u8, packet: &[u8]) {
        self.client.send(&NodePrivate::from_random([to; 32]).public(), packet, now());
        self.write().await;
    }

    async fn write(&mut self) {
        let mut out = Vec::new();
        self.client.poll_transmit(&mut out);
        self.connection.stream.write_all(&out).await.unwrap();
        self.connection.stream.flush().await.unwrap();
    }

    /// The next event, a packet as its text.
    async fn event(&mut self) -> String {
        loop {
            let Some((taken, event)) = self.client.handle_bytes(&self.bytes, now()).unwrap() else {
                self.write().await;
                assert!(self.connection.stream.read_buf(&mut self.bytes).await.unwrap() > 0);
                continue;
            };
            let event = event.map(|event| match event {
                ClientEvent::Packet { payload, .. } => String::from_utf8_lossy(payload).into_owned(),
                other => format!("{other:?}"),
            });
            self.bytes.drain(..taken);
            if let Some(event) = event {
                return event;
            }
            self.write().await;
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a test's own clock")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn two_nodes_exchange_packets_by_a_relay_that_is_believed_for_its_certificates_hash() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, pin) = relay_with_tls(directory.path());
    let pinned = DerpNode { cert_name: pin.to_string(), ..node(relay.address) };
    let region = region([pinned]);
    let mut alice = Member::join(1, connected(&dialler(), &region).await).await;
    let mut bob = Member::join(2, connected(&dialler(), &region).await).await;
    assert_eq!(alice.connection.local, Some(relay.address.ip()));

    alice.send(2, b"to bob").await;
    assert_eq!(bob.event().await, "to bob");
    let large = "x".repeat(60_000);
    bob.send(1, large.as_bytes()).await;
    assert_eq!(alice.event().await, large);
}

#[tokio::test]
async fn a_certificate_that_the_map_does_not_vouch_for_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, pin) = relay_with_tls(directory.path());
    let unknown = error(&dialler(), &region([node(relay.address)])).await;
    assert!(unknown.contains("relay a (relay.test): TLS:") && unknown.contains("certificate"), "{unknown}");
    let last = pin.to_string().replace(':', ":0").get(..75).unwrap().to_owned();
    let other = error(&dialler(), &region([DerpNode { cert_name: last, ..node(relay.address) }])).await;
    assert!(other.contains("TLS:"), "{other}");
}

#[tokio::test]
async fn only_an_insecure_node_may_speak_without_tls_or_with_any_certificate() {
    let plain = Server::start(&["--open"]);
    let refused = error(&dialler(), &region([node(plain.address)])).await;
    assert!(refused.contains("TLS:"), "{refused}");
    Member::join(1, connected(&dialler(), &region([insecure(plain.address)])).await).await;

    let directory = tempfile::tempdir().unwrap();
    let (relay, _) = relay_with_tls(directory.path());
    Member::join(1, connected(&dialler(), &region([insecure(relay.address)])).await).await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_passed_over_for_the_next() {
    let relay = Server::start(&["--open"]);
    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = place();
    let stun_only = DerpNode { stun_only: true, ..insecure(relay.address) };
    let no_address = DerpNode { ipv4: "none".to_owned(), ..insecure(relay.address) };
    let second = DerpNode { name: "b".to_owned(), ..insecure(relay.address) };

    let broken = region([stun_only.clone(), no_address.clone(), insecure(closed)]);
    let errors = error(&dialler(), &broken).await;
    assert!(errors.contains("has no address; relay a") && errors.contains("Connection refused"), "{errors}");
    let connection = connected(&dialler(), &region([stun_only, no_address, insecure(closed), second])).await;
    assert_eq!(connection.node.name, "b");
    assert_eq!(error(&dialler(), &region([])).await, "the region has no relay");

    let errors = error(&dialler(), &region([insecure(silent.local_addr().unwrap())])).await;
    assert!(errors.contains("not done within 8 s"), "{errors}");
}

#[tokio::test]
async fn an_ipv6_address_and_a_name_lead_to_a_relay() {
    let relay = Server::start(&["--open"]);
    let name = DerpNode { host_name: "localhost".to_owned(), ipv4: String::new(), ..insecure(relay.address) };
    Member::join(1, connected(&dialler(), &region([name])).await).await;
    let literal = DerpNode { host_name: relay.address.ip().to_string(), ..insecure(relay.address) };
    Member::join(2, connected(&dialler(), &region([literal])).await).await;
    // Both families are given, and nothing listens on the other.
    let both = DerpNode { ipv6: "::1".to_owned(), ..insecure(relay.address) };
    Member::join(3, connected(&dialler(), &region([both])).await).await;
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel_with_the_name_and_credentials() {
    let relay = Server::start(&["--open"]);
    let (proxy, asked) = proxy(relay.address);
    let through = |rule: &str| Matcher::builder().https(format!("http://user:secret@{proxy}")).no(rule).build();
    let dialler = Dialler::new(&warren_shell::Dialler::new(None)).with_proxies(through(""));
    let node = DerpNode { derp_port: 443, ..insecure(relay.address) };

    Member::join(1, connected(&dialler, &region([node.clone()])).await).await;

    let head = asked.recv().unwrap();
    assert!(head.starts_with("CONNECT relay.test:443 HTTP/1.1"), "{head}");
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{head}");
    let spared = Dialler::new(&warren_shell::Dialler::new(None)).with_proxies(through("relay.test"));
    assert!(!error(&spared, &region([node])).await.contains("proxy"));
}

/// A proxy that tunnels to one place whatever it is asked for, and what it was asked.
fn proxy(to: SocketAddr) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, relay) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let head: Vec<String> = BufReader::new(client.try_clone().unwrap())
                .lines()
                .map(Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            let _ = told.send(head.join("\n"));
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let ways = [(client.try_clone(), relay.try_clone()), (relay.try_clone(), client.try_clone())];
            for (from, to) in ways.map(|(from, to)| (from.unwrap(), to.unwrap())) {
                std::thread::spawn(move || std::io::copy(&mut &from, &mut &to));
            }
        }
    });
    (address, asked)
}
