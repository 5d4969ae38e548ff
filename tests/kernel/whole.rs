//! The whole of it: converge, adopt, leave no trace, touch nothing of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};
use warren_core::plan::{
    Ability, Class, ClassId, Desired, DesiredEndpoint, Device, Egress, Firewall, Kernel, LinkStep, ModelKernel,
    Observed, ObservedFirewall, ObservedForwarding, PeerConfig, PeerStep, Route, RouteStep, RouteTarget, Rule,
    RuleAction, RulePackets, Step, diff, own,
};
use warren_core::types::IpNet;
use warren_linux::LinuxKernel;

use crate::common::*;
use crate::firewall::any_firewall;

#[test]
fn a_whole_wish_comes_true_and_cleaning_up_leaves_no_trace() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();

        let steps = converge(&mut kernel, &wish()).await;
        assert_eq!(diff(&wish(), &Observed::default()).steps, steps, "one round was enough");
        converge(&mut kernel, &Desired::default()).await;

        assert_eq!(observe(&mut kernel).await, Observed::default());
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(json("ip -j route show table all proto 87"), json!([]));
    });
}

#[test]
fn a_link_of_ours_under_another_name_is_found_and_removed_and_others_are_not() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &wish()).await;
        sh("ip link add wg9 type wireguard && wg set wg9 fwmark 0x5000000 && ip addr add 10.9.0.1/24 dev wg9");
        sh("ip link set warren0 down && ip link set warren0 name mine && ip link set mine up");

        let seen = observe(&mut kernel).await;
        assert!(seen.link.is_none());
        assert_eq!(seen.strange, ["link mine, which is warren0 under another name"]);
        // From 6.9 on, the table is its agent's for as long as that lives.
        drop(kernel);
        converge(&mut LinuxKernel::new().unwrap(), &Desired::default()).await;

        assert!(!run("ip link show mine").status.success());
        assert!(run("ip link show wg9").status.success(), "a mark alone makes it nobody's of ours");
        std::net::UdpSocket::bind("0.0.0.0:41741").unwrap();
    });
}

#[test]
fn another_agent_adopts_what_it_finds_and_changes_nothing() {
    in_namespace(Needs::WireGuard, || async {
        let mut first = LinuxKernel::new().unwrap();
        converge(&mut first, &wish()).await;
        let seen = observe(&mut first).await;
        drop(first);

        let mut second = LinuxKernel::new().unwrap();

        assert_eq!(observe(&mut second).await, seen);
        assert!(diff(&wish(), &seen).is_empty());
        assert_eq!(seen.device.unwrap().peers.len(), 2);
    });
}

#[test]
fn what_belongs_to_others_is_the_same_before_during_and_after() {
    in_namespace(Needs::WireGuard, || async {
        for command in [
            "ip link add lan type dummy && ip addr add 192.0.2.1/24 dev lan && ip addr add 2001:db8::1/64 dev lan nodad && ip link set lan up",
            "ip link add wg9 type wireguard && wg set wg9 listen-port 51820 peer $(wg genkey | wg pubkey) allowed-ips 10.9.0.0/16 && ip link set wg9 up",
            "ip route add 10.1.0.0/16 via 192.0.2.2 && ip route add 10.9.0.0/16 dev wg9 table 52",
            "ip -6 route add fd09::/64 dev wg9 table 22338",
            "ip rule add pref 5270 table 52 && ip rule add pref 5299 table 52 && ip rule add pref 5400 table 52 && ip -6 rule add pref 5299 table 22338",
            "nft add table ip warren && nft add chain ip warren input '{ type filter hook input priority 0; policy accept; }'",
            "nft add table inet warren_other && nft add set inet warren_other s '{ type ipv4_addr; elements = { 10.0.0.1 }; }'",
        ] {
            sh(command);
        }
        let before = everything();
        let mut kernel = LinuxKernel::new().unwrap();

        converge(&mut kernel, &wish()).await;
        assert_ne!(everything(), before);
        assert_eq!(without_ours(everything()), before);

        converge(&mut kernel, &Desired::default()).await;
        assert_eq!(everything(), before);
    });
}

#[test]
fn the_model_and_the_real_kernel_agree_after_the_same_random_plans() {
    in_namespace(Needs::WireGuard, || async {
        let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(9), ..Config::default() });
        let mut kernel = LinuxKernel::new().unwrap();
        let mut model = ModelKernel::default();
        // The host's own way out.
        sh("ip link add eth0 type dummy && ip link set eth0 up");
        sh("ip route add default dev eth0 && ip -6 route add default dev eth0");

        let mut led = 0;
        for round in 0..20 {
            let mut wish = any_wish().new_tree(&mut runner).unwrap().current();
            if round % 2 == 1 {
                lead_the_overlay_in(&mut wish);
            }
            let plan = diff(&wish, &observe(&mut kernel).await);
            for step in &plan.steps {
                let (real, modelled) = (kernel.apply(step).await, model.carry_out(step));
                assert_eq!(real.is_ok(), modelled.is_ok(), "{step:?}: {real:?} {modelled:?}");
            }
            let (real, modelled) = (comparable(observe(&mut kernel).await), comparable(model.seen()));
            led += real.lookups.iter().filter(|lookup| lookup.egress == Egress::Tunnel).count();
            assert_eq!(real, modelled, "{plan}");
            assert!(diff(&wish, &model.state).is_empty());
        }
        assert!(led > 1, "packets were led into the tunnel only {led} times");
    });
}

/// Also for a kernel that was started with `ipv6.disable=1`, where there is nothing to switch on.
#[test]
fn without_ipv6_the_rest_comes_true_and_ipv6_follows_when_it_is_switched_on() {
    in_namespace(Needs::WireGuard, || async {
        let can_switch = std::path::Path::new("/proc/sys/net/ipv6/conf/all").exists();
        let switch = |value: u8| {
            for link in ["all", "default", "warren0"].map(|link| format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"))
            {
                run(&format!("echo {value} > {link}"));
            }
        };
        switch(1);
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &wish()).await;
        let seen = observe(&mut kernel).await;
        let lacking = if can_switch { Ability::LinkIpv6 } else { Ability::Ipv6 };
        assert_eq!(seen.lacking, BTreeSet::from([lacking]));
        assert_eq!(seen.link.unwrap().addresses, nets(&["100.64.0.1/32", "100.100.100.100/32"]));
        assert!(sh("ip route get 100.64.0.2").contains("dev warren0"));
        if can_switch {
            let leak = run("ip -6 route get fd7a:115c:a1e0::2");
            assert!(!leak.status.success(), "the overlay's IPv6 leads nowhere");
            switch(0);
            converge(&mut kernel, &wish()).await;
            let seen = observe(&mut kernel).await;
            assert_eq!(
                (seen.lacking, seen.link.unwrap().addresses),
                (BTreeSet::new(), wish().device.unwrap().addresses)
            );
            // And off again: the kernel itself takes the addresses.
            switch(1);
            converge(&mut kernel, &wish()).await;
        }
        converge(&mut kernel, &Desired::default()).await;
        assert_eq!(Observed { lacking: BTreeSet::new(), ..observe(&mut kernel).await }, Observed::default());
    });
}

#[test]
fn a_kernel_without_some_expressions_of_nftables_has_a_table_without_them() {
    in_namespace(Needs::Namespace, || async {
        // Where they are modules that nobody uses; nothing loads them again by itself in a guest.
        let modules = [
            ("nft_fib_inet", Ability::FindRoutes),
            ("nft_reject_inet", Ability::ResetFlows),
            ("nft_nat", Ability::Translate),
        ];
        let gone = modules.into_iter().filter(|(module, _)| {
            std::env::var_os("WARREN_REQUIRE_KERNEL").is_some() && run(&format!("rmmod {module}")).status.success()
        });
        let gone: Vec<_> = gone.collect();
        let mut kernel = LinuxKernel::new().unwrap();
        let wish = Desired { firewall: wish().firewall, ..Desired::default() };
        let converged = async {
            for _ in 0..4 {
                for step in diff(&wish, &observe(&mut kernel).await).steps {
                    // A step may find out what is lacking.
                    let _ = kernel.apply(&step).await;
                }
            }
            observe(&mut kernel).await
        };
        let seen = converged.await;
        for (module, _) in &gone {
            run(&format!("insmod $(ls /modules/*{module}.ko*)"));
        }
        println!("without {gone:?}: {:?}", seen.lacking);
        assert!(diff(&wish, &seen).is_empty());
        assert_eq!(seen.lacking, gone.into_iter().map(|(_, ability)| ability).collect());
    });
}

#[test]
fn a_host_without_nft_is_told_and_its_tunnel_works() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        // For this thread and its children alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate / 2>/dev/null || true; mount --bind /dev/null $(readlink -f $(command -v nft))");
        converge(&mut kernel, &wish()).await;
        let seen = observe(&mut kernel).await;
        assert_eq!(seen.lacking, BTreeSet::from([Ability::OtherFirewalls]));
        assert!(matches!(seen.firewall, ObservedFirewall::Table(_)));
    });
}

#[test]
fn a_kernel_gives_back_what_gateways_say() {
    in_namespace(Needs::Namespace, || async {
        let (said, has) = warren_linux::gateway_table_and_what_the_kernel_has().unwrap();
        assert_eq!(said, has);
    });
}

#[test]
fn ten_thousand_peers_are_applied_and_read_back() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        let wish = large_wish(10_000);

        let begun = Instant::now();
        let plan = diff(&wish, &observe(&mut kernel).await);
        apply(&mut kernel, plan.steps.clone()).await;
        let applied = begun.elapsed();
        let begun = Instant::now();
        let seen = observe(&mut kernel).await;
        let observed = begun.elapsed();

        println!("{} steps for 10,000 peers in {applied:.1?}, read back in {observed:.1?}", plan.steps.len());
        assert!(diff(&wish, &seen).is_empty());
        assert_eq!(sh("wg show warren0 peers").lines().count(), 10_000);

        let mut smaller = wish.clone();
        smaller.device.as_mut().unwrap().peers.remove(&public(77));
        let mut firewall = Firewall::clone(wish.firewall.as_ref().unwrap());
        firewall.hosts.remove(&overlay_address(77).addr());
        smaller.firewall = Some(Arc::new(firewall));
        let begun = Instant::now();
        let steps = converge(&mut kernel, &smaller).await;
        println!("{} steps for one peer fewer, and two looks, in {:.1?}", steps.len(), begun.elapsed());
        assert_eq!(sh("wg show warren0 peers").lines().count(), 9_999);
    });
}

fn large_wish(peers: u32) -> Desired {
    let mut wish = wish();
    let device = wish.device.as_mut().unwrap();
    device.peers = (1..=peers)
        .map(|number| {
            let endpoint = SocketAddr::from(([192, 0, 2, 1], 1024 + (number % 60_000) as u16));
            let allowed_ips = BTreeSet::from([overlay_address(number)]).into();
            let endpoint = DesiredEndpoint::Initial(endpoint);
            (public(number), Arc::new(PeerConfig { allowed_ips, endpoint, keepalive: 0 }))
        })
        .collect();
    let mut firewall = Firewall::clone(wish.firewall.as_ref().unwrap());
    firewall.hosts = (1..=peers).map(|number| (overlay_address(number).addr(), ClassId(1))).collect();
    firewall.classes = BTreeMap::from([(ClassId(1), Class::default())]);
    wish.firewall = Some(Arc::new(firewall));
    wish
}

fn overlay_address(number: u32) -> IpNet {
    IpNet::from(std::net::IpAddr::from((0x6440_0100 + number).to_be_bytes()))
}

/// All links, addresses, rules, routes, tables and WireGuard devices.
fn everything() -> BTreeMap<&'static str, Value> {
    let wireguard = json!(sh("wg show all dump | sort"));
    let commands = [
        ("addresses", "ip -j -d addr show"),
        ("rules", "ip -j -d rule show"),
        ("rules6", "ip -j -d -6 rule show"),
        ("routes", "ip -j -d route show table all"),
        ("routes6", "ip -j -d -6 route show table all"),
        ("nftables", "nft -j list ruleset"),
    ];
    let mut all: BTreeMap<_, _> =
        commands.into_iter().map(|(name, command)| (name, crate::common::json(command))).collect();
    all.insert("wireguard", wireguard);
    all
}

/// The same without what carries our tag, and without what the kernel adds for it in its own table.
fn without_ours(mut all: BTreeMap<&'static str, Value>) -> BTreeMap<&'static str, Value> {
    let table = own::ROUTE_TABLE.to_string();
    for (name, value) in &mut all {
        match value {
            Value::Array(items) => items.retain(|item| {
                let priority = item["priority"].as_u64().unwrap_or_default();
                let ours = item["ifname"] == own::LINK
                    || (name.starts_with("rules") && (5300..=5399).contains(&priority))
                    || item["table"] == table.as_str()
                    || (item["dev"] == own::LINK && item["table"] == "local" && item["protocol"] == "kernel")
                    || (item["dev"] == own::LINK && item["dst"] == "ff00::/8");
                !ours
            }),
            Value::Object(ruleset) => {
                let objects = ruleset["nftables"].as_array_mut().unwrap();
                objects.retain(|object| {
                    let (_, object) = object.as_object().unwrap().iter().next().unwrap();
                    let table = if object["table"].is_null() { &object["name"] } else { &object["table"] };
                    !(object["family"] == "inet" && table == own::NFT_TABLE)
                });
            }
            Value::String(dump) => {
                *dump =
                    dump.lines().filter(|line| !line.starts_with(own::LINK)).map(|line| format!("{line}\n")).collect();
            }
            _ => {}
        }
    }
    all
}

/// Without what only the kernel can know: its number for the link, and what it sent by itself.
fn comparable(mut observed: Observed) -> Observed {
    observed.forwarding = ObservedForwarding::default();
    // What stands for a default route is an address of the host itself, which the table of those decides.
    observed.lookups.retain(|lookup| !lookup.to.is_loopback() && lookup.to != std::net::Ipv4Addr::new(0, 0, 0, 1));
    for lookup in &mut observed.lookups {
        if let Egress::Refused { error, .. } = &mut lookup.egress {
            // Each family has its own words.
            error.clear();
        }
    }
    for peer in observed.device.iter_mut().flat_map(|device| device.peers.values_mut()) {
        peer.tx_bytes = 0;
    }
    if let Some(link) = &mut observed.link {
        link.index = 0;
    }
    observed.rules.sort();
    observed
}

/// Routes and rules that lead the overlay into the tunnel, which chance seldom puts together.
fn lead_the_overlay_in(wish: &mut Desired) {
    let packets = RulePackets::NotMarked { mark: own::MARK_BYPASS, mask: u32::MAX };
    let rule = |ipv6| Rule { priority: own::RULE_OVERLAY, ipv6, packets, action: RuleAction::Ours };
    wish.rules = [false, true].map(rule).into();
    let destination = net("100.64.0.0/10");
    wish.routes.retain(|route| route.destination != destination);
    if wish.device.is_some() {
        wish.routes.insert(Route { destination, target: RouteTarget::Tunnel, metric: 100 });
    }
}

/// Wishes whose parts come from small pools, so that one differs from the next in every way.
fn any_wish() -> impl Strategy<Value = Desired> {
    let device = prop::option::weighted(0.85, any_device());
    let routes = prop::collection::btree_set(any_route(), 0..6);
    let rules = prop::collection::btree_set(any_rule(), 0..4);
    let firewall = prop::option::weighted(0.7, any_firewall().prop_map(Arc::new));
    (device, routes, rules, firewall).prop_map(|(device, routes, rules, firewall)| {
        let mut places = BTreeSet::new();
        let has_link = device.is_some();
        let routes = routes.into_iter().filter(|route: &Route| {
            (has_link || route.target != RouteTarget::Tunnel) && places.insert((route.destination, route.metric))
        });
        Desired { routes: routes.collect(), device, rules, firewall, ..Desired::default() }
    })
}

fn any_device() -> impl Strategy<Value = Device> {
    let owners = prop::collection::btree_map(0u8..12, 0u32..6, 0..10);
    let peers = prop::collection::btree_map(0u32..6, (0u8..4, prop::sample::select(vec![0u16, 25])), 0..6);
    let addresses = prop::collection::btree_set(0u8..3, 1..3);
    (owners, peers, addresses, 1u8..3, 40_000u16..40_003, prop::sample::select(vec![1280u32, 1400])).prop_map(
        |(owners, peers, addresses, key, listen_port, mtu)| Device {
            private_key: private(key),
            listen_port,
            fwmark: own::MARK_BYPASS,
            mtu,
            addresses: addresses.into_iter().map(|number| net(&format!("100.64.9.{number}/32"))).collect(),
            peers: peers
                .into_iter()
                .map(|(number, (endpoint, keepalive))| {
                    let ips = owners.iter().filter(|(_, owner)| **owner == number).map(|(ip, _)| match ip % 3 {
                        0 => net(&format!("100.64.0.{ip}/32")),
                        1 => net(&format!("fd7a:115c:a1e0::{ip:x}/128")),
                        _ => net(&format!("10.{ip}.0.0/16")),
                    });
                    let address = SocketAddr::from(([192, 0, 2, endpoint], 7));
                    let endpoint = match endpoint {
                        0 => DesiredEndpoint::Leave,
                        1 => DesiredEndpoint::Initial(address),
                        _ => DesiredEndpoint::Move(address),
                    };
                    (public(number), Arc::new(PeerConfig { allowed_ips: ips.collect(), endpoint, keepalive }))
                })
                .collect(),
        },
    )
}

fn any_route() -> impl Strategy<Value = Route> {
    let destination = prop::sample::select(vec!["100.64.0.0/10", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::/0"]);
    let target = prop::sample::select(vec![RouteTarget::Tunnel, RouteTarget::Unreachable, RouteTarget::Throw]);
    (destination, target, prop::sample::select(vec![100u32, 200])).prop_map(|(destination, target, metric)| Route {
        destination: net(destination),
        target,
        metric,
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let mark = own::MARK_BYPASS;
    let packets = prop::sample::select(vec![
        RulePackets::All,
        RulePackets::Marked { mark, mask: 0x0f00_0000 },
        RulePackets::NotMarked { mark, mask: u32::MAX },
    ]);
    let action = prop::sample::select(vec![RuleAction::Main, RuleAction::Ours]);
    (5300u32..5304, any::<bool>(), packets, action).prop_map(|(priority, ipv6, packets, action)| Rule {
        priority,
        ipv6,
        packets,
        action,
    })
}

#[test]
fn a_step_that_fails_names_the_operation_and_the_object() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        observe(&mut kernel).await;
        let peer = Arc::new(PeerConfig::default());
        for (step, operation) in [
            (Step::Link(LinkStep::SetMtu(1280)), "set the MTU of warren0 to 1280"),
            (Step::Link(LinkStep::AddAddress(net("100.64.0.1/32"))), "add address 100.64.0.1/32 to warren0"),
            (Step::Peer(public(1), PeerStep::Add(peer)), "add peer ["),
            (
                Step::Route(RouteStep::Add(Route {
                    destination: net("10.0.0.0/8"),
                    target: RouteTarget::Tunnel,
                    metric: 1,
                })),
                "add route 10.0.0.0/8 to table 22337",
            ),
        ] {
            let error = kernel.apply(&step).await.unwrap_err();
            assert!(error.operation.starts_with(operation), "{error}");
            assert!(!error.reason.is_empty());
        }
        assert_eq!(observe(&mut kernel).await.firewall, ObservedFirewall::Absent);
    });
}
