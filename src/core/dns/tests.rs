mod exit;
mod forwarding;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::netmap::Netmap;
use crate::types::{IpNet, NodeId, NodePublic, Timestamp};
use crate::wire::control::{DnsConfig, DnsRecord, MapResponse, Node, Resolver};

const LOCAL: &str = "192.0.2.53";

fn peer(id: u64, label: &str) -> Node {
    let [high, low] = u16::try_from(id).unwrap().to_be_bytes();
    let address = |text: String| -> IpNet { text.parse().unwrap() };
    let mut key = [1; 32];
    key[..2].copy_from_slice(&[high, low]);
    Node {
        id: NodeId(id),
        key: NodePublic::from_bytes(key),
        name: format!("{label}.corp.example."),
        addresses: vec![address(format!("100.64.{high}.{low}/32")), address(format!("fd7a:115c:a1e0::{id:x}/128"))],
        ..Node::default()
    }
}

fn with_attribute(mut node: Node, name: &str) -> Node {
    node.cap_map.insert(name.to_owned(), None);
    node
}

fn resolvers(addresses: &[&str]) -> Vec<Resolver> {
    addresses.iter().map(|addr| Resolver { addr: (*addr).to_owned(), ..Resolver::default() }).collect()
}

fn record(name: &str, kind: &str, value: &str) -> DnsRecord {
    DnsRecord { name: name.to_owned(), r#type: kind.to_owned(), value: value.to_owned() }
}

/// The map of the node `us` with these peers.
fn map_of(us: Node, peers: Vec<Node>, dns: DnsConfig) -> Netmap {
    let mut map = Netmap::default();
    let message = MapResponse { node: Some(us), peers: peers.into(), dns_config: Some(dns), ..MapResponse::default() };
    map.replace(message, Timestamp::UNIX_EPOCH);
    map
}

fn upstream(address: &str) -> Upstream {
    Upstream::try_from(&resolvers(&[address])[0]).unwrap()
}

/// An arbitrary moment; only differences matter.
#[allow(clippy::disallowed_methods, reason = "see above")]
pub(super) fn origin() -> Instant {
    Instant::now()
}

struct World {
    server: Server,
    now: Instant,
    asked: u64,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
    fn new(map: &Netmap) -> Self {
        let mut server = Server::new([7; 32]);
        server.update(map, &[upstream(LOCAL)]);
        Self { server, now: Instant::now(), asked: 0 }
    }

    fn usual(dns: DnsConfig) -> Self {
        let dns = DnsConfig { proxied: true, ..dns };
        Self::new(&map_of(peer(1, "us"), vec![peer(2, "web"), peer(3, "db")], dns))
    }

    fn send(&mut self, transport: Transport, message: &Message) -> Outcome {
        self.asked += 1;
        let bytes = message.to_vec().unwrap();
        self.server.handle_query(self.now, QueryId(self.asked), transport, &bytes)
    }

    /// The answer of this node itself.
    fn answer(&mut self, name: &str, kind: RecordType) -> Message {
        match self.send(Transport::Udp, &question(name, kind)) {
            Outcome::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn addresses(&mut self, name: &str, kind: RecordType) -> Vec<IpAddr> {
        self.answer(name, kind).answers.iter().filter_map(|record| record.data.ip_addr()).collect()
    }

    /// What is asked of others because of this question.
    fn ask(&mut self, name: &str) -> Vec<Effect> {
        assert_eq!(self.send(Transport::Udp, &question(name, RecordType::A)), Outcome::Later, "{name}");
        self.effects()
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.server.poll_effect()).collect()
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.server.handle_timeout(self.now);
        self.effects()
    }

    fn reply(&mut self, ask: AskId, bytes: &[u8]) -> Vec<Effect> {
        self.server.handle_reply(self.now, ask, bytes);
        self.effects()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// What a server answers to bytes that it was sent.
fn answered(asked: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let asked = Message::from_vec(asked).unwrap();
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    let name = asked.queries[0].name.clone();
    answer.add_queries(asked.queries);
    answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(203, 0, 113, 9))));
    change(&mut answer);
    answer.to_vec().unwrap()
}

/// The one question among these effects.
fn asked(effects: &[Effect]) -> (AskId, Upstream, Transport, Vec<u8>) {
    let asks: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Ask { .. })).collect();
    match asks[..] {
        [Effect::Ask { ask, upstream, transport, bytes }] => (*ask, upstream.clone(), *transport, bytes.clone()),
        _ => panic!("{effects:?}"),
    }
}

fn answer_in(effects: &[Effect]) -> Option<Message> {
    let bytes =
        effects.iter().find_map(|effect| if let Effect::Answer { bytes, .. } = effect { Some(bytes) } else { None });
    bytes.map(|bytes| Message::from_vec(bytes).unwrap())
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

#[test]
fn a_node_is_found_by_its_name_and_by_its_address() {
    let mut world = World::usual(DnsConfig::default());
    let ip = |text: &str| -> Vec<IpAddr> { vec![text.parse().unwrap()] };
    assert_eq!(world.addresses("web.corp.example.", RecordType::A), ip("100.64.0.2"));
    assert_eq!(world.addresses("WEB.Corp.Example.", RecordType::A), ip("100.64.0.2"));
    assert_eq!(world.addresses("web.", RecordType::A), ip("100.64.0.2"));
    assert_eq!(world.addresses("us.corp.example.", RecordType::A), ip("100.64.0.1"));

    let answer = world.answer("WEB.corp.example.", RecordType::A);
    assert_eq!(
        (answer.metadata.id, answer.metadata.authoritative, answer.metadata.recursion_available),
        (4242, true, true)
    );
    assert_eq!((answer.queries[0].name.to_ascii().as_str(), answer.answers[0].ttl), ("WEB.corp.example.", 5));

    for reverse in
        ["2.0.64.100.in-addr.arpa.", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa."]
    {
        let answer = world.answer(reverse, RecordType::PTR);
        assert_eq!(
            answer.answers[0].data,
            RData::PTR(PTR(Name::from_ascii("web.corp.example.").unwrap())),
            "{reverse}"
        );
    }
}

#[test]
fn an_ipv6_address_is_told_to_those_who_can_use_it() {
    let mut world = World::usual(DnsConfig::default());
    let answer = world.answer("web.corp.example.", RecordType::AAAA);
    assert_eq!((code(&answer), answer.answers.len(), answer.authorities.len()), (ResponseCode::NoError, 0, 1));

    let us = with_attribute(peer(1, "us"), "magicdns-aaaa");
    let mut world = World::new(&map_of(us, vec![peer(2, "web")], DnsConfig::default()));
    assert_eq!(
        world.addresses("web.corp.example.", RecordType::AAAA),
        ["fd7a:115c:a1e0::2".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(world.addresses("web.corp.example.", RecordType::ANY).len(), 2);
}

#[test]
fn no_name_inside_our_zones_is_ever_asked_of_others() {
    let alone = [("alone.example".to_owned(), None), ("empty.example".to_owned(), Some(Vec::new()))];
    let dns = DnsConfig { routes: alone.into(), ..DnsConfig::default() };
    let mut world = World::usual(dns);
    for (name, zone) in [
        ("nobody.corp.example.", "corp.example."),
        ("corp.example.", "corp.example."),
        ("x.web.corp.example.", "corp.example."),
        ("x.alone.example.", "alone.example."),
        ("empty.example.", "empty.example."),
        ("9.9.64.100.in-addr.arpa.", "64.100.in-addr.arpa."),
        ("127.100.in-addr.arpa.", "127.100.in-addr.arpa."),
        ("1.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa.", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa."),
        ("secret.onion.", "secret.onion."),
        ("lb._dns-sd._udp.office.example.", "lb._dns-sd._udp.office.example."),
    ] {
        let answer = world.answer(name, RecordType::A);
        assert_eq!((code(&answer), answer.metadata.authoritative), (ResponseCode::NXDomain, true), "{name}");
        let RData::SOA(soa) = &answer.authorities[0].data else { panic!("{answer:?}") };
        assert_eq!((answer.authorities[0].name.to_ascii().as_str(), soa.minimum), (zone, 10), "{name}");
    }
    // A name that only looks as if it were inside.
    assert_eq!(world.ask("notcorp.example.").len(), 1);
}

#[test]
fn a_type_that_a_name_does_not_have_is_no_missing_name() {
    let mut world = World::usual(DnsConfig::default());
    for (name, kind) in [("web.corp.example.", RecordType::MX), ("2.0.64.100.in-addr.arpa.", RecordType::TXT)] {
        let answer = world.answer(name, kind);
        assert_eq!(
            (code(&answer), answer.answers.len(), answer.authorities.len()),
            (ResponseCode::NoError, 0, 1),
            "{name}"
        );
    }
}

#[test]
fn the_coordinators_records_come_before_nodes_and_wrong_ones_are_told() {
    let extra_records = vec![
        record("web.corp.example", "", "198.51.100.1"),
        record("grafana.corp.example.", "A", "100.64.0.2"),
        record("grafana.corp.example", "A", "100.64.0.3"),
        record("six.elsewhere.example", "AAAA", "2001:db8::1"),
        record("bad.example", "A", "2001:db8::1"),
        record("bad.example", "CNAME", "web"),
        record("b d.example", "", "192.0.2.1"),
    ];
    let mut world = World::usual(DnsConfig { extra_records, ..DnsConfig::default() });
    assert_eq!(world.addresses("web.corp.example.", RecordType::A), ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(world.addresses("grafana.corp.example.", RecordType::A).len(), 2);
    assert_eq!(world.addresses("six.elsewhere.example.", RecordType::AAAA).len(), 1);
    let faults = world.server.zones().faults();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].contains("bad.example A \"2001:db8::1\"") && faults[2].contains("' ' cannot be"), "{faults:?}");
}

#[test]
fn names_below_a_node_are_its_own_where_the_coordinator_says_so() {
    let dns = || DnsConfig { proxied: true, ..DnsConfig::default() };
    let web = with_attribute(peer(2, "web"), "dns-subdomain-resolve");
    let mut world = World::new(&map_of(peer(1, "us"), vec![web, peer(3, "db")], dns()));
    assert_eq!(world.addresses("a.b.web.corp.example.", RecordType::A), ["100.64.0.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(code(&world.answer("a.db.corp.example.", RecordType::A)), ResponseCode::NXDomain);
}

#[test]
fn a_subnet_of_a_site_has_names() {
    let mut world = World::usual(DnsConfig::default());
    for (name, address) in [
        ("10-1-1-16-via-7.", "fd7a:115c:a1e0:b1a:0:7:a01:110"),
        ("10-1-1-16-via-0x20.corp.example.", "fd7a:115c:a1e0:b1a:0:20:a01:110"),
        ("0-0-0-0-via-4294967295.", "fd7a:115c:a1e0:b1a:ffff:ffff::"),
    ] {
        assert_eq!(world.addresses(name, RecordType::AAAA), [address.parse::<IpAddr>().unwrap()], "{name}");
        let answer = world.answer(name, RecordType::A);
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0), "{name}");
    }
    for name in ["10-1-1-via-7.corp.example.", "10-1-1-16-via-4294967296.corp.example.", "via-7.corp.example."] {
        assert_eq!(code(&world.answer(name, RecordType::AAAA)), ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn the_longest_suffix_says_who_is_asked_and_nobody_asks_us() {
    let routes = [
        ("example.".to_owned(), Some(resolvers(&["198.51.100.1"]))),
        ("deep.example".to_owned(), Some(resolvers(&["100.64.0.3:5353", "100.100.100.100", "100.64.0.1"]))),
        ("loop.example".to_owned(), Some(resolvers(&["fd7a:115c:a1e0::53"]))),
        ("tls.example".to_owned(), Some(resolvers(&["tls://192.0.2.1"]))),
        ("a b".to_owned(), Some(resolvers(&["192.0.2.1"]))),
    ];
    let mut world = World::usual(DnsConfig { routes: routes.into(), ..DnsConfig::default() });
    for (name, server) in
        [("x.example.", "198.51.100.1"), ("x.deep.example.", "100.64.0.3:5353"), ("other.test.", LOCAL)]
    {
        let (_, whom, transport, _) = asked(&world.ask(name));
        assert_eq!((whom, transport), (upstream(server), Transport::Udp), "{name}");
    }
    // Where the only server named is of no use, the names are not given to others.
    for name in ["x.loop.example.", "x.tls.example."] {
        assert_eq!(code(&world.answer(name, RecordType::A)), ResponseCode::NXDomain, "{name}");
    }
    let faults = world.server.zones().faults().join("\n");
    for part in ["100.100.100.100:53: it would ask us", "100.64.0.1:53: it would", "tls://192.0.2.1", "' ' cannot be"] {
        assert!(faults.contains(part), "{part} in {faults}");
    }
}

#[test]
fn the_coordinators_servers_are_asked_before_the_hosts_and_others_only_where_it_has_none() {
    let settings = |resolver: &[&str], fallback: &[&str]| DnsConfig {
        resolvers: resolvers(resolver),
        fallback_resolvers: resolvers(fallback),
        ..DnsConfig::default()
    };
    let map = |dns| map_of(peer(1, "us"), Vec::new(), dns);
    let mut world = World::new(&map(settings(&["198.51.100.1"], &["198.51.100.2"])));
    assert_eq!(asked(&world.ask("a.test.")).1, upstream("198.51.100.1"));
    world.server.update(&map(settings(&[], &["198.51.100.2"])), &[upstream(LOCAL)]);
    assert_eq!(asked(&world.ask("a.test.")).1, upstream(LOCAL));
    world.server.update(&map(settings(&[], &["198.51.100.2"])), &[]);
    assert_eq!(asked(&world.ask("a.test.")).1, upstream("198.51.100.2"));
    world.server.update(&map(settings(&[], &[])), &[upstream("100.100.100.100")]);
    assert_eq!(code(&world.answer("a.test.", RecordType::A)), ResponseCode::ServFail);
}

#[test]
fn what_does_not_fit_is_asked_for_over_tcp() {
    let value = |number: u32| record("many.corp.example", "A", &format!("10.0.{}.{}", number / 250, number % 250));
    let mut world = World::usual(DnsConfig { extra_records: (0..400).map(value).collect(), ..DnsConfig::default() });
    let over = |world: &mut World, transport, room: Option<u16>| {
        let mut message = question("many.corp.example.", RecordType::A);
        if let Some(room) = room {
            message.set_edns(Edns::new().set_max_payload(room).clone());
        }
        let Outcome::Answer(bytes) = world.send(transport, &message) else { panic!() };
        let answer = Message::from_vec(&bytes).unwrap();
        (
            answer.metadata.truncation,
            answer.answers.len(),
            answer.edns.map(|edns| edns.max_payload()),
            bytes.len() <= 512,
        )
    };
    assert_eq!(over(&mut world, Transport::Udp, None), (true, 0, None, true));
    assert_eq!(over(&mut world, Transport::Udp, Some(1232)), (true, 0, Some(1232), true));
    assert_eq!(over(&mut world, Transport::Udp, Some(65_000)), (false, 400, Some(1232), false));
    assert_eq!(over(&mut world, Transport::Tcp, None), (false, 400, None, false));
}

#[test]
fn what_is_no_question_is_refused_or_left() {
    let mut world = World::usual(DnsConfig::default());
    let sent = |world: &mut World, message: &Message| match world.send(Transport::Udp, message) {
        Outcome::Answer(bytes) => Some(code(&Message::from_vec(&bytes).unwrap())),
        Outcome::Silence => None,
        Outcome::Later => panic!(),
    };
    let good = question("web.", RecordType::A);
    let mut update = good.clone();
    update.metadata.op_code = OpCode::Update;
    let mut answer = good.clone();
    answer.metadata.message_type = MessageType::Response;
    let mut two = good.clone();
    two.add_query(Query::query(Name::root(), RecordType::A));
    let mut later_edns = good.clone();
    later_edns.set_edns(Edns::new().set_version(1).clone());
    assert_eq!(sent(&mut world, &update), Some(ResponseCode::NotImp));
    assert_eq!(sent(&mut world, &answer), None);
    assert_eq!(sent(&mut world, &two), Some(ResponseCode::FormErr));
    // BADVERS and BADSIG are one number.
    assert_eq!(sent(&mut world, &later_edns).map(u16::from), Some(u16::from(ResponseCode::BADVERS)));

    let broken = &good.to_vec().unwrap()[..20];
    let outcome = world.server.handle_query(world.now, QueryId(99), Transport::Udp, broken);
    let Outcome::Answer(bytes) = outcome else { panic!("{outcome:?}") };
    assert_eq!(code(&Message::from_vec(&bytes).unwrap()), ResponseCode::FormErr);
    for silent in [&b""[..], &broken[..11], &[0; QUESTION_LEN + 1]] {
        assert_eq!(world.server.handle_query(world.now, QueryId(100), Transport::Tcp, silent), Outcome::Silence);
    }
}
