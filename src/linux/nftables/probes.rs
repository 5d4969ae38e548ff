//! Path probes and relayed packets in our table.
//!
//! ```text
//! probes    (input)   to the probe port, undiverted: dropped
//!           (input)   to WireGuard's port, a DISCO or a STUN packet by its magic: to the probe port
//! untracked (output)  on the loopback, to or from the relay port, or to WireGuard's: not tracked
//! ```
//!
//! The probes are diverted after the host's own filters, so that one which closes WireGuard's port closes it for
//! probes too: a path is never found that WireGuard cannot use. WireGuard's own packets pay for two comparisons.

use nftables::expr::{Expression, MetaKey, NamedExpression, Payload, PayloadBase, PayloadRaw};
use nftables::schema::Rule;
use nftables::stmt::{Mangle, Match, Statement};
use nftables::types::NfHook;

use warren_core::plan::Probes;

use super::chains::{AFTER_HOST_FILTERS, RAW, base_chain};
use super::object::{Command, Object};
use super::table::{count, counter, equals, meta, payload, rule, text};

/// What came to the probe port by itself.
const DENIED_UNDIVERTED: &str = "denied_undiverted_probe";
const CHAIN: &str = "probes";
const UNTRACKED: &str = "untracked";

/// The first bytes of a DISCO packet, `TS💬`, in two parts: after the eight bytes of the UDP header.
const DISCO: [(u32, u32, u32); 2] = [(64, 32, 0x5453_f09f), (96, 16, 0x92ac)];
/// The magic cookie of STUN (RFC 8489), which stands behind type and length.
const STUN: [(u32, u32, u32); 1] = [(96, 32, 0x2112_a442)];

/// The chains and the counter, without rules; nothing where there are no probes.
pub(super) fn objects(probes: Option<&Probes>) -> Vec<Object> {
    match probes {
        None => Vec::new(),
        Some(_) => vec![
            counter(DENIED_UNDIVERTED.to_owned()),
            base_chain(CHAIN, NfHook::Input, AFTER_HOST_FILTERS),
            base_chain(UNTRACKED, NfHook::Output, RAW),
        ],
    }
}

/// The rules of those chains.
pub(super) fn rules(probes: Option<&Probes>) -> Vec<Object> {
    let Some(Probes { wireguard_port, probe_port, relay_port }) = probes.copied() else { return Vec::new() };
    let number = |port: u16| Expression::Number(port.into());
    let to = |port: u16| equals(payload("udp", "dport"), number(port));
    let divert = || Statement::Mangle(Mangle { key: payload("udp", "dport"), value: number(probe_port) });

    let guard = vec![to(probe_port), count(DENIED_UNDIVERTED.to_owned()), Statement::Drop(None)];
    let mut probes = vec![guard];
    for magic in [DISCO.as_slice(), &STUN] {
        let magic = magic.iter().map(|(offset, len, value)| equals(bits(*offset, *len), Expression::Number(*value)));
        probes.push([to(wireguard_port)].into_iter().chain(magic).chain([divert()]).collect());
    }
    let from_relay = equals(payload("udp", "sport"), number(relay_port));
    let untracked = [to(relay_port), from_relay, to(wireguard_port)]
        .map(|port| vec![equals(meta(MetaKey::Oifname), text("lo")), port, Statement::Notrack]);
    let in_chain = |chain: &'static str, rules: Vec<Vec<_>>| {
        rules.into_iter().map(move |statements| rule(chain.to_owned(), statements))
    };
    in_chain(CHAIN, probes).chain(in_chain(UNTRACKED, untracked.into())).collect()
}

/// Turns one into the other.
pub(super) fn update(from: Option<&Probes>, to: Option<&Probes>) -> Vec<Command> {
    if from == to {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for chain in objects(from).into_iter().filter(|object| matches!(object, Object::Chain(_))) {
        commands.extend([Command::Flush(chain.clone()), Command::Delete(chain)]);
    }
    if to.is_none() {
        commands.push(Command::Delete(counter(DENIED_UNDIVERTED.to_owned())));
    }
    commands.extend(objects(to).into_iter().chain(rules(to)).map(Command::Add));
    commands
}

/// Takes the ports from a rule, where it is one that names them. Whether the rest is right is seen in the comparison.
pub(super) fn collect(probes: &mut Option<Probes>, rule: &Rule<'_>) {
    let found = match (rule.chain.as_ref(), rule.expr.as_ref()) {
        // Each kind of rule names one more port than the one before.
        (CHAIN, [to, Statement::Counter(_), Statement::Drop(_)]) => port(to).map(Found::Probe),
        (CHAIN, [to, _, Statement::Mangle(_)]) => port(to).map(Found::Wireguard),
        (UNTRACKED, [_, from, Statement::Notrack]) if is_source(from) => port(from).map(Found::Relay),
        _ => None,
    };
    let Some(found) = found else { return };
    let probes = probes.get_or_insert(Probes { wireguard_port: 0, probe_port: 0, relay_port: 0 });
    match found {
        Found::Probe(port) => probes.probe_port = port,
        Found::Wireguard(port) => probes.wireguard_port = port,
        Found::Relay(port) => probes.relay_port = port,
    }
}

enum Found {
    Probe(u16),
    Wireguard(u16),
    Relay(u16),
}

fn port(statement: &Statement<'_>) -> Option<u16> {
    match statement {
        Statement::Match(Match { right: Expression::Number(port), .. }) => u16::try_from(*port).ok(),
        _ => None,
    }
}

fn is_source(statement: &Statement<'_>) -> bool {
    let source = payload("udp", "sport");
    matches!(statement, Statement::Match(Match { left, .. }) if *left == source)
}

/// So many bits of the packet, counted from the beginning of the UDP header.
fn bits(offset: u32, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw { base: PayloadBase::TH, offset, len })))
}
