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

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use warren_core::plan::own;

use super::super::attributes::{Attributes, attribute, number, text};
use super::super::netfilter::{DATAGRAM, DONE, ERROR, INET, Messages, body, code, messages};
use super::super::netlink::{DUMP_ATTEMPTS, is_errno};
use super::batch::{self, Batch};
use super::elements::{self, AddressReader, Contents};
use super::object::{AnonymousSet, AnySet, Chain, Counter, Ranges, Rule, Set, TABLE};
use super::read::Listing;
use super::table::{Family, SETS};
use super::update::Command;

/// `NFT_TABLE_F_DORMANT`: its chains are not asked.
const DORMANT: u32 = 1;
/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;

/// `NFT_MSG_GET…` of `NFNL_SUBSYS_NFTABLES`. The number of what answers is one less.
const GET_TABLE: u16 = (10 << 8) | 1;
const GET_CHAINS: u16 = (10 << 8) | 4;
const GET_RULES: u16 = (10 << 8) | 7;
const GET_SETS: u16 = (10 << 8) | 10;
const GET_ELEMENTS: u16 = (10 << 8) | 13;
const GET_GENERATION: u16 = (10 << 8) | 16;
const GET_OBJECTS: u16 = (10 << 8) | 19;
const GET_FLOWTABLES: u16 = (10 << 8) | 23;
/// In a request for elements, the attribute that names the set.
const SET: u16 = 2;
/// `NFTA_TABLE_FLAGS`, `NFTA_TABLE_OWNER` and `NFTA_GEN_ID`.
const FLAGS: u16 = 2;
const OWNED_BY: u16 = 7;
const GENERATION_ID: u16 = 1;

/// What the kernel means by "protocol not supported" of the socket and by "invalid argument" of every question.
const NO_NFTABLES: &str = "the running kernel has no nftables, and no tunnel is made without a firewall; load its module \
    (`modprobe nf_tables`), or boot a kernel that has it";

/// The table in which it is tried whether a table can be owned. It is there for milliseconds.
pub(super) const TRIAL: &str = "warren_trial";
/// Answers to a batch: one for each message that failed, and one for the last.
const RECEIVE_BUFFER: i32 = 1 << 20;
/// What a request takes in the send buffer besides its bytes.
const OVERHEAD: usize = 8 << 10;
/// Numbers of requests begin here: those of the messages of a transaction count from nothing.
const REQUESTS: u32 = 1 << 31;

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
pub(super) enum TableOwner {
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
    sequence: u32,
    /// Whether the kernel lets us own a table, where that was tried.
    may_own: Option<bool>,
    /// Whether we do not want to.
    shares: bool,
}

/// What is read, or what is in it that we never write.
type Read<T> = Result<T, String>;

impl NftSocket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(|error| in_words(error, Errno::EPROTONOSUPPORT))?;
        let address = socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, port: address.port_number(), sequence: REQUESTS, may_own: None, shares: false })
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
        self.send(batch::write(commands, flags)).map_err(|refusal| match (refusal, self.table_owner()) {
            (_, Ok(TableOwner::Owned(port))) => Refusal::Owned(port),
            (refusal, _) => refusal,
        })
    }

    /// Takes an orphan over.
    pub(super) fn claim(&mut self) -> Result<(), Refusal> {
        self.send(batch::table_with_flags(own::NFT_TABLE, OWNER | PERSIST))
    }

    /// Whether our table is there, and whose it is.
    pub(super) fn table_owner(&mut self) -> io::Result<TableOwner> {
        match self.ask(GET_TABLE, |request| request.text(TABLE, own::NFT_TABLE)) {
            Ok(table) => Ok(self.read_table_owner(&table)),
            Err(error) if is_errno(&error, Errno::ENOENT) => Ok(TableOwner::Absent),
            Err(error) => Err(in_words(error, Errno::EINVAL)),
        }
    }

    fn read_table_owner(&self, table: &[u8]) -> TableOwner {
        let number = |kind: u16| attribute(table, kind).and_then(number);
        let flags = number(FLAGS).unwrap_or_default();
        match number(OWNED_BY).filter(|_| flags & OWNER != 0) {
            Some(port) if port != self.port => TableOwner::Owned(port),
            _ if flags & DORMANT != 0 => TableOwner::Dormant,
            Some(_) => TableOwner::Ours,
            None if flags & PERSIST != 0 => TableOwner::Orphan,
            None => TableOwner::Free,
        }
    }

    /// The number of the kernel's last transaction, where the kernel tells it. It moves with every change that anybody
    /// makes to any table, so a listing taken at a number is true for as long as the kernel says that number.
    pub(super) fn generation(&mut self) -> Option<u32> {
        let answer = self.ask(GET_GENERATION, |_| {}).ok()?;
        attribute(&answer, GENERATION_ID).and_then(number)
    }

    /// All of our table.
    pub(super) fn listing(&mut self) -> io::Result<Read<Listing>> {
        let flowtables = self.dump(GET_FLOWTABLES, None, |found: &mut usize, _| *found += 1)?;
        if flowtables > 0 {
            return Ok(Err("a flow table is not ours".to_owned()));
        }
        let (chains, counters) = (self.objects(GET_CHAINS, Chain::read)?, self.objects(GET_OBJECTS, Counter::read)?);
        let (sets, rules) = (self.objects(GET_SETS, AnySet::read)?, self.objects(GET_RULES, Rule::read)?);
        let (mut named, mut anonymous) = (Vec::new(), BTreeMap::new());
        let sets = match sets {
            Ok(sets) => sets,
            Err(difference) => return Ok(Err(difference)),
        };
        for set in sets {
            match set {
                AnySet::Named(set) => named.push(set),
                AnySet::Anonymous { name, key } => match self.items(&name)? {
                    Ok(items) => drop(anonymous.insert(name, AnonymousSet { key, items })),
                    Err(difference) => return Ok(Err(difference)),
                },
            }
        }
        let contents = self.contents(&named)?;
        let put_together = || {
            let mut rules = rules?;
            rules.iter_mut().for_each(|rule| rule.take_sets(|name| anonymous.remove(name)));
            Ok(Listing { chains: chains?, sets: named, counters: counters?, rules, contents: contents? })
        };
        Ok(put_together())
    }

    /// The counters of our table.
    pub(super) fn counters(&mut self) -> io::Result<Read<Vec<Counter>>> {
        self.objects(GET_OBJECTS, Counter::read)
    }

    /// All objects of our table of one kind.
    fn objects<T>(&mut self, get: u16, read: fn(&[u8]) -> Read<T>) -> io::Result<Read<Vec<T>>> {
        let found = self.dump(get, None, |found: &mut Vec<Read<T>>, object| found.push(read(object)))?;
        Ok(found.into_iter().collect())
    }

    /// What is in the sets that hold addresses. One that is not as we write it is not read: that is told anyway.
    fn contents(&mut self, listed: &[Set]) -> io::Result<Read<BTreeMap<String, Contents>>> {
        let mut contents = BTreeMap::new();
        for family in Family::BOTH {
            for (name, holds) in SETS {
                let set = holds.set(name, family);
                if !listed.contains(&set) {
                    continue;
                }
                let found = self.elements(&set.name, AddressReader::take)?;
                match found.and_then(|found: AddressReader| found.finish(set.is_interval)) {
                    Ok(found) => drop(contents.insert(set.name, found)),
                    Err(difference) => return Ok(Err(format!("set {}: {difference}", set.name))),
                }
            }
        }
        Ok(Ok(contents))
    }

    /// What is in a set without a name: first and last of each range.
    fn items(&mut self, name: &str) -> io::Result<Read<Ranges>> {
        let found = self.elements(name, |found: &mut Vec<Option<_>>, element| found.push(element.range()))?;
        let whole = |found: Vec<Option<_>>| found.into_iter().collect::<Option<Vec<_>>>();
        Ok(found.and_then(|found| whole(found).ok_or_else(|| "a rule's set has what we do not write".to_owned())))
    }

    fn elements<S: Default>(
        &mut self,
        set: &str,
        take: impl Fn(&mut S, elements::Element<&[u8]>),
    ) -> io::Result<Read<S>> {
        let (found, result) =
            self.dump(GET_ELEMENTS, Some(set), |(found, result): &mut (S, Option<String>), list| {
                let read = elements::read_message(list, |element| take(found, element));
                *result = result.take().or(read.err());
            })?;
        Ok(result.map_or(Ok(found), Err))
    }

    /// Reads all that our table has of one kind, into a value that begins anew where something changed meanwhile. What
    /// is not there has nothing: that it is missing is seen where the table is compared.
    fn dump<S: Default>(&mut self, get: u16, set: Option<&str>, mut read: impl FnMut(&mut S, &[u8])) -> io::Result<S> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.request(get, NLM_F_DUMP, |request| {
                request.text(TABLE, own::NFT_TABLE);
                set.iter().for_each(|set| request.text(SET, set));
            })?;
            let mut found = S::default();
            let is_interrupted = self.read_dump(sequence, |kind, object| {
                // Not every kernel picks out what is of our table.
                if kind == get - 1 && attribute(object, TABLE).and_then(text) == Some(own::NFT_TABLE) {
                    read(&mut found, object);
                }
            });
            match is_interrupted {
                Ok(false) => return Ok(found),
                Ok(true) => {}
                Err(error) if is_errno(&error, Errno::ENOENT) => return Ok(S::default()),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the table kept changing while it was read"))
    }

    /// Reads a dump to its end. Says whether something changed meanwhile, so that things may have been passed over.
    fn read_dump(&self, sequence: u32, mut read: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        let mut is_interrupted = false;
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram).filter(|message| message.sequence_number() == sequence) {
                is_interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    ERROR | DONE => return code(message.payload()).map(|()| is_interrupted),
                    kind => read(kind, body(message.payload())),
                }
            }
        }
    }

    /// Asks for one thing, and returns its attributes.
    fn ask(&mut self, get: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> io::Result<Vec<u8>> {
        let sequence = self.request(get, 0, fill)?;
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram).filter(|message| message.sequence_number() == sequence) {
                match message.message_type() {
                    ERROR => code(message.payload())?,
                    kind if kind == get - 1 => return Ok(body(message.payload()).to_vec()),
                    kind => return Err(io::Error::other(format!("an answer of type {kind}"))),
                }
            }
        }
    }

    fn request(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1) | REQUESTS;
        let mut request = Messages::default();
        request.push(kind, flags, self.sequence, (INET, 0), fill);
        self.send_bytes(request.bytes())?;
        Ok(self.sequence)
    }

    fn send(&mut self, batch: Batch) -> Result<(), Refusal> {
        let (batch, last, about) = batch.finish();
        self.send_bytes(batch.bytes())?;
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
        let mut answer = Vec::with_capacity(DATAGRAM);
        self.socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
        Ok(answer)
    }
}

/// The same error; in words where it means that there is no nftables.
fn in_words(error: io::Error, means: Errno) -> io::Error {
    if is_errno(&error, means) { io::Error::other(NO_NFTABLES) } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_nftables_it_is_said_what_to_do() {
        for means in [Errno::EPROTONOSUPPORT, Errno::EINVAL] {
            let told = in_words(io::Error::from(means), means).to_string();
            assert!(told.contains("has no nftables") && told.contains("`modprobe nf_tables`"), "{told}");
            assert!(is_errno(&in_words(io::Error::from(Errno::ENOMEM), means), Errno::ENOMEM));
        }
    }
}
