//! What administrators do, and what they are told when it makes no sense.

use super::*;

#[test]
fn users_have_unique_names_and_go_when_their_nodes_are_gone() {
    let (mut world, ada, key) = World::with_key();
    let taken = world.by().create_user("ada".parse().unwrap(), String::new()).unwrap_err();
    assert_eq!((taken.kind(), taken.to_string().as_str()), (RefusalKind::Conflict, "there is a user `ada` already"));

    let id = world.join(1, "web", &key);
    let busy = world.by().delete_user(ada).unwrap_err();
    assert_eq!(busy.to_string(), "the user `ada` has nodes: web; `node move` or `node delete` them first");
    let decision = world.by().delete_node(id).unwrap();
    world.run(decision);
    let decision = world.by().delete_user(ada).unwrap();
    world.run(decision);
    assert_eq!((world.state.users().count(), world.state.keys().count()), (0, 0));
    assert_eq!(world.state.find_user("ada").unwrap_err().kind(), RefusalKind::NotFound);
    assert_ne!(world.user("ada"), ada, "a number is never given twice");
}

#[test]
fn things_are_found_by_every_name_they_have() {
    let (mut world, ada, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let stable = world.state.node(id).unwrap().record.stable_id.0.clone();
    for name in ["web", "web.warren.internal", "web.warren.internal.", "1", "100.64.0.1", "fd7a:115c:a1e0::1", &stable]
    {
        assert_eq!(world.state.find_node(name).unwrap().record.id, id, "{name}");
    }
    assert_eq!(world.state.find_node("db").unwrap_err().to_string(), "there is no node `db`");
    for name in ["ada", &ada.to_string()] {
        assert_eq!(world.state.find_user(name).unwrap().id, ada);
    }
}

#[test]
fn a_text_that_may_mean_two_nodes_means_none() {
    let (mut world, ada, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "2", &key));
    assert_eq!(world.label(db), "node-2", "a machine does not name itself like a number");
    // As an older release let it.
    let record = NodeRecord { label: "1".parse().unwrap(), ..NodeRecord::clone(world.state.node(db).unwrap().record) };
    world.state.apply(vec![Change::Node(Arc::new(record))], world.now);
    let refused = world.state.find_node("1").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "`1` may be node 1, named `web`, or node 2, known as `1`: say `id:NUMBER` or `name:NAME`"
    );
    for (text, id) in [("id:1", web), ("name:1", db), ("2", db), ("id:2", db), ("name:web", web), ("WEB", web)] {
        assert_eq!(world.state.find_node(text).unwrap().record.id, id, "{text}");
    }
    for text in ["id:web", "name:2", "id:9", "name:100.64.0.1"] {
        assert_eq!(world.state.find_node(text).unwrap_err().kind(), RefusalKind::NotFound, "{text}");
    }
    assert_eq!(world.by().rename_node(web, "7".parse().unwrap()).unwrap_err().kind(), RefusalKind::Invalid);
    for text in ["id:1", "name:ada", "Ada", "ada@"] {
        assert_eq!(world.state.find_user(text).unwrap().id, ada, "{text}");
    }
}

#[test]
fn another_spelling_of_a_user_or_a_tag_is_no_other() {
    let (mut world, ada, key) = World::with_key();
    let taken = world.by().create_user("Ada@".parse().unwrap(), String::new()).unwrap_err();
    assert_eq!(taken.to_string(), "there is a user `ada` already");
    let policy = r#"{"tagOwners": {"tag:Prod": ["ADA@"]},
        "acls": [{"action": "accept", "src": ["Ada@"], "dst": ["tag:PROD:22"]}]}"#;
    let decision = world.by().set_policy(policy, "ada", None).unwrap();
    world.run(decision);
    let mut asks = request(1, "db", &key);
    asks.hostinfo.as_mut().unwrap().request_tags = vec!["tag:prOD".to_owned()];
    assert_eq!(world.answer(1, &asks).error, "");
    let web = world.join(2, "web", &key);
    let db = world.state.find_node("db").unwrap().record;
    assert_eq!(db.tags, ["tag:prod".parse().unwrap()]);
    assert_eq!(world.state.compiled().unwrap().peers(web).first().map(|peer| peer.id), Some(db.id));
    assert_eq!(world.state.find_user("ada@").unwrap().id, ada);
}

#[test]
fn a_renamed_node_keeps_the_name_whatever_the_machine_calls_itself() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let rename = |world: &World, id, name: &str| world.by().rename_node(id, name.parse().unwrap());
    assert_eq!(rename(&world, web, "db").unwrap_err().to_string(), "the name `db` belongs to node 2");
    let decision = rename(&world, web, "front").unwrap();
    world.run(decision);

    let calls_itself = |name: &str| Some(Hostinfo { hostname: name.to_owned(), ..Hostinfo::default() });
    world.update(1, &lite(1, |request| request.hostinfo = calls_itself("other")));
    assert_eq!(world.label(web), "front");
    // One that was not renamed follows its machine, to the first free name.
    world.update(2, &lite(2, |request| request.hostinfo = calls_itself("front")));
    assert_eq!(world.label(db), "front-1");
    world.update(2, &lite(2, |request| request.hostinfo = calls_itself("front")));
    assert_eq!(world.label(db), "front-1", "and stays there");
}

#[test]
fn a_key_that_an_administrator_ends_admits_nobody_more() {
    let (mut world, _, key) = World::with_key();
    let id = world.state.keys().next().unwrap().id;
    let decision = world.by().expire_key(id, WithNodes::Stay).unwrap();
    world.run(decision);
    assert_eq!(world.answer(1, &request(1, "web", &key)).error, "this pre-authentication key has expired");
}

#[test]
fn tags_own_a_node_and_its_key_does_not_expire() {
    let config = Config { key_lifetime: Some(Duration::from_secs(3600)), ..Config::default() };
    let mut world = World::with(config, Records::default());
    let user = world.user("ada");
    let key = world.key(user, |_| {});
    let id = world.join(1, "web", &key);
    assert_eq!(world.state.node(id).unwrap().record.key_expiry, Some(world.now + Duration::from_secs(3600)));
    let decision = world.by().set_tags(id, &["tag:web".parse().unwrap()]).unwrap();
    world.run(decision);
    world.advance(Duration::from_secs(7200));
    assert!(!world.state.node(id).unwrap().expired);
    let profile = world.answer(1, &request(1, "web", "")).login;
    assert_eq!(profile.login_name, "tagged-devices");
}

#[test]
fn a_subnet_has_one_router_and_another_takes_over() {
    let (mut world, _, key) = World::with_key();
    let subnet: crate::types::IpNet = "10.0.0.0/24".parse().unwrap();
    let (one, two) = (world.join(1, "gw-a", &key), world.join(2, "gw-b", &key));
    for (machine, id) in [(1, one), (2, two)] {
        let offers = Hostinfo { routable_ips: vec!["10.0.0.7/24".parse().unwrap()], ..Hostinfo::default() };
        world.update(machine, &lite(machine, |request| request.hostinfo = Some(offers)));
        let decision = world.by().approve_routes(id, &[subnet]).unwrap();
        world.run(decision);
    }
    let first = world.open(one);
    world.open(two);
    let primary = |world: &World, id| world.state.node(id).unwrap().primary_routes.to_vec();
    assert_eq!((primary(&world, one), primary(&world, two)), (vec![subnet], vec![]));

    world.close(first);
    world.advance(Duration::from_secs(10));
    assert_eq!((primary(&world, one), primary(&world, two)), (vec![], vec![subnet]));
    world.open(one);
    assert_eq!(primary(&world, two), [subnet], "who serves goes on serving");

    let inside = world.by().approve_routes(one, &["100.64.1.0/24".parse().unwrap()]).unwrap_err();
    assert_eq!(inside.kind(), RefusalKind::Invalid);
}

#[test]
fn subnets_of_sites_side_by_side_are_routed_and_the_rest_of_the_overlay_is_not() {
    let (mut world, _, key) = World::with_key();
    let gateway = world.join(1, "gw", &key);
    // 10.0.0.0/8 of site 7, as `tailscale debug via 7 10.0.0.0/8` writes it.
    let routes = ["fd7a:115c:a1e0:b1a:0:7:a00:0/104", "fd7a:115c:a1e0:1::/64"].map(|route| route.parse().unwrap());
    let offers = Hostinfo { routable_ips: routes.to_vec(), ..Hostinfo::default() };
    world.update(1, &lite(1, |request| request.hostinfo = Some(offers)));
    let decision = world.by().approve_routes(gateway, &routes[..1]).unwrap();
    world.run(decision);
    assert_eq!(world.state.node(gateway).unwrap().primary_routes.to_vec(), &routes[..1]);
    assert!(world.by().approve_routes(gateway, &routes[1..]).is_err());
}

#[test]
fn an_ephemeral_node_is_deleted_some_time_after_it_went_offline() {
    let mut world = World::new();
    let user = world.user("ada");
    let key = world.key(user, |key| (key.ephemeral, key.reusable) = (true, true));
    let (stays, never) = (world.join(1, "job", &key), world.join(2, "job", &key));
    let session = world.open(stays);
    world.advance(Duration::from_secs(3600));
    assert!(world.state.node(stays).is_some(), "it is online");
    assert!(world.state.node(never).is_none(), "it never came");

    world.close(session);
    world.advance(Duration::from_secs(10 + 30 * 60 - 1));
    assert!(world.state.node(stays).is_some());
    world.advance(Duration::from_secs(1));
    assert!(world.state.node(stays).is_none());
    world.advance(Duration::from_secs(7 * 24 * 3600));
    assert_eq!((world.state.poll_timeout(), world.state.next_due()), (None, None), "no timer is left");
}

#[test]
fn nobody_changes_what_they_have_no_right_to() {
    let (mut world, ada, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let of = |rights| Actor { rights, ..Actor::account(1000, "bob".to_owned()) };
    let (looks, nodes) = (of(Rights::NONE.and_look(Area::Nodes)), of(Rights::NONE.and_change(Area::Nodes)));
    let refused = world.state.by(&looks, world.now).delete_node(id).unwrap_err();
    assert_eq!((refused.kind(), refused.to_string().as_str()), (RefusalKind::Forbidden, "you may not change nodes"));
    let by = world.state.by(&nodes, world.now);
    assert!(by.rename_node(id, "door".parse().unwrap()).is_ok());
    let refusals = [
        by.delete_user(ada).map(drop).unwrap_err(),
        by.expire_key(KeyId(1), WithNodes::Stay).map(drop).unwrap_err(),
        by.approve_routes(id, &[]).map(drop).unwrap_err(),
        by.set_policy("{}", "bob", None).map(drop).unwrap_err(),
    ];
    assert!(refusals.iter().all(|refusal| refusal.kind() == RefusalKind::Forbidden), "{refusals:?}");
}

#[test]
fn a_decision_says_who_changed_which_fields_of_what() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let actor = Actor::account(1000, "bob".to_owned());
    let audit = world.state.by(&actor, world.now).set_tags(id, &["tag:db".parse().unwrap()]).unwrap().audit;
    assert_eq!((&audit.actor, audit.at, audit.command), (&actor, world.now, Command::SetTags));
    let [entry] = audit.entries.as_slice() else { panic!("{audit:?}") };
    assert_eq!(
        (entry.object.kind, entry.object.name.as_str(), entry.action),
        (ObjectKind::Node, "web", Action::Update)
    );
    let json = |fields: &serde_json::Map<_, _>| serde_json::to_string(fields).unwrap();
    assert_eq!((json(&entry.before), json(&entry.after)), (r#"{"tags":[]}"#.into(), r#"{"tags":["tag:db"]}"#.into()));

    let same = world.state.by(&actor, world.now).set_tags(id, &[]).unwrap();
    assert!(same.changes.is_empty() && same.audit.entries.is_empty(), "what changes nothing is no entry");
}

#[test]
fn no_secret_and_nothing_hot_is_in_what_a_decision_says() {
    let (world, _, key) = World::with_key();
    let machine = Actor::machine(machine_key(1), "192.0.2.1".parse().unwrap());
    let audit = world.state.by(&machine, world.now).register(machine_key(1), &request(1, "web", &key), [1; 32]).audit;
    let kinds: Vec<_> = audit.entries.iter().map(|entry| (entry.object.kind, entry.action)).collect();
    assert_eq!(kinds, [(ObjectKind::Node, Action::Create), (ObjectKind::Key, Action::Update)]);
    let node = &audit.entries[0].after;
    assert!(node.contains_key("label") && node.contains_key("offered_routes"), "{node:?}");
    for hot in ["status", "last_seen", "secret_hash"] {
        assert!(audit.entries.iter().all(|entry| !entry.after.contains_key(hot)), "{hot}");
    }
    assert!(!format!("{audit:?}").contains(key.rsplit('-').next().unwrap()));
}
