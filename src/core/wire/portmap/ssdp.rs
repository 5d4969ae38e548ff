//! UPnP's discovery: a question to everybody, an answer that says where the description is (UPnP device architecture
//! 1.1, §1.3).

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Location, MAX_DATAGRAM, PortmapError};

/// The group that devices listen to.
pub const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// The port alone: some gateways answer only a question of their own.
pub const PORT: u16 = 1900;
/// What is looked for. A gateway of version 2 answers to version 1 too.
pub const GATEWAY: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
/// Header lines that are looked at.
const LINES: usize = 64;

/// Asks for gateways.
pub fn search() -> Vec<u8> {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nST: {GATEWAY}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n\r\n")
        .into_bytes()
}

/// Reads an answer: where the description of a gateway is.
pub fn read(bytes: &[u8]) -> Result<Location, PortmapError> {
    if bytes.len() > MAX_DATAGRAM {
        return Err(PortmapError::Length);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| PortmapError::Foreign)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return Err(PortmapError::Foreign);
    }
    let headers: Vec<(&str, &str)> = lines
        .take(LINES)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let header = |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, v)| *v);
    let kind = header("ST").ok_or(PortmapError::Foreign)?;
    if !kind.contains(":InternetGatewayDevice:") {
        return Err(PortmapError::Foreign);
    }
    Location::read(header("LOCATION").ok_or(PortmapError::Location)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_where_the_description_is() {
        let answer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
                      ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                      Location: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
        assert_eq!(read(answer.as_bytes()).unwrap().path, "/rootDesc.xml");
        for (what, bad) in [
            ("another device", answer.replace("InternetGatewayDevice", "MediaServer")),
            ("an error", answer.replace("200 OK", "500 No")),
            ("a notice", answer.replace("HTTP/1.1 200 OK", "NOTIFY * HTTP/1.1")),
            ("a place by name", answer.replace("192.168.1.1", "router")),
            ("no place", answer.replace("Location", "Elsewhere")),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{what}");
        }
    }
}
