//! Ports and protocols as a policy writes them: `22`, `80-443`, `22,80`, `*`, `tcp:443`, `icmp:*`.

use std::fmt;
use std::str::FromStr;

use crate::wire::control::Ports;

/// A run of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub first: u16,
    /// Itself in it.
    pub last: u16,
}

impl PortRange {
    /// Every port, and protocols without ports.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// Whether the run includes a port.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<PortRange> for Ports {
    fn from(range: PortRange) -> Self {
        Self { first: range.first, last: range.last }
    }
}

/// An IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// What a rule without a protocol lets through: TCP, UDP, ICMP and ICMPv6.
    pub const DEFAULT: [Self; 4] = [Self(6), Self(17), Self(1), Self(58)];

    /// Whether packets of the protocol carry ports.
    pub fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 132)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    /// Reads a name or a number, as policies write them.
    fn from_str(text: &str) -> Result<Self, String> {
        parse_protocol(text)?.ok_or_else(|| "no protocol".to_owned())
    }
}

/// The names that a policy may use in place of a protocol number.
const NAMES: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
];

/// A protocol by name or number; the empty text is none.
pub(super) fn parse_protocol(text: &str) -> Result<Option<Protocol>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Some((_, number)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        return Ok(Some(Protocol(*number)));
    }
    if text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("leading 0 not permitted in protocol number: {text:?}"));
    }
    let number = text.parse().ok().filter(|_| !text.starts_with('+'));
    number.map(|number| Some(Protocol(number))).ok_or_else(|| {
        format!("proto name {text:?} not known; use protocol number 0-255 or protocol name (icmp, tcp, udp, etc.)")
    })
}

/// A list of port runs: `22`, `80-443`, `22,80-90`, `*`.
pub(super) fn parse_ports(text: &str) -> Result<Vec<PortRange>, String> {
    if text == "*" {
        return Ok(vec![PortRange::ALL]);
    }
    let run = |piece| parse_run(piece).map_err(|reason| format!("port range {piece:?}: {reason}"));
    text.split(',').map(run).collect()
}

fn parse_run(text: &str) -> Result<PortRange, &'static str> {
    if text.matches('-').count() > 1 {
        return Err("too many dashes(-)");
    }
    let (first, last) = text.split_once('-').map_or((text, None), |(first, last)| (first, Some(last)));
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let first = number(first).ok_or("invalid first integer")?;
    let last = last.map_or(Ok(first), |last| number(last).ok_or("invalid last integer"))?;
    match (first, last) {
        (0, u16::MAX) => Ok(PortRange::ALL),
        (0, _) => Err("first port must be >0, or use '*' for wildcard"),
        (first, last) if first > last => Err("first port must be >= last port"),
        (first, last) => Ok(PortRange { first, last }),
    }
}

/// What a grant's `ip` entry opens: `*`, ports, or `protocol:ports`.
pub(super) fn parse_protocol_ports(text: &str) -> Result<(Option<Protocol>, Vec<PortRange>), String> {
    let Some((protocol, ports)) = text.split_once(':') else {
        return Ok((None, parse_ports(text)?));
    };
    if ports.contains(':') {
        return Err("expected only one colon in Internet protocol and port type".to_owned());
    }
    let protocol = if protocol == "*" { None } else { parse_protocol(protocol)? };
    let ports = parse_ports(ports)?;
    check_ports(protocol, &ports)?;
    Ok((protocol, ports))
}

/// Only TCP, UDP and SCTP have ports to choose from.
pub(super) fn check_ports(protocol: Option<Protocol>, ports: &[PortRange]) -> Result<(), String> {
    let portless = protocol.is_some_and(|protocol| !protocol.has_ports());
    if portless && ports.iter().any(|range| *range != PortRange::ALL) {
        return Err("this protocol has no ports: only \"*\" is allowed".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn ports_are_single_runs_lists_or_all() {
        assert_eq!(parse_ports("*"), Ok(vec![PortRange::ALL]));
        assert_eq!(parse_ports("22,80-443"), Ok(vec![run(22, 22), run(80, 443)]));
        assert_eq!(parse_ports("0-65535"), Ok(vec![PortRange::ALL]));
        for (bad, reason) in [
            ("ssh", "port range \"ssh\": invalid first integer"),
            ("1-x", "port range \"1-x\": invalid last integer"),
            ("0", "port range \"0\": first port must be >0, or use '*' for wildcard"),
            ("-1", "port range \"-1\": invalid first integer"),
            ("65536", "port range \"65536\": invalid first integer"),
            ("9-1", "port range \"9-1\": first port must be >= last port"),
            ("1-2-3", "port range \"1-2-3\": too many dashes(-)"),
            ("22,", "port range \"\": invalid first integer"),
        ] {
            assert_eq!(parse_ports(bad), Err(reason.to_owned()));
        }
    }

    #[test]
    fn a_protocol_is_a_name_in_any_case_or_a_number_without_leading_zero() {
        for (text, number) in [("TCP", 6), ("6", 6), ("ipv6-icmp", 58), ("255", 255), ("ip-in-ip", 4)] {
            assert_eq!(parse_protocol(text), Ok(Some(Protocol(number))), "{text}");
        }
        assert_eq!(parse_protocol(""), Ok(None));
        for bad in ["*", "0", "06", "256", "+6", "tcpx"] {
            assert!(parse_protocol(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grant_opens_a_protocol_with_ports_and_a_bare_number_is_a_port() {
        assert_eq!(parse_protocol_ports("47"), Ok((None, vec![run(47, 47)])));
        assert_eq!(parse_protocol_ports("tcp:80"), Ok((Some(Protocol(6)), vec![run(80, 80)])));
        assert_eq!(parse_protocol_ports("icmp:*"), Ok((Some(Protocol(1)), vec![PortRange::ALL])));
        assert!(parse_protocol_ports("icmp:80").is_err());
        assert!(parse_protocol_ports("a:b:80").is_err());
    }
}
