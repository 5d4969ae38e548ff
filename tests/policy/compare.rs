//! What we say against what was captured, node by node. Order counts only where it means something: in the
//! list of SSH rules, of which the first that matches decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use warren_core::policy::{Compiled, Policy};
use warren_core::types::{IpNet, NodeId};
use warren_core::wire::control::CapMap;

use crate::capture::{Answer, Capture};

/// Capabilities that a coordinator gives to every node of a network, or for settings outside the policy.
const NOT_OF_THE_POLICY: &[&str] = &[
    "default-auto-update",
    "https://tailscale.com/cap/file-sharing",
    "https://tailscale.com/cap/is-admin",
    "https://tailscale.com/cap/is-owner",
    "https://tailscale.com/cap/ssh",
    "https://tailscale.com/cap/tailnet-lock",
    "probe-udp-lifetime",
    "ssh-behavior-v1",
    "ssh-env-vars",
    "store-appc-routes",
    "tailnet-display-name",
];

/// Where the captured SSH rules say that a held session is decided.
const COORDINATOR: &str = "https://unused";

/// Everything that is not as captured, a line each.
pub(crate) fn differences(capture: &Capture) -> Vec<String> {
    let outcome = Policy::parse(capture.policy().as_bytes()).and_then(|policy| {
        let compiled = Compiled::new(Arc::new(policy), capture.topology());
        compiled.check().map(|()| compiled)
    });
    match (outcome, capture.status) {
        (Err(errors), 400) => {
            let message = errors.0.first().map(|error| error.message.as_str());
            differ("error", message, capture.error.as_deref()).into_iter().collect()
        }
        (Err(errors), _) => vec![format!("refused: {errors}")],
        (Ok(_), 400) => vec![format!("accepted; captured error: {:?}", capture.error)],
        (Ok(compiled), _) => {
            let ids = capture.ids();
            let answers =
                capture.nodes.iter().filter_map(|(name, answer)| Some((name, *ids.get(name.as_str())?, answer)));
            let of_node = answers.flat_map(|(name, id, answer)| {
                let found = node_differences(&compiled, id, answer, &ids);
                found.into_iter().map(move |difference| format!("{name}: {difference}"))
            });
            of_node.collect()
        }
    }
}

fn node_differences(compiled: &Compiled, id: NodeId, answer: &Answer, ids: &BTreeMap<&str, NodeId>) -> Vec<String> {
    let filter = serde_json::to_value(compiled.packet_filter(id)).unwrap();
    let expected_filter = answer.packet_filter_rules.clone().unwrap_or_else(|| Value::Array(Vec::new()));
    let ssh = serde_json::to_value(compiled.ssh_policy(id, COORDINATOR).rules).unwrap();
    let expected_ssh = answer.ssh_rules.clone().unwrap_or_else(|| Value::Array(Vec::new()));
    let own: BTreeSet<IpNet> = own_ips(compiled, id);
    [
        differ("packet filter", rule_set(filter), rule_set(expected_filter)),
        differ("SSH rules", rule_list(ssh), rule_list(expected_ssh)),
        differ("own allowed IPs", own, answer.own.allowed_ips.clone()),
        differ("own capabilities", of_policy(caps(compiled.attributes(id))), of_policy(answer.own.cap_map.clone())),
        differ("peers", our_peers(compiled, id), their_peers(answer, ids)),
        whois_difference(compiled, id, answer),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn differ<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Option<String> {
    (ours != theirs).then(|| format!("{what}:\n        ours:   {ours:?}\n        theirs: {theirs:?}"))
}

fn own_ips(compiled: &Compiled, id: NodeId) -> BTreeSet<IpNet> {
    let addresses = compiled.addresses(id).iter().map(|address| IpNet::from(*address));
    addresses.chain(compiled.approved_routes(id).iter().copied()).collect()
}

/// A peer: addresses, allowed IPs, primary routes, capabilities.
type Sight = (BTreeSet<IpNet>, BTreeSet<IpNet>, BTreeSet<IpNet>, BTreeMap<String, Value>);

fn our_peers(compiled: &Compiled, id: NodeId) -> BTreeMap<NodeId, Sight> {
    let peers = compiled.peers(id).into_iter().map(|peer| {
        let addresses = peer.addresses.iter().map(|address| IpNet::from(*address)).collect();
        let allowed = peer.allowed_ips().collect();
        (peer.id, (addresses, allowed, peer.subnets.iter().copied().collect(), caps(peer.capabilities)))
    });
    peers.collect()
}

fn their_peers(answer: &Answer, ids: &BTreeMap<&str, NodeId>) -> BTreeMap<NodeId, Sight> {
    let peers = answer.peers.iter().map(|peer| {
        let sight =
            (peer.addresses.clone(), peer.allowed_ips.clone(), peer.primary_routes.clone(), peer.cap_map.clone());
        (ids[peer.host()], sight)
    });
    peers.collect()
}

fn whois_difference(compiled: &Compiled, id: NodeId, answer: &Answer) -> Option<String> {
    let differences = answer.whois.iter().flatten().filter_map(|(address, theirs)| {
        let ours = caps(compiled.capabilities(id, *address));
        let theirs: BTreeMap<String, Value> =
            theirs.clone().map(|map| serde_json::from_value(map).unwrap()).unwrap_or_default();
        differ(&format!("capabilities of {address}"), ours, theirs)
    });
    differences.reduce(|all, more| format!("{all}; {more}"))
}

fn caps(map: CapMap) -> BTreeMap<String, Value> {
    map.into_iter().map(|(name, arguments)| (name, serde_json::to_value(arguments).unwrap())).collect()
}

fn of_policy(mut caps: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    caps.retain(|name, _| !NOT_OF_THE_POLICY.contains(&name.as_str()));
    caps
}

/// A rule without the order of the lists inside it, as text.
fn canonical(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.into_iter().map(canonical).collect();
            items.sort_by_key(Value::to_string);
            items.dedup();
            Value::Array(items)
        }
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, canonical(value))).collect(),
        other => other,
    }
}

fn rule_set(rules: Value) -> BTreeSet<String> {
    rules.as_array().into_iter().flatten().map(|rule| canonical(rule.clone()).to_string()).collect()
}

fn rule_list(rules: Value) -> Vec<String> {
    rules.as_array().into_iter().flatten().map(|rule| canonical(rule.clone()).to_string()).collect()
}
