//! Names of nodes, asked for as programs do.

use std::process::Output;

use crate::lab::Host;
use crate::programs::Joined;

/// Where each node answers its own host.
const RESOLVERS: [&str; 2] = ["100.100.100.100", "fd7a:115c:a1e0::53"];

fn ask(host: &Host, kind: &str, name: &str, server: &str) -> Output {
    host.try_run(&format!("nslookup -type={kind} {name} {server}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_node_is_found_by_its_name_and_by_its_address() {
    let Some(Joined { alice, bob, coordinator: _coordinator, lab: _lab }) = Joined::new() else { return };
    let status = alice.status();
    let peer = status.peer.values().next().unwrap();
    let name = peer.dns_name.trim_end_matches('.');
    assert!(name.starts_with("bob."), "{name}");

    for server in RESOLVERS {
        let found = text(&ask(&alice.host, "a", name, server));
        assert!(found.contains(&bob.ip(4)), "{found}");
        let reverse: Vec<_> = bob.ip(4).split('.').rev().map(str::to_owned).collect();
        let found = text(&ask(&alice.host, "ptr", &format!("{}.in-addr.arpa", reverse.join(".")), server));
        assert!(found.contains(name), "{found}");
        let found = text(&ask(&alice.host, "a", &name.replace("bob.", "nobody."), server));
        assert!(found.contains("NXDOMAIN"), "{found}");
    }
    // Their own addresses are what peers see packets come from.
    alice.host.ping(&bob.ip(4));
    alice.host.ping(&bob.ip(6));
    let source = alice.host.run(&format!("ip -6 route get {}", bob.ip(6)));
    assert!(source.contains(&alice.ip(6)), "{source}");
}

#[test]
fn a_neighbour_who_leads_the_address_to_us_gets_no_answer() {
    let Some(Joined { alice, bob, coordinator: _coordinator, mut lab }) = Joined::new() else { return };
    let name = alice.status().peer.into_values().next().unwrap().dns_name;
    let neighbour = lab.host("neighbour");
    neighbour.run(&format!("ip route add 100.100.100.100/32 via {}", alice.host.v4));
    neighbour.run(&format!("ip route add fd7a:115c:a1e0::53/128 via {}", alice.host.v6));

    for server in RESOLVERS {
        let found = text(&ask(&neighbour, "a", name.trim_end_matches('.'), server));
        assert!(!found.contains(&bob.ip(4)), "{found}");
    }
    let denied = alice.host.run("nft list counter inet warren denied_asked");
    assert!(!denied.contains("packets 0 "), "{denied}");
}
