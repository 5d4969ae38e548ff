//! SQLite: one file beside the coordinator's keys, one writer.
//!
//! Write-ahead log with `synchronous=FULL`: each commit reaches the disk before it returns. `NORMAL` would
//! lose the last commits when the power fails, and with them the only memory that an address or a one-off
//! key was given. Locked for as long as it is open, so that a second coordinator cannot start on it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::connection::{Connection, close, failed, make_file, open_to_read};
use super::{Batch, Proven, Store, StoreError, backup, credentials, journal, nodes, people, waiting};
use warren_core::registry::{Change, Counters, KeyId, NodeRecord, NodeStatus, PolicyRecord, Records};
use warren_core::types::{CapabilityVersion, NodeId, RegionId, StableNodeId, Timestamp, UserId};
use warren_core::wire::admin::{JournalQuery, JournalRecord};

/// How long to wait for a lock before calling the database in use: a coordinator that is being restarted
/// lets go of it within this.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// The same where the lock was ours a moment ago, and nodes wait.
const LOCK_WAIT_AGAIN: Duration = Duration::from_millis(500);

/// The records in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// Gone after a failure, until the file is proven.
    connection: Option<Connection>,
    /// The number of the last commit of which it was said that it is on disk.
    serial: u64,
}

impl SqliteStore {
    /// Opens the file, or makes it readable for its owner alone, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_within(path, LOCK_WAIT).await
    }

    /// Where the file can be read and not written to, the store is there and not sound: who is in the network is known,
    /// and nothing changes.
    pub(super) async fn open_within(path: &Path, lock_wait: Duration) -> Result<Self, StoreError> {
        make_file(path)?;
        let error = match Connection::open(path, lock_wait).await {
            Ok(connection) => {
                return Ok(Self { path: path.to_owned(), serial: connection.serial(), connection: Some(connection) });
            }
            Err(error @ (StoreError::InUse(_) | StoreError::Conflict(_))) => return Err(error),
            Err(error @ StoreError::Failed { .. }) => error,
        };
        // What is wrong with writing says more than what is wrong with reading.
        let (inner, serial) = open_to_read(path, lock_wait).await.map_err(|_| error)?;
        close(inner).await;
        Ok(Self { path: path.to_owned(), serial, connection: None })
    }

    /// Lets go of the file, log folded in.
    pub async fn close(self) {
        if let Some(connection) = self.connection {
            connection.close().await;
        }
    }

    fn sound(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| failed("use the database", "an earlier write failed and it is not proven yet"))
    }

    /// Commits; where that fails, it is found out what is on disk, if that can be.
    async fn attempt(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let Err(error) = self.try_commit(batch).await else {
            self.serial = self.sound()?.serial();
            return Ok(());
        };
        match self.prove().await {
            Ok(Proven::WithTheLast) => Ok(()),
            // Where even that fails, what failed first says more.
            Ok(Proven::AsTold) | Err(_) => Err(error),
        }
    }

    async fn try_commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let connection = self.sound()?;
        let transaction = connection.begin().await?;
        journal::append(transaction, batch.revision, &batch.audits).await?;
        for change in &batch.changes {
            keep(transaction, change).await?;
        }
        connection.commit().await
    }
}

impl Store for SqliteStore {
    async fn load(&mut self) -> Result<Records, StoreError> {
        if let Some(connection) = &mut self.connection {
            return records(connection.reading()).await;
        }
        let (mut inner, _) = open_to_read(&self.path, LOCK_WAIT_AGAIN).await?;
        let records = records(&mut inner).await;
        close(inner).await;
        records
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.sound()?.still_there()?;
        match self.attempt(batch).await {
            // Beginning anew gave back the room that the log took: a disk that was full may be so no longer.
            Err(StoreError::Failed { .. }) if self.is_sound() => self.attempt(batch).await,
            done => done,
        }
    }

    async fn read_journal(&mut self, query: &JournalQuery) -> Result<Vec<JournalRecord>, StoreError> {
        journal::read(self.sound()?.reading(), query).await
    }

    fn is_sound(&self) -> bool {
        self.connection.is_some()
    }

    async fn prove(&mut self) -> Result<Proven, StoreError> {
        if let Some(connection) = &self.connection {
            // What a file that is gone held, is nowhere but in this connection.
            connection.still_there()?;
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
        let connection = Connection::open(&self.path, LOCK_WAIT_AGAIN).await?;
        let found = connection.found();
        let proven = match found.checked_sub(self.serial) {
            Some(0) => Proven::AsTold,
            Some(1) => Proven::WithTheLast,
            _ => {
                connection.close().await;
                let reason = format!("it holds {found} commits where {} were made: it was replaced", self.serial);
                return Err(failed(format!("use the database {}", self.path.display()), reason));
            }
        };
        self.serial = connection.serial();
        self.connection = Some(connection);
        Ok(proven)
    }

    async fn copy(&mut self, to: &Path) -> Result<(), StoreError> {
        let Some(connection) = &mut self.connection else {
            // Where nothing can be written, a copy elsewhere is what is wanted most.
            let (mut inner, _) = open_to_read(&self.path, LOCK_WAIT_AGAIN).await?;
            let copied = backup::copy(&mut inner, to).await;
            close(inner).await;
            return copied;
        };
        let copied = connection.copy(to).await;
        if copied.is_err() {
            // What failed was elsewhere, as a rule; what this says is told by the next commit, too.
            let _ = self.prove().await;
        }
        copied
    }
}

#[cfg(test)]
impl SqliteStore {
    pub(super) async fn run_sql(&mut self, sql: &'static str) {
        sqlx::query(sql).execute(self.sound().unwrap().reading()).await.unwrap();
    }
}

/// Everything that is committed.
async fn records(connection: &mut SqliteConnection) -> Result<Records, StoreError> {
    let read = |error| failed("read the database", error);
    let counters = sqlx::query("SELECT * FROM counters").fetch_optional(&mut *connection).await.map_err(read)?;
    let nodes = sqlx::query("SELECT * FROM nodes ORDER BY id").fetch_all(&mut *connection).await.map_err(read)?;
    let freed = sqlx::query("SELECT host, at FROM freed_hosts ORDER BY host")
        .fetch_all(&mut *connection)
        .await
        .map_err(read)?;
    let policies =
        sqlx::query("SELECT * FROM policies ORDER BY version").fetch_all(&mut *connection).await.map_err(read)?;
    Ok(Records {
        revision: journal::revision(&mut *connection).await.map_err(read)?,
        counters: counters.as_ref().map(counters_of).transpose().map_err(read)?.unwrap_or_default(),
        users: people::all(&mut *connection).await.map_err(read)?,
        keys: credentials::keys(&mut *connection).await.map_err(read)?,
        nodes: readable("node", &nodes, node_of),
        freed: readable("freed place", &freed, freed_of),
        // None may be left out: an older version might open what the last one closed.
        policies: policies.iter().map(policy_of).collect::<sqlx::Result<_>>().map_err(read)?,
        pending: waiting::all(&mut *connection).await.map_err(read)?,
        rejected: waiting::rejected(&mut *connection).await.map_err(read)?,
        tokens: credentials::tokens(&mut *connection).await.map_err(read)?,
        clients: credentials::clients(&mut *connection).await.map_err(read)?,
        sessions: people::sessions(&mut *connection).await.map_err(read)?,
        settings: waiting::settings(&mut *connection).await.map_err(read)?,
    })
}

/// Writes one change.
async fn keep(connection: &mut SqliteConnection, change: &Change) -> Result<(), StoreError> {
    let query = match change {
        Change::Counters(counters) => sqlx::query(
            "INSERT INTO counters (one, user_id, key_id, node_id, host, token_id, client_id) VALUES (1, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (one) DO UPDATE SET user_id = max(user_id, excluded.user_id),
             key_id = max(key_id, excluded.key_id), node_id = max(node_id, excluded.node_id),
             host = max(host, excluded.host), token_id = max(token_id, excluded.token_id),
             client_id = max(client_id, excluded.client_id)",
        )
        .bind(integer(counters.user))
        .bind(integer(counters.key))
        .bind(integer(counters.node))
        .bind(i64::from(counters.host))
        .bind(integer(counters.token))
        .bind(integer(counters.client)),
        Change::User(user) => return people::keep(connection, user).await,
        Change::UserGone(id) => return people::forget(connection, *id).await,
        Change::Key(key) => return credentials::keep_key(connection, key).await,
        Change::KeyUsed(id, at) => return credentials::use_key(connection, *id, *at).await,
        Change::KeyGone(id) => sqlx::query("DELETE FROM auth_keys WHERE id = ?").bind(integer(id.0)),
        Change::Node(node) => return nodes::keep(connection, node).await,
        Change::NodeFields(id, version, fields) => return nodes::change(connection, *id, *version, fields).await,
        Change::NodeReport(report) => return nodes::report(connection, report).await,
        Change::NodeGone(id) => sqlx::query("DELETE FROM nodes WHERE id = ?").bind(integer(id.0)),
        Change::HostFreed(host, at) => {
            sqlx::query("INSERT INTO freed_hosts (host, at) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(i64::from(*host))
                .bind(at.to_string())
        }
        Change::HostReady(host) => sqlx::query("DELETE FROM freed_hosts WHERE host = ?").bind(i64::from(*host)),
        Change::Policy(policy) => return keep_policy(connection, policy).await,
        Change::PolicyGone(version) => sqlx::query("DELETE FROM policies WHERE version = ?").bind(integer(*version)),
        Change::Pending(pending) => return waiting::keep(connection, pending).await,
        Change::PendingGone(code) => return waiting::forget(connection, code).await,
        Change::Rejected(code, until) => return waiting::reject(connection, code, *until).await,
        Change::Forgiven(machine) => return waiting::forgive(connection, machine).await,
        Change::Token(token) => return credentials::keep_token(connection, token).await,
        Change::TokenGone(id) => sqlx::query("DELETE FROM tokens WHERE id = ?").bind(integer(id.0)),
        Change::Client(client) => return credentials::keep_client(connection, client).await,
        Change::ClientGone(id) => sqlx::query("DELETE FROM clients WHERE id = ?").bind(integer(id.0)),
        Change::Session(session) => return people::keep_session(connection, session).await,
        Change::SessionGone(id) => return people::forget_session(connection, id).await,
        Change::Settings(settings) => return waiting::keep_settings(connection, settings).await,
        Change::ServerKeys(..) => return Ok(()),
    };
    query.execute(connection).await.map(drop).map_err(|error| refused(describe(change), &error))
}

async fn keep_policy(connection: &mut SqliteConnection, policy: &PolicyRecord) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO policies (version, text, author, at) VALUES (?, ?, ?, ?)
         ON CONFLICT (version) DO UPDATE SET version = excluded.version
         WHERE text = excluded.text AND author = excluded.author AND at = excluded.at",
    )
    .bind(integer(policy.version))
    .bind(policy.text.to_string())
    .bind(policy.by.clone())
    .bind(policy.at.to_string())
    .execute(connection)
    .await
    .map_err(|error| failed(format!("keep version {} of the policy", policy.version), error))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict(format!("version {} of the policy was set meanwhile", policy.version))),
        _ => Ok(()),
    }
}

/// What is another's already is a conflict: whoever wanted it may want something else.
pub(super) fn refused(operation: String, error: &sqlx::Error) -> StoreError {
    match error.as_database_error().is_some_and(|error| error.is_unique_violation()) {
        true => StoreError::Conflict(format!("{operation}: {error}")),
        false => failed(operation, error),
    }
}

fn counters_of(row: &SqliteRow) -> sqlx::Result<Counters> {
    Ok(Counters {
        user: number(row, "user_id")?,
        key: number(row, "key_id")?,
        node: number(row, "node_id")?,
        token: number(row, "token_id")?,
        client: number(row, "client_id")?,
        host: number(row, "host")?,
    })
}

fn policy_of(row: &SqliteRow) -> sqlx::Result<PolicyRecord> {
    Ok(PolicyRecord {
        version: number(row, "version")?,
        text: row.try_get::<String, _>("text")?.into(),
        by: row.try_get("author")?,
        at: parsed(row, "at")?,
    })
}

fn freed_of(row: &SqliteRow) -> sqlx::Result<(u32, Timestamp)> {
    Ok((number(row, "host")?, parsed(row, "at")?))
}

fn node_of(row: &SqliteRow) -> sqlx::Result<NodeRecord> {
    let (user, admitted_by): (Option<i64>, Option<i64>) = (row.try_get("user_id")?, row.try_get("admitted_by")?);
    let gateway: Option<i64> = row.try_get("gateway")?;
    Ok(NodeRecord {
        id: NodeId(number(row, "id")?),
        stable_id: StableNodeId(row.try_get("stable_id")?),
        user: user.and_then(|id| id.try_into().ok()).map(UserId),
        machine: parsed(row, "machine_key")?,
        key: parsed(row, "node_key")?,
        key_expiry: optional(row, "key_expiry")?,
        expiry_disabled: row.try_get("expiry_disabled")?,
        logged_out: row.try_get("logged_out")?,
        ipv4: parsed(row, "ipv4")?,
        ipv6: parsed(row, "ipv6")?,
        label: parsed(row, "label")?,
        label_fixed: row.try_get("label_fixed")?,
        tags: list(row, "tags")?,
        ephemeral: row.try_get("ephemeral")?,
        created: parsed(row, "created")?,
        last_seen: optional(row, "last_seen")?,
        admitted_by: admitted_by.and_then(|id| id.try_into().ok()).map(KeyId),
        approved: row.try_get("approved")?,
        attributes: serde_json::from_str(row.try_get("attributes")?).map_err(|error| malformed("attributes", error))?,
        approved_routes: list(row, "approved_routes")?,
        // A number that is none would make a node of ours of a device.
        gateway: gateway
            .map(|id| id.try_into().map(NodeId))
            .transpose()
            .map_err(|error| malformed("gateway", error))?,
        version: number(row, "version")?,
        status: NodeStatus {
            disco: parsed(row, "disco_key")?,
            endpoints: list(row, "endpoints")?,
            home_derp: RegionId(number(row, "home_derp")?),
            cap: CapabilityVersion(number(row, "cap")?),
            routes: list(row, "routes")?,
            hostinfo: row.try_get::<String, _>("hostinfo")?.into(),
        },
    })
}

/// The rows that can be read. One that cannot is left where it is and reported: a single damaged row must
/// not keep the whole network from its coordinator.
pub(super) fn readable<T>(what: &str, rows: &[SqliteRow], read: impl Fn(&SqliteRow) -> sqlx::Result<T>) -> Vec<T> {
    let read = |row| {
        read(row)
            .inspect_err(|error| {
                let id: i64 = row.try_get("id").unwrap_or_default();
                tracing::error!("{what} {id} in the database cannot be read and is left out: {error}");
            })
            .ok()
    };
    rows.iter().filter_map(read).collect()
}

pub(super) fn number<T: TryFrom<i64, Error: Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    row.try_get::<i64, _>(column)?.try_into().map_err(|error| malformed(column, error))
}

pub(super) fn parsed<T: FromStr<Err: Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    row.try_get::<&str, _>(column)?.parse().map_err(|error| malformed(column, error))
}

pub(super) fn optional(row: &SqliteRow, column: &str) -> sqlx::Result<Option<Timestamp>> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| malformed(column, error))).transpose()
}

pub(super) fn list<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> sqlx::Result<Vec<T>> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| malformed(column, error))
}

pub(super) fn malformed(column: &str, error: impl Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("column `{column}`: {error}").into())
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "[]".to_owned())
}

/// SQLite's numbers are signed. Ours count up from one and never come near the sign.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn describe(change: &Change) -> String {
    match change {
        Change::Counters(_) => "keep the counters".to_owned(),
        Change::User(user) => format!("keep user {}", user.name),
        Change::UserGone(id) => format!("delete user {id}"),
        Change::Key(key) => format!("keep key {}", key.id),
        Change::KeyUsed(id, _) => format!("use key {id}"),
        Change::KeyGone(id) => format!("delete key {id}"),
        Change::Node(node) => format!("keep node {}", node.id),
        Change::NodeFields(id, ..) => format!("change node {id}"),
        Change::NodeReport(report) => format!("keep what node {} reported", report.id),
        Change::NodeGone(id) => format!("delete node {id}"),
        Change::HostFreed(host, _) => format!("keep the freed place {host}"),
        Change::HostReady(host) => format!("give back the place {host}"),
        Change::Policy(policy) => format!("keep version {} of the policy", policy.version),
        Change::PolicyGone(version) => format!("delete version {version} of the policy"),
        Change::Pending(_) => "keep a machine that waits".to_owned(),
        Change::PendingGone(code) | Change::Rejected(code, _) => format!("forget the machine that waited under {code}"),
        Change::Forgiven(_) => "let a machine ask again".to_owned(),
        Change::Token(token) => format!("keep token {}", token.id.0),
        Change::TokenGone(id) => format!("delete token {}", id.0),
        Change::Client(client) => format!("keep client {}", client.id.0),
        Change::ClientGone(id) => format!("delete client {}", id.0),
        Change::Session(_) | Change::SessionGone(_) => "keep a browser's session".to_owned(),
        Change::Settings(_) => "keep the settings".to_owned(),
        Change::ServerKeys(..) => "keep nothing".to_owned(),
    }
}
