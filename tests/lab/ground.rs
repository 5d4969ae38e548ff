//! The lab itself: what every other test here takes for granted.

use crate::lab::Lab;

#[test]
fn hosts_of_a_lab_reach_each_other_through_a_tunnel_made_by_hand() {
    let Some(mut lab) = Lab::new() else { return };
    let (alice, bob) = (lab.host("alice"), lab.host("bob"));

    alice.ping(&bob.v4);
    alice.ping(&bob.v6);

    lab.tunnel_by_hand((&alice, "192.0.2.1"), (&bob, "192.0.2.2"));

    alice.ping("192.0.2.2");
    bob.ping("192.0.2.1");
}
