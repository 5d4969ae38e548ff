//! Flows that were ended, and that they are over.
//!
//! A flow that is deleted from the kernel's table can come back by this side: what we send is not filtered, so the next
//! packet of a server that knows nothing of it would be taken for the opening of a new flow, and everything that
//! the peer sends for its answers. So the tuple of an ended flow is remembered in a set for a while. In the
//! direction of the peer it is looked up only for packets that open something; from the peer, only for packets that no
//! rule admits. TCP is answered with a reset on both sides, so that programs notice at once.

use nftables::expr::{Expression, MetaKey};
use nftables::stmt::{Reject, RejectType, Statement};

use warren_core::plan::{Lacks, own};

use super::object::{Command, CutSet, ElementList, Elements, Ended, Object, Set};
use super::table::{DENIED_REVOKED, Family, concat, count, counter, equals, meta, payload, reference, rule};

/// Judges packets from peers that nothing admits.
pub(super) const FROM_PEER: &str = "cut_from_peer";
/// Judges packets to peers that open something.
pub(super) const TO_PEER: &str = "cut_to_peer";

/// The counter that is there while every flow that the table knows was judged by it as it is.
pub(super) const JUDGED: &str = "flows_judged";

/// Seconds for which an ended flow is remembered: as long as a TCP sender goes on trying (`tcp_retries2`).
const REMEMBERED: u64 = 15 * 60;
/// Ended flows of one family that are remembered: as many as a kernel knows of all kinds unless it is told to know more
/// (`nf_conntrack_max`), so more cannot end at once. One takes some 130 bytes, and only while it is remembered.
const MOST: u64 = 262_144;

/// The set of ended flows: our address and port, the peer's address and port, the protocol.
pub(super) fn set(family: Family) -> Object {
    let address = family.address_type();
    let key = [address, "inet_service", address, "inet_service", "inet_proto"];
    Object::Set(Set::Cut(CutSet {
        family: "inet".to_owned(),
        table: own::NFT_TABLE.to_owned(),
        name: name(family),
        key: key.map(str::to_owned).to_vec(),
        size: MOST,
        flags: vec!["timeout".to_owned()],
        timeout: REMEMBERED,
    }))
}

/// What the two chains hold.
pub(super) fn rules(lacks: Lacks) -> Vec<Object> {
    let reset = || if lacks.reset { Statement::Drop(None) } else { reset() };
    let mut rules = Vec::new();
    for family in Family::BOTH {
        rules.push(refuse(FROM_PEER, ended(family, "tcp", ["daddr", "dport", "saddr", "sport"]), reset()));
    }
    for family in Family::BOTH {
        let order = ["saddr", "sport", "daddr", "dport"];
        rules.push(refuse(TO_PEER, ended(family, "tcp", order), reset()));
        rules.push(refuse(TO_PEER, ended(family, "th", order), Statement::Drop(None)));
    }
    rules
}

/// Remembers flows as ended.
pub(super) fn remember(flows: &[Ended]) -> Vec<Command> {
    let of_family = |family: Family| {
        let flows = flows.iter().filter(|ended| Family::of(ended.opening.source) == family);
        let elem: Vec<Ended> = flows.copied().collect();
        let is_any = !elem.is_empty();
        let elements = Elements { name: name(family), elem: ElementList::Ended(elem) };
        is_any.then(|| Command::Add(Object::Element(elements)))
    };
    Family::BOTH.into_iter().filter_map(of_family).collect()
}

/// Notes that all known flows were judged.
pub(super) fn note_judged() -> Vec<Command> {
    vec![Command::Add(counter(JUDGED.to_owned()))]
}

/// Takes that note away. What is not there cannot be deleted, so it is added first.
pub(super) fn unjudge() -> [Command; 2] {
    let note = counter(JUDGED.to_owned());
    [Command::Add(note.clone()), Command::Delete(note)]
}

fn name(family: Family) -> String {
    format!("cut{}", family.digit())
}

fn ended(family: Family, transport: &'static str, [a, b, c, d]: [&'static str; 4]) -> Statement<'static> {
    let address = |field| payload(family.protocol(), field);
    let port = |field| payload(transport, field);
    let key = vec![address(a), port(b), address(c), port(d), meta(MetaKey::L4proto)];
    let set: Expression<'static> = reference("cut", family);
    equals(concat(key), set)
}

fn refuse(chain: &str, matches: Statement<'static>, verdict: Statement<'static>) -> Object {
    rule(chain.to_owned(), vec![matches, count(DENIED_REVOKED.to_owned()), verdict])
}

fn reset() -> Statement<'static> {
    Statement::Reject(Some(Reject { _type: Some(RejectType::TCPReset), expr: None }))
}
