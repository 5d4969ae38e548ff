use super::*;
use crate::types::{Lifetime, Role, UserStatus};

fn commands<'a>(world: &'a World, actor: &'a Actor) -> Commands<'a> {
    world.state.by(actor, world.now)
}

fn actor(world: &World, user: UserId) -> Actor {
    let user = world.state.users().find(|record| record.id == user).unwrap();
    Actor::user(user, Door::Console, [192, 0, 2, 1].into())
}

fn with_role(world: &mut World, name: &str, role: Role) -> UserId {
    let user = world.user(name);
    let decision = world.by().set_role(user, role).unwrap();
    world.run(decision);
    user
}

/// Whether packets may go to a peer and come from it.
fn is_reached(peer: &crate::wire::control::Node) -> bool {
    peer.allowed_ips.as_ref().is_none_or(|addresses| !addresses.is_empty())
}

fn suspend(world: &mut World, user: UserId) {
    let decision = world.by().suspend_user(user).unwrap();
    world.run(decision);
}

#[test]
fn everything_of_a_suspended_user_rests_at_once_and_comes_back_with_them() {
    let (mut world, ada, key) = World::with_key();
    let bob = world.user("bob");
    let bobs = world.key(bob, |key| key.reusable = true);
    let tagged = world.key(ada, |key| (key.reusable, key.tags) = (true, vec!["tag:web".parse().unwrap()]));
    let (hers, his, of_tags) =
        (world.join(1, "laptop", &key), world.join(2, "desk", &bobs), world.join(3, "web", &tagged));
    let streams = [hers, his, of_tags].map(|id| world.open(id));
    world.settle();
    assert!(is_reached(&world.client(streams[1]).peers[&hers]));

    suspend(&mut world, ada);
    let last = world.sent.iter().rev().find(|(sessions, _)| sessions == &[streams[0]]).unwrap();
    let last: MapResponse = serde_json::from_slice(&last.1.plain()).unwrap();
    assert_eq!(last.node.unwrap().key_expiry, Some(Timestamp::UNIX_EPOCH), "her machine lets go of the network");
    assert!(world.closed.contains(&streams[0]) && world.withdrawn.contains(&node_key(1)), "and so does the relay");
    world.settle();
    let peer = &world.client(streams[1]).peers[&hers];
    assert!(peer.expired && !is_reached(peer), "{peer:?}");
    let view = world.state.node(hers).unwrap();
    assert!(view.expired && view.record.key_expiry.is_none(), "nothing of it is forgotten");

    // Nor by another way: with the node key that it has, with a key of hers, or by somebody's word.
    let map = lite(1, |_| {});
    assert_eq!(world.state.update(machine_key(1), &map, world.now), Err(MapRefusal::Suspended));
    assert_eq!(world.state.open(hers, VERSION, world.now).unwrap_err(), MapRefusal::Suspended);
    assert!(world.answer(1, &request(1, "laptop", "")).node_key_expired);
    for key in [&key, &tagged] {
        let asks = RegisterRequest { node_key: node_key(101), ..request(1, "laptop", key) };
        let told = world.answer(1, &asks);
        assert!(told.error.contains("the user `ada` is suspended") && !told.machine_authorized, "{told:?}");
    }
    let page = world.answer(4, &request(4, "phone", "")).auth_url;
    let code = Ticket::in_url(&page).unwrap().code();
    assert_eq!(world.by().approve(&code, ada, &[], [9; 32]).unwrap_err().kind(), RefusalKind::Forbidden);

    // What belongs to its tags goes on, and whoever was away learns the same.
    assert!(!world.state.node(of_tags).unwrap().expired && world.clients.contains_key(&streams[2]));
    world.close(streams[1]);
    let again = world.open(his);
    assert!(!is_reached(&world.client(again).peers[&hers]));

    let decision = world.by().restore_user(ada).unwrap();
    world.run(decision);
    world.settle();
    assert!(is_reached(&world.client(again).peers[&hers]));
    assert!(world.answer(1, &request(1, "laptop", "")).machine_authorized, "it goes on without logging in");
    let session = world.open(hers);
    assert_eq!(world.client(session).node.as_ref().unwrap().key_expiry, None);
}

#[test]
fn suspension_outlives_a_restart_and_a_clock_that_is_set() {
    let (mut world, ada, key) = World::with_key();
    let node = world.join(1, "laptop", &key);
    suspend(&mut world, ada);
    world.state.handle_clock_set(jiff::SignedDuration::from_hours(-5), world.now);
    assert!(world.state.node(node).unwrap().expired);
    let records = Records {
        users: world.state.users().cloned().collect(),
        nodes: world.state.nodes().map(|node| node.record.as_ref().clone()).collect(),
        ..Records::default()
    };
    world.state = State::restore(Config::default(), records, world.now);
    assert!(world.state.node(node).unwrap().expired);
    assert_eq!(world.state.open(node, VERSION, world.now).unwrap_err(), MapRefusal::Suspended);
}

#[test]
fn a_node_that_becomes_a_suspended_users_rests_too() {
    let (mut world, ada, key) = World::with_key();
    let bob = world.user("bob");
    let (moved, untagged) = (world.join(1, "laptop", &key), {
        let tagged = world.key(bob, |key| key.tags = vec!["tag:web".parse().unwrap()]);
        world.join(2, "web", &tagged)
    });
    let streams = [moved, untagged].map(|id| world.open(id));
    suspend(&mut world, bob);
    assert!(!world.state.node(untagged).unwrap().expired);
    let decision = world.by().move_node(moved, bob).unwrap();
    world.run(decision);
    let decision = world.by().set_tags(untagged, &[]).unwrap();
    world.run(decision);
    for (id, stream) in [moved, untagged].into_iter().zip(streams) {
        assert!(world.state.node(id).unwrap().expired && world.closed.contains(&stream), "{id}");
    }
    let decision = world.by().move_node(moved, ada).unwrap();
    world.run(decision);
    assert!(!world.state.node(moved).unwrap().expired);
}

#[test]
fn a_suspended_user_is_signed_in_nowhere_any_more() {
    let mut world = World::new();
    let ada = world.user("ada");
    let now = world.now;
    let session = |id: u8| BrowserSession {
        id: BrowserSessionId([id; 32]),
        user: ada,
        signed_in: now,
        seen: now,
        expires: now + Duration::from_secs(3_600),
        address: [192, 0, 2, 1].into(),
        agent: String::new(),
    };
    let sessions = [session(1), session(2)].map(Change::Session);
    world.state.apply(sessions.to_vec(), world.now);
    suspend(&mut world, ada);
    assert_eq!(world.state.sessions().count(), 0);

    let decision = world.by().restore_user(ada).unwrap();
    world.run(decision);
    assert_eq!(world.state.sessions().count(), 0, "they sign in again");
    let last = session(3);
    world.state.apply(vec![Change::Session(last)], world.now);
    world.advance(Duration::from_secs(3_600));
    assert_eq!(world.state.sessions().count(), 0, "and time ends what nobody ends");
}

#[test]
fn the_last_owner_cannot_be_lost() {
    let mut world = World::new();
    let ada = with_role(&mut world, "ada", Role::Owner);
    let bob = world.user("bob");
    let is_last = |refused: Refusal| assert!(refused.to_string().contains("`ada` is the last owner"), "{refused}");
    is_last(world.by().set_role(ada, Role::Admin).unwrap_err());
    is_last(world.by().suspend_user(ada).unwrap_err());
    is_last(world.by().delete_user(ada).unwrap_err());

    // An owner who is suspended owns nothing.
    let decision = world.by().set_role(bob, Role::Owner).unwrap();
    world.run(decision);
    suspend(&mut world, bob);
    is_last(world.by().set_role(ada, Role::Member).unwrap_err());
    let decision = world.by().restore_user(bob).unwrap();
    world.run(decision);
    let decision = world.by().set_role(ada, Role::Member).unwrap();
    world.run(decision);
    assert_eq!(world.state.users().filter(|user| user.role == Role::Owner).count(), 1);
}

#[test]
fn nobody_gives_more_than_they_have_or_touches_somebody_who_may_more() {
    let mut world = World::new();
    let owner = with_role(&mut world, "owner", Role::Owner);
    let admin = with_role(&mut world, "admin", Role::Admin);
    let it = with_role(&mut world, "it", Role::ItAdmin);
    let network = with_role(&mut world, "network", Role::NetworkAdmin);
    let member = world.user("member");
    let may =
        |who: UserId, whom: UserId, role: Role| commands(&world, &actor(&world, who)).set_role(whom, role).is_ok();
    assert!(may(owner, admin, Role::Owner) && may(admin, member, Role::Admin) && may(it, member, Role::ItAdmin));
    assert!(!may(admin, member, Role::Owner) && !may(admin, owner, Role::Member), "an admin leaves owners alone");
    assert!(!may(it, member, Role::Admin) && !may(it, network, Role::Member) && !may(it, it, Role::Admin));
    assert!(!may(network, member, Role::Auditor) && !may(member, member, Role::Auditor));

    let by_it = actor(&world, it);
    for refused in [
        commands(&world, &by_it).suspend_user(admin),
        commands(&world, &by_it).suspend_user(it),
        commands(&world, &by_it).delete_user(owner),
        commands(&world, &actor(&world, member)).restore_user(member),
    ] {
        assert_eq!(refused.unwrap_err().kind(), RefusalKind::Forbidden);
    }
    assert!(commands(&world, &by_it).suspend_user(member).is_ok());
    assert!(commands(&world, &by_it).set_policy("{}", "it", None).is_err());
}

#[test]
fn a_user_is_restored_or_approved_only_from_what_they_are() {
    let mut world = World::new();
    let ada = world.user("ada");
    assert!(world.by().restore_user(ada).unwrap().changes.is_empty(), "twice is once");
    suspend(&mut world, ada);
    assert!(world.by().suspend_user(ada).unwrap().changes.is_empty());
    assert_eq!(world.by().approve_user(ada).unwrap_err().to_string(), "the user `ada` is suspended");

    let waits = UserRecord { status: UserStatus::NeedsApproval, ..world.state.users().next().unwrap().clone() };
    world.state.apply(vec![Change::User(waits)], world.now);
    let key = world.key(ada, |_| {});
    let told = world.answer(1, &request(1, "web", &key)).error;
    assert!(told.contains("waits for somebody's approval"), "{told}");
    let decision = world.by().approve_user(ada).unwrap();
    world.run(decision);
    assert!(world.answer(1, &request(1, "web", &key)).machine_authorized);
}

#[test]
fn keys_of_a_users_nodes_last_as_long_as_is_said_of_them_from_the_next_log_in_on() {
    let config = Config { key_lifetime: Some(Duration::from_secs(90 * 86_400)), ..Config::default() };
    let mut world = World::with(config, Records::default());
    let (ada, bob) = (world.user("ada"), world.user("bob"));
    let [hers, his] = [ada, bob].map(|user| world.key(user, |key| key.reusable = true));
    let tagged = world.key(ada, |key| key.tags = vec!["tag:web".parse().unwrap()]);
    let set = |world: &mut World, lifetime: Option<Lifetime>| {
        let decision = world.by().set_key_lifetime(ada, lifetime)?;
        Ok::<_, Refusal>(world.run(decision))
    };
    let lasts = |world: &World, id: NodeId| {
        let ends = world.state.node(id).unwrap().record.ends_at()?;
        Some(ends.duration_since(world.now).as_secs() / 86_400)
    };
    let first = world.join(1, "laptop", &hers);
    set(&mut world, Some(Lifetime::For(Duration::from_secs(7 * 86_400)))).unwrap();
    assert_eq!(lasts(&world, first), Some(90), "a node that is in keeps what it has");
    let (second, others, web) =
        (world.join(2, "phone", &hers), world.join(3, "desk", &his), world.join(4, "web", &tagged));
    assert_eq!([second, others, web].map(|id| lasts(&world, id)), [Some(7), Some(90), None]);
    let decision = world.by().extend_node(first, Life::Usual).unwrap();
    world.run(decision);
    assert_eq!(lasts(&world, first), Some(7));
    let decision = world.by().set_tags(web, &[]).unwrap();
    world.run(decision);
    assert_eq!(lasts(&world, web), Some(7), "without tags it is hers");

    assert!(set(&mut world, Some(Lifetime::For(Duration::from_secs(60)))).is_err(), "nobody is locked out");
    set(&mut world, Some(Lifetime::Endless)).unwrap();
    let third = world.join(5, "tablet", &hers);
    assert_eq!(lasts(&world, third), None);
    set(&mut world, None).unwrap();
    let fourth = world.join(6, "server", &hers);
    assert_eq!(lasts(&world, fourth), Some(90));
    let it = with_role(&mut world, "it", Role::ItAdmin);
    let owner = with_role(&mut world, "owner", Role::Owner);
    let refused = commands(&world, &actor(&world, it)).set_key_lifetime(owner, None);
    assert_eq!(refused.unwrap_err().kind(), RefusalKind::Forbidden);
}
