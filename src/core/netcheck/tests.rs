#![allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]

use std::collections::BTreeMap;

use super::*;
use crate::wire::control::{DerpHomeParams, DerpNode, DerpRegion, EndpointType};

const PORT: u16 = 41_741;
const MS: Duration = Duration::from_millis(1);

/// A host, its relays, and the network between them, on a clock that jumps from event to event.
struct Scene {
    netcheck: Netcheck,
    now: Instant,
    /// How far each server is; absent ones do not answer.
    distance: BTreeMap<SocketAddr, Duration>,
    /// What each server sees, where that is not [`seen`].
    mapped: BTreeMap<SocketAddr, SocketAddr>,
    on_the_way: Vec<(Instant, SocketAddr, Vec<u8>)>,
    sent: usize,
    actions: Vec<Action>,
    events: Vec<NetcheckEvent>,
}

fn seen() -> SocketAddr {
    "203.0.113.7:50000".parse().unwrap()
}

fn server(region: u16) -> SocketAddr {
    format!("192.0.2.{region}:3478").parse().unwrap()
}

fn region(id: u16) -> DerpRegion {
    let node = DerpNode {
        name: format!("{id}a"),
        host_name: format!("relay{id}.example.net"),
        ipv4: format!("192.0.2.{id}"),
        ipv6: "none".to_owned(),
        can_port80: true,
        ..DerpNode::default()
    };
    DerpRegion { region_id: RegionId(id), region_code: format!("r{id}"), nodes: vec![node], ..DerpRegion::default() }
}

fn map(regions: impl IntoIterator<Item = DerpRegion>) -> DerpMap {
    let regions = regions.into_iter().map(|region| (region.region_id, Some(region))).collect();
    DerpMap { regions, ..DerpMap::default() }
}

impl Scene {
    /// Regions by number, each this far away.
    fn new(distances: &[(u16, u64)]) -> Self {
        let config = Config { seed: [7; 32], port: PORT, explicit: Vec::new(), nonce: [9; 12] };
        let mut scene = Self {
            netcheck: Netcheck::new(config),
            now: Instant::now(),
            distance: distances.iter().map(|(id, ms)| (server(*id), MS * *ms as u32)).collect(),
            mapped: BTreeMap::new(),
            on_the_way: Vec::new(),
            sent: 0,
            actions: Vec::new(),
            events: Vec::new(),
        };
        scene.netcheck.handle_links(&["10.0.0.5/24".parse().unwrap()].into(), &BTreeMap::new(), scene.now);
        scene.netcheck.handle_derp_map(&map(distances.iter().map(|(id, _)| region(*id))), scene.now);
        scene
    }

    fn on(distances: &[(u16, u64)]) -> Self {
        let mut scene = Self::new(distances);
        scene.netcheck.handle_switched(true, scene.now);
        scene
    }

    fn collect(&mut self) {
        while let Some((to, request)) = self.netcheck.poll_transmit() {
            self.sent += 1;
            let transaction = stun::read_request(&request).unwrap();
            if let Some(distance) = self.distance.get(&to) {
                let mapped = self.mapped.get(&to).copied().unwrap_or(seen());
                self.on_the_way.push((self.now + *distance, to, stun::response(transaction, mapped)));
            }
        }
        self.actions.extend(std::iter::from_fn(|| self.netcheck.poll_action()));
        self.events.extend(std::iter::from_fn(|| self.netcheck.poll_event()));
    }

    /// Lets everything happen that happens within a span.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.collect();
            let arrival = self.on_the_way.iter().map(|(at, ..)| *at).min();
            let next = arrival.into_iter().chain(self.netcheck.poll_timeout()).min().filter(|next| *next <= end);
            let Some(next) = next else { break };
            self.now = next.max(self.now);
            let arrived: Vec<_> = self.on_the_way.extract_if(.., |(at, ..)| *at <= next).collect();
            for (_, from, answer) in arrived {
                self.netcheck.handle_stun(from, &answer, self.now);
            }
            self.netcheck.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn home(&self) -> Option<u16> {
        self.netcheck.report().home.map(|home| home.0)
    }

    fn endpoints(&self) -> Vec<(String, EndpointType)> {
        self.netcheck.endpoints().iter().map(|(address, kind)| (address.to_string(), *kind)).collect()
    }

    fn looks(&mut self) -> usize {
        let looked = self.events.iter().filter(|event| matches!(event, NetcheckEvent::Looked { .. })).count();
        self.events.clear();
        looked
    }
}

#[test]
fn a_first_look_finds_the_nearest_region_and_our_mapped_address() {
    let mut scene = Scene::on(&[(1, 80), (2, 20), (3, 50)]);
    scene.run(Duration::from_millis(400));

    assert_eq!(scene.home(), Some(2));
    let report = scene.netcheck.report();
    assert_eq!((report.udp, report.ipv4, report.ipv6, report.mapping_varies), (true, true, false, Some(false)));
    assert_eq!(report.regions[&RegionId(1)].v4, Some(80 * MS));
    assert_eq!(
        scene.endpoints(),
        [("203.0.113.7:50000".to_owned(), EndpointType::STUN), (format!("10.0.0.5:{PORT}"), EndpointType::LOCAL),]
    );
    let info = report.net_info();
    assert_eq!((info.preferred_derp, info.working_udp), (RegionId(2), Some(true)));
    assert_eq!(info.derp_latency["2-v4"], 0.02);
}

#[test]
fn a_nat_that_maps_by_destination_is_seen_and_a_port_forwarded_by_hand_is_guessed() {
    // Ports that were counted are told as a row, for peers to count on; of random ones, one is enough.
    for (second, row) in [("203.0.113.7:50001", true), ("203.0.113.7:9000", false)] {
        let mut scene = Scene::new(&[(1, 10), (2, 20)]);
        scene.mapped.insert(server(2), second.parse().unwrap());
        scene.netcheck.handle_switched(true, scene.now);
        scene.run(Duration::from_secs(1));

        assert_eq!(scene.netcheck.report().mapping_varies, Some(true));
        let mut expected = vec![("203.0.113.7:50000".to_owned(), EndpointType::STUN)];
        expected.extend(row.then(|| (second.to_owned(), EndpointType::STUN)));
        expected.push((format!("203.0.113.7:{PORT}"), EndpointType::STUN4_LOCAL_PORT));
        expected.push((format!("10.0.0.5:{PORT}"), EndpointType::LOCAL));
        assert_eq!(scene.endpoints(), expected);
    }
}

#[test]
fn only_the_answer_to_a_pending_question_from_whom_was_asked_is_believed() {
    let mut scene = Scene::on(&[(1, 10)]);
    let (to, request) = scene.netcheck.poll_transmit().unwrap();
    let transaction = stun::read_request(&request).unwrap();
    let lie: SocketAddr = "198.51.100.66:1".parse().unwrap();

    scene.netcheck.handle_stun("192.0.2.9:3478".parse().unwrap(), &stun::response(transaction, lie), scene.now);
    scene.netcheck.handle_stun(to, &stun::response(TransactionId([0; 12]), lie), scene.now);
    for absurd in ["127.0.0.1:5", "0.0.0.0:5", "224.0.0.1:5", "203.0.113.7:0", "100.64.0.1:5", "[2001:db8::1]:5"] {
        scene.netcheck.handle_stun(to, &stun::response(transaction, absurd.parse().unwrap()), scene.now);
    }
    assert!(!scene.netcheck.report().udp);

    scene.netcheck.handle_stun(to, &stun::response(transaction, seen()), scene.now);
    assert!(scene.netcheck.report().udp);
    scene.netcheck.handle_stun(to, &stun::response(transaction, lie), scene.now);
    assert_eq!(scene.netcheck.report().global_v4, Some(seen()));
}

#[test]
fn a_single_region_is_home_before_anything_was_measured() {
    let mut scene = Scene::new(&[(9, 20)]);
    scene.collect();
    assert_eq!(scene.home(), Some(9));
    let told = scene.events.iter().find_map(|event| match event {
        NetcheckEvent::NetInfo(info) => Some((info.preferred_derp, info.working_udp)),
        _ => None,
    });
    assert_eq!(told, Some((RegionId(9), None)), "nothing is said of what was not looked at");
}

#[test]
fn where_udp_is_blocked_https_decides() {
    let mut scene = Scene::on(&[(1, 10), (2, 10)]);
    scene.distance.clear();
    scene.run(Duration::from_millis(1_100));
    let asked: Vec<u16> = scene
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::MeasureHttps(target) => Some(target.region.0),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [1, 2]);

    let answer = |ms| Ok((MS * ms, "192.0.2.2".parse().unwrap()));
    scene.netcheck.handle_input(Input::Https { region: RegionId(2), outcome: answer(30) }, scene.now);
    assert_eq!(scene.home(), Some(2), "the first answer will do for a start");
    scene.netcheck.handle_input(Input::Https { region: RegionId(1), outcome: Err("refused".into()) }, scene.now);
    scene.netcheck.handle_input(Input::Captive(Some(true)), scene.now);
    scene.run(Duration::from_secs(4));

    assert_eq!(scene.home(), Some(2));
    let info = scene.netcheck.report().net_info();
    assert_eq!((info.working_udp, info.preferred_derp), (Some(false), RegionId(2)));
    assert!(scene.events.contains(&NetcheckEvent::Captive(true)));
    assert!(scene.events.contains(&NetcheckEvent::Looked { full: true }));

    // While it stays blocked, wishes for fresh endpoints cost a second and no HTTPS.
    scene.actions.clear();
    scene.netcheck.handle_wanted(scene.now);
    scene.run(Duration::from_millis(1_100));
    assert_eq!((scene.looks(), scene.actions.len()), (2, 0));

    // One answer is a reason to look at everything again.
    scene.distance = [(server(1), 10 * MS), (server(2), 30 * MS)].into();
    scene.netcheck.handle_wanted(scene.now + FRESH);
    scene.run(FRESH + Duration::from_secs(3));
    assert!(scene.netcheck.report().udp);
    assert_eq!(scene.home(), Some(1));
    assert!(scene.events.contains(&NetcheckEvent::Captive(false)));
}

#[test]
fn an_idle_node_whose_network_was_only_on_its_way_up_finds_out_soon() {
    let mut scene = Scene::on(&[(1, 10), (2, 10)]);
    let distance = std::mem::take(&mut scene.distance);
    scene.run(Duration::from_secs(10));
    scene.distance = distance.clone();
    scene.run(Duration::from_secs(40));
    assert!(scene.netcheck.report().udp);

    // A network that never lets UDP through is asked ever more rarely.
    scene.distance.clear();
    scene.netcheck.handle_full_wanted(scene.now);
    scene.run(Duration::from_secs(8 * 3_600));
    let looks = scene.looks();
    assert!((8..25).contains(&looks), "{looks} looks in eight hours");

    // A default route that appears is another network.
    scene.distance = distance;
    let gateway = Gateway { address: "192.168.1.1".parse().unwrap(), local: "192.168.1.5".parse().unwrap() };
    scene.netcheck.handle_input(Input::Gateway(Some(gateway)), scene.now);
    scene.run(Duration::from_secs(1));
    assert!(scene.netcheck.report().udp);
}

#[test]
fn where_nothing_answers_there_still_is_a_home() {
    let mut scene = Scene::on(&[(3, 10), (4, 10)]);
    scene.distance.clear();
    scene.run(Duration::from_secs(10));
    assert_eq!(scene.home(), Some(3));
}

#[test]
fn the_home_stays_unless_another_is_clearly_nearer() {
    for (nearer, expected) in [(45, 1), (41, 1), (35, 1), (33, 2), (20, 2)] {
        let mut scene = Scene::on(&[(1, 50), (2, 60)]);
        scene.run(Duration::from_secs(5));
        assert_eq!(scene.home(), Some(1));
        scene.distance.insert(server(2), MS * nearer);
        scene.netcheck.handle_full_wanted(scene.now);
        scene.run(Duration::from_secs(5));
        assert_eq!(scene.home(), Some(expected), "{nearer} ms");
    }
    // A third nearer, but only by a few milliseconds.
    let mut scene = Scene::on(&[(1, 12), (2, 20)]);
    scene.run(Duration::from_secs(5));
    scene.distance.insert(server(2), 4 * MS);
    scene.netcheck.handle_full_wanted(scene.now);
    scene.run(Duration::from_secs(5));
    assert_eq!(scene.home(), Some(1));
}

#[test]
fn a_home_without_stun_answers_stays_while_it_sends_relay_frames() {
    for (alive, expected) in [(true, 1), (false, 2)] {
        let mut scene = Scene::on(&[(1, 20), (2, 60)]);
        scene.run(Duration::from_secs(5));
        scene.distance.remove(&server(1));
        if alive {
            scene.netcheck.handle_relay_alive(RegionId(1), scene.now);
        }
        scene.netcheck.handle_full_wanted(scene.now);
        scene.run(Duration::from_secs(5));
        assert_eq!(scene.home(), Some(expected));
    }
}

#[test]
fn a_home_that_cannot_be_connected_is_left_at_once_and_not_come_back_to_soon() {
    let mut scene = Scene::on(&[(1, 20), (2, 60)]);
    scene.run(Duration::from_secs(5));
    scene.netcheck.handle_relay_failed(RegionId(1), scene.now);
    assert_eq!(scene.home(), Some(2));
    scene.netcheck.handle_full_wanted(scene.now);
    scene.run(Duration::from_secs(5));
    assert_eq!(scene.home(), Some(2));
    scene.run(Duration::from_secs(60));
    scene.netcheck.handle_full_wanted(scene.now);
    scene.run(Duration::from_secs(5));
    assert_eq!(scene.home(), Some(1));
    // Where both fail, one of them is home all the same.
    scene.netcheck.handle_relay_failed(RegionId(1), scene.now);
    scene.netcheck.handle_relay_failed(RegionId(2), scene.now);
    assert!(scene.home().is_some());
}

#[test]
fn where_every_region_fails_the_one_that_may_be_back_is_tried_in_turn_and_not_all_the_time() {
    let mut scene = Scene::on(&[(1, 20), (2, 60)]);
    scene.run(Duration::from_secs(5));
    scene.netcheck.handle_relay_failed(RegionId(1), scene.now);
    scene.netcheck.handle_relay_alive(RegionId(2), scene.now);
    scene.run(Duration::from_secs(1));
    // The second worked until this moment; the first may be back.
    scene.netcheck.handle_relay_failed(RegionId(2), scene.now);
    assert_eq!(scene.home(), Some(1));
    // It is not: each is tried again after its rest, however often its connection fails.
    let mut homes = vec![scene.home()];
    for _ in 0..240 {
        scene.run(Duration::from_millis(500));
        scene.netcheck.handle_relay_failed(scene.netcheck.report().home.unwrap(), scene.now);
        homes.push(scene.home());
    }
    let changes = homes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((4..=14).contains(&changes), "{changes} changes in two minutes");
    scene.netcheck.handle_relay_alive(RegionId(2), scene.now);
    scene.netcheck.handle_relay_failed(RegionId(1), scene.now);
    assert_eq!(scene.home(), Some(2));
}

#[test]
fn the_map_says_which_regions_count_more_and_which_never() {
    let mut scene = Scene::new(&[(1, 20), (2, 30), (3, 1), (4, 1)]);
    let mut regions: Vec<DerpRegion> = (1..=4).map(region).collect();
    regions[2].no_measure_no_home = true;
    regions[3].avoid = true;
    let mut told = map(regions);
    told.home_params = Some(DerpHomeParams { region_score: [(RegionId(2), 0.5), (RegionId(1), -1.0)].into() });
    scene.netcheck.handle_derp_map(&told, scene.now);
    scene.netcheck.handle_switched(true, scene.now);
    scene.run(Duration::from_secs(5));

    assert_eq!(scene.home(), Some(2));
    assert_eq!(scene.netcheck.report().regions[&RegionId(4)].latency(), None);
    assert!(!scene.netcheck.report().regions.contains_key(&RegionId(3)));
}

#[test]
fn names_are_looked_up_and_their_servers_asked_once_they_are_known() {
    let mut scene = Scene::new(&[]);
    let mut named = region(1);
    named.nodes[0].ipv4 = String::new();
    named.nodes[0].stun_port = 5_000;
    scene.netcheck.handle_derp_map(&map([named]), scene.now);
    scene.netcheck.handle_switched(true, scene.now);
    scene.run(Duration::from_millis(1_500));
    assert_eq!(scene.actions[0], Action::Resolve { host: "relay1.example.net".into() });
    assert_eq!(scene.sent, 0);

    let resolved =
        |host: &str, address: &str| Input::Resolved { host: host.into(), addresses: vec![address.parse().unwrap()] };
    scene.netcheck.handle_input(resolved("other.example.net", "192.0.2.8"), scene.now);
    scene.netcheck.handle_input(resolved("relay1.example.net", "100.64.0.9"), scene.now);
    assert!(scene.netcheck.poll_transmit().is_none(), "a relay is not inside the overlay");
    scene.netcheck.handle_input(resolved("relay1.example.net", "192.0.2.8"), scene.now);
    assert_eq!(scene.netcheck.poll_transmit().unwrap().0, "192.0.2.8:5000".parse().unwrap());
}

#[test]
fn an_active_node_looks_every_23_seconds_and_an_idle_one_once_an_hour() {
    let mut scene = Scene::on(&[(1, 20), (2, 30), (3, 40), (4, 50), (5, 60), (6, 70)]);
    scene.run(Duration::from_secs(10));
    scene.looks();
    scene.sent = 0;
    scene.run(Duration::from_secs(3_000));
    assert_eq!((scene.looks(), scene.sent), (0, 0), "idle");

    scene.netcheck.handle_active(true, scene.now);
    scene.run(Duration::from_secs(600));
    let looks = scene.looks();
    assert!((600 / 26..=600 / 20 + 1).contains(&looks), "{looks} looks");
    // Three regions in each short look, and all six twice in ten minutes.
    assert!(scene.sent <= looks * 3 + 2 * 6 * 4, "{} packets", scene.sent);

    scene.netcheck.handle_active(false, scene.now);
    scene.looks();
    scene.run(Duration::from_secs(2 * 3_600));
    assert!((1..=2).contains(&scene.looks()));
}

#[test]
fn a_node_that_is_off_sends_nothing_and_answers_wishes_at_once() {
    let mut scene = Scene::new(&[(1, 10)]);
    scene.netcheck.handle_active(true, scene.now);
    scene.netcheck.handle_full_wanted(scene.now);
    scene.run(Duration::from_secs(600));
    assert_eq!((scene.sent, scene.looks()), (0, 1));
}

#[test]
fn other_links_are_looked_at_anew() {
    let mut scene = Scene::on(&[(1, 10), (2, 20)]);
    scene.run(Duration::from_secs(5));
    scene.looks();
    let links = ["10.9.0.5/24", "100.64.0.3/10", "fd7a:115c:a1e0::3/128"].map(|link| link.parse().unwrap());
    scene.netcheck.handle_links(&links.into(), &BTreeMap::new(), scene.now);
    scene.run(Duration::from_millis(300));
    assert_eq!(scene.endpoints().last().unwrap().0, format!("10.9.0.5:{PORT}"));
    assert_eq!(scene.endpoints().len(), 2);
    assert_eq!(scene.looks(), 1);
}

#[test]
fn bridges_that_come_and_go_begin_no_look_and_are_told_last() {
    let mut scene = Scene::on(&[(1, 10), (2, 20)]);
    scene.run(Duration::from_secs(5));
    scene.looks();
    let bridges: Vec<IpNet> = (0..100).map(|n| format!("9.0.{n}.1/24").parse().unwrap()).collect();
    let link_kinds: BTreeMap<IpNet, LinkKind> = bridges.iter().map(|bridge| (*bridge, LinkKind::Virtual)).collect();
    for there in (0..=100).chain((0..100).rev()).chain([100]) {
        let links = ["10.0.0.5/24".parse().unwrap()].iter().chain(&bridges[..there]).copied().collect();
        scene.netcheck.handle_links(&links, &link_kinds, scene.now);
        scene.run(Duration::from_millis(100));
    }
    assert_eq!(scene.looks(), 0);
    let endpoints = scene.endpoints();
    assert_eq!(endpoints.len(), limit::ENDPOINTS);
    assert_eq!(endpoints[1], (format!("10.0.0.5:{PORT}"), EndpointType::LOCAL), "after what servers see");
}

#[test]
fn where_all_links_are_virtual_each_of_them_counts() {
    let mut scene = Scene::on(&[(1, 10), (2, 20)]);
    scene.run(Duration::from_secs(5));
    let links = ["10.0.0.5/24", "10.9.0.5/24"].map(|link| link.parse().unwrap());
    let link_kinds = links.map(|link: IpNet| (link, LinkKind::Virtual)).into();
    scene.looks();
    scene.netcheck.handle_links(&links.into(), &link_kinds, scene.now);
    scene.run(Duration::from_millis(300));
    assert_eq!(scene.looks(), 1);
}

#[test]
fn an_address_inside_an_advertised_subnet_is_offered_only_where_we_are_on_its_link() {
    let mut scene = Scene::new(&[(1, 10)]);
    scene.mapped.insert(server(1), "172.16.9.9:7".parse().unwrap());
    scene.netcheck.handle_advertised(vec!["172.16.0.0/12".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    scene.netcheck.handle_switched(true, scene.now);
    scene.run(Duration::from_secs(1));
    assert_eq!(scene.endpoints(), [(format!("10.0.0.5:{PORT}"), EndpointType::LOCAL)]);
}

#[test]
fn a_huge_map_costs_bounded_questions() {
    let mut scene = Scene::new(&[]);
    let regions = (1..=5_000).map(|id| {
        let mut region = region(id);
        region.nodes = vec![DerpNode { host_name: format!("h{id}"), ..DerpNode::default() }; 60];
        region
    });
    scene.netcheck.handle_derp_map(&map(regions), scene.now);
    scene.netcheck.handle_switched(true, scene.now);
    scene.run(Duration::from_secs(20));
    assert!(scene.actions.len() <= limit::REGIONS * limit::NODES + limit::HTTPS, "{}", scene.actions.len());
}

#[test]
fn the_nonce_of_a_machine_is_always_the_same() {
    let machine = crate::types::MachinePrivate::from_random([3; 32]);
    assert_eq!(Config::nonce(&machine), Config::nonce(&machine));
    assert_ne!(Config::nonce(&machine), Config::nonce(&crate::types::MachinePrivate::from_random([4; 32])));
}
