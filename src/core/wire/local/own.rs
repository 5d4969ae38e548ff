//! Our own calls.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The answer to `plan`: what would be done to the kernel at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlanReply {
    /// One line a step, in order; empty when the kernel holds the whole wish.
    pub steps: Vec<String>,
}

/// The answer to `health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthReply {
    pub entries: Vec<HealthEntry>,
}

/// A lasting fault: what is wrong, and what the operator can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthEntry {
    /// Stable name of this kind of fault and its object.
    pub code: String,
    pub severity: Severity,
    pub text: String,
    pub since: Option<Timestamp>,
}

/// How much a fault matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; the network does what it should.
    #[default]
    Low,
    /// Part of what was asked for is not there.
    Medium,
    /// The network does not work, or will stop working.
    High,
}

/// The answer to `version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VersionReply {
    pub version: String,
    /// How new the control protocol is that the agent speaks.
    pub capability_version: u32,
}
