//! The journal in an SQLite file: entries are added in the transaction of the rows that they tell of, and read by page.

use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::StoreError;
use super::connection::failed;
use super::sqlite::{integer, json, malformed, number, parsed};
use warren_core::registry::{Audit, limit};
use warren_core::wire::admin::{JournalQuery, JournalRecord, Named, Selector};

/// Adds what decisions did, if the last number is still `revision`; gives the number of the last one from here on.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    revision: u64,
    audits: &[Audit],
) -> Result<u64, StoreError> {
    let count: usize = audits.iter().map(|audit| audit.entries.len()).sum();
    if count == 0 {
        return Ok(revision);
    }
    let last = revision + count as u64;
    let write = |error| failed("write the journal", error);
    let raised = sqlx::query("UPDATE revision SET n = ? WHERE n = ?").bind(integer(last)).bind(integer(revision));
    if raised.execute(&mut *connection).await.map_err(write)?.rows_affected() == 0 {
        return Err(StoreError::Conflict(format!("somebody else wrote into the journal after entry {revision}")));
    }
    let mut n = revision;
    for audit in audits {
        let decision = n + 1;
        for entry in &audit.entries {
            n += 1;
            sqlx::query(
                "INSERT INTO journal (n, decision, at, actor_kind, actor_id, actor_name, door, address, command, action,
                 object_kind, object_id, object_name, before, after)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(integer(n))
            .bind(integer(decision))
            .bind(audit.at.to_string())
            .bind(audit.actor.who.kind())
            .bind(audit.actor.who.id())
            .bind(audit.actor.who.name().to_owned())
            .bind(audit.actor.door.name())
            .bind(audit.actor.from.map(|address| address.to_string()))
            .bind(audit.command.name())
            .bind(entry.action.name())
            .bind(entry.object.kind.name())
            .bind(entry.object.id.clone())
            .bind(entry.object.name.clone())
            .bind(json(&entry.before))
            .bind(json(&entry.after))
            .execute(&mut *connection)
            .await
            .map_err(write)?;
        }
    }
    let oldest = last.saturating_sub(limit::JOURNAL.most as u64);
    let kept = sqlx::query("DELETE FROM journal WHERE n <= ?").bind(integer(oldest)).execute(connection);
    kept.await.map_err(write)?;
    Ok(last)
}

/// The number of the last entry.
pub(super) async fn revision(connection: &mut SqliteConnection) -> sqlx::Result<u64> {
    let row = sqlx::query("SELECT n FROM revision").fetch_one(connection).await?;
    number(&row, "n")
}

/// The newest entries that a query means, the oldest of them first.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    query: &JournalQuery,
) -> Result<Vec<JournalRecord>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM journal WHERE TRUE");
    if let Some(after) = query.after {
        sql.push(" AND n > ").push_bind(integer(after));
    }
    if let Some(before) = query.before {
        sql.push(" AND n < ").push_bind(integer(before));
    }
    // Texts of times have an order up to the second.
    if let Some(since) = query.since {
        sql.push(" AND at >= ").push_bind(since.strftime("%Y-%m-%dT%H:%M:%S").to_string());
    }
    if let Some(until) = query.until {
        sql.push(" AND at < ").push_bind(until.strftime("%Y-%m-%dT%H:%M:%S").to_string());
    }
    for (selector, what) in [(&query.actor, "actor"), (&query.object, "object")] {
        if let Some(selector) = selector {
            select(&mut sql, what, selector);
        }
    }
    // Those that follow a number are read on from there, all others back from the end.
    let order = if query.after.is_some() { "ASC" } else { "DESC" };
    sql.push(format!(" ORDER BY n {order} LIMIT ")).push_bind(i64::from(query.limit.min(JournalQuery::MOST)));
    let operation = || "read the journal";
    let rows = sql.build().fetch_all(connection).await.map_err(|error| failed(operation(), error))?;
    let records = rows.iter().map(record_of).collect::<sqlx::Result<Vec<_>>>();
    let mut records = records.map_err(|error| failed(operation(), error))?;
    records.sort_by_key(|record| record.n);
    Ok(records)
}

fn select(sql: &mut QueryBuilder<Sqlite>, what: &'static str, selector: &Selector) {
    if let Some(kind) = &selector.kind {
        sql.push(format!(" AND {what}_kind = ")).push_bind(kind.clone());
    }
    if let Some(name) = &selector.name {
        sql.push(format!(" AND ({what}_name = ")).push_bind(name.clone());
        sql.push(format!(" OR {what}_id = ")).push_bind(name.clone()).push(")");
    }
}

fn record_of(row: &SqliteRow) -> sqlx::Result<JournalRecord> {
    Ok(JournalRecord {
        n: number(row, "n")?,
        decision: number(row, "decision")?,
        at: parsed(row, "at")?,
        actor: Named {
            kind: row.try_get("actor_kind")?,
            id: row.try_get("actor_id")?,
            name: row.try_get("actor_name")?,
        },
        door: row.try_get("door")?,
        address: match row.try_get::<Option<&str>, _>("address")? {
            Some(_) => Some(parsed(row, "address")?),
            None => None,
        },
        command: row.try_get("command")?,
        action: row.try_get("action")?,
        object: Named {
            kind: row.try_get("object_kind")?,
            id: row.try_get("object_id")?,
            name: row.try_get("object_name")?,
        },
        before: object(row, "before")?,
        after: object(row, "after")?,
    })
}

fn object<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| malformed(column, error))
}
