//! What only this crate reads, as functions from bytes to whether they were taken: for tests that feed them anything.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_core::wire::control::DerpNode;

use super::{derp_io, host, resolvers};

/// A file that names name servers.
pub fn resolv_conf(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    drop(host::resolvers(&text));
    !resolvers::servers(&text).is_empty()
}

/// What a relay answers to the request for its protocol.
pub async fn relay_upgrade(bytes: &[u8]) -> bool {
    let (ours, mut theirs) = tokio::io::duplex(bytes.len().max(4 * 1024));
    let answer = async {
        // What comes before the question is no answer to it.
        let _ = theirs.read(&mut [0; 1024]).await;
        let _ = theirs.write_all(bytes).await;
        let _ = theirs.shutdown().await;
    };
    let node = DerpNode { host_name: "relay.example".to_owned(), ..DerpNode::default() };
    let (upgraded, ()) = tokio::join!(derp_io::upgrade(Box::new(ours), &node, None), answer);
    upgraded.is_ok()
}
