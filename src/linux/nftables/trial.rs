//! What gateways say in rules, put to a kernel: for `tests/kernel`, which shall find it as it was said.

use std::io;

use super::expression::{
    Comparison, Ct, Data, Expression, Family, Limited, Meta, NatFlags, Refusal, Register, Route, SetChange, Translated,
    Verdict,
};
use super::object::{Base, Chain, ChainType, Hook, Object, Part, Policy, Rule, Set};
use super::socket::NftSocket;
use super::update::Command;

/// Makes a table of it in the network namespace of this thread; gives what was said and what the kernel gave back.
pub fn gateway_table_and_what_the_kernel_has() -> io::Result<(String, String)> {
    let (chains, mut rules) = (gateway_chains(), gateway_rules());
    let asked = Set {
        name: "asked4".to_owned(),
        key: vec![Part::Ipv4],
        is_interval: false,
        is_map: false,
        size: Some(1_000),
        timeout: Some(60_000),
    };
    let objects = [Object::Table, Object::Set(asked.clone())].into_iter();
    let objects = objects.chain(chains.iter().cloned().map(Object::Chain));
    let commands: Vec<Command> = objects.chain(rules.iter().cloned().map(Object::Rule)).map(Command::Add).collect();
    let mut socket = NftSocket::open()?;
    socket.commit(&commands).map_err(|refusal| io::Error::other(refusal.to_string()))?;
    let mut listing = socket.listing()?.map_err(io::Error::other)?;
    let by_chain = |rule: &Rule| rule.chain.clone();
    rules.sort_by_key(by_chain);
    listing.rules.sort_by_key(by_chain);
    let said = format!("{:#?}", (vec![asked], chains, rules));
    Ok((said, format!("{:#?}", (listing.sets, listing.chains, listing.rules))))
}

/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`.
const ADDRESS: u32 = 1;
const PORT: u32 = 2;
const TCP: u8 = 6;
const IPV6: u8 = 10;

/// A chain of each kind that a kernel takes gateways' rules in.
fn gateway_chains() -> Vec<Chain> {
    let chains = [
        ("arrive", ChainType::Filter, Hook::Prerouting, -150),
        ("forward", ChainType::Filter, Hook::Forward, -150),
        ("rename_in", ChainType::Nat, Hook::Prerouting, -100),
        ("rename_out", ChainType::Nat, Hook::Postrouting, 100),
        ("own", ChainType::Route, Hook::Output, -150),
    ];
    let chain = |(name, kind, hook, priority): (&str, ChainType, Hook, i32)| Chain {
        name: name.to_owned(),
        base: Some(Base { kind, hook, priority, policy: Policy::Accept }),
    };
    chains.into_iter().map(chain).collect()
}

/// What a gateway needs besides what a filter does.
pub(super) fn gateway_rules() -> Vec<Rule> {
    translations().into_iter().chain(marks_and_limits()).collect()
}

fn translations() -> Vec<Rule> {
    let (first, second) = (Register::FIRST, Register(1));
    let (address, port) = (load(0, &[192, 0, 2, 7]), load(1, &[0, 80]));
    let translate = |what, first_port, flags| Expression::Translate {
        what,
        family: Family::V4,
        first_address: Some(first),
        last_address: Some(first),
        first_port,
        last_port: first_port,
        flags: Some(NatFlags(flags)),
    };
    vec![
        // What leaves is given the address of the link, or another.
        rule("rename_out", vec![Expression::Masquerade { flags: None, first_port: None, last_port: None }]),
        rule("rename_out", vec![address.clone(), translate(Translated::Source, None, ADDRESS)]),
        // What comes is given another destination.
        rule(
            "rename_in",
            vec![address, port.clone(), translate(Translated::Destination, Some(second), ADDRESS | PORT)],
        ),
        rule(
            "rename_in",
            vec![
                port,
                Expression::Redirect { first_port: Some(second), last_port: Some(second), flags: Some(NatFlags(PORT)) },
            ],
        ),
        rule(
            "arrive",
            vec![
                meta(Meta::Nfproto),
                is(IPV6),
                meta(Meta::L4proto),
                is(TCP),
                load(0, &[1; 16]),
                load(4, &[0, 80]),
                Expression::Proxy { family: Family::V6, address: Some(first), port: Some(Register(4)) },
            ],
        ),
    ]
}

fn marks_and_limits() -> Vec<Rule> {
    let first = Register::FIRST;
    let mark = Data(0x0500_0000_u32.to_ne_bytes().to_vec());
    let mark_of_flow = Expression::LoadCt { to: first, key: Ct::Mark, direction: None };
    vec![
        // The segment size follows the route.
        rule(
            "forward",
            vec![
                meta(Meta::L4proto),
                is(TCP),
                Expression::LoadRoute { to: first, key: Route::TcpMss },
                Expression::StoreTcpOption { from: first, option: 2, offset: 2, length: 2 },
            ],
        ),
        // A flow keeps its way.
        rule(
            "arrive",
            vec![
                mark_of_flow.clone(),
                Expression::Bitwise { from: first, to: first, length: 4, mask: mark.clone(), flip: mark },
                Expression::StoreCt { from: first, key: Ct::Mark, direction: None },
            ],
        ),
        rule("own", vec![mark_of_flow, Expression::StoreMeta { from: first, key: Meta::Mark }]),
        rule(
            "forward",
            vec![
                Expression::Limit { rate: 10_000, seconds: 60, burst: 5, of: Limited::Bytes, is_over: true },
                Expression::Refuse { answer: Refusal::IcmpxUnreachable, code: Some(3) },
            ],
        ),
        rule(
            "arrive",
            vec![
                load(0, &[192, 0, 2, 7]),
                Expression::ChangeSet {
                    set: "asked4".to_owned(),
                    key: first,
                    op: SetChange::Update,
                    milliseconds: 600_000,
                },
            ],
        ),
        rule("forward", vec![Expression::Decide { verdict: Verdict::Return }]),
    ]
}

fn rule(chain: &str, expressions: Vec<Expression>) -> Rule {
    Rule { chain: chain.to_owned(), expressions, sets: Vec::new() }
}

fn load(place: u8, value: &[u8]) -> Expression {
    Expression::LoadValue { to: Register(place), value: Data(value.to_vec()) }
}

fn meta(key: Meta) -> Expression {
    Expression::LoadMeta { to: Register::FIRST, key }
}

fn is(value: u8) -> Expression {
    Expression::Compare { register: Register::FIRST, op: Comparison::Equal, value: Data(vec![value]) }
}
