//! What rules are called where the policy is not at hand: on nodes, in counters, in the names of filter parts.
//!
//! A name is made of what the rule says, so that it stays when rules are added, removed or moved around it,
//! and with it whatever is kept under it.

use std::collections::BTreeMap;

use jsonc_parser::ast::Value;
use sha2::{Digest, Sha256};

use super::write_json;
use crate::wire::control::RuleOrigin;

/// Gives each rule of a policy a name of its own.
#[derive(Default)]
pub(super) struct RuleNames {
    given: BTreeMap<String, usize>,
}

impl RuleNames {
    /// Names a rule: `acl-1f0c9a3b` or `grant-…`; the second that says the very same gets `-2` appended.
    pub(super) fn give(&mut self, section: &str, rule: &Value<'_>, line: usize) -> RuleOrigin {
        let mut json = String::new();
        write_json(rule, &mut json);
        let digest = Sha256::digest(json.as_bytes());
        let kind = section.trim_end_matches('s');
        let mut reference = format!("{kind}-{}", data_encoding::HEXLOWER.encode(&digest[..4]));
        let count = self.given.entry(reference.clone()).or_default();
        *count += 1;
        if *count > 1 {
            reference = format!("{reference}-{count}");
        }
        RuleOrigin { reference, line: u32::try_from(line).unwrap_or(u32::MAX) }
    }
}
