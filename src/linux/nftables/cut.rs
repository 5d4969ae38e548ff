//! Flows that were ended, and that they are over.
//!
//! A flow that is deleted from the kernel's table can come back by this side: what we send is not filtered, so the next
//! packet of a server that knows nothing of it would be taken for the opening of a new flow, and everything that
//! the peer sends for its answers. So the tuple of an ended flow is remembered in a set for a while. In the
//! direction of the peer it is looked up only for packets that open something; from the peer, only for packets that no
//! rule admits. TCP is answered with a reset on both sides, so that programs notice at once.

use warren_core::plan::Lacks;

use super::elements::Ended;
use super::expression::Expression;
use super::object::{Object, Part, Set};
use super::rule::{Condition, Field, count, drop_it, reset, rule};
use super::table::{DENIED_REVOKED, Family};
use super::update::{Command, Elements};

/// Judges packets from peers that nothing admits.
pub(super) const FROM_PEER: &str = "cut_from_peer";
/// Judges packets to peers that open something.
pub(super) const TO_PEER: &str = "cut_to_peer";

/// The counter that is there while every flow that the table knows was judged by it as it is.
pub(super) const JUDGED: &str = "flows_judged";

/// Milliseconds for which an ended flow is remembered: as long as a TCP sender goes on trying (`tcp_retries2`).
const REMEMBERED: u64 = 15 * 60 * 1_000;
/// Ended flows of one family that are remembered: as many as a kernel knows of all kinds unless it is told to know more
/// (`nf_conntrack_max`), so more cannot end at once. One takes some 130 bytes, and only while it is remembered.
const MOST: u32 = 262_144;

/// The set of ended flows: our address and port, the peer's address and port, the protocol.
pub(super) fn set(family: Family) -> Set {
    let address = family.part();
    Set {
        name: family.name("cut"),
        key: vec![address, Part::Port, address, Part::Port, Part::Protocol],
        is_interval: false,
        is_map: false,
        size: Some(MOST),
        timeout: Some(REMEMBERED),
    }
}

/// What the two chains hold.
pub(super) fn rules(lacks: Lacks) -> Vec<Object> {
    let refusal = || if lacks.reset { drop_it() } else { reset() };
    let [tcp, any] =
        [[Field::TCP_SOURCE_PORT, Field::TCP_DESTINATION_PORT], [Field::SOURCE_PORT, Field::DESTINATION_PORT]];
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let (source, destination) = (Field::source(family), Field::destination(family));
        rules.push(refuse(FROM_PEER, ended(family, [destination, tcp[1], source, tcp[0]]), refusal()));
    }
    for family in Family::BOTH {
        let (source, destination) = (Field::source(family), Field::destination(family));
        rules.push(refuse(TO_PEER, ended(family, [source, tcp[0], destination, tcp[1]]), refusal()));
        rules.push(refuse(TO_PEER, ended(family, [source, any[0], destination, any[1]]), drop_it()));
    }
    rules
}

/// Remembers flows as ended.
pub(super) fn remember(flows: &[Ended]) -> Vec<Command> {
    let of_family = |family: Family| {
        let flows = flows.iter().filter(|ended| Family::of(ended.opening.source) == family);
        let flows: Vec<Ended> = flows.copied().collect();
        (!flows.is_empty()).then(|| Command::AddElements(set(family), Elements::Ended(flows)))
    };
    Family::BOTH.into_iter().filter_map(of_family).collect()
}

/// Notes that all known flows were judged.
pub(super) fn note_judged() -> Vec<Command> {
    vec![Command::Add(Object::Counter(JUDGED.to_owned()))]
}

/// Takes that note away. What is not there cannot be deleted, so it is added first.
pub(super) fn unjudge() -> [Command; 2] {
    [Command::Add(Object::Counter(JUDGED.to_owned())), Command::DeleteCounter(JUDGED.to_owned())]
}

fn ended(family: Family, [a, b, c, d]: [Field; 4]) -> Condition {
    Condition::is_in(vec![a, b, c, d, Field::PROTOCOL], &family.name("cut"))
}

fn refuse(chain: &str, condition: Condition, refusal: Expression) -> Object {
    rule(chain, &[condition], [count(DENIED_REVOKED), refusal])
}
