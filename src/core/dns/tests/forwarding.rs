use proptest::prelude::*;

use super::*;
use crate::dns::flight::{NEXT_SERVER, NEXT_TRANSPORT, PATIENCE};

#[test]
fn an_answer_goes_back_as_it_came_under_the_clients_number() {
    let mut world = World::usual(DnsConfig::default());
    let (ask, _, _, bytes) = asked(&world.ask("Other.test."));
    assert_ne!(bytes[..2], 4242_u16.to_be_bytes());
    assert_eq!(bytes[2..], question("Other.test.", RecordType::A).to_vec().unwrap()[2..]);

    let effects = world.reply(ask, &answered(&bytes, |_| ()));
    let answer = answer_in(&effects).unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len(), answer.metadata.authoritative), (4242, 1, false));
    assert!(effects.contains(&Effect::Forget(ask)) && world.server.poll_timeout().is_none());
}

#[test]
fn whoever_does_not_know_the_question_is_not_heard() {
    let mut world = World::usual(DnsConfig::default());
    let (ask, _, _, bytes) = asked(&world.ask("other.test."));
    let lies: [fn(&mut Message); 4] = [
        |lie| lie.metadata.id ^= 1,
        |lie| lie.metadata.message_type = MessageType::Query,
        |lie| lie.queries[0].name = Name::from_ascii("another.test.").unwrap(),
        |lie| lie.queries.clear(),
    ];
    for lie in lies {
        assert_eq!(world.reply(ask, &answered(&bytes, lie)), []);
    }
    assert_eq!(world.reply(ask, b"\x00\x01"), []);
    assert_eq!(world.reply(AskId(77), &answered(&bytes, |_| ())), []);
    assert!(answer_in(&world.reply(ask, &answered(&bytes, |_| ()))).is_some());
}

#[test]
fn a_cut_answer_is_had_over_tcp() {
    let mut world = World::usual(DnsConfig::default());
    let (udp, _, _, bytes) = asked(&world.ask("other.test."));
    let effects = world.reply(udp, &answered(&bytes, |answer| answer.metadata.truncation = true));
    let (tcp, whom, transport, bytes) = asked(&effects);
    assert_eq!((whom, transport, effects.contains(&Effect::Forget(udp))), (upstream(LOCAL), Transport::Tcp, true));
    let long = |answer: &mut Message| {
        let record = answer.answers[0].clone();
        answer.add_answers(vec![record; 100]);
    };
    // The client came over UDP and takes 512 bytes: it has to come again.
    let answer = answer_in(&world.reply(tcp, &answered(&bytes, long))).unwrap();
    assert!(answer.metadata.truncation && answer.answers.is_empty());
}

#[test]
fn the_next_server_is_asked_when_one_is_silent_and_the_first_good_answer_wins() {
    let dns = DnsConfig { resolvers: resolvers(&["198.51.100.1", "198.51.100.2"]), ..DnsConfig::default() };
    let mut world = World::usual(dns);
    let (first, ..) = asked(&world.ask("other.test."));
    assert_eq!(world.pass(NEXT_SERVER - Duration::from_millis(1)), []);
    let (second, whom, _, bytes) = asked(&world.pass(Duration::from_millis(1)));
    assert_eq!(whom, upstream("198.51.100.2"));
    let effects = world.reply(second, &answered(&bytes, |_| ()));
    assert!(answer_in(&effects).is_some() && effects.contains(&Effect::Forget(first)));
}

#[test]
fn a_refusal_lets_the_next_be_asked_and_is_passed_on_where_nobody_knows_better() {
    let dns = DnsConfig { resolvers: resolvers(&["198.51.100.1", "198.51.100.2"]), ..DnsConfig::default() };
    let mut world = World::usual(dns);
    let (first, _, _, bytes) = asked(&world.ask("other.test."));
    let refuse = |answer: &mut Message| {
        answer.metadata.response_code = ResponseCode::Refused;
        answer.answers.clear();
    };
    let (second, _, _, bytes) = asked(&world.reply(first, &answered(&bytes, refuse)));
    let fail = |answer: &mut Message| answer.metadata.response_code = ResponseCode::ServFail;
    assert_eq!(code(&answer_in(&world.reply(second, &answered(&bytes, fail))).unwrap()), ResponseCode::Refused);
}

#[test]
fn a_silent_server_is_asked_over_tcp_and_given_up_in_the_end() {
    let mut world = World::usual(DnsConfig::default());
    let (udp, ..) = asked(&world.ask("other.test."));
    let (tcp, _, transport, _) = asked(&world.pass(NEXT_TRANSPORT));
    assert_eq!(transport, Transport::Tcp);
    world.server.handle_failure(world.now, tcp);
    assert_eq!(world.effects(), [Effect::Forget(tcp)]);
    let effects = world.pass(PATIENCE - NEXT_TRANSPORT);
    assert_eq!(code(&answer_in(&effects).unwrap()), ResponseCode::ServFail);
    assert!(effects.contains(&Effect::Forget(udp)) && world.server.poll_timeout().is_none());
}

#[test]
fn a_server_that_is_not_there_ends_the_wait_at_once() {
    let mut world = World::usual(DnsConfig::default());
    let (udp, ..) = asked(&world.ask("other.test."));
    world.server.handle_failure(world.now, udp);
    let (tcp, ..) = asked(&world.effects());
    world.server.handle_failure(world.now, tcp);
    assert_eq!(code(&answer_in(&world.effects()).unwrap()), ResponseCode::ServFail);
}

#[test]
fn the_oldest_question_gives_way_when_too_many_wait() {
    let mut world = World::usual(DnsConfig::default());
    for number in 0..IN_FLIGHT {
        assert_eq!(world.ask(&format!("n{number}.test.")).len(), 1);
    }
    let effects = world.ask("one-more.test.");
    let Some(Effect::Answer { query, .. }) = effects.iter().find(|effect| matches!(effect, Effect::Answer { .. }))
    else {
        panic!("{effects:?}")
    };
    assert_eq!(*query, QueryId(1));
}

/// Peers that come, go and are renamed.
fn peers() -> impl Strategy<Value = Vec<(u64, String)>> {
    let peer = (2..12_u64, "[ab]{1,2}");
    proptest::collection::btree_map(2..12_u64, peer, 0..8)
        .prop_map(|peers| peers.into_iter().map(|(id, (_, name))| (id, name)).collect())
}

proptest! {
    #[test]
    fn names_kept_in_step_are_those_read_from_scratch(steps in proptest::collection::vec(peers(), 1..6)) {
        let dns = || DnsConfig { proxied: true, ..DnsConfig::default() };
        let mut kept = Netmap::default();
        let mut zones = Zones::default();
        for step in steps {
            let nodes: Vec<Node> = step.iter().map(|(id, label)| peer(*id, label)).collect();
            let gone = kept.peer_map().keys().copied().filter(|id| !nodes.iter().any(|node| node.id == *id)).collect();
            kept.apply(
                MapResponse {
                    node: Some(peer(1, "us")),
                    dns_config: Some(dns()),
                    peers_changed: nodes.clone().into(),
                    peers_removed: gone,
                    ..MapResponse::default()
                },
                Timestamp::UNIX_EPOCH,
            );
            zones.update(&kept, &[]);
            let mut fresh = Zones::default();
            fresh.update(&map_of(peer(1, "us"), nodes, dns()), &[]);
            for label in ["us", "a", "b", "aa", "ab", "ba", "bb"] {
                let name: Domain = format!("{label}.corp.example").parse().unwrap();
                prop_assert_eq!(zones.find(&name, RecordType::A), fresh.find(&name, RecordType::A), "{}", label);
            }
            for id in 1..12 {
                let name: Domain = format!("{id}.0.64.100.in-addr.arpa").parse().unwrap();
                prop_assert_eq!(zones.find(&name, RecordType::PTR), fresh.find(&name, RecordType::PTR), "{}", id);
            }
        }
    }

    #[test]
    fn any_bytes_are_answered_or_left_and_every_question_of_ours_is_ended(
        question in proptest::collection::vec(any::<u8>(), 0..80),
        replies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..4),
    ) {
        let mut world = World::usual(DnsConfig::default());
        let mut open = std::collections::BTreeSet::new();
        let mut effects = Vec::new();
        world.server.handle_query(world.now, QueryId(1), Transport::Udp, &question);
        effects.extend(world.effects());
        for reply in replies {
            effects.extend(world.reply(AskId(2), &reply));
        }
        effects.extend(world.pass(PATIENCE));
        for effect in &effects {
            match effect {
                Effect::Ask { ask, .. } => prop_assert!(open.insert(*ask)),
                Effect::Forget(ask) => prop_assert!(open.remove(ask)),
                Effect::Answer { .. } => {}
            }
        }
        prop_assert!(open.is_empty() && world.server.poll_timeout().is_none());
    }
}
