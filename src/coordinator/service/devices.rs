//! Devices that speak nothing but WireGuard: made a node, and told what to set up.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use super::refused::Refused;
use crate::hub::Hub;
use warren_core::registry::{NodeRecord, State};
use warren_core::types::{HostLabel, NodeId, NodePublic, OVERLAY_V4, OVERLAY_V6};
use warren_core::wire::admin::PRIVATE_KEY;

/// The largest packets: what every node of ours takes by its own link.
const MTU: u16 = 1280;
/// Seconds after which a device behind a NAT says that it is there, as WireGuard's authors advise.
const KEEPALIVE: u16 = 25;

/// A device as it can be made: all of it was looked at.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) label: HostLabel,
    pub(super) key: NodePublic,
    pub(super) gateway: NodeId,
    endpoint: String,
}

impl Wanted {
    /// Reads what somebody typed; without an endpoint the gateway's own word is taken.
    pub(super) async fn look(
        hub: &Hub,
        name: &str,
        key: &str,
        via: String,
        endpoint: Option<String>,
    ) -> Result<Self, Refused> {
        let label = name.parse().map_err(|error| Refused::invalid(format!("{name:?}: {error}")))?;
        let key = NodePublic::from_base64(key).ok_or_else(|| {
            Refused::invalid("the key is none: WireGuard writes one as 44 characters, as `wg pubkey` prints it")
        })?;
        let endpoint = endpoint.map(|endpoint| checked(&endpoint)).transpose()?;
        let known = move |state: &State| {
            let gateway = state.find_node(&via)?.record;
            let endpoint = endpoint.or_else(|| best(&gateway.status.endpoints).map(ToString::to_string));
            endpoint.map(|endpoint| (gateway.id, endpoint)).ok_or_else(|| {
                Refused::invalid(format!(
                    "the node `{}` did not say yet where it can be reached; say it with --gateway-endpoint HOST:PORT",
                    gateway.label
                ))
            })
        };
        let (gateway, endpoint) = hub.look(known).await??;
        Ok(Self { label, key, gateway, endpoint })
    }

    /// The file for it, once it is a node.
    pub(super) fn file(&self, state: &State, device: NodeId) -> Result<String, Refused> {
        let (Some(node), Some(gateway)) = (state.node(device), state.node(self.gateway)) else {
            return Err(Refused::not_found("the device or its gateway is gone again".to_owned()));
        };
        let addresses = state.compiled().map(|policy| policy.addresses(device)).unwrap_or_default();
        Ok(config(node.record, addresses, gateway.record, &self.endpoint))
    }
}

/// A host and a port, and nothing that would be another line of a file.
fn checked(endpoint: &str) -> Result<String, Refused> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    let parts = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty() && host.chars().all(is_plain));
    match parts.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port != 0) {
        Some(_) => Ok(endpoint.to_owned()),
        None => Err(Refused::invalid(format!("{endpoint:?} is no HOST:PORT"))),
    }
}

/// Of the endpoints that a node knows of itself, the one that most can reach.
fn best(endpoints: &[SocketAddr]) -> Option<&SocketAddr> {
    let is_private = |endpoint: &&SocketAddr| match endpoint.ip() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback() || OVERLAY_V4.contains(&ip),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    };
    endpoints.iter().min_by_key(|endpoint| (is_private(endpoint), endpoint.is_ipv6()))
}

/// The file for a device, as `wg-quick` and the apps read it. It sends all of the overlay to its gateway, which knows what
/// may pass: what the policy says changes, and the file does not.
fn config(device: &NodeRecord, addresses: &[IpAddr], gateway: &NodeRecord, endpoint: &str) -> String {
    let addresses: Vec<String> =
        addresses.iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })).collect();
    let mut text = String::new();
    let _ = write!(
        text,
        "# {name}\n[Interface]\nPrivateKey = {PRIVATE_KEY}\nAddress = {addresses}\nMTU = {MTU}\n\n# {gateway}\n[Peer]\n\
         PublicKey = {key}\nEndpoint = {endpoint}\nAllowedIPs = {OVERLAY_V4}, {OVERLAY_V6}\nPersistentKeepalive = {KEEPALIVE}\n",
        name = device.label,
        addresses = addresses.join(", "),
        gateway = gateway.label,
        key = gateway.key.base64(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_typed_is_a_host_and_a_port_and_no_line_more() {
        for good in ["gw.example.org:41641", "192.0.2.1:1", "[2001:db8::1]:41641"] {
            assert_eq!(checked(good).unwrap(), good);
        }
        for bad in ["gw.example.org", "gw:0", "gw:70000", ":41641", "gw\nPostUp = reboot:1", "a b:1", ""] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_device_is_told_the_endpoint_that_most_can_reach() {
        let of = |texts: &[&str]| {
            best(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()).map(ToString::to_string)
        };
        assert_eq!(of(&["192.168.1.7:1", "[2001:db8::1]:2", "198.51.100.7:3"]).unwrap(), "198.51.100.7:3");
        assert_eq!(of(&["192.168.1.7:1", "[2001:db8::1]:2"]).unwrap(), "[2001:db8::1]:2");
        assert_eq!(of(&["192.168.1.7:1"]).unwrap(), "192.168.1.7:1");
        assert_eq!(of(&[]), None);
    }
}
