//! Our netlink socket for nf_tables: it sends transactions, and it may own the table.
//!
//! Where the kernel knows both (6.9 and later), a table is made with `NFT_TABLE_F_OWNER`, so that nobody but this
//! socket changes, flushes or deletes it, and with `NFT_TABLE_F_PERSIST`, so that it outlives the socket: when we end,
//! however we end, the kernel takes the ownership back and the table filters on. Such an orphan is open to everybody,
//! `nft` and the next of us included; we take it over as we find it. A table without these flags stays without until
//! it is made anew: the kernel sets them only on a new one.
//!
//! The kernel answers within the request, so nothing waits here for long; a large transaction is work for a thread
//! that may block.

use std::collections::BTreeMap;
use std::{fmt, io};

use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use warren_core::plan::own;

use super::super::netlink::{DUMP_ATTEMPTS, code, is_errno, messages};
use super::attributes::Attributes;
use super::batch::{self, Batch};
use super::elements::{self, Contents};
use super::object::Command;

/// `NFT_TABLE_F_DORMANT`: its chains are not asked.
const DORMANT: u32 = 1;
/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;

/// `NFT_MSG_NEWTABLE` and `NFT_MSG_GETTABLE` of `NFNL_SUBSYS_NFTABLES`.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = (10 << 8) | 1;
/// `NFT_MSG_NEWSETELEM` and `NFT_MSG_GETSETELEM`.
const NEW_ELEMENTS: u16 = (10 << 8) | 12;
const GET_ELEMENTS: u16 = (10 << 8) | 13;
/// `NFTA_TABLE_NAME`, which is also that of a request for elements; `NFTA_TABLE_FLAGS`, `NFTA_TABLE_OWNER`.
const NAME: u16 = 1;
const FLAGS: u16 = 2;
const OWNED_BY: u16 = 7;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFPROTO_INET`.
const INET: u8 = 1;
const NETLINK_HEADER: usize = 16;
/// Family, version and resource before the attributes.
const NFTABLES_HEADER: usize = 4;

/// The table in which it is tried whether a table can be owned. It is there for milliseconds.
pub(super) const TRIAL: &str = "warren_trial";
/// Answers to a batch: one for each message that failed, and one for the last.
const RECEIVE_BUFFER: i32 = 1 << 20;
/// The kernel dumps into buffers of at most 32 KiB.
const ANSWER: usize = 64 << 10;
/// What a request takes in the send buffer besides its bytes.
const OVERHEAD: usize = 8 << 10;

/// What became of a transaction that the kernel did not take.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A set has as many elements as it may.
    Full,
    /// Somebody else's socket owns the table, of this number.
    Owned(u32),
    /// Anything else, in words.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("a set is full"),
            Self::Owned(port) => write!(
                f,
                "another process owns the table (netlink port {port}): another warrend runs, or one hangs; end it first"
            ),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Whether our table is there, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Absent,
    /// Anybody may change it.
    Free,
    /// So may anybody, but we can become its owner.
    Orphan,
    /// We own it.
    Ours,
    /// Another socket, of this number, owns it.
    Owned(u32),
    /// It is there and switched off.
    Dormant,
}

/// See the module.
pub(super) struct NftSocket {
    socket: Socket,
    port: u32,
    /// Whether the kernel lets us own a table, where that was tried.
    may_own: Option<bool>,
    /// Whether we do not want to.
    shares: bool,
}

impl NftSocket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let address = socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, port: address.port_number(), may_own: None, shares: false })
    }

    /// From here on, no table is made ours.
    pub(super) fn share(&mut self) {
        self.shares = true;
    }

    /// Whether an orphan is to be taken over.
    pub(super) fn may_claim(&self) -> bool {
        !self.shares
    }

    /// Whether the trial whether a table can be owned is still to be made.
    pub(super) fn is_trial_due(&self) -> bool {
        self.may_own.is_none() && !self.shares
    }

    /// Makes a table that we own, for the time of the trial.
    pub(super) fn begin_trial(&mut self) -> bool {
        // One that a trial left behind that was cut short.
        let _ = self.send(batch::without_table(TRIAL));
        let begun = self.send(batch::table_with_flags(TRIAL, OWNER | PERSIST)).is_ok();
        self.may_own = Some(begun);
        begun
    }

    /// Ends it. `is_readable` says whether `nft` can read such a table.
    pub(super) fn end_trial(&mut self, is_readable: bool) {
        let _ = self.send(batch::without_table(TRIAL));
        self.may_own = Some(is_readable);
    }

    /// Carries out all changes or none. A table that is made anew is ours where that can be.
    pub(super) fn commit(&mut self, commands: &[Command]) -> Result<(), Refusal> {
        let flags = if self.may_own == Some(true) && !self.shares { OWNER | PERSIST } else { 0 };
        let batch = batch::write(commands, flags).map_err(|unwritable| Refusal::Failed(unwritable.0))?;
        self.send(batch).map_err(|refusal| match (refusal, self.standing()) {
            (_, Ok(Standing::Owned(port))) => Refusal::Owned(port),
            (refusal, _) => refusal,
        })
    }

    /// Takes an orphan over.
    pub(super) fn claim(&mut self) -> Result<(), Refusal> {
        self.send(batch::table_with_flags(own::NFT_TABLE, OWNER | PERSIST))
    }

    /// Whether our table is there, and whose it is.
    pub(super) fn standing(&mut self) -> io::Result<Standing> {
        self.send_bytes(&get(GET_TABLE, 0, &[own::NFT_TABLE]))?;
        let answer = self.receive()?;
        let message = NetlinkBuffer::new_checked(answer.as_slice()).map_err(io::Error::other)?;
        match (message.message_type(), code(message.payload())) {
            (NEW_TABLE, _) => Ok(self.read_standing(message.payload())),
            (ERROR, Err(error)) if is_errno(&error, Errno::ENOENT) => Ok(Standing::Absent),
            (ERROR, Err(error)) => Err(error),
            (kind, _) => Err(io::Error::other(format!("an answer of type {kind}"))),
        }
    }

    /// The elements of the sets that hold addresses, or what is in them that we never write.
    pub(super) fn contents(&mut self) -> io::Result<Result<BTreeMap<&'static str, Contents>, String>> {
        let mut contents = BTreeMap::new();
        for (set, kind) in elements::SETS {
            let found = self.elements(set)?.and_then(|found| elements::assemble(kind, found));
            match found {
                Ok(found) => drop(contents.insert(set, found)),
                Err(difference) => return Ok(Err(format!("set {set}: {difference}"))),
            }
        }
        Ok(Ok(contents))
    }

    fn elements(&mut self, set: &str) -> io::Result<Result<Vec<elements::Raw>, String>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send_bytes(&get(GET_ELEMENTS, NLM_F_DUMP, &[own::NFT_TABLE, set]))?;
            let (mut found, mut result) = (Vec::new(), Ok(()));
            let is_interrupted = self.read_dump(|attributes| {
                if result.is_ok() {
                    result = elements::read_message(attributes, &mut found);
                }
            })?;
            if !is_interrupted {
                return Ok(result.map(|()| found));
            }
        }
        Err(io::Error::other(format!("set {set} kept changing while it was read")))
    }

    /// Reads a dump to its end. Says whether something changed meanwhile, so that things may have been passed over.
    fn read_dump(&self, mut read: impl FnMut(&[u8])) -> io::Result<bool> {
        let (mut is_interrupted, mut end) = (false, None);
        while end.is_none() {
            let datagram = self.receive()?;
            for message in messages(&datagram) {
                is_interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NEW_ELEMENTS => read(message.payload().get(NFTABLES_HEADER..).unwrap_or_default()),
                    ERROR | DONE => end = Some(code(message.payload())),
                    _ => {}
                }
            }
        }
        match end {
            // A set that is missing is missed where the table is compared.
            Some(Err(error)) if !is_errno(&error, Errno::ENOENT) => Err(error),
            _ => Ok(is_interrupted),
        }
    }

    fn read_standing(&self, payload: &[u8]) -> Standing {
        let attributes = payload.get(NFTABLES_HEADER..).unwrap_or_default();
        let number = |kind: u16| {
            let found = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() & NLA_TYPE_MASK == kind);
            found.and_then(|nla| nla.value().try_into().ok()).map(u32::from_be_bytes)
        };
        let flags = number(FLAGS).unwrap_or_default();
        match number(OWNED_BY).filter(|_| flags & OWNER != 0) {
            Some(port) if port != self.port => Standing::Owned(port),
            _ if flags & DORMANT != 0 => Standing::Dormant,
            Some(_) => Standing::Ours,
            None if flags & PERSIST != 0 => Standing::Orphan,
            None => Standing::Free,
        }
    }

    fn send(&mut self, batch: Batch) -> Result<(), Refusal> {
        let (bytes, last, about) = batch.finish();
        self.send_bytes(&bytes)?;
        let (mut refusal, mut is_done) = (None, false);
        loop {
            let answer = match self.receive() {
                Ok(answer) => answer,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Answers were lost, all of failures.
                Err(error) => {
                    refusal.get_or_insert(Refusal::from(error));
                    continue;
                }
            };
            for message in messages(&answer).filter(|message| message.message_type() == ERROR) {
                let number = message.sequence_number();
                match code(message.payload()) {
                    Ok(()) => is_done |= number == last,
                    Err(error) if is_errno(&error, Errno::ENFILE) => drop(refusal.get_or_insert(Refusal::Full)),
                    Err(error) => {
                        let about = about.get(number as usize).map_or("a change", String::as_str);
                        refusal.get_or_insert_with(|| Refusal::Failed(format!("{about}: {error}")));
                    }
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if is_done => Ok(()),
            None => Err(Refusal::Failed("the kernel did not answer".to_owned())),
        }
    }

    /// A transaction is one datagram, however long. Past the limit that an ordinary socket has, it takes the right to
    /// administer the network; where that is not enough, the kernel says that the message is too long.
    fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let room = bytes.len() + OVERHEAD;
        if setsockopt(&self.socket, sockopt::SndBufForce, &room).is_err() {
            let _ = setsockopt(&self.socket, sockopt::SndBuf, &room);
        }
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut answer = Vec::with_capacity(ANSWER);
        self.socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
        Ok(answer)
    }
}

/// A request that names a table, and maybe one of its sets.
fn get(kind: u16, flags: u16, names: &[&str]) -> Vec<u8> {
    let mut request = vec![0; NETLINK_HEADER + NFTABLES_HEADER];
    request[NETLINK_HEADER] = INET;
    let mut attributes = Attributes::after(&mut request);
    for (attribute, name) in (NAME..).zip(names) {
        attributes.text(attribute, name);
    }
    let length = u32::try_from(request.len()).unwrap_or_default();
    let mut header = NetlinkBuffer::new(&mut request);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | flags);
    request
}
