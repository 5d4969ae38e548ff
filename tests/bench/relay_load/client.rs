//! Clients of a relay, and the load of a pair of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use warren_core::derp::presentation;
use warren_core::types::{NodePrivate, NodePublic};
use warren_core::wire::derp::{CLIENT_FRAME, Frame, FrameType, HEADER_LEN, header};
use warren_shell::CertificatePin;

/// Packets that do not arrive for this long are lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// How long a relay may take to let a client in.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Packets in one write.
const BURST: u64 = 32;
const READ: usize = 128 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client that the relay has admitted.
pub(crate) struct Client {
    key: NodePublic,
    io: Box<dyn Stream>,
}

impl Client {
    pub(crate) async fn connect(server: &Uri, pin: Option<&str>) -> Self {
        tokio::time::timeout(CONNECT_WITHIN, Self::introduce(server, pin)).await.expect("the relay answers in time")
    }

    async fn introduce(server: &Uri, pin: Option<&str>) -> Self {
        let mut io = dial(server, pin).await;
        let host = server.authority().expect("a URL has a host");
        let request = format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        io.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        let (_, hello) = frame(&mut io).await;
        let key = NodePrivate::from_random(rand::random());
        let (relay, _) = presentation::read_key(&hello).unwrap().unwrap();
        io.write_all(&presentation::introduce(&key, &relay, rand::random(), None).unwrap()).await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(frame(&mut io).await.0, FrameType::SERVER_INFO, "the relay admits strangers");
        Self { key: key.public(), io }
    }
}

async fn dial(server: &Uri, pin: Option<&str>) -> Box<dyn Stream> {
    let is_https = server.scheme_str() == Some("https");
    let host = server.host().unwrap().trim_matches(['[', ']']).to_owned();
    let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await.expect("the relay listens");
    stream.set_nodelay(true).unwrap();
    if !is_https {
        return Box::new(stream);
    }
    let config = match pin {
        Some(pin) => CertificatePin::read(pin).expect("a pin").unwrap().client_config().unwrap(),
        None => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
        }
    };
    let name = host.try_into().expect("the host is a name or an address");
    Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS"))
}

async fn frame(io: &mut Box<dyn Stream>) -> (FrameType, Vec<u8>) {
    let mut bytes = vec![0; HEADER_LEN];
    io.read_exact(&mut bytes).await.unwrap();
    let (kind, length) = header(&bytes, CLIENT_FRAME).unwrap().unwrap();
    bytes.resize(HEADER_LEN + length, 0);
    io.read_exact(&mut bytes[HEADER_LEN..]).await.unwrap();
    (kind, bytes)
}

/// Two clients, one of which sends to the other.
pub(crate) struct Pair {
    pub(crate) from: Client,
    pub(crate) to: Client,
    pub(crate) window: u64,
}

/// Packets under way, and the word that some arrived.
#[derive(Default)]
struct Flight {
    under_way: AtomicU64,
    landed: Notify,
}

impl Pair {
    pub(crate) fn start(
        self,
        packet: usize,
        arrived: &Arc<AtomicU64>,
        lost: &Arc<AtomicU64>,
        ending: &Arc<AtomicBool>,
    ) -> [JoinHandle<()>; 2] {
        let flight = Arc::new(Flight::default());
        let (from_read, from_write) = tokio::io::split(self.from.io);
        let (to_read, to_write) = tokio::io::split(self.to.io);
        let mut one = Vec::new();
        Frame::SendPacket { to: self.to.key, packet: &vec![0xa5; packet] }.encode(&mut one);
        let sending = send(from_write, one, self.window, Arc::clone(&flight), Arc::clone(lost), Arc::clone(ending));
        let receiving = receive(to_read, flight, Arc::clone(arrived));
        [
            tokio::spawn(async move {
                let _open = from_read;
                sending.await;
            }),
            tokio::spawn(async move {
                let _open = to_write;
                receiving.await;
            }),
        ]
    }
}

async fn send(
    mut io: WriteHalf<Box<dyn Stream>>,
    one: Vec<u8>,
    window: u64,
    flight: Arc<Flight>,
    lost: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
) {
    let burst = one.repeat(usize::try_from(BURST.min(window)).unwrap());
    while !ending.load(Ordering::Relaxed) {
        let room = window.saturating_sub(flight.under_way.load(Ordering::Acquire)).min(BURST);
        if room == 0 {
            if tokio::time::timeout(LOST_AFTER, flight.landed.notified()).await.is_err() {
                lost.fetch_add(flight.under_way.swap(0, Ordering::AcqRel), Ordering::Relaxed);
            }
            continue;
        }
        flight.under_way.fetch_add(room, Ordering::AcqRel);
        let bytes = &burst[..one.len() * usize::try_from(room).unwrap()];
        if io.write_all(bytes).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

async fn receive(mut io: ReadHalf<Box<dyn Stream>>, flight: Arc<Flight>, arrived: Arc<AtomicU64>) {
    let mut bytes = Vec::with_capacity(READ);
    loop {
        bytes.reserve(READ);
        if io.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let (mut taken, mut packets) = (0, 0);
        while let Some((kind, length)) = header(&bytes[taken..], CLIENT_FRAME).unwrap() {
            if bytes.len() < taken + HEADER_LEN + length {
                break;
            }
            packets += u64::from(kind == FrameType::RECV_PACKET);
            taken += HEADER_LEN + length;
        }
        bytes.drain(..taken);
        arrived.fetch_add(packets, Ordering::Relaxed);
        let _ =
            flight.under_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_sub(packets)));
        flight.landed.notify_one();
    }
}
