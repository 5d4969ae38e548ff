//! A clock that is set, while nodes are there and while they are away.

use jiff::SignedDuration;

use super::*;

const HOURS: SignedDuration = SignedDuration::from_hours(8);

fn set_clock(world: &mut World, by: SignedDuration) {
    world.now = world.now.checked_add(by).unwrap();
    world.state.handle_clock_set(by, world.now);
    world.pump();
}

#[test]
fn a_clock_that_is_set_back_keeps_no_dead_node_online() {
    let (mut world, _, key) = World::with_key();
    let web = world.join(1, "web", &key);
    let session = world.open(web);
    world.close(session);
    set_clock(&mut world, -HOURS);
    world.advance(Duration::from_secs(9));
    assert!(world.state.node(web).unwrap().online, "its grace lasts as long as ever");
    world.advance(Duration::from_secs(1));
    let node = world.state.node(web).unwrap();
    assert!(!node.online && node.record.last_seen.unwrap() <= world.now);
}

#[test]
fn a_clock_that_is_set_forward_deletes_nobody_and_cuts_no_grace() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |key| key.ephemeral = true);
    let runner = world.join(1, "runner", &key);
    let session = world.open(runner);
    let waits = world.register(2, &request(2, "waits", ""));
    assert!(matches!(waits, Registered::Answer(_)));
    world.close(session);
    set_clock(&mut world, HOURS);
    assert!(world.state.node(runner).unwrap().online);
    world.advance(Duration::from_secs(10));
    assert!(!world.state.node(runner).unwrap().online);
    set_clock(&mut world, HOURS);
    world.advance(Duration::from_secs(29 * 60));
    assert!(world.state.node(runner).is_some(), "away for half an hour is what counts");
    assert_eq!(world.state.pending_list().count(), 1, "whoever waits for approval waits an hour");
    world.advance(Duration::from_secs(60));
    assert!(world.state.node(runner).is_none());
    world.advance(Duration::from_secs(30 * 60));
    assert_eq!(world.state.pending_list().count(), 0);
}

#[test]
fn a_key_that_expired_by_a_wrong_date_is_good_again() {
    let config = Config { key_lifetime: Some(Duration::from_secs(24 * 3600)), ..Config::default() };
    let mut world = World::with(config, Records::default());
    let user = world.user("ada");
    let key = world.key(user, |_| ());
    let web = world.join(1, "web", &key);
    set_clock(&mut world, HOURS * 4);
    assert!(world.state.node(web).unwrap().expired);
    set_clock(&mut world, -HOURS * 4);
    assert!(!world.state.node(web).unwrap().expired);
    world.advance(Duration::from_secs(24 * 3600));
    assert!(world.state.node(web).unwrap().expired, "and expires on its day");
}

#[test]
fn flushes_keep_their_pace_whatever_the_clock_says() {
    let (mut world, _, key) = World::with_key();
    let ids: Vec<NodeId> = (1..=2).map(|machine| world.join(machine, "web", &key)).collect();
    for id in ids {
        world.open(id);
    }
    world.settle();
    set_clock(&mut world, -HOURS);
    world.sent.clear();
    world.update(1, &lite(1, |request| request.endpoints = vec!["192.0.2.1:41641".parse().unwrap()]));
    world.settle();
    assert_eq!(world.sent.len(), 1);
}
