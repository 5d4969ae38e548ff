//! A path that passes small packets and loses large ones.

use std::time::Duration;

use crate::lab::{PATIENCE, within};
use crate::nat::Kind;
use crate::train::{PathWatch, Train};
use crate::world::World;

/// How soon a path that carries no large packets is left: its tries, and a look at the kernel.
const JUDGED: Duration = Duration::from_secs(20);

/// Drops UDP on its way through a router that is longer than 1,300 bytes.
const NARROW: &str = "table inet narrow {
    chain forward { type filter hook forward priority -10; policy accept; meta l4proto udp meta length > 1300 drop; }
}";

#[test]
fn packets_of_full_size_arrive_although_the_direct_path_loses_them() {
    let Some(mut world) = World::new() else { return };
    let (alice, bob) = (world.node("alice", Kind::EasyNat), world.node("bob", Kind::EasyNat));
    let watches = [PathWatch::start(alice.host(), &bob.ip), PathWatch::start(bob.host(), &alice.ip)];
    let train = Train::start(alice.host(), &bob.ip, PATIENCE);
    watches.iter().for_each(|watch| watch.wait_until_direct(PATIENCE));
    let large = format!("ping -n -c 1 -W 1 -M do -s 1252 {}", bob.ip);
    within(PATIENCE, "a packet of 1,280 bytes through the open path", || {
        alice.host().try_run(&large).status.success().then_some(())
    });

    alice.routers[0].nft(NARROW);
    watches.iter().for_each(|watch| watch.wait_until_relayed(JUDGED + PATIENCE));
    within(JUDGED, "a packet of 1,280 bytes past the narrow path", || {
        alice.host().try_run(&large).status.success().then_some(())
    });
    alice.agent.wait_for_health(&["bob", "loses large packets"]);
    for _ in 0..20 {
        assert!(alice.host().try_run(&large).status.success(), "{}\n{}", alice.account(), bob.account());
    }

    alice.routers[0].run("nft delete table inet narrow");
    watches.iter().for_each(|watch| watch.wait_until_direct(Duration::from_secs(180)));
    drop(train);
}
