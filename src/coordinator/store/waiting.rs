//! Machines in an SQLite file that wait to be let in, and those that were turned away; and what holds for the network.

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::connection::failed;
use super::sqlite::{json, list, malformed, parsed, readable, refused};
use warren_core::registry::{Pending, PendingCode, Settings};
use warren_core::types::{MachinePublic, Timestamp};

pub(super) async fn keep(connection: &mut SqliteConnection, pending: &Pending) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO pending (code, ticket, machine_key, node_key, hostname, os, requested_tags, status, since, expires, site)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (code) DO UPDATE SET expires = excluded.expires",
    )
    .bind(pending.code.to_string())
    .bind(pending.ticket.to_string())
    .bind(pending.machine.to_string())
    .bind(pending.key.to_string())
    .bind(pending.hostname.clone())
    .bind(pending.os.clone())
    .bind(json(&pending.requested_tags))
    .bind(json(&pending.status))
    .bind(pending.since.to_string())
    .bind(pending.expires.to_string())
    .bind(pending.site.to_string())
    .execute(connection)
    .await
    .map(drop)
    .map_err(|error| refused(format!("keep the machine that waits under {}", pending.code), &error))
}

pub(super) async fn forget(connection: &mut SqliteConnection, code: &PendingCode) -> Result<(), StoreError> {
    let gone = sqlx::query("DELETE FROM pending WHERE code = ?").bind(code.to_string()).execute(connection).await;
    gone.map(drop).map_err(|error| failed(format!("forget the machine that waited under {code}"), error))
}

pub(super) async fn reject(
    connection: &mut SqliteConnection,
    code: &PendingCode,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rejected (machine_key, until) SELECT machine_key, ? FROM pending WHERE code = ?
         ON CONFLICT (machine_key) DO UPDATE SET until = excluded.until",
    )
    .bind(until.to_string())
    .bind(code.to_string())
    .execute(&mut *connection)
    .await
    .map_err(|error| failed(format!("turn away the machine that waits under {code}"), error))?;
    forget(connection, code).await
}

pub(super) async fn forgive(connection: &mut SqliteConnection, machine: &MachinePublic) -> Result<(), StoreError> {
    let gone = sqlx::query("DELETE FROM rejected WHERE machine_key = ?").bind(machine.to_string());
    gone.execute(connection).await.map(drop).map_err(|error| failed("let a machine ask again", error))
}

pub(super) async fn all(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Pending>> {
    let rows = sqlx::query("SELECT * FROM pending ORDER BY code").fetch_all(connection).await?;
    Ok(readable("machine that waits", &rows, |row| {
        Ok(Pending {
            code: parsed(row, "code")?,
            ticket: parsed(row, "ticket")?,
            machine: parsed(row, "machine_key")?,
            key: parsed(row, "node_key")?,
            hostname: row.try_get("hostname")?,
            os: row.try_get("os")?,
            requested_tags: list(row, "requested_tags")?,
            status: serde_json::from_str(row.try_get("status")?).map_err(|error| malformed("status", error))?,
            since: parsed(row, "since")?,
            expires: parsed(row, "expires")?,
            site: parsed(row, "site")?,
        })
    }))
}

pub(super) async fn rejected(connection: &mut SqliteConnection) -> sqlx::Result<Vec<(MachinePublic, Timestamp)>> {
    let rows = sqlx::query("SELECT * FROM rejected ORDER BY machine_key").fetch_all(connection).await?;
    Ok(readable("machine that was turned away", &rows, |row| Ok((parsed(row, "machine_key")?, parsed(row, "until")?))))
}

pub(super) async fn keep_settings(connection: &mut SqliteConnection, settings: &Settings) -> Result<(), StoreError> {
    let kept = sqlx::query(
        "INSERT INTO settings (one, value) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET value = excluded.value",
    );
    let kept = kept.bind(json(settings)).execute(connection).await;
    kept.map(drop).map_err(|error| failed("keep the settings", error))
}

/// What was set. None may be left out: approval that somebody asked for would be nobody's.
pub(super) async fn settings(connection: &mut SqliteConnection) -> sqlx::Result<Settings> {
    let row = sqlx::query("SELECT value FROM settings").fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(Settings::default()) };
    serde_json::from_str(row.try_get("value")?).map_err(|error| malformed("value", error))
}
