//! A policy in force: who is shown whom, versions, tags, and a policy that cannot be read.

use super::*;
use crate::policy::Role;

const WEB_ONLY: &str = r#"{
    "tagOwners": {"tag:web": ["ada@"], "tag:db": ["tag:web"]},
    "acls": [{"action": "accept", "src": ["ada@"], "dst": ["tag:web:80"]}],
}"#;
const NOTHING: &str = r#"{"acls": []}"#;

fn set(world: &mut World, text: &str) -> u64 {
    let decision = world.by().set_policy(text, "ada", None).unwrap();
    let version = world.run(decision).version;
    world.settle();
    version
}

fn refused(world: &World, text: &str) -> String {
    world.by().set_policy(text, "ada", None).unwrap_err().to_string()
}

/// Two machines of a person, two servers, and a key for one more server, all connected.
fn network() -> (World, [SessionId; 4], UserId) {
    let (mut world, ada, key) = World::with_key();
    let web = world.key(ada, |key| {
        key.reusable = true;
        key.tags = vec!["tag:web".parse().unwrap()];
    });
    let ids = [world.join(1, "a", &key), world.join(2, "b", &key), world.join(3, "c", &web), world.join(4, "d", &web)];
    let sessions = ids.map(|id| world.open(id));
    world.settle();
    (world, sessions, ada)
}

fn seen(world: &World, session: SessionId) -> Vec<u64> {
    world.client(session).peers.keys().map(|id| id.0).collect()
}

#[test]
fn nodes_that_no_rule_connects_do_not_see_each_other() {
    let (mut world, [a, b, c, d], _) = network();
    assert_eq!(seen(&world, a), [2, 3, 4], "without a policy everyone sees everyone");
    assert_eq!(set(&mut world, WEB_ONLY), 1);
    for (session, peers) in [(a, [3, 4]), (b, [3, 4]), (c, [1, 2]), (d, [1, 2])] {
        assert_eq!(seen(&world, session), peers);
    }
    let filters = world.client(c).knows()["filters"].clone();
    let (name, rules) = filters.as_object().unwrap().iter().next().unwrap();
    assert_eq!(rules[0]["DstPorts"][0]["Ports"]["First"], 80);
    assert_eq!(rules[0]["WarrenRule"], serde_json::json!({"Ref": name, "Line": 3}));
    assert_eq!(world.client(a).knows()["filters"], serde_json::json!({}), "nobody may open anything on it");

    set(&mut world, NOTHING);
    assert!([a, b, c, d].iter().all(|session| seen(&world, *session).is_empty()));
    assert_eq!(world.client(c).knows()["filters"], serde_json::json!({}));
}

#[test]
fn a_node_that_joins_costs_only_those_who_see_it_a_message_and_they_share_it() {
    let (mut world, [a, b, c, d], ada) = network();
    set(&mut world, WEB_ONLY);
    world.sent.clear();
    let key = world.key(ada, |key| key.tags = vec!["tag:web".parse().unwrap()]);
    world.join(5, "e", &key);
    world.settle();
    let [(receivers, message)] = world.sent.as_slice() else { panic!("one message: {:?}", world.sent) };
    assert_eq!(receivers, &[a, b]);
    assert!(matches!(message.parts(), [Part::Shared(_)]));
    assert_eq!((seen(&world, a), seen(&world, c), seen(&world, d)), (vec![3, 4, 5], vec![1, 2], vec![1, 2]));

    // A new source is a new address in one part of the servers' filters.
    world.sent.clear();
    let key = world.key(ada, |_| {});
    world.join(6, "f", &key);
    world.settle();
    let receivers: Vec<_> = world.sent.iter().flat_map(|(sessions, _)| sessions.clone()).collect();
    assert_eq!(receivers, [c, d]);
    let told: serde_json::Value = serde_json::from_slice(&world.sent[0].1.plain()).unwrap();
    assert_eq!(told["PacketFilters"].as_object().unwrap().len(), 1);
}

#[test]
fn routes_are_approved_by_the_policy_and_carried_for_those_it_lets_through() {
    let (mut world, [a, _, c, d], _) = network();
    let offer = |world: &mut World| {
        let info = Hostinfo {
            hostname: "c".into(),
            routable_ips: vec!["10.1.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
            ..Hostinfo::default()
        };
        world.update(3, &lite(3, |request| request.hostinfo = Some(info)));
        world.settle();
    };
    offer(&mut world);
    assert_eq!(world.client(a).peers[&NodeId(3)].allowed_ips.as_ref().unwrap().len(), 2, "nobody approved them");
    set(
        &mut world,
        r#"{"tagOwners": {"tag:web": []},
            "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web"]}, "exitNode": ["tag:web"]},
            "acls": [{"action": "accept", "src": ["ada@"], "dst": ["10.1.0.0/16:*"]},
                     {"action": "accept", "src": ["tag:web"], "dst": ["tag:web:*"]}]}"#,
    );
    let allowed = |world: &World, session| {
        let ips = world.client(session).peers[&NodeId(3)].allowed_ips.clone().unwrap();
        ips.iter().skip(2).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(allowed(&world, a), ["10.1.0.0/16"], "a subnet to those who may use it");
    assert_eq!(allowed(&world, d), Vec::<String>::new(), "and to nobody else");
    let own = world.client(c).node.as_ref().unwrap().allowed_ips.clone().unwrap();
    assert_eq!(own.len(), 4, "the router itself knows all that is approved: {own:?}");
}

#[test]
fn a_node_may_ask_for_tags_that_its_user_owns_and_for_no_others() {
    let (mut world, _, ada) = network();
    set(&mut world, WEB_ONLY);
    let eve = world.user("eve");
    let ask = |world: &mut World, machine: u8, user, tag: &str, tags: &[&str]| {
        let key = world.key(user, |key| key.tags = tags.iter().map(|tag| tag.parse().unwrap()).collect());
        let mut asks = request(machine, "x", &key);
        asks.hostinfo.as_mut().unwrap().request_tags = vec![tag.to_owned()];
        world.answer(machine, &asks).error
    };
    assert_eq!(ask(&mut world, 10, ada, "tag:web", &[]), "");
    assert_eq!(world.state.node_by_key(&node_key(10)).unwrap().record.tags[0].as_str(), "tag:web");
    assert_eq!(ask(&mut world, 11, ada, "tag:db", &["tag:web"]), "", "tags may own tags");
    let error = ask(&mut world, 12, eve, "tag:web", &[]);
    assert!(error.contains("may not have the tag `tag:web`: the user `eve` is not among its owners"), "{error}");
    assert!(ask(&mut world, 13, ada, "tag:other", &[]).contains("may not have the tag `tag:other`"));
}

#[test]
fn a_policy_that_is_wrong_or_fails_its_tests_leaves_the_old_one_in_force() {
    let (mut world, [a, ..], _) = network();
    set(&mut world, WEB_ONLY);
    assert!(
        refused(&world, r#"{"acls": [{"action": "accept", "src": ["group:no"], "dst": ["*:*"]}]}"#).contains("line 1")
    );
    let failing = WEB_ONLY.replace("\"acls\"", r#""tests": [{"src": "ada@", "accept": ["tag:web:22"]}], "acls""#);
    assert!(refused(&world, &failing).contains("test(s) failed"));
    assert_eq!((world.state.policy().unwrap().version, seen(&world, a)), (1, vec![3, 4]));
}

#[test]
fn a_policy_is_not_set_over_one_that_its_author_does_not_know() {
    let (mut world, ..) = network();
    let first = world.by().set_policy(WEB_ONLY, "ada", Some(0)).unwrap();
    world.run(first);
    let lost = world.by().set_policy(NOTHING, "bob", Some(0)).unwrap_err();
    assert_eq!(lost.kind(), RefusalKind::Conflict);
    assert!(lost.to_string().contains("version 1, set by ada"), "{lost}");
    let second = world.by().set_policy(NOTHING, "bob", Some(1)).unwrap();
    assert_eq!(world.run(second).version, 2);
    let same = world.by().set_policy(NOTHING, "bob", None).unwrap();
    assert!(same.changes.is_empty(), "nothing new is no version");
    assert_eq!(&*world.state.policy_version(1).unwrap().text, WEB_ONLY);
}

#[test]
fn old_versions_make_room_and_the_last_is_always_kept() {
    let mut world = World::new();
    for number in 0..limit::POLICIES.most + 3 {
        let text = format!("{{\"acls\": []}} // {number}");
        let decision = world.by().set_policy(&text, "ada", None).unwrap();
        world.run(decision);
    }
    assert_eq!(world.state.policies().count(), limit::POLICIES.most);
    let large = format!("{{}} //{}", "x".repeat(4_000_000));
    for number in 0..5 {
        let decision = world.by().set_policy(&format!("{large}{number}"), "ada", None).unwrap();
        world.run(decision);
    }
    assert!(world.state.policies().map(|policy| policy.text.len()).sum::<usize>() <= limit::POLICY_BYTES.most);
    assert!(world.state.policy().unwrap().text.ends_with('4'));
}

#[test]
fn a_kept_policy_that_cannot_be_read_stops_the_maps_until_another_is_set() {
    let (world, ..) = network();
    let policy = |version, text: &str| PolicyRecord { version, text: text.into(), by: "ada".into(), at: world.now };
    let records = Records {
        users: world.state.users().cloned().collect(),
        nodes: world.state.nodes().map(|node| node.record.as_ref().clone()).collect(),
        policies: vec![policy(1, "{}"), policy(2, r#"{"from the future": true}"#)],
        ..Records::default()
    };
    let mut state = State::restore(Config::default(), records, world.now);
    assert!(state.policy_fault().unwrap().contains("version 2 of the policy cannot be read"));
    assert!(matches!(state.open(NodeId(1), VERSION, world.now), Err(MapRefusal::NoPolicy)));
    let decision = state.by(&Actor::COORDINATOR, world.now).set_policy(NOTHING, "ada", Some(2)).unwrap();
    state.apply(decision.changes, world.now);
    assert_eq!(state.policy_fault(), None);
    assert!(state.open(NodeId(1), VERSION, world.now).is_ok());
}

#[test]
fn an_administrator_is_one_to_the_policy_once_told_so() {
    let (mut world, [a, ..], ada) = network();
    set(&mut world, r#"{"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["*:*"]}]}"#);
    assert!(seen(&world, a).is_empty());
    let decision = world.by().set_role(ada, Role::Admin).unwrap();
    world.run(decision);
    world.settle();
    assert_eq!(seen(&world, a), [2, 3, 4]);
}

#[test]
fn every_node_may_run_an_ssh_server_and_take_files_and_has_what_the_policy_adds() {
    let (mut world, [a, _, c, _], _) = network();
    set(
        &mut world,
        r#"{"tagOwners": {"tag:web": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
            "nodeAttrs": [{"target": ["tag:web"], "attr": ["custom:mine"]}]}"#,
    );
    let own = |session| world.client(session).node.as_ref().unwrap().cap_map.keys().cloned().collect::<Vec<_>>();
    for capability in ["https://tailscale.com/cap/ssh", "https://tailscale.com/cap/file-sharing"] {
        assert!(own(a).iter().any(|has| has == capability), "{:?}", own(a));
    }
    assert!(own(c).iter().any(|has| has == "custom:mine") && own(c).len() == own(a).len() + 1, "{:?}", own(c));
    let seen = &world.client(a).peers[&NodeId(3)];
    assert!(seen.cap_map.is_empty(), "what a node may do is not its peers' business");
}

#[test]
fn a_test_of_somebody_who_is_not_there_yet_is_tried_with_somebody_made_up() {
    let (mut world, ada, _) = World::with_key();
    let text = |port: u16| {
        format!(
            r#"{{"tagOwners": {{"tag:web": ["ada@"]}}, "acls": [{{"action": "accept", "src": ["ada@"], "dst": ["tag:web:80"]}}],
                 "tests": [{{"src": "ada@", "accept": ["tag:web:{port}"]}}]}}"#
        )
    };
    let ready = world.state.snapshot().compile(&text(80)).unwrap();
    world.state.stage_policy(ready).unwrap();
    let notes = world.state.staged_notes();
    assert_eq!(notes, ["line 2: tried with nodes made up: src \"ada@\": this stands for no address at present"]);
    let refused = world.state.snapshot().compile(&text(22)).unwrap_err().to_string();
    assert!(refused.contains("ada@ -> tag:web:22: expected allowed, got denied"), "{refused}");

    // Once there is somebody, they are asked.
    let mine = world.key(ada, |_| {});
    world.join(1, "laptop", &mine);
    let web = world.key(ada, |key| key.tags = vec!["tag:web".parse().unwrap()]);
    world.join(2, "web", &web);
    let ready = world.state.snapshot().compile(&text(80)).unwrap();
    world.state.stage_policy(ready).unwrap();
    assert_eq!(world.state.staged_notes(), [""; 0]);
}

#[test]
fn what_a_policy_and_the_network_do_not_know_of_each_other_is_said() {
    let (mut world, ada, key) = World::with_key();
    let old = world.key(ada, |key| key.tags = vec!["tag:old".parse().unwrap()]);
    let (laptop, stray) = (world.join(1, "laptop", &key), world.join(2, "stray", &old));
    assert_eq!(world.state.advice(), [""; 0], "where everything is allowed there is nothing to say");
    let text = r#"{"tagOwners": {"tag:web": ["bob@", "Ada@"]}, "groups": {"group:ops": ["eve@example.org"]},
        "acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:web:80"]}]}"#;
    set(&mut world, text);
    assert_eq!(
        world.state.advice(),
        [
            "the policy names users that nobody is: bob@, eve@example.org",
            "the policy's tagOwners does not have tag:old, so that no rule can name it; nodes that have it: stray",
        ]
    );
    assert_eq!(
        world.state.advice_on_node(stray),
        [
            "the policy's tagOwners does not have tag:old, so that no rule can name it",
            "by the policy in force stray reaches nobody, and nobody reaches it",
        ]
    );
    assert_eq!(
        world.state.advice_on_node(laptop),
        ["by the policy in force laptop reaches nobody, and nobody reaches it"]
    );
}
