//! The packets that we live by, as samples.

use std::net::IpAddr;

use crate::plan::{Firewall, own};
use crate::types::in_overlay;

/// A packet that we live by.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) hook: &'static str,
    pub(super) what: String,
    pub(super) iif: Option<&'static str>,
    pub(super) oif: Option<&'static str>,
    pub(super) source: Option<IpAddr>,
    pub(super) protocol: &'static str,
    pub(super) port: u16,
}

/// Those on a host with this firewall of ours.
pub(super) fn samples(firewall: &Firewall) -> Vec<Sample> {
    let port = firewall.probes.as_ref().map_or(own::LISTEN_PORT, |probes| probes.wireguard_port);
    let serves = firewall.served.routes().iter().any(|net| !in_overlay(net.addr()));
    // Any address and a port that no rule is likely to name: what is asked is whether peers are let in at all.
    let peer = |hook, what: &str, iif, oif| Sample {
        hook,
        what: what.to_owned(),
        iif,
        oif,
        source: iif.map(|_| IpAddr::from([100, 64, 0, 2])),
        protocol: "tcp",
        port: 47_113,
    };
    let outer = |hook| Sample {
        hook,
        what: format!("the tunnel's own packets (UDP port {port})"),
        iif: None,
        oif: None,
        source: None,
        protocol: "udp",
        port,
    };
    let mut samples = vec![
        peer("input", "what peers send to this machine", Some(own::LINK), None),
        outer("input"),
        peer("output", "what this machine sends to peers", None, Some(own::LINK)),
    ];
    if serves {
        samples.push(peer("forward", "what peers send to the networks behind this machine", Some(own::LINK), None));
    }
    samples
}
