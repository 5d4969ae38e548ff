//! The table as a value, and its objects as bytes: what a kernel makes of them is proven on one, in `tests/kernel`.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::NetlinkBuffer;
use warren_core::plan::own;
use warren_core::plan::{
    Admit, Class, ClassId, Firewall, FirewallOptions, Lacks, PortRange, Probes, Protocol, RuleId, Served, SourceNat,
};
use warren_core::types::IpNet;

use super::super::attributes::Attributes;
use super::super::netfilter::messages;
use super::batch;
use super::elements::Contents;
use super::expression::{Base, Comparison, Ct, Data, Direction, Expression, Meta, Register, Verdict};
use super::object::{
    self, ANONYMOUS_NAME, AnonymousSet, AnySet, Chain, ChainType, Counter, Hook, Object, Part, Policy, Rule, Set,
};
use super::read::{self, Listing};
use super::table::{self, Family};
use super::trial;
use super::update::{self, Command, Elements};

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
        by_exit: BTreeSet::new(),
        beside_exit: None,
        carries: Some(SourceNat::All),
        elsewhere: BTreeSet::from([net("100.100.0.0/16"), net("fd7a:115c:a1e0:9::/64")]),
        classes: BTreeMap::from([(ClassId(7), Class { rules: BTreeMap::from([(RuleId(9), rights)]) })]),
        hosts: BTreeMap::from([("100.64.0.2".parse().unwrap(), ClassId(7))]),
        subnets: BTreeMap::from([(net("192.168.0.0/24"), ClassId(7))]),
        probes: Some(Probes { wireguard_port: 41741, probe_port: 41743, relay_port: 41742 }),
        resolver_port: Some(own::RESOLVER_PORT),
        options: FirewallOptions::default(),
        lacks: Lacks::default(),
    }
}

/// The listing of a table with these objects, filled as the firewall says.
fn listing(objects: &[Object], firewall: &Firewall) -> Listing {
    let mut listing = Listing::default();
    for object in objects.iter().cloned() {
        match object {
            Object::Table => {}
            Object::Chain(chain) => listing.chains.push(chain),
            Object::Set(set) => listing.sets.push(set),
            Object::Counter(name) => listing.counters.push(Counter { name, packets: 7, bytes: 700 }),
            Object::Rule(rule) => listing.rules.push(rule),
        }
    }
    for family in Family::BOTH {
        for (name, holds) in table::SETS {
            let set = holds.set(name, family);
            let Elements::Prefixes(prefixes) = table::contents(firewall, name, family) else { continue };
            let contents: Contents = prefixes.into_iter().map(|(net, class)| (net, class.map(table::goto))).collect();
            if listing.sets.contains(&set) {
                listing.contents.insert(set.name, contents);
            }
        }
    }
    listing
}

fn rules_of<'a>(objects: &'a [Object], chain: &str) -> Vec<&'a Rule> {
    let rules = objects.iter().filter_map(|object| match object {
        Object::Rule(rule) if rule.chain == chain => Some(rule),
        _ => None,
    });
    rules.collect()
}

fn ends_with(rule: &Rule, verdict: &Verdict) -> bool {
    rule.expressions.last() == Some(&Expression::Decide { verdict: verdict.clone() })
}

#[test]
fn a_firewall_is_known_again_in_its_own_table() {
    let chosen = FirewallOptions { shared_range: true, lan_may_open: true, log_denied: Some(5741) };
    let open = Firewall { options: chosen, ..firewall() };
    let lacks = Lacks { reset: true, routes: true };
    let poor = Firewall { lacks, ..firewall() };
    let poor_and_open = Firewall { lacks, ..open.clone() };
    let by_exit = BTreeSet::from([net("0.0.0.0/1"), net("128.0.0.0/2"), net("::/0")]);
    let beside_exit = Some(BTreeSet::from([net("172.17.0.0/16")]));
    let leaving = Firewall { by_exit, beside_exit, ..firewall() };
    let leaving_alone = Firewall { beside_exit: Some(BTreeSet::new()), lacks, ..Firewall::default() };
    for firewall in [Firewall::default(), firewall(), open, poor, poor_and_open, leaving, leaving_alone] {
        let listed = read::read(listing(&table::objects(&firewall), &firewall));
        assert_eq!(listed, Ok(read::Listed { firewall, flows_judged: false }));
    }
}

#[test]
fn a_table_that_lacks_any_of_its_objects_is_not_ours() {
    let objects = table::objects(&firewall());
    for missing in 1..objects.len() {
        let mut less = objects.clone();
        let gone = less.remove(missing);
        let listed = read::read(listing(&less, &firewall())).map(|listed| listed.firewall);
        assert_ne!(listed, Ok(firewall()), "{gone:?}");
    }
}

#[test]
fn every_chain_that_judges_ends_in_a_drop() {
    let objects = table::objects(&firewall());
    for chain in ["overlay", "arrive", "forward", "output"] {
        let rules = rules_of(&objects, chain);
        assert!(ends_with(rules.last().unwrap(), &Verdict::Drop), "{chain}: {rules:?}");
    }
    // A class accepts or falls back to the base chain, whose next rule drops.
    let class = rules_of(&objects, "class_0000000000000007");
    assert!(class.iter().all(|rule| ends_with(rule, &Verdict::Accept)), "{class:?}");
    let arrive = rules_of(&objects, "arrive");
    assert!(ends_with(arrive[0], &Verdict::Jump("overlay".to_owned())));
    assert!(arrive[2].expressions.contains(&Expression::Count { counter: "denied_by_policy".to_owned() }));
}

#[test]
fn what_goes_on_with_a_flow_is_accepted_at_once_only_where_nothing_further_down_would_drop_it() {
    let objects = table::objects(&firewall());
    let overlay = rules_of(&objects, "overlay");
    let compare = |op, value: &[u8]| Expression::Compare { register: Register::FIRST, op, value: Data(value.to_vec()) };
    let established = Data(2_u32.to_ne_bytes().to_vec());
    for (rule, set, plain) in [(overlay[0], "served4", 0x45), (overlay[1], "served6", 0)] {
        let asked = |expression| assert!(rule.expressions.contains(&expression), "{expression:?}: {rule:?}");
        asked(compare(Comparison::Equal, &[plain]));
        asked(Expression::LoadCt { to: Register::FIRST, key: Ct::State, direction: None });
        let (first, flip) = (Register::FIRST, Data(vec![0; 4]));
        asked(Expression::Bitwise { from: first, to: first, length: 4, mask: established.clone(), flip });
        asked(Expression::Lookup { set: set.to_owned(), id: None, key: Register::FIRST, is_inverted: false });
        assert!(ends_with(rule, &Verdict::Accept));
    }
    let answers = |rule: &&Rule| ends_with(rule, &Verdict::Accept);
    let next = overlay.iter().skip(2).position(answers).unwrap();
    assert!(next > 0, "whatever else is known is asked for its destination first");
}

/// The first addresses of what a rule's set is for.
fn first_addresses(rule: &Rule) -> Vec<&[u8]> {
    rule.sets[0].items.iter().map(|(first, _)| &first[..4]).collect()
}

#[test]
fn overlapping_rights_come_in_sets_of_their_own() {
    let objects = table::objects(&firewall());
    let class = rules_of(&objects, "class_0000000000000007");
    // Two layers and ICMP for IPv4, one layer and ICMP for IPv6.
    assert_eq!(class.len(), 5, "{class:#?}");
    assert_eq!(first_addresses(class[0]), [[10, 0, 0, 0]]);
    assert_eq!(first_addresses(class[1]), [[10, 1, 0, 0]]);
    assert_eq!(first_addresses(class[2]), [[10, 0, 0, 0]], "the widest destinations are enough");
}

#[test]
fn an_update_touches_only_what_differs() {
    let from = firewall();
    assert_eq!(update::update(&from, &from), []);

    let mut to = firewall();
    to.hosts.insert("100.64.0.3".parse().unwrap(), ClassId(7));
    let set = table::Holds::AddressesThatLead.set("hosts", Family::V4);
    let elements = Elements::Prefixes(vec![(net("100.64.0.3/32"), Some(ClassId(7)))]);
    assert_eq!(update::update(&from, &to), [Command::AddElements(set, elements)]);
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
    let is_new = |c: &Command| *c == Command::Add(Object::Chain(table::class_chain(ClassId(8))));
    let is_old = |c: &Command| *c == Command::DeleteChain(table::class_name(ClassId(7)));
    let leaves = place(&|c| matches!(c, Command::DeleteElements(..)));
    let comes = place(&|c| matches!(c, Command::AddElements(..)));
    assert!(place(&is_new) < leaves && leaves < comes && comes < place(&is_old));
    let deleted =
        commands.iter().filter_map(|c| if let Command::DeleteCounter(name) = c { Some(name.as_str()) } else { None });
    assert_eq!(deleted.collect::<Vec<_>>(), ["flows_judged"], "the rule lives on; what is open is judged again");
}

#[test]
fn replacing_starts_from_nothing_whatever_is_there() {
    let commands = update::replace(&firewall());
    assert_eq!(commands[..2], update::delete()[..]);
    let filled = commands.iter().filter(|command| matches!(command, Command::AddElements(..))).count();
    assert_eq!(commands.len(), 2 + table::objects(&firewall()).len() + filled);
    assert_eq!(filled, 10, "all sets but those of sources by IPv6");
}

#[test]
fn a_rule_asks_for_what_it_takes_for_granted_and_lays_its_key_side_by_side() {
    let objects = table::objects(&firewall());
    let rule = rules_of(&objects, "class_0000000000000007")[0];

    let load = |to: u8, base, offset, length| Expression::LoadPayload { to: Register(to), base, offset, length };
    let meta = |to: u8, key| Expression::LoadMeta { to: Register(to), key };
    let expected = [
        meta(0, Meta::Nfproto),
        Expression::Compare { register: Register::FIRST, op: Comparison::Equal, value: Data(vec![2]) },
        load(0, Base::Network, 16, 4),
        meta(1, Meta::L4proto),
        load(2, Base::Transport, 2, 2),
        Expression::Lookup { set: ANONYMOUS_NAME.to_owned(), id: Some(0), key: Register::FIRST, is_inverted: false },
        Expression::Count { counter: "rule_0000000000000009".to_owned() },
        Expression::Decide { verdict: Verdict::Accept },
    ];
    assert_eq!(rule.expressions, expected);
    let first = vec![10, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
    let last = vec![10, 255, 255, 255, 6, 0, 0, 0, 3, 255, 0, 0];
    assert_eq!(rule.sets[0].items, [(first, last)]);
}

#[test]
fn a_prefix_of_whole_bytes_is_compared_as_it_is_and_any_other_under_a_mask() {
    let objects = table::objects(&firewall());
    let arrive = rules_of(&objects, "arrive");
    let is = |value: &[u8]| Expression::Compare {
        register: Register::FIRST,
        op: Comparison::Equal,
        value: Data(value.to_vec()),
    };
    let is_mask = |expression: &Expression| matches!(expression, Expression::Bitwise { mask: Data(mask), .. } if *mask == [255, 192, 0, 0]);
    assert!(arrive[4].expressions.iter().any(is_mask), "{:?}", arrive[4]);
    assert!(arrive[4].expressions.contains(&is(&[100, 64, 0, 0])), "{:?}", arrive[4]);
    assert!(arrive[5].expressions.contains(&is(&[0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0])), "{:?}", arrive[5]);
}

#[test]
fn a_transaction_begins_ends_and_has_its_last_change_acknowledged() {
    let (batch, last, about) = batch::write(&update::delete(), 6).finish();
    let header = |message: NetlinkBuffer<&[u8]>| (message.message_type(), message.flags());
    let kinds: Vec<(u16, u16)> = messages(batch.bytes()).map(header).collect();
    assert_eq!(kinds, [(16, 1), (10 << 8, 0x401), ((10 << 8) | 2, 1 | 4), (17, 1)]);
    assert_eq!((last, about[2].as_str()), (2, "table warren"));
}

/// The bytes that a writer adds.
fn written(write: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Attributes::after(&mut bytes));
    bytes
}

/// An expression as an element of a rule's list, without the list.
fn as_element(expression: &Expression) -> Vec<u8> {
    written(|list| expression.write(list))[4..].to_vec()
}

#[test]
fn every_expression_is_read_as_it_was_written() {
    let chosen = FirewallOptions { log_denied: Some(5741), ..FirewallOptions::default() };
    let objects = table::objects(&Firewall { options: chosen, ..firewall() });
    let ours = objects.iter().filter_map(|object| if let Object::Rule(rule) = object { Some(rule) } else { None });
    let ours: Vec<Expression> = ours.flat_map(|rule| rule.expressions.clone()).collect();
    assert!(ours.len() > 100);
    let of_gateways = trial::gateway_rules().into_iter().flat_map(|rule| rule.expressions);
    let of_a_direction = [
        Expression::LoadCt { to: Register::FIRST, key: Ct::Direction, direction: None },
        Expression::LoadCt { to: Register::FIRST, key: Ct::Mark, direction: Some(Direction::Reply) },
    ];
    for expression in ours.into_iter().chain(of_gateways).chain(of_a_direction) {
        assert_eq!(Expression::read(&as_element(&expression)), Ok(expression));
    }
}

#[test]
fn what_an_expression_has_besides_is_not_passed_over() {
    let with_more = |expression: &Expression, number: u16, value: u32| {
        let mut bytes = as_element(expression);
        bytes.extend(written(|list| list.u32(number, value)));
        // The attribute belongs into the data, which comes last.
        let length = u16::from_ne_bytes([bytes[name_length(&bytes)], bytes[name_length(&bytes) + 1]]) + 8;
        let at = name_length(&bytes);
        bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        Expression::read(&bytes)
    };
    let masquerade = Expression::Masquerade { flags: None, first_port: None, last_port: None };
    assert!(with_more(&masquerade, 9, 1).unwrap_err().contains("masq"));
    // A kernel tells the operation, which is the only one that we write.
    let bitwise = Expression::Bitwise {
        from: Register::FIRST,
        to: Register::FIRST,
        length: 1,
        mask: Data(vec![15]),
        flip: Data(vec![0]),
    };
    assert_eq!(with_more(&bitwise, 6, 0), Ok(bitwise.clone()));
    assert!(with_more(&bitwise, 6, 1).is_err());
    assert!(Expression::read(&written(|element| element.text(1, "socket"))).unwrap_err().contains("socket"));
}

/// Where the data of an expression begins: behind its name.
fn name_length(element: &[u8]) -> usize {
    usize::from(u16::from_ne_bytes([element[0], element[1]])).next_multiple_of(4)
}

#[test]
fn the_kernels_names_of_wide_registers_are_known() {
    let register = |number: u32| {
        let data = written(|element| {
            element.text(1, "rt");
            element.nest(2, |data| {
                data.u32(1, number);
                data.u32(2, 3);
            });
        });
        Expression::read(&data)
            .map(|read| matches!(read, Expression::LoadRoute { to: Register(place), .. } if place == 4))
    };
    assert_eq!([1, 2, 8, 12].map(register), [Ok(false), Ok(true), Ok(false), Ok(true)]);
    assert!(register(0).is_err() && register(24).is_err());
}

#[test]
fn every_object_is_read_as_it_was_written() {
    let base = |kind, hook, policy| Some(object::Base { kind, hook, priority: -150, policy });
    for base in [
        None,
        base(ChainType::Filter, Hook::Prerouting, Policy::Accept),
        base(ChainType::Nat, Hook::Postrouting, Policy::Accept),
        base(ChainType::Route, Hook::Output, Policy::Drop),
    ] {
        let chain = Chain { name: "nat".to_owned(), base };
        assert_eq!(Chain::read(&written(|message| chain.write(message))), Ok(chain));
    }
    let plain = table::Holds::PrefixesThatLead.set("subnets", Family::V6);
    let timed = Set { timeout: Some(600_000), size: Some(4_096), is_map: false, ..plain.clone() };
    for set in [plain, timed, super::cut::set(Family::V6)] {
        assert_eq!(AnySet::read(&written(|message| set.write(message))), Ok(AnySet::Named(set)));
    }
    for rule in trial::gateway_rules() {
        assert_eq!(Rule::read(&written(|message| rule.write(message, 0))), Ok(rule));
    }
    let counter = Counter { name: "denied".to_owned(), packets: 0, bytes: 0 };
    assert_eq!(Counter::read(&written(|message| Counter::write("denied", true, message))), Ok(counter));
}

#[test]
fn a_set_of_a_rule_is_put_back_into_the_rule() {
    let items = vec![(vec![1, 0, 0, 0], vec![9, 0, 0, 0])];
    let set = AnonymousSet { key: vec![Part::Port, Part::Protocol], items };
    let listed = AnySet::read(&written(|message| set.write(message))).unwrap();
    assert_eq!(listed, AnySet::Anonymous { name: ANONYMOUS_NAME.to_owned(), key: set.key.clone() });

    let lookup =
        |name: &str, id| Expression::Lookup { set: name.to_owned(), id, key: Register::FIRST, is_inverted: false };
    let expressions = vec![lookup("served4", None), lookup("__set5", None)];
    let mut rule = Rule { chain: "c".to_owned(), expressions, sets: Vec::new() };
    rule.take_sets(|name| (name == "__set5").then(|| set.clone()));
    assert_eq!(rule.sets, [set]);
    assert_eq!(rule.expressions, [lookup("served4", None), lookup(ANONYMOUS_NAME, Some(0))]);
}

#[test]
fn an_object_of_a_kind_we_never_write_is_named() {
    let limit = written(|message| {
        message.text(2, "mine");
        message.u32(3, 4);
    });
    assert!(Counter::read(&limit).unwrap_err().contains("mine"));
}
