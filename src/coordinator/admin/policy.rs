//! Administration of the policy: which one is in force, which were, what another would change, and why a packet
//! may pass or not.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::execute::invalid;
use super::{Outcome, Refused, Reply};
use warren_core::policy::{Access, Compiled, Difference, Policy, Protocol, Row};
use warren_core::registry::{NodeRecord, Outlook, PolicyRecord, State};
use warren_core::types::{NodeId, Timestamp};

/// What an administrator asks about the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum PolicyRequest {
    /// The version in force, or another.
    Get {
        version: Option<u64>,
    },
    /// Refused where another version than `if_version` is in force; 0 is none.
    Set {
        text: String,
        by: String,
        if_version: Option<u64>,
    },
    Versions,
    Restore {
        version: u64,
        by: String,
        if_version: Option<u64>,
    },
    Diff {
        text: String,
    },
}

/// A version of the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PolicyView {
    /// 0 where nobody ever set one.
    pub(crate) version: u64,
    pub(crate) by: String,
    pub(crate) at: Option<Timestamp>,
    pub(crate) bytes: usize,
    pub(crate) in_force: bool,
    /// Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiffView {
    pub(crate) gains: Vec<RowView>,
    pub(crate) loses: Vec<RowView>,
    pub(crate) pairs_gaining: usize,
    pub(crate) pairs_losing: usize,
    /// Rows that are not shown.
    pub(crate) left_out: usize,
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RowView {
    pub(crate) from: Vec<String>,
    pub(crate) to: Vec<String>,
    pub(crate) access: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WhyView {
    pub(crate) allowed: bool,
    pub(crate) from: String,
    pub(crate) to: String,
    /// What was asked about: `tcp/22`, or `anything`.
    pub(crate) packet: String,
    /// The rules that allow it.
    pub(crate) rules: Vec<RuleView>,
    /// Rules that open something else from here to there.
    pub(crate) others: Vec<RuleView>,
    /// What else stands in the way, or is good to know.
    pub(crate) reasons: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RuleView {
    /// Of the policy in force, counted from 1.
    pub(crate) line: u32,
    pub(crate) reference: String,
    pub(crate) text: String,
    pub(crate) opens: String,
}

/// A policy was put in force.
pub(super) fn set(state: &State, record: &PolicyRecord, mut notes: Vec<String>) -> Reply {
    notes.extend(state.advice());
    Reply::PolicySet(PolicyView { notes, ..view(state, record, false) })
}

pub(super) fn versions(state: &State) -> Reply {
    Reply::Policies(state.policies().rev().map(|policy| view(state, policy, false)).collect())
}

pub(super) fn get(state: &State, version: Option<u64>) -> Outcome {
    let policy = match version {
        Some(version) => Some(state.policy_version(version)?),
        None => state.policy(),
    };
    let unset = || PolicyView {
        version: 0,
        by: String::new(),
        at: None,
        bytes: 0,
        in_force: true,
        text: Some(String::new()),
        notes: Vec::new(),
    };
    Ok(Reply::Policy(policy.map_or_else(unset, |policy| view(state, policy, true))))
}

fn view(state: &State, policy: &PolicyRecord, with_text: bool) -> PolicyView {
    let is_last = state.policy().is_some_and(|last| last.version == policy.version);
    PolicyView {
        version: policy.version,
        by: policy.by.clone(),
        at: Some(policy.at),
        bytes: policy.text.len(),
        in_force: is_last && state.policy_fault().is_none(),
        text: with_text.then(|| policy.text.to_string()),
        notes: Vec::new(),
    }
}

/// Who would gain and lose what.
pub(super) fn difference(outlook: &Outlook, text: &str) -> Outcome {
    let Difference { gained, lost, pairs_gaining, pairs_losing, left_out, notes } = outlook.difference(text)?;
    let row = |row: Row| RowView { from: row.sources, to: row.targets, access: row.access };
    Ok(Reply::PolicyDiff(DiffView {
        gains: gained.into_iter().map(row).collect(),
        loses: lost.into_iter().map(row).collect(),
        pairs_gaining,
        pairs_losing,
        left_out,
        notes,
    }))
}

// ---- why ----

/// One end of a packet.
struct End {
    text: String,
    node: Option<(NodeId, Vec<IpAddr>, bool)>,
    address: Option<IpAddr>,
}

/// Whether a packet may pass, by which rules, or why not.
pub(super) fn why(state: &State, from: &str, to: &str, protocol: Option<&str>, port: Option<u16>) -> Outcome {
    let protocol: Option<Protocol> = protocol.map(str::parse).transpose().map_err(invalid)?;
    let unrestricted;
    let compiled = match state.compiled() {
        Some(compiled) => compiled,
        None => {
            unrestricted = state.unrestricted();
            &unrestricted
        }
    };
    let (source, target) = (end(state, compiled, from)?, end(state, compiled, to)?);
    let (from, to) = addresses(&source, &target)?;
    let access = compiled.access(from, to);
    let is_asked = |access: &Access| protocol.is_none_or(|protocol| access.allows(protocol, port));
    let (rules, others): (Vec<Access>, Vec<Access>) = access.into_iter().partition(is_asked);
    let mut reasons = obstacles(compiled, &source, &target, from, to);
    let allowed = reasons.is_empty() && !rules.is_empty();
    if rules.is_empty() {
        reasons.push(match (state.policy(), others.is_empty()) {
            (Some(policy), true) => format!("no rule of the policy (version {}) names both", policy.version),
            (Some(policy), false) => format!("no rule of the policy (version {}) opens this", policy.version),
            (None, _) => "without a policy only TCP, UDP and ICMP pass".to_owned(),
        });
    } else if state.policy().is_none() {
        reasons.push("no policy was ever set: everything is allowed".to_owned());
    }
    reasons.extend(state.policy_fault().map(str::to_owned));
    let packet = match (protocol, port) {
        (Some(protocol), Some(port)) => format!("{protocol}/{port}"),
        (Some(protocol), None) => protocol.to_string(),
        (None, _) => "anything".to_owned(),
    };
    let rule = |access: Access| rule_view(compiled.policy(), &access);
    Ok(Reply::Why(WhyView {
        allowed,
        from: shown(&source, from),
        to: shown(&target, to),
        packet,
        rules: rules.into_iter().filter_map(rule).collect(),
        others: others.into_iter().filter_map(rule).collect(),
        reasons,
    }))
}

fn end(state: &State, compiled: &Compiled, text: &str) -> Result<End, Refused> {
    let address: Option<IpAddr> = text.parse().ok();
    match (state.find_node(text), address) {
        (Ok(node), address) => {
            let record: &NodeRecord = node.record;
            let addresses = compiled.addresses(record.id).to_vec();
            Ok(End { text: record.label.to_string(), node: Some((record.id, addresses, node.expired)), address })
        }
        (Err(_), Some(address)) => Ok(End { text: address.to_string(), node: None, address: Some(address) }),
        (Err(refusal), None) => Err(refusal.into()),
    }
}

/// The addresses that a packet would carry: of one family, IPv4 where both have it.
fn addresses(source: &End, target: &End) -> Result<(IpAddr, IpAddr), Refused> {
    let candidates = |end: &End| match (end.address, &end.node) {
        (Some(address), _) => vec![address],
        (None, Some((_, addresses, _))) => addresses.clone(),
        (None, None) => Vec::new(),
    };
    let (from, to) = (candidates(source), candidates(target));
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    let mut of_one_family: Vec<_> = pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()).collect();
    of_one_family.sort_by_key(|(from, _)| from.is_ipv6());
    let first = of_one_family.first().copied();
    first.ok_or_else(|| invalid(format!("{} and {} have no addresses of one family", source.text, target.text)))
}

/// What stands in the way whatever the rules say.
fn obstacles(compiled: &Compiled, source: &End, target: &End, from: IpAddr, to: IpAddr) -> Vec<String> {
    let mut reasons = Vec::new();
    let expired = [source, target].into_iter().filter(|end| end.node.as_ref().is_some_and(|(_, _, expired)| *expired));
    reasons.extend(expired.map(|end| format!("the key of {} is past its time: it must log in again", end.text)));
    match (&source.node, &target.node) {
        (Some((a, ..)), Some((b, ..))) if a == b => reasons.push("that is one node".to_owned()),
        (Some((id, ..)), None)
            if !compiled.peers(*id).iter().any(|peer| peer.allowed_ips().any(|net| net.contains(&to))) =>
        {
            reasons.push(format!("no node that {} may use serves an approved route to {to}", source.text));
        }
        (None, Some((id, ..)))
            if !compiled.peers(*id).iter().any(|peer| peer.allowed_ips().any(|net| net.contains(&from))) =>
        {
            reasons.push(format!("{from} is neither a node nor behind an approved route of a peer of {}", target.text));
        }
        (None, None) => reasons.push("neither is a node".to_owned()),
        _ => {}
    }
    reasons
}

fn shown(end: &End, address: IpAddr) -> String {
    match end.node {
        Some(_) => format!("{} ({address})", end.text),
        None => address.to_string(),
    }
}

/// A rule as it is shown; none for what holds without being written.
fn rule_view(policy: &Policy, access: &Access) -> Option<RuleView> {
    let origin = access.origin.as_ref()?;
    let ports = access.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Some(RuleView {
        line: origin.line,
        reference: origin.reference.clone(),
        text: policy.rule_text(origin),
        opens: match access.protocol {
            Some(protocol) if protocol.has_ports() => format!("{protocol}/{ports}"),
            Some(protocol) => protocol.to_string(),
            None => format!("port {ports}"),
        },
    })
}
