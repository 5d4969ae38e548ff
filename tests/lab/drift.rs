//! What someone else removes comes back, and is named.

use std::time::Duration;

use crate::lab::{Host, eventually, say, within};
use crate::programs::Joined;
use crate::train::now;

/// A repair is done long before the next look by the timer, a minute later, would bring it. How soon is printed: under
/// emulation on a busy machine it says more of the machine.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn what_is_removed_by_hand_is_back_at_once_and_named() {
    let Some(Joined { alice, bob, lab: _lab, coordinator: _coordinator }) = Joined::new() else { return };
    let bobs_key = bob.host.run("wg show warren0 public-key").trim().to_owned();
    let bobs_address = bob.ip(4);
    let repaired = |removal: &str, look: &str, sees: &str, named: &[&str]| {
        eventually(&format!("`{look}` to show {sees} at first"), || shows(&alice.host, look, sees));
        alice.host.run(removal);
        let removed = now();
        within(SOON, &format!("`{look}` to show {sees} after `{removal}`"), || shows(&alice.host, look, sees));
        say(&format!("drift: back {:.1?} after `{removal}`", removed.elapsed()));
        alice.wait_for_health(named);
        alice.host.ping(&bobs_address);
    };

    repaired(&format!("wg set warren0 peer {bobs_key} remove"), "wg show warren0 peers", &bobs_key, &["peer"]);
    repaired("ip route flush table 22337", "ip route show table 22337", "warren0", &["route"]);
    repaired("ip rule delete priority 5310", "ip rule show", "5310:", &["rule", "5310"]);
    let removal = "nft delete table inet warren";
    match alice.host.run("nft list table inet warren").contains("flags owner") {
        false => repaired(removal, "nft list tables", "inet warren", &["table inet warren"]),
        // Where the kernel has that, nobody else can: flushing passes it over and deleting is refused.
        true => {
            alice.host.run("nft flush ruleset");
            assert!(!alice.host.try_run(removal).status.success());
            assert!(shows(&alice.host, "nft list tables", "inet warren").is_some());
            println!("the table is the agent's own: nobody else can flush or delete it");
        }
    }
    repaired("ip link delete warren0", "ip -br link show", "warren0", &["warren0"]);
}

fn shows(host: &Host, look: &str, sees: &str) -> Option<()> {
    String::from_utf8_lossy(&host.try_run(look).stdout).contains(sees).then_some(())
}
