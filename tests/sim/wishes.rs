//! What is wished for, and how its plans read.

use std::collections::BTreeSet;

use warren_core::plan::{Desired, DesiredEndpoint, ModelKernel, RouteTarget, desired, diff};
use warren_core::types::IpNet;

use crate::world::{PeerSpec, World, converge, older_rules, public_key, small_world};

/// The kernel after a plan for this world.
fn kernel_of(world: &World) -> ModelKernel {
    let mut kernel = ModelKernel::default();
    converge(&mut kernel, &world.wish());
    kernel
}

/// The plan from one world to another, as `warren plan` prints it.
fn plan(from: &World, to: &World) -> String {
    diff(&to.wish(), &kernel_of(from).state).to_string()
}

/// What of the map this host leaves out.
fn left_out(world: &World) -> Vec<String> {
    let wish = desired(&world.netmap(), &world.prefs, &world.paths(), &world.host());
    wish.left_out.iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_plan_closes_before_it_connects() {
    let plan = diff(&small_world().wish(), &ModelKernel::default().state).to_string();
    assert_eq!(
        plan,
        "\
create link warren0
set the mark of warren0 to 0x5000000
set the port of warren0 to 41741
set the key of warren0 to that of [L+V9o]
set the MTU of warren0 to 1280
replace table inet warren: 5 sources in 1 classes may reach 100.64.0.100/32, fd7a:115c:a1e0::64/128
end the connections that the firewall does not admit
add address 100.64.0.100/32 to warren0
add address fd7a:115c:a1e0::64/128 to warren0
add peer [NTU1N] with 10.1.2.0/24, 100.64.0.2/32, fd7a:115c:a1e0::2/128
add peer [np6en] with 100.64.0.1/32, fd7a:115c:a1e0::1/128
bring warren0 up
add route 100.64.0.0/10 to unreachable, metric 10000
add route fd7a:115c:a1e0::/48 to unreachable, metric 10000
add route 10.1.2.0/24 to warren0, metric 100
add route 100.64.0.0/10 to warren0, metric 100
add route fd7a:115c:a1e0::/48 to warren0, metric 100
add rule 5310 (IPv4): all but mark 0x5000000 to table 22337
add rule 5310 (IPv6): all but mark 0x5000000 to table 22337
"
    );
}

#[test]
fn the_plan_for_nothing_is_the_way_back() {
    let plan = diff(&Desired::default(), &kernel_of(&small_world()).state).to_string();
    assert_eq!(
        plan,
        "\
remove rule 5310 (IPv6): all but mark 0x5000000 to table 22337
remove rule 5310 (IPv4): all but mark 0x5000000 to table 22337
remove route 10.1.2.0/24 to warren0, metric 100
remove route 100.64.0.0/10 to warren0, metric 100
remove route fd7a:115c:a1e0::/48 to warren0, metric 100
remove route 100.64.0.0/10 to unreachable, metric 10000
remove route fd7a:115c:a1e0::/48 to unreachable, metric 10000
delete link warren0
delete table inet warren
"
    );
}

/// At each step some rule leads into our table and marked packets, ours, past it.
#[test]
fn rules_of_an_earlier_version_go_once_the_new_ones_stand() {
    let mut kernel = kernel_of(&small_world());
    kernel.state.rules = older_rules();
    assert_eq!(
        diff(&small_world().wish(), &kernel.state).to_string(),
        "\
add rule 5310 (IPv4): all but mark 0x5000000 to table 22337
add rule 5310 (IPv6): all but mark 0x5000000 to table 22337
remove rule 5310 (IPv6) to table 22337
remove rule 5310 (IPv4) to table 22337
remove rule 5300 (IPv6): mark 0x5000000/0xf000000 to the main table
remove rule 5300 (IPv4): mark 0x5000000/0xf000000 to the main table
"
    );
}

#[test]
fn a_new_peer_is_two_steps() {
    let mut grown = small_world();
    grown.peers.push(PeerSpec { id: 3, key: 3, address: 3, ..grown.peers[0].clone() });
    assert_eq!(
        plan(&small_world(), &grown),
        "\
update table inet warren: sources +2 -0, classes +0 -0
add peer [zMzMz] with 100.64.0.3/32, fd7a:115c:a1e0::3/128
"
    );
}

#[test]
fn a_peer_with_a_new_key_is_there_before_the_old_one_goes() {
    let mut rotated = small_world();
    rotated.peers[0].key = 5;
    assert_eq!(
        plan(&small_world(), &rotated),
        "\
add peer [+vr6+] with 100.64.0.1/32, fd7a:115c:a1e0::1/128
remove peer [np6en]
"
    );
}

#[test]
fn a_route_that_moves_to_another_peer_is_one_step_there() {
    let mut moved = small_world();
    moved.peers[1].routes.clear();
    moved.peers[0].routes = vec!["10.1.2.0/24"];
    assert_eq!(plan(&small_world(), &moved), "give peer [np6en] 10.1.2.0/24\n");
}

#[test]
fn an_address_that_changes_hands_and_rights_has_none_in_between() {
    let mut moved = small_world();
    moved.peers[1].routes.clear();
    moved.peers[0].routes = vec!["10.1.2.0/24"];
    moved.prefs.advertise_routes = BTreeSet::from(["192.168.7.0/24".parse().unwrap()]);
    assert_eq!(
        plan(&small_world(), &moved),
        "\
update table inet warren: sources +0 -1, classes +0 -0, may reach 100.64.0.100/32, 192.168.7.0/24, fd7a:115c:a1e0::64/128, \
what is carried for peers leaves with this host's addresses
end the connections that the firewall does not admit
give peer [np6en] 10.1.2.0/24
update table inet warren: sources +1 -0, classes +0 -0
"
    );
}

#[test]
fn our_own_new_key_is_set_in_place() {
    let rotated = World { own_key: 1, ..small_world() };
    assert_eq!(plan(&small_world(), &rotated), "set the key of warren0 to that of [pOCSk]\n");
}

#[test]
fn no_plan_prints_a_secret() {
    let plan = diff(&small_world().wish(), &ModelKernel::default().state);
    let secret = small_world().host().key.expose_text().to_string();
    assert!(!plan.to_string().contains(&secret[8..]));
    assert!(!format!("{plan:?}").contains(&secret[8..]));
}

#[test]
fn without_accept_routes_peers_have_their_addresses_alone() {
    let mut world = small_world();
    world.prefs.accept_routes = false;
    let device = world.wish().device.unwrap();
    assert_eq!(device.peers[&public_key(2)].allowed_ips.len(), 2);
}

#[test]
fn a_default_route_is_left_out_and_told_of() {
    let mut world = small_world();
    world.peers[0].routes = vec!["0.0.0.0/0"];
    assert_eq!(
        left_out(&world),
        [
            "default route 0.0.0.0/0 of peer 1 () is left out: all traffic goes to a peer only where it was chosen as exit node"
        ]
    );
    let default = |prefix: &IpNet| prefix.prefix_len() == 0;
    let wish = world.wish();
    assert!(!wish.routes.iter().any(|route| default(&route.destination)));
    assert!(!wish.device.unwrap().peers.values().any(|peer| peer.allowed_ips.iter().any(default)));
}

/// A route's kernel routes, the way to a network of the host's own within among them, and what its peer may send from.
fn carried(world: &World, route: &str) -> (Vec<String>, Vec<String>) {
    let route: IpNet = route.parse().unwrap();
    let wish = world.wish();
    let within = wish.routes.iter().filter(|other| route.contains(&other.destination)).map(ToString::to_string);
    let peer = wish.device.unwrap().peers[&public_key(2)].clone();
    let prefixes = peer.allowed_ips.iter().filter(|net| route.contains(*net)).map(ToString::to_string).collect();
    (within.collect(), prefixes)
}

#[test]
fn a_route_over_the_hosts_own_network_is_left_out_and_told_of() {
    let mut world = small_world();
    world.networks = BTreeSet::from(["10.1.2.77/23".parse().unwrap()]);
    assert_eq!(
        left_out(&world),
        ["route 10.1.2.0/24 of peer 2 () is left out: this host is itself on 10.1.2.0/23; change the route, \
          or the host's own network"]
    );
    assert_eq!(carried(&world, "10.1.2.0/24"), (vec![], vec![]));

    world.networks.clear();
    world.routes = BTreeSet::from(["10.1.2.0/24".parse().unwrap()]);
    assert_eq!(
        left_out(&world),
        ["route 10.1.2.0/24 of peer 2 () is left out: this host has a route of its own to 10.1.2.0/24, which stays; \
          remove that, or change the peer's"]
    );
    assert_eq!(carried(&world, "10.1.2.0/24"), (vec![], vec![]));
}

#[test]
fn what_lies_in_a_route_and_is_the_hosts_own_stays_and_the_rest_is_carried() {
    let mut world = small_world();
    world.networks = BTreeSet::from(["10.1.2.77/25".parse().unwrap()]);
    // A gateway's route to the half of the rest, and one to much more than the peer's: the narrower wins.
    world.routes = BTreeSet::from(["10.1.2.192/26".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    assert_eq!(left_out(&world), [""; 0]);
    let (routes, prefixes) = carried(&world, "10.1.2.0/24");
    assert_eq!(
        routes,
        [
            "10.1.2.0/24 to warren0, metric 100",
            "10.1.2.0/25 to the next table, metric 100",
            "10.1.2.192/26 to the next table, metric 100"
        ]
    );
    assert_eq!(prefixes, ["10.1.2.128/26"]);

    world.peers[1].routes = vec!["10.0.0.0/8"];
    world.networks = BTreeSet::from(["10.200.0.1/24".parse().unwrap()]);
    world.routes.clear();
    assert_eq!(left_out(&world), [""; 0]);
    let (routes, prefixes) = carried(&world, "10.0.0.0/8");
    assert_eq!(routes, ["10.0.0.0/8 to warren0, metric 100", "10.200.0.0/24 to the next table, metric 100"]);
    assert_eq!(prefixes.len(), 16, "{prefixes:?}");
}

#[test]
fn a_gateways_network_inside_the_overlay_range_stays_the_hosts() {
    let mut world = small_world();
    // The second is another's use of the whole, and cannot be had beside ours.
    world.routes = BTreeSet::from(["100.100.0.0/16".parse().unwrap(), "100.64.0.0/10".parse().unwrap()]);
    let wish = world.wish();
    let throws = wish.routes.iter().filter(|route| route.target == RouteTarget::Throw).map(|route| route.destination);
    assert_eq!(throws.collect::<Vec<_>>(), ["100.100.0.0/16".parse().unwrap()]);
    let firewall = wish.firewall.unwrap();
    assert!(!firewall.guards("100.100.100.200".parse().unwrap()) && firewall.guards("100.64.0.2".parse().unwrap()));
    assert_eq!(left_out(&world), [""; 0]);
    assert_eq!(wish.device.unwrap().peers[&public_key(1)].allowed_ips.len(), 2);
}

#[test]
fn a_network_of_the_host_inside_the_overlay_range_stays_the_hosts() {
    let mut world = small_world();
    world.networks = BTreeSet::from(["100.64.0.9/29".parse().unwrap()]);
    world.peers[0].address = 10;
    let wish = world.wish();
    let throw = wish.routes.iter().find(|route| route.target == RouteTarget::Throw).unwrap();
    assert_eq!(throw.destination, "100.64.0.8/29".parse().unwrap());
    assert_eq!(left_out(&world).len(), 1);
    assert_eq!(wish.device.unwrap().peers[&public_key(1)].allowed_ips.len(), 1);
}

#[test]
fn a_gateway_holds_its_device_and_serves_the_addresses_of_all_peers_while_it_does() {
    let mut world = small_world();
    world.prefs.accept_routes = false;
    let serves =
        |world: &World, address: &str| world.wish().firewall.unwrap().served.contains(address.parse().unwrap());
    assert!(!serves(&world, "100.64.0.2"));
    world.peers[0].device = true;
    let wish = world.wish();
    let device = &wish.device.unwrap().peers[&public_key(1)];
    assert_eq!((device.endpoint, device.keepalive), (DesiredEndpoint::Leave, 0), "it comes from wherever it is");
    assert_eq!(device.allowed_ips.len(), 2);
    for address in ["100.64.0.1", "fd7a:115c:a1e0::1", "100.64.0.2", "fd7a:115c:a1e0::2"] {
        assert!(serves(&world, address), "{address}");
    }
    assert!(!serves(&world, "10.1.2.3"), "what lies behind peers is not passed on");
    assert!(!serves(&world, "100.64.0.3"));
}

#[test]
fn addresses_of_devices_behind_a_peer_are_taken_as_its_own_are() {
    let mut world = small_world();
    world.prefs.accept_routes = false;
    world.peers[1].routes = vec!["10.1.2.0/24", "100.64.0.77/32"];
    let wish = world.wish();
    let gateway = &wish.device.unwrap().peers[&public_key(2)];
    assert!(gateway.allowed_ips.iter().any(|net| *net == "100.64.0.77/32".parse().unwrap()));
    assert!(!gateway.allowed_ips.iter().any(|net| *net == "10.1.2.0/24".parse().unwrap()));
    assert!(!wish.routes.iter().any(|route| route.destination == "100.64.0.77/32".parse().unwrap()));
    world.networks = BTreeSet::from(["100.64.0.76/30".parse().unwrap()]);
    let left_out = left_out(&world);
    let reason = "address 100.64.0.77/32 of peer 2 () is left out: this host is itself on 100.64.0.76/30";
    assert!(left_out.len() == 1 && left_out[0].starts_with(reason), "{left_out:?}");
}

#[test]
fn with_shields_up_nobody_has_rights() {
    let mut world = small_world();
    world.prefs.shields_up = true;
    let firewall = world.wish().firewall.unwrap();
    assert!(firewall.hosts.is_empty() && firewall.subnets.is_empty() && firewall.classes.is_empty());
    assert_eq!(firewall.served.listed.len(), 2);
}

#[test]
fn a_jailed_peer_is_a_peer_without_rights() {
    let mut world = small_world();
    world.peers[0].jailed = true;
    let wish = world.wish();
    assert!(wish.device.unwrap().peers.contains_key(&public_key(1)));
    assert_eq!(wish.firewall.unwrap().class_of("100.64.0.1".parse().unwrap()), None);
}

#[test]
fn a_node_that_is_off_wishes_for_nothing() {
    let mut world = small_world();
    world.prefs.want_running = false;
    assert_eq!(world.wish(), Desired::default());
}

#[test]
fn a_subnet_is_served_where_it_is_offered_and_approved_and_no_longer() {
    let may_reach =
        |world: &World, address: &str| world.wish().firewall.unwrap().served.contains(address.parse().unwrap());
    let mut world = small_world();
    assert!(!may_reach(&world, "192.168.7.9"), "approved, but not offered");
    world.prefs.advertise_routes = BTreeSet::from(["192.168.7.0/24".parse().unwrap()]);
    assert!(may_reach(&world, "192.168.7.9"));

    let mut withdrawn = world.clone();
    withdrawn.approved.clear();
    assert!(!may_reach(&withdrawn, "192.168.7.9"));
    assert_eq!(
        plan(&world, &withdrawn),
        "\
update table inet warren: sources +0 -0, classes +0 -0, may reach 100.64.0.100/32, fd7a:115c:a1e0::64/128, nothing is carried for peers
end the connections that the firewall does not admit
"
    );
}

#[test]
fn a_route_leaves_the_way_to_what_the_host_depends_on_as_it_is() {
    let mut world = small_world();
    world.peers[1].routes = vec!["10.0.0.0/8", "10.9.0.53/32"];
    world.kept = ["10.1.2.53", "10.9.0.53", "192.0.2.53"].map(|address| address.parse().unwrap()).into();
    let wish = world.wish();
    let throws = wish.routes.iter().filter(|route| route.target == RouteTarget::Throw);
    let throws: Vec<String> = throws.map(|route| route.destination.to_string()).collect();
    assert_eq!(throws, ["10.1.2.53/32", "10.9.0.53/32"]);
    let tunnelled = |text: &str| {
        let destination = text.parse().unwrap();
        wish.routes.iter().any(|route| route.target == RouteTarget::Tunnel && route.destination == destination)
    };
    assert!(tunnelled("10.0.0.0/8") && !tunnelled("10.9.0.53/32"));
    let left_out = left_out(&world);
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert!(left_out[0].starts_with("address 10.1.2.53/32 of peer 2 () is left out: this host asks it for names"));
}

#[test]
fn the_internet_is_not_accepted_in_pieces() {
    let mut world = small_world();
    // All of IPv4 but for what is special, in prefixes short of all.
    let pieces: Vec<String> = (1..=9).chain(11..=99).map(|first| format!("{first}.0.0.0/8")).collect();
    let pieces = pieces.into_iter().chain(["128.0.0.0/3".to_owned(), "2000::/3".to_owned()]);
    world.peers[1].routes = pieces.map(|piece| &*piece.leak()).collect();
    let wish = world.wish();
    let public = wish.routes.iter().filter(|route| !warren_core::types::in_overlay(route.destination.addr()));
    assert_eq!(public.count(), 4);
    let left_out = left_out(&world);
    assert_eq!(left_out.len(), 98 + 2 - 4);
    assert!(left_out.iter().all(|text| text.contains("chosen as exit node")), "{left_out:?}");
}
