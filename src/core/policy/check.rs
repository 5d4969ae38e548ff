//! A policy's own tests, and what else can only be said against a network.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::compile::Compiled;
use super::document::{Named, PolicyErrors, Probe, SshTest, Test};
use super::error::{Fault, Span};
use super::limit;
use super::nodeset::NodeSet;
use super::ports::Protocol;
use super::selector::{Autogroup, Selector};
use super::ssh::local_part_domain;
use super::verdict::Packet;

/// Why a test came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unclear {
    /// It can never come to anything.
    Wrong(String),
    /// What it names stands for nobody at present.
    Nobody(String),
}

/// What a test found out.
#[derive(Debug, Default)]
struct Findings {
    /// What is otherwise than it says, or cannot be.
    wrong: Vec<String>,
    /// What could not be asked, since nobody is there yet.
    nobody: Vec<String>,
}

impl Findings {
    fn note(&mut self, what: &str, text: &str, unclear: Unclear) {
        match unclear {
            Unclear::Wrong(reason) => self.wrong.push(format!("{what} {text:?}: {reason}")),
            Unclear::Nobody(reason) => self.nobody.push(format!("{what} {text:?}: {reason}")),
        }
    }

    /// The fault of a policy whose tests must all be answered.
    fn fault(mut self, at: Span) -> Option<Fault> {
        self.wrong.append(&mut self.nobody);
        (!self.wrong.is_empty()).then(|| Fault { details: self.wrong, ..Fault::new(at, FAILED) })
    }
}

/// What a policy that fails its tests is refused with; the details say which failed and how.
const FAILED: &str = "test(s) failed";

impl Compiled {
    /// Runs the policy's tests, all of which must have an answer.
    pub fn check(&self) -> Result<(), PolicyErrors> {
        let tests = self.policy().tests.iter().filter_map(|test| self.run(test).fault(test.at));
        let ssh_tests = self.policy().ssh_tests.iter().filter_map(|test| self.run_ssh(test).fault(test.at));
        self.refused(tests.chain(ssh_tests).collect())
    }

    /// Runs the policy's tests. A policy that fails them is not to be put in force. Tests of somebody whom nobody is yet,
    /// as of a tag before the first node has it, are tried with somebody made up; which they were comes back, in words.
    pub fn check_so_far(&self) -> Result<Vec<String>, PolicyErrors> {
        let (mut faults, mut notes, mut completed) = (Vec::new(), Vec::new(), None);
        let policy = self.policy();
        let tests = policy.tests.iter().map(|test| (test.at, self.run(test), AnyTest::Test(test)));
        let ssh_tests = policy.ssh_tests.iter().map(|test| (test.at, self.run_ssh(test), AnyTest::Ssh(test)));
        for (at, findings, test) in tests.chain(ssh_tests) {
            if !findings.wrong.is_empty() || findings.nobody.is_empty() {
                faults.extend(findings.fault(at));
                continue;
            }
            let with_others: &Self = completed.get_or_insert_with(|| self.completed());
            let imagined = match test {
                AnyTest::Test(test) => with_others.run(test),
                AnyTest::Ssh(test) => with_others.run_ssh(test),
            };
            match imagined.wrong.is_empty() {
                true => notes.push(format!(
                    "line {}: tried with nodes made up: {}",
                    policy.line(at),
                    findings.nobody.join(", ")
                )),
                false => faults.extend(Findings { wrong: imagined.wrong, nobody: Vec::new() }.fault(at)),
            }
        }
        self.refused(faults).map(|()| notes)
    }

    fn refused(&self, faults: Vec<Fault>) -> Result<(), PolicyErrors> {
        let mut all = self.unknown_domains();
        all.extend(faults);
        all.truncate(limit::ERRORS);
        if all.is_empty() { Ok(()) } else { Err(PolicyErrors::locate(all, self.policy().text())) }
    }

    /// The same network, with a node for each user and tag of the policy that has none.
    fn completed(&self) -> Self {
        Self::new(Arc::clone(self.shared_policy()), self.topology().completed(self.policy()))
    }

    /// Domains that no user belongs to: a mistake, or an invitation to whoever owns such a domain.
    fn unknown_domains(&self) -> Vec<Fault> {
        let known: BTreeSet<_> = self.index.users().values().filter_map(|user| user.domain()).collect();
        let policy = self.policy();
        let rules = policy.rules.iter().flatten().flat_map(|rule| {
            let selectors = rule.sources.iter().chain(rule.targets.iter());
            selectors.filter_map(|selector| Some((rule.at, domain(selector)?)))
        });
        let ssh = policy.ssh.iter().flat_map(|rule| {
            let users = rule.users.iter().filter_map(|user| Some((user.at, local_part_domain(&user.value)?)));
            let at = rule.users.first().map(|user| user.at).unwrap_or_default();
            users.chain(rule.sources.iter().filter_map(move |source| Some((at, domain(source)?))))
        });
        let unknown = rules.chain(ssh).filter(|(_, domain)| !known.contains(domain));
        let fault = |(at, domain): (Span, &str)| {
            let use_ = "cannot be used in user:*@<domain> expressions";
            Fault::new(at, format!("{domain} is not associated with this Tailnet and {use_}"))
        };
        unknown.map(fault).collect()
    }

    fn run(&self, test: &Test) -> Findings {
        let mut findings = Findings::default();
        let source = &test.source.text;
        if test.accept.is_empty() && test.deny.is_empty() {
            findings.wrong.push("the test has neither accept nor deny".to_owned());
        }
        match (self.addresses_of(&test.source), test.protocol.clone()) {
            (Err(reason), _) => findings.note("src", source, reason),
            (_, Err(reason)) => findings.note("src", source, Unclear::Wrong(reason)),
            (Ok(_), Ok(Some(protocol))) if !protocol.has_ports() => {
                findings.wrong.push("proto must be tcp, udp or sctp".to_owned());
            }
            (Ok(sources), Ok(protocol)) => {
                let expectations = [(&test.accept, TestResult::Allowed), (&test.deny, TestResult::Denied)];
                for (probe, expected) in expectations.iter().flat_map(|(list, to)| list.iter().map(move |p| (p, *to))) {
                    let to = &probe.text;
                    match self.probe(&sources, test, protocol, probe) {
                        Err(reason) => findings.note("dst", to, reason),
                        Ok(found) if found == expected => {}
                        Ok(found) => findings.wrong.push(format!("{source} -> {to}: expected {expected}, got {found}")),
                    }
                }
            }
        }
        findings
    }

    fn probe(
        &self,
        sources: &[IpNet],
        test: &Test,
        protocol: Option<Protocol>,
        probe: &Probe,
    ) -> Result<TestResult, Unclear> {
        let (selector, port) = probe.target.clone().map_err(Unclear::Wrong)?;
        let targets = self.addresses_of(&Named { text: probe.text.clone(), selector: Ok(selector) })?;
        let pairs = sources.iter().flat_map(|from| targets.iter().map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from.max_prefix_len() == to.max_prefix_len());
        let attributes = test.attributes.as_ref();
        let packets = pairs.map(|(from, to)| Packet { from: *from, to: *to, protocol, port });
        let allowed: BTreeSet<bool> =
            packets.map(|packet| self.allowing(packet, attributes).next().is_some()).collect();
        match (allowed.contains(&true), allowed.contains(&false)) {
            (true, false) => Ok(TestResult::Allowed),
            (false, true) => Ok(TestResult::Denied),
            (true, true) => Ok(TestResult::Partly),
            (false, false) => Err(Unclear::Wrong("source and destination have no addresses of one family".to_owned())),
        }
    }

    /// What a name stands for at present; at least one address.
    fn addresses_of(&self, named: &Named) -> Result<Vec<IpNet>, Unclear> {
        let selector = named.selector.as_ref().map_err(|reason| Unclear::Wrong(reason.clone()))?;
        let nets: Vec<IpNet> = match selector {
            Selector::Any => vec![OVERLAY_V4.into(), OVERLAY_V6.into()],
            Selector::Net(net) => vec![*net],
            selector @ (Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_)) => {
                let places = self.nodes_of(std::slice::from_ref(selector));
                let number = self.index.number(selector);
                let prefixes = number.map(|number| self.index.prefixes(number)).unwrap_or_default();
                let places = places.iter().filter_map(|slot| self.index.place(slot));
                let addresses = places.flat_map(|place| place.addresses.iter().map(|address| IpNet::from(*address)));
                if prefixes.is_empty() { addresses.collect() } else { prefixes.to_vec() }
            }
        };
        if nets.is_empty() {
            Err(Unclear::Nobody("this stands for no address at present".to_owned()))
        } else {
            Ok(nets)
        }
    }

    fn run_ssh(&self, test: &SshTest) -> Findings {
        let mut findings = Findings::default();
        let source = &test.source.text;
        if test.accept.is_empty() && test.check.is_empty() && test.deny.is_empty() {
            findings.wrong.push("the test has neither accept, check nor deny".to_owned());
        }
        match self.addresses_of(&test.source) {
            Err(reason) => findings.note("src", source, reason),
            Ok(sources) => {
                for target in &test.targets {
                    match self.ssh_targets(target, &sources) {
                        Err(reason) => findings.note("dst", &target.text, reason),
                        Ok(nodes) => self.ssh_logins(test, &sources, &nodes, &mut findings.wrong),
                    }
                }
            }
        }
        findings
    }

    fn ssh_targets(&self, target: &Named, sources: &[IpNet]) -> Result<NodeSet, Unclear> {
        let selector = target.selector.as_ref().map_err(|reason| Unclear::Wrong(reason.clone()))?;
        let nodes = match selector {
            Selector::Auto(Autogroup::SelfNodes) => {
                let owned = self.index.owned.values();
                let is_source =
                    |own: &&NodeSet| sources.iter().any(|net| self.index.slots_in(net).any(|s| own.contains(s)));
                owned.filter(is_source).flat_map(NodeSet::iter).collect()
            }
            Selector::Net(net @ IpNet::V6(_)) => {
                let wrong = format!("name the node by a tag, a user or its IPv4 address, not by {}", net.addr());
                return Err(Unclear::Wrong(wrong));
            }
            Selector::Net(net) => self.index.slots_in(net).collect(),
            selector @ (Selector::Any
            | Selector::Set(_)
            | Selector::User(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Auto(_)) => self.nodes_of(std::slice::from_ref(selector)),
        };
        if nodes.is_empty() { Err(Unclear::Nobody("this stands for no node at present".to_owned())) } else { Ok(nodes) }
    }

    fn ssh_logins(&self, test: &SshTest, sources: &[IpNet], targets: &NodeSet, details: &mut Vec<String>) {
        for place in targets.iter().filter_map(|slot| self.index.place(slot)) {
            let rules = self.ssh_policy(place.id, "").rules;
            let login = |account: &str, from: &IpNet| {
                let matching = rules.iter().filter(|rule| {
                    let maps_to =
                        rule.ssh_users.get(account).or_else(|| rule.ssh_users.get("*").filter(|_| account != "root"));
                    let is_source = rule.principals.iter().any(|principal| from.contains(&principal.node_ip));
                    is_source && maps_to.is_some_and(|to| !to.is_empty()) && !account.is_empty()
                });
                matching.fold((false, false), |(_, check), rule| (true, check || !rule.action.accept))
            };
            let mut expect = |accounts: &[String], expected: &str, holds: fn((bool, bool)) -> bool| {
                for account in accounts {
                    if !sources.iter().all(|from| holds(login(account, from))) {
                        let (source, name) = (&test.source.text, &place.node.name);
                        details.push(format!("{source} as {account:?} -> {name}: expected {expected}"));
                    }
                }
            };
            expect(&test.accept, "to be allowed", |(allowed, _)| allowed);
            expect(&test.check, "to be allowed after a check", |(_, checked)| checked);
            expect(&test.deny, "to be denied", |(allowed, _)| !allowed);
        }
    }

    /// The nodes that some selectors of the policy mean.
    pub(super) fn nodes_of(&self, selectors: &[Selector]) -> NodeSet {
        let mut nodes = NodeSet::default();
        let numbers = selectors.iter().filter_map(|selector| self.index.number(selector));
        numbers.for_each(|number| nodes.unite(self.index.selected(number)));
        nodes
    }
}

/// A test of either kind.
#[derive(Clone, Copy, Debug)]
enum AnyTest<'t> {
    Test(&'t Test),
    Ssh(&'t SshTest),
}

/// How a test came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TestResult {
    Allowed,
    Denied,
    /// Some of the connections are allowed and some are not.
    Partly,
}

impl std::fmt::Display for TestResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Partly => "allowed in part",
        })
    }
}

fn domain(selector: &Selector) -> Option<&str> {
    if let Selector::Domain(domain) = selector { Some(domain) } else { None }
}
