//! The relay as a program: a real process, used over the real protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod acme;
mod beside;
mod client;
#[allow(dead_code, reason = "the coordinator's own tests use the rest")]
#[path = "../coordinator/server.rs"]
mod coordinator;
mod mesh;
#[path = "../common/place.rs"]
mod place;
#[path = "../common/program.rs"]
mod program;
mod reload;
mod server;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Client, Stream, get, open};
use nix::sys::signal::Signal;
use place::place;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use server::{PATIENCE, Server, program};
use warren_core::wire::derp::Frame;
use warren_core::wire::stun::{self, TransactionId};

#[test]
fn two_clients_exchange_packets_and_a_rowdy_third_does_not_disturb_them() {
    let server = Server::start(&["--open"]);
    let (mut one, mut two) = (Client::joined(server.address, 2), Client::joined(server.address, 3));
    let mut rowdy = Client::joined(server.address, 4);
    rowdy.io.write_all(&[0xff; 4096]).unwrap();
    let mut stranger = TcpStream::connect(server.address).unwrap();
    stranger.write_all(&[0x00, 0x16, 0x03, 0xff, b'\r', b'\n', b'\r', b'\n']).unwrap();
    for packet in [&b"there"[..], &[7; 1400], &[8; 60_000]] {
        one.say(Frame::SendPacket { to: two.key.public(), packet });
        let (kind, body) = two.frame().unwrap();
        assert_eq!(Frame::decode(kind, &body), Ok(Frame::RecvPacket { from: one.key.public(), packet }));
    }
    assert_eq!(rowdy.frame(), None);
}

#[test]
fn beyond_the_most_connections_one_waits_until_another_leaves() {
    let server = Server::start(&["--open", "--max-connections", "1"]);
    let first = Client::joined(server.address, 2);
    let mut second = TcpStream::connect(server.address).unwrap();
    second.write_all(b"GET /derp/probe HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let early = second.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock));
    drop(first);
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 12];
    second.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn the_small_questions_are_answered() {
    let server = Server::start(&["--open"]);
    for path in ["/derp/probe", "/derp/latency-check"] {
        let head = get(server.address, "GET", path, "");
        assert!(head.starts_with("http/1.1 200") && head.contains("access-control-allow-origin: *"), "{head}");
        assert!(get(server.address, "HEAD", path, "").starts_with("http/1.1 200"));
        assert!(get(server.address, "POST", path, "").starts_with("http/1.1 405"));
    }
    let head = get(server.address, "GET", "/generate_204", "X-Tailscale-Challenge: ts.example\r\n");
    assert!(head.starts_with("http/1.1 204") && head.contains("x-tailscale-response: response ts.example"), "{head}");
    let head = get(server.address, "GET", "/generate_204", "X-Tailscale-Challenge: <b>\r\n");
    assert!(head.starts_with("http/1.1 204") && !head.contains("x-tailscale-response"), "{head}");
    assert!(get(server.address, "GET", "/derp", "").starts_with("http/1.1 426"));
    assert!(get(server.address, "GET", "/derp", "Upgrade: websocket\r\n").starts_with("http/1.1 426"));
    for path in ["/", "/robots.txt", "/bootstrap-dns"] {
        assert!(get(server.address, "GET", path, "").starts_with("http/1.1 200"), "{path}");
    }
    assert!(get(server.address, "GET", "/elsewhere", "").starts_with("http/1.1 404"));
}

#[test]
fn the_upgrade_names_version_and_key_and_may_be_asked_for_by_post() {
    let server = Server::start(&["--open"]);
    let upgrade = "Connection: Upgrade\r\nUpgrade: DERP\r\nContent-Length: 0\r\n";
    assert!(get(server.address, "POST", "/derp", upgrade).starts_with("http/1.1 101"));
    assert!(get(server.address, "PUT", "/derp", upgrade).starts_with("http/1.1 426"));
    let client = Client::connect(server.address, 2);
    let key = data_encoding::HEXLOWER.encode(client.server.as_bytes());
    for line in ["upgrade: derp", "connection: upgrade", "derp-version: 2", &format!("derp-public-key: {key}")] {
        assert!(client.head.lines().any(|found| found == line), "{line} in {}", client.head);
    }
}

#[test]
fn https_is_served_from_given_files() {
    let (cert, key) = localhost();
    let server = Server::start(&["--open", "--tls-cert", &cert, "--tls-key", &key]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = rustls::StreamOwned::new(tls, open(server.address));
    let mut client = Client::over(Box::new(stream), 2).admitted();
    client.say(Frame::Ping(*b"12345678"));
    let (kind, body) = client.frame().unwrap();
    assert_eq!(Frame::decode(kind, &body), Ok(Frame::Pong(*b"12345678")));
}

#[test]
fn stun_says_where_the_question_came_from() {
    let server = Server::start(&["--open"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&stun::request(TransactionId([7; 12])), server.stun.unwrap()).unwrap();
    let mut answer = [0; 100];
    let (length, _) = socket.recv_from(&mut answer).unwrap();
    let expected = (TransactionId([7; 12]), socket.local_addr().unwrap());
    assert_eq!(stun::read_response(&answer[..length]), Ok(expected));
    assert_eq!(Server::start(&["--open", "--stun-listen", "none"]).stun, None);
}

#[test]
fn stun_on_all_addresses_is_answered_in_both_families() {
    let server = Server::start(&["--open", "--stun-listen", "[::]:0"]);
    let port = server.stun.unwrap().port();
    for host in ["127.0.0.1", "::1"].map(|host| host.parse::<IpAddr>().unwrap()) {
        let Ok(socket) = UdpSocket::bind((host, 0)) else {
            eprintln!("skipped: no {host} here");
            continue;
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&stun::request(TransactionId([7; 12])), (host, port)).unwrap();
        let mut answer = [0; 100];
        let (length, _) = socket.recv_from(&mut answer).unwrap();
        // IPv4 is told as IPv4, although it came through a socket of IPv6.
        assert_eq!(stun::read_response(&answer[..length]), Ok((TransactionId([7; 12]), socket.local_addr().unwrap())));
    }
}

#[test]
fn the_verifier_is_asked_and_its_yes_admits() {
    let (address, asked) = verifier("200 OK", r#"{"Allow":true}"#);
    let server = Server::start(&["--verify-url", &format!("http://{address}/verify")]);
    let client = Client::joined(server.address, 2);
    let request = asked.join().unwrap().unwrap();
    assert!(request.starts_with("POST /verify HTTP/1.1\r\n"), "{request}");
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    let expected = serde_json::json!({ "NodePublic": client.key.public(), "Source": "127.0.0.1" });
    assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap(), expected);
}

#[test]
fn whatever_is_not_a_yes_refuses() {
    for (status, body) in [
        ("200 OK", r#"{"Allow":false}"#),
        ("200 OK", "{}"),
        ("200 OK", "yes"),
        ("500 Internal Server Error", r#"{"Allow":true}"#),
    ] {
        let (address, asked) = verifier(status, body);
        let server = Server::start(&["--verify-url", &format!("http://{address}/")]);
        assert_eq!(Client::connect(server.address, 2).frame(), None, "{status} {body}");
        asked.join().unwrap().unwrap();
    }
}

#[test]
fn a_verifier_out_of_reach_refuses() {
    let address = place();
    let server = Server::start(&["--verify-url", &format!("http://{address}/verify")]);
    assert_eq!(Client::connect(server.address, 2).frame(), None);
    assert!(get(server.address, "GET", "/derp/probe", "").starts_with("http/1.1 200"));
}

#[test]
fn who_was_admitted_stays_while_the_verifier_is_down_and_goes_when_it_says_no() {
    let verifier = Verifier::start();
    let server = Server::start(&["--verify-url", &verifier.url(), "--verify-again", "1"]);
    let mut client = Client::joined(server.address, 2);

    // Down, and asked again meanwhile: the client stays, and may come back; others may not.
    verifier.says(Verdict::Nothing);
    verifier.wait_for_questions(2);
    assert!(client.answers().is_some());
    let _again = Client::joined(server.address, 2);
    assert_eq!(Client::connect(server.address, 3).frame(), None);

    verifier.says(Verdict::No);
    while client.frame_or_end().is_some() {}
    assert_eq!(Client::connect(server.address, 2).frame_or_end(), None);
}

#[test]
fn an_operator_may_admit_everybody_while_the_verifier_is_down() {
    let address = place();
    let server = Server::start(&["--verify-url", &format!("http://{address}/verify"), "--verify-fail-open"]);
    assert!(Client::joined(server.address, 2).answers().is_some());
}

#[test]
fn over_https_the_verifier_is_believed_only_with_a_certificate_that_is_trusted() {
    let (cert, _) = localhost();
    for (roots, admitted) in [(Some(cert.as_str()), true), (None, false)] {
        let (address, asked) = verifier_over("200 OK", r#"{"Allow":true}"#, tls_server);
        let url = format!("https://localhost:{}/verify", address.port());
        let server = Server::start_trusting(roots, &["--verify-url", &url]);
        assert_eq!(Client::connect(server.address, 2).frame().is_some(), admitted, "{roots:?}");
        assert_eq!(asked.join().unwrap().is_ok(), admitted, "{roots:?}");
    }
}

#[test]
fn clients_hear_that_the_relay_restarts_and_it_comes_back_with_its_key() {
    let mut server = Server::start(&["--open"]);
    let mut client = Client::joined(server.address, 2);
    server.signal(Signal::SIGTERM);
    let (kind, body) = client.frame().unwrap();
    assert!(matches!(Frame::decode(kind, &body), Ok(Frame::Restarting { .. })), "{kind:?}");
    assert!(server.wait().success());
    let file = server.state_dir().join("relay.key");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    server.restart();
    assert_eq!(Client::joined(server.address, 2).server, client.server);
}

#[test]
fn a_command_line_that_leaves_a_choice_open_ends_with_status_2_and_one_line() {
    for (arguments, word) in [
        (&["--plain-http"][..], "--open"),
        (&["--plain-http", "--open", "--verify-url", "http://localhost/"], "exclude"),
        (&["--open"], "--plain-http"),
        (&["--open", "--plain-http", "--log", "=loud="], "--log"),
    ] {
        for check in [&[][..], &["--check"]] {
            let output = program(&[arguments, check].concat());
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{arguments:?}: {text}");
            assert!(text.contains(word), "{text}");
        }
    }
    assert!(program(&["--open", "--plain-http", "--check"]).status.success());
}

/// What a verifier says from here on.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Yes,
    No,
    /// It closes the connection.
    Nothing,
}

/// A verifier that answers many questions.
struct Verifier {
    address: SocketAddr,
    says: Arc<Mutex<Verdict>>,
    questions: Arc<AtomicUsize>,
}

impl Verifier {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (says, questions) = (Arc::new(Mutex::new(Verdict::Yes)), Arc::new(AtomicUsize::new(0)));
        let (verdict, count) = (Arc::clone(&says), Arc::clone(&questions));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let verdict = *verdict.lock().unwrap();
                if verdict != Verdict::Nothing {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request);
                    let body = format!(r#"{{"Allow":{}}}"#, verdict == Verdict::Yes);
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                }
            }
        });
        Self { address, says, questions }
    }

    fn url(&self) -> String {
        format!("http://{}/verify", self.address)
    }

    fn says(&self, verdict: Verdict) {
        *self.says.lock().unwrap() = verdict;
    }

    /// Waits until it was asked so often from here on.
    fn wait_for_questions(&self, number: usize) {
        let until = self.questions.load(Ordering::Relaxed) + number;
        while self.questions.load(Ordering::Relaxed) < until {
            std::thread::yield_now();
        }
    }
}

type Asked = std::thread::JoinHandle<std::io::Result<String>>;

/// Answers one question and gives it back.
fn verifier(status: &'static str, body: &'static str) -> (SocketAddr, Asked) {
    verifier_over(status, body, |stream| Box::new(stream))
}

fn verifier_over(
    status: &'static str,
    body: &'static str,
    cover: impl FnOnce(TcpStream) -> Box<dyn Stream> + Send + 'static,
) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = cover(stream);
        let mut request = Vec::new();
        // The body is one JSON object without another in it.
        while !request.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.extend(byte);
        }
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        stream.flush()?;
        Ok(String::from_utf8(request).unwrap())
    });
    (address, asked)
}

/// The server's side of TLS, with the certificate of `localhost`.
fn tls_server(stream: TcpStream) -> Box<dyn Stream> {
    let (cert, key) = localhost();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    Box::new(rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::new(config)).unwrap(), stream))
}

/// The files of a certificate for `localhost` and its key.
pub(crate) fn localhost() -> (String, String) {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/coordinator/data");
    (format!("{data}/localhost.crt"), format!("{data}/localhost.key"))
}
