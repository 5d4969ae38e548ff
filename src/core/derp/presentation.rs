//! The first frames of a link between relays of a region, from the side that connects.

use super::MeshKey;
use crate::types::{NodePrivate, NodePublic};
use crate::wire::derp::{CLIENT_FRAME, ClientInfo, DerpError, Frame, HEADER_LEN, VERSION, header, seal_client_info};

/// Reads a relay's key from all that has arrived; `None` until it is whole. The number is how many bytes it took.
pub fn read_key(bytes: &[u8]) -> Result<Option<(NodePublic, usize)>, DerpError> {
    let Some((kind, length)) = header(bytes, CLIENT_FRAME)? else { return Ok(None) };
    let Some(body) = bytes.get(HEADER_LEN..HEADER_LEN + length) else { return Ok(None) };
    let Frame::ServerKey(key) = Frame::decode(kind, body)? else { return Err(DerpError::Magic) };
    Ok(Some((key, HEADER_LEN + length)))
}

/// Says who we are and that we share the region's secret. `nonce` is 24 random bytes.
pub fn introduce(
    ours: &NodePrivate,
    relay: &NodePublic,
    nonce: [u8; 24],
    secret: Option<&MeshKey>,
) -> Result<Vec<u8>, DerpError> {
    let mesh_key = secret.map_or("", MeshKey::expose).to_owned();
    let info = ClientInfo { version: VERSION, mesh_key, can_ack_pings: true, ..ClientInfo::default() };
    let sealed = seal_client_info(ours, relay, nonce, &info)?;
    let mut out = Vec::new();
    Frame::ClientInfo { client: ours.public(), sealed: &sealed }.encode(&mut out);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derp::Handshake;

    #[test]
    fn a_relay_knows_another_by_the_secret_they_share() {
        let (ours, theirs) = ([1, 2]).map(|n| NodePrivate::from_random([n; 32])).into();
        let secret = MeshKey::new("ab".repeat(32)).unwrap();
        let handshake = Handshake::new(&theirs, Some(&secret));
        let hello = handshake.hello();
        assert_eq!(read_key(&hello[..20]), Ok(None));
        assert_eq!(read_key(&hello), Ok(Some((theirs.public(), hello.len()))));
        for (said, is_mesh) in [(Some(&secret), true), (None, false)] {
            let bytes = introduce(&ours, &theirs.public(), [3; 24], said).unwrap();
            assert_eq!(handshake.read(&bytes).unwrap().unwrap().0.is_mesh, is_mesh);
        }
    }

    #[test]
    fn what_begins_otherwise_is_no_relay() {
        let mut ping = Vec::new();
        Frame::Ping([0; 8]).encode(&mut ping);
        assert_eq!(read_key(&ping), Err(DerpError::Magic));
    }
}
