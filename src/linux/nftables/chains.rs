//! The chains that are the same in every table: where packets come in, and what is asked of each.

use nftables::expr::{
    CT, Expression, Exthdr, Fib, FibFlag, FibResult, MetaKey, NamedExpression, Payload, PayloadBase, PayloadRaw,
};
use nftables::schema::Chain;
use nftables::stmt::{JumpTarget, Limit, Log, Match, Operator, Statement, VerdictMap as VerdictLookup};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use warren_core::plan::{Firewall, FirewallOptions, Lacks, own};
use warren_core::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::cut;
use super::object::Object;
use super::table::{
    DENIED_ANSWER, DENIED_ASTRAY, DENIED_DESTINATION, DENIED_POLICY, DENIED_SOURCE, DENIED_SPOOFED, DENIED_UNASKED,
    ELSEWHERE, Family, INTERNET, SERVED, TUNNELLED, chain, count, equals, meta, payload, reference, rule, set, text,
    write_address,
};

/// Between connection tracking (-200) and the rewriting of destinations (-100).
const BEFORE_NAT: i32 = -110;
/// After the host's own filters, whose base chains sit at 0: what they drop never reaches ours.
pub(super) const AFTER_HOST_FILTERS: i32 = 10;
/// Before connection tracking sees the packet.
pub(super) const RAW: i32 = -300;

/// Connection states, as bits.
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;
/// Errors of ICMP: destination unreachable, time exceeded, parameter problem; and of ICMPv6: destination unreachable,
/// packet too big, time exceeded, parameter problem.
const ERRORS: [(&str, &[u32]); 2] = [("icmp", &[3, 11, 12]), ("icmpv6", &[1, 2, 3, 4])];
/// ICMP that answers, and so comes alone where nothing was asked: echo replies, errors, and what would have a host
/// change its ways (source quench, redirects; the discovery of neighbours and routers, of which a tunnel has none).
const ANSWERS: [(&str, &[u32]); 2] =
    [("icmp", &[0, 3, 4, 5, 11, 12]), ("icmpv6", &[1, 2, 3, 4, 129, 133, 134, 135, 136, 137])];
/// ICMP and ICMPv6.
const ICMP: [u32; 2] = [1, 58];
/// What `fib` calls an address of the host's own: `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// An IPv4 header without options, in words.
const PLAIN_HEADER: u32 = 5;

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
pub(super) fn rules(firewall: &Firewall) -> Vec<Object> {
    let mut rules = Rules { options: &firewall.options, lacks: firewall.lacks, objects: Vec::new() };
    rules.overlay();
    rules.arrive();
    rules.forward();
    rules.objects.extend(cut::rules(firewall.lacks));
    rules.output();
    rules.objects
}

struct Rules<'a> {
    options: &'a FirewallOptions,
    lacks: Lacks,
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
        self.destinations(CHAIN);
        self.answers(CHAIN, &[], Operator::EQ);
        for (protocol, types) in ANSWERS {
            self.drop(CHAIN, vec![icmp(protocol, types)], DENIED_ANSWER);
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

    /// Drops what is for none of the addresses that are served. Where the sender itself prescribes the way, the
    /// destination that is read here is only the first.
    fn destinations(&mut self, chain: &str) {
        let options = differs(payload("ip", "hdrlength"), Expression::Number(PLAIN_HEADER));
        let routing = Exthdr { name: "rt".into(), field: None, offset: None };
        let routing = equals(Expression::Named(NamedExpression::Exthdr(routing)), Expression::Boolean(true));
        for prescribed in [options, routing] {
            self.drop(chain, vec![prescribed], DENIED_DESTINATION);
        }
        for family in Family::BOTH {
            let to = || payload(family.protocol(), "daddr");
            let elsewhere = [SERVED, INTERNET].map(|name| differs(to(), reference(name, family)));
            self.drop(chain, elsewhere.into(), DENIED_DESTINATION);
            // Where this host's own addresses cannot be told from others, nothing of the internet is served.
            let mut own = vec![equals(to(), reference(INTERNET, family))];
            if !self.lacks.routes {
                own.push(equals(fib(FibResult::Type, FibFlag::Daddr), Expression::Number(LOCAL)));
            }
            self.drop(chain, own, DENIED_DESTINATION);
        }
    }

    /// Accepts what belongs to flows that are known. What is related to one by an error is so by ICMP's errors alone,
    /// and by those about a packet whose destination lies behind our link, or does not: whoever sends an error chooses
    /// the flow that it ends, also one that never passed by here.
    fn answers(&mut self, chain: &str, matches: &[Statement<'static>], tunnelled: Operator) {
        let mut accept = |more: Vec<Statement<'static>>| {
            self.add(chain, [matches, &more, &[Statement::Accept(None)]].concat());
        };
        accept(vec![state(ESTABLISHED)]);
        for (family, (protocol, types)) in Family::BOTH.into_iter().zip(ERRORS) {
            let about = Match { left: quoted(family), right: reference(TUNNELLED, family), op: tunnelled };
            accept(vec![state(RELATED), icmp(protocol, types), Statement::Match(about)]);
        }
        let icmp = set(ICMP.into_iter().map(Expression::Number));
        accept(vec![state(RELATED), differs(meta(MetaKey::L4proto), icmp)]);
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
            let family = Family::of(range.addr());
            let source = || payload(family.protocol(), "saddr");
            let leads_to_us = match self.lacks.routes {
                false => equals(fib(FibResult::Oifname, FibFlag::Saddr), text(own::LINK)),
                true => differs(source(), reference(ELSEWHERE, family)),
            };
            self.drop(CHAIN, vec![equals(source(), write_address(&range)), leads_to_us], DENIED_SPOOFED);
        }
    }

    /// Whatever leads packets to the overlay astray (a rule of another program before ours, a route that went), they
    /// do not leave in clear.
    fn output(&mut self) {
        const CHAIN: &str = "output";
        self.add(CHAIN, vec![into_us(), state(NEW), jump(cut::TO_PEER)]);
        if self.options.shared_range {
            return;
        }
        for range in [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)] {
            let family = Family::of(range.addr());
            let destination = || payload(family.protocol(), "daddr");
            let matches = vec![
                differs(meta(MetaKey::Oifname), text(own::LINK)),
                differs(meta(MetaKey::Oifname), text("lo")),
                equals(destination(), write_address(&range)),
                differs(destination(), reference(ELSEWHERE, family)),
                differs(meta(MetaKey::Mark), Expression::Number(own::MARK_BYPASS)),
            ];
            self.drop(CHAIN, matches, DENIED_ASTRAY);
        }
    }

    fn forward(&mut self) {
        const CHAIN: &str = "forward";
        if self.options.lan_may_open {
            self.add(CHAIN, vec![into_us(), state(NEW), jump(cut::TO_PEER)]);
            return;
        }
        // What is sent into the tunnel by this side is told of by this side's errors only where it does not go on there.
        self.answers(CHAIN, &[into_us()], Operator::NEQ);
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

fn state(bit: u32) -> Statement<'static> {
    let state = Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None }));
    Statement::Match(Match { left: state, right: Expression::Number(bit), op: Operator::IN })
}

fn icmp(protocol: &'static str, types: &[u32]) -> Statement<'static> {
    equals(payload(protocol, "type"), set(types.iter().map(|number| Expression::Number(*number))))
}

/// The destination of the packet that an error is about: it follows the eight bytes of the error's own header.
fn quoted(family: Family) -> Expression<'static> {
    let (offset, len) = match family {
        Family::V4 => (8 + 16, 4),
        Family::V6 => (8 + 24, 16),
    };
    let field = PayloadRaw { base: PayloadBase::TH, offset: offset * 8, len: len * 8 };
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(field)))
}

fn fib(result: FibResult, of: FibFlag) -> Expression<'static> {
    Expression::Named(NamedExpression::Fib(Fib { result, flags: [of].into_iter().collect() }))
}

fn differs(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
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
