//! Our nftables table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use warren_core::plan::own;
use warren_core::plan::{
    Admit, Class, ClassId, Firewall, FirewallStep, ObservedFirewall, PortRange, Probes, Protocol, RuleId, Served,
    SourceNat, Step,
};
use warren_core::types::IpNet;
use warren_linux::LinuxKernel;

use crate::common::*;

fn admit(destination: &str, protocol: Protocol, first: u16, last: u16) -> Admit {
    Admit { destination: net(destination), protocol, ports: PortRange { first, last } }
}

/// Everything that can be said in a table, overlapping rights among it.
fn firewall() -> Firewall {
    let web = BTreeSet::from([
        admit("100.64.0.1/32", Protocol::TCP, 80, 80),
        admit("10.0.0.0/8", Protocol::TCP, 0, 1023),
        admit("10.1.0.0/16", Protocol::TCP, 443, 8443),
        admit("10.1.2.0/24", Protocol::TCP, 443, 443),
        admit("fd7a:115c:a1e0::1/128", Protocol::UDP, 53, 53),
    ]);
    let all = BTreeSet::from([
        admit("0.0.0.0/0", Protocol(47), 0, u16::MAX),
        admit("0.0.0.0/0", Protocol::TCP, 0, u16::MAX),
        admit("::/0", Protocol::ICMPV6, 0, u16::MAX),
    ]);
    let one = Class { rules: BTreeMap::from([(RuleId(1), web.clone())]) };
    let both = Class { rules: BTreeMap::from([(RuleId(1), web), (RuleId(u64::MAX), all)]) };
    Firewall {
        served: Served {
            listed: nets(&["100.64.0.1/32", "10.0.0.0/8", "fd7a:115c:a1e0::1/128", "fd00::/64", "fd00:0:0:1::/64"]),
            internet: nets(&["8.0.0.0/7", "11.0.0.0/8", "2600::/12", "2610::/12"]),
        },
        tunnelled: nets(&["100.64.0.0/10", "fd7a:115c:a1e0::/48", "10.9.0.0/16"]),
        classes: BTreeMap::from([(ClassId(1), one), (ClassId(0xabc), both), (ClassId(3), Class::default())]),
        hosts: BTreeMap::from([
            ("100.64.0.2".parse().unwrap(), ClassId(1)),
            ("100.64.0.3".parse().unwrap(), ClassId(0xabc)),
            ("fd7a:115c:a1e0::2".parse().unwrap(), ClassId(1)),
            ("fd7a:115c:a1e0::3".parse().unwrap(), ClassId(3)),
        ]),
        subnets: BTreeMap::from([
            (net("192.168.0.0/24"), ClassId(1)),
            (net("192.168.1.0/24"), ClassId(1)),
            (net("fd01::/64"), ClassId(0xabc)),
        ]),
        elsewhere: nets(&["100.100.0.0/16", "100.64.9.0/24", "fd7a:115c:a1e0:9::/64"]),
        carries: Some(SourceNat::ToInternet),
        probes: Some(Probes { wireguard_port: 41741, probe_port: 41743, relay_port: 41742 }),
        resolver_port: Some(own::RESOLVER_PORT),
        ..Firewall::default()
    }
}

async fn firewall_of(kernel: &mut LinuxKernel) -> ObservedFirewall {
    observe(kernel).await.firewall
}

#[test]
fn a_table_is_read_back_as_it_was_written() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Absent);

        for wish in [firewall(), Firewall::default(), firewall()] {
            let wish = Arc::new(wish);
            apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(wish.clone()))]).await;
            assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(wish));
        }

        apply(&mut kernel, [Step::Firewall(FirewallStep::Delete), Step::Firewall(FirewallStep::Delete)]).await;
        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Absent);
    });
}

#[test]
fn any_table_becomes_any_other_by_its_differences() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(1), ..Config::default() });
        let mut from = Arc::new(Firewall::default());
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(from.clone()))]).await;

        for _ in 0..12 {
            let to = Arc::new(any_firewall().new_tree(&mut runner).unwrap().current());
            apply(&mut kernel, [Step::Firewall(FirewallStep::Update { from, to: to.clone() })]).await;
            assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(to.clone()));
            from = to;
        }
    });
}

#[test]
fn counters_survive_an_update_of_the_elements() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = sharing();
        let from = Arc::new(firewall());
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(from.clone()))]).await;
        // The loopback dressed up as our link would need WireGuard; a counter can be made to count by hand.
        sh("nft insert rule inet warren arrive counter name denied_by_policy");
        sh("ping -c 1 -W 5 127.0.0.1");
        sh(
            "nft delete rule inet warren arrive handle $(nft -a list chain inet warren arrive | sed -n 's/.*counter name .denied_by_policy. # handle //p')",
        );
        let counted =
            json("nft -j list counter inet warren denied_by_policy")["nftables"][1]["counter"]["packets"].clone();
        assert!(counted.as_u64().unwrap() > 0);

        let mut to = firewall();
        to.hosts.insert("100.64.0.4".parse().unwrap(), ClassId(1));
        to.subnets.remove(&net("192.168.0.0/24"));
        let to = Arc::new(to);
        apply(&mut kernel, [Step::Firewall(FirewallStep::Update { from, to: to.clone() })]).await;

        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(to));
        let after =
            json("nft -j list counter inet warren denied_by_policy")["nftables"][1]["counter"]["packets"].clone();
        assert_eq!(after, counted);
    });
}

#[test]
fn whatever_somebody_changes_in_the_table_is_seen() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = sharing();
        let wish = Arc::new(firewall());
        for change in [
            "nft insert rule inet warren overlay accept",
            "nft add rule inet warren arrive iifname warren0 accept",
            "nft flush chain inet warren forward",
            "nft add rule inet warren class_0000000000000001 accept",
            "nft add rule inet warren class_0000000000000003 ip daddr 10.0.0.0/8 accept",
            "nft insert rule inet warren probes udp dport 41743 accept",
            "nft flush chain inet warren untracked",
            "nft add chain inet warren mine",
            "nft add counter inet warren mine",
            "nft add set inet warren mine '{ type ipv4_addr; }'",
            "nft add set inet warren mine '{ type ipv4_addr . inet_service; flags timeout; }'",
            "nft add chain inet warren sneaky '{ type filter hook input priority -400; policy accept; }'",
            "nft chain inet warren arrive '{ policy drop; }'",
            "nft add element inet warren hosts4 '{ 100.64.0.77 : accept }'",
            "nft add element inet warren subnets4 '{ 10.0.0.5-10.0.0.9 : goto class_0000000000000001 }'",
        ] {
            apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(wish.clone()))]).await;
            assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(wish.clone()));
            sh(change);
            assert!(matches!(firewall_of(&mut kernel).await, ObservedFirewall::Altered(_)), "{change}");
        }

        // A change that says something is read as what it says.
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(wish.clone()))]).await;
        sh("nft delete element inet warren hosts4 '{ 100.64.0.2 }'");
        let mut less = firewall();
        less.hosts.remove(&"100.64.0.2".parse().unwrap());
        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(Arc::new(less)));
    });
}

#[test]
fn an_update_from_what_is_not_there_fails_and_changes_nothing() {
    in_namespace(Needs::Namespace, || async {
        use warren_core::plan::Kernel;

        let mut kernel = LinuxKernel::new().unwrap();
        let update =
            |from: Firewall, to: Firewall| Step::Firewall(FirewallStep::Update { from: from.into(), to: to.into() });
        let error = kernel.apply(&update(Firewall::default(), firewall())).await.unwrap_err();
        assert_eq!(error.operation, "update nftables table inet warren");
        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Absent);

        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(Arc::new(Firewall::default())))]).await;
        assert!(kernel.apply(&update(firewall(), Firewall::default())).await.is_err());
        assert_eq!(firewall_of(&mut kernel).await, ObservedFirewall::Table(Arc::new(Firewall::default())));
    });
}

pub(crate) fn any_firewall() -> impl Strategy<Value = Firewall> {
    let admit = (any_net(), prop::sample::select(vec![1u8, 6, 17, 47, 58, 132]), 0u16..40, 0u16..40).prop_map(
        |(destination, protocol, a, b)| {
            let ports = if matches!(protocol, 6 | 17 | 132) {
                PortRange { first: a.min(b), last: a.max(b) }
            } else {
                PortRange::ALL
            };
            Admit { destination, protocol: Protocol(protocol), ports }
        },
    );
    let rights = prop::collection::btree_set(admit, 1..12);
    let class = prop::collection::btree_map((0u64..6).prop_map(RuleId), rights, 0..3).prop_map(|rules| Class { rules });
    let classes = prop::collection::btree_map((0u64..6).prop_map(ClassId), class, 1..5);
    let sources = prop::collection::btree_map((0u8..40, any::<bool>()), any::<prop::sample::Index>(), 0..12);
    let subnets = prop::collection::btree_map(any_net(), any::<prop::sample::Index>(), 0..6);
    let served = (prop::collection::btree_set(any_net(), 0..6), prop::collection::btree_set(any_net(), 0..3));
    let elsewhere = prop::collection::btree_set(any_net(), 0..3);
    let probes = prop::option::of(40_000_u16..40_003);
    let carries =
        prop::sample::select(vec![None, Some(SourceNat::All), Some(SourceNat::ToInternet), Some(SourceNat::Nothing)]);
    let sets = (subnets, served, elsewhere, carries);
    (classes, sources, sets, probes).prop_map(|(classes, sources, (subnets, served, elsewhere, carries), probes)| {
        let ids: Vec<ClassId> = classes.keys().copied().collect();
        let hosts = sources.into_iter().map(|((number, six), class)| {
            let text = if six { format!("fd7a:115c:a1e0::{number:x}") } else { format!("100.64.0.{number}") };
            (text.parse().unwrap(), *class.get(&ids))
        });
        let nets = disjoint(subnets.keys().copied());
        Firewall {
            hosts: hosts.collect(),
            subnets: nets.into_iter().map(|net| (net, *subnets[&net].get(&ids))).collect(),
            served: Served { listed: disjoint(served.0.into_iter()), internet: disjoint(served.1.iter().copied()) },
            tunnelled: disjoint(served.1.into_iter()),
            elsewhere: disjoint(elsewhere.into_iter()),
            classes,
            probes: probes.map(|port| Probes { wireguard_port: port, probe_port: 2, relay_port: 3 }),
            resolver_port: probes,
            carries,
            ..Firewall::default()
        }
    })
}

/// Prefixes that nest often.
fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (0u8..4, 0u8..4, prop::sample::select(vec![0u8, 8, 9, 16, 24, 32]))
        .prop_map(|(a, b, length)| net(&format!("10.{a}.{b}.1/{length}")).trunc());
    let v6 = (0u8..4, prop::sample::select(vec![0u8, 16, 64, 65, 128]))
        .prop_map(|(a, length)| net(&format!("fd00:0:0:{a}::1/{length}")).trunc());
    prop_oneof![v4, v6]
}

fn disjoint(nets: impl Iterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let mut kept: BTreeSet<IpNet> = BTreeSet::new();
    for net in nets {
        if !kept.iter().any(|other| other.contains(&net) || net.contains(other)) {
            kept.insert(net);
        }
    }
    kept
}
