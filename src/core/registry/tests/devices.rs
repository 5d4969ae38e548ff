//! Devices that speak nothing but WireGuard: who sees what of them, and what nobody can be as one.

use super::*;
use crate::types::IpNet;

const POLICY: &str = r#"{
    "tagOwners": {"tag:phone": [], "tag:web": [], "tag:gate": []},
    "acls": [
        {"action": "accept", "src": ["tag:phone"], "dst": ["tag:web:80"]},
        {"action": "accept", "src": ["tag:web"], "dst": ["tag:phone:90"]},
    ],
}"#;
const NOBODY: [Vec<u64>; 3] = [Vec::new(), Vec::new(), Vec::new()];
/// The number of the device's key.
const PHONE: u8 = 77;

fn set_policy(world: &mut World, text: &str) {
    let decision = world.by().set_policy(text, "ada", None).unwrap();
    world.run(decision);
    world.settle();
}

/// A gateway, a server and a node that no rule names, all connected; then the device.
struct Scene {
    world: World,
    user: UserId,
    ids: [NodeId; 3],
    sessions: [SessionId; 3],
}

impl Scene {
    fn new() -> Self {
        let (mut world, user, plain) = World::with_key();
        let tagged = ["tag:gate", "tag:web"].map(|tag| {
            world.key(user, |key| {
                key.reusable = true;
                key.tags = vec![tag.parse().unwrap()];
            })
        });
        let ids = [world.join(1, "gate", &tagged[0]), world.join(2, "web", &tagged[1]), world.join(3, "other", &plain)];
        let sessions = ids.map(|id| world.open(id));
        set_policy(&mut world, POLICY);
        Self { world, user, ids, sessions }
    }

    fn wish(&self) -> NewDevice {
        NewDevice {
            label: "phone".parse().unwrap(),
            key: node_key(PHONE),
            user: self.user,
            tags: vec!["tag:phone".parse().unwrap()],
            gateway: self.ids[0],
        }
    }

    fn add(&mut self) -> Arc<NodeRecord> {
        let decision = self.world.by().add_device(self.wish(), [9; 32]).unwrap();
        let record = self.world.run(decision);
        self.world.settle();
        record
    }

    fn refused(&self, change: impl FnOnce(&mut NewDevice)) -> String {
        let mut wish = self.wish();
        change(&mut wish);
        self.world.by().add_device(wish, [9; 32]).unwrap_err().to_string()
    }

    /// Whom each of the three sees, and that this is what a new stream would be told.
    fn seen(&mut self) -> [Vec<u64>; 3] {
        let now = self.world.now;
        for (id, session) in self.ids.into_iter().zip(self.sessions) {
            let mut anew = Client::default();
            anew.take(&self.world.state.full_map(id, now).unwrap());
            assert_eq!(self.world.client(session).knows(), anew.knows(), "node {id}");
        }
        self.sessions.map(|session| self.world.client(session).peers.keys().map(|id| id.0).collect())
    }
}

fn addresses(record: &NodeRecord) -> Vec<IpNet> {
    vec![std::net::IpAddr::from(record.ipv4).into(), std::net::IpAddr::from(record.ipv6).into()]
}

#[test]
fn the_gateway_has_the_device_and_others_see_the_gateway_in_its_place() {
    let mut scene = Scene::new();
    assert_eq!(scene.seen(), NOBODY, "no rule connects anybody yet");
    let phone = scene.add();
    let [gate, web, _] = scene.ids;
    assert_eq!(scene.seen(), [vec![web.0, phone.id.0], vec![gate.0], vec![]]);

    let at_gate = &scene.world.client(scene.sessions[0]).peers[&phone.id];
    assert!(at_gate.is_wireguard_only && at_gate.disco_key.is_zero() && at_gate.endpoints.is_empty());
    assert_eq!((at_gate.key, at_gate.home_derp.0, at_gate.online), (node_key(PHONE), 0, None));
    assert_eq!(at_gate.allowed_ips, Some(addresses(&phone)));
    let at_web = &scene.world.client(scene.sessions[1]).peers[&gate];
    assert_eq!(at_web.primary_routes, addresses(&phone));
    assert!(at_web.allowed_ips.as_ref().unwrap().ends_with(&addresses(&phone)));
}

#[test]
fn the_gateway_enforces_both_directions_and_the_other_end_its_own() {
    let mut scene = Scene::new();
    let phone = scene.add();
    let opened = |world: &World, session| {
        let filters = world.client(session).knows()["filters"].clone();
        let rules = filters.as_object().unwrap().values().flat_map(|rules| rules.as_array().unwrap().clone());
        let shown = rules.flat_map(|rule| {
            let from = rule["SrcIPs"][0].as_str().unwrap().to_owned();
            let ports = rule["DstPorts"].as_array().unwrap().clone();
            ports.into_iter().map(move |to| format!("{from} > {}:{}", to["IP"].as_str().unwrap(), to["Ports"]["First"]))
        });
        let mut shown: Vec<String> = shown.filter(|line| !line.contains("::")).collect();
        shown.sort();
        shown
    };
    let (web, phone) = (scene.world.state.node(scene.ids[1]).unwrap().record.ipv4, phone.ipv4);
    let (out, back) = (format!("{phone} > {web}:80"), format!("{web} > {phone}:90"));
    let [gate_session, web_session, other_session] = scene.sessions;
    assert_eq!(opened(&scene.world, gate_session), [back, out.clone()]);
    assert_eq!(opened(&scene.world, web_session), [out]);
    assert!(opened(&scene.world, other_session).is_empty());
}

#[test]
fn what_changes_for_the_device_reaches_those_who_are_there_at_once() {
    let mut scene = Scene::new();
    let phone = scene.add();
    let [gate, web, _] = scene.ids;
    let there = [vec![web.0, phone.id.0], vec![gate.0], vec![]];

    let change = scene.world.by().set_tags(phone.id, &["tag:gate".parse().unwrap()]).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert_eq!(scene.seen(), [vec![phone.id.0], vec![], vec![]], "the gateway keeps it, with rights to nothing");
    let change = scene.world.by().set_tags(phone.id, &[]).unwrap();
    scene.world.run(change);
    let change = scene.world.by().suspend_user(scene.user).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert_eq!(scene.world.state.node(phone.id).map(|node| node.expired), Some(true));
    let sees_phone = |scene: &Scene| scene.world.client(scene.sessions[0]).peers.contains_key(&phone.id);
    assert!(!sees_phone(&scene), "its user is suspended");
    let change = scene.world.by().restore_user(scene.user).unwrap();
    scene.world.run(change);
    scene.sessions[2] = scene.world.open(scene.ids[2]);
    let change = scene.world.by().set_tags(phone.id, &["tag:phone".parse().unwrap()]).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert!(sees_phone(&scene));

    let change = scene.world.by().expire_node(phone.id).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert!(!sees_phone(&scene) && scene.world.withdrawn.contains(&node_key(PHONE)));
    let change = scene.world.by().extend_node(phone.id, Life::Endless).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert_eq!(scene.seen(), there);

    let change = scene.world.by().delete_node(phone.id).unwrap();
    scene.world.run(change);
    scene.world.settle();
    assert_eq!(scene.seen(), NOBODY);
}

#[test]
fn no_machine_is_a_device_and_no_device_anything_but_one() {
    let mut scene = Scene::new();
    let phone = scene.add();
    let key = scene.world.key(scene.user, |key| key.reusable = true);
    for machine in [PHONE, 0] {
        let mut joining = request(PHONE, "phone", &key);
        joining.node_key = node_key(PHONE);
        let answer = scene.world.answer(machine, &joining);
        assert_eq!(answer.error, "this node key belongs to another machine", "as machine {machine}");
        let mut following = lite(PHONE, |_| {});
        following.node_key = node_key(PHONE);
        let refused = scene.world.state.update(machine_key(machine), &following, scene.world.now);
        assert_eq!(refused, Err(MapRefusal::Unknown));
    }
    assert_eq!(scene.world.state.open(phone.id, VERSION, scene.world.now).unwrap_err(), MapRefusal::Unknown);
    assert_eq!(scene.world.state.nodes_of_machine(machine_key(0)).count(), 0);

    let routes = scene.world.by().approve_routes(phone.id, &["10.0.0.0/8".parse().unwrap()]);
    assert!(routes.unwrap_err().to_string().contains("carry nothing"));
    let delete = scene.world.by().delete_node(scene.ids[0]).unwrap_err().to_string();
    assert!(delete.contains("is the gateway of WireGuard devices") && delete.contains("phone"), "{delete}");
}

#[test]
fn a_device_that_cannot_be_is_refused_with_the_reason() {
    let mut scene = Scene::new();
    let ids = scene.ids;
    for (reason, wish) in [
        ("all zero", Box::new(|new: &mut NewDevice| new.key = node_key(0)) as Box<dyn FnOnce(&mut NewDevice)>),
        ("that of the node `web`", Box::new(|new| new.key = node_key(2))),
        ("belongs to node", Box::new(|new| new.label = "web".parse().unwrap())),
        ("taken for something else", Box::new(|new| new.label = "7".parse().unwrap())),
        ("there is no node 99", Box::new(|new| new.gateway = NodeId(99))),
        ("there is no user", Box::new(|new| new.user = UserId(99))),
    ] {
        let refused = scene.refused(wish);
        assert!(refused.contains(reason), "{refused}");
    }
    let phone = scene.add();
    let behind =
        scene.refused(|new| (new.key, new.label, new.gateway) = (node_key(78), "two".parse().unwrap(), phone.id));
    assert!(behind.contains("is a WireGuard device itself"), "{behind}");
    let change = scene.world.by().expire_node(ids[0]).unwrap();
    scene.world.run(change);
    let expired = scene.refused(|new| (new.key, new.label) = (node_key(78), "two".parse().unwrap()));
    assert!(expired.contains("past its time"), "{expired}");

    let (world, user, _) = World::with_key();
    let new = NewDevice { label: "phone".parse().unwrap(), key: node_key(1), user, tags: Vec::new(), gateway: ids[0] };
    assert!(world.by().add_device(new, [9; 32]).unwrap_err().to_string().contains("need a policy"));
}

#[test]
fn a_user_has_a_share_of_devices() {
    let mut scene = Scene::new();
    let add = |scene: &Scene, number: usize| {
        let mut key = [200; 32];
        key[0] = number as u8;
        let label = format!("device{number}").parse().unwrap();
        scene.world.by().add_device(NewDevice { key: NodePublic::from_bytes(key), label, ..scene.wish() }, [9; 32])
    };
    for number in 0..limit::DEVICES_OF_USER.most {
        let decision = add(&scene, number).unwrap();
        assert_eq!(decision.audit.command, Command::AddDevice);
        assert!(decision.audit.entries.iter().any(|entry| entry.after["gateway"] == scene.ids[0].0));
        scene.world.run(decision);
    }
    let refused = add(&scene, limit::DEVICES_OF_USER.most).unwrap_err();
    assert_eq!(refused.kind(), RefusalKind::Full);
}
