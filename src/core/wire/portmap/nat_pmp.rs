//! NAT-PMP (RFC 6886): the external address, and mappings of UDP ports.

use std::net::Ipv4Addr;

use super::PortmapError;
use super::pcp::u32_at;

/// The protocol's version in the first byte.
pub const VERSION: u8 = 0;
/// It was done.
pub const SUCCESS: u16 = 0;

const ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const RESPONSE: u8 = 0x80;
/// No answer is longer.
const MAX_LEN: usize = 64;

/// An answer of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Its own address outside.
    Address {
        /// Seconds since it began to remember.
        epoch: u32,
        address: Ipv4Addr,
    },
    /// A mapping.
    Map {
        /// Seconds since it began to remember.
        epoch: u32,
        /// As it was asked.
        internal: u16,
        external: u16,
        /// Seconds that the mapping holds.
        lifetime: u32,
    },
    /// It says no (RFC 6886 §3.5).
    Refused {
        /// The reason, never [`SUCCESS`].
        result: u16,
    },
}

/// Asks for the external address.
pub fn address() -> Vec<u8> {
    vec![VERSION, ADDRESS]
}

/// Asks for a mapping, renews it, or with a lifetime of 0 gives it back.
pub fn map(internal: u16, external: u16, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, MAP_UDP, 0, 0];
    message.extend(internal.to_be_bytes());
    message.extend(external.to_be_bytes());
    message.extend(lifetime.to_be_bytes());
    message
}

/// Reads an answer.
pub fn read(bytes: &[u8]) -> Result<Response, PortmapError> {
    if bytes.len() < 4 || bytes.len() > MAX_LEN {
        return Err(PortmapError::Length);
    }
    if bytes[0] != VERSION || bytes[1] & RESPONSE == 0 {
        return Err(PortmapError::Foreign);
    }
    let result = u16::from_be_bytes([bytes[2], bytes[3]]);
    if result != SUCCESS {
        return Ok(Response::Refused { result });
    }
    let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    match (bytes[1] & !RESPONSE, bytes.len()) {
        (ADDRESS, 12..) => {
            let address = Ipv4Addr::from(u32_at(bytes, 8));
            Ok(Response::Address { epoch: u32_at(bytes, 4), address })
        }
        (MAP_UDP, 16..) => Ok(Response::Map {
            epoch: u32_at(bytes, 4),
            internal: u16_at(8),
            external: u16_at(10),
            lifetime: u32_at(bytes, 12),
        }),
        (ADDRESS | MAP_UDP, _) => Err(PortmapError::Length),
        _ => Err(PortmapError::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6886 §3.2 and §3.3.
    #[test]
    fn questions_and_answers_have_the_bytes_of_the_rfc() {
        assert_eq!(address(), [0, 0]);
        assert_eq!(map(41_741, 0, 7_200), [0, 1, 0, 0, 0xa3, 0x0d, 0, 0, 0, 0, 0x1c, 0x20]);
        let answer = [0, 0x80, 0, 0, 0, 0, 0, 7, 203, 0, 113, 9];
        assert_eq!(read(&answer), Ok(Response::Address { epoch: 7, address: Ipv4Addr::new(203, 0, 113, 9) }));
        let answer = [0, 0x81, 0, 0, 0, 0, 0, 7, 0xa3, 0x0d, 0x9c, 0x40, 0, 0, 0x0e, 0x10];
        let mapped = Response::Map { epoch: 7, internal: 41_741, external: 40_000, lifetime: 3_600 };
        assert_eq!(read(&answer), Ok(mapped));
        assert_eq!(read(&answer[..15]), Err(PortmapError::Length));
        assert_eq!(read(&[0, 0x81, 0, 2, 0, 0, 0, 7]), Ok(Response::Refused { result: 2 }));
        assert_eq!(read(&[0, 0x82, 0, 0, 0, 0, 0, 7]), Err(PortmapError::Foreign), "TCP was never asked for");
    }
}
