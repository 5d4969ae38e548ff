//! What leaves beside an exit node, in our table.
//!
//! ```text
//! way_in   (prerouting)   by another link, to this host, of a flow that began there: the flow is marked
//!                         by another link, of a flow that is marked: the packet is marked as our own outer ones are
//! way_back (output)       answers of a flow that is marked, or to where no peer is: so marked, and routed anew
//! keep_way (postrouting)  marked, by another link: the flow is marked
//! beside_out, beside_through (output, forward)
//!                         by another link, not marked, to none of @beside4/6: refused
//! ```
//!
//! Answers to what came in by another link keep its way: a session from elsewhere goes on, also one that was open
//! before, and one with a container whose port is published. So do our own packets where the kernel or a firewall asks
//! for the way back by the mark. Of a flow's mark four bits are ours, and others' stay. Not refused is besides what a
//! host has its addresses and neighbours by: DHCP, and the discovery of IPv6.

use warren_core::plan::{Lacks, own};
use warren_core::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::chains::{AFTER_HOST_FILTERS, LOCAL, base_chain, base_chain_of};
use super::expression::{Ct, Data, Expression, Meta, Refusal, Register};
use super::object::{ChainType, Hook, Object};
use super::rule::{Condition, Field, accept, count, drop_it, rule};
use super::table::{BESIDE, Family, SERVED, TUNNELLED};
use super::update::Command;

/// What would have left by another link.
const DENIED_BESIDE: &str = "denied_beside_exit_node";
/// What would have left by ours from an address that its answers do not come back to.
const DENIED_FOREIGN: &str = "denied_foreign_source";

const WAY_IN: &str = "way_in";
const WAY_BACK: &str = "way_back";
const KEEP_WAY: &str = "keep_way";
const OUT: &str = "beside_out";
const THROUGH: &str = "beside_through";
const CHAINS: [&str; 5] = [WAY_IN, WAY_BACK, KEEP_WAY, OUT, THROUGH];
const COUNTERS: [&str; 2] = [DENIED_BESIDE, DENIED_FOREIGN];

/// `NF_IP_PRI_MANGLE`: after connection tracking, before destinations are rewritten.
const MANGLE: i32 = -150;
/// `IP_CT_DIR_ORIGINAL` and `IP_CT_DIR_REPLY`.
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;
/// ICMPv6's router and neighbour discovery, and what multicast groups are joined by.
const DISCOVERY: [u8; 6] = [133, 134, 135, 136, 137, 143];
/// DHCP's ports, of the client and the server.
const DHCP: [(u16, u16); 2] = [(68, 67), (546, 547)];
/// `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`.
const PROHIBITED: u8 = 3;

/// The chains and the counters, without rules; nothing where no exit node is wanted.
pub(super) fn objects(is_wanted: bool) -> Vec<Object> {
    if !is_wanted {
        return Vec::new();
    }
    let counters = COUNTERS.map(|name| Object::Counter(name.to_owned()));
    let chains = [
        base_chain(WAY_IN, Hook::Prerouting, MANGLE),
        base_chain_of(ChainType::Route, WAY_BACK, Hook::Output, MANGLE),
        base_chain(KEEP_WAY, Hook::Postrouting, MANGLE),
        base_chain(OUT, Hook::Output, AFTER_HOST_FILTERS),
        base_chain(THROUGH, Hook::Forward, AFTER_HOST_FILTERS),
    ];
    counters.into_iter().chain(chains).collect()
}

/// The rules of those chains.
pub(super) fn rules(is_wanted: bool, lacks: Lacks) -> Vec<Object> {
    if !is_wanted {
        return Vec::new();
    }
    let refusal = || match lacks.reset {
        true => drop_it(),
        false => Expression::Refuse { answer: Refusal::IcmpxUnreachable, code: Some(PROHIBITED) },
    };
    let mut rules = ways(lacks);
    let by_us = Field::OIFNAME.is_link(own::LINK);
    for family in Family::BOTH {
        // Of a flow that began before, or whose sender chose an address: it would wait for ever.
        let overlay = if family == Family::V4 { IpNet::V4(OVERLAY_V4) } else { IpNet::V6(OVERLAY_V6) };
        let source = Field::source(family);
        let is_foreign = [by_us.clone(), source.is_not_in(&family.name(SERVED)), source.is_not_within(overlay)];
        rules.push(rule(OUT, &is_foreign, [count(DENIED_FOREIGN), drop_it()]));
    }
    for chain in [OUT, THROUGH] {
        let mut let_by = vec![vec![by_us.clone()], vec![is_ours()]];
        if chain == OUT {
            let_by.push(vec![Field::OIFNAME.is_link("lo")]);
            let_by.push(vec![Field::icmp_type(Family::V6).is_any(&DISCOVERY)]);
            for (from, to) in DHCP {
                let ports =
                    [Field::UDP_SOURCE_PORT.is(from.to_be_bytes()), Field::UDP_DESTINATION_PORT.is(to.to_be_bytes())];
                let_by.push(ports.into());
            }
        } else {
            let_by.push(vec![Field::IIFNAME.is_link(own::LINK)]);
        }
        let_by.extend(Family::BOTH.map(|family| vec![Field::destination(family).is_in(&family.name(BESIDE))]));
        rules.extend(let_by.iter().map(|conditions| rule(chain, conditions, [accept()])));
        rules.push(rule(chain, &[], [count(DENIED_BESIDE), refusal()]));
    }
    rules
}

/// What marks flows and packets.
fn ways(lacks: Lacks) -> Vec<Object> {
    let not_by_us = [Field::IIFNAME.is_not_link(own::LINK), Field::IIFNAME.is_not_link("lo")];
    let keeps_way = || Field::CONNECTION_MARK.is(own::MARK_BYPASS.to_ne_bytes());
    let mut rules = Vec::new();
    // Where this host's own addresses cannot be told from others, flows that only pass through would be taken for its.
    if !lacks.routes {
        let begins = Field::CONNECTION_DIRECTION.is([ORIGINAL]);
        let to_us = Field::KIND_OF_DESTINATION.is(LOCAL.to_ne_bytes());
        let [not_by_link, not_by_lo] = not_by_us.clone();
        rules.push(rule(WAY_IN, &[not_by_link, not_by_lo, begins, to_us], mark_flow()));
    }
    let [not_by_link, _] = not_by_us;
    rules.push(rule(WAY_IN, &[not_by_link, keeps_way()], mark_packet()));
    let is_answer = Field::CONNECTION_DIRECTION.is([REPLY]);
    rules.push(rule(WAY_BACK, &[is_answer.clone(), keeps_way()], mark_packet()));
    for family in Family::BOTH {
        let is_no_peers = Field::destination(family).is_not_in(&family.name(TUNNELLED));
        rules.push(rule(WAY_BACK, &[is_answer.clone(), is_no_peers], mark_packet()));
    }
    rules.push(rule(KEEP_WAY, &[Field::OIFNAME.is_not_link(own::LINK), is_ours()], mark_flow()));
    rules
}

/// Turns one into the other.
pub(super) fn update(was_wanted: bool, is_wanted: bool, lacks: Lacks) -> Vec<Command> {
    let mut commands = Vec::new();
    if was_wanted && !is_wanted {
        commands.extend(CHAINS.map(|chain| Command::FlushChain(chain.to_owned())));
        commands.extend(CHAINS.map(|chain| Command::DeleteChain(chain.to_owned())));
        commands.extend(COUNTERS.map(|name| Command::DeleteCounter(name.to_owned())));
    } else if is_wanted && !was_wanted {
        commands.extend(objects(true).into_iter().chain(rules(true, lacks)).map(Command::Add));
    }
    commands
}

/// Whether this is a chain that is there where an exit node is wanted.
pub(super) fn is_chain(name: &str) -> bool {
    CHAINS.contains(&name)
}

/// Whether the packet carries the mark of our own outer packets.
fn is_ours() -> Condition {
    Field::MARK.is(own::MARK_BYPASS.to_ne_bytes())
}

/// Notes with the flow that it keeps its way.
fn mark_flow() -> Vec<Expression> {
    let first = Register::FIRST;
    let number = |number: u32| Data(number.to_ne_bytes().to_vec());
    let (mask, flip) = (number(!own::CONNECTION_MARK_BITS), number(own::MARK_BYPASS));
    vec![
        Expression::LoadCt { to: first, key: Ct::Mark, direction: None },
        Expression::Bitwise { from: first, to: first, length: 4, mask, flip },
        Expression::StoreCt { from: first, key: Ct::Mark, direction: None },
    ]
}

/// Marks the packet as our own outer ones are.
fn mark_packet() -> Vec<Expression> {
    let mark = Data(own::MARK_BYPASS.to_ne_bytes().to_vec());
    vec![
        Expression::LoadValue { to: Register::FIRST, value: mark },
        Expression::StoreMeta { from: Register::FIRST, key: Meta::Mark },
    ]
}
