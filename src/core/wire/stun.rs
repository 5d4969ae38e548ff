//! STUN binding requests and answers (RFC 8489), as far as finding one's own mapped address needs them.
//!
//! A request carries SOFTWARE `tailnode` and FINGERPRINT, in this order; relays refuse one that lacks either, so
//! that nobody uses them to reflect traffic. An answer is a success with one XOR-MAPPED-ADDRESS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// Binds an answer to its request; 96 random bits, which the caller draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

/// The longest message that is looked at: a binding message with room for attributes we skip.
pub const MAX_LEN: usize = 1024;

const HEADER_LEN: usize = 20;
const COOKIE: u32 = 0x2112_a442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const CLIENT: &[u8; 8] = b"tailnode";

/// Why bytes are not the message that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StunError {
    /// Not STUN at all.
    #[error("not a STUN message")]
    NotStun,
    /// STUN, but not of the expected kind.
    #[error("not a STUN binding {0}")]
    Kind(&'static str),
    /// Its attributes do not fit its length.
    #[error("a STUN attribute is cut short")]
    Short,
    /// A request that does not come from a client of this protocol.
    #[error("the request lacks its SOFTWARE or FINGERPRINT attribute")]
    Stranger,
    /// A success that names no address.
    #[error("the answer names no address")]
    NoAddress,
}

/// Whether a datagram looks like STUN: the test that tells it from WireGuard and DISCO on a shared port.
pub fn looks_like_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN && datagram[0] & 0b1100_0000 == 0 && datagram[4..8] == COOKIE.to_be_bytes()
}

/// A binding request.
pub fn request(transaction: TransactionId) -> Vec<u8> {
    let mut message = header(BINDING_REQUEST, transaction);
    attribute(&mut message, SOFTWARE, CLIENT);
    let length = message.len() + 8;
    set_length(&mut message, length);
    let sum = fingerprint(&message);
    attribute(&mut message, FINGERPRINT, &sum.to_be_bytes());
    message
}

/// Reads a binding request; what the server side answers to.
pub fn read_request(datagram: &[u8]) -> Result<TransactionId, StunError> {
    let (kind, transaction) = read_header(datagram)?;
    if kind != BINDING_REQUEST {
        return Err(StunError::Kind("request"));
    }
    let mut software = false;
    let mut last = None;
    for attribute in Attributes(&datagram[HEADER_LEN..]) {
        let (kind, value) = attribute?;
        software |= kind == SOFTWARE && value == CLIENT;
        last = Some((kind, value));
    }
    match last {
        Some((FINGERPRINT, value))
            if software && value == fingerprint(&datagram[..datagram.len() - 8]).to_be_bytes() =>
        {
            Ok(transaction)
        }
        _ => Err(StunError::Stranger),
    }
}

/// A success answer: the request came from this address.
pub fn response(transaction: TransactionId, source: SocketAddr) -> Vec<u8> {
    let mut message = header(BINDING_SUCCESS, transaction);
    let mut value = vec![0, if source.is_ipv4() { 1 } else { 2 }];
    value.extend((source.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
    value.extend(xor_address(source.ip(), transaction));
    attribute(&mut message, XOR_MAPPED_ADDRESS, &value);
    let length = message.len();
    set_length(&mut message, length);
    message
}

/// Reads a success answer: which request it answers, and our address as the server sees it.
pub fn read_response(datagram: &[u8]) -> Result<(TransactionId, SocketAddr), StunError> {
    let (kind, transaction) = read_header(datagram)?;
    if kind != BINDING_SUCCESS {
        return Err(StunError::Kind("success answer"));
    }
    let mut plain = None;
    for attribute in Attributes(&datagram[HEADER_LEN..]) {
        let (kind, value) = attribute?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_OLD => {
                let address = read_address(value)?;
                let bytes = xor_address(address.ip(), transaction);
                let port = address.port() ^ (COOKIE >> 16) as u16;
                return Ok((transaction, SocketAddr::new(ip(&bytes)?, port)));
            }
            MAPPED_ADDRESS => plain = Some(read_address(value)?),
            _ => {}
        }
    }
    plain.map(|address| (transaction, address)).ok_or(StunError::NoAddress)
}

fn header(kind: u16, transaction: TransactionId) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    message.extend(kind.to_be_bytes());
    message.extend([0, 0]);
    message.extend(COOKIE.to_be_bytes());
    message.extend(transaction.0);
    message
}

fn set_length(message: &mut [u8], whole: usize) {
    message[2..4].copy_from_slice(&((whole - HEADER_LEN) as u16).to_be_bytes());
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// RFC 8489 §14.7: over everything before the attribute, the header's length already counting it.
fn fingerprint(before: &[u8]) -> u32 {
    crc32fast::hash(before) ^ FINGERPRINT_XOR
}

fn read_header(datagram: &[u8]) -> Result<(u16, TransactionId), StunError> {
    if !looks_like_stun(datagram) || datagram.len() > MAX_LEN {
        return Err(StunError::NotStun);
    }
    if usize::from(be16(datagram, 2)) != datagram.len() - HEADER_LEN {
        return Err(StunError::Short);
    }
    let mut transaction = [0; 12];
    transaction.copy_from_slice(&datagram[8..HEADER_LEN]);
    Ok((be16(datagram, 0), TransactionId(transaction)))
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), StunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((head, rest)) = self.0.split_at_checked(4) else {
            self.0 = &[];
            return Some(Err(StunError::Short));
        };
        let length = usize::from(be16(head, 2));
        let Some(value) = rest.get(..length) else {
            self.0 = &[];
            return Some(Err(StunError::Short));
        };
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((be16(head, 0), value)))
    }
}

fn read_address(value: &[u8]) -> Result<SocketAddr, StunError> {
    let (head, address) = value.split_at_checked(4).ok_or(StunError::Short)?;
    Ok(SocketAddr::new(ip(address)?, be16(head, 2)))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, StunError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).map(|v6| Ipv6Addr::from(v6).into()).map_err(|_| StunError::Short)
}

/// RFC 8489 §14.2: the address under the cookie, for IPv6 followed by the transaction. Its own inverse.
fn xor_address(address: IpAddr, transaction: TransactionId) -> Vec<u8> {
    let mask: Vec<u8> = COOKIE.to_be_bytes().into_iter().chain(transaction.0).collect();
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TX: TransactionId = TransactionId(*b"\x21\x2b\xf1\x0e\x0b\x77\x0a\x14\x5c\xaa\x31\x09");

    #[test]
    fn a_request_has_the_bytes_that_relays_expect() {
        let expected: &[&[u8]] = &[
            b"\x00\x01",                 // binding request
            b"\x00\x14",                 // 20 bytes follow the header
            b"\x21\x12\xa4\x42",         // magic cookie
            &TX.0,                       // transaction
            b"\x80\x22\x00\x08tailnode", // SOFTWARE
            b"\x80\x28\x00\x04",         // FINGERPRINT, last
        ];
        let message = request(TX);
        assert_eq!(message[..message.len() - 4], expected.concat());
        assert_eq!(read_request(&message), Ok(TX));
    }

    /// RFC 5769 §2.1: the fingerprint of the sample request there.
    #[test]
    fn the_fingerprint_is_that_of_the_rfc() {
        let sample: &[&[u8]] = &[
            b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae",
            b"\x80\x22\x00\x10STUN test client",
            b"\x00\x24\x00\x04\x6e\x00\x01\xff",
            b"\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36",
            b"\x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20",
            b"\x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2",
        ];
        assert_eq!(fingerprint(&sample.concat()), 0xe57a_3bcf);
    }

    /// RFC 5769 §2.2 and §2.3: the sample answers, without their other attributes.
    #[test]
    fn the_sample_addresses_of_the_rfc_are_read() {
        let tx = TransactionId(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
        let v4 = b"\x01\x01\x00\x0c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
            \x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        assert_eq!(read_response(v4), Ok((tx, "192.0.2.1:32853".parse().unwrap())));
        let v6 = b"\x01\x01\x00\x18\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
            \x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
        assert_eq!(read_response(v6), Ok((tx, "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap())));
    }

    #[test]
    fn a_request_without_its_marks_is_refused() {
        let mut bare = header(BINDING_REQUEST, TX);
        assert_eq!(read_request(&bare), Err(StunError::Stranger));
        attribute(&mut bare, SOFTWARE, CLIENT);
        let length = bare.len();
        set_length(&mut bare, length);
        assert_eq!(read_request(&bare), Err(StunError::Stranger));
        let mut wrong = request(TX);
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(read_request(&wrong), Err(StunError::Stranger));
    }

    proptest! {
        #[test]
        fn an_answer_reads_back(ip: IpAddr, port: u16, tx: [u8; 12]) {
            let source = SocketAddr::new(ip, port);
            prop_assert_eq!(read_response(&response(TransactionId(tx), source)), Ok((TransactionId(tx), source)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), cookie: bool) {
            if cookie && bytes.len() >= HEADER_LEN {
                bytes[0] = 1;
                bytes[4..8].copy_from_slice(&COOKIE.to_be_bytes());
                let length = bytes.len();
                set_length(&mut bytes, length);
            }
            let _ = read_request(&bytes);
            let _ = read_response(&bytes);
        }
    }
}
