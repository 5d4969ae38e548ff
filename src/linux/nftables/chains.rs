//! The chains that are the same in every table: where packets come in, and what is asked of each.

use warren_core::plan::{Firewall, FirewallOptions, Lacks, own};
use warren_core::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::cut;
use super::expression::{Expression, Limited};
use super::object::{Base, Chain, ChainType, Hook, Object, Policy};
use super::rule::{Condition, Field, ICMP, ICMPV6, accept, count, drop_it, jump, rule};
use super::table::{
    BY_EXIT, DENIED_ANSWER, DENIED_ASTRAY, DENIED_DESTINATION, DENIED_POLICY, DENIED_SOURCE, DENIED_SPOOFED,
    DENIED_UNASKED, ELSEWHERE, Family, HOSTS, INTERNET, SERVED, SUBNETS, TUNNELLED,
};

/// Between connection tracking (-200) and the rewriting of destinations (-100).
pub(super) const BEFORE_NAT: i32 = -110;
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
const ERRORS: [(Family, &[u8]); 2] = [(Family::V4, &[3, 11, 12]), (Family::V6, &[1, 2, 3, 4])];
/// ICMP that answers, and so comes alone where nothing was asked: echo replies, errors, and what would have a host
/// change its ways (source quench, redirects; the discovery of neighbours and routers, of which a tunnel has none).
const ANSWERS: [(Family, &[u8]); 2] =
    [(Family::V4, &[0, 3, 4, 5, 11, 12]), (Family::V6, &[1, 2, 3, 4, 129, 133, 134, 135, 136, 137])];
/// What `fib` calls an address of the host's own: `RTN_LOCAL`.
pub(super) const LOCAL: u32 = 2;
/// An IPv4 header without options, in words.
const PLAIN_HEADER: u8 = 5;
/// Version 4, and such a header: one byte that every packet is asked for, in place of three questions.
const PLAIN_IPV4: u8 = 4 << 4 | PLAIN_HEADER;

/// Denials of one reason that are logged, a second and in a burst: enough to see what goes on, too few to fill a disk.
const LOGGED_A_SECOND: u64 = 10;
const LOGGED_AT_ONCE: u32 = 20;

/// The chains, in an order in which each finds those that it refers to.
pub(super) fn chains() -> Vec<Object> {
    let plain = |name: &str| Object::Chain(Chain { name: name.to_owned(), base: None });
    vec![
        plain("overlay"),
        plain(cut::FROM_PEER),
        plain(cut::TO_PEER),
        base_chain("arrive", Hook::Prerouting, BEFORE_NAT),
        base_chain("forward", Hook::Forward, AFTER_HOST_FILTERS),
        base_chain("output", Hook::Output, AFTER_HOST_FILTERS),
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

/// Where what an error is about was on its way to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoted {
    Tunnelled,
    NotTunnelled,
}

impl Rules<'_> {
    fn add(&mut self, chain: &str, conditions: &[Condition], action: Expression) {
        self.objects.push(rule(chain, conditions, [action]));
    }

    /// Drops what matches, counts it, and logs some of it where that is wanted. A limit ends its rule, so the log
    /// has one of its own.
    fn drop(&mut self, chain: &str, conditions: &[Condition], reason: &'static str) {
        if let Some(group) = self.options.log_denied {
            self.objects.push(rule(chain, conditions, [limit(), log(group, reason)]));
        }
        self.objects.push(rule(chain, conditions, [count(reason), drop_it()]));
    }

    fn overlay(&mut self) {
        const CHAIN: &str = "overlay";
        self.known(CHAIN);
        self.destinations(CHAIN);
        self.answers(CHAIN, &[], Quoted::Tunnelled);
        for (family, types) in ANSWERS {
            self.drop(CHAIN, &[Field::icmp_type(family).is_any(types)], DENIED_ANSWER);
        }
        for map in [HOSTS, SUBNETS] {
            for family in Family::BOTH {
                let leads = Field::source(family).leads_by(&family.name(map));
                self.objects.push(rule(CHAIN, &[leads], []));
            }
        }
        self.add(CHAIN, &[], jump(cut::FROM_PEER));
        self.drop(CHAIN, &[], DENIED_SOURCE);
    }

    /// Accepts in one step what nearly all packets are, of which each would pass all that is asked further down.
    fn known(&mut self, chain: &str) {
        let is_plain = [(Family::V4, Field::FIRST_BYTE.is([PLAIN_IPV4])), (Family::V6, Field::HAS_ROUTING.is([0]))];
        for (family, is_plain) in is_plain {
            let is_served = Field::destination(family).is_in(&family.name(SERVED));
            self.add(chain, &[is_plain, state(ESTABLISHED), is_served], accept());
        }
    }

    /// Drops what is for none of the addresses that are served. Where the sender itself prescribes the way, the
    /// destination that is read here is only the first.
    fn destinations(&mut self, chain: &str) {
        for prescribed in [Field::HEADER_WORDS.is_not([PLAIN_HEADER]), Field::HAS_ROUTING.is([1])] {
            self.drop(chain, &[prescribed], DENIED_DESTINATION);
        }
        for family in Family::BOTH {
            let to = Field::destination(family);
            let elsewhere = [SERVED, INTERNET].map(|name| to.is_not_in(&family.name(name)));
            self.drop(chain, &elsewhere, DENIED_DESTINATION);
            // Where this host's own addresses cannot be told from others, nothing of the internet is served.
            let mut own = vec![to.is_in(&family.name(INTERNET))];
            if !self.lacks.routes {
                own.push(Field::KIND_OF_DESTINATION.is(LOCAL.to_ne_bytes()));
            }
            self.drop(chain, &own, DENIED_DESTINATION);
        }
    }

    /// Accepts what belongs to flows that are known. What is related to one by an error is so by ICMP's errors alone,
    /// and by those about a packet whose destination lies behind our link, or does not: whoever sends an error chooses
    /// the flow that it ends, also one that never passed by here.
    fn answers(&mut self, chain: &str, conditions: &[Condition], about: Quoted) {
        let mut add = |more: &[Condition]| self.add(chain, &[conditions, more].concat(), accept());
        add(&[state(ESTABLISHED)]);
        for (family, types) in ERRORS {
            let sets = [TUNNELLED, BY_EXIT].map(|set| family.name(set));
            let about = match about {
                Quoted::Tunnelled => sets.iter().map(|set| vec![quoted(family).is_in(set)]).collect(),
                Quoted::NotTunnelled => vec![sets.iter().map(|set| quoted(family).is_not_in(set)).collect()],
            };
            for about in about {
                let is_error = vec![state(RELATED), Field::icmp_type(family).is_any(types)];
                add(&[is_error, about].concat());
            }
        }
        add(&[state(RELATED), Field::PROTOCOL.is_none(&[ICMP, ICMPV6])]);
    }

    fn arrive(&mut self) {
        const CHAIN: &str = "arrive";
        let from_us = [Field::IIFNAME.is_link(own::LINK)];
        self.add(CHAIN, &from_us, jump("overlay"));
        self.add(CHAIN, &from_us, jump(cut::FROM_PEER));
        self.drop(CHAIN, &from_us, DENIED_POLICY);
        if self.options.shared_range {
            return;
        }
        self.add(CHAIN, &[Field::IIFNAME.is_link("lo")], accept());
        for range in [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)] {
            let family = Family::of(range.addr());
            let source = Field::source(family);
            let leads_to_us = match self.lacks.routes {
                false => Field::WAY_BACK.is_link(own::LINK),
                true => source.is_not_in(&family.name(ELSEWHERE)),
            };
            self.drop(CHAIN, &[source.is_within(range), leads_to_us], DENIED_SPOOFED);
        }
    }

    /// Whatever leads packets to the overlay astray (a rule of another program before ours, a route that went), they
    /// do not leave in clear.
    fn output(&mut self) {
        const CHAIN: &str = "output";
        self.add(CHAIN, &[into_us(), state(NEW)], jump(cut::TO_PEER));
        if self.options.shared_range {
            return;
        }
        for range in [IpNet::V4(OVERLAY_V4), IpNet::V6(OVERLAY_V6)] {
            let family = Family::of(range.addr());
            let destination = Field::destination(family);
            let conditions = [
                Field::OIFNAME.is_not_link(own::LINK),
                Field::OIFNAME.is_not_link("lo"),
                destination.is_within(range),
                destination.is_not_in(&family.name(ELSEWHERE)),
                // A mark is a number of the machine, and not a field of a packet.
                Field::MARK.is_not(own::MARK_BYPASS.to_ne_bytes()),
            ];
            self.drop(CHAIN, &conditions, DENIED_ASTRAY);
        }
    }

    fn forward(&mut self) {
        const CHAIN: &str = "forward";
        if self.options.lan_may_open {
            self.add(CHAIN, &[into_us(), state(NEW)], jump(cut::TO_PEER));
            return;
        }
        // What came out of the tunnel was judged as it arrived.
        self.add(CHAIN, &[Field::IIFNAME.is_link(own::LINK), into_us()], accept());
        // What is sent into the tunnel by this side is told of by this side's errors only where it does not go on there.
        self.answers(CHAIN, &[into_us()], Quoted::NotTunnelled);
        self.drop(CHAIN, &[into_us()], DENIED_UNASKED);
    }
}

pub(super) fn base_chain(name: &str, hook: Hook, priority: i32) -> Object {
    base_chain_of(ChainType::Filter, name, hook, priority)
}

pub(super) fn base_chain_of(kind: ChainType, name: &str, hook: Hook, priority: i32) -> Object {
    let base = Base { kind, hook, priority, policy: Policy::Accept };
    Object::Chain(Chain { name: name.to_owned(), base: Some(base) })
}

fn into_us() -> Condition {
    Field::OIFNAME.is_link(own::LINK)
}

fn state(bit: u32) -> Condition {
    Field::CONNECTION_STATE.has(bit)
}

/// The destination of the packet that an error is about: it follows the eight bytes of the error's own header.
fn quoted(family: Family) -> Field {
    match family {
        Family::V4 => Field::bytes(8 + 16, 4),
        Family::V6 => Field::bytes(8 + 24, 16),
    }
}

fn limit() -> Expression {
    Expression::Limit { rate: LOGGED_A_SECOND, seconds: 1, burst: LOGGED_AT_ONCE, of: Limited::Packets, is_over: false }
}

fn log(group: u16, reason: &'static str) -> Expression {
    Expression::Log { group, prefix: format!("warren {reason} ") }
}
