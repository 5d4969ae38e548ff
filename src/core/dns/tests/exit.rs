use super::*;

const DOH: &str = "http://100.64.0.9:41744/dns-query";

fn of_exit() -> DnsConfig {
    DnsConfig {
        proxied: true,
        routes: [("corp.test".to_owned(), Some(resolvers(&["10.0.0.53"])))].into(),
        extra_records: vec![record("wiki.test", "A", "10.0.0.7")],
        exit_node_filtered_set: vec![".kept.test".to_owned(), "exact.test".to_owned()],
        ..DnsConfig::default()
    }
}

fn domain(name: &str) -> Domain {
    name.parse().unwrap()
}

#[test]
fn who_leaves_by_us_hears_what_others_know_and_nothing_of_ours() {
    let mut world = World::usual(of_exit());
    let zones = world.server.zones();
    for ours in [
        "web",
        "web.corp.example",
        "nobody.corp.example",
        "2.0.64.100.in-addr.arpa",
        "9.9.64.100.in-addr.arpa",
        "wiki.test",
        "x.corp.test",
        "10-0-0-1-via-7",
        "a.kept.test",
        "exact.test",
        "x.onion",
        "localhost",
    ] {
        assert!(matches!(zones.find_for_others(&domain(ours)), Finding::NoSuchName(_)), "{ours}");
    }
    for others in ["www.example.org", "kept.test", "a.exact.test", "1.2.0.192.in-addr.arpa"] {
        assert_eq!(zones.find_for_others(&domain(others)), Finding::Ask([upstream(LOCAL)].into()), "{others}");
    }
    let bytes = question("web.corp.example.", RecordType::A).to_vec().unwrap();
    let Outcome::Answer(bytes) = world.server.handle_query_of_others(world.now, QueryId(1), &bytes) else { panic!() };
    assert_eq!(code(&Message::from_vec(&bytes).unwrap()), ResponseCode::NXDomain);
    let bytes = question("www.example.org.", RecordType::A).to_vec().unwrap();
    assert_eq!(world.server.handle_query_of_others(world.now, QueryId(2), &bytes), Outcome::Later);
}

#[test]
fn with_an_exit_node_it_is_asked_itself_or_who_may_be_asked_beside_it() {
    let map = |dns| map_of(peer(1, "us"), vec![peer(2, "web")], dns);
    let itself = Upstream::try_from(&resolvers(&[DOH])[0]).unwrap();
    let mut zones = Zones::default();
    let mut others = |way_out: WayOut, dns: DnsConfig| {
        zones.set_way_out(way_out);
        zones.update(&map(dns), &[upstream(LOCAL)]);
        let finding = |name: &str| zones.find(&domain(name), RecordType::A);
        assert!(matches!(finding("web.corp.example"), Finding::Addresses(_)));
        (zones.others().to_vec(), zones.takes_everything(), finding("x.corp.test"))
    };
    let of = |server: &str| Finding::Ask([upstream(server)].into());
    assert_eq!(others(WayOut::Own, of_exit()), (vec![upstream(LOCAL)], false, of("10.0.0.53")));
    let by_exit = WayOut::Exit(Some(itself.clone()));
    let asked = Finding::Ask([itself.clone()].into());
    // A private server behind somebody else is not asked beside it.
    assert_eq!(others(by_exit.clone(), of_exit()), (vec![itself.clone()], true, asked));
    // One that does not answer changes nothing.
    assert_eq!(others(WayOut::Exit(None), of_exit()).0, [upstream(LOCAL)]);
    let beside = |mut dns: DnsConfig| {
        dns.resolvers = resolvers(&["192.0.2.9", "192.0.2.10"]);
        dns.resolvers[1].use_with_exit_node = true;
        let route = dns.routes.get_mut("corp.test").unwrap().as_mut().unwrap();
        route[0].use_with_exit_node = true;
        dns
    };
    let expected = (vec![upstream("192.0.2.10")], true, of("10.0.0.53"));
    assert_eq!(others(by_exit, beside(of_exit())), expected);
    assert_eq!(others(WayOut::Own, beside(of_exit())).0, [upstream("192.0.2.9"), upstream("192.0.2.10")]);
    // Those who leave by us are not sent on to the one we leave by.
    zones.set_way_out(WayOut::Exit(Some(itself)));
    zones.update(&map(of_exit()), &[upstream(LOCAL)]);
    assert_eq!(zones.find_for_others(&domain("www.example.org")), of(LOCAL));
}
