//! The answer to `dns-query`: a DNS message (RFC 1035) about a name of the network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The types of records that are asked for, by their numbers.
pub mod dns_type {
    /// IPv4 addresses.
    pub const A: u16 = 1;
    /// IPv6 addresses.
    pub const AAAA: u16 = 28;
    /// Both.
    pub const ANY: u16 = 255;
}

const CLASS_INTERNET: u16 = 1;
/// An answer with authority, to a question that wished for recursion, which is to be had.
const ANSWERS: u16 = 0x8580;
const NO_SUCH_NAME: u16 = 3;
/// How long a record may be kept, in seconds.
const KEPT: u32 = 600;
/// A pointer to the name of the question, which begins after the header.
const QUESTION: u16 = 0xc00c;
const LABEL_LEN: usize = 63;
const NAME_LEN: usize = 253;

/// `dns-query`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsReply {
    /// The message, in base64.
    pub bytes: String,
    /// Who was asked: nobody, where the answer is the agent's own.
    pub resolvers: Vec<serde_json::Value>,
}

/// The message about a name and its addresses; without any list of them, that there is no such name. Nothing for what is
/// no name.
pub fn dns_message(name: &str, kind: u16, addresses: Option<&[IpAddr]>) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut asked = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=LABEL_LEN).contains(&usize::from(*length)))?;
        asked.push(length);
        asked.extend(label.bytes());
    }
    asked.push(0);
    if name.len() > NAME_LEN {
        return None;
    }
    let of_kind = |address: &&IpAddr| match kind {
        dns_type::A => address.is_ipv4(),
        dns_type::AAAA => address.is_ipv6(),
        _ => true,
    };
    let found: Vec<&IpAddr> = addresses.unwrap_or_default().iter().filter(of_kind).collect();
    let flags = if addresses.is_some() { ANSWERS } else { ANSWERS | NO_SUCH_NAME };
    let count = u16::try_from(found.len()).ok()?;
    let mut message = Vec::new();
    for number in [0, flags, 1, count, 0, 0] {
        message.extend(u16::to_be_bytes(number));
    }
    message.extend(asked);
    message.extend([kind, CLASS_INTERNET].map(u16::to_be_bytes).concat());
    for address in found {
        let (kind, bytes) = match address {
            IpAddr::V4(address) => (dns_type::A, address.octets().to_vec()),
            IpAddr::V6(address) => (dns_type::AAAA, address.octets().to_vec()),
        };
        message.extend([QUESTION, kind, CLASS_INTERNET].map(u16::to_be_bytes).concat());
        message.extend(KEPT.to_be_bytes());
        message.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
        message.extend(bytes);
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_answered_with_its_addresses_of_the_type_that_was_asked_for() {
        let addresses = ["100.64.0.2".parse().unwrap(), "fd7a:115c:a1e0::2".parse().unwrap()];
        let message = dns_message("bob.example.", dns_type::A, Some(&addresses)).unwrap();
        let expected: &[&[u8]] = &[
            b"\x00\x00\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00",
            b"\x03bob\x07example\x00\x00\x01\x00\x01",
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x02\x58\x00\x04\x64\x40\x00\x02",
        ];
        assert_eq!(message, expected.concat());
        let both = dns_message("bob.example", dns_type::ANY, Some(&addresses)).unwrap();
        assert_eq!(both.len(), message.len() + 12 + 16);
    }

    #[test]
    fn no_such_name_and_no_name_at_all_are_told_apart() {
        let message = dns_message("carol.example", dns_type::AAAA, None).unwrap();
        assert_eq!((message[3] & 15, message[7]), (3, 0));
        for wrong in ["", ".", "a..b", &"x".repeat(64), &"ab.".repeat(90)] {
            assert_eq!(dns_message(wrong, dns_type::A, None), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_answered_without_a_panic(name in ".{0,300}", kind: u16) {
            let _ = dns_message(&name, kind, Some(&["100.64.0.2".parse().unwrap()]));
        }
    }
}
