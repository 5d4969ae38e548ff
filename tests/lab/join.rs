//! Nodes join and packets flow.

use warren_core::wire::local::BackendState;

use crate::lab::Lab;
use crate::programs::{Agent, Coordinator, Joined};

#[test]
fn two_nodes_that_joined_with_a_key_reach_each_other_over_both_families() {
    let Some(Joined { alice, bob, coordinator, lab: _lab }) = Joined::new() else { return };

    for family in [4, 6] {
        alice.host.ping(&bob.ip(family));
        bob.host.ping(&alice.ip(family));
    }

    for (this, other) in [(&alice, &bob), (&bob, &alice)] {
        let status = this.status();
        let peer = status.peer.values().next().expect("the other node is a peer");
        assert_eq!(status.peer.len(), 1);
        assert_eq!(peer.host_name, other.name);
        assert_eq!(peer.tailscale_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), [other.ip(4), other.ip(6)]);
        assert!(peer.online && peer.in_engine, "{peer:?}");
        assert!(status.health.is_empty(), "{:?}", status.health);
        assert!(this.warren("status").contains(&other.name));
    }
    assert!(coordinator.run("node list").contains("alice"));
}

#[test]
fn the_tunnel_is_the_kernels_own_wireguard_with_the_peers_key() {
    let Some(Joined { alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };

    let bobs_key = bob.host.run("wg show warren0 public-key");
    let dump = alice.host.run("wg show warren0 dump");

    assert!(dump.lines().skip(1).all(|peer| peer.starts_with(bobs_key.trim())), "{dump}");
    assert!(dump.contains(&format!("{}/32", bob.ip(4))), "{dump}");
}

#[test]
fn a_key_that_nobody_made_is_refused_in_words() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let agent = Agent::start(&mut lab, "alice");

    let output =
        agent.try_warren(&format!("up --coordinator {} --auth-key no-such-key --timeout 20s", coordinator.url));

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("key"), "{output:?}");
}

#[test]
fn a_one_off_key_lets_one_node_in() {
    let Some(mut lab) = Lab::new() else { return };
    let coordinator = Coordinator::start(&mut lab);
    let (alice, bob) = (Agent::start(&mut lab, "alice"), Agent::start(&mut lab, "bob"));
    let key = coordinator.key("");

    alice.join(&coordinator, &key);
    let second = bob.try_warren(&format!("up --coordinator {} --auth-key {key} --timeout 20s", coordinator.url));

    assert!(!second.status.success(), "{second:?}");
    assert_eq!(bob.status().backend_state, BackendState::NeedsLogin);
}
