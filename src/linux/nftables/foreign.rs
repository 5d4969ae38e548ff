//! Other programs' chains that would drop our packets.
//!
//! An accept in our table overrules nobody's drop. So other tables' base chains are read, a sample packet of each kind
//! that we live by is followed through them, and a chain where it ends is told with the rule that would let it pass.
//! Nothing is changed. What a rule means is understood as far as that is simple (interfaces, protocols, ports,
//! addresses, connection states, jumps); a match that is not counts as no match, but for accepts that name us. What
//! is read is bounded in number and size.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use warren_core::plan::{Firewall, Obstacle, own};
use warren_core::types::{IpNet, in_overlay};

use super::run;

/// Base chains of others that are followed. A host has a handful.
const BASE_CHAINS: usize = 32;
/// Chains that are listed in all: each is a run of `nft`.
const LISTED: usize = 96;
/// Jumps within jumps; the kernel allows 16.
const DEPTH: usize = 16;

/// Bits of connection states, as `nft -n` prints them.
const STATE_NEW: u64 = 8;

/// The obstacles on this host for a table like ours.
pub(super) async fn obstacles(firewall: &Firewall) -> Vec<Obstacle> {
    let Ok(listing) = run::run(&["list", "chains"]).await else { return Vec::new() };
    let samples = samples(firewall);
    let mut chains = Chains::default();
    let mut found = Vec::new();
    for base in base_chains(&listing).into_iter().take(BASE_CHAINS) {
        for sample in samples.iter().filter(|sample| sample.hook == base.hook && base.takes(sample)) {
            chains.load(&base, &base.name).await;
            let drops = match chains.follow(&base, &base.name, sample, 0) {
                Fate::Accepted => false,
                Fate::Dropped => true,
                Fate::Through => base.policy == "drop",
            };
            if drops {
                found.push(obstacle(&base, sample, &chains));
            }
        }
    }
    found
}

/// A packet that we live by.
struct Sample {
    hook: &'static str,
    what: String,
    iif: Option<&'static str>,
    oif: Option<&'static str>,
    source: Option<IpAddr>,
    protocol: &'static str,
    port: u16,
}

fn samples(firewall: &Firewall) -> Vec<Sample> {
    let port = firewall.probes.as_ref().map_or(own::LISTEN_PORT, |probes| probes.wireguard_port);
    let serves = firewall.served.routes().iter().any(|net| !in_overlay(net.addr()));
    // Any address and a port that no rule is likely to name: what is asked is whether peers are let in at all.
    let peer = |hook, what: &str, iif, oif| Sample {
        hook,
        what: what.to_owned(),
        iif,
        oif,
        source: iif.map(|_| IpAddr::from([100, 64, 0, 2])),
        protocol: "tcp",
        port: 47_113,
    };
    let outer = |hook| Sample {
        hook,
        what: format!("the tunnel's own packets (UDP port {port})"),
        iif: None,
        oif: None,
        source: None,
        protocol: "udp",
        port,
    };
    let mut samples = vec![
        peer("input", "what peers send to this machine", Some(own::LINK), None),
        outer("input"),
        peer("output", "what this machine sends to peers", None, Some(own::LINK)),
    ];
    if serves {
        samples.push(peer("forward", "what peers send to the networks behind this machine", Some(own::LINK), None));
    }
    samples
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    family: String,
    table: String,
    name: String,
    hook: String,
    policy: String,
}

impl Base {
    fn takes(&self, sample: &Sample) -> bool {
        // The samples are IPv4, or of either family.
        self.family == "inet" || self.family == "ip" || (self.family == "ip6" && sample.source.is_none())
    }
}

fn base_chains(listing: &str) -> Vec<Base> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let text = |chain: &Value, field: &str| chain[field].as_str().unwrap_or_default().to_owned();
    let bases = chains.filter(|chain| chain["type"] == "filter").map(|chain| Base {
        family: text(chain, "family"),
        table: text(chain, "table"),
        name: text(chain, "name"),
        hook: text(chain, "hook"),
        policy: text(chain, "policy"),
    });
    let is_other = |base: &Base| !(base.family == "inet" && base.table == own::NFT_TABLE);
    let concerns = |base: &Base| ["input", "forward", "output"].contains(&base.hook.as_str());
    let is_plain = |base: &Base| [&base.family, &base.table, &base.name].iter().all(|text| is_name(text));
    bases.filter(|base| is_other(base) && concerns(base) && is_plain(base)).collect()
}

/// What may be an argument of `nft`.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./\\".contains(&byte))
}

/// Where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// At the end of the chain.
    Through,
}

/// What is known of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    /// Yes, and it names our link or port.
    Us,
    No,
    Unknown,
}

/// Rules of chains by family, table and name, as listed.
#[derive(Default)]
struct Chains {
    rules: BTreeMap<(String, String, String), Vec<Value>>,
}

impl Chains {
    /// Lists a chain and whatever it leads to.
    async fn load(&mut self, base: &Base, name: &str) {
        let mut wanted = vec![name.to_owned()];
        while let Some(name) = wanted.pop() {
            let key = (base.family.clone(), base.table.clone(), name.clone());
            if self.rules.contains_key(&key) || self.rules.len() >= LISTED || !is_name(&name) {
                continue;
            }
            let listing = run::run(&["list", "chain", &base.family, &base.table, &name]).await;
            let rules = rules_of(&listing.unwrap_or_default());
            wanted.extend(rules.iter().flat_map(targets));
            self.rules.insert(key, rules);
        }
    }

    fn follow(&self, base: &Base, name: &str, sample: &Sample, depth: usize) -> Fate {
        let key = (base.family.clone(), base.table.clone(), name.to_owned());
        let rules = self.rules.get(&key).map(Vec::as_slice).unwrap_or_default();
        let mut may_have_returned = false;
        for rule in rules.iter().filter(|_| depth < DEPTH) {
            let statements = rule.as_array().map(Vec::as_slice).unwrap_or_default();
            let matches: Vec<Match> = statements.iter().filter_map(|statement| judge(statement, sample)).collect();
            let is_sure = matches.iter().all(|found| matches!(found, Match::Yes | Match::Us));
            let is_for_us = matches.contains(&Match::Us);
            if matches.contains(&Match::No) {
                continue;
            }
            for verdict in statements.iter().filter_map(|statement| verdict_of(statement, sample)) {
                let fate = match verdict {
                    Verdict::Accept if is_sure || is_for_us => Fate::Accepted,
                    Verdict::Drop if is_sure => Fate::Dropped,
                    Verdict::Return if is_sure => return Fate::Through,
                    Verdict::Return => {
                        may_have_returned = true;
                        Fate::Through
                    }
                    Verdict::Jump(chain) if is_sure => self.follow(base, &chain, sample, depth + 1),
                    Verdict::Goto(chain) if is_sure => return self.follow(base, &chain, sample, depth + 1),
                    _ => Fate::Through,
                };
                match fate {
                    Fate::Through => {}
                    Fate::Dropped if may_have_returned => return Fate::Through,
                    _ => return fate,
                }
            }
        }
        Fate::Through
    }

    fn has_chain(&self, base: &Base, is: impl Fn(&str) -> bool) -> bool {
        self.rules.keys().any(|(family, table, name)| *family == base.family && *table == base.table && is(name))
    }
}

fn rules_of(listing: &str) -> Vec<Value> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().filter_map(|object| Some(object.get("rule")?["expr"].clone())).collect()
}

/// Judges what we live by, by a listing of chains in which every base chain has all the rules.
pub(super) fn decode(listing: &str) -> bool {
    let (bases, rules) = (base_chains(listing), rules_of(listing));
    rules.iter().for_each(|rule| drop(targets(rule)));
    let key = |base: &Base| (base.family.clone(), base.table.clone(), base.name.clone());
    let chains = Chains { rules: bases.iter().map(|base| (key(base), rules.clone())).collect() };
    for sample in samples(&Firewall::default()) {
        for base in bases.iter().filter(|base| base.takes(&sample)) {
            chains.follow(base, &base.name, &sample, 0);
            let _ = obstacle(base, &sample, &chains);
        }
    }
    !bases.is_empty()
}

/// The chains that a rule may lead to.
fn targets(rule: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![rule];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(fields) => {
                for leads in ["jump", "goto"] {
                    found.extend(fields.get(leads).and_then(|to| to["target"].as_str()).map(str::to_owned));
                }
                rest.extend(fields.values());
            }
            _ => {}
        }
    }
    found
}

enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

fn verdict_of(statement: &Value, sample: &Sample) -> Option<Verdict> {
    let (kind, value) = statement.as_object()?.iter().next()?;
    let target = || value["target"].as_str().map(str::to_owned);
    match kind.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        // The one element of an inline map that holds the sample.
        "vmap" => {
            let elements = value["data"]["set"].as_array()?;
            let holds = |element: &&Value| {
                let sides = serde_json::json!({ "op": "==", "left": value["key"], "right": element[0] });
                matches!(compare(&sides, sample), Match::Yes | Match::Us)
            };
            verdict_of(&elements.iter().find(holds)?[1], sample)
        }
        _ => None,
    }
}

/// Whether a statement lets the sample on; `None` where it is no match.
fn judge(statement: &Value, sample: &Sample) -> Option<Match> {
    let (kind, value) = statement.as_object()?.iter().next()?;
    match kind.as_str() {
        "match" => Some(compare(value, sample)),
        "xt" if value["name"] == "comment" => Some(Match::Yes),
        "xt" | "limit" | "quota" | "ct count" => Some(Match::Unknown),
        _ => None,
    }
}

fn compare(sides: &Value, sample: &Sample) -> Match {
    let (left, right) = (&sides["left"], &sides["right"]);
    let found = if let Some(key) = left["meta"]["key"].as_str() {
        match key {
            "iif" | "iifname" => compare_link(right, sample.iif),
            "oif" | "oifname" => compare_link(right, sample.oif),
            "l4proto" => compare_protocol(right, sample),
            "nfproto" => one_of(right, |item| (item.as_u64()? == 2).into()),
            _ => Match::Unknown,
        }
    } else if left["ct"]["key"] == "state" {
        one_of(right, |item| Some(item.as_u64().is_some_and(|bits| bits & STATE_NEW != 0) || item == "new"))
    } else {
        compare_payload(&left["payload"], right, sample)
    };
    match (sides["op"].as_str(), found) {
        (Some("!="), Match::Yes | Match::Us) => Match::No,
        (Some("!="), Match::No) => Match::Yes,
        _ => found,
    }
}

fn compare_payload(payload: &Value, right: &Value, sample: &Sample) -> Match {
    match (payload["protocol"].as_str(), payload["field"].as_str()) {
        (Some("ip"), Some("protocol")) => compare_protocol(right, sample),
        (Some("ip"), Some("saddr")) => match sample.source {
            Some(source) => one_of(right, |item| Some(net_of(item)?.contains(&source))),
            None => Match::Unknown,
        },
        (Some(protocol @ ("tcp" | "udp")), _) if protocol != sample.protocol => Match::No,
        (Some("tcp" | "udp" | "th"), Some("dport")) if sample.hook != "output" => {
            match one_of(right, |item| holds_port(item, sample.port)) {
                Match::Yes if sample.protocol == "udp" => Match::Us,
                found => found,
            }
        }
        (Some("icmp" | "icmpv6" | "ip6"), _) => Match::No,
        _ => Match::Unknown,
    }
}

fn compare_link(right: &Value, link: Option<&str>) -> Match {
    let Some(link) = link else {
        // It is some link of the host, and neither of these.
        return one_of(right, |item| (item == "lo" || item == own::LINK).then_some(false));
    };
    let found = one_of(right, |item| {
        let name = item.as_str()?;
        Some(name.strip_suffix('*').map_or(name == link, |start| link.starts_with(start)))
    });
    if found == Match::Yes { Match::Us } else { found }
}

fn compare_protocol(right: &Value, sample: &Sample) -> Match {
    let number = if sample.protocol == "udp" { 17 } else { 6 };
    one_of(right, |item| Some(item.as_u64() == Some(number) || item == sample.protocol))
}

/// Whether one of the items, or the one, is as asked; `None` is for what cannot be told.
fn one_of(right: &Value, is: impl Fn(&Value) -> Option<bool>) -> Match {
    let one = [right.clone()];
    let items = right["set"].as_array().or_else(|| right.as_array()).map_or(&one[..], Vec::as_slice);
    let answers: Vec<Option<bool>> = items.iter().map(is).collect();
    match answers {
        answers if answers.contains(&Some(true)) => Match::Yes,
        answers if answers.contains(&None) => Match::Unknown,
        _ => Match::No,
    }
}

fn holds_port(item: &Value, port: u16) -> Option<bool> {
    let port = u64::from(port);
    match item["range"].as_array() {
        Some(range) => Some((range.first()?.as_u64()?..=range.get(1)?.as_u64()?).contains(&port)),
        None => Some(item.as_u64()? == port),
    }
}

fn net_of(item: &Value) -> Option<IpNet> {
    match item["prefix"].as_object() {
        Some(prefix) => {
            let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
        }
        None => item.as_str()?.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

fn obstacle(base: &Base, sample: &Sample, chains: &Chains) -> Obstacle {
    let Base { family, table, name, .. } = base;
    Obstacle {
        chain: format!("{family} {table} {name}"),
        what: sample.what.clone(),
        advice: advice(base, sample, chains),
    }
}

/// The command that lets the sample pass, in the words of whoever keeps the chain.
fn advice(base: &Base, sample: &Sample, chains: &Chains) -> String {
    let Base { family, table, name, .. } = base;
    let (link, port) = (own::LINK, sample.port);
    let is_udp = sample.protocol == "udp";
    if table == "firewalld" {
        return match is_udp {
            true => format!("firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"),
            false => format!("firewall-cmd --permanent --zone=trusted --add-interface={link} && firewall-cmd --reload"),
        };
    }
    if chains.has_chain(base, |name| name.starts_with("ufw")) {
        return match (is_udp, base.hook.as_str()) {
            (true, _) => format!("ufw allow {port}/udp"),
            (false, "forward") => format!("ufw route allow in on {link}"),
            (false, "output") => format!("ufw allow out on {link}"),
            (false, _) => format!("ufw allow in on {link}"),
        };
    }
    let is_iptables = table == "filter" && ["INPUT", "FORWARD", "OUTPUT"].contains(&name.as_str());
    if is_iptables && (family == "ip" || family == "ip6") {
        let program = if family == "ip" { "iptables" } else { "ip6tables" };
        let has_docker = base.hook == "forward" && chains.has_chain(base, |name| name == "DOCKER-USER");
        let chain = if has_docker { "DOCKER-USER" } else { name };
        return match (is_udp, base.hook.as_str()) {
            (true, _) => format!("{program} -I {chain} -p udp --dport {port} -j ACCEPT"),
            (false, "output") => format!("{program} -I {chain} -o {link} -j ACCEPT"),
            (false, "forward") => format!(
                "{program} -I {chain} -i {link} -j ACCEPT && {program} -I {chain} -o {link} -m conntrack --ctstate \
                 ESTABLISHED,RELATED -j ACCEPT"
            ),
            (false, _) => format!("{program} -I {chain} -i {link} -j ACCEPT"),
        };
    }
    let matches = match (is_udp, base.hook.as_str()) {
        (true, _) => format!("udp dport {port}"),
        (false, "output") => format!("oifname \"{link}\""),
        (false, _) => format!("iifname \"{link}\""),
    };
    format!("nft insert rule {family} {table} {name} {matches} accept")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(hook: &str, policy: &str) -> Base {
        let [family, table, name] = ["inet", "filter", "c"].map(str::to_owned);
        Base { family, table, name, hook: hook.to_owned(), policy: policy.to_owned() }
    }

    /// Where the first sample of input ends in a chain of these rules.
    fn fate(rules: &[&str]) -> Fate {
        let rules = rules.iter().map(|rule| serde_json::from_str(rule).unwrap()).collect();
        let key = ["inet", "filter", "c"].map(str::to_owned);
        let chains = Chains { rules: BTreeMap::from([(key.into(), rules)]) };
        chains.follow(&base("input", "drop"), "c", &samples(&Firewall::default())[0], 0)
    }

    const ESTABLISHED: &str = r#"[{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":[2,4]}},{"accept":null}]"#;
    const SSH: &str =
        r#"[{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":22}},{"accept":null}]"#;
    const OURS: &str = r#"[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"warren0"}},{"accept":null}]"#;
    const LOOPBACK: &str = r#"[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"lo"}},{"accept":null}]"#;

    #[test]
    fn a_chain_that_accepts_only_some_ports_lets_peers_through_to_its_policy() {
        assert_eq!(fate(&[ESTABLISHED, SSH, LOOPBACK]), Fate::Through);
        assert_eq!(fate(&[ESTABLISHED, SSH, OURS]), Fate::Accepted);
        assert_eq!(fate(&[SSH, r#"[{"counter":{}},{"reject":{"type":"icmpx"}}]"#]), Fate::Dropped);
    }

    #[test]
    fn what_is_not_understood_drops_nothing_and_accepts_only_what_names_us() {
        let odd = r#"{"match":{"op":"==","left":{"socket":{"key":"mark"}},"right":1}}"#;
        assert_eq!(fate(&[&format!("[{odd},{{\"drop\":null}}]")]), Fate::Through);
        assert_eq!(fate(&[&format!("[{odd},{{\"accept\":null}}]")]), Fate::Through);
        let ours = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":{"set":["eth0","warren*"]}}}"#;
        assert_eq!(fate(&[&format!("[{ours},{{\"xt\":null}},{{\"accept\":null}}]")]), Fate::Accepted);
        for broken in ["[]", "[{}]", "[null]", r#"[{"match":7}]"#, r#"[{"jump":{}}]"#, "7", r#"[{"vmap":{}}]"#] {
            assert_eq!(fate(&[broken]), Fate::Through, "{broken}");
        }
    }

    #[test]
    fn a_drop_after_a_return_that_is_not_understood_is_not_told() {
        // The end of ufw's `ufw-not-local`, which is jumped to before the chain of the user's own rules.
        let local = r#"[{"xt":{"type":"match","name":"addrtype"}},{"counter":{}},{"return":null}]"#;
        let rest = r#"[{"counter":{"packets":0,"bytes":0}},{"drop":null}]"#;
        assert_eq!(fate(&[local, rest]), Fate::Through);
        assert_eq!(fate(&[rest, local]), Fate::Dropped);
    }

    #[test]
    fn jumps_and_maps_are_followed_and_a_circle_ends() {
        assert_eq!(fate(&[r#"[{"jump":{"target":"c"}}]"#]), Fate::Through);
        let map = r#"[{"vmap":{"key":{"ct":{"key":"state"}},"data":{"set":[[2,{"accept":null}],[8,{"drop":null}]]}}}]"#;
        assert_eq!(fate(&[map]), Fate::Dropped);
    }
}
