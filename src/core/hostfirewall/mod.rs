//! Other programs' chains that would drop our packets.
//!
//! An accept in our table overrules nobody's drop. So other tables' base chains are read, a sample packet of each kind
//! that we live by is followed through them, and a chain where it ends is told with the rule that would let it pass.
//! Nothing is changed. What a rule means is understood as far as that is simple (interfaces, protocols, ports,
//! addresses, connection states, jumps); a match that is not counts as no match, but for accepts that name us. What
//! is read is bounded in number.
//!
//! A [`Survey`] asks for one chain after the other and is fed with their listings, in the words of `nft -j -n`.

mod advice;
mod rule;
mod sample;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::plan::{Firewall, Obstacle, own};

use self::advice::advice;
use self::rule::{Match, Rule, Verdict};
use self::sample::{Sample, samples};

/// Base chains of others that are followed. A host has a handful.
const BASE_CHAINS: usize = 32;
/// Chains that are listed in all: each is a run of a program.
const LISTED: usize = 96;
/// Jumps within jumps; the kernel allows 16.
const DEPTH: usize = 16;
/// Rules that one sample is asked of, those of a chain again for each jump to it. Where that is not enough, nothing is
/// told of the chain.
const FOLLOWED: usize = 100_000;

/// A chain of another program. Each of its names may be an argument of `nft`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// The address family of its table.
    pub family: String,
    pub table: String,
    /// Its own name.
    pub name: String,
}

/// What is known of other programs' chains, and which are still to be listed.
#[derive(Clone, Debug)]
pub struct Survey {
    samples: Vec<Sample>,
    bases: Vec<Base>,
    /// Rules by chain, as listed.
    rules: BTreeMap<ChainName, Vec<Rule>>,
    wanted: BTreeSet<ChainName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    chain: ChainName,
    hook: String,
    policy: String,
}

impl Survey {
    /// Begins with the listing of all chains without rules, on a host with this firewall of ours.
    pub fn new(chains: &str, firewall: &Firewall) -> Self {
        let samples = samples(firewall);
        let mut bases = base_chains(chains);
        bases.truncate(BASE_CHAINS);
        bases.retain(|base| samples.iter().any(|sample| base.takes(sample)));
        let wanted = bases.iter().map(|base| base.chain.clone()).collect();
        Self { samples, bases, rules: BTreeMap::new(), wanted }
    }

    /// The next chain whose listing is wanted.
    pub fn next(&self) -> Option<&ChainName> {
        self.wanted.first().filter(|_| self.rules.len() < LISTED)
    }

    /// Takes the listing of a chain; an empty one where there is none.
    pub fn insert(&mut self, chain: ChainName, listing: &str) {
        let rules = rules_of(listing);
        let led_to = rules.iter().flat_map(Rule::targets).map(|name| ChainName { name, ..chain.clone() });
        self.wanted.extend(led_to.filter(|name| name.is_plain() && !self.rules.contains_key(name)));
        self.wanted.remove(&chain);
        self.rules.insert(chain, rules);
    }

    /// The chains that would drop something of ours.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let mut found = Vec::new();
        for base in &self.bases {
            for sample in self.samples.iter().filter(|sample| base.takes(sample)) {
                let mut left = FOLLOWED;
                let drops = match self.follow(&base.chain, sample, 0, &mut left) {
                    Fate::Accepted => false,
                    Fate::Dropped => true,
                    Fate::Through => base.policy == "drop",
                };
                if drops && left > 0 {
                    found.push(self.obstacle(base, sample));
                }
            }
        }
        found
    }

    fn obstacle(&self, base: &Base, sample: &Sample) -> Obstacle {
        let ChainName { family, table, name } = &base.chain;
        let is_beside = |chain: &&ChainName| chain.family == *family && chain.table == *table;
        let beside: Vec<&str> = self.rules.keys().filter(is_beside).map(|chain| chain.name.as_str()).collect();
        Obstacle {
            chain: format!("{family} {table} {name}"),
            what: sample.what.clone(),
            advice: advice(&base.chain, sample, &beside),
        }
    }

    fn follow(&self, chain: &ChainName, sample: &Sample, depth: usize, left: &mut usize) -> Fate {
        let rules = self.rules.get(chain).map(Vec::as_slice).unwrap_or_default();
        let other = |name: String| ChainName { name, ..chain.clone() };
        let mut may_have_returned = false;
        for rule in rules.iter().filter(|_| depth < DEPTH) {
            if *left == 0 {
                break;
            }
            *left -= 1;
            let matches = rule.matches(sample);
            let is_sure = matches.iter().all(|found| matches!(found, Match::Yes | Match::Us));
            let is_for_us = matches.contains(&Match::Us);
            if matches.contains(&Match::No) {
                continue;
            }
            for verdict in rule.verdicts(sample) {
                let fate = match verdict {
                    Verdict::Accept if is_sure || is_for_us => Fate::Accepted,
                    Verdict::Drop if is_sure => Fate::Dropped,
                    Verdict::Return if is_sure => return Fate::Through,
                    Verdict::Return => {
                        may_have_returned = true;
                        Fate::Through
                    }
                    Verdict::Jump(name) if is_sure => self.follow(&other(name), sample, depth + 1, left),
                    Verdict::Goto(name) if is_sure => return self.follow(&other(name), sample, depth + 1, left),
                    Verdict::Accept | Verdict::Drop | Verdict::Jump(_) | Verdict::Goto(_) => Fate::Through,
                };
                match fate {
                    Fate::Through => {}
                    Fate::Dropped if may_have_returned => return Fate::Through,
                    Fate::Accepted | Fate::Dropped => return fate,
                }
            }
        }
        Fate::Through
    }
}

impl Base {
    /// Whether the sample comes by here. The samples are IPv4, or of either family.
    fn takes(&self, sample: &Sample) -> bool {
        let of_family = match self.chain.family.as_str() {
            "inet" | "ip" => true,
            "ip6" => sample.source.is_none(),
            _ => false,
        };
        of_family && self.hook == sample.hook
    }
}

impl ChainName {
    /// Whether its names may be arguments of `nft`.
    fn is_plain(&self) -> bool {
        [&self.family, &self.table, &self.name].into_iter().all(|text| is_name(text))
    }
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

fn base_chains(listing: &str) -> Vec<Base> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let bases = chains.filter(|chain| chain["type"] == "filter").map(|chain| {
        let text = |field: &str| chain[field].as_str().unwrap_or_default().to_owned();
        let name = ChainName { family: text("family"), table: text("table"), name: text("name") };
        Base { chain: name, hook: text("hook"), policy: text("policy") }
    });
    let is_other = |base: &Base| !(base.chain.family == "inet" && base.chain.table == own::NFT_TABLE);
    let concerns = |base: &Base| ["input", "forward", "output"].contains(&base.hook.as_str());
    bases.filter(|base| is_other(base) && concerns(base) && base.chain.is_plain()).collect()
}

fn rules_of(listing: &str) -> Vec<Rule> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().filter_map(|object| object.get("rule")).map(|rule| Rule::read(&rule["expr"])).collect()
}

/// Judges what we live by, by a listing of chains in which every base chain has all the rules.
pub fn decode(listing: &str) -> bool {
    let mut survey = Survey::new(listing, &Firewall::default());
    for base in survey.bases.clone() {
        survey.insert(base.chain, listing);
    }
    let _ = survey.obstacles();
    !survey.bases.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the first sample of input ends in a chain of these rules.
    fn fate(rules: &[&str]) -> Fate {
        let rules = rules.iter().map(|rule| Rule::read(&serde_json::from_str(rule).unwrap())).collect();
        let [family, table, name] = ["inet", "filter", "c"].map(str::to_owned);
        let chain = ChainName { family, table, name };
        let mut survey = Survey::new("", &Firewall::default());
        survey.rules.insert(chain.clone(), rules);
        survey.follow(&chain, &survey.samples[0], 0, &mut { FOLLOWED })
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

    /// A listing of these objects.
    fn listing(objects: &[String]) -> String {
        format!(r#"{{"nftables":[{}]}}"#, objects.join(","))
    }

    fn base(table: &str, name: &str, hook: &str, policy: &str) -> String {
        format!(
            r#"{{"chain":{{"family":"inet","table":"{table}","name":"{name}","type":"filter","hook":"{hook}","policy":"{policy}"}}}}"#
        )
    }

    fn rule(chain: &str, statements: &str) -> String {
        format!(r#"{{"rule":{{"chain":"{chain}","expr":{statements}}}}}"#)
    }

    #[test]
    fn a_survey_asks_for_what_leads_on_and_tells_of_the_chain_where_packets_end() {
        let chains = [
            base("filter", "in", "input", "drop"),
            base("filter", "out", "output", "accept"),
            base("warren", "arrive", "input", "drop"),
            base("filter", "--help", "input", "drop"),
            base("filter", "nat", "prerouting", "drop"),
        ];
        let mut survey = Survey::new(&listing(&chains), &Firewall::default());
        let mut asked = Vec::new();
        while let Some(chain) = survey.next().cloned() {
            asked.push(chain.name.clone());
            let rules = match chain.name.as_str() {
                "in" => {
                    vec![rule("in", r#"[{"jump":{"target":"more"}}]"#), rule("in", r#"[{"jump":{"target":"-x"}}]"#)]
                }
                "more" => vec![rule("more", SSH), rule("more", r#"[{"goto":{"target":"in"}}]"#)],
                _ => Vec::new(),
            };
            survey.insert(chain, &listing(&rules));
        }
        assert_eq!(asked, ["in", "more", "out"], "ours, and what would be no name to nft, is not asked for");
        let obstacles = survey.obstacles();
        assert_eq!(obstacles.len(), 2, "{obstacles:#?}");
        assert!(obstacles.iter().all(|obstacle| obstacle.chain == "inet filter in"));
        assert_eq!(obstacles[1].advice, "nft insert rule inet filter in udp dport 41741 accept");
    }

    #[test]
    fn a_survey_ends_however_many_chains_there_are() {
        let mut survey = Survey::new(&listing(&[base("filter", "in", "input", "accept")]), &Firewall::default());
        let mut asked = 0;
        while let Some(chain) = survey.next().cloned() {
            asked += 1;
            let next = format!(r#"[{{"jump":{{"target":"c{asked}"}}}}]"#);
            survey.insert(chain, &listing(&[rule("c", &next)]));
        }
        assert_eq!(asked, LISTED);
    }

    #[test]
    fn chains_that_lead_back_and_forth_are_followed_only_so_far() {
        let mut survey = Survey::new(&listing(&[base("filter", "in", "input", "drop")]), &Firewall::default());
        let many = vec![rule("in", r#"[{"jump":{"target":"in"}}]"#); 50];
        survey.insert(survey.next().cloned().unwrap(), &listing(&many));
        assert_eq!(survey.obstacles(), []);
    }
}
