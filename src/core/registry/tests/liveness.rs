//! Nodes that are there and nodes that only look so, nodes that are two, and nodes that say too much.

use super::*;
use crate::types::{IpNet, is_default_route};

const SECOND: Duration = Duration::from_secs(1);

fn subnet() -> IpNet {
    "10.0.0.0/24".parse().unwrap()
}

fn offers(request: &mut MapRequest) {
    request.hostinfo = Some(Hostinfo { hostname: "r".to_owned(), routable_ips: vec![subnet()], ..Hostinfo::default() });
}

/// Two routers of one subnet and a client, all following their maps for a while.
fn routers() -> (World, [NodeId; 3]) {
    let (mut world, _, key) = World::with_key();
    let ids = [1, 2, 3].map(|machine| world.join(machine, "r", &key));
    for (machine, id) in [1, 2].into_iter().zip(ids) {
        world.update(machine, &lite(machine, offers));
        let decision = world.by().approve_routes(id, &[subnet()]).unwrap();
        world.run(decision);
    }
    for id in ids {
        world.open(id);
    }
    pass(&mut world, 30);
    (world, ids)
}

/// Seconds, one by one.
fn pass(world: &mut World, seconds: u32) {
    (0..seconds).for_each(|_| world.advance(SECOND));
}

fn primary(world: &World) -> NodeId {
    assert!(!is_default_route(&subnet()));
    world.state.routes().find(|route| route.primary).unwrap().node
}

fn session_of(world: &World, id: NodeId) -> Option<SessionId> {
    world.clients.iter().find(|(_, (of, _))| *of == id).map(|(session, _)| *session)
}

#[test]
fn a_frozen_router_is_replaced_within_fifteen_seconds_whenever_it_froze_and_does_not_come_back_to_it() {
    for moment in 0..8 {
        let (mut world, [one, two, _]) = routers();
        assert_eq!(primary(&world), one);
        pass(&mut world, moment);
        world.frozen.insert(one);
        let seconds = (1..).find(|_| {
            world.advance(SECOND);
            primary(&world) == two
        });
        assert!(seconds.unwrap() <= 10, "{seconds:?} seconds");
        assert_eq!(world.notices, [Notice::Silent(one)]);
        assert!(session_of(&world, one).is_none(), "its stream ends");
        pass(&mut world, 11);
        assert!(!world.state.node(one).unwrap().online, "and after its grace it is offline");

        world.frozen.clear();
        world.open(one);
        pass(&mut world, 60);
        assert_eq!((primary(&world), world.state.node(one).unwrap().online), (two, true));
    }
}

#[test]
fn the_router_in_waiting_is_asked_too_and_not_chosen_when_it_is_frozen() {
    let (mut world, [one, two, _]) = routers();
    world.frozen.insert(two);
    pass(&mut world, 15);
    world.frozen.insert(one);
    pass(&mut world, 15);
    assert_eq!(primary(&world), one, "nobody is better");
}

#[test]
fn who_has_no_rival_is_asked_once_a_minute_and_noticed_in_two() {
    let (mut world, [.., client]) = routers();
    world.asked.clear();
    pass(&mut world, 600);
    assert_eq!(world.asked.iter().filter(|(id, _)| *id == client).count(), 10);
    assert!(world.asked.iter().all(|(_, ping)| ping.to_string().parse() == Ok(*ping)));
    world.frozen.insert(client);
    pass(&mut world, 100);
    assert!(!world.state.node(client).unwrap().online);
}

#[test]
fn a_router_is_asked_often_as_soon_as_another_waits() {
    let (mut world, _, key) = World::with_key();
    let [one, two] = [1, 2].map(|machine| world.join(machine, "r", &key));
    for (machine, id) in [(1, one), (2, two)] {
        let decision = world.by().approve_routes(id, &[subnet()]).unwrap();
        world.run(decision);
        world.open(id);
        world.update(machine, &lite(machine, offers));
    }
    pass(&mut world, 5);
    assert!(world.asked.iter().any(|(id, _)| *id == one) && world.asked.iter().any(|(id, _)| *id == two));
}

#[test]
fn a_router_that_falls_silent_right_after_it_got_a_rival_is_replaced() {
    for follows_before in [true, false] {
        let (mut world, _, key) = World::with_key();
        let ids @ [one, two] = [1, 2].map(|machine| world.join(machine, "r", &key));
        let follow = |world: &mut World| {
            for id in ids {
                world.open(id);
            }
        };
        if follows_before {
            follow(&mut world);
        }
        for (machine, id) in (1..).zip(ids) {
            world.update(machine, &lite(machine, offers));
            let decision = world.by().approve_routes(id, &[subnet()]).unwrap();
            world.run(decision);
        }
        if !follows_before {
            follow(&mut world);
        }
        assert_eq!(primary(&world), one);
        pass(&mut world, 1);
        world.frozen.insert(one);
        pass(&mut world, 10);
        assert_eq!(primary(&world), two, "before: {follows_before}");
    }
}

#[test]
fn who_never_answered_is_judged_by_its_connection_and_an_answer_of_another_machine_is_none() {
    let (mut world, _, key) = World::with_key();
    let [one, two] = [1, 2].map(|machine| world.join(machine, "r", &key));
    world.frozen.insert(one);
    for id in [one, two] {
        world.open(id);
    }
    pass(&mut world, 600);
    assert!(world.state.node(one).unwrap().online);
    let (_, ping) = *world.asked.iter().rfind(|(id, _)| *id == one).unwrap();
    world.state.pong(machine_key(2), ping, world.now);
    pass(&mut world, 600);
    assert!(world.state.node(one).unwrap().online);
}

#[test]
fn an_answer_that_waited_while_we_were_late_or_the_clock_jumped_still_counts() {
    let (mut world, [one, ..]) = routers();
    world.frozen.insert(one);
    let asked = world.asked.len();
    while !world.asked[asked..].iter().any(|(id, _)| *id == one) {
        world.advance(SECOND);
    }
    let (_, ping) = *world.asked.iter().rfind(|(id, _)| *id == one).unwrap();
    world.advance(Duration::from_secs(3_600));
    assert!(world.notices.is_empty());
    world.state.pong(machine_key(1), ping, world.now);
    world.frozen.clear();
    pass(&mut world, 60);
    assert!(world.notices.is_empty() && session_of(&world, one).is_some());
}

#[test]
fn two_machines_with_one_key_are_noticed_named_and_slowed() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let mut asked = 0;
    // Each asks for the map whenever its stream has ended.
    let (mut put_off, mut follows) = (0, None);
    for turn in 0..120_u8 {
        if follows == Some(turn % 2) {
            world.advance(SECOND);
            continue;
        }
        let request = lite(1, |request| {
            request.stream = true;
            request.disco_key = DiscoPublic::from_bytes([1 + turn % 2; 32]);
        });
        match world.state.update(machine_key(1), &request, world.now) {
            Ok(_) => {
                world.open(id);
                follows = Some(turn % 2);
                asked += 1;
            }
            Err(MapRefusal::TwoMachines) => put_off += 1,
            Err(other) => panic!("{other}"),
        }
        world.advance(SECOND);
    }
    assert_eq!(world.notices, [Notice::TwoMachines(id)]);
    assert!(asked < 10 && put_off > 50, "{asked} streams, {put_off} put off");
    assert!(world.state.node(id).unwrap().two_machines);
    assert_eq!(world.state.two_machines(world.now).collect::<Vec<_>>(), [id]);
    assert_eq!(MapRefusal::TwoMachines.status(), 429);
    assert!(MapRefusal::TwoMachines.retry_after().is_some());
    pass(&mut world, 700);
    assert!(!world.state.node(id).unwrap().two_machines, "what is over is not told for ever");
}

#[test]
fn a_disco_key_is_whose_it_was_first_until_that_node_has_another_or_is_gone() {
    let (mut world, _, key) = World::with_key();
    let [victim, squatter, watcher] = [1, 2, 3].map(|machine| world.join(machine, "web", &key));
    let session = world.open(watcher);
    let disco = |number: u8| DiscoPublic::from_bytes([number; 32]);
    let says = |machine: u8, number: u8| lite(machine, |request| request.disco_key = disco(number));
    world.update(1, &says(1, 11));
    world.update(2, &says(2, 22));
    world.update(2, &says(2, 11));
    world.settle();
    let shown = |world: &World, id: NodeId| world.client(session).peers[&id].disco_key;
    assert_eq!([victim, squatter].map(|id| shown(&world, id)), [disco(11), disco(22)]);
    assert_eq!(world.notices, [Notice::DiscoTaken { node: squatter, holder: victim }]);

    // The victim's client starts again.
    world.update(1, &says(1, 12));
    world.update(2, &says(2, 11));
    world.settle();
    assert_eq!([victim, squatter].map(|id| shown(&world, id)), [disco(12), disco(11)]);
    let decision = world.by().delete_node(victim).unwrap();
    world.run(decision);
    world.update(3, &says(3, 12));
    assert_eq!(world.state.node(watcher).unwrap().record.status.disco, disco(12));
}

#[test]
fn one_machine_that_is_several_nodes_keeps_its_disco_key() {
    let (mut world, _, key) = World::with_key();
    let eve = world.user("eve");
    let other = world.key(eve, |_| {});
    let first = world.join(1, "web", &key);
    world.update(1, &lite(1, |_| {}));
    world.answer(1, &RegisterRequest { node_key: node_key(101), ..request(1, "web", &other) });
    world.update(1, &lite(1, |request| request.node_key = node_key(101)));
    let second = world.state.node_by_key(&node_key(101)).unwrap().record;
    assert!(second.id != first && second.status.disco == DiscoPublic::from_bytes([1; 32]));
    assert!(world.notices.is_empty());
}

#[test]
fn a_node_that_never_stops_talking_is_passed_on_every_two_seconds_and_its_last_word_counts() {
    let (mut world, _, key) = World::with_key();
    let [loud, watcher] = [1, 2].map(|machine| world.join(machine, "web", &key));
    let session = world.open(watcher);
    world.settle();
    world.sent.clear();
    let says = |port: u16| lite(1, |request| request.endpoints = vec![([192, 0, 2, 1], port).into()]);
    for number in 1..=600 {
        world.update(1, &says(number));
        world.advance(Duration::from_millis(100));
    }
    assert!(world.sent.len() <= 20 + 30 + 2, "{} messages", world.sent.len());
    assert!(world.state.held_back() > 500);
    world.advance(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.client(session).peers[&loud].endpoints[0].port(), 600);
    // Whoever moves a few times after a rest is heard at once.
    world.advance(Duration::from_secs(60));
    for number in 700..720 {
        world.update(1, &says(number));
        world.settle();
        assert_eq!(world.client(session).peers[&loud].endpoints[0].port(), number);
    }
}

#[test]
fn a_clock_that_is_set_makes_nobody_silent_and_hides_nobody_who_is() {
    for hours in [-8, 8] {
        let (mut world, [one, two, _]) = routers();
        let by = jiff::SignedDuration::from_hours(hours);
        world.now = world.now.checked_add(by).unwrap();
        world.state.handle_clock_set(by, world.now);
        pass(&mut world, 60);
        assert!(world.notices.is_empty());
        world.frozen.insert(one);
        pass(&mut world, 10);
        assert_eq!(primary(&world), two);
    }
}
