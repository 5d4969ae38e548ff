//! What a node finds out about its own network.

use std::net::SocketAddr;

use warren_core::plan::own;
use warren_core::wire::local::NetcheckReport;

use crate::programs::Joined;

#[test]
fn a_node_without_a_nat_sees_itself_at_the_tunnels_own_port_and_the_coordinators_relay_as_home() {
    let Some(Joined { alice, bob: _bob, coordinator: _coordinator, lab: _lab }) = Joined::new() else { return };

    let text = alice.warren("netcheck --json");
    let report: NetcheckReport = serde_json::from_str(&text).expect(&text);

    assert!(report.udp && report.ipv4, "{text}");
    assert_eq!(report.preferred_derp.0, 900, "{text}");
    assert!(report.region_v4_latency.contains_key(&report.preferred_derp), "{text}");
    let seen: SocketAddr = report.global_v4.parse().expect(&text);
    assert_eq!(seen.port(), own::LISTEN_PORT, "STUN goes through WireGuard's own port");
    assert!(alice.status().this.addrs.contains(&seen), "{text}");
    assert!(alice.warren("netcheck").contains("UDP:            works\n"));
}
