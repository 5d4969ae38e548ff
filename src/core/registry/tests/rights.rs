//! What of a node's rights remains when something happens to it: the table of `rights`, line by line.

use super::*;
use crate::types::IpNet;

const LIFETIME: Duration = Duration::from_secs(3600);

/// A world in which keys of nodes end, with a node of ada's that has a tag and an approved route.
struct Scene {
    world: World,
    ada: UserId,
    node: NodeId,
}

impl Scene {
    fn new() -> Self {
        let config = Config { key_lifetime: Some(LIFETIME), ..Config::default() };
        let mut world = World::with(config, Records::default());
        let ada = world.user("ada");
        let key = world.key(ada, |key| key.tags = tags(&["tag:gw", "tag:prod"]));
        let node = world.join(1, "gw", &key);
        let decision = world.by().approve_routes(node, &[route()]).unwrap();
        world.run(decision);
        Self { world, ada, node }
    }

    fn record(&self) -> Arc<NodeRecord> {
        Arc::clone(self.world.state.node(self.node).unwrap().record)
    }

    /// The machine logs in with another node key and a key with these tags.
    fn log_in_again(&mut self, names: &[&str]) -> Arc<NodeRecord> {
        let before = self.record();
        let key = self.world.key(self.ada, |key| key.tags = tags(names));
        let answer = self.world.answer(1, &RegisterRequest { node_key: node_key(101), ..request(1, "gw", &key) });
        assert_eq!(answer.error, "");
        let after = self.record();
        assert_eq!((after.id, after.ipv4, &after.label), (before.id, before.ipv4, &before.label));
        after
    }

    fn administer(&mut self, decide: impl FnOnce(&Commands<'_>, NodeId) -> Result<Decision<Arc<NodeRecord>>, Refusal>) {
        let decision = decide(&self.world.by(), self.node).unwrap();
        self.world.run(decision);
    }

    fn expires(&self) -> Option<Timestamp> {
        Some(self.world.now + LIFETIME)
    }
}

fn tags(names: &[&str]) -> Vec<Tag> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn route() -> IpNet {
    "10.0.0.0/8".parse().unwrap()
}

#[test]
fn a_restart_changes_nothing_whatever_key_is_shown() {
    let mut scene = Scene::new();
    let before = scene.record();
    let untagged = scene.world.key(scene.ada, |_| {});
    scene.world.answer(1, &request(1, "gw", &untagged));
    assert_eq!(scene.record(), before);
    assert!(scene.world.state.keys().all(|key| key.id != KeyId(2) || key.used.is_none()), "nor is the key used");
}

#[test]
fn a_key_without_tags_takes_them_away_and_what_was_approved_for_their_sake() {
    let mut scene = Scene::new();
    let before = scene.record();
    let after = scene.log_in_again(&[]);
    assert!(after.tags.is_empty() && after.approved_routes.is_empty());
    assert_eq!((after.admitted_by, after.key_expiry), (Some(KeyId(2)), scene.expires()));
    assert_eq!(
        scene.world.state.rights_changed(&before, &after),
        [
            "gw: tags: tag:gw, tag:prod before, none from here on",
            "gw: admitted by: key 1 before, key 2 from here on",
            "gw: routes approved by hand: 10.0.0.0/8 before, none from here on",
            "gw: key expires: never before, 2026-01-01 01:00:00Z from here on",
        ]
    );
}

#[test]
fn a_key_with_other_tags_gives_them_and_routes_stay_while_one_tag_does() {
    let mut scene = Scene::new();
    let after = scene.log_in_again(&["tag:gw"]);
    assert_eq!((&after.tags, &after.approved_routes), (&tags(&["tag:gw"]), &vec![route()]));
    let mut scene = Scene::new();
    let after = scene.log_in_again(&["tag:db"]);
    assert_eq!((&after.tags, &after.approved_routes, after.key_expiry), (&tags(&["tag:db"]), &Vec::new(), None));
}

#[test]
fn approval_as_a_user_takes_tags_away() {
    let mut scene = Scene::new();
    let asks = RegisterRequest { node_key: node_key(101), ..request(1, "gw", "") };
    let answer = scene.world.answer(1, &asks);
    let code = Ticket::in_url(&answer.auth_url).unwrap().code();
    let decision = scene.world.by().approve(&code, scene.ada, &[], [9; 32]).unwrap();
    scene.world.run(decision);
    let after = scene.record();
    assert!(after.tags.is_empty() && after.approved_routes.is_empty());
    assert_eq!((after.admitted_by, after.key_expiry), (None, scene.expires()));
}

#[test]
fn another_user_gets_another_node_and_nothing_of_the_first() {
    let mut scene = Scene::new();
    let before = scene.record();
    let bob = scene.world.user("bob");
    let key = scene.world.key(bob, |_| {});
    scene.world.answer(1, &RegisterRequest { node_key: node_key(101), ..request(1, "gw", &key) });
    let other = scene.world.state.node_by_key(&node_key(101)).unwrap().record;
    assert!(other.id != before.id && other.tags.is_empty() && other.approved_routes.is_empty());
    assert_eq!(scene.record(), before);
}

#[test]
fn a_reusable_key_from_before_brings_no_node_back_whose_key_was_ended() {
    let (mut world, _, key) = World::with_key();
    let id = world.join(1, "web", &key);
    let decision = world.by().expire_node(id).unwrap();
    world.run(decision);
    // Not even where the machine says afterwards that it had logged out.
    let logout = RegisterRequest { expiry: Some(Timestamp::UNIX_EPOCH), ..request(1, "web", "") };
    world.answer(1, &logout);
    let again = |key: &str| RegisterRequest { node_key: node_key(101), ..request(1, "web", key) };
    let refused = world.answer(1, &again(&key));
    assert!(!refused.machine_authorized);
    assert_eq!(
        refused.error,
        "the key of the node `web` ended at 2026-01-01 00:00:00Z, and this pre-authentication key, number 1, was made before: \
         ask for a new one, or that an administrator runs `warren-coordinator node extend web`"
    );
    assert!(world.state.node(id).unwrap().expired);

    world.advance(Duration::from_secs(1));
    let later = world.key(world.state.find_user("ada").unwrap().id, |key| key.reusable = true);
    assert_eq!(world.answer(1, &again(&later)).error, "", "a key that was made since is somebody's word");
}

#[test]
fn keys_that_let_nodes_in_again_do_also_after_time_has_ended_theirs() {
    let config = Config { key_lifetime: Some(LIFETIME), ..Config::default() };
    let mut world = World::with(config, Records::default());
    let ada = world.user("ada");
    let usual = world.key(ada, |key| key.reusable = true);
    let readmits = world.key(ada, |key| (key.reusable, key.readmits) = (true, true));
    let one_off = world.key(ada, |_| {});
    for (machine, key) in [(1, &usual), (2, &readmits), (3, &usual)] {
        world.join(machine, "web", key);
    }
    world.advance(LIFETIME);
    let mut again = |machine: u8, key: &str| {
        world
            .answer(machine, &RegisterRequest { node_key: node_key(100 + machine), ..request(machine, "web", key) })
            .error
    };
    assert_ne!(again(1, &usual), "");
    assert_eq!(again(2, &readmits), "");
    assert_eq!(again(3, &one_off), "", "one that was kept for one node is for this one");
}

#[test]
fn a_node_goes_on_without_logging_in_once_its_key_is_extended() {
    let (mut world, _, key) = World::with_key();
    let (id, other) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let sessions = [id, other].map(|id| world.open(id));
    let decision = world.by().expire_node(id).unwrap();
    world.run(decision);
    world.settle();
    assert!(world.client(sessions[0]).node.as_ref().unwrap().expired);
    assert!(world.client(sessions[1]).peers[&id].expired);

    for (life, expiry) in
        [(Life::For(LIFETIME), Some(world.now + LIFETIME)), (Life::Endless, None), (Life::Usual, None)]
    {
        let decision = world.by().extend_node(id, life).unwrap();
        assert_eq!(world.run(decision).key_expiry, expiry);
    }
    world.settle();
    assert!(!world.client(sessions[0]).node.as_ref().unwrap().expired, "it is told on the stream that it has");
    assert!(!world.client(sessions[1]).peers[&id].expired);
    assert_eq!(world.client(sessions[0]).peers.len(), 1);

    world.answer(1, &RegisterRequest { expiry: Some(Timestamp::UNIX_EPOCH), ..request(1, "web", "") });
    let refused = world.by().extend_node(id, Life::Usual).unwrap_err();
    assert!(refused.to_string().contains("logged out by itself"), "{refused}");
}

#[test]
fn tags_by_hand_leave_routes_and_user_and_give_the_key_its_end_back() {
    let mut scene = Scene::new();
    scene.administer(|by, id| by.set_tags(id, &tags(&["tag:db"])));
    let record = scene.record();
    assert_eq!((record.key_expiry, &record.approved_routes, record.user), (None, &vec![route()], Some(scene.ada)));
    scene.world.advance(Duration::from_secs(10));
    scene.administer(|by, id| by.set_tags(id, &[]));
    assert_eq!(scene.record().key_expiry, scene.expires(), "without tags it lasts as long as any");
    scene.administer(|by, id| by.expire_node(id));
    scene.administer(|by, id| by.set_tags(id, &tags(&["tag:db"])));
    assert!(scene.world.state.node(scene.node).unwrap().expired, "tags do not bring it back");
}

#[test]
fn a_node_that_is_moved_is_judged_as_its_new_users_and_keeps_the_rest() {
    let (mut world, ada, key) = World::with_key();
    let bob = world.user("bob");
    let policy = r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["bob@:22"]}]}"#;
    let decision = world.by().set_policy(policy, "ada", None).unwrap();
    world.run(decision);
    let (mine, his) = (world.join(1, "web", &key), world.key(bob, |_| {}));
    let his = world.join(2, "db", &his);
    let session = world.open(mine);
    assert!(world.client(session).peers.is_empty());
    let before = Arc::clone(world.state.node(mine).unwrap().record);
    let decision = world.by().move_node(mine, bob).unwrap();
    let after = world.run(decision);
    world.settle();
    assert_eq!(world.client(session).peers.keys().collect::<Vec<_>>(), [&his]);
    assert_eq!(world.client(session).node.as_ref().unwrap().user, bob);
    assert_eq!(*after, NodeRecord { user: Some(bob), version: before.version + 1, ..(*before).clone() });
    assert_eq!(world.state.rights_changed(&before, &after), ["web: user: ada before, bob from here on"]);

    // A machine has one node for each user.
    let asks = RegisterRequest { node_key: node_key(101), ..request(1, "web", &key) };
    world.answer(1, &asks);
    let second = world.state.node_by_key(&node_key(101)).unwrap().record.id;
    assert_ne!(second, mine);
    let refused = world.by().move_node(second, bob).unwrap_err();
    assert_eq!(refused.kind(), RefusalKind::Conflict);
    assert!(world.by().move_node(mine, UserId(9)).is_err());
    let _ = ada;
}

#[test]
fn a_key_that_goes_leaves_its_nodes_unless_told_otherwise() {
    let mut world = World::new();
    let ada = world.user("ada");
    let state_after = |with: WithNodes, world: &mut World| {
        let key = world.key(ada, |key| key.reusable = true);
        let number = KeyId(world.state.directory.counters().key);
        let machine = u8::try_from(number.0).unwrap();
        let id = world.join(machine, "web", &key);
        let decision = world.by().delete_key(number, with).unwrap();
        world.run(decision);
        world.state.node(id).map(|node| (node.expired, node.record.admitted_by))
    };
    assert_eq!(state_after(WithNodes::Stay, &mut world), Some((false, Some(KeyId(1)))));
    assert_eq!(state_after(WithNodes::LogOut, &mut world), Some((true, Some(KeyId(2)))));
    assert_eq!(state_after(WithNodes::Delete, &mut world), None);

    let key = world.key(ada, |key| key.reusable = true);
    let id = world.join(9, "web", &key);
    let decision = world.by().expire_key(KeyId(4), WithNodes::LogOut).unwrap();
    world.run(decision);
    assert!(world.state.node(id).unwrap().expired);
}

#[test]
fn a_machine_that_was_turned_away_is_told_and_may_ask_again_later() {
    let mut world = World::new();
    let asks = request(1, "web", "");
    let url = world.answer(1, &asks).auth_url;
    let code = Ticket::in_url(&url).unwrap().code();
    let decision = world.by().reject(&code).unwrap();
    world.run(decision);
    assert_eq!((world.state.pending_list().count(), world.settled.as_slice()), (0, &[code.clone()][..]));
    let told = world.answer(1, &RegisterRequest { followup: url, ..asks.clone() });
    assert!(told.error.contains("refused to let this machine in") && told.auth_url.is_empty(), "{told:?}");
    assert!(world.by().reject(&code).is_err());

    let ada = world.user("ada");
    let key = world.key(ada, |_| {});
    assert_eq!(world.answer(1, &request(1, "web", &key)).error, "", "a key is a word of its own");
    world.answer(2, &request(2, "db", ""));
    world.advance(Duration::from_secs(10 * 60));
    assert_eq!(world.state.rejected().count(), 0);
}
