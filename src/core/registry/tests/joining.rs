//! Registration: with a key, by approval, again, and never more.

use super::*;
use crate::types::CapabilityVersion;

#[test]
fn a_node_joins_with_a_key_and_gets_addresses_a_name_and_an_owner() {
    let (mut world, user, key) = World::with_key();
    let id = world.join(1, "Web.example.org", &key);
    let record = world.state.node(id).unwrap().record;
    assert_eq!(record.ipv4.to_string(), "100.64.0.1");
    assert_eq!(record.ipv6.to_string(), "fd7a:115c:a1e0::1");
    assert_eq!((record.label.as_str(), record.user), ("web", Some(user)));
}

#[test]
fn nodes_of_one_name_are_numbered() {
    let (mut world, _, key) = World::with_key();
    let labels: Vec<NodeId> = (1..=3).map(|machine| world.join(machine, "web", &key)).collect();
    assert_eq!(labels.iter().map(|id| world.label(*id)).collect::<Vec<_>>(), ["web", "web-1", "web-2"]);
}

#[test]
fn a_one_off_key_admits_one_node_and_that_node_again() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |_| {});
    let id = world.join(1, "web", &key);
    let answer = world.answer(2, &request(2, "db", &key));
    assert_eq!(answer.error, "this pre-authentication key admits one node, and was used already");
    assert!(!answer.machine_authorized);
    // A container that restarts shows the key it joined with.
    assert_eq!(world.join(1, "web", &key), id);
}

#[test]
fn two_decisions_on_one_key_cannot_both_be_taken_from_the_same_look() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |_| {});
    let [one, two] = [1, 2].map(|m| world.by().register(machine_key(m), &request(m, "x", &key), [m; 32]));
    let used = |decision: &Decision<Registered>| decision.changes.iter().any(|c| matches!(c, Change::KeyUsed(..)));
    // Both carry the mark that makes a store refuse the second.
    assert!(used(&one) && used(&two));
}

#[test]
fn an_unknown_an_expired_and_a_malformed_key_admit_nobody() {
    let mut world = World::new();
    let user = world.user("ada");
    let short = world.key(user, |key| key.lifetime = Some(Duration::from_secs(60)));
    let deleted = world.key(user, |_| {});
    let id = world.state.keys().last().unwrap().id;
    let decision = world.by().delete_key(id, WithNodes::Stay).unwrap();
    world.run(decision);
    world.advance(Duration::from_secs(60));
    let wrong = short.replace(&short[short.len() - 4..], "0000");
    for (key, error) in [
        (short.as_str(), "this pre-authentication key has expired"),
        (&deleted, "this pre-authentication key is not known here"),
        (&wrong, "this pre-authentication key is not known here"),
        ("tskey-auth-x", "this pre-authentication key is not known here"),
    ] {
        assert_eq!(world.answer(1, &request(1, "web", key)).error, error);
    }
    assert_eq!(world.state.nodes().count(), 0);
}

#[test]
fn a_tagged_key_gives_its_tags_and_no_others() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |key| {
        key.reusable = true;
        key.tags = vec!["tag:web".parse().unwrap()];
    });
    let mut asks = request(1, "web", &key);
    asks.hostinfo.as_mut().unwrap().request_tags = vec!["tag:db".to_owned()];
    assert_eq!(world.answer(1, &asks).error, "this pre-authentication key does not give the tag `tag:db`");

    asks.hostinfo.as_mut().unwrap().request_tags = vec!["tag:web".to_owned()];
    let answer = world.answer(1, &asks);
    assert_eq!((answer.error.as_str(), answer.login.login_name.as_str()), ("", "tagged-devices"));
}

#[test]
fn a_node_key_of_another_machine_is_refused() {
    let (mut world, _, key) = World::with_key();
    world.join(1, "web", &key);
    let mut stolen = request(2, "web", &key);
    stolen.node_key = node_key(1);
    assert_eq!(world.answer(2, &stolen).error, "this node key belongs to another machine");
    let update = lite(1, |_| {});
    assert_eq!(world.state.update(machine_key(2), &update, world.now), Err(MapRefusal::Unknown));
}

#[test]
fn a_machine_that_comes_back_with_a_new_node_key_keeps_its_node_and_addresses() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let before = Arc::clone(world.state.node(id).unwrap().record);
    let mut rotated = request(1, "web", &key);
    (rotated.old_node_key, rotated.node_key) = (node_key(1), node_key(101));
    assert!(world.answer(1, &rotated).machine_authorized);

    let after = world.state.node_by_key(&node_key(101)).unwrap().record;
    assert_eq!((after.id, after.ipv4, after.ipv6, &after.label), (id, before.ipv4, before.ipv6, &before.label));
    assert!(world.state.node_by_key(&node_key(1)).is_none(), "the old key is nobody's");
}

#[test]
fn a_machine_has_one_node_for_each_user() {
    let (mut world, _, key) = World::with_key();
    let bob = world.user("bob");
    let bobs = world.key(bob, |_| {});
    let id = world.join(1, "web", &key);

    let mut same = request(1, "web", &bobs);
    world.answer(1, &same);
    assert_eq!(world.state.nodes().count(), 1, "a node that is in needs no key");

    same.node_key = node_key(101);
    assert!(world.answer(1, &same).machine_authorized);
    let other = world.state.node_by_key(&node_key(101)).unwrap().record;
    assert!(other.id != id && other.user == Some(bob));
}

#[test]
fn without_a_key_a_person_approves_by_code() {
    let mut world = World::new();
    let user = world.user("ada");
    let asks = request(1, "web", "");
    let answer = world.answer(1, &asks);
    let ticket = Ticket::in_url(&answer.auth_url).unwrap();
    let code = ticket.code();
    assert_eq!(answer.auth_url, format!("http://localhost:8080/a/{ticket}"));
    assert_eq!(world.state.pending_with(&ticket), world.state.pending(&code));
    assert_eq!(world.state.pending(&code).unwrap().hostname, "web");

    // The client holds a request open until then.
    let followup = RegisterRequest { followup: answer.auth_url.clone(), ..asks };
    let Registered::Wait { code: waits, meanwhile } = world.register(1, &followup) else { panic!("must wait") };
    assert_eq!((&waits, &meanwhile.auth_url), (&code, &answer.auth_url));

    let decision = world.by().approve(&code, user, &[], [9; 32]).unwrap();
    let record = world.run(decision);
    assert_eq!(world.settled.iter().collect::<Vec<_>>(), [&code]);
    let answer = world.answer(1, &followup);
    assert!(answer.machine_authorized && answer.auth_url.is_empty());
    assert_eq!((record.user, record.label.as_str()), (Some(user), "web"));
    assert!(world.by().approve(&code, user, &[], [9; 32]).is_err(), "a code is good once");
}

#[test]
fn a_code_ends_after_an_hour_and_the_client_gets_another() {
    let mut world = World::new();
    let first = world.answer(1, &request(1, "web", "")).auth_url;
    world.advance(Duration::from_secs(3600));
    assert_eq!(world.settled.len(), 1);
    let followup = RegisterRequest { followup: first.clone(), ..request(1, "web", "") };
    let second = world.answer(1, &followup).auth_url;
    assert!(!second.is_empty() && second != first);
}

#[test]
fn one_machine_waits_once_and_too_many_make_room_for_one_another() {
    let mut world = World::new();
    for key in 1..=3 {
        world.answer(1, &RegisterRequest { node_key: node_key(key), ..request(1, "web", "") });
    }
    assert_eq!(world.state.pending_list().count(), 1);

    for machine in 0..limit::PENDING.most as u32 {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&machine.to_le_bytes());
        bytes[31] = 1;
        let asks = RegisterRequest { node_key: NodePublic::from_bytes(bytes), ..request(1, "web", "") };
        let decision = world.by().register(MachinePublic::from_bytes(bytes), &asks, bytes);
        world.run(decision);
    }
    assert_eq!(world.state.pending_list().count(), limit::PENDING.most);
    let first = world.state.pending_list().min_by_key(|pending| pending.expires).unwrap().code.clone();
    world.advance(Duration::from_secs(1));
    assert!(!world.answer(99, &request(99, "web", "")).auth_url.is_empty());
    assert_eq!(world.state.pending_list().count(), limit::PENDING.most);
    assert!(world.state.pending(&first).is_none() && world.settled.contains(&first), "and who held it asks again");
}

#[test]
fn strangers_of_one_address_that_wait_keep_out_nobody_else() {
    let mut world = World::new();
    let ask = |world: &mut World, number: u32, site: &str| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[31] = 1;
        let asks = RegisterRequest { node_key: NodePublic::from_bytes(bytes), ..request(1, "web", "") };
        let machine = MachinePublic::from_bytes(bytes);
        let actor = Actor::machine(machine, site.parse().unwrap());
        let decision = world.state.by(&actor, world.now).register(machine, &asks, bytes);
        world.run(decision)
    };
    let first = limit::PENDING_OF_SITE.most as u32;
    for number in 0..first {
        assert!(matches!(ask(&mut world, number, "192.0.2.1"), Registered::Answer(_)));
    }
    assert!(matches!(ask(&mut world, first, "192.0.2.1"), Registered::Busy { .. }));
    assert!(matches!(ask(&mut world, first, "192.0.2.2"), Registered::Answer(_)));
    assert!(matches!(ask(&mut world, 0, "192.0.2.1"), Registered::Answer(_)), "who waits already may ask again");

    // Many addresses fill the list: the one that waits alone is not who has to go.
    let alone =
        world.state.pending_list().find(|pending| pending.site.to_string() == "192.0.2.2").unwrap().code.clone();
    for number in 1_000..3_000 {
        ask(&mut world, number, &format!("198.51.100.{}", number % 20));
    }
    assert_eq!(world.state.pending_list().count(), limit::PENDING.most);
    assert!(world.state.pending(&alone).is_some());
}

#[test]
fn what_a_stranger_says_of_itself_is_cut_before_it_is_looked_at() {
    let mut info = Some(Hostinfo {
        hostname: "x".repeat(1_000_000),
        os: "ä".repeat(300),
        request_tags: vec!["tag:".to_owned() + &"y".repeat(1_000_000)],
        ssh_host_keys: vec!["z".repeat(1_000_000)],
        ..Hostinfo::default()
    });
    bound(&mut info);
    assert!(serde_json::to_string(&info).unwrap().len() < 2_048, "{info:?}");
    let honest = request(1, "web", "").hostinfo;
    let mut same = honest.clone();
    bound(&mut same);
    assert_eq!(format!("{same:?}"), format!("{honest:?}"));
}

#[test]
fn a_node_that_logs_out_is_expired_and_comes_back_with_a_key() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let logout = RegisterRequest { expiry: Some(Timestamp::from_second(123).unwrap()), ..request(1, "web", "") };
    assert!(world.answer(1, &logout).node_key_expired);
    assert!(world.state.node(id).unwrap().expired);
    assert!(world.answer(1, &request(1, "web", "")).node_key_expired, "the client must make a new key");

    let again = RegisterRequest { node_key: node_key(101), ..request(1, "web", &key) };
    assert!(!world.answer(1, &again).node_key_expired);
    assert!(!world.state.node(id).unwrap().expired, "the same node, with its addresses");
}

#[test]
fn an_ephemeral_node_that_logs_out_is_deleted() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |key| key.ephemeral = true);
    let id = world.join(1, "job", &key);
    let logout = RegisterRequest { expiry: Some(Timestamp::from_second(123).unwrap()), ..request(1, "job", "") };
    world.answer(1, &logout);
    assert!(world.state.node(id).is_none());
}

#[test]
fn a_node_may_shorten_the_life_of_its_key_and_not_lengthen_it() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let mut ask = |seconds| {
        let expiry = Some(world.now + Duration::from_secs(seconds));
        world.answer(1, &RegisterRequest { expiry, ..request(1, "web", "") }).error
    };
    assert_eq!(ask(100), "");
    assert_eq!(ask(50), "");
    assert_eq!(ask(60), "a node cannot extend the life of its own key");
    world.advance(Duration::from_secs(50));
    assert!(world.state.node(id).unwrap().expired);
}

#[test]
fn an_old_client_is_told_what_it_needs() {
    let mut world = World::new();
    let old = RegisterRequest { version: CapabilityVersion(112), ..request(1, "web", "") };
    let error = world.answer(1, &old).error;
    assert!(error.contains("112") && error.contains("113") && error.contains("1.80"), "{error}");
    let poll = MapRequest { version: CapabilityVersion(112), ..lite(1, |_| {}) };
    assert!(matches!(world.state.update(machine_key(1), &poll, world.now), Err(MapRefusal::TooOld(_))));
}

#[test]
fn an_address_is_not_given_again_soon_even_after_a_restart() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let decision = world.by().delete_node(id).unwrap();
    world.run(decision);
    let next = world.join(2, "web", &key);
    assert_eq!(world.state.node(next).unwrap().record.ipv4.to_string(), "100.64.0.2");

    let counters = world.state.directory.counters();
    let restarted = State::restore(Config::default(), Records { counters, ..Records::default() }, world.now);
    assert_eq!(restarted.directory.counters(), counters);
}

#[test]
fn a_request_without_a_node_key_is_refused() {
    let mut world = World::new();
    let empty = RegisterRequest { node_key: NodePublic::default(), ..request(1, "web", "") };
    assert_eq!(world.answer(1, &empty).error, "the request names no node key");
}

#[test]
fn an_ephemeral_node_that_is_about_to_return_is_not_deleted_in_front_of_it() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |key| key.ephemeral = true);
    let id = world.join(1, "job", &key);
    let grace = world.state.config().ephemeral_timeout;
    let almost = grace.checked_sub(Duration::from_secs(1)).unwrap();

    // It registers anew a second before its time is up, and follows its map a while later.
    world.advance(almost);
    assert!(world.answer(1, &request(1, "job", "")).machine_authorized);
    world.advance(almost);
    world.update(1, &lite(1, |_| {}));
    world.advance(almost);
    assert!(world.state.node(id).is_some());
    let session = world.open(id);
    world.advance(grace * 2);
    world.close(session);

    // Another machine that shows its key is no sign of it.
    world.advance(almost);
    world.register(2, &request(1, "job", ""));
    world.advance(Duration::from_secs(60));
    assert!(world.state.node(id).is_none());
}

#[test]
fn a_key_that_is_good_no_longer_is_withdrawn_once_however_it_ends() {
    let (mut world, _, key) = World::with_key();
    let [web, db, job, old] = [1, 2, 3, 4].map(|machine| world.join(machine, "web", &key));
    for id in [web, db, old] {
        world.open(id);
    }
    let decision = world.by().delete_node(web).unwrap();
    world.run(decision);
    let decision = world.by().expire_node(db).unwrap();
    world.run(decision);
    let logout = RegisterRequest { expiry: Some(Timestamp::from_second(123).unwrap()), ..request(3, "job", "") };
    world.answer(3, &logout);
    let rotated = RegisterRequest { node_key: node_key(104), ..request(4, "old", &key) };
    world.answer(4, &rotated);
    assert_eq!(world.withdrawn, [1, 2, 3, 4].map(node_key));
    world.advance(Duration::from_secs(3600));
    assert_eq!(world.withdrawn.len(), 4, "{job}");
}
