//! Another node key for the same node.

use super::*;

fn rotation(machine: u8, from: u8, to: u8) -> RegisterRequest {
    let (old_node_key, node_key) = (node_key(from), node_key(to));
    RegisterRequest { old_node_key, node_key, rotation: true, auth: None, ..request(machine, "web", "") }
}

#[test]
fn a_rotated_key_keeps_all_that_the_node_is_and_when_it_ends() {
    let (mut world, _, key) = World::with_key();
    let (id, other) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let decision = world.by().extend_node(id, Life::For(Duration::from_secs(3_600))).unwrap();
    world.run(decision);
    let (session, peer) = (world.open(id), world.open(other));
    world.settle();
    let messages = world.client(peer).messages;
    let before = NodeRecord::clone(world.state.node(id).unwrap().record);
    world.advance(Duration::from_secs(60));

    let answer = world.answer(1, &rotation(1, 1, 7));
    assert_eq!((answer.error.as_str(), answer.auth_url.as_str(), answer.machine_authorized), ("", "", true));
    let after = NodeRecord::clone(world.state.node(id).unwrap().record);
    assert!(after.key_expiry.is_some());
    assert_eq!(after, NodeRecord { key: node_key(7), version: after.version, ..before });
    world.settle();
    assert_eq!(world.client(peer).messages, messages + 1, "a peer is told once");
    assert_eq!(world.client(peer).peers[&id].key, node_key(7));
    // The old key is let in nowhere.
    assert!(world.state.node_by_key(&node_key(1)).is_none());
    assert_eq!((world.closed.contains(&session), world.withdrawn.as_slice()), (true, [node_key(1)].as_slice()));
    let update = lite(1, |_| ());
    assert!(matches!(world.state.update(machine_key(1), &update, world.now), Err(MapRefusal::Unknown)));
    // Whoever lost the answer asks again, and hears the same.
    assert_eq!(world.answer(1, &rotation(1, 1, 7)).error, "");
}

#[test]
fn nobody_changes_the_key_of_another_or_one_that_has_ended() {
    let (mut world, user, key) = World::with_key();
    let id = world.join(1, "web", &key);
    world.join(2, "db", &key);
    let unknown = "this machine has no node with the key that it wants to change";
    for (machine, from, to, error) in
        [(2, 1, 7, unknown), (1, 9, 7, unknown), (1, 1, 2, "this node key belongs to another machine")]
    {
        assert_eq!(world.answer(machine, &rotation(machine, from, to)).error, error);
    }
    let ended = "the node's key has ended: it takes a new sign-in to have another one";
    let decision = world.by().suspend_user(user).unwrap();
    world.run(decision);
    assert_eq!(world.answer(1, &rotation(1, 1, 7)).error, ended);
    let decision = world.by().restore_user(user).unwrap();
    world.run(decision);
    let decision = world.by().expire_node(id).unwrap();
    world.run(decision);
    assert_eq!(world.answer(1, &rotation(1, 1, 7)).error, ended);
    assert_eq!(world.state.node(id).unwrap().record.key, node_key(1));
    assert!(world.state.pending_list().next().is_none(), "nor does it wait for anybody");
}
