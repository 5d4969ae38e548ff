//! Routes and policy rules.

use warren_core::plan::{Kernel, Route, RouteStep, RouteTarget, Rule, RuleAction, RulePackets, RuleStep, Step, own};
use warren_linux::LinuxKernel;

use crate::common::*;

fn route(destination: &str, target: RouteTarget, metric: u32) -> Route {
    Route { destination: net(destination), target, metric }
}

#[test]
fn routes_of_every_kind_are_set_replaced_and_removed() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        let routes = [
            route("100.64.0.0/10", RouteTarget::Unreachable, 10_000),
            route("100.64.0.0/10", RouteTarget::Tunnel, 100),
            route("0.0.0.0/0", RouteTarget::Tunnel, 100),
            route("192.168.0.0/16", RouteTarget::Throw, 100),
            route("fd7a:115c:a1e0::/48", RouteTarget::Unreachable, 10_000),
            route("fd7a:115c:a1e0::/48", RouteTarget::Tunnel, 100),
            route("::/0", RouteTarget::Tunnel, 100),
            route("fd00::/8", RouteTarget::Throw, 100),
        ];

        apply(&mut kernel, routes.iter().cloned().map(RouteStep::Add).map(Step::Route)).await;
        apply(&mut kernel, routes.iter().cloned().map(RouteStep::Add).map(Step::Route)).await;

        let seen = observe(&mut kernel).await;
        assert_eq!(seen.routes, routes.iter().cloned().collect());
        assert_eq!(seen.strange, Vec::<String>::new());
        let printed = json(&format!("ip -j route show table {}", own::ROUTE_TABLE));
        assert_eq!(printed.as_array().unwrap().len(), 4);
        assert!(printed.as_array().unwrap().iter().all(|route| route["protocol"] == "87"), "{printed}");
        let printed = json(&format!("ip -j -6 route show table {}", own::ROUTE_TABLE));
        assert_eq!(printed.as_array().unwrap().len(), 4);

        // One destination and metric is one place.
        for place in ["192.168.0.0/16", "fd00::/8"] {
            for target in [RouteTarget::Tunnel, RouteTarget::Unreachable, RouteTarget::Throw] {
                apply(&mut kernel, [Step::Route(RouteStep::Add(route(place, target, 100)))]).await;
                let seen = observe(&mut kernel).await.routes;
                let here: Vec<_> = seen.iter().filter(|route| route.destination == net(place)).collect();
                assert_eq!(here, [&route(place, target, 100)]);
            }
        }

        apply(&mut kernel, routes.iter().cloned().map(RouteStep::Remove).map(Step::Route)).await;
        apply(&mut kernel, routes.iter().cloned().map(RouteStep::Remove).map(Step::Route)).await;
        assert!(observe(&mut kernel).await.routes.is_empty());
    });
}

#[test]
fn rules_are_set_once_and_removed_one_at_a_time() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        let packets = RulePackets::NotMarked { mark: own::MARK_BYPASS, mask: u32::MAX };
        let ours = |ipv6| Rule { priority: own::RULE_OVERLAY, ipv6, packets, action: RuleAction::Ours };
        // An earlier version of ours had two a family, and is upgraded in this order.
        let marked = RulePackets::Marked { mark: own::MARK_BYPASS, mask: 0x0f00_0000 };
        let earlier = |ipv6| {
            [
                Rule { priority: 5300, ipv6, packets: marked, action: RuleAction::Main },
                Rule { priority: 5310, ipv6, packets: RulePackets::All, action: RuleAction::Ours },
            ]
        };
        let earlier: Vec<Rule> = [false, true].into_iter().flat_map(earlier).collect();
        let rules = [false, true].map(ours);

        apply(&mut kernel, earlier.iter().chain(&rules).copied().map(RuleStep::Add).map(Step::Rule)).await;
        apply(&mut kernel, earlier.iter().chain(&rules).copied().map(RuleStep::Add).map(Step::Rule)).await;

        let mut seen = observe(&mut kernel).await.rules;
        let mut expected: Vec<Rule> = earlier.iter().chain(&rules).copied().collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
        apply(&mut kernel, earlier.iter().rev().copied().map(RuleStep::Remove).map(Step::Rule)).await;
        assert_eq!(observe(&mut kernel).await.rules, rules);
        for family in ["", "-6 "] {
            let printed = json(&format!("ip {family}-j -d rule show pref 5310"));
            assert_eq!(printed.as_array().unwrap().len(), 1, "{printed}");
            assert_eq!((&printed[0]["fwmark"], &printed[0]["protocol"]), (&"0x5000000".into(), &"87".into()));
            assert!(printed[0].get("not").is_some() && printed[0].get("fwmask").is_none(), "{printed}");
        }

        // A duplicate, made by somebody else, shows and goes by a step of its own.
        sh(&format!("ip rule add pref 5310 not fwmark {:#x} table {}", own::MARK_BYPASS, own::ROUTE_TABLE));
        let ours = |rule: &&Rule| rule.priority == 5310 && !rule.ipv6;
        let seen = observe(&mut kernel).await.rules;
        assert_eq!(seen.iter().filter(ours).count(), 2);
        apply(&mut kernel, [Step::Rule(RuleStep::Remove(*seen.iter().find(ours).unwrap()))]).await;
        assert_eq!(observe(&mut kernel).await.rules.iter().filter(ours).count(), 1);

        apply(&mut kernel, rules.iter().copied().map(RuleStep::Remove).map(Step::Rule)).await;
        apply(&mut kernel, rules.iter().copied().map(RuleStep::Remove).map(Step::Rule)).await;
        assert!(observe(&mut kernel).await.rules.is_empty());
    });
}

#[test]
fn strange_objects_in_our_places_are_shown_and_removed_by_what_was_shown() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        sh(
            "ip link add lan type dummy && ip addr add 192.0.2.1/24 dev lan && ip addr add 2001:db8::1/64 dev lan && ip link set lan up",
        );
        let before = (json("ip -j -d rule show"), json("ip -j route show table all"));
        let before6 = json("ip -j -6 route show table main");
        let table = own::ROUTE_TABLE;
        for command in [
            format!("ip route add blackhole 10.1.0.0/16 table {table} proto 87"),
            format!("ip route add 10.2.0.0/16 via 192.0.2.2 table {table} proto 87"),
            format!("ip route add 10.3.0.0/16 dev warren0 table {table}"),
            format!("ip route add 10.4.0.0/16 dev lan table {table} proto 87"),
            format!("ip route add 10.5.0.0/16 table {table} proto 87 nexthop via 192.0.2.2 nexthop via 192.0.2.3"),
            format!("ip -6 route add fd01::/64 via 2001:db8::2 table {table} proto 87"),
            format!("ip -6 route add prohibit fd02::/64 table {table}"),
            "ip route add 10.6.0.0/16 via 192.0.2.2 proto 87".to_owned(),
            "ip -6 route add fd03::/64 via 2001:db8::2 proto 87".to_owned(),
            "ip rule add pref 5305 from 10.0.0.0/8 table 100".to_owned(),
            "ip rule add pref 5310 not from 10.9.0.0/16 table main".to_owned(),
            format!("ip rule add pref 5399 iif lan table {table}"),
            "ip -6 rule add pref 5301 unreachable".to_owned(),
        ] {
            sh(&command);
        }

        let seen = observe(&mut kernel).await;
        assert_eq!(seen.strange.len(), 13, "{:#?}", seen.strange);
        assert!(seen.routes.is_empty() && seen.rules.is_empty());

        for strange in seen.strange {
            apply(&mut kernel, [Step::RemoveStrange(strange.clone())]).await;
            assert!(!observe(&mut kernel).await.strange.contains(&strange), "{strange}");
        }
        assert_eq!(before, (json("ip -j -d rule show"), json("ip -j route show table all")));
        assert_eq!(before6, json("ip -j -6 route show table main"));
    });
}

#[test]
fn a_route_of_ours_that_appears_in_another_table_later_is_found() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        sh("ip link add lan type dummy && ip addr add 192.0.2.1/24 dev lan && ip link set lan up");
        assert!(observe(&mut kernel).await.strange.is_empty());

        sh("ip route add 10.6.0.0/16 via 192.0.2.2 table 77 proto 87");
        kernel.changed().await.unwrap();

        assert_eq!(observe(&mut kernel).await.strange.len(), 1);
        assert_eq!(observe(&mut kernel).await.strange.len(), 1, "and is still seen at the next look");
    });
}
