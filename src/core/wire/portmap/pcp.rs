//! Port Control Protocol, version 2 (RFC 6887): the MAP and ANNOUNCE operations, for UDP over IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{MAX_DATAGRAM, PortmapError};

/// The protocol's version in the first byte.
pub const VERSION: u8 = 2;
/// It was done.
pub const SUCCESS: u8 = 0;
/// The server speaks another version: a NAT-PMP server says so to PCP (RFC 6887 §9).
pub const UNSUPPORTED_VERSION: u8 = 1;

const OPCODE_ANNOUNCE: u8 = 0;
const OPCODE_MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const HEADER_LEN: usize = 24;
const MAP_LEN: usize = 36;
const UDP: u8 = 17;

/// A mapping that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Our address, as the server sees it.
    pub client: Ipv4Addr,
    /// Binds the mapping to us.
    pub nonce: [u8; 12],
    pub internal: u16,
    /// The port we would like; 0 for any.
    pub external: u16,
    /// Seconds; 0 gives the mapping back.
    pub lifetime: u32,
}

/// An answer of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// [`SUCCESS`] or why not (RFC 6887 §7.4).
    pub result: u8,
    /// Seconds that the mapping holds, or that the error does.
    pub lifetime: u32,
    /// Seconds since the server began to remember (RFC 6887 §8.5).
    pub epoch: u32,
    /// The mapping, in answers to MAP.
    pub map: Option<Mapping>,
}

/// The mapping in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// As it was asked.
    pub nonce: [u8; 12],
    /// As it was asked.
    pub internal: u16,
    /// Where others reach us.
    pub external: SocketAddr,
}

/// Asks for a mapping, renews it or gives it back.
pub fn map(request: &MapRequest) -> Vec<u8> {
    let mut message = header(OPCODE_MAP, request.lifetime, request.client);
    message.extend(request.nonce);
    message.extend([UDP, 0, 0, 0]);
    message.extend(request.internal.to_be_bytes());
    message.extend(request.external.to_be_bytes());
    message.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    message
}

/// Asks whether the server is there, and since when it remembers.
pub fn announce(client: Ipv4Addr) -> Vec<u8> {
    header(OPCODE_ANNOUNCE, 0, client)
}

/// Reads an answer.
pub fn read(bytes: &[u8]) -> Result<Response, PortmapError> {
    if bytes.len() < HEADER_LEN || bytes.len() > MAX_DATAGRAM {
        return Err(PortmapError::Length);
    }
    if bytes[0] != VERSION || bytes[1] & RESPONSE == 0 {
        return Err(PortmapError::Foreign);
    }
    let map = match bytes[1] & !RESPONSE {
        OPCODE_ANNOUNCE => None,
        OPCODE_MAP => match bytes.get(HEADER_LEN..HEADER_LEN + MAP_LEN) {
            Some(body) => read_map(body),
            // An error may come without what it answers.
            None if bytes[3] != SUCCESS => None,
            None => return Err(PortmapError::Length),
        },
        _ => return Err(PortmapError::Foreign),
    };
    Ok(Response { result: bytes[3], lifetime: u32_at(bytes, 4), epoch: u32_at(bytes, 8), map })
}

fn read_map(body: &[u8]) -> Option<Mapping> {
    let nonce = body[..12].try_into().ok()?;
    let address: [u8; 16] = body[20..36].try_into().ok()?;
    let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    let external = SocketAddr::new(address, u16::from_be_bytes([body[18], body[19]]));
    (body[12] == UDP).then(|| Mapping { nonce, internal: u16::from_be_bytes([body[16], body[17]]), external })
}

fn header(opcode: u8, lifetime: u32, client: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![VERSION, opcode, 0, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend(client.to_ipv6_mapped().octets());
    message
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    /// RFC 6887 figures 2 and 9, field by field.
    #[test]
    fn a_request_has_the_bytes_of_the_rfc() {
        let request = MapRequest {
            client: Ipv4Addr::new(192, 168, 1, 5),
            nonce: *b"abcdefghijkl",
            internal: 41_741,
            external: 41_741,
            lifetime: 7_200,
        };
        let expected = concat!(
            "02010000",                         // version, opcode MAP, reserved
            "00001c20",                         // lifetime
            "00000000000000000000ffffc0a80105", // client address
            "6162636465666768696a6b6c",         // nonce
            "11000000",                         // UDP, reserved
            "a30da30d",                         // internal and suggested external port
            "00000000000000000000ffff00000000", // suggested external address: any
        );
        assert_eq!(HEXLOWER.encode(&map(&request)), expected);
    }

    #[test]
    fn an_answer_names_the_mapping() {
        let mut answer = vec![2, 0x81, 0, 0, 0, 0, 0x0e, 0x10, 0, 0, 0, 9];
        answer.extend([0; 12]);
        answer.extend(*b"abcdefghijkl");
        answer.extend([17, 0, 0, 0, 0xa3, 0x0d, 0x9c, 0x40]);
        answer.extend(Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().octets());
        let response = read(&answer).unwrap();
        assert_eq!((response.result, response.lifetime, response.epoch), (0, 3_600, 9));
        let mapping = response.map.unwrap();
        assert_eq!(mapping.external, "203.0.113.9:40000".parse().unwrap());
        assert_eq!((mapping.internal, mapping.nonce), (41_741, *b"abcdefghijkl"));

        assert_eq!(read(&answer[..50]), Err(PortmapError::Length));
        answer[3] = 2;
        assert_eq!(read(&answer[..24]).unwrap().result, 2, "an error without a body is an error all the same");
        answer[1] = 1;
        assert_eq!(read(&answer), Err(PortmapError::Foreign), "a request is no answer");
    }
}
