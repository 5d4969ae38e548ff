//! Questions for names in our table.
//!
//! ```text
//! resolver (output)     to port 53 of the resolver's addresses: to the port at which the agent answers
//! asked    (prerouting) to those addresses from elsewhere than this host: dropped
//! ```
//!
//! Destinations are rewritten before a socket is looked for, so that the agent answers beside another server that
//! listens at port 53 of every address. `redirect` would lead to the loopback address, whose answers the asking socket
//! does not take.

use std::net::IpAddr;

use warren_core::types::{IpNet, RESOLVER_ADDRESSES};

use super::chains::{BEFORE_NAT, base_chain, base_chain_of};
use super::expression::{Data, Expression, Family as Nat, NatFlags, Register, Translated};
use super::object::{ChainType, Hook, Object, Rule};
use super::rule::{Field, count, drop_it, rule};
use super::table::Family;
use super::update::Command;

/// What others than this host's programs asked.
const DENIED_ASKED: &str = "denied_asked";
const CHAIN: &str = "resolver";
const ASKED: &str = "asked";
/// `NF_IP_PRI_NAT_DST`.
const DESTINATION_NAT: i32 = -100;
/// The port of name servers (RFC 1035 §4.2).
const PORT: u16 = 53;
/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`.
const ADDRESS_AND_PORT: NatFlags = NatFlags(1 | 2);
/// Behind the sixteen bytes of an address.
const SECOND: Register = Register(4);

/// The chains and the counter, without rules; nothing where nobody answers.
pub(super) fn objects(port: Option<u16>) -> Vec<Object> {
    match port {
        None => Vec::new(),
        Some(_) => vec![
            Object::Counter(DENIED_ASKED.to_owned()),
            base_chain_of(ChainType::Nat, CHAIN, Hook::Output, DESTINATION_NAT),
            base_chain(ASKED, Hook::Prerouting, BEFORE_NAT),
        ],
    }
}

/// The rules of those chains.
pub(super) fn rules(port: Option<u16>) -> Vec<Object> {
    let Some(port) = port else { return Vec::new() };
    let mut rules = Vec::new();
    for address in RESOLVER_ADDRESSES {
        let to_us = Field::destination(Family::of(address)).is_within(IpNet::from(address));
        for to_names in
            [Field::UDP_DESTINATION_PORT, Field::TCP_DESTINATION_PORT].map(|field| field.is(PORT.to_be_bytes()))
        {
            rules.push(rule(CHAIN, &[to_us.clone(), to_names], translate(address, port)));
        }
        let from_others = Field::IIFNAME.is_not_link("lo");
        rules.push(rule(ASKED, &[from_others, to_us], [count(DENIED_ASKED), drop_it()]));
    }
    rules
}

/// Turns one into the other.
pub(super) fn update(from: Option<u16>, to: Option<u16>) -> Vec<Command> {
    if from == to {
        return Vec::new();
    }
    let mut commands = Vec::new();
    if from.is_some() {
        for chain in [CHAIN, ASKED] {
            commands.extend([Command::FlushChain(chain.to_owned()), Command::DeleteChain(chain.to_owned())]);
        }
        if to.is_none() {
            commands.push(Command::DeleteCounter(DENIED_ASKED.to_owned()));
        }
    }
    commands.extend(objects(to).into_iter().chain(rules(to)).map(Command::Add));
    commands
}

/// Takes the port from a rule, where it is one that names it. Whether the rest is right is seen in the comparison.
pub(super) fn collect(port: &mut Option<u16>, rule: &Rule) {
    let second = |expression: &Expression| {
        let Expression::LoadValue { to: SECOND, value: Data(value) } = expression else { return None };
        value.as_slice().try_into().ok()
    };
    let named = rule.expressions.iter().find_map(second);
    if rule.chain == CHAIN
        && let Some(named) = named
    {
        *port = Some(u16::from_be_bytes(named));
    }
}

fn translate(address: IpAddr, port: u16) -> [Expression; 3] {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (Nat::V4, address.octets().to_vec()),
        IpAddr::V6(address) => (Nat::V6, address.octets().to_vec()),
    };
    let first = Some(Register::FIRST);
    [
        Expression::LoadValue { to: Register::FIRST, value: Data(bytes) },
        Expression::LoadValue { to: SECOND, value: Data(port.to_be_bytes().to_vec()) },
        Expression::Translate {
            what: Translated::Destination,
            family,
            first_address: first,
            last_address: first,
            first_port: Some(SECOND),
            last_port: Some(SECOND),
            flags: Some(ADDRESS_AND_PORT),
        },
    ]
}
