//! Requests about the policy: which one is in force, which were, what another would change, and why a packet may pass or
//! not.
//!
//! A policy is compiled beside the registry's task, against the network as it was when the request came, so that no node
//! waits for it; the task brings the outcome up to date.

use std::net::IpAddr;

use super::refused::{Refused, ServiceResult};
use crate::hub::Hub;
use warren_core::policy::{Access, Compiled, Difference, Policy, Protocol, Row};
use warren_core::registry::{Actor, NodeRecord, PolicyRecord, Snapshot, State};
use warren_core::types::{NodeId, Traffic};
use warren_core::wire::admin::{PolicyDiffView, PolicyRequest, PolicyView, Reply, RowView, RuleView, WhyView};

/// Carries out one request. What the reply tells is on disk.
pub(super) async fn execute(hub: &Hub, actor: &Actor, request: PolicyRequest) -> ServiceResult {
    let (text, by, if_version) = match request {
        PolicyRequest::Get { version } => return hub.look(move |state| get(state, version)).await?,
        PolicyRequest::Versions => return Ok(hub.look(versions).await?),
        PolicyRequest::Diff { text } => {
            let snapshot = hub.snapshot().await?;
            return besides(move || difference(&snapshot, &text)).await;
        }
        PolicyRequest::Set { text, by, if_version } => (text, by, if_version),
        PolicyRequest::Restore { version, by, if_version } => {
            let text = hub.look(move |state| state.policy_version(version).map(|record| record.text.to_string()));
            (text.await??, by, if_version)
        }
    };
    let snapshot = hub.snapshot().await?;
    let ready = besides(move || Ok(snapshot.compile(&text)?)).await?;
    let (record, notes) = hub.set_policy(actor.clone(), ready, by, if_version).await?;
    Ok(hub.look(move |state| set(state, &record, notes)).await?)
}

/// Does some work in a thread of its own.
async fn besides<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Refused::failed(format!("compiling the policy: {error}"))))
}

/// A policy was put in force.
fn set(state: &State, record: &PolicyRecord, mut notes: Vec<String>) -> Reply {
    notes.extend(state.advice());
    Reply::PolicySet(PolicyView { notes, ..view(state, record, false) })
}

fn versions(state: &State) -> Reply {
    Reply::Policies(state.policies().rev().map(|policy| view(state, policy, false)).collect())
}

fn get(state: &State, version: Option<u64>) -> ServiceResult {
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
fn difference(snapshot: &Snapshot, text: &str) -> ServiceResult {
    let Difference { gained, lost, pairs_gaining, pairs_losing, left_out, notes } = snapshot.difference(text)?;
    let row = |row: Row| RowView { from: row.sources, to: row.targets, access: row.access };
    Ok(Reply::PolicyDiff(PolicyDiffView {
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
pub(super) fn why(state: &State, from: &str, to: &str, traffic: &Traffic) -> ServiceResult {
    let port = traffic.port;
    let protocol: Option<Protocol> =
        traffic.protocol.as_deref().map(str::parse).transpose().map_err(Refused::invalid)?;
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
    let asked = Traffic { protocol: protocol.map(|protocol| protocol.to_string()), port };
    let rule = |access: Access| rule_view(compiled.policy(), &access);
    Ok(Reply::Why(WhyView {
        allowed,
        from: shown(&source, from),
        to: shown(&target, to),
        packet: asked.to_string(),
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
    first
        .ok_or_else(|| Refused::invalid(format!("{} and {} have no addresses of one family", source.text, target.text)))
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
        (Some(_), Some(_) | None) | (None, Some(_)) => {}
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
