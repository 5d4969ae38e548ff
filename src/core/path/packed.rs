//! Endpoints in few bytes: ten thousand idle peers are mostly this.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Endpoints taken from the map for one peer.
const MOST: usize = 64;

/// A list of endpoints: for each the length of its address, the address, and the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed(Box<[u8]>);

impl Packed {
    pub(super) fn new(endpoints: &[SocketAddr]) -> Self {
        let mut bytes = Vec::with_capacity(endpoints.len().min(MOST) * 19);
        for endpoint in endpoints.iter().take(MOST) {
            match endpoint.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(16);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(endpoint.port().to_be_bytes());
        }
        Self(bytes.into())
    }

    /// Whether this is what [`Packed::new`] makes of them, without making it.
    pub(super) fn is(&self, endpoints: &[SocketAddr]) -> bool {
        let plain = |endpoint: &SocketAddr| SocketAddr::new(endpoint.ip(), endpoint.port());
        self.iter().eq(endpoints.iter().take(MOST).map(plain))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, bytes) = rest.split_first()?;
            let (ip, after) = match length {
                4 => bytes.split_first_chunk::<4>().map(|(ip, after)| (IpAddr::V4(Ipv4Addr::from(*ip)), after))?,
                _ => bytes.split_first_chunk::<16>().map(|(ip, after)| (IpAddr::V6(Ipv6Addr::from(*ip)), after))?,
            };
            let (port, after) = after.split_first_chunk::<2>()?;
            rest = after;
            Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
        })
    }

    pub(super) fn to_vec(&self) -> Vec<SocketAddr> {
        self.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_endpoints_come_out_as_they_went_in() {
        let endpoints: Vec<SocketAddr> =
            ["192.0.2.1:1", "[2001:db8::1]:65535", "10.0.0.1:80"].iter().map(|e| e.parse().unwrap()).collect();
        let packed = Packed::new(&endpoints);
        assert_eq!(packed.to_vec(), endpoints);
        assert!(packed.is(&endpoints));
        assert!(!packed.is(&endpoints[1..]));
        assert!(Packed::default().is(&[]));
    }

    #[test]
    fn a_list_past_the_limit_is_cut() {
        let endpoints: Vec<SocketAddr> = (1..=100).map(|port| ([192, 0, 2, 1], port).into()).collect();
        let packed = Packed::new(&endpoints);
        assert_eq!(packed.to_vec(), endpoints[..MOST]);
        assert!(packed.is(&endpoints));
    }
}
