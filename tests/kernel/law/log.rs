//! What the kernel logs to an nflog group (linux/netfilter/nfnetlink_log.h), read as `ulogd` reads it.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::common::*;

/// The log's subsystem of netfilter, in the upper half of a message's type.
const LOG: u16 = 4;
const PACKET: u16 = LOG << 8;
const CONFIG: u16 = LOG << 8 | 1;
/// Attribute and value that bind a socket to a group.
const COMMAND: u16 = 1;
const BIND: u8 = 1;
/// The attribute with the rule's prefix.
const PREFIX: u16 = 10;
const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
/// Of a netlink message, and of the netfilter message within.
const HEADERS: usize = 16 + 4;

pub(super) struct Log(Socket);

impl Log {
    pub(super) fn open(group: u16) -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind(&SocketAddr::new(0, 0)).unwrap();
        let mut message = vec![28, 0, 0, 0];
        for word in [CONFIG, REQUEST_AND_ACKNOWLEDGE] {
            message.extend(word.to_ne_bytes());
        }
        message.extend([0; 8]);
        // Any family, version 0, the group; then the command, padded to four bytes.
        message.extend([0, 0]);
        message.extend(group.to_be_bytes());
        message.extend(5_u16.to_ne_bytes());
        message.extend(COMMAND.to_ne_bytes());
        message.extend([BIND, 0, 0, 0]);
        socket.send(&message, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        assert_eq!(answer[16..20], [0; 4], "bind to group {group}");
        // The kernel hands the log over once a second.
        socket2::SockRef::from(&socket).set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// How often each prefix was logged, up to where so many that count were.
    pub(super) fn read_until(&self, count: usize, counts: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
        let mut logged: BTreeMap<String, u64> = BTreeMap::new();
        while logged.iter().filter(|(prefix, _)| counts(prefix)).map(|(_, times)| *times).sum::<u64>() < count as u64 {
            let (messages, _) = self.0.recv_from_full().unwrap_or_else(|error| panic!("{error} after {logged:?}"));
            prefixes(&messages).for_each(|prefix| *logged.entry(prefix).or_default() += 1);
        }
        logged
    }
}

/// The prefixes of the packets in some messages.
fn prefixes(messages: &[u8]) -> impl Iterator<Item = String> {
    let packets =
        parts(messages, 4, |header| u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize);
    let packets = packets.filter(|message| u16::from_ne_bytes([message[4], message[5]]) == PACKET);
    packets.filter_map(|message| {
        let mut attributes = parts(&message[HEADERS..], 4, |header| u16::from_ne_bytes([header[0], header[1]]).into());
        let prefix = attributes.find(|attribute| u16::from_ne_bytes([attribute[2], attribute[3]]) == PREFIX)?;
        Some(String::from_utf8_lossy(&prefix[4..]).trim_end_matches('\0').to_owned())
    })
}

/// Cuts a sequence of things that begin with their length and end at a multiple of four.
fn parts(mut rest: &[u8], header: usize, length: impl Fn(&[u8]) -> usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = length(rest.get(..header)?);
        let part = rest.get(..length).filter(|_| length >= header)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}
