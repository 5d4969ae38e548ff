//! The chains that are the same in every table: where packets come in, and what is asked of each.

use nftables::expr::{CT, Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression};
use nftables::schema::Chain;
use nftables::stmt::{JumpTarget, Limit, Log, Match, Operator, Statement, VerdictMap as VerdictLookup};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use crate::plan::{FirewallOptions, own};
use crate::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::cut;
use super::object::Object;
use super::table::{
    DENIED_DESTINATION, DENIED_POLICY, DENIED_SOURCE, DENIED_SPOOFED, DENIED_UNASKED, Family, chain, count, equals,
    meta, payload, reference, rule, set, text, write_address,
};

/// Between connection tracking (-200) and the rewriting of destinations (-100).
const BEFORE_NAT: i32 = -110;
/// After the host's own filters, whose base chains sit at 0: what they drop never reaches ours.
pub(super) const AFTER_HOST_FILTERS: i32 = 10;
/// Before connection tracking sees the packet.
pub(super) const RAW: i32 = -300;

/// Connection states, as bits: established, related.
const ANSWERS: [u32; 2] = [2, 4];
/// Connection state, as a bit: new.
const NEW: u32 = 8;
/// ICMP: echo reply, destination unreachable, time exceeded, parameter problem.
const ICMP_ALWAYS: [u32; 4] = [0, 3, 11, 12];
/// ICMPv6: destination unreachable, packet too big, time exceeded, parameter problem, echo reply.
const ICMPV6_ALWAYS: [u32; 5] = [1, 2, 3, 4, 129];

/// Denials of one reason that are logged, a second and in a burst: enough to see what goes on, too few to fill a disk.
const LOGGED_A_SECOND: u32 = 10;
const LOGGED_AT_ONCE: u32 = 20;

/// The chains, in an order in which each finds those that it refers to.
pub(super) fn chains() -> Vec<Object> {
    vec![
        chain("overlay".to_owned()),
        chain(cut::FROM_PEER.to_owned()),
        chain(cut::TO_PEER.to_owned()),
        base_chain("arrive", NfHook::Prerouting, BEFORE_NAT),
        base_chain("forward", NfHook::Forward, AFTER_HOST_FILTERS),
        base_chain("output", NfHook::Output, AFTER_HOST_FILTERS),
    ]
}

/// What they hold.
pub(super) fn rules(options: &FirewallOptions) -> Vec<Object> {
    let mut rules = Rules { options, objects: Vec::new() };
    rules.overlay();
    rules.arrive();
    rules.forward();
    rules.objects.extend(cut::rules());
    rules.add("output", vec![into_us(), new(), jump(cut::TO_PEER)]);
    rules.objects
}

struct Rules<'a> {
    options: &'a FirewallOptions,
    objects: Vec<Object>,
}

impl Rules<'_> {
    fn add(&mut self, chain: &str, statements: Vec<Statement<'static>>) {
        self.objects.push(rule(chain.to_owned(), statements));
    }

    /// Drops what matches, counts it, and logs some of it where that is wanted. A limit ends its rule, so the log
    /// has one of its own.
    fn drop(&mut self, chain: &str, matches: Vec<Statement<'static>>, reason: &'static str) {
        if let Some(group) = self.options.log_denied {
            let mut logged = matches.clone();
            logged.extend([limit(), log(group, reason)]);
            self.add(chain, logged);
        }
        let mut dropped = matches;
        dropped.extend([count(reason.to_owned()), Statement::Drop(None)]);
        self.add(chain, dropped);
    }

    fn overlay(&mut self) {
        const CHAIN: &str = "overlay";
        self.add(CHAIN, vec![answers(), Statement::Accept(None)]);
        for family in Family::BOTH {
            let elsewhere = Statement::Match(Match {
                left: payload(family.protocol(), "daddr"),
                right: reference("served", family),
                op: Operator::NEQ,
            });
            self.drop(CHAIN, vec![elsewhere], DENIED_DESTINATION);
        }
        let icmp = [("icmp", ICMP_ALWAYS.as_slice()), ("icmpv6", ICMPV6_ALWAYS.as_slice())];
        for (protocol, types) in icmp {
            let types = set(types.iter().map(|number| Expression::Number(*number)));
            self.add(CHAIN, vec![equals(payload(protocol, "type"), types), Statement::Accept(None)]);
        }
        for map in ["hosts", "subnets"] {
            for family in Family::BOTH {
                let key = payload(family.protocol(), "saddr");
                self.add(CHAIN, vec![Statement::VerdictMap(VerdictLookup { key, data: reference(map, family) })]);
            }
        }
        self.add(CHAIN, vec![jump(cut::FROM_PEER)]);
        self.drop(CHAIN, Vec::new(), DENIED_SOURCE);
    }

    fn arrive(&mut self) {
        const CHAIN: &str = "arrive";
        let from_us = || equals(meta(MetaKey::Iifname), text(own::LINK));
        self.add(CHAIN, vec![from_us(), jump("overlay")]);
        self.add(CHAIN, vec![from_us(), jump(cut::FROM_PEER)]);
        self.drop(CHAIN, vec![from_us()], DENIED_POLICY);
        if self.options.shared_range {
            return;
        }
        self.add(CHAIN, vec![equals(meta(MetaKey::Iifname), text("lo")), Statement::Accept(None)]);
        for range in [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)] {
            let source = payload(Family::of(range.addr()).protocol(), "saddr");
            let way_back = Expression::Named(NamedExpression::Fib(Fib {
                result: FibResult::Oifname,
                flags: [FibFlag::Saddr].into_iter().collect(),
            }));
            let matches = vec![equals(source, write_address(&range)), equals(way_back, text(own::LINK))];
            self.drop(CHAIN, matches, DENIED_SPOOFED);
        }
    }

    fn forward(&mut self) {
        const CHAIN: &str = "forward";
        if self.options.lan_may_open {
            self.add(CHAIN, vec![into_us(), new(), jump(cut::TO_PEER)]);
            return;
        }
        self.add(CHAIN, vec![into_us(), answers(), Statement::Accept(None)]);
        self.drop(CHAIN, vec![into_us()], DENIED_UNASKED);
    }
}

pub(super) fn base_chain(name: &'static str, hook: NfHook, priority: i32) -> Object {
    Object::Chain(Chain {
        family: NfFamily::INet,
        table: own::NFT_TABLE.into(),
        name: name.into(),
        newname: None,
        handle: None,
        _type: Some(NfChainType::Filter),
        hook: Some(hook),
        prio: Some(priority),
        dev: None,
        policy: Some(NfChainPolicy::Accept),
    })
}

fn into_us() -> Statement<'static> {
    equals(meta(MetaKey::Oifname), text(own::LINK))
}

fn answers() -> Statement<'static> {
    state(Expression::List(ANSWERS.map(Expression::Number).to_vec()))
}

fn new() -> Statement<'static> {
    state(Expression::Number(NEW))
}

fn state(bits: Expression<'static>) -> Statement<'static> {
    let state = CT { key: "state".into(), family: None, dir: None };
    Statement::Match(Match { left: Expression::Named(NamedExpression::CT(state)), right: bits, op: Operator::IN })
}

fn jump(chain: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

fn limit() -> Statement<'static> {
    Statement::Limit(Limit {
        rate: LOGGED_A_SECOND,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(LOGGED_AT_ONCE),
        burst_unit: None,
        inv: None,
    })
}

fn log(group: u16, reason: &'static str) -> Statement<'static> {
    Statement::Log(Some(Log {
        prefix: Some(format!("warren {reason} ").into()),
        group: Some(group.into()),
        snaplen: None,
        queue_threshold: None,
        level: None,
        flags: None,
    }))
}

/// The group that a rule logs to, where it does.
pub(super) fn log_group(statement: &Statement<'_>) -> Option<u16> {
    match statement {
        Statement::Log(Some(log)) => log.group.and_then(|group| u16::try_from(group).ok()),
        _ => None,
    }
}
