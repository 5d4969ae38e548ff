//! Random policies against random networks: what holds whatever they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::prelude::*;
use warren_core::policy::{Attribute, Compiled, Filter, FilterPart, Node, Policy, Protocol, Role, Topology, User};
use warren_core::types::{NodeId, UserId};
use warren_core::wire::control::FilterRule;

const NAMES: &str = r#"
    "groups": {"group:a": ["u1@x.org"], "group:b": ["u1@x.org", "u2@x.org", "u3@y.org"]},
    "hosts": {"lan": "10.1.0.0/16", "first": "100.64.0.1"},
    "ipsets": {"ipset:s": ["10.2.0.0/16", "100.64.0.0/30"]},
    "postures": {"posture:fit": ["node:os == 'linux'"]},
    "tagOwners": {"tag:a": [], "tag:b": [], "tag:r": []},
    "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r"]}, "exitNode": ["tag:b"]},
    "nodeAttrs": [{"target": ["tag:a"], "attr": ["disable-ipv4"]}],
"#;
const SOURCES: &[&str] = &[
    "*",
    "u1@x.org",
    "user:*@x.org",
    "group:a",
    "group:b",
    "tag:a",
    "tag:b",
    "tag:r",
    "autogroup:member",
    "autogroup:tagged",
    "lan",
    "first",
    "ipset:s",
    "10.1.2.0/24",
    "autogroup:danger-all",
];
const TARGETS: &[&str] = &[
    "*",
    "u2@x.org",
    "group:b",
    "tag:a",
    "tag:b",
    "autogroup:member",
    "autogroup:tagged",
    "lan",
    "first",
    "ipset:s",
    "10.0.0.0/8",
    "autogroup:internet",
    "fd7a:115c:a1e0::2",
    "8.8.8.0/24",
];

fn policy() -> impl Strategy<Value = String> {
    let text = |list: &'static [&'static str]| prop::sample::select(list);
    let extra = prop::sample::select(&["", r#", "via": ["tag:r"]"#, r#", "srcPosture": ["posture:fit"]"#][..]);
    let open = prop::sample::select(&[r#""ip": ["tcp:22", "*"]"#, r#""app": {"tailscale.com/cap/drive": [{}]}"#][..]);
    let grant = (prop::collection::vec(text(SOURCES), 1..3), prop::collection::vec(text(TARGETS), 1..3), open, extra)
        .prop_filter("app grants do not go to the internet", |(_, targets, open, _)| {
            !(open.contains("app") && targets.contains(&"autogroup:internet"))
        })
        .prop_map(|(sources, targets, open, extra)| {
            format!("{{\"src\": {sources:?}, \"dst\": {targets:?}, {open}{extra}}}")
        });
    let to_self = Just(r#"{"src": ["group:b"], "dst": ["autogroup:self", "tag:b"], "ip": ["443"]}"#.to_owned());
    let grants = prop::collection::vec(prop_oneof![6 => grant, 1 => to_self], 0..6);
    let ssh = r#"{"action": "check", "src": ["group:b"], "dst": ["tag:a", "autogroup:self"], "users": ["localpart:*@x.org"]}"#;
    grants.prop_map(move |grants| format!("{{{NAMES} \"grants\": [{}], \"ssh\": [{ssh}]}}", grants.join(",")))
}

fn node() -> impl Strategy<Value = Node> {
    let tags = prop::sample::subsequence(vec!["tag:a", "tag:b", "tag:r"], 0..=2);
    let routes =
        prop::sample::subsequence(vec!["10.1.0.0/16", "10.2.3.0/24", "172.16.0.0/12", "0.0.0.0/0", "::/0"], 0..=2);
    (tags, routes, 1u64..4, any::<bool>(), any::<bool>()).prop_map(|(tags, routes, user, linux, primary)| {
        let os = if linux { "linux" } else { "macos" };
        let advertised: Vec<_> = routes.iter().map(|route| route.parse().unwrap()).collect();
        Node {
            user: UserId(user),
            tags: tags.into_iter().map(str::to_owned).collect(),
            primary: if primary { advertised.clone() } else { Vec::new() },
            approved: vec!["172.16.0.0/12".parse().unwrap()],
            advertised,
            attributes: BTreeMap::from([("node:os".to_owned(), Attribute::Text(os.to_owned()))]),
            ..Node::default()
        }
    })
}

/// What happens to the network: a node comes or changes, or goes.
fn events() -> impl Strategy<Value = Vec<(u64, Option<Node>)>> {
    prop::collection::vec((1u64..9, prop_oneof![4 => node().prop_map(Some), 1 => Just(None)]), 0..16)
}

fn addressed(id: u64, node: Node) -> Node {
    let low = u32::try_from(id).unwrap();
    let v4: IpAddr = Ipv4Addr::from(0x6440_0000 + low).into();
    let v6: IpAddr = Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0000 + u128::from(low)).into();
    Node { name: format!("n{id}"), addresses: vec![v4, v6], ..node }
}

fn users() -> BTreeMap<UserId, User> {
    let user = |login: &str| User { login: login.to_owned(), role: Role::Member };
    [(1, "u1@x.org"), (2, "u2@x.org"), (3, "u3@y.org")].map(|(id, login)| (UserId(id), user(login))).into()
}

fn compile(policy: &Arc<Policy>, nodes: &BTreeMap<NodeId, Node>) -> Compiled {
    Compiled::new(policy.clone(), Topology { users: users(), nodes: nodes.clone() })
}

/// Everything a node is told about what it lets in.
fn filter(compiled: &Compiled, id: NodeId) -> String {
    let rules: BTreeSet<_> =
        compiled.packet_filter(id).iter().map(|rule| serde_json::to_string(rule).unwrap()).collect();
    let ssh = serde_json::to_string(&compiled.ssh_policy(id, "")).unwrap();
    format!("{rules:?} {ssh}")
}

/// The parts of a node's filter, by rule.
fn parts(compiled: &Compiled, filter: &Filter) -> BTreeMap<String, String> {
    let name = |part: &FilterPart<'_>| part.origin().map(|origin| origin.reference.clone()).unwrap_or_default();
    let text = |part: FilterPart<'_>| {
        let mut text = String::new();
        part.write_rules(&mut text);
        assert_eq!(text, serde_json::to_string(&part.rules()).unwrap());
        (name(&part), text)
    };
    compiled.parts(filter).map(text).collect()
}

/// Everything a node is told about others.
fn peers(compiled: &Compiled, id: NodeId) -> String {
    format!("{:?}", compiled.peers(id))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiling_step_by_step_gives_what_compiling_at_once_gives(text in policy(), events in events()) {
        let policy = Arc::new(Policy::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}")));
        let mut nodes = BTreeMap::new();
        let mut compiled = compile(&policy, &nodes);
        for (id, node) in events {
            let before: BTreeMap<_, _> =
                nodes.keys().map(|id| (*id, (filter(&compiled, *id), peers(&compiled, *id)))).collect();
            let seen = |compiled: &Compiled, id: NodeId| (parts(compiled, &compiled.filter(id)), compiled.view(id));
            let seen_before: BTreeMap<_, _> = nodes.keys().map(|id| (*id, seen(&compiled, *id))).collect();
            let change = match node {
                Some(node) => {
                    let node = addressed(id, node);
                    nodes.insert(NodeId(id), node.clone());
                    compiled.upsert(NodeId(id), node)
                }
                None => {
                    nodes.remove(&NodeId(id));
                    compiled.remove(NodeId(id))
                }
            };
            let at_once = compile(&policy, &nodes);
            let announced = |set, id: &NodeId| compiled.nodes(set).any(|node| node == *id);
            for id in nodes.keys() {
                let after = (filter(&compiled, *id), peers(&compiled, *id));
                prop_assert_eq!(&after, &(filter(&at_once, *id), peers(&at_once, *id)));
                // What changed was announced.
                let (filter_before, peers_before) = before.get(id).cloned().unwrap_or_default();
                prop_assert!(filter_before == after.0 || announced(&change.filters, id), "filter of {}", id);
                prop_assert!(peers_before == after.1 || announced(&change.peers, id), "peers of {}", id);

                // What is said of the extent of the change holds.
                let Some((mut filter, mut view)) = seen_before.get(id).cloned() else { continue };
                let (filter_after, view_after) = seen(&compiled, *id);
                if !announced(&change.whole, id) {
                    for origin in compiled.rules_of(*id, &change.rules) {
                        filter.remove(origin.map(|origin| origin.reference.as_str()).unwrap_or_default());
                    }
                    filter.extend(parts(&compiled, &compiled.filter_of(*id, &change.rules)));
                    prop_assert_eq!(filter, filter_after, "filter of {}", id);
                }
                if let Some(alone) = change.alone.as_ref().filter(|alone| !alone.contains(id)) {
                    view.peers.retain(|peer| !alone.contains(peer));
                    view.peers.extend(alone.iter().filter(|peer| compiled.sees(*id, **peer)));
                    view.peers.sort_unstable();
                    prop_assert_eq!(view, view_after, "view of {}", id);
                }
            }
        }
    }

    #[test]
    fn nodes_of_one_kind_share_a_view_and_each_sees_the_others_in_it(
        text in policy(), nodes in prop::collection::vec(node(), 0..8),
    ) {
        let policy = Arc::new(Policy::parse(text.as_bytes()).unwrap());
        let nodes: BTreeMap<_, _> = (1..).zip(nodes).map(|(id, node)| (NodeId(id), addressed(id, node))).collect();
        let compiled = compile(&policy, &nodes);
        let (mut views, mut ssh) = (BTreeMap::new(), BTreeMap::new());
        for id in nodes.keys() {
            let rules = compiled.ssh_policy(*id, "");
            prop_assert_eq!(ssh.entry(compiled.ssh_kind(*id)).or_insert_with(|| rules.clone()), &rules);
            let view = compiled.view(*id);
            let peers = compiled.peers(*id);
            let seen: Vec<NodeId> = view.peers.iter().copied().filter(|peer| peer != id).collect();
            prop_assert_eq!(&seen, &peers.iter().map(|peer| peer.id).collect::<Vec<_>>());
            for peer in peers {
                let carried = view.routers.get(&peer.id).cloned().unwrap_or_default();
                prop_assert_eq!((carried.subnets, carried.exits), (peer.subnets, peer.exit_routes));
            }
            let shared = views.entry(compiled.kind(*id)).or_insert_with(|| view.clone());
            prop_assert_eq!(&*shared, &view);
        }
    }

    #[test]
    fn seeing_is_mutual_and_never_of_oneself(text in policy(), nodes in prop::collection::vec(node(), 0..8)) {
        let policy = Arc::new(Policy::parse(text.as_bytes()).unwrap());
        let nodes: BTreeMap<_, _> = (1..).zip(nodes).map(|(id, node)| (NodeId(id), addressed(id, node))).collect();
        let compiled = compile(&policy, &nodes);
        for a in nodes.keys() {
            prop_assert!(!compiled.sees(*a, *a));
            for b in nodes.keys() {
                prop_assert_eq!(compiled.sees(*a, *b), compiled.sees(*b, *a));
            }
        }
    }

    #[test]
    fn a_node_lets_in_exactly_what_some_rule_allows(text in policy(), nodes in prop::collection::vec(node(), 0..8)) {
        let policy = Arc::new(Policy::parse(text.replace("\"via\": [\"tag:r\"]", "\"via\": []").as_bytes()).unwrap());
        let nodes: BTreeMap<_, _> = (1..).zip(nodes).map(|(id, node)| (NodeId(id), addressed(id, node))).collect();
        let compiled = compile(&policy, &nodes);
        for from in nodes.keys() {
            for to in nodes.keys().filter(|to| *to != from) {
                for (source, target) in pairs(&compiled, *from, *to) {
                    for (protocol, port) in [(6, 22), (6, 443), (17, 22), (47, 0)] {
                        let lines = compiled.lines_allowing(source, target, Protocol(protocol), port);
                        let (joined, filter) = (compiled.packet_filter(*to), compiled.filter(*to));
                        let admitted = admitted(&joined, source, target, protocol, port);
                        let parts: Vec<_> = compiled.parts(&filter).flat_map(|part| part.rules()).collect();
                        prop_assert_eq!(admitted, self::admitted(&parts, source, target, protocol, port));
                        prop_assert_eq!(admitted, !lines.is_empty(), "{} -> {} {}/{}", source, target, protocol, port);
                        prop_assert!(!admitted || compiled.sees(*from, *to));
                    }
                }
            }
        }
    }
}

/// The addresses of two nodes, family by family.
fn pairs(compiled: &Compiled, from: NodeId, to: NodeId) -> Vec<(IpAddr, IpAddr)> {
    let sources = compiled.addresses(from).iter();
    let pairs = sources.flat_map(|source| compiled.addresses(to).iter().map(move |target| (*source, *target)));
    pairs.filter(|(source, target)| source.is_ipv4() == target.is_ipv4()).collect()
}

/// Reads a wire filter the way a client does.
fn admitted(rules: &[FilterRule], source: IpAddr, target: IpAddr, protocol: u8, port: u16) -> bool {
    rules.iter().any(|rule| {
        let protocols: Vec<i32> = if rule.ip_proto.is_empty() { vec![6, 17, 1, 58] } else { rule.ip_proto.clone() };
        protocols.contains(&i32::from(protocol))
            && rule.src_ips.iter().any(|text| holds(text, source))
            && rule.dst_ports.iter().any(|to| holds(&to.ip, target) && (to.ports.first..=to.ports.last).contains(&port))
    })
}

/// `*`, an address, a prefix, or a range of addresses.
fn holds(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
        return first.is_ipv4() == address.is_ipv4() && first <= address && address <= last;
    }
    match text.parse::<IpAddr>() {
        Ok(one) => one == address,
        Err(_) => text.parse::<warren_core::types::IpNet>().unwrap().contains(&address),
    }
}
