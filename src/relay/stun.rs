//! The STUN server: tells whoever asks rightly where the question came from.

use std::io;
use std::time::Duration;

use tokio::net::UdpSocket;
use tracing::{debug, warn};

use warren_core::wire::stun;

/// How long to leave a socket alone that just failed, as for want of memory.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers on `socket` for as long as the program runs. Neither a failed answer, as to an address that is no longer there,
/// nor a failed reading ends it: without STUN nodes find no direct path.
pub async fn serve(socket: UdpSocket) {
    let mut datagram = [0; stun::MAX_LEN];
    loop {
        let (length, source) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            // What an earlier answer met on its way; the socket itself is well.
            Err(error) if is_passing(&error) => continue,
            Err(error) => {
                warn!(%error, "receiving STUN requests");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(transaction) = stun::read_request(&datagram[..length]) else { continue };
        let seen = std::net::SocketAddr::new(source.ip().to_canonical(), source.port());
        if let Err(error) = socket.send_to(&stun::response(transaction, seen), source).await {
            debug!(%error, "answering a STUN request");
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::wire::stun::TransactionId;

    #[tokio::test]
    async fn a_client_learns_where_it_came_from_and_a_stranger_learns_nothing() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(serve(server));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"GET / HTTP/1.1\r\n\r\n", address).await.unwrap();
        client.send_to(&stun::request(TransactionId([7; 12])), address).await.unwrap();
        let mut answer = [0; 100];
        let (length, _) = client.recv_from(&mut answer).await.unwrap();
        let expected = (TransactionId([7; 12]), client.local_addr().unwrap());
        assert_eq!(stun::read_response(&answer[..length]), Ok(expected));
        serving.abort();
    }
}
