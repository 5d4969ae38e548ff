//! Against a small coordinator on loopback, which records what it is asked and answers what the test wants.

use std::convert::Infallible;
use std::pin::pin;

use data_encoding::BASE64;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use warren_core::types::Fingerprint;
use warren_core::wire::control::{MapRequest, OverTlsPublicKeys, ServerKey};
use warren_core::wire::noise::{EarlyNoise, Ephemeral, ServerHandshake, encode_early};
use warren_shell::NoiseStream;

const TLS_CERTIFICATE: &[u8] = include_bytes!("../../../tests/coordinator/data/localhost.crt");
const TLS_KEY: &[u8] = include_bytes!("../../../tests/coordinator/data/localhost.key");

type HttpReply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the coordinator was asked: method, path, load-balancing keys, body.
type Asked = (String, String, usize, Vec<u8>);

/// What the coordinator does.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Proper,
    /// `GET /key` names no key.
    Keyless,
    /// Answers the upgrade with 403 and a reason.
    Refusing,
    /// Answers 429.
    Busy,
    /// Ends the stream after its first piece.
    CutsShort,
    /// Takes no second request on a connection, as one that restarts.
    GoesAway,
    /// Says within the channel that it goes by another key from here on.
    Rotates,
}

/// What is told of requests.
struct Told(mpsc::Receiver<Received>);

impl Told {
    async fn recv(&mut self) -> Option<Received> {
        loop {
            match self.0.recv().await {
                Some(Received::Connected(local)) => assert!(local.is_loopback()),
                other => return other,
            }
        }
    }
}

struct Coordinator {
    server: ServerUrl,
    asked: mpsc::UnboundedReceiver<Asked>,
    _task: JoinSet<()>,
}

impl Coordinator {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (record, asked) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(tcp, manner, record.clone()));
            }
        });
        Self { server, asked, _task: task }
    }

    /// One that speaks TLS, with a certificate for `localhost` that it signed itself.
    async fn start_with_tls() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let key = PrivateKeyDer::from_pem_slice(TLS_KEY).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate()], key)
            .unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (record, asked) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                if let Ok(stream) = tls.accept(tcp).await {
                    tokio::spawn(serve(stream, Manner::Proper, record.clone()));
                }
            }
        });
        Self { server, asked, _task: task }
    }

    fn config(&self) -> IoConfig {
        IoConfig::new(self.server.clone(), MachinePrivate::from_random([1; 32]))
    }

    fn connect_with(&self, pin: Pin) -> (mpsc::Sender<Transmit>, Told) {
        let (transmits, received) = spawn(self.pinned(pin));
        (transmits, Told(received))
    }

    fn pinned(&self, pin: Pin) -> IoConfig {
        IoConfig { pin, ..self.config() }
    }

    fn connect(&self) -> (mpsc::Sender<Transmit>, Told) {
        let (transmits, received) = spawn(self.config());
        (transmits, Told(received))
    }

    async fn asked(&mut self) -> Asked {
        self.asked.recv().await.unwrap()
    }
}

fn key() -> MachinePrivate {
    MachinePrivate::from_random([2; 32])
}

/// The key after it.
fn successor() -> MachinePublic {
    MachinePublic::from_bytes([4; 32])
}

const fn known(key: MachinePublic) -> Pin {
    Pin::Known { key, vouched: false }
}

/// What comes next of the requests; which key the coordinator holds is told at any moment.
async fn next(received: &mut Told) -> Option<Received> {
    loop {
        match received.recv().await {
            Some(Received::ServerKey(_)) => {}
            other => return other,
        }
    }
}

/// The next word on the coordinator's key.
async fn server_key(received: &mut Told) -> MachinePublic {
    loop {
        if let Received::ServerKey(key) = received.recv().await.unwrap() {
            return key;
        }
    }
}

fn reply(status: u16, body: impl Into<Bytes>) -> HttpReply {
    Response::builder().status(status).body(Full::new(body.into()).boxed_unsync()).unwrap()
}

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(TLS_CERTIFICATE).unwrap()
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    manner: Manner,
    record: mpsc::UnboundedSender<Asked>,
) {
    let service = service_fn(move |request| outer(request, manner, record.clone()));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}

/// HTTP/1.1, outside the secure channel.
async fn outer(
    request: Request<Incoming>,
    manner: Manner,
    record: mpsc::UnboundedSender<Asked>,
) -> Result<HttpReply, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/key" {
        let public_key = if manner == Manner::Keyless { Default::default() } else { key().public() };
        let keys = OverTlsPublicKeys { public_key, ..OverTlsPublicKeys::default() };
        return Ok(reply(200, serde_json::to_vec(&keys).unwrap()));
    }
    if path != "/ts2021" {
        record.send((request.method().to_string(), path, 0, Vec::new())).unwrap();
        return Ok(reply(200, ""));
    }
    if manner == Manner::Refusing {
        return Ok(reply(403, "come back with a newer version\n"));
    }
    let initiation = BASE64.decode(request.headers()["x-tailscale-handshake"].as_bytes()).unwrap();
    let Ok(handshake) = ServerHandshake::read(&key(), &initiation, Ephemeral::from_random([3; 32])) else {
        return Ok(reply(400, "not for us\n"));
    };
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let mut noise = NoiseStream::accept(TokioIo::new(upgraded), handshake).await.unwrap();
        noise.write_all(&encode_early(&EarlyNoise::default()).unwrap()).await.unwrap();
        let asked = Arc::new(Notify::new());
        let service = service_fn({
            let asked = Arc::clone(&asked);
            move |request| {
                asked.notify_one();
                inner(request, manner, record.clone())
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let mut connection = pin!(server.serve_connection(TokioIo::new(noise), service));
        if manner == Manner::GoesAway {
            tokio::select! {
                _ = connection.as_mut() => {}
                () = asked.notified() => connection.as_mut().graceful_shutdown(),
            }
        }
        let _ = connection.await;
    });
    let switch = Response::builder()
        .status(101)
        .header("upgrade", "tailscale-control-protocol")
        .header("connection", "upgrade")
        .body(Full::default().boxed_unsync());
    Ok(switch.unwrap())
}

/// HTTP/2, inside.
async fn inner(
    request: Request<Incoming>,
    manner: Manner,
    record: mpsc::UnboundedSender<Asked>,
) -> Result<HttpReply, Infallible> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    if path == ServerKey::PATH {
        let said = ServerKey { key: if manner == Manner::Rotates { successor() } else { key().public() } };
        return Ok(reply(200, serde_json::to_vec(&said).unwrap()));
    }
    let keys = request.headers().get_all("ts-lb").iter().count();
    let body = request.into_body().collect().await.unwrap().to_bytes().to_vec();
    record.send((method, path.clone(), keys, body.clone())).unwrap();

    if manner == Manner::Busy {
        let busy = Response::builder().status(429).header("retry-after", "7");
        return Ok(busy.body(Full::from("later").boxed_unsync()).unwrap());
    }
    let streams = path == "/machine/map" && serde_json::from_slice::<MapRequest>(&body).unwrap().stream;
    if !streams {
        return Ok(reply(200, "{}"));
    }
    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"piece")))]);
    let body = if manner == Manner::CutsShort {
        StreamBody::new(first).boxed_unsync()
    } else {
        StreamBody::new(futures_util::StreamExt::chain(first, futures_util::stream::pending())).boxed_unsync()
    };
    Ok(Response::new(body))
}

fn register_with(id: u64) -> Transmit {
    let node_key = NodePublic::from_bytes([8; 32]);
    let request = RegisterRequest { node_key, old_node_key: node_key, ..RegisterRequest::default() };
    Transmit::Register { id: RequestId(id), request: Box::new(request) }
}

fn stream(id: u64) -> Transmit {
    Transmit::Stream { id: RequestId(id), request: Box::new(MapRequest { stream: true, ..MapRequest::default() }) }
}

fn closed(received: Received) -> String {
    match received {
        Received::Closed(_, reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_share_one_connection_and_each_gets_its_answer() {
    let mut coordinator = Coordinator::start(Manner::Proper).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(register_with(1)).await.unwrap();
    let (method, path, keys, body) = coordinator.asked().await;
    assert_eq!((&*method, &*path, keys), ("POST", "/machine/register", 2));
    assert!(serde_json::from_slice::<RegisterRequest>(&body).is_ok());
    let Some(Received::Reply(RequestId(1), answer)) = next(&mut received).await else { panic!("no answer") };
    assert_eq!(answer, Reply { status: 200, retry_after: None, body: b"{}".to_vec() });

    transmits.send(stream(2)).await.unwrap();
    assert_eq!(coordinator.asked().await.1, "/machine/map");
    assert!(matches!(next(&mut received).await, Some(Received::Opened(RequestId(2)))));
    let Some(Received::Bytes(RequestId(2), bytes)) = next(&mut received).await else { panic!("no bytes") };
    assert_eq!(bytes, b"piece");
}

#[tokio::test]
async fn a_stream_that_the_coordinator_ends_is_told() {
    let coordinator = Coordinator::start(Manner::CutsShort).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(stream(2)).await.unwrap();
    next(&mut received).await;
    next(&mut received).await;
    let reason = closed(next(&mut received).await.unwrap());
    assert_eq!(reason, "POST /machine/map: the coordinator ended the stream");
}

#[tokio::test]
async fn a_cancelled_request_says_nothing_more_and_the_connection_stays() {
    let mut coordinator = Coordinator::start(Manner::Proper).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(stream(1)).await.unwrap();
    next(&mut received).await;
    next(&mut received).await;
    transmits.send(Transmit::Cancel(RequestId(1))).await.unwrap();
    transmits.send(register_with(2)).await.unwrap();
    assert!(matches!(next(&mut received).await, Some(Received::Reply(RequestId(2), _))));
    coordinator.asked().await;
    coordinator.asked().await;
    assert!(coordinator.asked.is_empty());
}

#[tokio::test]
async fn after_a_disconnect_the_next_request_dials_again() {
    let coordinator = Coordinator::start(Manner::Proper).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(stream(1)).await.unwrap();
    next(&mut received).await;
    next(&mut received).await;
    transmits.send(Transmit::Disconnect).await.unwrap();
    transmits.send(register_with(2)).await.unwrap();
    let mut answered = false;
    while !answered {
        match next(&mut received).await.unwrap() {
            Received::Reply(RequestId(2), _) => answered = true,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_coordinator_that_closed_the_connection_is_dialled_again() {
    let coordinator = Coordinator::start(Manner::GoesAway).await;
    let (transmits, mut received) = coordinator.connect();
    let mut answers = 0;
    // A request that meets the farewell on its way is lost, and the session asks again.
    for id in 1..=20 {
        transmits.send(register_with(id)).await.unwrap();
        answers += usize::from(
            matches!(next(&mut received).await, Some(Received::Reply(RequestId(answered), _)) if answered == id),
        );
    }
    assert!(answers >= 10, "{answers} of 20");
}

#[tokio::test]
async fn the_time_that_a_busy_coordinator_asks_for_is_handed_in() {
    let coordinator = Coordinator::start(Manner::Busy).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(stream(1)).await.unwrap();
    let Some(Received::Reply(_, answer)) = next(&mut received).await else { panic!("no answer") };
    assert_eq!((answer.status, answer.retry_after), (429, Some(Duration::from_secs(7))));
    assert_eq!(answer.body, b"later");
}

#[tokio::test]
async fn a_failure_names_the_step_and_the_address() {
    for (manner, step, why) in [
        (Manner::Keyless, "GET http://127.0.0.1:", "/key: the coordinator names no key; it may be too old"),
        (
            Manner::Refusing,
            "POST http://127.0.0.1:",
            "/ts2021: answered 403 Forbidden: \"come back with a newer version\"",
        ),
    ] {
        let coordinator = Coordinator::start(manner).await;
        let (transmits, mut received) = coordinator.connect();
        transmits.send(register_with(1)).await.unwrap();
        let reason = closed(next(&mut received).await.unwrap());
        assert!(reason.starts_with(step) && reason.ends_with(why), "{reason}");
    }
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_told_for_every_request_that_waited() {
    // Not a port that was opened and closed: a child that is being started could hold it open still.
    let server = "http://127.0.0.1:9".parse().unwrap();
    let (transmits, received) = spawn(IoConfig::new(server, MachinePrivate::from_random([1; 32])));
    let mut received = Told(received);
    transmits.send(register_with(1)).await.unwrap();
    transmits.send(register_with(2)).await.unwrap();
    for _ in 0..2 {
        let reason = closed(next(&mut received).await.unwrap());
        assert!(reason.starts_with("connect to 127.0.0.1 port 9: ") && reason.contains("refused"), "{reason}");
    }
}

#[tokio::test]
async fn a_ping_is_a_head_request_beside_the_channel_or_inside_it() {
    let mut coordinator = Coordinator::start(Manner::Proper).await;
    let (transmits, mut received) = coordinator.connect();
    let url = format!("{}/machine/ping-response?id=1", coordinator.server);
    transmits.send(Transmit::Ping { url: url.clone(), over_noise: false }).await.unwrap();
    assert_eq!(coordinator.asked().await, ("HEAD".to_owned(), "/machine/ping-response".to_owned(), 0, Vec::new()));

    transmits.send(register_with(1)).await.unwrap();
    next(&mut received).await;
    coordinator.asked().await;
    transmits.send(Transmit::Ping { url, over_noise: true }).await.unwrap();
    assert_eq!(coordinator.asked().await.0, "HEAD");
}

#[tokio::test]
async fn the_key_that_was_met_first_is_told_and_is_the_only_one_from_then_on() {
    let coordinator = Coordinator::start(Manner::Proper).await;
    let (transmits, mut received) = coordinator.connect();
    transmits.send(register_with(1)).await.unwrap();
    assert_eq!(server_key(&mut received).await, key().public());
}

#[tokio::test]
async fn a_server_with_another_key_is_told_nothing_at_all() {
    let other = MachinePublic::from_bytes([5; 32]);
    for pin in [known(other), Pin::Told(Fingerprint::of(&other))] {
        let mut coordinator = Coordinator::start(Manner::Proper).await;
        let (transmits, mut received) = coordinator.connect_with(pin);
        for id in 1..=2 {
            transmits.send(register_with(id)).await.unwrap();
            let answer = received.recv().await.unwrap();
            assert!(matches!(answer, Received::Stranger(RequestId(of), found) if of == id && found == key().public()));
        }
        assert!(coordinator.asked.try_recv().is_err(), "it was asked something");
    }
}

#[tokio::test]
async fn the_known_key_and_the_one_that_a_person_said_are_let_by() {
    for pin in [known(key().public()), Pin::Told(Fingerprint::of(&key().public()))] {
        // The known key is not asked for.
        let manner = if pin.key().is_some() { Manner::Keyless } else { Manner::Proper };
        let coordinator = Coordinator::start(manner).await;
        let (transmits, mut received) = coordinator.connect_with(pin);
        transmits.send(register_with(1)).await.unwrap();
        assert!(matches!(next(&mut received).await, Some(Received::Reply(RequestId(1), _))));
    }
}

#[tokio::test]
async fn a_key_announced_under_the_known_one_takes_its_place() {
    let coordinator = Coordinator::start(Manner::Rotates).await;
    let (transmits, mut received) = coordinator.connect_with(known(key().public()));
    transmits.send(register_with(1)).await.unwrap();
    assert_eq!(server_key(&mut received).await, key().public());
    assert_eq!(server_key(&mut received).await, successor());

    // The next connection goes to the new key alone, which nobody holds here.
    let gone = async {
        loop {
            transmits.send(Transmit::Disconnect).await.unwrap();
            transmits.send(register_with(2)).await.unwrap();
            if let Some(Received::Stranger(_, found)) = next(&mut received).await {
                return found;
            }
        }
    };
    assert_eq!(gone.await, key().public());
}

#[tokio::test]
async fn over_https_the_certificate_must_be_one_that_this_system_trusts() {
    let mut coordinator = Coordinator::start_with_tls().await;
    let stranger = Dialler::new(coordinator.config());
    let Some(Fault::Failed(reason)) = stranger.connect(&Pin::FirstUse).await.err() else { panic!("connected") };
    assert!(reason.contains("TLS with localhost:") && reason.contains("certificate"), "{reason}");

    let mut trusting = Dialler::new(coordinator.config());
    trusting.roots = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate()).unwrap();
        roots
    };
    let (connection, _) = trusting.connect(&Pin::FirstUse).await.unwrap();
    connection.head(&format!("{}/machine/whoami", coordinator.server)).await.unwrap();
    assert_eq!(coordinator.asked().await.1, "/machine/whoami");
}

#[tokio::test]
async fn over_https_any_certificate_will_do_where_a_person_said_the_key() {
    let mut coordinator = Coordinator::start_with_tls().await;
    let ours = Pin::Told(Fingerprint::of(&key().public()));
    let told = Dialler::new(coordinator.pinned(ours.clone()));
    let (connection, _) = told.connect(&ours).await.unwrap();
    connection.head(&format!("{}/machine/whoami", coordinator.server)).await.unwrap();
    assert_eq!(coordinator.asked().await.1, "/machine/whoami");

    let others = Pin::Told(Fingerprint::of(&successor()));
    let misled = Dialler::new(coordinator.pinned(others.clone()));
    assert!(matches!(misled.connect(&others).await, Err(Fault::Stranger(found)) if found == key().public()));
}

/// A proxy that takes every name for this host, until it has made as many tunnels; the port that it has.
async fn proxy(tunnels: mpsc::UnboundedSender<String>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let place = head.split(' ').nth(1).unwrap().to_owned();
            let port = place.rsplit_once(':').unwrap().1.to_owned();
            tunnels.send(place).unwrap();
            let mut there = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut there).await });
        }
    });
    port
}

#[tokio::test]
async fn behind_a_proxy_the_coordinator_is_reached_through_it() {
    let (tunnels_in, mut tunnels) = mpsc::unbounded_channel();
    let proxy = proxy(tunnels_in).await;
    let coordinator = Coordinator::start(Manner::Proper).await;
    let place = format!("coordinator.example:{}", coordinator.server.port());
    let server = format!("http://{place}").parse().unwrap();
    let proxies = Matcher::builder().all(format!("http://127.0.0.1:{proxy}")).build();
    let dialler = Dialler::new(IoConfig { server, ..coordinator.config() })
        .with_dialler(warren_shell::Dialler::new(None).with_proxies(proxies));

    assert!(dialler.connect(&Pin::FirstUse).await.is_ok());

    // The key, and the channel.
    assert_eq!([tunnels.recv().await.unwrap(), tunnels.recv().await.unwrap()], [place.clone(), place]);
}
