//! One ICMP echo through whatever way the host routes it: for `warren ping --type icmp`, through the tunnel.
//!
//! The socket carries no mark of ours, so its packets go where an application's would.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use warren_core::plan::KernelError;

/// RFC 792: type, code, checksum, identifier, sequence.
const HEADER: usize = 8;
/// The longest answer that is looked at: an IPv4 header with all its options, and our echo.
const ANSWER: usize = 128;

/// Names one echo among all that the host sends at the same time; drawn at random.
pub type EchoToken = [u8; 8];

/// Sends one echo, and returns when its answer came. May be dropped at any time, which is how one stops waiting.
pub async fn echo(address: IpAddr, token: EchoToken) -> Result<(), KernelError> {
    exchange(address, token).await.map_err(|error| KernelError {
        operation: format!("send an ICMP echo to {address}"),
        reason: error.to_string(),
    })
}

async fn exchange(address: IpAddr, token: EchoToken) -> io::Result<()> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    // Only this address's messages are received from here on.
    socket.connect(&SocketAddr::new(address, 0).into())?;
    // A connected raw socket is sent to and received from as a connected UDP socket is.
    let socket = UdpSocket::from_std(socket.into())?;
    let request = request(address, token);
    socket.send(&request).await?;
    loop {
        let mut answer = [0; ANSWER];
        let length = socket.recv(&mut answer).await?;
        if answers(address, token, &answer[..length]) {
            return Ok(());
        }
    }
}

fn request(address: IpAddr, token: EchoToken) -> Vec<u8> {
    const ECHO_V4: u8 = 8;
    const ECHO_V6: u8 = 128;
    let mut message = vec![0; HEADER];
    message[0] = if address.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
    message[4..6].copy_from_slice(&token[..2]);
    message.extend(token);
    if address.is_ipv4() {
        let checksum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
    }
    // The kernel fills in the checksum of ICMPv6: it covers the source address (RFC 3542, 3.1).
    message
}

/// Whether a received message is the answer. Raw IPv4 sockets see the IP header, IPv6 ones do not.
pub(super) fn answers(address: IpAddr, token: EchoToken, message: &[u8]) -> bool {
    const REPLY_V4: u8 = 0;
    const REPLY_V6: u8 = 129;
    let (header, reply) = match address {
        IpAddr::V4(_) => (message.first().map_or(0, |first| usize::from(first & 0xf) * 4), REPLY_V4),
        IpAddr::V6(_) => (0, REPLY_V6),
    };
    message.get(header..).is_some_and(|icmp| icmp.first() == Some(&reply) && icmp.get(HEADER..) == Some(&token[..]))
}

/// The Internet checksum (RFC 1071) of a message of even length.
fn checksum(message: &[u8]) -> u16 {
    let sum = message.chunks_exact(2).fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: EchoToken = *b"\x12\x34echoes";

    #[test]
    fn a_request_carries_its_token_and_a_checksum_that_adds_up() {
        let message = request("192.0.2.1".parse().unwrap(), TOKEN);
        assert_eq!(message[..2], [8, 0]);
        assert_eq!(message[HEADER..], TOKEN);
        assert_eq!(checksum(&message), 0, "a sum over a valid message is zero");
        assert_eq!(request("2001:db8::1".parse().unwrap(), TOKEN)[..4], [128, 0, 0, 0]);
    }

    #[test]
    fn only_the_reply_with_our_token_is_an_answer() {
        let address = "192.0.2.1".parse().unwrap();
        let mut packet = vec![0x45; 20];
        packet.extend(request(address, TOKEN));
        assert!(!answers(address, TOKEN, &packet), "our own request, looped back");
        packet[20] = 0;
        assert!(answers(address, TOKEN, &packet));
        assert!(!answers(address, *b"\x12\x34others", &packet));
        for length in 0..packet.len() {
            assert!(!answers(address, TOKEN, &packet[..length]));
        }
    }
}
