//! What is given back: keys, addresses, and what a user who goes leaves behind.

use super::*;
use crate::types::UserId;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn tagged(world: &mut World, user: UserId) -> String {
    world.key(user, |key| {
        key.reusable = true;
        key.tags = vec!["tag:web".parse().unwrap()];
    })
}

fn address(world: &World, id: NodeId) -> String {
    world.state.node(id).unwrap().record.ipv4.to_string()
}

#[test]
fn keys_that_admit_nobody_any_more_are_forgotten_after_a_month() {
    let mut world = World::new();
    let ada = world.user("ada");
    let used = world.key(ada, |_| {});
    world.key(ada, |key| key.lifetime = Some(DAY));
    world.key(ada, |key| key.reusable = true);
    world.join(1, "web", &used);
    let kept = |world: &World| world.state.keys().map(|key| key.id.0).collect::<Vec<_>>();
    world.advance(30 * DAY - Duration::from_secs(1));
    assert_eq!(kept(&world), [1, 2, 3]);
    world.advance(Duration::from_secs(1));
    assert_eq!(kept(&world), [2, 3], "a month after it was used");
    world.advance(DAY);
    assert_eq!(kept(&world), [3], "a month after it ended");
    world.advance(1000 * DAY);
    assert_eq!(kept(&world), [3], "one that goes on admitting stays");
    assert!(world.state.node(NodeId(1)).is_some(), "nodes have nothing to do with it");
}

#[test]
fn spent_keys_make_room_for_new_ones_and_good_ones_do_not() {
    let mut world = World::new();
    let ada = world.user("ada");
    let new =
        || NewKey { user: ada, reusable: true, ephemeral: false, tags: Vec::new(), readmits: false, lifetime: None };
    for _ in 0..limit::KEYS.most {
        let changes = world.by().create_key(new(), [1; 32]).unwrap().changes;
        world.state.apply(changes, world.now);
    }
    assert_eq!(world.by().create_key(new(), [1; 32]).unwrap_err().kind(), RefusalKind::Full);
    let decision = world.by().expire_key(KeyId(7), WithNodes::Stay).unwrap();
    world.run(decision);
    let decision = world.by().create_key(new(), [1; 32]).unwrap();
    world.run(decision);
    assert!(world.state.key(KeyId(7)).is_err());
    assert_eq!(world.state.keys().count(), limit::KEYS.most);
}

#[test]
fn an_address_rests_for_a_week_and_is_given_again_once_all_others_were() {
    let (mut world, _, key) = World::with_key();
    let (first, second) = (world.join(1, "a", &key), world.join(2, "b", &key));
    let decision = world.by().delete_node(first).unwrap();
    world.run(decision);
    let third = world.join(3, "c", &key);
    assert_eq!(address(&world, third), "100.64.0.3", "there are others");

    // All others were given meanwhile.
    world.state.raise(Counters { host: (1 << 22) - 1, ..Counters::default() });
    let fourth = world.join(4, "d", &key);
    assert_eq!(address(&world, fourth), "100.64.0.4", "the first rests, the second and the third are in use");
    world.advance(7 * DAY);
    assert_eq!((world.state.directory.freed().len(), world.state.freed().count()), (0, 0));
    world.state.raise(Counters { host: (2 << 22) - 1, ..Counters::default() });
    let fifth = world.join(5, "e", &key);
    assert_eq!(address(&world, fifth), "100.64.0.1");
    assert_eq!(address(&world, second), "100.64.0.2");
}

#[test]
fn what_rests_survives_a_restart_and_has_a_bound() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "a", &key);
    let decision = world.by().delete_node(id).unwrap();
    assert!(decision.changes.contains(&Change::HostFreed(1, world.now)));
    world.run(decision);
    let freed = vec![(1, world.now)];
    let restored = State::restore(Config::default(), Records { freed, ..Records::default() }, world.now);
    assert!(restored.directory.is_host_taken(1) && !restored.directory.is_host_taken(2));

    let many = u32::try_from(limit::FREED.most).unwrap() + 5;
    world.state.apply((2..=many).map(|host| Change::HostFreed(host, world.now)).collect(), world.now);
    world.pump();
    assert_eq!(world.state.directory.freed().len(), limit::FREED.most, "the oldest give way");
}

#[test]
fn a_user_whose_nodes_are_tagged_may_go_and_the_nodes_go_on() {
    let (mut world, ada, _) = World::with_key();
    let key = tagged(&mut world, ada);
    let id = world.join(1, "web", &key);
    let session = world.open(id);
    let before = Arc::clone(world.state.node(id).unwrap().record);
    let decision = world.by().delete_user(ada).unwrap();
    world.run(decision);
    world.settle();
    let after = Arc::clone(world.state.node(id).unwrap().record);
    assert_eq!(*after, NodeRecord { user: None, version: before.version + 1, ..(*before).clone() });
    assert_eq!((world.state.users().count(), world.state.keys().count()), (0, 0));
    assert!(!world.closed.contains(&session), "nobody is cut off");
    assert_eq!(world.state.rights_changed(&before, &after), ["web: user: user 1 before, none from here on"]);
    assert_eq!(world.answer(1, &request(1, "web", "")).login.login_name, "tagged-devices");

    let refused = world.by().set_tags(id, &[]).unwrap_err();
    assert!(refused.to_string().contains("would be nobody's"), "{refused}");
    let bob = world.user("bob");
    // Bob's machine of the same hardware without tags is another node; with tags it is the one that was left.
    let untagged = world.key(bob, |_| {});
    world.answer(1, &RegisterRequest { node_key: node_key(101), ..request(1, "web", &untagged) });
    assert_ne!(world.state.node_by_key(&node_key(101)).unwrap().record.id, id);
    let decision = world.by().delete_node(NodeId(2)).unwrap();
    world.run(decision);
    let key = tagged(&mut world, bob);
    world.answer(1, &RegisterRequest { node_key: node_key(102), ..request(1, "web", &key) });
    let adopted = world.state.node_by_key(&node_key(102)).unwrap().record;
    assert_eq!((adopted.id, adopted.user, adopted.ipv4), (id, Some(bob), before.ipv4));
    let decision = world.by().set_tags(id, &[]).unwrap();
    world.run(decision);
    assert_eq!(world.by().delete_user(bob).unwrap_err().kind(), RefusalKind::Conflict);
}
