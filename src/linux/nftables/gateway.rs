//! What a host needs that carries packets for peers, in our table.
//!
//! ```text
//! segments (forward)     of what opens a flow of TCP, to our link or from it: segments as its route takes them
//! sources  (postrouting) from our link, by another link, to @served4/6 (where that is wished) or @internet4/6:
//!                        with the address of the link that it leaves by
//! ```
//!
//! What is led elsewhere on this host (a container's published port) is to none of those, and keeps its source.

use warren_core::plan::{SourceNat, own};

use super::chains::{base_chain, base_chain_of};
use super::expression::{Expression, Order, Register, Route};
use super::object::{Chain, ChainType, Hook, Object, Rule};
use super::rule::{Field, rule};
use super::table::{Family, INTERNET, SERVED};
use super::update::Command;

const SEGMENTS: &str = "segments";
const SOURCES: &str = "sources";
/// `NF_IP_PRI_MANGLE`.
const MANGLE: i32 = -150;
/// `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT: i32 = 100;
/// TCP's flag SYN.
const SYN: u8 = 2;
/// The option of TCP that says how large segments may be, and where in it that stands (RFC 9293 section 3.2).
const SEGMENT_SIZE: u8 = 2;
const SIZE_AT: u32 = 2;
const SIZE_LENGTH: u32 = 2;

/// The chains, without rules; nothing where nothing is carried.
pub(super) fn objects(carries: Option<SourceNat>) -> Vec<Object> {
    let mut chains = Vec::new();
    chains.extend(carries.map(|_| base_chain(SEGMENTS, Hook::Forward, MANGLE)));
    let sources = || base_chain_of(ChainType::Nat, SOURCES, Hook::Postrouting, SOURCE_NAT);
    chains.extend(carries.filter(|nat| !destinations(*nat).is_empty()).map(|_| sources()));
    chains
}

/// The rules of those chains.
pub(super) fn rules(carries: Option<SourceNat>) -> Vec<Object> {
    let Some(nat) = carries else { return Vec::new() };
    let mut rules = Vec::new();
    for link in [Field::OIFNAME, Field::IIFNAME] {
        rules.push(rule(SEGMENTS, &[link.is_link(own::LINK), Field::TCP_OPENS.is([SYN])], follow_route()));
    }
    for family in Family::BOTH {
        for set in destinations(nat) {
            let to = Field::destination(family).is_in(&family.name(set));
            let conditions = [Field::IIFNAME.is_link(own::LINK), Field::OIFNAME.is_not_link(own::LINK), to];
            let masquerade = Expression::Masquerade { flags: None, first_port: None, last_port: None };
            rules.push(rule(SOURCES, &conditions, [masquerade]));
        }
    }
    rules
}

/// Turns one into the other.
pub(super) fn update(from: Option<SourceNat>, to: Option<SourceNat>) -> Vec<Command> {
    if from == to {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for object in objects(from) {
        let Object::Chain(chain) = object else { continue };
        commands.extend([Command::FlushChain(chain.name.clone()), Command::DeleteChain(chain.name)]);
    }
    commands.extend(objects(to).into_iter().chain(rules(to)).map(Command::Add));
    commands
}

/// What these chains and rules say. Whether the rest is right is seen in the comparison.
pub(super) fn read(chains: &[Chain], rules: &[Rule]) -> Option<SourceNat> {
    let has = |name: &str| chains.iter().any(|chain| chain.name == name);
    let looks_into = |rule: &Rule| {
        let served = Family::BOTH.map(|family| family.name(SERVED));
        rule.expressions
            .iter()
            .any(|expression| matches!(expression, Expression::Lookup { set, .. } if served.contains(set)))
    };
    if !has(SEGMENTS) {
        return None;
    }
    Some(match has(SOURCES) {
        false => SourceNat::Nothing,
        true if rules.iter().any(|rule| rule.chain == SOURCES && looks_into(rule)) => SourceNat::All,
        true => SourceNat::ToInternet,
    })
}

/// The sets of destinations to which sources are not kept.
fn destinations(nat: SourceNat) -> &'static [&'static str] {
    match nat {
        SourceNat::All => &[SERVED, INTERNET],
        SourceNat::ToInternet => &[INTERNET],
        SourceNat::Nothing => &[],
    }
}

/// The size of segments follows the packet's route, of both ways the smaller one; the kernel never makes it larger.
fn follow_route() -> [Expression; 3] {
    let first = Register::FIRST;
    [
        Expression::LoadRoute { to: first, key: Route::TcpMss },
        Expression::Reorder { from: first, to: first, op: Order::ToNetwork, length: SIZE_LENGTH, size: SIZE_LENGTH },
        Expression::StoreTcpOption { from: first, option: SEGMENT_SIZE, offset: SIZE_AT, length: SIZE_LENGTH },
    ]
}
