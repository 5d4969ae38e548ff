//! The kernel's table of known flows: those of peers that a judge forbids, found and deleted.
//!
//! A dump brings the whole table in datagrams of some hundred entries; each is judged as it comes and only what is
//! forbidden is kept, so neither memory nor any single turn of the runtime grows with the table. Deletions are sent by
//! the hundred, and only failures are answered: reading an answer to each would take longer than they do. Each names the
//! opening tuple as the kernel wrote it together with the entry's number, so a new flow of the same tuple is never
//! meant. (linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h)

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::libc;

use warren_core::plan::{FlowJudge, Packet, Protocol};

use super::attributes::{Attributes, attribute, attributes, number};
use super::netfilter::{DATAGRAM, DONE, ERROR, Messages, body, code, messages};
use super::netlink::{DUMP_ATTEMPTS, is_errno};

/// `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
const NEW: u16 = 1 << 8;
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;

/// `CTA_TUPLE_ORIG`, `CTA_STATUS`, `CTA_ID`, `CTA_TUPLE_MASTER` and `CTA_ZONE`.
const TUPLE_ORIG: u16 = 1;
const STATUS: u16 = 3;
const ID: u16 = 12;
const TUPLE_MASTER: u16 = 14;
const ZONE: u16 = 18;
/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// `CTA_IP_V4_SRC` and the three after it.
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
/// `CTA_PROTO_NUM`, `_SRC_PORT` and `_DST_PORT`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// `IPS_EXPECTED`: another flow led to this one, and is its master.
const EXPECTED: u32 = 1;

/// Deletions sent at once: they fit the smallest send buffer.
const BATCH: usize = 512;
/// Forbidden flows found in one go, at some 200 bytes each. The rest is found in the next.
const FOUND: usize = 131_072;

/// A flow that is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// The packet that opened it.
    pub(super) opening: Packet,
    /// From which port, where the protocol has ports.
    pub(super) source_port: u16,
    family: u8,
    /// The attributes that name the entry, with the values that the kernel wrote.
    name: Vec<u8>,
}

/// A conversation about flows, in the network namespace of the thread that opened it.
pub(super) struct Conntrack {
    socket: TokioSocket,
    sequence: u32,
}

impl Conntrack {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        // Failures come without the request that they are about.
        socket.socket_ref().set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Flows that the judge forbids, [`FOUND`] at most.
    pub(super) async fn forbidden(&mut self, judge: &FlowJudge) -> io::Result<Vec<Flow>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            let mut request = Messages::default();
            request.push(GET, NLM_F_DUMP, sequence, (0, 0), |_| {});
            self.send(&request).await?;
            let interrupted = self.read_dump(sequence, judge, &mut found).await?;
            if !interrupted || !found.is_empty() {
                return Ok(found);
            }
        }
        Err(io::Error::other("the table of flows kept changing its size while it was read"))
    }

    /// Deletes these flows; those that have ended meanwhile are as good.
    pub(super) async fn delete(&mut self, flows: &[Flow]) -> io::Result<()> {
        for batch in flows.chunks(BATCH) {
            let mut requests = Messages::default();
            for flow in batch {
                self.sequence = self.sequence.wrapping_add(1);
                requests.push(DELETE, 0, self.sequence, (flow.family, 0), |request| request.raw(&flow.name));
            }
            self.send(&requests).await?;
            self.read_failures()?;
        }
        Ok(())
    }

    async fn send(&mut self, requests: &Messages) -> io::Result<()> {
        self.socket.send_to(requests.bytes(), &SocketAddr::new(0, 0)).await.map(drop)
    }

    /// Whether the table changed its shape under the dump, so that entries may have been passed over.
    async fn read_dump(&mut self, sequence: u32, judge: &FlowJudge, found: &mut Vec<Flow>) -> io::Result<bool> {
        let mut interrupted = false;
        loop {
            let datagram = self.receive().await?;
            for message in messages(&datagram).filter(|message| message.sequence_number() == sequence) {
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NEW if found.len() < FOUND => found.extend(read_flow(message.payload(), judge)),
                    ERROR | DONE => return code(message.payload()).map(|()| interrupted),
                    _ => {}
                }
            }
        }
    }

    /// What went wrong with the deletions that were sent. The kernel says it within the request, and nothing of those
    /// that it carried out.
    fn read_failures(&mut self) -> io::Result<()> {
        let mut datagram = BytesMut::with_capacity(DATAGRAM);
        let mut result = Ok(());
        loop {
            datagram.clear();
            match self.socket.socket_ref().recv(&mut datagram, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return result,
                // Some were lost: the next look at all flows tells.
                Err(error) if is_errno(&error, Errno::ENOBUFS) => continue,
                Err(error) => return Err(error),
            }
            for message in messages(&datagram).filter(|message| message.message_type() == ERROR) {
                match code(message.payload()) {
                    Err(error) if !is_errno(&error, Errno::ENOENT) => result = Err(error),
                    _ => {}
                }
            }
        }
    }

    async fn receive(&mut self) -> io::Result<BytesMut> {
        let mut datagram = BytesMut::with_capacity(DATAGRAM);
        self.socket.recv(&mut datagram).await?;
        Ok(datagram)
    }
}

/// Reads one entry of the kernel's table.
pub fn decode(payload: &[u8]) -> bool {
    let judge = FlowJudge::default();
    let _ = (read_flow(payload, &judge), read_name(payload));
    let openings = attributes(body(payload)).filter(|(kind, _)| *kind == TUPLE_ORIG);
    openings.filter_map(|(_, tuple)| read_tuple(tuple)).count() > 0
}

/// The flow, where it is forbidden. One that another led to is judged by that one.
fn read_flow(payload: &[u8], judge: &FlowJudge) -> Option<Flow> {
    let family = *payload.first()?;
    let entry = body(payload);
    let (opening, source_port) = attribute(entry, TUPLE_ORIG).and_then(read_tuple)?;
    let is_expected = attribute(entry, STATUS).and_then(number).is_some_and(|bits| bits & EXPECTED != 0);
    let master = attribute(entry, TUPLE_MASTER).filter(|_| is_expected).and_then(read_tuple);
    let judged = master.map_or(opening, |(master, _)| master);
    judge.forbids(&judged).then(|| Flow { opening, source_port, family, name: read_name(entry) })
}

/// The attributes that name the entry, with the values that the kernel wrote.
fn read_name(entry: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut name = Attributes::after(&mut bytes);
    for (kind, value) in attributes(entry) {
        match kind {
            TUPLE_ORIG => name.nest(kind, |nest| nest.raw(value)),
            ID | ZONE => name.bytes(kind, value),
            _ => {}
        }
    }
    bytes
}

fn read_tuple(bytes: &[u8]) -> Option<(Packet, u16)> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut port) = (None, 0, 0);
    for (kind, part) in attributes(bytes) {
        for (inner, value) in attributes(part) {
            match (kind, inner) {
                (TUPLE_IP, IP_V4_SRC | IP_V6_SRC) => source = read_address(value),
                (TUPLE_IP, IP_V4_DST | IP_V6_DST) => destination = read_address(value),
                (TUPLE_PROTO, PROTO_NUM) => protocol = value.first().copied().map(Protocol),
                (TUPLE_PROTO, PROTO_SRC_PORT) => source_port = read_port(value)?,
                (TUPLE_PROTO, PROTO_DST_PORT) => port = read_port(value)?,
                _ => {}
            }
        }
    }
    let opening = Packet { source: source?, destination: destination?, protocol: protocol?, port };
    Some((opening, source_port))
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        16 => bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

fn read_port(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|port| u16::from_be_bytes(*port))
}
