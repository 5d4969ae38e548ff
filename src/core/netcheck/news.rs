//! What goes in and out of [`super::Netcheck`] beside STUN datagrams.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Endpoint;
use super::portmap;
use crate::types::{MachinePrivate, RegionId};
use crate::wire::control::NetInfo;

/// What does not change while the agent runs.
#[derive(Clone)]
pub struct Config {
    /// All chance comes from here: transaction numbers must not be guessed.
    pub seed: [u8; 32],
    /// The UDP port of WireGuard on this host.
    pub port: u16,
    /// Addresses that the operator names (a forwarded port, a public address of this host).
    pub explicit: Vec<SocketAddr>,
    /// Binds port mappings to this machine; see [`Config::nonce`].
    pub nonce: [u8; 12],
}

impl Config {
    /// The nonce of this machine's port mappings: hard to guess, and the same after a restart, because a gateway lets
    /// only the holder of a mapping's nonce renew it (RFC 6887 §11.3).
    pub fn nonce(machine: &MachinePrivate) -> [u8; 12] {
        // The secret seeds a hash of its own domain; nothing of it can be read from the outcome.
        let digest = Sha256::new().chain_update(b"warren port mapping").chain_update(machine.expose_bytes()).finalize();
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&digest[..12]);
        nonce
    }
}

/// The seed and the nonce are secrets.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("port", &self.port).field("explicit", &self.explicit).finish_non_exhaustive()
    }
}

/// What the shell is asked to do. Each but [`Action::Map`] is answered by the [`Input`] of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look up a relay's host name.
    Resolve { host: String },
    /// Find out how long a relay takes to answer over HTTPS.
    MeasureHttps(HttpsTarget),
    /// Ask `http://HOST:PORT/generate_204`, and see whether the answer is the relay's own.
    CheckCaptive {
        /// The relay's host name.
        host: String,
        /// Where it is; never empty.
        addresses: Vec<IpAddr>,
        /// The TCP port of plain HTTP.
        port: u16,
        /// What goes into the request's `X-Tailscale-Challenge`.
        challenge: String,
    },
    /// Talk to the gateway.
    Map(portmap::Action),
}

/// A relay whose HTTPS is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpsTarget {
    pub region: RegionId,
    /// Its host name, for TLS and HTTP.
    pub host: String,
    /// The certificate's name where it differs, or `sha256-raw:` and the certificate's digest.
    pub cert_name: String,
    /// Where it is; empty where its name has to be looked up.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// Whether any certificate will do.
    pub insecure: bool,
}

/// What the shell has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A name's addresses; none where the look-up failed.
    Resolved {
        host: String,
        /// None where the look-up failed.
        addresses: Vec<IpAddr>,
    },
    /// How long a relay took to answer, from which address; or why it did not.
    Https {
        region: RegionId,
        /// The time of one request on an open connection.
        outcome: Result<(Duration, IpAddr), String>,
    },
    /// Whether something else answered in the relay's name; unknown where nothing answered.
    Captive(Option<bool>),
    /// The default gateway, whenever it changes.
    Gateway(Option<Gateway>),
    /// Whether the system can use IPv6 at all.
    OsHasIpv6(bool),
    /// Word from the gateway.
    Map(portmap::Input),
}

/// The router of the main table's IPv4 default route, and our address on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its router.
    pub address: Ipv4Addr,
    /// Our own address there.
    pub local: Ipv4Addr,
}

/// What has become of the knowledge.
#[derive(Clone, Debug, PartialEq)]
pub enum NetcheckEvent {
    /// Where peers may reach us: the whole list, whenever it changes.
    Endpoints(Vec<Endpoint>),
    /// What the coordinator should be told, whenever more than latencies changed.
    NetInfo(NetInfo),
    /// The home region, whenever it changes.
    Home(Option<RegionId>),
    /// Whether a captive portal is in the way, whenever that changes.
    Captive(bool),
    /// A look has ended: the endpoints are as fresh as can be. Full looks measured every region.
    Looked {
        /// Whether it was a full one.
        full: bool,
    },
}
