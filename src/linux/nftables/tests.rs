//! The table as a value: what `nft` itself makes of it is proven on a kernel, in `tests/kernel`.

use std::collections::{BTreeMap, BTreeSet};

use warren_core::plan::{
    Admit, Class, ClassId, Firewall, FirewallOptions, Lacks, PortRange, Probes, Protocol, RuleId, Served,
};
use warren_core::types::IpNet;

use super::instruction::{Code, Instruction, SetName};
use super::lower::lower;
use super::object::{Command, Document, Object};
use super::{batch, read, table, update};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn admit(destination: &str, protocol: Protocol, first: u16, last: u16) -> Admit {
    Admit { destination: net(destination), protocol, ports: PortRange { first, last } }
}

fn firewall() -> Firewall {
    let rights = BTreeSet::from([
        admit("10.0.0.0/8", Protocol::TCP, 0, 1023),
        admit("10.1.0.0/16", Protocol::TCP, 443, 443),
        admit("fd00::1/128", Protocol::UDP, 53, 53),
    ]);
    Firewall {
        served: Served {
            listed: BTreeSet::from([net("10.0.0.0/8"), net("fd00::1/128")]),
            internet: BTreeSet::from([net("8.0.0.0/7"), net("2600::/12")]),
        },
        tunnelled: BTreeSet::from([net("100.64.0.0/10"), net("fd7a:115c:a1e0::/48")]),
        elsewhere: BTreeSet::from([net("100.100.0.0/16"), net("fd7a:115c:a1e0:9::/64")]),
        classes: BTreeMap::from([(ClassId(7), Class { rules: BTreeMap::from([(RuleId(9), rights)]) })]),
        hosts: BTreeMap::from([("100.64.0.2".parse().unwrap(), ClassId(7))]),
        subnets: BTreeMap::from([(net("192.168.0.0/24"), ClassId(7))]),
        probes: Some(Probes { wireguard_port: 41741, probe_port: 41743, relay_port: 41742 }),
        options: FirewallOptions::default(),
        lacks: Lacks::default(),
    }
}

fn listing(objects: &[Object]) -> String {
    serde_json::to_string(&Document { nftables: objects.to_vec() }).unwrap()
}

fn rules_of(objects: &[Object], chain: &str) -> Vec<String> {
    let rules = objects.iter().filter_map(|object| match object {
        Object::Rule(rule) if rule.chain == chain => Some(serde_json::to_string(&rule.expr).unwrap()),
        _ => None,
    });
    rules.collect()
}

#[test]
fn a_firewall_is_known_again_in_its_own_table() {
    let chosen = FirewallOptions { shared_range: true, lan_may_open: true, log_denied: Some(5741) };
    let open = Firewall { options: chosen, ..firewall() };
    let lacks = Lacks { reset: true, routes: true };
    let poor = Firewall { lacks, ..firewall() };
    let poor_and_open = Firewall { lacks, ..open.clone() };
    for firewall in [Firewall::default(), firewall(), open, poor, poor_and_open] {
        let listed = read::read(&listing(&table::objects(&firewall, true)), BTreeMap::new());
        assert_eq!(listed, Ok(read::Listed { firewall, flows_judged: false }));
    }
}

#[test]
fn a_table_that_lacks_any_of_its_objects_is_not_ours() {
    let objects = table::objects(&firewall(), true);
    for missing in 0..objects.len() {
        let mut less = objects.clone();
        let gone = less.remove(missing);
        assert_ne!(
            read::read(&listing(&less), BTreeMap::new()).map(|listed| listed.firewall),
            Ok(firewall()),
            "{gone:?}"
        );
    }
}

#[test]
fn an_object_of_a_kind_we_never_write_is_named() {
    let limit = r#"{"nftables":[{"limit":{"family":"inet","table":"warren","name":"x"}}]}"#;
    assert!(read::read(limit, BTreeMap::new()).unwrap_err().contains("limit"));
}

#[test]
fn every_chain_that_judges_ends_in_a_drop() {
    let objects = table::objects(&firewall(), false);
    for chain in ["overlay", "arrive", "forward", "output"] {
        let rules = rules_of(&objects, chain);
        assert!(rules.last().unwrap().contains(r#"{"drop":null}"#), "{chain}: {rules:?}");
    }
    // A class accepts or falls back to the base chain, whose next rule drops.
    let class = rules_of(&objects, "class_0000000000000007");
    assert!(class.iter().all(|rule| rule.ends_with(r#"{"accept":null}]"#)), "{class:?}");
    let arrive = rules_of(&objects, "arrive");
    assert!(arrive[0].contains(r#"{"jump":{"target":"overlay"}}"#) && arrive[2].contains("denied_by_policy"));
}

#[test]
fn overlapping_rights_come_in_sets_of_their_own() {
    let objects = table::objects(&firewall(), false);
    let class = rules_of(&objects, "class_0000000000000007");
    // Two layers and ICMP for IPv4, one layer and ICMP for IPv6.
    assert_eq!(class.len(), 5, "{class:#?}");
    assert!(class[0].contains("10.0.0.0") && !class[0].contains("10.1.0.0"));
    assert!(class[1].contains("10.1.0.0") && !class[1].contains("10.0.0.0"));
    assert!(class[2].contains("10.0.0.0") && !class[2].contains("10.1.0.0"), "the widest destinations are enough");
}

#[test]
fn an_update_touches_only_what_differs() {
    let from = firewall();
    assert_eq!(update::update(&from, &from), []);

    let mut to = firewall();
    to.hosts.insert("100.64.0.3".parse().unwrap(), ClassId(7));
    let commands = update::update(&from, &to);
    let text = format!("{commands:?}");
    assert_eq!(commands.len(), 1, "{text}");
    assert!(text.contains("hosts4") && text.contains("100.64.0.3") && !text.contains("100.64.0.2"), "{text}");
}

#[test]
fn a_source_that_changes_its_class_leaves_the_old_one_in_the_same_transaction() {
    let from = firewall();
    let mut to = firewall();
    let class = to.classes.remove(&ClassId(7)).unwrap();
    to.classes.insert(ClassId(8), class);
    to.hosts.values_mut().chain(to.subnets.values_mut()).for_each(|id| *id = ClassId(8));

    let commands = update::update(&from, &to);

    let place = |wanted: &dyn Fn(&Command) -> bool| commands.iter().position(wanted).unwrap();
    let is_chain = |object: &Object, name: &str| matches!(object, Object::Chain(chain) if chain.name == name);
    let new = place(&|c| matches!(c, Command::Add(object) if is_chain(object, "class_0000000000000008")));
    let leaves = place(&|c| matches!(c, Command::Delete(Object::Element(_))));
    let comes = place(&|c| matches!(c, Command::Add(Object::Element(_))));
    let old = place(&|c| matches!(c, Command::Delete(object) if is_chain(object, "class_0000000000000007")));
    assert!(new < leaves && leaves < comes && comes < old);
    let deleted =
        commands.iter().filter_map(|c| if let Command::Delete(Object::Counter(c)) = c { Some(&c.name) } else { None });
    assert_eq!(deleted.collect::<Vec<_>>(), ["flows_judged"], "the rule lives on; what is open is judged again");
}

#[test]
fn replacing_starts_from_nothing_whatever_is_there() {
    let commands = update::replace(&firewall());
    assert_eq!(commands[..2], update::delete()[..]);
    assert_eq!(commands.len(), 2 + table::objects(&firewall(), true).len());
}

fn lowered(objects: &[Object], chain: &str, place: usize) -> super::lower::Lowered {
    let mut rules = objects.iter().filter_map(|object| match object {
        Object::Rule(rule) if rule.chain == chain => Some(rule),
        _ => None,
    });
    lower(rules.nth(place).unwrap(), 7).unwrap()
}

#[test]
fn a_rule_asks_for_what_it_takes_for_granted_and_lays_its_key_side_by_side() {
    use Instruction::{Compare, Count, LoadMeta, LoadPayload, Lookup, Verdict};
    let is = |value: u8| Compare { is_equal: true, value: vec![value] };

    let lowered = lowered(&table::objects(&firewall(), true), "class_0000000000000007", 0);

    let expected = [
        LoadMeta { key: 15, register: 8 },
        is(2),
        LoadPayload { base: 1, offset: 16, length: 4, register: 8 },
        LoadMeta { key: 16, register: 9 },
        LoadPayload { base: 2, offset: 2, length: 2, register: 10 },
        Lookup { set: SetName::Anonymous(7), is_inverted: false },
        Count("rule_0000000000000009".to_owned()),
        Verdict(Code::Accept, None),
    ];
    assert_eq!(lowered.instructions, expected);
    let first = vec![10, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
    let last = vec![10, 255, 255, 255, 6, 0, 0, 0, 3, 255, 0, 0];
    assert_eq!(lowered.sets[0].items, [(first, last)]);
}

#[test]
fn a_prefix_of_whole_bytes_is_compared_as_it_is_and_any_other_under_a_mask() {
    use Instruction::{Compare, Mask};
    let objects = table::objects(&firewall(), true);
    let (v4, v6) = (lowered(&objects, "arrive", 4).instructions, lowered(&objects, "arrive", 5).instructions);
    assert!(v4.contains(&Mask(vec![255, 192, 0, 0])), "{v4:?}");
    assert!(v4.contains(&Compare { is_equal: true, value: vec![100, 64, 0, 0] }), "{v4:?}");
    let overlay = vec![0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0];
    assert!(v6.contains(&Compare { is_equal: true, value: overlay }), "{v6:?}");
}

#[test]
fn everything_that_we_make_can_be_written_and_nothing_else() {
    let chosen = FirewallOptions { shared_range: false, lan_may_open: true, log_denied: Some(5741) };
    for options in [FirewallOptions::default(), chosen] {
        let firewall = Firewall { options, ..firewall() };
        assert!(batch::write(&update::replace(&firewall), 0).is_ok());
    }
    let mut strange = table::objects(&firewall(), true);
    for object in &mut strange {
        if let Object::Rule(rule) = object {
            rule.expr = vec![nftables::stmt::Statement::Masquerade(None)].into();
        }
    }
    let commands: Vec<Command> = strange.into_iter().map(Command::Add).collect();
    let error = batch::write(&commands, 0).map(drop).unwrap_err();
    assert!(error.0.contains("Masquerade"), "{error:?}");
}

#[test]
fn a_transaction_begins_ends_and_has_its_last_change_acknowledged() {
    let (bytes, last, about) = batch::write(&update::delete(), 6).unwrap().finish();
    let kinds: Vec<(u16, u16)> =
        crate::netlink::messages(&bytes).map(|message| (message.message_type(), message.flags())).collect();
    assert_eq!(kinds, [(16, 1), (10 << 8, 0x401), ((10 << 8) | 2, 1 | 4), (17, 1)]);
    assert_eq!((last, about[2].as_str()), (2, "table warren"));
}
