//! Answers about the policy.

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// A version of the policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// 0 where nobody ever set one.
    pub version: u64,
    pub by: String,
    pub at: Option<Timestamp>,
    pub bytes: usize,
    pub in_force: bool,
    /// Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyDiffView {
    pub gains: Vec<RowView>,
    pub loses: Vec<RowView>,
    pub pairs_gaining: usize,
    pub pairs_losing: usize,
    /// Rows that are not shown.
    pub left_out: usize,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowView {
    pub from: Vec<String>,
    pub to: Vec<String>,
    pub access: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyView {
    pub allowed: bool,
    pub from: String,
    pub to: String,
    /// What was asked about: `tcp/22`, or `anything`.
    pub packet: String,
    /// The rules that allow it.
    pub rules: Vec<RuleView>,
    /// Rules that open something else from here to there.
    pub others: Vec<RuleView>,
    /// What else stands in the way, or is good to know.
    pub reasons: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleView {
    /// Of the policy in force, counted from 1.
    pub line: u32,
    pub reference: String,
    pub text: String,
    pub opens: String,
}
