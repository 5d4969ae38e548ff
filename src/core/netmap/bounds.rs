//! Every list of a map is bounded, whatever a coordinator sends and however often.

use std::collections::BTreeMap;

use super::Netmap;
use super::merged::MergedMap;
use crate::types::{DiscoPublic, NodeId, NodePublic, RegionId, Timestamp, UserId};
use crate::wire::control::{
    DerpMap, DerpNode, DerpRegion, DnsConfig, DnsRecord, FilterRule, Hostinfo, Listed, MapResponse, NetPortRange, Node,
    PeerChange, Unreadable, UserProfile,
};

const MIB: usize = 1 << 20;
/// Deltas of each kind: several times as many as any bound takes.
const DELTAS: u64 = 16;

/// A delta of a kind, by its number: two MiB and more.
type Hostile = fn(u64) -> MapResponse;

fn long(number: u64) -> String {
    format!("{number}-{}", "x".repeat(2 * MIB))
}

fn users(number: u64) -> MapResponse {
    let user = |id| UserProfile {
        id: UserId(number * 1_000 + id),
        login_name: "x".repeat(4_000),
        profile_pic_url: format!("https://{id}"),
        ..UserProfile::default()
    };
    MapResponse { user_profiles: (0..1_000).map(user).collect(), ..MapResponse::default() }
}

fn peers(number: u64) -> MapResponse {
    let node = Node {
        id: NodeId(number + 1),
        key: NodePublic::from_bytes([number as u8 + 1; 32]),
        name: long(number),
        hostinfo: Some(Hostinfo { hostname: long(number), app: long(number), ..Hostinfo::default() }),
        tags: vec![long(number)],
        cap_map: BTreeMap::from([(long(number), None)]),
        ..Node::default()
    };
    MapResponse { peers_changed: vec![node].into(), ..MapResponse::default() }
}

/// What a peer is patched with counts like what it came with.
fn patches(number: u64) -> MapResponse {
    let ids = 0..100;
    if number == 0 {
        let node = |id| Node { id: NodeId(id + 1), key: NodePublic::from_bytes([id as u8 + 1; 32]), ..Node::default() };
        return MapResponse { peers_changed: ids.map(node).collect(), ..MapResponse::default() };
    }
    let patch = |id| PeerChange {
        node_id: NodeId(id + 1),
        cap_map: Some(BTreeMap::from([(long(number * 100 + id), None)])),
        disco_key: Some(DiscoPublic::from_bytes([1; 32])),
        ..PeerChange::default()
    };
    MapResponse {
        peers_changed_patch: ids.take(8).map(|id| patch(id + number * 4)).collect(),
        ..MapResponse::default()
    }
}

fn unreadable_peers(number: u64) -> MapResponse {
    let entry = |id| Unreadable { id: number * 256 + id, reason: "x".repeat(200) };
    let listed = Listed { entries: Vec::new(), unreadable: (0..256).map(entry).collect() };
    MapResponse { peers_changed: listed, ..MapResponse::default() }
}

fn ourselves(number: u64) -> MapResponse {
    let hostinfo = Hostinfo { app: long(number), hostname: long(number), ..Hostinfo::default() };
    let node = Node { name: long(number), hostinfo: Some(hostinfo), tags: vec![long(number)], ..Node::default() };
    MapResponse { node: Some(node), ..MapResponse::default() }
}

fn filter_parts(number: u64) -> MapResponse {
    let to = |_| NetPortRange { ip: "100.64.0.1".to_owned(), ..NetPortRange::default() };
    let rule = FilterRule {
        src_ips: vec!["100.64.0.1".to_owned(); 100_000],
        dst_ports: (0..9).map(to).collect(),
        ..FilterRule::default()
    };
    MapResponse { packet_filters: BTreeMap::from([(long(number), Some(vec![rule]))]), ..MapResponse::default() }
}

fn filter_grants(number: u64) -> MapResponse {
    let grant = crate::wire::control::CapGrant { caps: vec![long(number)], ..Default::default() };
    let rule = FilterRule { cap_grant: vec![grant], ..FilterRule::default() };
    MapResponse { packet_filters: BTreeMap::from([(number.to_string(), Some(vec![rule]))]), ..MapResponse::default() }
}

fn names(number: u64) -> MapResponse {
    let record = |_| DnsRecord { name: "x".repeat(1_000), ..DnsRecord::default() };
    let dns = DnsConfig {
        domains: vec![long(number); 2],
        extra_records: (0..10_000).map(record).collect(),
        ..DnsConfig::default()
    };
    MapResponse { dns_config: Some(dns), ..MapResponse::default() }
}

fn relays(number: u64) -> MapResponse {
    let node = |_| DerpNode { host_name: "x".repeat(1_000), ..DerpNode::default() };
    let region =
        |_| Some(DerpRegion { region_name: long(number), nodes: (0..64).map(node).collect(), ..DerpRegion::default() });
    let regions = (0..8).map(|id| (RegionId(id), region(id))).collect();
    MapResponse { derp_map: Some(DerpMap { regions, ..DerpMap::default() }), ..MapResponse::default() }
}

fn domain(number: u64) -> MapResponse {
    MapResponse { domain: long(number), ..MapResponse::default() }
}

fn health(number: u64) -> MapResponse {
    MapResponse {
        health: Some((0..20_000).map(|line| format!("{line} {}", "x".repeat(200 + number as usize))).collect()),
        ..MapResponse::default()
    }
}

/// Each list with what fills it, and the most that it keeps as text.
const TABLE: [(&str, Hostile, usize); 11] = [
    ("users", users, 16 * MIB),
    ("peers", peers, 64 * MIB),
    ("peers by patches", patches, 64 * MIB),
    ("refused", unreadable_peers, MIB),
    ("node", ourselves, MIB),
    ("filters", filter_parts, 64 * MIB),
    ("filters by grants", filter_grants, 64 * MIB),
    ("dns", names, 8 * MIB),
    ("derp", relays, 4 * MIB),
    ("domain", domain, 255),
    ("health", health, MIB / 32),
];

#[test]
fn hostile_deltas_fill_no_list_past_its_bound() {
    for (list, hostile, most) in TABLE {
        let mut map = Netmap::default();
        for number in 0..DELTAS {
            map.apply(hostile(number), Timestamp::UNIX_EPOCH);
        }
        let kept = map.to_message().unwrap().len();
        assert!(kept < most + MIB / 64, "{list}: {kept} bytes are kept, {most} are meant to be the most");
        let texts: Vec<String> = map.rejections().map(ToString::to_string).collect();
        let said: usize = texts.iter().map(String::len).sum();
        assert!(said < 2 * MIB, "{list}: {said} bytes of refusals");
        let is_silent = ["health", "refused"].contains(&list);
        assert!(is_silent || texts.iter().any(|text| text.contains("at most")), "{list}: nobody is told, {texts:.3?}");
    }
}

#[test]
fn a_list_that_was_too_long_is_taken_once_it_is_not() {
    let mut map = Netmap::default();
    for hostile in [ourselves as Hostile, names, relays, domain] {
        map.apply(hostile(1), Timestamp::UNIX_EPOCH);
    }
    assert_eq!(map.rejections().count(), 4);
    assert!(map.node().is_none() && map.derp().regions.is_empty() && map.domain().is_empty());

    let node = Node { name: "us.".to_owned(), ..Node::default() };
    let regions = BTreeMap::from([(RegionId(1), Some(DerpRegion::default()))]);
    let message = MapResponse {
        node: Some(node),
        derp_map: Some(DerpMap { regions, ..DerpMap::default() }),
        dns_config: Some(DnsConfig { proxied: true, ..DnsConfig::default() }),
        domain: "example.com".to_owned(),
        ..MapResponse::default()
    };
    map.apply(message, Timestamp::UNIX_EPOCH);

    assert_eq!(map.rejections().count(), 0);
    assert_eq!((map.node().unwrap().name.as_str(), map.domain()), ("us.", "example.com"));
    assert!(map.dns().proxied && map.derp().regions.len() == 1);
}

#[test]
fn a_user_that_changes_takes_the_room_of_its_new_names_alone() {
    let mut map = Netmap::default();
    for round in 0..100 {
        let user = |id| UserProfile { id: UserId(id), login_name: "x".repeat(3_000 + round), ..UserProfile::default() };
        let message = MapResponse { user_profiles: (0..1_000).map(user).collect(), ..MapResponse::default() };
        map.apply(message, Timestamp::UNIX_EPOCH);
    }
    assert_eq!((map.users().count(), map.rejections().count()), (1_000, 0));
    assert_eq!(map.user(UserId(7)).unwrap().login_name.len(), 3_099);
}

#[test]
fn a_part_of_the_filter_for_which_there_is_no_room_gives_nothing() {
    let mut map = Netmap::default();
    let rule = |sources: usize| FilterRule {
        src_ips: vec!["100.64.0.1".to_owned(); sources],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), ..NetPortRange::default() }],
        ..FilterRule::default()
    };
    let part = |name: &str, rules: Vec<FilterRule>| MapResponse {
        packet_filters: BTreeMap::from([(name.to_owned(), Some(rules))]),
        ..MapResponse::default()
    };
    map.apply(part("a", vec![rule(1)]), Timestamp::UNIX_EPOCH);
    assert_eq!(map.filter().rules.len(), 1);
    map.apply(part("a", (0..30).map(|_| rule(100_000)).collect()), Timestamp::UNIX_EPOCH);
    assert!(map.filter().rules.is_empty(), "the rights of before may be those that it takes away");
    assert_eq!(map.rejections().count(), 1);
    map.apply(part("a", vec![rule(2)]), Timestamp::UNIX_EPOCH);
    assert_eq!((map.filter().rules.len(), map.rejections().count()), (1, 0));
}

/// A list that is added has its row in the table above: without one, this does not compile.
#[test]
fn the_table_has_every_list() {
    let MergedMap { node, peers, users, filters, dns, derp, domain, health, refused, overfull, sums: _ } =
        MergedMap::default();
    let lists = [node.is_none(), peers.is_empty(), users.is_empty(), filters.is_empty(), refused.is_empty()];
    assert!(lists.into_iter().all(|is_empty| is_empty) && overfull.is_empty() && health.is_empty());
    assert!(dns == DnsConfig::default() && derp == DerpMap::default() && domain.is_empty());
}

#[test]
fn a_message_of_more_parts_than_a_map_has_is_refused_before_it_is_read() {
    for hostile in [
        format!(r#"{{"PacketFilter":[{}{{}}]}}"#, "{},".repeat(1_600_000)),
        format!(r#"{{"PeersChanged":[{{"ID":1,"CapMap":{{"a":[{}1]}}}}]}}"#, "1,".repeat(4_100_000)),
        format!(r#"{{"DERPMap":{{"Regions":{{"1":{{"Nodes":[{}{{}}]}}}}}}}}"#, "{},".repeat(1_600_000)),
        format!(
            r#"{{"DERPMap":{{"Regions":{{{}"0":{{}}}}}}}}"#,
            (1..1_100).map(|n| format!("\"{n}\":{{}},")).collect::<String>()
        ),
    ] {
        let error = MapResponse::read(hostile.as_bytes()).unwrap_err();
        assert!(error.contains("at most"), "{error}");
    }
    // Within texts nothing counts.
    let text = format!(r#"{{"Domain":"{}"}}"#, r#"{,[\\\"{"#.repeat(1_000_000));
    assert!(MapResponse::read(text.as_bytes()).is_ok());
}
