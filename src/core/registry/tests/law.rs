//! Law 8: a map with its deltas applied equals the full map, whatever happened.

use proptest::prelude::*;

use super::*;
use crate::policy::Role;
use crate::types::{IpNet, RegionId, StableNodeId};
use crate::wire::control::{NetInfo, Resolver};

const MACHINES: u8 = 6;

/// Policies that differ in whom they connect, by which rules, and in the routes they approve and steer.
const POLICIES: &[&str] = &[
    "{}",
    r#"{"acls": []}"#,
    r#"{"tagOwners": {"tag:web": []}, "acls": [{"action": "accept", "src": ["ada@"], "dst": ["tag:web:80"]}]}"#,
    r#"{"tagOwners": {"tag:web": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["ada@"]}, "exitNode": ["tag:web"]},
        "acls": [{"action": "accept", "src": ["bob@"], "dst": ["10.0.0.0/24:*", "autogroup:internet:*"]},
                 {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
    r#"{"tagOwners": {"tag:web": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web", "bob@"]}},
        "grants": [{"src": ["ada@", "bob@"], "dst": ["10.0.0.0/16"], "ip": ["22"], "via": ["tag:web"]},
                   {"src": ["*"], "dst": ["tag:web"], "app": {"example.com/cap": [{"a": 1}]}}]}"#,
    r#"{"groups": {"group:all": ["ada@", "bob@", "eve@"]}, "tagOwners": {"tag:web": ["group:all"]},
        "nodeAttrs": [{"target": ["tag:web"], "attr": ["disable-ipv4", "example"]}],
        "acls": [{"action": "accept", "src": ["group:all"], "dst": ["*:443"]},
                 {"action": "accept", "src": ["tag:web"], "dst": ["group:all:1-100"]}],
        "ssh": [{"action": "accept", "src": ["group:all"], "dst": ["tag:web"], "users": ["root"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["autogroup:member:*"]},
                 {"action": "accept", "src": ["100.64.0.1"], "dst": ["100.64.0.2:22", "10.0.0.0/8:*"]}],
        "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]}"#,
];

/// Something that happens. Machines are numbered, and those that cannot do it do nothing.
#[derive(Clone, Debug)]
enum Happening {
    Join { machine: u8, user: usize, tagged: bool, ephemeral: bool },
    Rotate { machine: u8 },
    Logout { machine: u8 },
    Open { machine: u8 },
    Close { machine: u8 },
    Say { machine: u8, endpoints: u8, derp: u16, name: u8, routes: u8, disco: u8 },
    Pass { milliseconds: u64 },
    Rename { machine: u8, name: u8 },
    Expire { machine: u8 },
    Delete { machine: u8 },
    Extend { machine: u8 },
    Move { machine: u8, user: usize },
    Tag { machine: u8, tagged: bool },
    Approve { machine: u8, routes: u8 },
    RenameUser { user: usize, name: u8 },
    Resolvers { count: usize },
    Policy { number: usize },
    Role { user: usize, admin: bool },
    Suspend { user: usize, suspend: bool },
    Restart,
}

fn happening() -> impl Strategy<Value = Happening> {
    let machine = 1..=MACHINES;
    prop_oneof![
        4 => (machine.clone(), 0..2_usize, any::<bool>(), any::<bool>())
            .prop_map(|(machine, user, tagged, ephemeral)| Happening::Join { machine, user, tagged, ephemeral }),
        1 => machine.clone().prop_map(|machine| Happening::Rotate { machine }),
        1 => machine.clone().prop_map(|machine| Happening::Logout { machine }),
        6 => machine.clone().prop_map(|machine| Happening::Open { machine }),
        3 => machine.clone().prop_map(|machine| Happening::Close { machine }),
        6 => (machine.clone(), 0..3_u8, 0..3_u16, 0..3_u8, 0..4_u8, 0..3_u8).prop_map(
            |(machine, endpoints, derp, name, routes, disco)| Happening::Say {
                machine, endpoints, derp, name, routes, disco
            }
        ),
        4 => prop_oneof![0..150_u64, Just(10_000), Just(2_000_000)]
            .prop_map(|milliseconds| Happening::Pass { milliseconds }),
        1 => (machine.clone(), 0..3_u8).prop_map(|(machine, name)| Happening::Rename { machine, name }),
        1 => machine.clone().prop_map(|machine| Happening::Expire { machine }),
        1 => machine.clone().prop_map(|machine| Happening::Delete { machine }),
        1 => machine.clone().prop_map(|machine| Happening::Extend { machine }),
        1 => (machine.clone(), 0..2_usize).prop_map(|(machine, user)| Happening::Move { machine, user }),
        1 => (machine.clone(), any::<bool>()).prop_map(|(machine, tagged)| Happening::Tag { machine, tagged }),
        2 => (machine, 0..4_u8).prop_map(|(machine, routes)| Happening::Approve { machine, routes }),
        1 => (0..2_usize, 0..3_u8).prop_map(|(user, name)| Happening::RenameUser { user, name }),
        1 => (0..2_usize).prop_map(|count| Happening::Resolvers { count }),
        2 => (0..POLICIES.len()).prop_map(|number| Happening::Policy { number }),
        1 => (0..2_usize, any::<bool>()).prop_map(|(user, admin)| Happening::Role { user, admin }),
        1 => (0..2_usize, any::<bool>()).prop_map(|(user, suspend)| Happening::Suspend { user, suspend }),
        1 => Just(Happening::Restart),
    ]
}

/// A world whose first node numbers lie across the border of two chunks.
fn world() -> (World, [UserId; 2]) {
    let counters = Counters { node: 124, ..Counters::default() };
    let config = Config { key_lifetime: Some(Duration::from_secs(1_500)), ..Config::default() };
    let mut world = World::with(config, Records { counters, ..Records::default() });
    let users = [world.user("ada"), world.user("bob")];
    (world, users)
}

fn routes(bits: u8) -> Vec<IpNet> {
    let all = ["10.0.0.0/24", "0.0.0.0/0"];
    all.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1).map(|(_, net)| net.parse().unwrap()).collect()
}

fn tags(tagged: bool) -> Vec<Tag> {
    if tagged { vec!["tag:web".parse().unwrap()] } else { Vec::new() }
}

fn rests(world: &World, id: NodeId) -> bool {
    world.state.is_suspended(world.state.node(id).unwrap().record)
}

/// The newest node of a machine, and the node key that it uses at the moment.
fn node(world: &World, machine: u8) -> Option<(NodeId, NodePublic)> {
    let nodes = world.state.nodes().filter(|node| node.record.machine == machine_key(machine));
    nodes.last().map(|node| (node.record.id, node.record.key))
}

fn happen(world: &mut World, users: [UserId; 2], rotation: &mut u8, happening: Happening) {
    match happening {
        Happening::Join { machine, user, tagged, ephemeral } => {
            let key = world.key(users[user], |key| {
                key.tags = tags(tagged);
                key.ephemeral = ephemeral;
            });
            world.register(machine, &request(machine, "web", &key));
        }
        Happening::Rotate { machine } => {
            let Some((id, _)) = node(world, machine) else { return };
            *rotation = rotation.wrapping_add(1) % 100;
            let user = world.state.node(id).unwrap().record.user.unwrap_or(users[0]);
            let key = world.key(user, |_| {});
            let node_key = node_key(100 + *rotation);
            world.register(machine, &RegisterRequest { node_key, ..request(machine, "web", &key) });
        }
        Happening::Logout { machine } => {
            let Some((_, node_key)) = node(world, machine) else { return };
            let expiry = Some(Timestamp::UNIX_EPOCH);
            world.register(machine, &RegisterRequest { node_key, expiry, ..request(machine, "web", "") });
        }
        Happening::Open { machine } => {
            if let Some((id, _)) = node(world, machine).filter(|(id, _)| !rests(world, *id)) {
                world.open(id);
            }
        }
        Happening::Close { machine } => {
            let Some((id, _)) = node(world, machine) else { return };
            let session = world.clients.iter().find(|(_, (of, _))| *of == id).map(|(session, _)| *session);
            session.into_iter().for_each(|session| world.close(session));
        }
        Happening::Say { machine, endpoints, derp, name, routes: bits, disco } => {
            let Some((_, node_key)) = node(world, machine).filter(|(id, _)| !rests(world, *id)) else { return };
            let says = lite(machine, |request| {
                request.node_key = node_key;
                request.disco_key = DiscoPublic::from_bytes([disco; 32]);
                request.endpoints = (0..endpoints).map(|n| ([192, 0, 2, n], 41641).into()).collect();
                request.hostinfo = Some(Hostinfo {
                    hostname: ["web", "db", "x"][usize::from(name)].to_owned(),
                    routable_ips: routes(bits),
                    net_info: Some(NetInfo { preferred_derp: RegionId(derp), ..NetInfo::default() }),
                    ..Hostinfo::default()
                });
            });
            // One that claims a key by turns with another is put off, as two machines are.
            let _ = world.state.update(machine_key(machine), &says, world.now);
            world.pump();
        }
        Happening::Pass { milliseconds } => world.advance(Duration::from_millis(milliseconds)),
        Happening::Restart => restart(world),
        administration => administer(world, users, administration),
    }
}

fn administer(world: &mut World, users: [UserId; 2], happening: Happening) {
    let of = |world: &World, machine| node(world, machine).map_or(NodeId(0), |(id, _)| id);
    let decision = match happening {
        Happening::Rename { machine, name } => {
            world.by().rename_node(of(world, machine), ["web", "a", "b"][usize::from(name)].parse().unwrap())
        }
        Happening::Expire { machine } => world.by().expire_node(of(world, machine)),
        Happening::Delete { machine } => world.by().delete_node(of(world, machine)),
        Happening::Extend { machine } => world.by().extend_node(of(world, machine), Life::Usual),
        Happening::Move { machine, user } => world.by().move_node(of(world, machine), users[user]),
        Happening::Tag { machine, tagged } => world.by().set_tags(of(world, machine), &tags(tagged)),
        Happening::Approve { machine, routes: bits } => world.by().approve_routes(of(world, machine), &routes(bits)),
        Happening::RenameUser { user, name } => {
            let name = ["ada", "eve", "joe"][usize::from(name)].parse().unwrap();
            if let Ok(decision) = world.by().rename_user(users[user], name) {
                world.run(decision);
            }
            return;
        }
        Happening::Policy { number } => {
            let decision = world.by().set_policy(POLICIES[number], "ada", None).unwrap();
            world.run(decision);
            return;
        }
        Happening::Role { user, admin } => {
            let role = if admin { Role::Admin } else { Role::Member };
            let decision = world.by().set_role(users[user], role).unwrap();
            world.run(decision);
            return;
        }
        Happening::Suspend { user, suspend } => {
            let by = world.by();
            let decision = if suspend { by.suspend_user(users[user]) } else { by.restore_user(users[user]) };
            world.run(decision.unwrap());
            for (id, _) in world.clients.values() {
                assert!(!rests(world, *id), "a stream of a node that rests is open");
            }
            return;
        }
        Happening::Resolvers { count } => {
            let server = Resolver { addr: "9.9.9.9".to_owned(), ..Resolver::default() };
            world.state.set_names(Names { nameservers: vec![server; count], ..Names::default() });
            return;
        }
        other => panic!("not administration: {other:?}"),
    };
    if let Ok(decision) = decision {
        world.run(decision);
    }
}

/// The coordinator stops and starts again: streams end, and the records are all that is left.
fn restart(world: &mut World) {
    let records = Records {
        revision: 0,
        counters: world.state.directory.counters(),
        users: world.state.users().cloned().collect(),
        keys: world.state.keys().cloned().collect(),
        nodes: world.state.nodes().map(|node| node.record.as_ref().clone()).collect(),
        freed: world.state.freed().collect(),
        policies: world.state.policies().map(|policy| policy.as_ref().clone()).collect(),
        pending: world.state.pending_list().cloned().collect(),
        rejected: world.state.rejected().collect(),
        sessions: world.state.sessions().cloned().collect(),
        settings: world.state.settings().clone(),
        ..Records::default()
    };
    world.state = State::restore(world.state.config().clone(), records, world.now);
    world.clients.clear();
}

/// What must hold after anything at all, once everyone was told.
fn check(world: &mut World) -> Result<(), TestCaseError> {
    for (id, client) in world.clients.values() {
        let mut fresh = Client::default();
        fresh.take(&world.state.full_map(*id, world.now).unwrap());
        prop_assert_eq!(client.knows(), fresh.knows(), "node {} is misled", id);
        obeys_the_policy(world, *id, &fresh)?;
        for (user, name) in &fresh.profiles {
            prop_assert_eq!(client.profiles.get(user), Some(name), "user {}", user);
        }
        let owners = fresh.peers.values().chain(&fresh.node).map(|node| node.user);
        for owner in owners {
            prop_assert!(fresh.profiles.contains_key(&owner), "owner {} is not introduced", owner);
        }
    }
    let records: Vec<_> = world.state.nodes().map(|node| node.record).collect();
    let distinct = |key: &dyn Fn(&NodeRecord) -> String| {
        records.iter().map(|record| key(record)).collect::<std::collections::BTreeSet<_>>().len()
    };
    prop_assert_eq!(distinct(&|record| record.label.to_string()), records.len());
    prop_assert_eq!(distinct(&|record| record.ipv4.to_string()), records.len());
    prop_assert_eq!(world.state.directory.index_sizes(), [records.len(); 4]);
    let discos = records.iter().map(|record| record.status.disco).filter(|disco| !disco.is_zero());
    let mut holders = BTreeMap::new();
    for (disco, machine) in discos.zip(records.iter().filter(|r| !r.status.disco.is_zero()).map(|r| r.machine)) {
        prop_assert_eq!(*holders.entry(disco).or_insert(machine), machine, "two machines hold one disco key");
    }
    Ok(())
}

/// A node is shown whom the policy, compiled anew, says, and lets in what it says.
fn obeys_the_policy(world: &World, id: NodeId, client: &Client) -> Result<(), TestCaseError> {
    let Some(record) = world.state.policy() else { return Ok(()) };
    let compiled = world.state.try_policy(&record.text).unwrap();
    let expired = |id: NodeId| world.state.node(id).unwrap().expired;
    if expired(id) {
        prop_assert!(client.peers.is_empty());
        return Ok(());
    }
    let peers = compiled.peers(id);
    prop_assert_eq!(
        client.peers.keys().copied().collect::<Vec<_>>(),
        peers.iter().map(|peer| peer.id).collect::<Vec<_>>()
    );
    for peer in peers.iter().filter(|peer| !expired(peer.id)) {
        let set = |nets: &[IpNet]| nets.iter().copied().collect::<std::collections::BTreeSet<_>>();
        let shown = &client.peers[&peer.id];
        let allowed: Vec<IpNet> = peer.allowed_ips().collect();
        prop_assert_eq!(set(shown.allowed_ips.as_deref().unwrap()), set(&allowed), "{} sees {}", id, peer.id);
        prop_assert_eq!(set(&shown.primary_routes), set(&peer.subnets));
    }
    let filter = compiled.filter(id);
    let parts: BTreeMap<String, serde_json::Value> = compiled
        .parts(&filter)
        .map(|part| {
            let name = part.origin().map_or("base", |origin| origin.reference.as_str()).to_owned();
            (name, serde_json::to_value(part.rules()).unwrap())
        })
        .collect();
    prop_assert_eq!(&client.knows()["filters"], &serde_json::to_value(parts).unwrap());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_map_with_its_deltas_equals_the_full_map(happenings in prop::collection::vec(happening(), 1..60)) {
        let (mut world, users) = world();
        let mut rotation = 0;
        let mut given = BTreeMap::<_, StableNodeId>::new();
        for (step, happening) in happenings.into_iter().enumerate() {
            happen(&mut world, users, &mut rotation, happening);
            // An address once given is that node's, with so few.
            for node in world.state.nodes() {
                let owner = given.entry(node.record.ipv4).or_insert_with(|| node.record.stable_id.clone());
                prop_assert_eq!(&*owner, &node.record.stable_id, "{} was given twice", node.record.ipv4);
            }
            // Not after every step, so that changes are gathered too.
            if step % 3 == 2 {
                world.settle();
                check(&mut world)?;
            }
        }
        world.settle();
        check(&mut world)?;
    }
}
