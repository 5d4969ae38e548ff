//! A multicast netlink socket whose reader keeps only whether a message concerned it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;

use super::netfilter::messages;
use super::netlink::is_errno;

/// What a socket may hold while its reader waits for a turn: thousands of messages, where the host allows.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// No notice is longer than the buffer the kernel makes it in.
const DATAGRAM: usize = 64 << 10;
/// How long a reader rests after an error that it does not know.
const REST: Duration = Duration::from_secs(1);

/// A socket that receives notices in the network namespace of the thread that opened it.
pub(super) struct Subscription {
    socket: TokioSocket,
    buffer: BytesMut,
}

impl Subscription {
    /// Subscribes to groups of a netlink protocol: what happens from here on is received.
    pub(super) fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
        for group in groups {
            socket.socket_mut().add_membership(*group)?;
        }
        Ok(Self { socket, buffer: BytesMut::with_capacity(DATAGRAM) })
    }

    /// Subscribes to groups of rtnetlink.
    pub(super) fn open_route(groups: &[MulticastGroup]) -> io::Result<Self> {
        let groups: Vec<u32> = groups.iter().map(|group| *group as u32).collect();
        Self::open(NETLINK_ROUTE, &groups)
    }

    /// Waits for a message (its type and its payload) that concerns the caller, or for lost messages, any
    /// of which might have. May be dropped at any time: nothing but the current datagram's other messages is
    /// lost, and the caller looks at everything anyway.
    pub(super) async fn next(&mut self, concerns: impl Fn(u16, &[u8]) -> bool) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) if any_message(&self.buffer, &concerns) => return,
                Ok(()) => {}
                Err(error) if is_errno(&error, Errno::ENOBUFS) => return,
                Err(error) => {
                    tracing::warn!(%error, "reading notices of the kernel");
                    tokio::time::sleep(REST).await;
                    return;
                }
            }
        }
    }
}

/// A notice of rtnetlink, where this version of the protocol can be read.
pub(super) fn route_message(kind: u16, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, payload).ok()
}

/// Asks about every message: whoever is asked may keep more than whether one concerned it.
fn any_message(datagram: &[u8], concerns: impl Fn(u16, &[u8]) -> bool) -> bool {
    messages(datagram).fold(false, |any, message| any | concerns(message.message_type(), message.payload()))
}
