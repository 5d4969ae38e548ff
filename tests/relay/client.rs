//! A client of the relay protocol over a plain socket.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use warren_core::types::{NodePrivate, NodePublic};
use warren_core::wire::derp::{
    CLIENT_FRAME, ClientInfo, Frame, FrameType, HEADER_LEN, VERSION, header, open_server_info, seal_client_info,
};

use super::server::PATIENCE;

/// With TLS or without.
pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

pub(crate) struct Client {
    pub(crate) key: NodePrivate,
    pub(crate) io: Box<dyn Stream>,
    /// The relay's key.
    pub(crate) server: NodePublic,
    /// The head of its answer to the upgrade, in small letters.
    pub(crate) head: String,
}

impl Client {
    /// Connects up to the point where the relay answers or closes.
    pub(crate) fn connect(address: SocketAddr, n: u8) -> Self {
        Self::over(Box::new(open(address)), n)
    }

    /// The same over a stream that is open.
    pub(crate) fn over(io: Box<dyn Stream>, n: u8) -> Self {
        Self::with_key(io, NodePrivate::from_random([n; 32]))
    }

    /// The same with a key of one's own.
    pub(crate) fn with_key(mut io: Box<dyn Stream>, key: NodePrivate) -> Self {
        io.write_all(b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: derp\r\n\r\n").unwrap();
        let head = read_head(&mut io);
        assert!(head.starts_with("http/1.1 101"), "{head}");
        let mut client = Self { server: key.public(), key, io, head };
        let (kind, body) = client.frame().unwrap();
        let Ok(Frame::ServerKey(server)) = Frame::decode(kind, &body) else {
            panic!("the relay's first frame is its key")
        };
        client.server = server;
        let info = ClientInfo { version: VERSION, ..ClientInfo::default() };
        let sealed = seal_client_info(&client.key, &server, [7; 24], &info).unwrap();
        client.say(Frame::ClientInfo { client: client.key.public(), sealed: &sealed });
        client
    }

    /// The same, and admitted.
    pub(crate) fn joined(address: SocketAddr, n: u8) -> Self {
        Self::connect(address, n).admitted()
    }

    /// Reads on to the next packet.
    pub(crate) fn packet(&mut self) -> Vec<u8> {
        loop {
            let (kind, body) = self.frame().expect("the connection stays");
            if let Ok(Frame::RecvPacket { packet, .. }) = Frame::decode(kind, &body) {
                return packet.to_vec();
            }
        }
    }

    /// Waits until the relay has read all that was said.
    pub(crate) fn settle(&mut self) {
        self.say(Frame::Ping(*b"settled?"));
        while self.frame().expect("the connection stays").0 != FrameType::PONG {}
    }

    /// Reads the relay's terms.
    pub(crate) fn admitted(mut self) -> Self {
        let (kind, terms) = self.frame().expect("the relay's terms");
        assert_eq!(kind, FrameType::SERVER_INFO);
        assert_eq!(open_server_info(&self.key, &self.server, &terms).unwrap().version, VERSION);
        self
    }

    pub(crate) fn say(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.io.write_all(&bytes).unwrap();
    }

    /// The next frame; `None` when the relay closed.
    pub(crate) fn frame(&mut self) -> Option<(FrameType, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        match self.io.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            Err(error) => panic!("reading a frame: {error}"),
        }
        let (kind, length) = header(&head, CLIENT_FRAME).unwrap().unwrap();
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).unwrap();
        Some((kind, body))
    }
}

impl Client {
    /// Whether the relay still answers.
    pub(crate) fn answers(&mut self) -> Option<()> {
        let mut bytes = Vec::new();
        Frame::Ping(*b"answers?").encode(&mut bytes);
        self.io.write_all(&bytes).ok()?;
        while self.frame_or_end()?.0 != FrameType::PONG {}
        Some(())
    }

    /// The next frame; `None` at the end, however it came.
    pub(crate) fn frame_or_end(&mut self) -> Option<(FrameType, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.io.read_exact(&mut head).ok()?;
        let (kind, length) = header(&head, CLIENT_FRAME).unwrap().unwrap();
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).ok()?;
        Some((kind, body))
    }
}

/// The body of the answer to one request by address.
pub(crate) fn get_body(address: SocketAddr, path: &str) -> String {
    let mut io = open(address);
    write!(io, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The head of the answer to one request, in small letters.
pub(crate) fn get(address: SocketAddr, method: &str, path: &str, headers: &str) -> String {
    let mut io = open(address);
    write!(io, "{method} {path} HTTP/1.1\r\nHost: relay\r\n{headers}\r\n").unwrap();
    read_head(&mut io)
}

pub(crate) fn open(address: SocketAddr) -> TcpStream {
    let io = TcpStream::connect(address).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io
}

fn read_head(io: &mut dyn Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        io.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}
