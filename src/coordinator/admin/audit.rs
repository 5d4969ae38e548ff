//! `warren-coordinator audit`: who changed what, out of the journal.

use clap::Args;

use super::cells::{table, time};
use warren_core::types::{Lifetime, Timestamp};
use warren_core::wire::admin::{JournalQuery, JournalRecord, Request, Selector};

/// `audit`
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditArgs {
    /// Changes by these alone: a kind (account, user, token, node, machine, coordinator), a name, or both as account:root
    #[arg(long)]
    actor: Option<String>,
    /// Changes of these alone: a kind (user, key, node, policy, machine, server-key), a name or number, or both as node:web
    #[arg(long)]
    object: Option<String>,
    /// From this time on: 2026-01-31T12:00:00Z, or so long ago, as 12h or 30d
    #[arg(long, value_parser = moment)]
    since: Option<Moment>,
    /// Up to this time
    #[arg(long, value_parser = moment)]
    until: Option<Moment>,
    /// How many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(JournalQuery::MOST)))]
    limit: u32,
    /// Those before this number: the page before
    #[arg(long)]
    before: Option<u64>,
    /// Those that follow this number, the oldest first: for a program that reads on
    #[arg(long, conflicts_with = "before")]
    after: Option<u64>,
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug)]
enum Moment {
    At(Timestamp),
    Ago(std::time::Duration),
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(at) = text.parse() {
        return Ok(Moment::At(at));
    }
    match text.parse() {
        Ok(Lifetime::For(ago)) => Ok(Moment::Ago(ago)),
        Ok(Lifetime::Endless) | Err(_) => {
            Err("a time is `2026-01-31T12:00:00Z`, or how long ago, as in `12h` or `30d`".to_owned())
        }
    }
}

impl AuditArgs {
    /// What is asked for, at this moment.
    pub(crate) fn request(self, now: Timestamp) -> Request {
        let at = |moment: Moment| match moment {
            Moment::At(at) => at,
            Moment::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        };
        let selector = |text: String| {
            let Ok(selector) = text.parse::<Selector>();
            selector
        };
        Request::Audit(JournalQuery {
            after: self.after,
            before: self.before,
            since: self.since.map(at),
            until: self.until.map(at),
            actor: self.actor.map(selector),
            object: self.object.map(selector),
            limit: self.limit,
        })
    }
}

/// A line for each changed object.
pub(super) fn text(records: &[JournalRecord]) -> String {
    let rows = records.iter().map(|record| {
        let by = match record.address {
            Some(address) => format!("{} at {address}", record.actor),
            None => record.actor.to_string(),
        };
        [
            record.n.to_string(),
            time(record.at),
            by,
            record.door.clone(),
            record.command.clone(),
            format!("{} {}", record.action, record.object),
            fields(record),
        ]
    });
    table(["N", "TIME", "BY", "DOOR", "COMMAND", "OBJECT", "FIELDS"], rows)
}

/// What changed from what to what; of what came or went there is nothing to compare.
fn fields(record: &JournalRecord) -> String {
    match record.action.as_str() {
        "create" | "delete" => "-".to_owned(),
        _ => {
            let changed = record.after.iter().map(|(name, after)| match record.before.get(name) {
                Some(before) => format!("{name}: {before} -> {after}"),
                None => format!("{name}: {after}"),
            });
            changed.collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        assert!(matches!(moment("2026-01-31T12:00:00Z"), Ok(Moment::At(_))));
        assert!(matches!(moment("30d"), Ok(Moment::Ago(_))));
        for bad in ["yesterday", "never", "0s", ""] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}
