//! A node as the protocol sees it: Noise, HTTP/2, register and map, and no more.

use std::net::SocketAddr;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use warren_core::types::{CapabilityVersion, DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, Timestamp};
use warren_core::wire::control::{
    Hostinfo, MapRequest, MapResponse, OverTlsPublicKeys, RegisterAuth, RegisterRequest, RegisterResponse,
};
use warren_core::wire::map_stream::{MapStreamDecoder, Packing};
use warren_core::wire::noise::{ClientHandshake, Ephemeral};
use warren_shell::NoiseStream;

use crate::server::PATIENCE;

/// A machine and its keys.
pub(crate) struct Machine {
    pub(crate) machine: MachinePrivate,
    pub(crate) node: NodePrivate,
    pub(crate) disco: DiscoPublic,
    pub(crate) name: String,
    pub(crate) version: CapabilityVersion,
}

/// A machine with a Noise connection to the coordinator.
pub(crate) struct Connected<'a> {
    pub(crate) machine: &'a Machine,
    requests: http2::SendRequest<Full<Bytes>>,
}

/// A map stream.
pub(crate) struct Map {
    body: Incoming,
    decoder: MapStreamDecoder,
    unread: Bytes,
    _requests: http2::SendRequest<Full<Bytes>>,
}

impl Machine {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            machine: MachinePrivate::from_random(rand::random()),
            node: NodePrivate::from_random(rand::random()),
            disco: DiscoPublic::from_bytes(rand::random()),
            name: name.to_owned(),
            version: CapabilityVersion::CURRENT,
        }
    }

    pub(crate) async fn connect(&self, server: SocketAddr) -> Connected<'_> {
        let (handshake, initiation) = self.handshake(server).await;
        let io = upgrade(server, &initiation).await;
        self.inside(io, handshake, 65_535).await
    }

    /// Our first message to a server whose key we ask for.
    pub(crate) async fn handshake(&self, server: SocketAddr) -> (ClientHandshake, Vec<u8>) {
        let (handshake, initiation) = ClientHandshake::start(
            &self.machine,
            &key_of(server).await,
            self.version,
            Ephemeral::from_random(rand::random()),
        )
        .unwrap();
        (handshake, initiation.to_vec())
    }

    /// HTTP/2 inside the channel; `window` is how much of an answer may be under way.
    pub(crate) async fn inside<S>(&self, io: S, handshake: ClientHandshake, window: u32) -> Connected<'_>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = NoiseStream::connect(io, handshake).await.unwrap();
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Connected { machine: self, requests }
    }

    fn hostinfo(&self) -> Hostinfo {
        Hostinfo { hostname: self.name.clone(), os: "linux".to_owned(), ..Hostinfo::default() }
    }

    pub(crate) fn register_request(&self, auth_key: Option<&str>) -> RegisterRequest {
        RegisterRequest {
            version: self.version,
            node_key: self.node.public(),
            auth: auth_key.map(|key| RegisterAuth { auth_key: key.to_owned() }),
            hostinfo: Some(self.hostinfo()),
            ..RegisterRequest::default()
        }
    }

    pub(crate) fn map_request(&self, endpoints: &[&str]) -> MapRequest {
        MapRequest {
            version: self.version,
            compress: "zstd".to_owned(),
            keep_alive: true,
            node_key: self.node.public(),
            disco_key: self.disco,
            hostinfo: Some(self.hostinfo()),
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
            ..MapRequest::default()
        }
    }
}

impl Connected<'_> {
    pub(crate) async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Response<Incoming> {
        let uri = format!("https://coordinator{path}");
        let request = Request::builder().method(method).uri(uri).body(Full::new(Bytes::from(body))).unwrap();
        let mut requests = self.requests.clone();
        tokio::time::timeout(PATIENCE, requests.send_request(request)).await.expect("an answer in time").unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> (StatusCode, String) {
        let response = self.send(Method::POST, path, serde_json::to_vec(body).unwrap()).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub(crate) async fn register(&self, request: &RegisterRequest) -> RegisterResponse {
        let (status, body) = self.post("/machine/register", request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Registers with a key, which must suffice.
    pub(crate) async fn join(&self, auth_key: &str) {
        let response = self.register(&self.machine.register_request(Some(auth_key))).await;
        assert_eq!((response.error.as_str(), response.auth_url.as_str()), ("", ""));
        assert!(response.machine_authorized);
    }

    /// Tells the coordinator where we are.
    pub(crate) async fn update(&self, endpoints: &[&str]) {
        let request = MapRequest { omit_peers: true, ..self.machine.map_request(endpoints) };
        assert_eq!(self.post("/machine/map", &request).await, (StatusCode::OK, String::new()));
    }

    /// Opens the map stream.
    pub(crate) async fn map(&self, endpoints: &[&str]) -> Map {
        self.map_of(&MapRequest { stream: true, ..self.machine.map_request(endpoints) }).await
    }

    /// Opens the map stream by a request of one's own.
    pub(crate) async fn map_of(&self, request: &MapRequest) -> Map {
        let response = self.send(Method::POST, "/machine/map", serde_json::to_vec(request).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Map {
            body: response.into_body(),
            decoder: MapStreamDecoder::new(Packing::Zstd),
            unread: Bytes::new(),
            _requests: self.requests.clone(),
        }
    }
}

impl Map {
    /// The next message, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<MapResponse> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a message in time")
    }

    /// Reads on until a message says this.
    pub(crate) async fn until(&mut self, mut says: impl FnMut(&MapResponse) -> bool) -> MapResponse {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if says(&message) {
                return message;
            }
        }
    }

    /// Reads on to the end of the stream.
    pub(crate) async fn ended(&mut self) {
        while self.next().await.is_some() {}
    }

    async fn read(&mut self) -> Option<MapResponse> {
        loop {
            let mut input = &self.unread[..];
            let message = self.decoder.next(&mut input).unwrap();
            self.unread = self.unread.slice(self.unread.len() - input.len()..);
            if let Some(json) = message {
                return Some(serde_json::from_slice(&json).unwrap());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.unread = frame.into_data().unwrap_or_default(),
                // A connection that broke ends the stream too.
                Some(Err(_)) | None => return None,
            }
        }
    }
}

/// The bytes of a connection that was upgraded with this first message.
pub(crate) async fn upgrade(server: SocketAddr, initiation: &[u8]) -> TokioIo<hyper::upgrade::Upgraded> {
    upgrade_with(server, initiation, &[]).await
}

/// The same with headers as a proxy adds them.
pub(crate) async fn upgrade_with(
    server: SocketAddr,
    initiation: &[u8],
    headers: &[(&str, &str)],
) -> TokioIo<hyper::upgrade::Upgraded> {
    let request = Request::post("/ts2021");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request
        .header("host", server.to_string())
        .header("upgrade", "tailscale-control-protocol")
        .header("connection", "upgrade")
        .header("x-tailscale-handshake", BASE64.encode(initiation))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (mut requests, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(server).await.unwrap())).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let response = requests.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

/// The bytes inside a WebSocket, by a pump of its own: not the adapter that is tested.
pub(crate) fn websocket(socket: tokio_tungstenite::WebSocketStream<TcpStream>) -> tokio::io::DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (mut to_socket, mut from_socket) = socket.split();
    let (mut read, mut write) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if to_socket.send(Message::binary(buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_socket.next().await {
            if message.is_binary() && write.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
    });
    ours
}

/// One request over plain HTTP/1.
pub(crate) async fn plain(server: SocketAddr, request: Request<Full<Bytes>>) -> (StatusCode, http::HeaderMap, String) {
    let io = TokioIo::new(TcpStream::connect(server).await.unwrap());
    let (mut requests, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let (parts, body) = requests.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

pub(crate) async fn get(server: SocketAddr, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).header("host", server.to_string()).body(Full::default()).unwrap();
    let (status, _, body) = plain(server, request).await;
    (status, body)
}

async fn key_of(server: SocketAddr) -> MachinePublic {
    let (status, body) = get(server, "/key?v=145").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_str::<OverTlsPublicKeys>(&body).unwrap().public_key
}

/// Asks again until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < until, "it never came to pass that {what}");
        tokio::task::yield_now().await;
    }
}

/// A moment in the past, as clients send it to log out.
pub(crate) fn long_ago() -> Timestamp {
    Timestamp::from_second(123).unwrap()
}
