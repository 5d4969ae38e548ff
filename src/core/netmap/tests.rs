use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::types::{DiscoPublic, RegionId, UserId};
use crate::wire::control::{self, NetPortRange, PeerChange, Ports};

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// Peer `id` has key `id`, address 100.64.0.`id`.
fn node(id: u8) -> Node {
    let addresses = vec![prefix(&format!("100.64.0.{id}/32")), prefix(&format!("fd7a:115c:a1e0::{id:x}/128"))];
    let key = NodePublic::from_bytes([id; 32]);
    Node { id: NodeId(id.into()), key, name: format!("n{id}.example."), addresses, ..Node::default() }
}

fn router(id: u8, routes: &[&str]) -> Node {
    let mut node = node(id);
    node.allowed_ips = Some(node.addresses.iter().copied().chain(prefixes(routes)).collect());
    node
}

/// The map of node 200 with these peers.
fn map(peers: Vec<Node>) -> Netmap {
    let mut map = Netmap::default();
    map.replace(MapResponse { node: Some(node(200)), peers: peers.into(), ..MapResponse::default() }, at(0));
    map
}

fn reasons(map: &Netmap) -> Vec<String> {
    map.rejections().map(ToString::to_string).collect()
}

fn ids(map: &Netmap) -> Vec<u64> {
    map.peers().map(|peer| peer.node.id.0).collect()
}

#[test]
fn a_sound_map_is_taken_whole() {
    let map = map(vec![node(1), router(2, &["10.0.0.0/24", "fd00::/64"])]);
    assert_eq!(reasons(&map), Vec::<String>::new());
    assert_eq!(ids(&map), [1, 2]);
    let router = map.peer(NodeId(2)).unwrap();
    assert_eq!(router.addresses, prefixes(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]));
    assert_eq!(router.routes, prefixes(&["10.0.0.0/24", "fd00::/64"]));
    assert_eq!(map.addresses().len(), 2);
}

#[test]
fn where_a_peer_is_stays_known_while_a_coordinator_that_began_anew_has_yet_to_hear_from_it() {
    type Whereabouts = (DiscoPublic, RegionId, Vec<SocketAddr>);
    let of = |map: &Netmap| -> Whereabouts {
        let node = &map.peer(NodeId(1)).unwrap().node;
        (node.disco_key, node.home_derp, node.endpoints.clone())
    };
    let told = |peer: Node| MapResponse { node: Some(node(200)), peers: vec![peer].into(), ..MapResponse::default() };
    let heard: Whereabouts =
        (DiscoPublic::from_bytes([7; 32]), RegionId(900), vec!["203.0.113.5:41741".parse().unwrap()]);
    let (disco_key, home_derp, endpoints) = heard.clone();
    let mut map = map(vec![Node { disco_key, home_derp, endpoints, ..node(1) }, node(2)]);

    map.replace(told(node(1)), at(1));
    assert_eq!(of(&map), heard);
    assert_eq!(ids(&map), [1], "who is told of no more is gone");

    map.replace(told(Node { home_derp: RegionId(901), ..node(1) }), at(2));
    assert_eq!(of(&map), (DiscoPublic::default(), RegionId(901), Vec::new()), "what is said counts");
    map.replace(told(Node { key: NodePublic::from_bytes([77; 32]), ..node(1) }), at(3));
    assert_eq!(of(&map), Whereabouts::default(), "another key is another machine");
}

#[test]
fn our_own_number_key_and_address_are_never_a_peers() {
    let mut same_key = node(2);
    same_key.key = NodePublic::from_bytes([200; 32]);
    let mut same_address = node(3);
    same_address.addresses = prefixes(&["100.64.0.200/32", "fd7a:115c:a1e0::3/128"]);
    let map = map(vec![node(1), same_key, same_address, node(200)]);
    assert_eq!(ids(&map), [1, 3]);
    assert_eq!(map.peer(NodeId(3)).unwrap().addresses, prefixes(&["fd7a:115c:a1e0::3/128"]));
    let reasons = reasons(&map);
    assert!(reasons[0].starts_with("peer 2 (n2.example) is left out: its key is this node's own"), "{reasons:?}");
    assert!(reasons[1].starts_with("address 100.64.0.200/32 of peer 3 (n3.example) is left out"), "{reasons:?}");
    assert!(reasons[2].contains("its number is this node's own"), "{reasons:?}");
}

#[test]
fn of_two_peers_with_one_key_the_lower_number_has_it() {
    let mut twin = node(2);
    twin.key = node(1).key;
    let mut map = map(vec![node(1), twin]);
    assert_eq!(ids(&map), [1]);
    assert_eq!(reasons(&map), ["peer 2 (n2.example) is left out: peer 1 has the same node key"]);

    map.apply(MapResponse { peers_removed: vec![NodeId(1)], ..MapResponse::default() }, at(0));
    assert_eq!(ids(&map), [2]);
    assert_eq!(reasons(&map), Vec::<String>::new());
}

#[test]
fn of_two_peers_with_one_prefix_the_primary_then_the_lower_number_has_it() {
    let mut primary = router(3, &["10.0.0.0/24"]);
    primary.primary_routes = prefixes(&["10.0.0.0/24"]);
    let mut map = map(vec![router(1, &["10.0.0.0/24"]), router(2, &["10.0.0.0/24"]), primary]);
    assert_eq!(map.owner(&prefix("10.0.0.0/24")).unwrap().node.id, NodeId(3));
    assert_eq!(map.rejections().count(), 2);

    map.apply(MapResponse { peers_removed: vec![NodeId(3)], ..MapResponse::default() }, at(0));
    assert_eq!(map.owner(&prefix("10.0.0.0/24")).unwrap().node.id, NodeId(1));
    assert_eq!(
        reasons(&map),
        ["route 10.0.0.0/24 of peer 2 (n2.example) is left out: peer 1 has it already; only one peer can carry it"]
    );
}

#[test]
fn a_route_to_another_peers_address_does_not_take_it() {
    let map = map(vec![router(1, &["100.64.0.2/32"]), node(2)]);
    assert_eq!(map.owner(&prefix("100.64.0.2/32")).unwrap().node.id, NodeId(2));
    assert_eq!(map.rejections().count(), 1);
}

#[test]
fn nested_routes_of_different_peers_stand_side_by_side() {
    let map = map(vec![router(1, &["10.0.0.0/8"]), router(2, &["10.1.0.0/16"])]);
    assert_eq!(reasons(&map), Vec::<String>::new());
}

#[test]
fn routes_over_special_addresses_or_the_overlay_are_left_out() {
    let bad = [
        "127.0.0.0/8",
        "169.254.1.0/24",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::1/128",
        "fe80::/64",
        "ff02::/16",
        "8000::/1",
        "::ffff:1.2.3.0/120",
        "100.64.0.0/10",
        "100.64.1.0/24",
        "100.0.0.0/8",
        "fd7a:115c:a1e0::/48",
        "100.64.0.200/32",
        "100.100.100.100/32",
        "fd7a:115c:a1e0::53/128",
    ];
    let map = map(vec![router(1, &bad)]);
    assert_eq!(map.peer(NodeId(1)).unwrap().routes, []);
    assert_eq!(map.peer(NodeId(1)).unwrap().addresses.len(), 2);
    assert_eq!(map.rejections().count(), bad.len());
}

#[test]
fn subnets_of_sites_inside_the_overlay_range_are_routes() {
    let map = map(vec![router(1, &["fd7a:115c:a1e0:b1a:0:7:a00:0/112"])]);
    assert_eq!(map.peer(NodeId(1)).unwrap().routes, prefixes(&["fd7a:115c:a1e0:b1a:0:7:a00:0/112"]));
}

#[test]
fn an_address_outside_the_overlay_is_left_out() {
    let mut stranger = node(1);
    stranger.addresses = prefixes(&["192.168.1.1/32", "100.64.0.0/24", "100.64.0.1/32"]);
    let map = map(vec![stranger]);
    assert_eq!(map.peer(NodeId(1)).unwrap().addresses, prefixes(&["100.64.0.1/32"]));
    assert_eq!(map.rejections().count(), 2);
}

#[test]
fn a_default_route_is_an_offer_and_not_a_route() {
    let map = map(vec![router(1, &["0.0.0.0/0", "::/0"])]);
    let peer = map.peer(NodeId(1)).unwrap();
    assert_eq!((peer.routes.len(), peer.default_routes.len()), (0, 2));
}

#[test]
fn peers_without_key_or_with_an_expired_one_are_left_out() {
    let mut keyless = node(1);
    keyless.key = NodePublic::default();
    let mut expired = node(2);
    expired.expired = true;
    let mut expiring = node(3);
    expiring.key_expiry = Some(at(10));
    let mut map = map(vec![keyless, expired, expiring]);
    assert_eq!(ids(&map), [3]);
    assert_eq!(reasons(&map), ["peer 1 (n1.example) is left out: it has no node key"]);

    assert_eq!(map.next_expiry(), Some(at(10)));
    assert!(!map.expire(at(9)));
    assert!(map.expire(at(10)));
    assert_eq!(ids(&map), [] as [u64; 0]);
    assert_eq!(map.next_expiry(), None);
}

#[test]
fn an_unsigned_peer_keeps_its_addresses_and_loses_its_routes() {
    let mut unsigned = router(1, &["10.0.0.0/24"]);
    unsigned.unsigned_peer_api_only = true;
    let map = map(vec![unsigned]);
    let peer = map.peer(NodeId(1)).unwrap();
    assert_eq!(peer.routes, []);
    assert_eq!(peer.addresses.len(), 2);
    assert!(!peer.may_open());
}

#[test]
fn peers_past_the_limit_are_left_out_by_number() {
    let many = |count: u64| {
        let peers = (1_001..=1_000 + count).map(|number| {
            let mut key = [1; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            let address = std::net::Ipv4Addr::from_bits(0x6440_0000 + u32::try_from(number).unwrap());
            let addresses = vec![IpNet::from(std::net::IpAddr::V4(address))];
            Node { id: NodeId(number), key: NodePublic::from_bytes(key), addresses, ..Node::default() }
        });
        peers.collect::<Vec<_>>()
    };
    let mut map = map(many(16_386));
    assert_eq!(map.peers().len(), 16_384);
    assert_eq!(map.rejections().count(), 2);
    assert!(reasons(&map)[0].ends_with("16385 peers in the map, at most 16384 are taken"), "{}", reasons(&map)[0]);

    map.apply(MapResponse { peers_removed: vec![NodeId(1_001), NodeId(1_002)], ..MapResponse::default() }, at(0));
    assert_eq!(map.peers().len(), 16_384);
    assert_eq!(map.rejections().count(), 0);
}

#[test]
fn a_peer_that_cannot_be_read_keeps_what_was_known_of_it_and_is_named() {
    let mut map = map(vec![node(1), node(2)]);
    let text = r#"{"PeersChanged":[{"ID":1,"Endpoints":["nowhere"]},{"ID":2,"Name":"new."}]}"#;
    map.apply(serde_json::from_str(text).unwrap(), at(0));
    assert_eq!(map.told_peers().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["n1.example.", "new."]);
    assert!(reasons(&map)[0].starts_with("peer 1 is left out: it cannot be read: "), "{}", reasons(&map)[0]);

    map.apply(MapResponse { peers_changed: vec![node(1)].into(), ..MapResponse::default() }, at(0));
    assert!(!reasons(&map).iter().any(|reason| reason.starts_with("peer 1 ")));
}

#[test]
fn deltas_without_end_take_no_more_than_the_limit() {
    let mut map = map(Vec::new());
    let heavy = |id: u8| Node { name: "x".repeat(1 << 20), ..node(id) };
    for id in 1..100 {
        map.apply(MapResponse { peers_changed: vec![heavy(id)].into(), ..MapResponse::default() }, at(0));
    }
    assert_eq!(map.told_peers().len(), 63);
    assert_eq!(map.rejections().count(), 99 - 63);
    assert!(reasons(&map)[0].contains("bytes of peers, at most 67108864 are taken"), "{}", reasons(&map)[0]);

    map.apply(MapResponse { peers_changed: vec![node(1), node(99)].into(), ..MapResponse::default() }, at(0));
    assert!(map.peer(NodeId(99)).is_some());
    assert_eq!(map.rejections().count(), 99 - 63 - 1);
}

#[test]
fn a_patch_changes_what_it_names_and_ignores_strangers() {
    let mut map = map(vec![node(1)]);
    let patch = |id, key| PeerChange { node_id: NodeId(id), key: Some(key), ..PeerChange::default() };
    let key = NodePublic::from_bytes([77; 32]);
    let changes = vec![patch(1, key), patch(9, key)];
    map.apply(MapResponse { peers_changed_patch: changes.into(), ..MapResponse::default() }, at(0));
    assert_eq!(ids(&map), [1]);
    assert_eq!(map.peer_by_key(&key).unwrap().node.name, "n1.example.");
    assert!(map.peer_by_key(&node(1).key).is_none());
}

#[test]
fn online_and_seen_changes_reach_the_peer() {
    let mut map = map(vec![node(1)]);
    let message = MapResponse {
        online_change: BTreeMap::from([(NodeId(1), true), (NodeId(9), true)]),
        peer_seen_change: BTreeMap::from([(NodeId(1), true)]),
        ..MapResponse::default()
    };
    map.apply(message, at(5));
    let peer = map.peer(NodeId(1)).unwrap();
    assert_eq!((peer.node.online, peer.node.last_seen), (Some(true), Some(at(5))));
}

#[test]
fn a_change_of_our_own_address_judges_every_peer_anew() {
    let mut map = map(vec![node(1), node(2)]);
    let mut ours = node(200);
    ours.addresses = prefixes(&["100.64.0.1/32"]);
    map.apply(MapResponse { node: Some(ours), ..MapResponse::default() }, at(0));
    assert_eq!(map.peer(NodeId(1)).unwrap().addresses, prefixes(&["fd7a:115c:a1e0::1/128"]));
    assert_eq!(map.rejections().count(), 1);
}

#[test]
fn filter_parts_are_replaced_deleted_and_cleared_by_name() {
    let rule = |source: &str| control::FilterRule { src_ips: vec![source.to_owned()], ..Default::default() };
    let mut map = map(Vec::new());
    let parts = BTreeMap::from([
        ("a".to_owned(), Some(vec![rule("100.64.0.1")])),
        ("b".to_owned(), Some(vec![rule("100.64.0.2")])),
    ]);
    map.apply(MapResponse { packet_filters: parts, ..MapResponse::default() }, at(0));
    assert_eq!(map.filter().rules.len(), 2);

    let parts = BTreeMap::from([("a".to_owned(), None)]);
    map.apply(MapResponse { packet_filters: parts, ..MapResponse::default() }, at(0));
    assert_eq!(map.filter().rules.len(), 1);

    let parts = BTreeMap::from([("*".to_owned(), None), ("c".to_owned(), Some(Vec::new()))]);
    map.apply(MapResponse { packet_filters: parts, ..MapResponse::default() }, at(0));
    assert!(map.filter().rules.is_empty());
}

#[test]
fn the_forms_of_the_filter_are_read_and_what_is_no_form_is_left_out() {
    let told = control::FilterRule {
        src_ips: ["100.64.0.9", "100.64.0.1-100.64.0.8", "10.0.0.0/8", "cap:example.com/x", "no such", "5-3"]
            .map(str::to_owned)
            .to_vec(),
        dst_ports: vec![
            NetPortRange { ip: "100.64.0.4-100.64.0.6".to_owned(), ports: Ports { first: 22, last: 22 } },
            NetPortRange { ip: "nowhere".to_owned(), ports: Ports::default() },
        ],
        ip_proto: vec![6, 300, 6],
        ..control::FilterRule::default()
    };
    let mut map = map(Vec::new());
    map.apply(MapResponse { packet_filter: Some(vec![told]), ..MapResponse::default() }, at(0));
    let rule = &map.filter().rules[0];
    let range = |first: &str, last: &str| AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() };
    assert_eq!(rule.sources, [range("10.0.0.0", "10.255.255.255"), range("100.64.0.1", "100.64.0.9")]);
    assert_eq!(rule.capabilities, ["example.com/x"]);
    assert_eq!(rule.protocols, [6]);
    let to = |text| Destination { prefix: prefix(text), first_port: 22, last_port: 22 };
    assert_eq!(rule.destinations, [to("100.64.0.4/31"), to("100.64.0.6/32")]);
    let reasons = reasons(&map);
    assert_eq!(reasons.len(), 4);
    assert!(reasons[0].starts_with("source \"no such\" in rule 1 of packet filter part \"base\""), "{reasons:?}");
}

#[test]
fn a_lone_node_has_no_peers_after_a_new_stream() {
    let mut map = map(vec![node(1)]);
    map.replace(MapResponse { node: Some(node(200)), ..MapResponse::default() }, at(0));
    assert_eq!(map.peers().len(), 0);
}

#[test]
fn a_name_with_control_characters_is_escaped() {
    let mut hostile = node(1);
    hostile.name = "\u{1b}[2J".to_owned();
    hostile.key = NodePublic::default();
    assert_eq!(reasons(&map(vec![hostile])), ["peer 1 (\\u{1b}[2J) is left out: it has no node key"]);
}

#[test]
fn the_stored_map_gives_the_same_map() {
    let mut map = map(vec![node(1), router(2, &["10.0.0.0/24", "127.0.0.0/8"])]);
    let message = MapResponse {
        packet_filter: Some(control::match_all()),
        domain: "example.com".to_owned(),
        user_profiles: vec![UserProfile { id: UserId(3), login_name: "a@b".to_owned(), ..UserProfile::default() }],
        health: Some(vec!["look".to_owned()]),
        ..MapResponse::default()
    };
    map.apply(message, at(0));

    let stored = map.to_message().unwrap();
    let mut loaded = Netmap::default();
    loaded.replace(serde_json::from_slice(&stored).unwrap(), at(0));
    assert_eq!(summary(&loaded), summary(&map));
    assert_eq!(loaded.users().count(), 1);
}

/// All that a map says, as text.
fn summary(map: &Netmap) -> String {
    let told = String::from_utf8(map.to_message().unwrap()).unwrap();
    let peers: Vec<_> = map.peers().map(|peer| (peer.node.id, &peer.addresses, &peer.routes)).collect();
    format!("{told}\n{peers:?}\n{:?}\n{:?}\n{:?}", reasons(map), map.filter(), map.addresses())
}

#[test]
fn peers_that_a_clock_ahead_took_for_expired_come_back_with_the_right_time() {
    let mut peer = node(1);
    peer.key_expiry = Some(at(1_000));
    let mut gone = node(2);
    (gone.key_expiry, gone.expired) = (Some(at(1_000)), true);
    let mut map = map(vec![peer, gone]);
    let ids = |map: &Netmap| map.peers().map(|peer| peer.node.id).collect::<Vec<_>>();
    let whole = ids(&map);
    assert_eq!(whole.len(), 1);

    // By a jump forward, by a message that comes meanwhile, and at the start.
    assert!(map.expire(at(5_000)));
    assert!(ids(&map).is_empty() && !map.expire(at(5_000)));
    let seen = MapResponse { online_change: [(whole[0], true)].into(), ..MapResponse::default() };
    map.apply(seen, at(5_000));
    assert!(ids(&map).is_empty());

    assert!(map.expire(at(900)));
    assert_eq!(ids(&map), whole);
    assert!(!map.expire(at(900)));
    assert!(map.expire(at(1_000)), "and its time comes");
}

/// One change at the coordinator.
#[derive(Clone, Debug)]
enum Change {
    Put { id: u8, key: u8, address: u8, routes: Vec<u8> },
    Remove(u8),
    Patch { id: u8, key: u8, online: bool },
    Ours(u8),
}

const ROUTES: [&str; 6] = ["10.0.0.0/24", "10.0.0.0/8", "100.64.0.3/32", "127.0.0.0/8", "fd00::/64", "0.0.0.0/0"];

fn change() -> impl Strategy<Value = Change> {
    let put = (1_u8..8, 1_u8..8, 1_u8..8, proptest::collection::vec(0_u8..6, 0..3));
    prop_oneof![
        4 => put.prop_map(|(id, key, address, routes)| Change::Put { id, key, address, routes }),
        2 => (1_u8..8).prop_map(Change::Remove),
        2 => (1_u8..8, 1_u8..8, any::<bool>()).prop_map(|(id, key, online)| Change::Patch { id, key, online }),
        1 => (1_u8..8).prop_map(Change::Ours),
    ]
}

/// The message that tells of a change, and the change itself made to the coordinator's own map.
fn tell(change: Change, ours: &mut Node, peers: &mut BTreeMap<NodeId, Node>) -> MapResponse {
    let mut message = MapResponse::default();
    match change {
        Change::Put { id, key, address, routes } => {
            let routes: Vec<_> = routes.iter().map(|route| ROUTES[usize::from(*route)]).collect();
            let mut node = router(address, &routes);
            node.id = NodeId(id.into());
            node.key = NodePublic::from_bytes([key; 32]);
            peers.insert(node.id, node.clone());
            message.peers_changed.push(node);
        }
        Change::Remove(id) => {
            peers.remove(&NodeId(id.into()));
            message.peers_removed.push(NodeId(id.into()));
        }
        Change::Patch { id, key, online } => {
            let (id, key) = (NodeId(id.into()), NodePublic::from_bytes([key; 32]));
            if let Some(node) = peers.get_mut(&id) {
                node.key = key;
                node.online = Some(online);
            }
            let patch = PeerChange { node_id: id, key: Some(key), online: Some(online), ..PeerChange::default() };
            message.peers_changed_patch.push(patch);
        }
        Change::Ours(address) => {
            *ours = node(address);
            ours.id = NodeId(200);
            message.node = Some(ours.clone());
        }
    }
    message
}

proptest! {
    /// Law 8.
    #[test]
    fn a_map_with_deltas_applied_equals_the_full_map(changes in proptest::collection::vec(change(), 0..24)) {
        let mut ours = node(200);
        let mut peers = BTreeMap::new();
        let mut by_deltas = map(Vec::new());
        for change in changes {
            let message = tell(change, &mut ours, &mut peers);
            by_deltas.apply(message, at(0));

            let mut whole = Netmap::default();
            let peers = peers.values().cloned().collect();
            whole.replace(MapResponse { node: Some(ours.clone()), peers, ..MapResponse::default() }, at(0));
            prop_assert_eq!(summary(&by_deltas), summary(&whole));
        }
    }

    /// What the planner relies on.
    #[test]
    fn no_two_peers_share_a_key_or_a_prefix_and_none_has_ours(changes in proptest::collection::vec(change(), 0..24)) {
        let (mut ours, mut peers, mut map) = (node(200), BTreeMap::new(), map(Vec::new()));
        for change in changes {
            map.apply(tell(change, &mut ours, &mut peers), at(0));
        }
        let mut keys = BTreeSet::from([ours.key]);
        let mut prefixes: BTreeSet<IpNet> = map.addresses().clone();
        for peer in map.peers() {
            prop_assert!(keys.insert(peer.key()));
            for prefix in peer.addresses.iter().chain(&peer.routes) {
                prop_assert!(prefixes.insert(*prefix), "{} twice", prefix);
            }
        }
    }
}
