//! Questions and answers as they go over the wire (RFC 1035 §4, RFC 6891).

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::domain::Domain;

/// How long an answer of ours may be kept, in seconds: a node that moves is found again soon.
const TTL: u32 = 5;
/// How long it may be kept that there is none, in seconds.
const NEGATIVE_TTL: u32 = 10;
/// What every client takes over UDP without saying so (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;
/// What we take over UDP: as much as passes every link unbroken (RFC 9715 §3).
const OUR_UDP: u16 = 1232;
/// What a message over TCP is at most.
const TCP: usize = u16::MAX as usize;

/// How a message comes, and how its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Each message in a datagram.
    Udp,
    /// Each message behind its length, in a stream.
    Tcp,
}

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) domain: Domain,
    pub(super) query: Query,
    metadata: Metadata,
    edns: Option<Edns>,
    /// The bytes that the client takes.
    pub(super) room: usize,
}

/// What is no question that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unanswerable {
    /// Answers nobody waits for, and what is too short to be answered.
    Silence,
    /// The answer says what is wrong.
    Refused(Vec<u8>),
}

impl Request {
    /// Reads what a client sent.
    pub(super) fn read(bytes: &[u8], transport: Transport) -> Result<Self, Unanswerable> {
        let header = Header::from_bytes(bytes).map_err(|_| Unanswerable::Silence)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(Unanswerable::Silence);
        }
        let refuse = |code| Unanswerable::refused(header.metadata, code);
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let message = Message::from_vec(bytes).map_err(|_| refuse(ResponseCode::FormErr))?;
        let [query] = &message.queries[..] else { return Err(refuse(ResponseCode::FormErr)) };
        if !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) {
            return Err(refuse(ResponseCode::NotImp));
        }
        let edns = message.edns.as_ref();
        let room = match transport {
            Transport::Tcp => TCP,
            Transport::Udp => edns.map_or(PLAIN_UDP, |edns| edns.max_payload().max(PLAIN_UDP)).into(),
        };
        let request = Self {
            domain: Domain::of(&query.name),
            query: query.clone(),
            metadata: message.metadata,
            edns: edns.map(|_| our_edns()),
            room,
        };
        if edns.is_some_and(|edns| edns.version() > 0) {
            return Err(Unanswerable::Refused(request.failed(ResponseCode::BADVERS)));
        }
        Ok(request)
    }

    /// These addresses.
    pub(super) fn addresses(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let mut answer = self.authoritative(ResponseCode::NoError);
        let record = |address: &IpAddr| {
            let data = match *address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            };
            Record::from_rdata(self.query.name.clone(), TTL, data)
        };
        answer.add_answers(addresses.iter().map(record));
        self.fit(&answer)
    }

    /// The name of an address.
    pub(super) fn pointer(&self, name: Name) -> Vec<u8> {
        let mut answer = self.authoritative(ResponseCode::NoError);
        answer.add_answer(Record::from_rdata(self.query.name.clone(), TTL, RData::PTR(PTR(name))));
        self.fit(&answer)
    }

    /// No such name, or nothing of this type, on the word of a zone (RFC 2308 §2).
    pub(super) fn nothing(&self, code: ResponseCode, zone: &Domain) -> Vec<u8> {
        let mut answer = self.authoritative(code);
        if let Some(zone) = zone.to_name() {
            let seconds = NEGATIVE_TTL.cast_signed();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, seconds, seconds, seconds, NEGATIVE_TTL);
            answer.add_authority(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)));
        }
        self.fit(&answer)
    }

    /// Nobody can say.
    pub(super) fn failed(&self, code: ResponseCode) -> Vec<u8> {
        self.fit(&self.answer(code))
    }

    /// The answer of another server, under the number of the question. `None` where it answers something else.
    pub(super) fn passed_on(&self, answer: &[u8]) -> Option<Vec<u8>> {
        if answer.len() <= self.room {
            let mut bytes = answer.to_vec();
            bytes.get_mut(..2)?.copy_from_slice(&self.metadata.id.to_be_bytes());
            return Some(bytes);
        }
        let code = Header::from_bytes(answer).ok()?.metadata.response_code;
        Some(self.cut(code, false))
    }

    fn authoritative(&self, code: ResponseCode) -> Message {
        let mut answer = self.answer(code);
        answer.metadata.authoritative = true;
        answer
    }

    fn answer(&self, code: ResponseCode) -> Message {
        let mut answer = Message::response(self.metadata.id, self.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&self.metadata);
        answer.metadata.recursion_available = self.metadata.recursion_desired;
        answer.metadata.response_code = code;
        answer.add_query(self.query.clone());
        answer.edns = self.edns.clone();
        answer
    }

    /// The bytes; where the client does not take as many, that it should ask over TCP.
    fn fit(&self, answer: &Message) -> Vec<u8> {
        match answer.to_vec() {
            Ok(bytes) if bytes.len() <= self.room => bytes,
            _ => self.cut(answer.metadata.response_code, answer.metadata.authoritative),
        }
    }

    fn cut(&self, code: ResponseCode, is_authoritative: bool) -> Vec<u8> {
        let mut answer = self.answer(code);
        answer.metadata.truncation = true;
        answer.metadata.authoritative = is_authoritative;
        answer.to_vec().unwrap_or_default()
    }
}

impl Unanswerable {
    fn refused(asked: Metadata, code: ResponseCode) -> Self {
        let mut answer = Message::response(asked.id, asked.op_code);
        answer.metadata = Metadata::response_from_request(&asked);
        answer.metadata.response_code = code;
        answer.to_vec().map_or(Self::Silence, Self::Refused)
    }
}

/// What another server's answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// Not an answer to this question: whoever sent it does not know what was asked.
    Foreign,
    /// The rest is to be had over TCP.
    Truncated,
    /// The server cannot say; another may.
    Soft,
    /// An answer.
    Good,
}

/// Looks at an answer to a question that was sent under a number.
pub(super) fn worth(answer: &[u8], id: u16, asked: &Query) -> Worth {
    let mut decoder = BinDecoder::new(answer);
    let Ok(header) = Header::read(&mut decoder) else { return Worth::Foreign };
    let metadata = header.metadata;
    if metadata.id != id || metadata.message_type != MessageType::Response {
        return Worth::Foreign;
    }
    // Servers that understood nothing of the question do not repeat it.
    let is_soft = matches!(
        metadata.response_code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::FormErr | ResponseCode::NotImp
    );
    if header.counts.queries == 0 && is_soft {
        return Worth::Soft;
    }
    let is_same = |query: &Query| {
        query.query_type == asked.query_type && query.query_class == asked.query_class && query.name == asked.name
    };
    match Message::read_queries(&mut decoder, header.counts.queries.into()) {
        Ok(queries) if queries.len() == 1 && queries.iter().all(is_same) => {}
        _ => return Worth::Foreign,
    }
    if metadata.truncation {
        Worth::Truncated
    } else if is_soft {
        Worth::Soft
    } else {
        Worth::Good
    }
}

/// The same question under another number.
pub(super) fn renumbered(question: &[u8], id: u16) -> Vec<u8> {
    let mut bytes = question.to_vec();
    if let Some(number) = bytes.get_mut(..2) {
        number.copy_from_slice(&id.to_be_bytes());
    }
    bytes
}

fn our_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(OUR_UDP).set_version(0);
    edns
}
