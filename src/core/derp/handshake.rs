//! The first frames of a connection, server side: from bytes to a client that has proved its key.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::types::{NodePrivate, NodePublic};
use crate::wire::derp::{
    self, CLIENT_INFO, ClientInfo, DerpError, Frame, FrameType, HEADER_LEN, ServerInfo, VERSION, header,
    open_client_info, seal_server_info,
};

/// The secret that the relays of one region share.
#[derive(Clone)]
pub struct MeshKey(Zeroizing<String>);

impl std::fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl MeshKey {
    /// Takes the secret; `None` unless it is 64 hexadecimal digits, as the protocol has it.
    pub fn new(text: String) -> Option<Self> {
        let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self(Zeroizing::new(text)))
    }

    /// The secret, to introduce ourselves to a sibling.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in constant time: how long it takes tells nothing of how much was right.
    fn matches(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

/// Who a client has proved to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Greeting {
    pub client: NodePublic,
    /// Whether it is a relay of our region.
    pub is_mesh: bool,
    /// Whether it only measures.
    pub is_prober: bool,
    /// Whether it answers pings.
    pub answers_pings: bool,
}

/// The server's half of the introduction.
pub struct Handshake<'a> {
    key: &'a NodePrivate,
    mesh: Option<&'a MeshKey>,
}

impl<'a> Handshake<'a> {
    /// Begins one.
    pub const fn new(key: &'a NodePrivate, mesh: Option<&'a MeshKey>) -> Self {
        Self { key, mesh }
    }

    /// The first bytes to send.
    pub fn hello(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Frame::ServerKey(self.key.public()).encode(&mut out);
        out
    }

    /// Reads the client's first frame from all that has arrived; `None` until it is whole. The number is how
    /// many bytes it took.
    pub fn read(&self, bytes: &[u8]) -> Result<Option<(Greeting, usize)>, DerpError> {
        let Some((kind, length)) = header(bytes, CLIENT_INFO)? else {
            return Ok(None);
        };
        if kind != FrameType::CLIENT_INFO {
            return Err(DerpError::Sealed);
        }
        let Some(body) = bytes.get(HEADER_LEN..HEADER_LEN + length) else {
            return Ok(None);
        };
        let Frame::ClientInfo { client, sealed } = Frame::decode(kind, body)? else {
            return Err(DerpError::Sealed);
        };
        let ClientInfo { mesh_key, can_ack_pings, is_prober, .. } = open_client_info(self.key, &client, sealed)?;
        let is_mesh = self.mesh.is_some_and(|mesh| mesh.matches(&mesh_key));
        Ok(Some((Greeting { client, is_mesh, is_prober, answers_pings: can_ack_pings }, HEADER_LEN + length)))
    }

    /// The answer that admits a client: our terms, sealed to it. `nonce` is 24 random bytes.
    pub fn welcome(
        &self,
        client: &NodePublic,
        nonce: [u8; 24],
        bytes_per_second: u64,
        burst_bytes: u64,
    ) -> Result<Vec<u8>, DerpError> {
        let terms = ServerInfo { version: VERSION, bytes_per_second, burst_bytes };
        let sealed = seal_server_info(self.key, client, nonce, terms)?;
        let mut out = Vec::new();
        derp::Frame::ServerInfo(&sealed).encode(&mut out);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::seal_client_info;

    fn introduction(mesh_key: &str) -> (NodePrivate, Vec<u8>) {
        let (server, client) = (NodePrivate::from_random([1; 32]), NodePrivate::from_random([2; 32]));
        let info = ClientInfo { version: VERSION, mesh_key: mesh_key.to_owned(), ..ClientInfo::default() };
        let sealed = seal_client_info(&client, &server.public(), [3; 24], &info).unwrap();
        let mut bytes = Vec::new();
        Frame::ClientInfo { client: client.public(), sealed: &sealed }.encode(&mut bytes);
        (server, bytes)
    }

    #[test]
    fn a_client_is_known_once_its_frame_is_whole() {
        let (server, bytes) = introduction("");
        let handshake = Handshake::new(&server, None);
        for cut in 0..bytes.len() {
            assert_eq!(handshake.read(&bytes[..cut]), Ok(None));
        }
        let (greeting, taken) = handshake.read(&bytes).unwrap().unwrap();
        assert_eq!((greeting.client, taken), (NodePrivate::from_random([2; 32]).public(), bytes.len()));
        assert!(!greeting.is_mesh);
    }

    #[test]
    fn only_the_right_secret_makes_a_sibling() {
        let secret = MeshKey::new("ab".repeat(32)).unwrap();
        for (said, is_mesh) in [("ab".repeat(32), true), ("ac".repeat(32), false), (String::new(), false)] {
            let (server, bytes) = introduction(&said);
            let (greeting, _) = Handshake::new(&server, Some(&secret)).read(&bytes).unwrap().unwrap();
            assert_eq!(greeting.is_mesh, is_mesh, "{said}");
            let (greeting, _) = Handshake::new(&server, None).read(&bytes).unwrap().unwrap();
            assert!(!greeting.is_mesh);
        }
    }

    #[test]
    fn a_client_that_begins_with_anything_else_is_refused() {
        let (server, _) = introduction("");
        let mut ping = Vec::new();
        Frame::Ping([0; 8]).encode(&mut ping);
        assert_eq!(Handshake::new(&server, None).read(&ping), Err(DerpError::Sealed));
    }
}
