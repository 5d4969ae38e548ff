//! A large organisation: 10,000 nodes of 2,000 users and 300 tags, 500 groups, and rules between them.

#![allow(dead_code, reason = "each bench uses a part")]

use std::fmt::Write;

pub(crate) const NODES: u64 = 10_000;
pub(crate) const USERS: u64 = 2_000;
pub(crate) const GROUPS: u64 = 500;
pub(crate) const TAGS: u64 = 300;

/// Rules between groups, tags, users and subnets, in the shares of a large organisation.
pub(crate) fn policy(rules: u64) -> String {
    let mut text = String::from("{\"groups\": {");
    for group in 0..GROUPS {
        let members = (0..20).map(|member| format!("\"user{}@example.com\"", (group * 37 + member * 101) % USERS));
        let _ = writeln!(text, "\"group:g{group}\": [{}],", members.collect::<Vec<_>>().join(","));
    }
    text.push_str("}, \"tagOwners\": {");
    for tag in 0..TAGS {
        let _ = writeln!(text, "\"tag:t{tag}\": [\"group:g0\"],");
    }
    text.push_str("}, \"autoApprovers\": {\"routes\": {\"10.0.0.0/8\": [\"tag:t0\"]}}, \"acls\": [");
    for rule in 0..rules {
        let (group, tag, other) = (rule % GROUPS, rule * 7 % TAGS, rule * 11 % TAGS);
        let (source, target) = match rule % 10 {
            0 => (format!("\"tag:t{tag}\""), format!("\"tag:t{other}:443\"")),
            1 => (format!("\"group:g{group}\", \"tag:t{tag}\""), format!("\"10.{}.0.0/16:*\"", rule % 250)),
            2 => (format!("\"user{}@example.com\"", rule * 13 % USERS), format!("\"tag:t{tag}:22\"")),
            3 => (format!("\"group:g{group}\""), "\"autogroup:self:*\"".to_owned()),
            _ => (format!("\"group:g{group}\""), format!("\"tag:t{tag}:80,443\", \"tag:t{other}:8000-8100\"")),
        };
        let _ = writeln!(text, "{{\"action\": \"accept\", \"src\": [{source}], \"dst\": [{target}]}},");
    }
    text.push_str("]}");
    text
}
