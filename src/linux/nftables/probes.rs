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

use warren_core::plan::Probes;

use super::chains::{AFTER_HOST_FILTERS, RAW, base_chain};
use super::expression::{Base, Data, Expression, Verdict};
use super::object::{Hook, Object, Rule};
use super::rule::{Field, count, drop_it, rule, set_udp_destination};
use super::update::Command;

/// What came to the probe port by itself.
const DENIED_UNDIVERTED: &str = "denied_undiverted_probe";
const CHAIN: &str = "probes";
const UNTRACKED: &str = "untracked";

/// The first bytes of a DISCO packet, `TS💬`, in two parts: after the eight bytes of the UDP header.
const DISCO: [(u32, &[u8]); 2] = [(8, &[0x54, 0x53, 0xf0, 0x9f]), (12, &[0x92, 0xac])];
/// The magic cookie of STUN (RFC 8489), which stands behind type and length.
const STUN: [(u32, &[u8]); 1] = [(12, &[0x21, 0x12, 0xa4, 0x42])];

/// The chains and the counter, without rules; nothing where there are no probes.
pub(super) fn objects(probes: Option<&Probes>) -> Vec<Object> {
    match probes {
        None => Vec::new(),
        Some(_) => vec![
            Object::Counter(DENIED_UNDIVERTED.to_owned()),
            base_chain(CHAIN, Hook::Input, AFTER_HOST_FILTERS),
            base_chain(UNTRACKED, Hook::Output, RAW),
        ],
    }
}

/// The rules of those chains.
pub(super) fn rules(probes: Option<&Probes>) -> Vec<Object> {
    let Some(Probes { wireguard_port, probe_port, relay_port }) = probes.copied() else { return Vec::new() };
    let to = |port: u16| Field::UDP_DESTINATION_PORT.is(port.to_be_bytes());

    let mut rules = vec![rule(CHAIN, &[to(probe_port)], [count(DENIED_UNDIVERTED), drop_it()])];
    for magic in [DISCO.as_slice(), &STUN] {
        let magic = magic.iter().map(|(offset, bytes)| {
            let length = u32::try_from(bytes.len()).unwrap_or_default();
            Field::bytes(*offset, length).is(*bytes)
        });
        let conditions: Vec<_> = [to(wireguard_port)].into_iter().chain(magic).collect();
        rules.push(rule(CHAIN, &conditions, set_udp_destination(probe_port)));
    }
    let from_relay = Field::UDP_SOURCE_PORT.is(relay_port.to_be_bytes());
    for port in [to(relay_port), from_relay, to(wireguard_port)] {
        rules.push(rule(UNTRACKED, &[Field::OIFNAME.is_link("lo"), port], [Expression::Untrack {}]));
    }
    rules
}

/// Turns one into the other.
pub(super) fn update(from: Option<&Probes>, to: Option<&Probes>) -> Vec<Command> {
    if from == to {
        return Vec::new();
    }
    let mut commands = Vec::new();
    if from.is_some() {
        for chain in [CHAIN, UNTRACKED] {
            commands.extend([Command::FlushChain(chain.to_owned()), Command::DeleteChain(chain.to_owned())]);
        }
        if to.is_none() {
            commands.push(Command::DeleteCounter(DENIED_UNDIVERTED.to_owned()));
        }
    }
    commands.extend(objects(to).into_iter().chain(rules(to)).map(Command::Add));
    commands
}

/// Takes the ports from a rule, where it is one that names them. Whether the rest is right is seen in the comparison.
pub(super) fn collect(probes: &mut Option<Probes>, rule: &Rule) {
    let expressions = rule.expressions.as_slice();
    // Each kind of rule names one more port than the one before.
    let (of, port) = match (rule.chain.as_str(), expressions.last()) {
        (CHAIN, Some(Expression::Decide { verdict: Verdict::Drop })) => (Named::Probe, port(expressions, DESTINATION)),
        (CHAIN, Some(Expression::StorePayload { .. })) => (Named::Wireguard, port(expressions, DESTINATION)),
        (UNTRACKED, Some(Expression::Untrack {})) => (Named::Relay, port(expressions, SOURCE)),
        _ => return,
    };
    let Some(port) = port else { return };
    let probes = probes.get_or_insert(Probes { wireguard_port: 0, probe_port: 0, relay_port: 0 });
    match of {
        Named::Probe => probes.probe_port = port,
        Named::Wireguard => probes.wireguard_port = port,
        Named::Relay => probes.relay_port = port,
    }
}

enum Named {
    Probe,
    Wireguard,
    Relay,
}

/// Where the ports of a packet are.
const SOURCE: u32 = 0;
const DESTINATION: u32 = 2;

/// The port that a rule compares the one at this place with.
fn port(expressions: &[Expression], place: u32) -> Option<u16> {
    expressions.windows(2).find_map(|pair| match pair {
        [
            Expression::LoadPayload { base: Base::Transport, offset, length: 2, .. },
            Expression::Compare { value: Data(value), .. },
        ] if *offset == place => value.as_slice().try_into().ok().map(u16::from_be_bytes),
        _ => None,
    })
}
