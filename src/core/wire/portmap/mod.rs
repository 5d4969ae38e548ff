//! What a router is asked for a port, and what it answers: PCP (RFC 6887), NAT-PMP (RFC 6886), and UPnP's discovery
//! (SSDP) and internet gateway device (IGD, SOAP over HTTP).
//!
//! Everything that is read comes from whoever answers on the local network: lengths are bounded, counts are bounded,
//! and an address is an IPv4 literal or nothing.

pub mod igd;
pub mod nat_pmp;
pub mod pcp;
pub mod ssdp;

use std::net::{Ipv4Addr, SocketAddrV4};

use thiserror::Error;

/// Where PCP and NAT-PMP servers listen (RFC 6887 §19.2, RFC 6886 §3.1).
pub const PORT: u16 = 5351;
/// Bytes of a datagram that are looked at: PCP's limit (RFC 6887 §7), and room for SSDP's headers.
pub const MAX_DATAGRAM: usize = 2_048;
/// Bytes of a description or a SOAP answer. Real ones have 1 to 10 KiB.
pub const MAX_XML: usize = 64 * 1024;

/// Why an answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PortmapError {
    /// It is too short for what it claims to be, or too long for anybody.
    #[error("the answer has a wrong length")]
    Length,
    /// It is no answer of this protocol.
    #[error("not an answer of this protocol")]
    Foreign,
    /// It is not the XML that it should be.
    #[error("the answer is not the expected XML")]
    Xml,
    /// It leads elsewhere than to an IPv4 literal over plain HTTP.
    #[error("the answer names no place that can be asked")]
    Location,
}

/// A place that can be asked over HTTP: an IPv4 literal, a port, path and query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub to: SocketAddrV4,
    /// Begins with `/`.
    pub path: String,
}

impl Location {
    /// The longest path.
    pub const PATH: usize = 1_024;

    /// Reads an absolute URL.
    pub fn read(url: &str) -> Result<Self, PortmapError> {
        let scheme = url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
        let rest = scheme.and_then(|_| url.get(7..)).ok_or(PortmapError::Location)?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let to = match authority.split_once(':') {
            Some((host, port)) => host.parse().ok().zip(port.parse().ok().filter(|port| *port != 0)),
            None => authority.parse().ok().map(|host: Ipv4Addr| (host, 80)),
        };
        let (host, port) = to.ok_or(PortmapError::Location)?;
        Ok(Self { to: SocketAddrV4::new(host, port), path: checked(path)?.to_owned() })
    }

    /// Reads a URL as it stands in a document from here: absolute, or a path. A relative path counts from the root, as
    /// routers mean it.
    pub fn join(&self, url: &str) -> Result<Self, PortmapError> {
        if url.contains("://") {
            return Self::read(url);
        }
        let path = if url.starts_with('/') { url.to_owned() } else { format!("/{url}") };
        checked(&path)?;
        Ok(Self { to: self.to, path })
    }
}

fn checked(path: &str) -> Result<&str, PortmapError> {
    let plain = path.len() <= Location::PATH && path.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then_some(path).ok_or(PortmapError::Location)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_ipv4_literal_over_plain_http() {
        let place = Location::read("http://192.168.1.1:5000/rootDesc.xml?x=1").unwrap();
        assert_eq!(place.to, "192.168.1.1:5000".parse().unwrap());
        assert_eq!(place.path, "/rootDesc.xml?x=1");
        assert_eq!(Location::read("HTTP://10.0.0.1").unwrap().to.port(), 80);
        for bad in [
            "",
            "http",
            "https://10.0.0.1/",
            "http://router.lan/",
            "http://[::1]/",
            "http://10.0.0.1:0/",
            "http://10.0.0.1:99999/",
            "http://a@10.0.0.1/",
            "http://10.0.0.1/a b",
            "http://10.0.0.1/\r\nHost: x",
            "htt\u{20ac}://10.0.0.1/",
        ] {
            assert_eq!(Location::read(bad), Err(PortmapError::Location), "{bad:?}");
        }
        assert!(Location::read(&format!("http://10.0.0.1/{}", "a".repeat(2_000))).is_err());
    }

    #[test]
    fn a_path_in_a_document_belongs_to_the_documents_host() {
        let place = Location::read("http://192.168.1.1:5000/rootDesc.xml").unwrap();
        assert_eq!(place.join("ctl/IPConn").unwrap().path, "/ctl/IPConn");
        assert_eq!(place.join("/ctl/IPConn").unwrap().to, place.to);
        assert_eq!(place.join("http://10.0.0.9/x").unwrap().to, "10.0.0.9:80".parse().unwrap());
    }
}
