//! What the captures do not show: exit nodes in use, postures, IP sets, steering, ownership of tags.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use warren_core::policy::{
    Attribute, CheckPeriod, Compiled, Difference, FilterPart, Node, Policy, Protocol, Role, Row, Topology, User,
};
use warren_core::types::{IpNet, NodeId, UserId};

const ADA: NodeId = NodeId(1);
const GRACE: NodeId = NodeId(2);
const WEB: NodeId = NodeId(3);
const EXIT: NodeId = NodeId(4);
const ROUTER: NodeId = NodeId(5);
const SECOND_ROUTER: NodeId = NodeId(6);

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn node(number: u8, user: u64, tag: &str, advertised: &[&str]) -> Node {
    Node {
        name: format!("n{number}"),
        user: UserId(user),
        tags: Some(tag.to_owned()).filter(|tag| !tag.is_empty()).into_iter().collect(),
        addresses: vec![IpAddr::from([100, 64, 0, number])],
        advertised: nets(advertised),
        ..Node::default()
    }
}

/// Two users with a node each, a server, an exit node, and two routers of one subnet.
fn compile(rules: &str) -> Compiled {
    let text = format!(
        r#"{{
            "groups": {{"group:ops": ["ada@example.com"]}},
            "tagOwners": {{"tag:web": ["group:ops"], "tag:exit": [], "tag:r": ["tag:web"], "tag:r2": ["autogroup:admin"]}},
            "autoApprovers": {{"routes": {{"10.0.0.0/8": ["tag:r", "tag:r2"]}}, "exitNode": ["tag:exit"]}},
            {rules}
        }}"#
    );
    let policy = Policy::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    let user = |login: &str, role| User { login: login.to_owned(), role };
    let users = [(1, user("ada@example.com", Role::Admin)), (2, user("grace", Role::Member))];
    let linux = BTreeMap::from([("node:os".to_owned(), Attribute::Text("linux".to_owned()))]);
    let nodes = [
        (ADA, Node { attributes: linux, ..node(1, 1, "", &[]) }),
        (GRACE, node(2, 2, "", &[])),
        (WEB, node(3, 0, "tag:web", &[])),
        (EXIT, node(4, 0, "tag:exit", &["0.0.0.0/0", "::/0"])),
        (ROUTER, Node { primary: nets(&["10.1.0.0/16"]), ..node(5, 0, "tag:r", &["10.1.0.0/16"]) }),
        (SECOND_ROUTER, node(6, 0, "tag:r2", &["10.1.0.0/16", "192.168.0.0/24"])),
    ];
    let users = users.into_iter().map(|(id, user)| (UserId(id), user)).collect();
    Compiled::new(Arc::new(policy), Topology { users, nodes: nodes.into() })
}

/// Whom a node sees, and the routes it may use through them.
fn routes(compiled: &Compiled, id: NodeId) -> Vec<(u64, Vec<String>)> {
    let text = |net: &IpNet| net.to_string();
    let peers = compiled.peers(id).into_iter();
    peers.map(|peer| (peer.id.0, peer.subnets.iter().chain(&peer.exit_routes).map(text).collect())).collect()
}

fn allows(compiled: &Compiled, from: &str, to: &str, port: u16) -> bool {
    !compiled.lines_allowing(from.parse().unwrap(), to.parse().unwrap(), Protocol(6), port).is_empty()
}

#[test]
fn who_may_reach_the_internet_sees_the_exit_node_and_its_routes_and_nobody_else_does() {
    let compiled = compile(r#""acls": [{"action": "accept", "src": ["group:ops"], "dst": ["autogroup:internet:*"]}]"#);
    assert_eq!(routes(&compiled, ADA), [(4, vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()])]);
    assert!(routes(&compiled, GRACE).is_empty());
    let filter = compiled.packet_filter(EXIT);
    assert_eq!(filter[0].src_ips, ["100.64.0.1"]);
    assert!(filter[0].dst_ports.iter().any(|to| to.ip == "8.0.0.0/7"), "public addresses are open");
    assert!(!filter[0].dst_ports.iter().any(|to| to.ip.starts_with("10.")), "private ones are not");
    assert!(allows(&compiled, "100.64.0.1", "8.8.8.8", 443) && !allows(&compiled, "100.64.0.1", "10.1.0.1", 443));
}

#[test]
fn an_address_set_opens_the_route_to_it_but_not_what_was_removed_from_it() {
    let compiled = compile(
        r#""ipsets": {"ipset:lab": ["10.1.0.0/16", "remove 10.1.9.0/24"]},
           "grants": [{"src": ["ada@example.com"], "dst": ["ipset:lab"], "ip": ["tcp:80"]}]"#,
    );
    assert_eq!(routes(&compiled, ADA), [(5, vec!["10.1.0.0/16".to_owned()]), (6, vec![])]);
    assert!(allows(&compiled, "100.64.0.1", "10.1.8.1", 80) && !allows(&compiled, "100.64.0.1", "10.1.9.1", 80));
    assert!(compiled.packet_filter(ROUTER)[0].dst_ports.iter().all(|to| to.ip != "10.1.9.0/24"));
}

#[test]
fn a_route_that_was_not_approved_is_neither_shown_nor_opened() {
    let compiled = compile(r#""acls": [{"action": "accept", "src": ["*"], "dst": ["192.168.0.0/24:*"]}]"#);
    assert!(routes(&compiled, ADA).is_empty());
    assert!(compiled.packet_filter(SECOND_ROUTER).is_empty());
    assert_eq!(compiled.approved_routes(SECOND_ROUTER), nets(&["10.1.0.0/16"]));
}

#[test]
fn via_steers_a_source_through_a_router_that_was_not_chosen_for_the_others() {
    let compiled = compile(
        r#""grants": [
            {"src": ["ada@example.com"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:r2"]},
            {"src": ["grace@"], "dst": ["10.1.2.0/24"], "ip": ["*"]},
        ]"#,
    );
    assert_eq!(routes(&compiled, ADA), [(6, vec!["10.1.0.0/16".to_owned()])]);
    assert_eq!(routes(&compiled, GRACE), [(5, vec!["10.1.0.0/16".to_owned()]), (6, vec![])]);
}

#[test]
fn a_posture_admits_the_nodes_that_meet_it_and_no_address_that_is_not_a_node() {
    let compiled = compile(
        r#""postures": {"posture:linux": ["node:os == 'linux'"]},
           "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:web:22"], "srcPosture": ["posture:linux"]}]"#,
    );
    assert_eq!(compiled.packet_filter(WEB)[0].src_ips, ["100.64.0.1"]);
    assert!(!compiled.sees(GRACE, WEB));
}

#[test]
fn a_changed_posture_changes_the_filter_and_is_announced() {
    let mut compiled = compile(
        r#""postures": {"posture:linux": ["node:os == 'linux'"]},
           "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:22"], "srcPosture": ["posture:linux"]}]"#,
    );
    let change = compiled.upsert(ADA, node(1, 1, "", &[]));
    let holds = |set, id| compiled.nodes(set).any(|node| node == id);
    assert!(holds(&change.filters, WEB) && holds(&change.peers, WEB) && !holds(&change.peers, EXIT));
    assert!(compiled.packet_filter(WEB).is_empty());
}

#[test]
fn tags_are_given_by_their_owners_and_by_nodes_of_an_owning_tag() {
    let compiled = compile(r#""acls": []"#);
    let web = ["tag:web".to_owned()];
    assert!(compiled.may_tag(UserId(1), &[], "tag:web") && compiled.may_tag(UserId(1), &[], "tag:r2"));
    assert!(!compiled.may_tag(UserId(2), &[], "tag:web") && !compiled.may_tag(UserId(1), &[], "tag:none"));
    assert!(compiled.may_tag(UserId(2), &web, "tag:r") && !compiled.may_tag(UserId(1), &web, "tag:web"));
}

#[test]
fn logins_that_nobody_has_are_named_and_local_names_are_not_among_them() {
    let compiled = compile(r#""acls": [{"action": "accept", "src": ["grace@", "eve@example.com"], "dst": ["*:*"]}]"#);
    assert_eq!(compiled.unknown_users().into_iter().collect::<Vec<_>>(), ["eve@example.com"]);
}

#[test]
fn the_first_ssh_rule_with_a_check_says_how_old_a_login_may_be() {
    let compiled = compile(
        r#""ssh": [
            {"action": "accept", "src": ["grace@"], "dst": ["tag:web"], "users": ["www"]},
            {"action": "check", "checkPeriod": "1h", "src": ["ada@example.com"], "dst": ["tag:web"], "users": ["root"]},
        ]"#,
    );
    assert_eq!(compiled.ssh_check_period(ADA, WEB), Some(CheckPeriod::Seconds(3600)));
    assert_eq!(compiled.ssh_check_period(GRACE, WEB), None);
}

#[test]
fn a_failed_test_says_what_was_expected_and_what_was_found() {
    let compiled = compile(
        r#""acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:web:443"]}],
           "tests": [{"src": "autogroup:member", "accept": ["tag:web:443"], "deny": ["tag:web:22", "tag:none:1"]}]"#,
    );
    let errors = compiled.check().unwrap_err();
    assert_eq!(errors.0[0].message, "test(s) failed");
    assert_eq!(
        errors.0[0].details,
        [
            "autogroup:member -> tag:web:443: expected allowed, got allowed in part",
            "dst \"tag:none:1\": tag not found: \"tag:none\""
        ]
    );
}

#[test]
fn each_rule_is_a_part_of_the_filter_that_says_where_it_is_written() {
    let first = r#"{"action": "accept", "src": ["grace@"], "dst": ["tag:web:80"]}"#;
    let second = r#"{"action": "accept", "src": ["group:ops"], "dst": ["tag:web:22"]}"#;
    let parts = |rules: &str| {
        let compiled = compile(&format!("\"acls\": [\n{rules}]"));
        let filter = compiled.filter(WEB);
        let of = |part: FilterPart<'_>| {
            let rules = part.rules();
            let [rule] = rules.as_slice() else { panic!("one rule a part: {rules:?}") };
            assert_eq!(rule.origin.as_ref(), part.origin().map(Arc::as_ref));
            let origin = rule.origin.clone().unwrap();
            (rule.dst_ports[0].ports.first, (origin.reference, origin.line))
        };
        compiled.parts(&filter).map(of).collect::<BTreeMap<_, _>>()
    };
    let before = parts(&format!("{first},\n{second},"));
    let after = parts(&format!("{second}, // the other way round\n{first},"));
    assert_eq!(before[&80].1 + 1, before[&22].1, "lines are counted");
    assert_eq!(before[&22].0, after[&22].0, "the name stays while the text does");
    assert_eq!((before[&22].1, before[&80].1), (after[&80].1, after[&22].1), "the line follows the text");
    assert!(before[&22].0.starts_with("acl-") && before[&22].0 != before[&80].0);

    let twice = compile(&format!("\"acls\": [{second}, {second}]"));
    assert_eq!(twice.parts(&twice.filter(WEB)).count(), 2, "two rules that say the same are two");
}

/// What changes from one set of rules to another, as text.
fn changes(old: &str, new: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (old, new) = (compile(old), compile(new));
    let policy = |compiled: &Compiled| Arc::new(compiled.policy().clone());
    let difference = Difference::between(&policy(&old), &policy(&new), &old.topology());
    let row =
        |row: &Row| format!("{} -> {}: {}", row.sources.join(", "), row.targets.join(", "), row.access.join(", "));
    let rows = |rows: &[Row]| rows.iter().map(row).collect();
    (rows(&difference.gained), rows(&difference.lost), difference.notes)
}

#[test]
fn a_difference_says_who_gains_and_who_loses_what() {
    let acl = |src: &str, dst: &str| format!(r#"{{"action": "accept", "src": ["{src}"], "dst": [{dst}]}},"#);
    let acls = |rules: &[String]| format!("\"acls\": [{}]", rules.concat());
    let web = acl("group:ops", r#""tag:web:80-90""#);
    let (gained, lost, notes) =
        changes(&acls(std::slice::from_ref(&web)), &acls(&[acl("autogroup:member", r#""tag:web:80,85-100""#)]));
    assert_eq!(gained, ["n2 -> n3: port 80, port 85-90", "autogroup:member -> n3: tcp/91-100, udp/91-100"]);
    assert_eq!(lost, ["n1 -> n3: tcp/81-84, udp/81-84"]);
    assert!(notes.is_empty(), "{notes:?}");

    let split =
        acls(&[acl("ada@example.com", r#""tag:web:80""#), acl("group:ops", r#""tag:web:81-90", "tag:web:85""#)]);
    assert_eq!(changes(&acls(&[web]), &split), Default::default(), "said differently is no difference");

    let lan = acls(&[acl("autogroup:member", r#""10.1.2.0/24:22""#)]);
    let (gained, ..) = changes(&acls(&[]), &lan);
    assert_eq!(gained, ["autogroup:member -> 10.1.2.0/24 via n5, 10.1.2.0/24 via n6: port 22"]);

    let ssh =
        r#""acls": [], "ssh": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:web"], "users": ["root"]}]"#;
    let given = r#""acls": [], "nodeAttrs": [{"target": ["tag:web"], "attr": ["x"]}]"#;
    assert_eq!(changes(&acls(&[]), ssh).2, ["other SSH rules hold: n3"]);
    assert_eq!(changes(&acls(&[]), given).2, ["other attributes are given: n3"]);
}

#[test]
fn a_difference_is_bounded_however_much_it_is() {
    let (gained, lost, _) =
        changes("\"acls\": []", "\"grants\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"*\"]}]");
    assert!(gained.len() <= 100 && lost.is_empty());
    assert!(gained.iter().any(|row| row.contains("port *")), "{gained:?}");
}

#[test]
fn the_settings_of_a_whole_network_are_attributes_of_every_node() {
    let compiled = compile(r#""disableIPv4": true, "randomizeClientPort": true, "OneCGNATRoute": "mac-always""#);
    let names: Vec<_> = compiled.attributes(WEB).into_keys().collect();
    assert_eq!(names, ["disable-ipv4", "one-cgnat?v=true", "randomize-client-port"]);
    assert!(compiled.addresses(WEB).is_empty(), "the node of this test has no other");
    let refused = Policy::parse(br#"{"OneCGNATRoute": "always"}"#).unwrap_err().to_string();
    assert!(refused.contains("mac-always"), "{refused}");
}
