//! The map stream, what goes on beside it, and the end; and that no session gets stuck whatever happens.

use proptest::prelude::*;

use super::*;

#[test]
fn a_stream_silent_for_two_minutes_is_replaced_and_a_keep_alive_counts_as_a_sign_of_life() {
    let mut run = Run::streaming();
    run.now += Duration::from_secs(100);
    run.message(r#"{"KeepAlive":true}"#);
    assert!(run.did().is_empty());
    assert_eq!(run.pass_time(), WATCHDOG);
    assert_eq!(run.did(), ["cancel stream", "disconnect", "silent 120"]);
    run.pass_time();
    assert_eq!(run.did(), ["update"]);
    run.answer(200, "");
    assert_eq!(run.did(), ["stream"]);
    run.message(r#"{"Node":{"ID":1}}"#);
    assert_eq!(run.did(), ["full map", "online"]);
}

#[test]
fn a_stream_that_ends_is_opened_again_sooner_where_it_was_stable() {
    let mut run = Run::streaming();
    for _ in 0..8 {
        run.closed(run.stream);
        run.pass_time();
        run.did();
        run.answer(200, "");
        run.did();
    }
    run.closed(run.stream);
    assert!(run.pass_time() >= Duration::from_secs(30));
    run.did();
    run.answer(200, "");
    run.did();
    run.now += STABLE;
    run.closed(run.stream);
    assert!(run.pass_time() < Duration::from_secs(1));
}

#[test]
fn a_change_is_told_at_once_and_changes_meanwhile_are_told_together() {
    let mut run = Run::streaming();
    run.session.handle_endpoints(vec![], run.now);
    assert_eq!(run.did(), ["update"]);
    run.session.handle_disco_key(DiscoPublic::from_bytes([8; 32]), run.now);
    run.session.handle_hostinfo(Hostinfo::default(), run.now);
    assert!(run.did().is_empty(), "one at a time");
    run.answer(200, "");
    assert_eq!(run.did(), ["update"]);
    assert_eq!(run.map.take().unwrap().disco_key, DiscoPublic::from_bytes([8; 32]));
    run.answer(200, "");
    run.session.handle_endpoints(vec![], run.now);
    assert!(run.did().is_empty(), "nothing changed");
}

#[test]
fn an_update_that_fails_is_tried_again_beside_the_stream() {
    let mut run = Run::streaming();
    run.session.handle_endpoints(vec![], run.now);
    run.did();
    run.answer(500, "database is locked");
    assert_eq!(run.did(), ["status 500"]);
    assert!(run.pass_time() < Duration::from_secs(1));
    assert_eq!(run.did(), ["update"]);
    run.answer(200, "");
    assert_eq!(run.did(), ["online"], "and the stream was never touched");
}

#[test]
fn an_update_that_gets_no_answer_ends_the_connection() {
    let mut run = Run::streaming();
    run.session.handle_endpoints(vec![], run.now);
    run.did();
    assert_eq!(run.pass_time(), REQUEST_TIMEOUT);
    assert_eq!(run.did(), ["cancel stream", "cancel", "disconnect", "silent 60"]);
    run.pass_time();
    assert_eq!(run.did(), ["update"]);
}

#[test]
fn a_coordinator_that_forgot_us_is_asked_to_let_us_in_again_and_a_broken_one_for_the_map() {
    for (status, failure, next) in [
        (400, "status 400", "register"),
        (404, "status 404", "register"),
        (429, "busy ", "update"),
        (500, "status 500", "update"),
    ] {
        let mut run = Run::streaming();
        run.closed(run.stream);
        run.did();
        run.pass_time();
        run.did();
        run.answer(200, "");
        run.did();
        run.answer_to(run.stream, status, "node not found");
        let did = run.did();
        assert!(did.len() == 1 && did[0].starts_with(failure), "{did:?}");
        run.pass_time();
        assert_eq!(run.did(), [next]);
    }
}

#[test]
fn a_first_map_without_ourselves_is_not_understood() {
    let mut run = Run::streaming();
    run.closed(run.stream);
    run.pass_time();
    run.did();
    run.answer(200, "");
    run.did();
    run.message(r#"{"Peers":[{"ID":2}]}"#);
    assert_eq!(run.did(), ["cancel stream", "not understood"]);
}

#[test]
fn an_expired_key_in_the_map_is_told() {
    let mut run = Run::streaming();
    run.message(r#"{"Node":{"ID":1,"Expired":true}}"#);
    assert_eq!(run.did(), ["delta", "key expired"]);
}

#[test]
fn a_ping_is_answered_once_and_only_towards_the_coordinator_itself() {
    let mut run = Run::streaming();
    let ping =
        |url: &str, types: &str| format!(r#"{{"KeepAlive":true,"PingRequest":{{"URL":"{url}","Types":"{types}"}}}}"#);
    run.message(&ping("https://vpn.example.org/machine/ping-response?id=1", ""));
    assert_eq!(run.did(), ["ping https://vpn.example.org/machine/ping-response?id=1"]);
    run.message(&ping("https://vpn.example.org/machine/ping-response?id=1", ""));
    run.message(&ping("https://intranet.example.org/delete?all=1", ""));
    run.message(&ping("file:///etc/shadow", ""));
    run.message(&ping("https://vpn.example.org/c2n", "c2n"));
    assert!(run.did().is_empty());
}

#[test]
fn inside_the_channel_a_ping_is_answered_whatever_host_its_address_names() {
    let mut run = Run::streaming();
    let ping = |url: &str| format!(r#"{{"KeepAlive":true,"PingRequest":{{"URL":"{url}","URLIsNoise":true}}}}"#);
    run.message(&ping("https://unused/machine/ping-response?id=1-2"));
    assert_eq!(run.did(), ["ping https://unused/machine/ping-response?id=1-2"]);
    run.message(&ping("https://unused/ with spaces"));
    assert!(run.did().is_empty());
}

#[test]
fn an_order_to_exit_is_ignored() {
    let mut run = Run::streaming();
    run.message(r#"{"Debug":{"Exit":1,"SleepSeconds":100}}"#);
    assert_eq!(run.did(), ["delta"]);
    run.message(r#"{"PeersRemoved":[4]}"#);
    assert_eq!(run.did(), ["delta"]);
}

#[test]
fn a_changed_network_ends_every_wait_and_the_connection_that_came_from_an_address_that_is_gone() {
    let (ours, other) = ("192.0.2.7/24".parse().unwrap(), "172.17.0.1/16".parse().unwrap());
    let mut run = Run::streaming();
    run.session.handle_received(Received::Connected("192.0.2.7".parse().unwrap()), run.now);
    run.session.handle_network_change(&[other], run.now);
    assert_eq!(run.pass_time(), WATCHDOG, "the connection does not use what is gone");
    assert_eq!(run.did(), ["cancel stream", "disconnect", "silent 120"]);
    run.pass_time();
    assert_eq!(run.did(), ["update"]);

    run.session.handle_received(Received::Connected("192.0.2.7".parse().unwrap()), run.now);
    run.session.handle_network_change(&[other, ours], run.now);
    run.session.handle_network_change(&[], run.now);
    assert_eq!(run.pass_time(), NETWORK_MOMENT);
    assert_eq!(run.did(), ["cancel", "disconnect", "update"]);
    run.closed(run.last);
    run.did();
    for _ in 0..4 {
        // A coordinator that is away for long.
        run.pass_time();
        run.did();
        run.closed(run.last);
        run.did();
    }
    run.session.handle_network_change(&[], run.now);
    assert!(run.pass_time() <= NETWORK_PACE.0, "without the rest of the back-off");
    assert_eq!(run.did(), ["disconnect", "update"]);
}

#[test]
fn a_network_that_never_holds_still_makes_few_connections() {
    let ours = "192.0.2.7/24".parse().unwrap();
    let mut run = Run::streaming();
    let (begun, mut connections) = (run.now, 0);
    for change in 0..600 {
        // Where the connection comes from is not known, so every change is as good as the loss of it.
        let at = begun + Duration::from_millis(100 * change);
        while run.session.poll_timeout().is_some_and(|due| due <= at) {
            run.pass_time();
        }
        run.now = at;
        run.session.handle_network_change(&[ours], run.now);
        connections += run.did().iter().filter(|did| *did == "disconnect").count();
    }
    assert!((2..=6).contains(&connections), "{connections} in a minute");
}

#[test]
fn stopping_ends_the_stream_and_starting_again_needs_no_person() {
    let mut run = Run::streaming();
    run.session.handle_stop();
    assert_eq!(run.did(), ["cancel stream", "disconnect"]);
    assert_eq!(run.session.poll_timeout(), None);
    run.session.handle_endpoints(vec![], run.now);
    assert!(run.did().is_empty());
    run.session.handle_start(Login::default(), run.now);
    assert_eq!(run.did(), ["register"]);
}

#[test]
fn an_answer_to_an_abandoned_request_changes_nothing() {
    let mut run = Run::started(Login::default());
    run.did();
    let abandoned = run.last;
    run.session.handle_start(Login::default(), run.now);
    run.did();
    run.answer_to(abandoned, 200, "{}");
    run.closed(abandoned);
    assert!(run.did().is_empty());
}

#[test]
fn an_auth_key_never_prints() {
    let login = Login { auth_key: Some(AuthKey::new("secret")), renew: false };
    assert!(!format!("{login:?}").contains("secret"));
    let mut run = Run::started(login);
    assert_eq!(format!("{:?}", run.session.poll_transmit()), "Some(Register(1))");
}

#[test]
fn a_failure_says_what_the_user_can_do() {
    let failure = Failure::Refused("the key has expired".to_owned());
    assert_eq!(
        failure.to_string(),
        "the coordinator does not let this node in: the key has expired. Log in again, with a valid key if you use one"
    );
}

/// What may happen to a session.
#[derive(Clone, Debug)]
enum Happening {
    Start(bool),
    Stop,
    Logout,
    Key(u8),
    Facts(u8),
    Network,
    Answer { recent: u64, status: u16, body: Vec<u8> },
    Bytes { recent: u64, bytes: Vec<u8> },
    Message(Vec<u8>),
    Closed(u64),
    Time,
}

fn happening() -> impl Strategy<Value = Happening> {
    let bodies = prop_oneof![
        Just(b"{}".to_vec()),
        Just(br#"{"NodeKeyExpired":true}"#.to_vec()),
        Just(br#"{"AuthURL":"https://vpn.example.org/a"}"#.to_vec()),
        Just(br#"{"Error":"no"}"#.to_vec()),
        Just(br#"{"Node":{"ID":1},"PingRequest":{"URL":"https://vpn.example.org/p"}}"#.to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    let status = prop_oneof![4 => Just(200_u16), 1 => Just(429), 1 => Just(404), 1 => any::<u16>()];
    prop_oneof![
        1 => any::<bool>().prop_map(Happening::Start),
        1 => Just(Happening::Stop),
        1 => Just(Happening::Logout),
        1 => any::<u8>().prop_map(Happening::Key),
        1 => any::<u8>().prop_map(Happening::Facts),
        1 => Just(Happening::Network),
        6 => (0_u64..3, status, bodies.clone())
            .prop_map(|(recent, status, body)| Happening::Answer { recent, status, body }),
        2 => (0_u64..3, bytes).prop_map(|(recent, bytes)| Happening::Bytes { recent, bytes }),
        4 => bodies.prop_map(Happening::Message),
        1 => (0_u64..3).prop_map(Happening::Closed),
        4 => Just(Happening::Time),
    ]
}

proptest! {
    /// Whatever happens: no panic, requests one of a kind at a time, and a session that is neither stopped nor
    /// waiting for its owner always has something under way or a time to try again.
    #[test]
    fn a_session_never_gets_stuck_and_never_asks_twice_at_once(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut run = Run::new();
        let mut open = std::collections::BTreeMap::new();
        for happening in happenings {
            let recent = |back: u64| RequestId(run.session.last_id.saturating_sub(back));
            match happening {
                Happening::Start(renew) => run.session.handle_start(Login { auth_key: None, renew }, run.now),
                Happening::Stop => run.session.handle_stop(),
                Happening::Logout => run.session.handle_logout(run.now),
                Happening::Key(number) => run.session.handle_node_key(key(number), run.now),
                Happening::Facts(number) => {
                    run.session.handle_disco_key(DiscoPublic::from_bytes([number; 32]), run.now);
                }
                Happening::Network => run.session.handle_network_change(&[], run.now),
                Happening::Answer { recent: back, status, body } => {
                    let id = recent(back);
                    open.remove(&id);
                    let answer = Reply { status, retry_after: None, body };
                    run.session.handle_received(Received::Reply(id, answer), run.now);
                }
                Happening::Bytes { recent: back, bytes } => {
                    let id = recent(back);
                    run.session.handle_received(Received::Bytes(id, bytes), run.now);
                }
                Happening::Message(json) => run.message(&String::from_utf8_lossy(&json)),
                Happening::Closed(back) => {
                    let id = recent(back);
                    open.remove(&id);
                    run.closed(id);
                }
                Happening::Time => {
                    if run.session.poll_timeout().is_some() {
                        run.pass_time();
                    }
                }
            }
            while let Some(transmit) = run.session.poll_transmit() {
                let (id, kind) = match transmit {
                    Transmit::Register { id, .. } => (id, "register"),
                    Transmit::Update { id, .. } => (id, "update"),
                    Transmit::Stream { id, .. } => {
                        run.stream = id;
                        (id, "stream")
                    }
                    Transmit::Cancel(id) => {
                        open.remove(&id);
                        continue;
                    }
                    Transmit::Ping { .. } | Transmit::Disconnect => continue,
                };
                prop_assert!(open.values().all(|other| *other != kind), "two of {}", kind);
                open.insert(id, kind);
            }
            while run.session.poll_event().is_some() {}
            let resting = matches!(run.session.phase, Phase::Stopped | Phase::NewKey);
            prop_assert!(resting || run.session.poll_timeout().is_some());
            prop_assert!(!resting || open.is_empty());
        }
    }
}
