//! What nodes are told, message by message.

use super::*;
use crate::types::RegionId;
use crate::wire::control::{DerpMap, DnsRecord, NetInfo, Resolver};

fn text(message: &MapMessage) -> String {
    String::from_utf8(message.plain()).unwrap()
}

#[test]
fn a_full_map_holds_the_node_its_peers_and_everything_else() {
    let (mut world, ada, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let session = world.open(web);
    let client = world.client(session);
    let node = client.node.as_ref().unwrap();
    assert_eq!((node.id, node.name.as_str()), (web, "web.warren.internal."));
    assert_eq!(client.peers.keys().copied().collect::<Vec<_>>(), [db], "nobody is a peer of itself");
    assert_eq!(client.peers[&db].allowed_ips.as_ref().unwrap().len(), 2);
    assert_eq!(client.profiles[&ada], "ada");
    let knows = client.knows();
    assert_eq!(knows["filters"]["base"][0]["SrcIPs"][0], "*");
    assert_eq!(knows["rest"]["dns"]["Proxied"], true);
}

#[test]
fn a_new_endpoint_is_one_patch_that_all_others_share() {
    let (mut world, _, key) = World::with_key();
    let ids: Vec<NodeId> = (1..=4).map(|machine| world.join(machine, "web", &key)).collect();
    let sessions: Vec<SessionId> = ids.iter().map(|id| world.open(*id)).collect();
    world.settle();
    world.sent.clear();

    world.update(1, &lite(1, |request| request.endpoints = vec!["192.0.2.1:41641".parse().unwrap()]));
    world.settle();
    let [(receivers, message)] = world.sent.as_slice() else { panic!("one message: {:?}", world.sent) };
    assert_eq!(receivers, &sessions[1..]);
    assert!(matches!(message.parts(), [Part::Shared(_)]));
    let disco = format!("discokey:{}", "01".repeat(32));
    assert_eq!(
        text(message),
        format!(r#"{{"PeersChangedPatch":[{{"NodeID":1,"Endpoints":["192.0.2.1:41641"],"DiscoKey":"{disco}"}}]}}"#)
    );
}

#[test]
fn a_node_that_comes_is_an_online_change_and_one_that_goes_a_patch_after_its_grace() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    world.open(web);
    world.settle();
    world.sent.clear();
    let session = world.open(db);
    world.settle();
    assert_eq!(text(&world.sent[0].1), r#"{"OnlineChange":{"2":true}}"#);

    world.close(session);
    world.advance(Duration::from_secs(9));
    assert_eq!(world.sent.len(), 1, "it may come back");
    world.advance(Duration::from_secs(1));
    assert_eq!(
        text(&world.sent[1].1),
        r#"{"PeersChangedPatch":[{"NodeID":2,"Online":false,"LastSeen":"2026-01-01T00:00:00Z"}]}"#
    );
}

#[test]
fn a_stream_that_comes_back_in_time_is_not_news() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    world.open(web);
    let first = world.open(db);
    world.settle();
    world.sent.clear();
    world.close(first);
    world.open(db);
    world.advance(Duration::from_secs(60));
    assert!(world.sent.is_empty(), "{:?}", world.sent);
}

#[test]
fn a_second_stream_of_a_node_ends_the_first() {
    let (mut world, _, key) = World::with_key();
    let web = world.join(1, "web", &key);
    let first = world.open(web);
    let second = world.open(web);
    assert_eq!(world.closed, [first]);
    world.close(first);
    world.advance(Duration::from_secs(60));
    assert!(world.state.node(web).unwrap().online);
    world.close(second);
    world.advance(Duration::from_secs(60));
    assert!(!world.state.node(web).unwrap().online);
}

#[test]
fn a_deleted_node_is_told_to_log_in_and_its_peers_forget_it() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let (watcher, gone) = (world.open(web), world.open(db));
    world.settle();
    world.sent.clear();
    let decision = world.by().delete_node(db).unwrap();
    world.run(decision);
    world.settle();
    let farewell: serde_json::Value = serde_json::from_slice(&world.sent[0].1.plain()).unwrap();
    assert_eq!((&world.sent[0].0, &farewell["Node"]["KeyExpiry"]), (&vec![gone], &"1970-01-01T00:00:00Z".into()));
    assert_eq!(world.closed, [gone]);
    assert_eq!(text(&world.sent[1].1), r#"{"PeersRemoved":[2]}"#);
    assert!(world.client(watcher).peers.is_empty());
}

#[test]
fn an_expired_node_sees_nobody_and_nobody_routes_to_it() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let (watcher, expired) = (world.open(web), world.open(db));
    world.update(2, &lite(2, |request| request.endpoints = vec!["192.0.2.1:1".parse().unwrap()]));
    let decision = world.by().expire_node(db).unwrap();
    world.run(decision);
    world.settle();
    let client = world.client(expired);
    assert!(client.peers.is_empty() && client.node.as_ref().unwrap().expired);
    assert_eq!(client.knows()["filters"]["base"], serde_json::json!([]));
    let peer = &world.client(watcher).peers[&db];
    assert!(peer.expired && peer.endpoints.is_empty());
    assert_eq!(peer.allowed_ips.as_deref(), Some([].as_slice()));
}

#[test]
fn what_a_node_says_of_itself_is_not_repeated_to_it() {
    let (mut world, _, key) = World::with_key();
    let web = world.join(1, "web", &key);
    let session = world.open(web);
    world.settle();
    let before = world.client(session).messages;
    world.update(1, &lite(1, |request| request.endpoints = vec!["192.0.2.1:1".parse().unwrap()]));
    world.settle();
    assert_eq!(world.client(session).messages, before);
    let decision = world.by().rename_node(web, "front".parse().unwrap()).unwrap();
    world.run(decision);
    world.settle();
    assert_eq!(world.client(session).node.as_ref().unwrap().name, "front.warren.internal.");
}

#[test]
fn a_storm_is_gathered_and_a_lone_change_goes_at_once() {
    let (mut world, _, key) = World::with_key();
    let ids: Vec<NodeId> = (1..=20).map(|machine| world.join(machine, "web", &key)).collect();
    let session = world.open(ids[0]);
    world.settle();
    world.settle();
    let before = world.client(session).messages;
    for id in &ids[1..] {
        world.open(*id);
    }
    assert_eq!(world.client(session).messages, before + 1, "the first at once");
    world.settle();
    assert_eq!(world.client(session).messages, before + 2, "the others together");
    assert!(world.client(session).peers.values().all(|peer| peer.online == Some(true)));
}

#[test]
fn relays_and_names_reach_everyone_in_one_shared_message() {
    let (mut world, _, key) = World::with_key();
    let ids: Vec<NodeId> = (1..=3).map(|machine| world.join(machine, "web", &key)).collect();
    let sessions: Vec<SessionId> = ids.iter().map(|id| world.open(*id)).collect();
    world.settle();
    world.sent.clear();
    world.state.set_derp_map(DerpMap { omit_default_regions: true, ..DerpMap::default() });
    world.settle();
    assert_eq!(world.sent.len(), 1);
    assert_eq!(world.sent[0].0, sessions);
    assert_eq!(text(&world.sent[0].1), r#"{"DERPMap":{"Regions":{},"omitDefaultRegions":true}}"#);

    world.sent.clear();
    let server = |addr: &str| Resolver { addr: addr.to_owned(), ..Resolver::default() };
    let record = DnsRecord { name: "wiki.corp".into(), r#type: "A".into(), value: "100.64.0.9".into() };
    let names = Names {
        nameservers: vec![server("9.9.9.9")],
        split: [("corp".to_owned(), vec![server("10.0.0.1")])].into(),
        search_domains: vec!["corp".to_owned()],
        extra_records: vec![record],
        ..Names::default()
    };
    for names in [names.clone(), names.clone(), Names { override_local: false, ..names }, Names::default()] {
        world.state.set_names(names);
        world.settle();
    }
    let common = r#""Routes":{"corp":[{"Addr":"10.0.0.1"}],"warren.internal":null}"#;
    let rest = r#""Domains":["warren.internal","corp"],"Proxied":true,"ExtraRecords":[{"Name":"wiki.corp","Type":"A","Value":"100.64.0.9"}]"#;
    let told: Vec<String> = world.sent.iter().map(|(_, message)| text(message)).collect();
    assert_eq!(
        told,
        [
            format!(r#"{{"DNSConfig":{{"Resolvers":[{{"Addr":"9.9.9.9"}}],{common},{rest}}}}}"#),
            format!(r#"{{"DNSConfig":{{{common},"FallbackResolvers":[{{"Addr":"9.9.9.9"}}],{rest}}}}}"#),
            r#"{"DNSConfig":{"Routes":{"warren.internal":null},"Domains":["warren.internal"],"Proxied":true}}"#
                .to_owned(),
        ],
        "the same again is told to nobody"
    );
    assert!(world.sent.iter().all(|(receivers, _)| *receivers == sessions));
}

#[test]
fn the_home_relay_comes_from_the_network_report_and_the_rest_of_it_is_nobodys_business() {
    let (mut world, _, key) = World::with_key();
    let (web, db) = (world.join(1, "web", &key), world.join(2, "db", &key));
    let session = world.open(web);
    let report = |link: &str| {
        let net = NetInfo { preferred_derp: RegionId(7), link_type: link.to_owned(), ..NetInfo::default() };
        Some(Hostinfo { hostname: "db".to_owned(), net_info: Some(net), ..Hostinfo::default() })
    };
    world.update(2, &lite(2, |request| request.hostinfo = report("wired")));
    world.settle();
    assert_eq!(world.client(session).peers[&db].home_derp, RegionId(7));
    let before = world.client(session).messages;
    world.update(2, &lite(2, |request| request.hostinfo = report("wireless")));
    world.settle();
    assert_eq!(world.client(session).messages, before);
}

#[test]
fn a_node_that_says_too_much_is_cut_to_its_limits() {
    let (mut world, _, key) = World::with_key();
    let web = world.join(1, "web", &key);
    world.update(
        1,
        &lite(1, |request| {
            request.endpoints = (1..=200).map(|port| ([192, 0, 2, 1], port).into()).collect();
            request.endpoints[0] = "0.0.0.0:1".parse().unwrap();
            let app = "x".repeat(limit::HOSTINFO.most);
            let routes = (0..2_000_u32).map(|n| {
                let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
                crate::types::IpNet::from(std::net::IpAddr::V4(ip))
            });
            let routable_ips = routes.chain(["100.64.0.0/16".parse().unwrap()]).collect();
            let hostname = "web".to_owned();
            request.hostinfo = Some(Hostinfo { app, hostname, routable_ips, ..Hostinfo::default() });
        }),
    );
    let record = world.state.node(web).unwrap().record;
    assert_eq!(record.status.endpoints.len(), limit::ENDPOINTS.most);
    assert!(record.status.endpoints.iter().all(|endpoint| !endpoint.ip().is_unspecified()));
    assert_eq!(record.status.routes.len(), limit::ROUTES.most);
    assert_eq!(record.hostinfo().hostname, "web");
    assert!(record.hostinfo().app.is_empty());
}

#[test]
fn of_a_large_map_only_the_chunk_around_the_node_is_its_own() {
    let (mut world, _, key) = World::with_key();
    for number in 0..300_u32 {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[31] = 1;
        let asks = RegisterRequest { node_key: NodePublic::from_bytes(bytes), ..request(1, "web", &key) };
        let decision = world.by().register(MachinePublic::from_bytes(bytes), &asks, bytes);
        world.run(decision);
    }
    let shared = |world: &mut World, id| -> Vec<*const Chunk> {
        let message = world.state.full_map(NodeId(id), world.now).unwrap();
        let chunks = message.parts().iter().filter_map(|part| match part {
            Part::Shared(chunk) if chunk.len() > 10_000 => Some(Arc::as_ptr(chunk)),
            _ => None,
        });
        chunks.collect()
    };
    let (one, two, last) = (shared(&mut world, 1), shared(&mut world, 2), shared(&mut world, 300));
    assert_eq!(one.len(), 2);
    assert_eq!(one, two, "neighbours share all chunks but their own");
    assert_eq!(one[0], last[1], "the middle chunk is everyone's");
    let id = NodeId(300);
    let session = world.open(id);
    assert_eq!(world.client(session).peers.len(), 299);
}
