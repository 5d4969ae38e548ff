//! Messages of netfilter's subsystems (linux/netfilter/nfnetlink.h): a netlink header, four bytes of netfilter's own,
//! and attributes.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkBuffer};

use super::attributes::Attributes;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// The kernel dumps into buffers of at most 32 KiB.
pub(crate) const DATAGRAM: usize = 64 << 10;

/// The bytes of a netlink header.
const NETLINK_HEADER: usize = 16;
/// Family, version and resource.
const NETFILTER_HEADER: usize = 4;

/// Messages to be sent as one datagram.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
}

impl Messages {
    /// Adds a request of this type about a family, with the attributes that `fill` adds.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let begin = self.bytes.len();
        self.last = begin;
        self.bytes.resize(begin + NETLINK_HEADER, 0);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes::after(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - begin).unwrap_or_default();
        let mut header = NetlinkBuffer::new(&mut self.bytes[begin..]);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_flags(NLM_F_REQUEST | flags);
        header.set_sequence_number(sequence);
    }

    /// Has the last message say this too.
    pub(crate) fn add_flags_to_last(&mut self, flags: u16) {
        let mut header = NetlinkBuffer::new(&mut self.bytes[self.last..]);
        header.set_flags(header.flags() | flags);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The messages of a datagram; each begins at a multiple of four.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length.max(NETLINK_HEADER)..).unwrap_or_default();
        Some(message)
    })
}

/// The bytes of a payload that hold its attributes; none where it is too short for any.
pub(crate) fn body(payload: &[u8]) -> &[u8] {
    payload.get(NETFILTER_HEADER..).unwrap_or_default()
}

/// The result that the first four bytes of an answer say.
pub(crate) fn code(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) }
}
