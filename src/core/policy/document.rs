//! A policy as its author wrote it, names checked: what is left of the text once it has been read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::types::IpNet;
use crate::wire::control::{CapMap, RuleOrigin};

use super::error::{Fault, PolicyError, Span};
use super::ports::{PortRange, Protocol};
use super::posture::{Attribute, Posture};
use super::selector::Selector;
use super::syntax::Text;

/// A policy that can be compiled: every name in it is defined and stands where it may.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub(super) text: Arc<str>,
    /// Where the lines end.
    newlines: Arc<[u32]>,
    pub(super) groups: BTreeMap<String, Vec<Selector>>,
    pub(super) tag_owners: BTreeMap<String, Vec<Selector>>,
    pub(super) hosts: BTreeMap<String, IpNet>,
    pub(super) sets: BTreeMap<String, Vec<IpNet>>,
    pub(super) postures: BTreeMap<String, Posture>,
    /// Absent where the policy has neither `acls` nor `grants`: then everything is allowed.
    pub(super) rules: Option<Vec<Rule>>,
    pub(super) approvers: Approvers,
    pub(super) node_attributes: Vec<NodeAttributes>,
    pub(super) ssh: Vec<SshRule>,
    pub(super) tests: Vec<Test>,
    pub(super) ssh_tests: Vec<SshTest>,
}

impl Policy {
    /// A policy without content, of this text.
    pub(super) fn of_text(text: &str) -> Self {
        let newlines = text.bytes().zip(0..).filter(|(byte, _)| *byte == b'\n').map(|(_, at)| at);
        Self { text: Arc::from(text), newlines: newlines.collect(), ..Self::default() }
    }

    /// The policy that allows everything between all nodes: what is in force before anybody sets one.
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// Whether somebody may give nodes a tag, so that rules can name it.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tag_owners.contains_key(tag)
    }

    /// Whether the policy says anything of SSH.
    pub fn has_ssh(&self) -> bool {
        !self.ssh.is_empty()
    }

    /// Whether any rule may ask what a node reports of itself.
    pub fn has_postures(&self) -> bool {
        !self.postures.is_empty()
    }

    /// The text the policy was read from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line, counted from 1, on which something begins.
    pub fn line(&self, at: Span) -> usize {
        1 + self.newlines.partition_point(|newline| *newline < at.start)
    }

    /// What a rule says, on one line and shortened; empty where the policy has no such rule.
    pub fn rule_text(&self, origin: &RuleOrigin) -> String {
        const SHOWN: usize = 240;
        let rule = self.rules.iter().flatten().find(|rule| *rule.origin == *origin);
        let text = rule.and_then(|rule| self.text.get(rule.at.start as usize..rule.at.end as usize));
        let words = text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        match words.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{} …", &words[..end]),
            None => words,
        }
    }
}

/// What is wrong with a policy: at least one error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct PolicyErrors(pub Vec<PolicyError>);

impl PolicyErrors {
    pub(super) fn locate(faults: Vec<Fault>, text: &str) -> Self {
        Self(faults.into_iter().map(|fault| fault.locate(text)).collect())
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

/// One entry of `acls` or `grants`: sources, and what is opened to them.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) at: Span,
    /// What the rule is called, and its line.
    pub(super) origin: Arc<RuleOrigin>,
    pub(super) sources: Vec<Selector>,
    /// Any of these must hold for a source node; none listed means no condition.
    pub(super) postures: Vec<String>,
    /// All destinations; those of an access rule also stand in `opens`, each with its own ports.
    pub(super) targets: Arc<[Selector]>,
    pub(super) opens: Vec<Open>,
    /// Application capabilities given on every destination.
    pub(super) app: CapMap,
    /// Only routers with one of these tags carry the traffic.
    pub(super) via: Vec<Selector>,
}

/// Destinations and the ports opened on them.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) targets: Arc<[Selector]>,
    pub(super) protocol: Option<Protocol>,
    pub(super) ports: Vec<PortRange>,
}

/// Whose advertised routes are approved at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Approvers {
    pub(super) routes: Vec<(IpNet, Vec<Selector>)>,
    pub(super) exit: Vec<Selector>,
}

/// Attributes for some nodes.
#[derive(Clone, Debug)]
pub(super) struct NodeAttributes {
    pub(super) targets: Vec<Selector>,
    pub(super) attributes: CapMap,
    pub(super) ip_pool: Vec<IpNet>,
}

/// One entry of `ssh`.
#[derive(Clone, Debug)]
pub(super) struct SshRule {
    pub(super) sources: Vec<Selector>,
    pub(super) targets: Vec<Selector>,
    pub(super) check: Option<CheckPeriod>,
    pub(super) users: Vec<Text>,
    pub(super) accept_env: Vec<String>,
}

/// How long a user's renewed login counts for an SSH rule with `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckPeriod {
    /// Every session asks.
    Always,
    /// Seconds since the last renewed login.
    Seconds(u64),
}

impl CheckPeriod {
    /// What holds where a rule names no period: 12 hours.
    pub const DEFAULT: Self = Self::Seconds(12 * 3600);
}

/// One entry of `tests`. Names that mean nothing are kept: a test that cannot run has failed.
#[derive(Clone, Debug)]
pub(super) struct Test {
    pub(super) at: Span,
    pub(super) source: Named,
    /// Taken for the source's own where given.
    pub(super) attributes: Option<BTreeMap<String, Attribute>>,
    pub(super) protocol: Result<Option<Protocol>, String>,
    pub(super) accept: Vec<Probe>,
    pub(super) deny: Vec<Probe>,
}

/// A selector in a test, or why there is none.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) text: String,
    pub(super) selector: Result<Selector, String>,
}

/// A destination of a test: one place and one port.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) text: String,
    pub(super) target: Result<(Selector, u16), String>,
}

/// One entry of `sshTests`.
#[derive(Clone, Debug)]
pub(super) struct SshTest {
    pub(super) at: Span,
    pub(super) source: Named,
    pub(super) targets: Vec<Named>,
    pub(super) accept: Vec<String>,
    pub(super) check: Vec<String>,
    pub(super) deny: Vec<String>,
}
