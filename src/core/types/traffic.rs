//! A protocol and a port, as people ask about packets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a packet carries, as far as somebody said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// The protocol's name or number; any where nothing is said.
    pub protocol: Option<String>,
    /// The port it goes to.
    pub port: Option<u16>,
}

/// A text that names no traffic.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not like tcp/22, udp/53, icmp or 22")]
pub struct TrafficError(String);

impl FromStr for Traffic {
    type Err = TrafficError;

    /// Reads `tcp/22`, `udp/53` or `icmp`; a port alone is one of TCP, and the empty text is anything.
    fn from_str(text: &str) -> Result<Self, TrafficError> {
        let wrong = || TrafficError(text.to_owned());
        let protocol = |name: &str| {
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            is_name.then(|| Some(name.to_owned())).ok_or_else(wrong)
        };
        let port = |number: &str| number.parse().map(Some).map_err(|_| wrong());
        match text.split_once('/') {
            Some((name, number)) => Ok(Self { protocol: protocol(name)?, port: port(number)? }),
            None if text.is_empty() => Ok(Self::default()),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Self { protocol: Some("tcp".to_owned()), port: port(text)? })
            }
            None => Ok(Self { protocol: protocol(text)?, port: None }),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.protocol, self.port) {
            (Some(protocol), Some(port)) => write!(f, "{protocol}/{port}"),
            (Some(protocol), None) => f.write_str(protocol),
            (None, _) => f.write_str("anything"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_and_a_port_may_be_given_together_or_alone() {
        let read = |text: &str| text.parse::<Traffic>().map(|traffic| (traffic.protocol, traffic.port));
        assert_eq!(read("udp/53"), Ok((Some("udp".to_owned()), Some(53))));
        assert_eq!(read("22"), Ok((Some("tcp".to_owned()), Some(22))));
        assert_eq!(read("icmp"), Ok((Some("icmp".to_owned()), None)));
        assert_eq!(read("ipv6-icmp"), Ok((Some("ipv6-icmp".to_owned()), None)));
        assert_eq!(read(""), Ok((None, None)));
        for wrong in ["tcp/", "tcp/70000", "70000", "tcp&x=1", "/", "/22", "a b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
