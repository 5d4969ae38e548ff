//! The policy: its versions, which one is in force, and what it says when asked.
//!
//! A version is put in force only if it can be read, passes its own tests against the network as it is, and was
//! written by somebody who knew the version before it. If after an upgrade the last version cannot be read, no
//! map is served: nodes keep what they were last told, and nothing opens that an earlier version would open.

use std::sync::Arc;

use super::commands::{Command, Commands, Decision};
use super::config::limit;
use super::record::{Change, PolicyRecord};
use super::refusal::Refusal;
use super::state::State;
use crate::policy::{Compiled, Policy};
use crate::types::{Limit, NodeId};

/// Longest name of somebody who set a policy: a line in a list.
const AUTHOR: Limit = Limit::new("bytes in the name of a policy's author", 255);

impl State {
    /// The policy in force; none where nobody ever set one, and everything is allowed.
    pub fn policy(&self) -> Option<&Arc<PolicyRecord>> {
        self.directory.policy()
    }

    /// Why no map is served: the last version of the policy cannot be read.
    pub fn policy_fault(&self) -> Option<&str> {
        self.directory.policy_fault()
    }

    /// The versions of the policy that are kept, the oldest first.
    pub fn policies(&self) -> impl DoubleEndedIterator<Item = &Arc<PolicyRecord>> {
        self.directory.policies()
    }

    /// A version of the policy by number.
    pub fn policy_version(&self, version: u64) -> Result<&Arc<PolicyRecord>, Refusal> {
        self.directory.policy_version(version).ok_or_else(|| {
            Refusal::not_found(format!("there is no version {version} of the policy; `policy versions` lists them"))
        })
    }

    /// The policy in force against the network as it is; `None` while none was set.
    pub fn compiled(&self) -> Option<&Compiled> {
        self.directory.compiled()
    }

    /// A policy against the network as it is; refused if it cannot be read or fails its own tests.
    pub fn try_policy(&self, text: &str) -> Result<Compiled, Refusal> {
        Ok(self.snapshot().compile(text)?.compiled)
    }

    /// What policies are compiled against where none is in force.
    pub fn unrestricted(&self) -> Compiled {
        let policy = Policy::allow_all();
        let topology = self.snapshot().topology(&policy);
        Compiled::new(Arc::new(policy), topology)
    }
}

impl Commands<'_> {
    /// Puts a policy in force, if the one in force is still `if_version` (0 for none); without that, whichever it
    /// is. It is compiled here unless that was done elsewhere ([`State::stage_policy`]).
    pub fn set_policy(
        &self,
        text: &str,
        by: &str,
        if_version: Option<u64>,
    ) -> Result<Decision<Arc<PolicyRecord>>, Refusal> {
        self.may(Command::SetPolicy)?;
        AUTHOR.check(by.len())?;
        let current = self.policy();
        let version = current.map_or(0, |policy| policy.version);
        if let Some(expected) = if_version.filter(|expected| *expected != version) {
            let who = current.map_or_else(String::new, |policy| format!(", set by {} at {}", policy.by, policy.at));
            return Err(Refusal::conflict(format!(
                "the policy in force is version {version}{who}, not {expected}: look at it and try again"
            )));
        }
        if self.staged.as_ref().is_none_or(|checked| *checked.text != *text) {
            self.try_policy(text)?;
        }
        if let Some(current) = current.filter(|current| *current.text == *text && self.policy_fault().is_none()) {
            return Ok(self.unchanged(Command::SetPolicy, Arc::clone(current)));
        }
        let record = PolicyRecord { version: version + 1, text: text.into(), by: by.to_owned(), at: self.now };
        let record = Arc::new(record);
        let gone = self.outdated(&record).into_iter().map(Change::PolicyGone);
        let changes = gone.chain([Change::Policy(Arc::clone(&record))]).collect();
        Ok(self.decided(Command::SetPolicy, record, changes))
    }

    /// The oldest versions, which there is no room for besides a new one.
    fn outdated(&self, new: &PolicyRecord) -> Vec<u64> {
        let (mut count, mut bytes) = (1, new.text.len());
        let mut outdated = Vec::new();
        for policy in self.policies().rev() {
            (count, bytes) = (count + 1, bytes + policy.text.len());
            if count > limit::POLICIES.most || bytes > limit::POLICY_BYTES.most {
                outdated.push(policy.version);
            }
        }
        outdated
    }
}

impl State {
    /// Puts the last version in force.
    pub(super) fn enforce(&mut self) {
        let Some(record) = self.policy().cloned() else { return };
        let staged = self.staged.take().filter(|checked| checked.text == record.text).map(|checked| {
            // The network may have changed while the policy was written down.
            let mut compiled = checked.compiled;
            self.catch_up(&mut compiled);
            compiled
        });
        let compiled = staged.map_or_else(|| self.compile_record(&record), Ok);
        let Some(rules) = self.directory.enforce(compiled) else { return };
        self.broadcast.policy_changed(rules);
        self.judge_all(&self.directory.nodes().map(|record| record.id).collect::<Vec<NodeId>>());
    }

    fn compile_record(&self, record: &PolicyRecord) -> Result<Compiled, String> {
        let policy = Policy::parse(record.text.as_bytes()).map_err(|errors| {
            format!(
                "version {} of the policy cannot be read by this release, so no map is served and nodes keep the last \
                 they had; set a policy that can: {errors}",
                record.version
            )
        })?;
        let topology = self.snapshot().topology(&policy);
        Ok(Compiled::new(Arc::new(policy), topology))
    }
}
