//! The planner's laws. Each holds for every map and every kernel that we can think of.

use proptest::prelude::*;
use warren_core::netmap::{AddressRange, Netmap};
use warren_core::plan::{
    Ability, Desired, ExitNode, Leaving, ModelKernel, Packet, Planner, PortRange, Protocol, RuleStep, Step, desired,
    diff, own,
};
use warren_core::types::{NodeId, NodePublic, in_overlay, is_default_route};

use std::net::IpAddr;

use crate::world::{Command, PeerSpec, World, converge, firewall, kernel, packets, public_key, world};

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Law 1.
    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(mut kernel in kernel(), world in world()) {
        let wish = world.wish();
        converge(&mut kernel, &wish);
        prop_assert_eq!(diff(&wish, &kernel.state).to_string(), "");
    }

    /// Law 1, on the way down: nothing of ours is left.
    #[test]
    fn the_plan_for_nothing_leaves_nothing(mut kernel in kernel()) {
        converge(&mut kernel, &Desired::default());
        kernel.state.lacking.clear();
        prop_assert_eq!(kernel.state, ModelKernel::default().state);
    }

    /// Law 2.
    #[test]
    fn no_step_touches_what_is_not_ours(mut kernel in kernel(), world in world()) {
        let foreign = warren_core::plan::ObservedLink { index: 7, is_wireguard: false, ..Default::default() };
        kernel.state.link = Some(foreign.clone());
        kernel.state.device = None;
        let steps = diff(&world.wish(), &kernel.state).steps;
        for step in &steps {
            kernel.carry_out(step).unwrap();
            if let Step::Rule(RuleStep::Add(rule) | RuleStep::Remove(rule)) = step {
                prop_assert!((own::RULE_FIRST..=own::RULE_LAST).contains(&rule.priority));
            }
        }
        prop_assert_eq!(kernel.state.link, Some(foreign));
    }

    /// Law 3, first half.
    #[test]
    fn no_prefix_of_a_plan_admits_what_both_policies_forbid(kernel in kernel(), world in world()) {
        let wish = world.wish();
        let steps = diff(&wish, &kernel.state).steps;
        let mut after = kernel.clone();
        steps.iter().for_each(|step| after.carry_out(step).unwrap());
        let forbidden: Vec<(NodePublic, Packet)> = every_try()
            .filter(|(peer, packet)| !kernel.admits(peer, packet) && !after.admits(peer, packet))
            .collect();

        let mut between = kernel;
        for (number, step) in steps.iter().enumerate() {
            between.carry_out(step).unwrap();
            for (peer, packet) in &forbidden {
                prop_assert!(
                    !between.admits(peer, packet),
                    "after step {} of\n{}: {} sends {:?}", number + 1, diff(&wish, &between.state), peer.short(), packet
                );
            }
        }
    }

    /// Law 3, second half: never removed, so its session lives; its link stays, too.
    #[test]
    fn a_peer_of_both_policies_is_there_at_every_prefix(mut kernel in kernel(), world in world()) {
        let wish = world.wish();
        let Some(device) = &wish.device else { return Ok(()) };
        let before = kernel.state.device.iter().flat_map(|device| device.peers.keys().copied());
        let staying: Vec<NodePublic> = before.filter(|key| device.peers.contains_key(key)).collect();
        let index = kernel.state.link.as_ref().map(|link| link.index);
        for step in diff(&wish, &kernel.state).steps {
            kernel.carry_out(&step).unwrap();
            let peers = kernel.state.device.as_ref().map(|device| &device.peers);
            prop_assert!(staying.iter().all(|key| peers.is_some_and(|peers| peers.contains_key(key))), "{}", step);
            if index.is_some() {
                prop_assert_eq!(kernel.state.link.as_ref().map(|link| link.index), index);
            }
        }
    }

    /// Law 3 for flows that are open already: a right that is taken away ends with them, however far the old plan came,
    /// on every kernel that can end flows.
    #[test]
    fn no_flow_of_a_peer_outlives_its_right(mut kernel in kernel(), world in world(), next in world()) {
        kernel.state.lacking.remove(&Ability::EndFlows);
        for (peer, packet) in every_try() {
            kernel.open(&peer, packet);
        }
        let wish = world.wish();
        let steps = diff(&wish, &kernel.state).steps;
        for stop in 0..=steps.len() {
            let mut crashed = kernel.clone();
            steps[..stop].iter().for_each(|step| crashed.carry_out(step).unwrap());
            let wish = next.wish();
            converge(&mut crashed, &wish);
            let Some(firewall) = firewall(&crashed) else { continue };
            // What came from anywhere to another address than an overlay's may have come by another link.
            let judged = without_exit(&crashed);
            let is_held = |flow: &&Packet| {
                let kernel = if [flow.source, flow.destination].map(in_overlay).contains(&true) { &crashed } else { &judged };
                every_try().any(|(peer, _)| holds(kernel, &peer, flow))
            };
            let held = crashed.flows.iter().filter(is_held);
            for flow in held {
                prop_assert!(firewall.decide(flow).is_ok(), "after {} steps of the first plan: {:?}", stop, flow);
            }
        }
    }

    /// A flow that the policy goes on to admit is never ended.
    #[test]
    fn a_flow_that_stays_admitted_stays(mut kernel in kernel(), world in world()) {
        for (peer, packet) in every_try() {
            kernel.open(&peer, packet);
        }
        let before = kernel.clone();
        converge(&mut kernel, &world.wish());
        let Some(firewall) = firewall(&kernel) else { return Ok(()) };
        for flow in &before.flows {
            prop_assert!(kernel.flows.contains(flow) || firewall.decide(flow).is_err(), "{:?}", flow);
        }
    }

    /// Law 4.
    #[test]
    fn a_crash_after_any_step_is_made_good(kernel in kernel(), world in world()) {
        let wish = world.wish();
        let mut whole = kernel.clone();
        converge(&mut whole, &wish);
        let mut crashed = kernel;
        for step in diff(&wish, &crashed.state).steps {
            crashed.carry_out(&step).unwrap();
            let mut again = crashed.clone();
            converge(&mut again, &wish);
            prop_assert_eq!(diff(&wish, &again.state).to_string(), "");
            prop_assert_eq!(firewall(&again), firewall(&whole));
        }
    }

    /// Law 5.
    #[test]
    fn a_plan_does_not_depend_on_the_order_of_its_inputs(
        kernel in kernel(),
        (world, peers) in world().prop_flat_map(|world| (Just(world.clone()), Just(world.peers).prop_shuffle())),
    ) {
        let mut shuffled = World { peers, ..world.clone() };
        shuffled.filter.reverse();
        let mut same_kernel = kernel.clone();
        same_kernel.state.rules.reverse();
        prop_assert_eq!(diff(&shuffled.wish(), &same_kernel.state), diff(&world.wish(), &kernel.state));
    }

    /// An address is not closed and opened again without need, whatever else comes and goes. (A subnet may be, where
    /// peers' subnets lie within each other.)
    #[test]
    fn rights_of_an_address_that_stay_are_never_withheld(world in world(), more in world()) {
        let world = World { peers: without_routes(world.peers), ..world };
        let grown = World { peers: without_routes(more.peers), ..world.clone() };
        let mut kernel = ModelKernel::default();
        converge(&mut kernel, &world.wish());
        let mut after = kernel.clone();
        converge(&mut after, &grown.wish());
        let staying: Vec<_> =
            every_try().filter(|(peer, packet)| kernel.admits(peer, packet) && after.admits(peer, packet)).collect();
        let same_rights = |packet: &Packet| {
            let (old, new) = (firewall(&kernel)?, firewall(&after)?);
            Some(old.class_of(packet.source) == new.class_of(packet.source) && old.served == new.served)
        };
        let staying: Vec<_> =
            staying.into_iter().filter(|(_, packet)| same_rights(packet).unwrap_or_default()).collect();
        for step in diff(&grown.wish(), &kernel.state).steps {
            kernel.carry_out(&step).unwrap();
            for (peer, packet) in &staying {
                prop_assert!(kernel.admits(peer, packet), "after {}: {} sends {:?}", step, peer.short(), packet);
            }
        }
    }

    /// What is remembered changes nothing: the wish is that of a planner that remembers nothing.
    #[test]
    fn a_planner_that_remembers_gives_the_wish_made_from_scratch(
        worlds in prop::collection::vec((world(), any::<bool>(), any::<bool>()), 1..8),
    ) {
        let mut planner = Planner::default();
        let mut current = worlds[0].0.clone();
        for (next, plain, only_peers) in worlds {
            let peers = if plain { without_routes(next.peers) } else { next.peers };
            current = if only_peers { World { peers, ..current } } else { World { peers, ..next } };
            let (map, paths, host) = (current.netmap(), current.paths(), current.host());
            let wish = planner.desired(&map, &current.prefs, &paths, &host);
            prop_assert_eq!(wish, desired(&map, &current.prefs, &paths, &host));
        }
    }

    /// The law of leaks: with an exit node wanted nothing but our own outer packets and answers leaves beside it, from
    /// whatever was there before.
    #[test]
    fn with_an_exit_node_wanted_nothing_leaves_beside_it(mut kernel in kernel(), world in world(), exit in exit()) {
        kernel.misrouted = ["203.0.113.0/24".parse().unwrap()].into();
        let world = with_exit(world, exit);
        converge(&mut kernel, &world.wish());
        prop_assert_eq!(leaks(&kernel, &[&world]), []);
    }

    /// The same at every prefix of a plan from one exit node to another, or to none that can be had; and after a crash.
    #[test]
    fn nothing_leaves_beside_the_exit_node_while_the_wish_changes(
        world in world(), next in world(), exits in (exit(), exit()),
    ) {
        let (world, next) = (with_exit(world, exits.0), with_exit(next, exits.1));
        let mut kernel = ModelKernel::default();
        converge(&mut kernel, &world.wish());
        for step in diff(&next.wish(), &kernel.state).steps {
            kernel.carry_out(&step).unwrap();
            prop_assert_eq!(leaks(&kernel, &[&world, &next]), [], "after {}", step);
        }
    }

    /// Routes and firewall each hold alone: whoever takes the link, the routes, the rules or the table, one of these.
    #[test]
    fn no_single_loss_lets_anything_leave_beside_the_exit_node(world in world(), exit in exit()) {
        let world = with_exit(world, exit);
        let mut kernel = ModelKernel::default();
        converge(&mut kernel, &world.wish());
        let losses =
            [Command::DeleteLink, Command::LinkDown, Command::FlushRoutes, Command::FlushRules, Command::DeleteTable];
        for loss in losses {
            let mut less = kernel.clone();
            loss.run(&mut less);
            let found = leaks(&less, &[&world]).into_iter().filter(|packet| packet.from.is_none());
            // What is thrown is the firewall's alone to refuse.
            let is_near = |packet: &Leaving| world.networks.iter().chain(&world.routes).any(|net| net.contains(&packet.to));
            let is_due = |packet: &Leaving| !(matches!(loss, Command::DeleteTable) && is_near(packet));
            prop_assert_eq!(found.filter(is_due).collect::<Vec<_>>(), [], "{:?}", loss);
            // Without a link and without routes, the firewall alone is left.
            if !matches!(loss, Command::DeleteTable) {
                Command::FlushRoutes.run(&mut less);
                Command::FlushRules.run(&mut less);
                prop_assert_eq!(leaks(&less, &[&world]), [], "{:?}", loss);
            }
        }
    }

    /// Nobody is locked out: what answers somebody from the host's own addresses leaves by its own way at every prefix of
    /// every plan, and so do our own packets.
    #[test]
    fn answers_and_our_own_packets_keep_their_way_through_every_change(first in world(), next in world()) {
        let known_by = "198.18.7.7/24".parse().unwrap();
        let (mut first, mut next) = (first, next);
        first.networks.insert(known_by);
        next.networks.insert(known_by);
        let mut kernel = ModelKernel::default();
        let ssh = |to: &str, from: &str| Leaving {
            to: to.parse().unwrap(),
            from: Some(from.parse().unwrap()),
            is_ours: false,
            is_answer: true,
        };
        let sessions = [ssh("8.8.4.4", "198.18.7.7"), ssh("2001:db8:7::9", "2001:db8::7")];
        for wish in [first.wish(), next.wish(), Desired::default()] {
            for step in diff(&wish, &kernel.state).steps {
                kernel.carry_out(&step).unwrap();
                for session in &sessions {
                    prop_assert!(kernel.leaves_beside(session), "after {}: {:?}", step, session);
                    let ours = Leaving { is_ours: true, is_answer: false, from: None, ..*session };
                    prop_assert!(kernel.leaves_beside(&ours), "after {}: {:?}", step, ours);
                }
            }
        }
    }

    /// An exit node is no more than a way: what it sends from addresses that are nobody's has no rights, and no flow is
    /// its because it might have been.
    #[test]
    fn an_exit_node_has_the_rights_of_its_own_addresses_alone(mut kernel in kernel(), world in world(), exit in exit()) {
        let world = with_exit(world, exit);
        let from_afar: Vec<Packet> =
            packets().into_iter().map(|packet| Packet { source: "198.51.100.7".parse().unwrap(), ..packet }).collect();
        kernel.flows.extend(&from_afar);
        converge(&mut kernel, &world.wish());
        for packet in &from_afar {
            prop_assert!((1..8).all(|key| !kernel.admits(&public_key(key), packet)), "{:?}", packet);
            prop_assert!(kernel.flows.contains(packet) || in_overlay(packet.destination), "{:?}", packet);
        }
    }

    /// The classes mean what the packet filter says, rule by rule.
    #[test]
    fn the_firewall_admits_exactly_what_the_packet_filter_does(world in world()) {
        let wish = world.wish();
        let map = world.netmap();
        let mut kernel = ModelKernel::default();
        converge(&mut kernel, &wish);
        for (peer, packet) in every_try().filter(|_| wish.device.is_some()) {
            prop_assert_eq!(
                kernel.admits(&peer, &packet),
                holds(&without_exit(&kernel), &peer, &packet) && admitted_by_rules(&world, &map, &peer, &packet),
                "{} sends {:?}", peer.short(), packet
            );
        }
    }
}

fn exit() -> impl Strategy<Value = ExitNode> {
    let peer = prop::option::of((1_u64..6).prop_map(NodeId));
    (peer, any::<bool>()).prop_map(|(peer, allow_lan)| ExitNode { peer, allow_lan })
}

/// Whatever else, this exit node is wanted.
fn with_exit(mut world: World, exit: ExitNode) -> World {
    world.prefs.exit_node = Some(exit);
    world
}

/// What a program sends that leaves beside the exit node, and is for nothing that is reached beside it in any of these.
fn leaks(kernel: &ModelKernel, worlds: &[&World]) -> Vec<Leaving> {
    let to = ["8.8.4.4", "8.8.8.9", "203.0.113.9", "192.168.7.9", "10.1.2.3", "172.16.0.9", "172.17.0.9", "100.64.0.9"];
    let to = to.into_iter().chain(["2001:db8:7::9", "fd00:1::9", "fd7a:115c:a1e0::9"]);
    let to = to.map(|text| text.parse::<IpAddr>().unwrap());
    let beside = |to: &IpAddr| {
        worlds.iter().any(|world| {
            let allows = world.prefs.exit_node.is_some_and(|exit| exit.allow_lan);
            let beside = if allows { &world.networks } else { &world.guests };
            beside.iter().any(|net| net.contains(to))
        })
    };
    let from = [None, Some("172.16.0.1"), Some("8.8.8.1")].map(|from| from.map(|text| text.parse::<IpAddr>().unwrap()));
    let sent = to.filter(|to| !beside(to)).flat_map(|to| from.map(|from| (to, from)));
    let sent = sent.filter(|(to, from)| from.is_none_or(|from| from.is_ipv4() == to.is_ipv4()));
    let sent = sent.map(|(to, from)| Leaving { to, from, is_ours: false, is_answer: false });
    sent.filter(|packet| kernel.leaves_beside(packet)).collect()
}

fn without_routes(mut peers: Vec<PeerSpec>) -> Vec<PeerSpec> {
    peers.iter_mut().for_each(|peer| peer.routes.clear());
    peers
}

/// Each packet from each peer that any world knows.
fn every_try() -> impl Iterator<Item = (NodePublic, Packet)> {
    (1..8).map(public_key).flat_map(|key| packets().into_iter().map(move |packet| (key, packet)))
}

/// Whether WireGuard takes the source from this peer, asked of a kernel without a firewall.
fn holds(kernel: &ModelKernel, peer: &NodePublic, packet: &Packet) -> bool {
    let mut open = kernel.clone();
    open.state.firewall = warren_core::plan::ObservedFirewall::Absent;
    open.admits(peer, packet)
}

/// The same kernel, where nobody is the way to everything: that gives no rights.
fn without_exit(kernel: &ModelKernel) -> ModelKernel {
    let mut without = kernel.clone();
    let peers = without.state.device.iter_mut().flat_map(|device| device.peers.values_mut());
    peers.for_each(|peer| peer.allowed_ips.retain(|net| !is_default_route(net)));
    without
}

/// The packet filter read literally.
fn admitted_by_rules(world: &World, map: &Netmap, peer: &NodePublic, packet: &Packet) -> bool {
    let Some(peer) = map.peer_by_key(peer) else { return false };
    let offered = world.prefs.advertise_routes.iter().filter(|route| world.approved.contains(*route));
    let near = world.networks.iter().any(|network| network.contains(&packet.destination));
    let is_internet = packet.destination.to_string().starts_with("8.") && !near;
    let is_served = map
        .addresses()
        .iter()
        .chain(offered)
        .any(|prefix| prefix.contains(&packet.destination) && (prefix.prefix_len() > 0 || is_internet));
    // What devices and peers send one another passes here.
    let passes_on = map.peers().any(|peer| peer.is_device()) && {
        let mut own = world.networks.iter().chain(&world.routes);
        map.peers().any(|peer| peer.has_address(packet.destination))
            && !own.any(|network| network.contains(&packet.destination))
    };
    let in_range = |range: &AddressRange| range.first <= packet.source && packet.source <= range.last;
    let admits = map.filter().rules.iter().any(|rule| {
        let is_own = peer.addresses.contains(&packet.source.into());
        let holds = |name: &String| is_own && peer.has_capability(name);
        let from = rule.sources.iter().any(in_range) || rule.capabilities.iter().any(holds);
        let has_ports = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&packet.protocol);
        let listed = rule.protocols.contains(&packet.protocol.0);
        let to = rule.destinations.iter().any(|to| {
            let all_ports = PortRange { first: to.first_port, last: to.last_port } == PortRange::ALL;
            let right = match packet.protocol {
                Protocol::ICMP | Protocol::ICMPV6 => packet.protocol == Protocol::icmp_of(packet.destination),
                _ if has_ports => listed && (to.first_port..=to.last_port).contains(&packet.port),
                _ => listed && all_ports,
            };
            right && to.prefix.contains(&packet.destination)
        });
        from && to
    });
    (is_served || passes_on) && admits && peer.may_open() && !world.prefs.shields_up
}
