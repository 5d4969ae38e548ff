//! The lab itself: what every other test here takes for granted.

use std::fs;

use crate::lab::{Host, Lab};

#[test]
fn hosts_of_a_lab_reach_each_other_through_a_tunnel_made_by_hand() {
    let Some(mut lab) = Lab::new() else { return };
    let (alice, bob) = (lab.host("alice"), lab.host("bob"));

    alice.ping(&bob.v4);
    alice.ping(&bob.v6);

    let (alice_key, bob_key) = (tunnel_end(&lab, &alice, "192.0.2.1"), tunnel_end(&lab, &bob, "192.0.2.2"));
    add_peer(&alice, &bob_key, "192.0.2.2", &bob.v4);
    add_peer(&bob, &alice_key, "192.0.2.1", &alice.v4);

    alice.ping("192.0.2.2");
    bob.ping("192.0.2.1");
}

fn tunnel_end(lab: &Lab, host: &Host, address: &str) -> String {
    let file = lab.dir.path().join(address);
    fs::write(&file, host.run("wg genkey")).unwrap();
    host.run("ip link add wg0 type wireguard");
    host.run(&format!("wg set wg0 listen-port 41741 private-key {}", file.display()));
    host.run(&format!("ip address add {address}/24 dev wg0"));
    host.run("ip link set wg0 up");
    host.run("wg show wg0 public-key").trim().to_owned()
}

fn add_peer(host: &Host, key: &str, inner: &str, outer: &str) {
    host.run(&format!("wg set wg0 peer {key} allowed-ips {inner}/32 endpoint {outer}:41741"));
}
