//! The number of the kernel's last nftables transaction.
//!
//! It moves with every change that anybody makes to any table, so a listing taken at a number is true for
//! as long as the kernel says that number: ten thousand peers need not be listed again because an endpoint
//! moved.

use std::io;

use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` of `NFNL_SUBSYS_NFTABLES`.
const NEW_GENERATION: u16 = (10 << 8) | 15;
const GET_GENERATION: u16 = (10 << 8) | 16;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// The bytes of a netlink header.
const NETLINK_HEADER: usize = 16;
/// The bytes for family, version and resource between the netlink header and the attributes.
const NFTABLES_HEADER: usize = 4;

/// Asks for the number, in the network namespace of the thread that opened it.
pub(super) struct Generation {
    socket: Socket,
}

impl Generation {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// The number, where the kernel tells it. The kernel answers within the request, so nothing waits here.
    pub(super) fn current(&self) -> Option<u32> {
        let mut request = [0; NETLINK_HEADER + NFTABLES_HEADER];
        let length = u32::try_from(request.len()).ok()?;
        let mut header = NetlinkBuffer::new(&mut request);
        header.set_length(length);
        header.set_message_type(GET_GENERATION);
        header.set_flags(NLM_F_REQUEST);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).ok()?;
        let (answer, _) = self.socket.recv_from_full().ok()?;
        read(&answer)
    }
}

pub(super) fn read(answer: &[u8]) -> Option<u32> {
    let message = NetlinkBuffer::new_checked(answer).ok()?;
    if message.message_type() != NEW_GENERATION {
        return None;
    }
    let attributes = message.payload().get(NFTABLES_HEADER..)?;
    let id = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() & NLA_TYPE_MASK == GENERATION_ID)?;
    Some(u32::from_be_bytes(id.value().try_into().ok()?))
}
