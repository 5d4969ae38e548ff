//! Backups: one SQLite file that holds the records and, in a table beside them, the files that lie beside a database.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteLockingMode};
use sqlx::{ConnectOptions, Connection as _, Row};

use super::StoreError;
use super::connection::{failed, newer, unusable};

/// How long a server that just ends may take to let go of its database.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// A file that lies beside a database: a key, as a rule.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Its name in the state directory.
    pub name: String,
    pub content: Vec<u8>,
}

impl std::fmt::Debug for KeptFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptFile").field("name", &self.name).field("content", &"[redacted]").finish()
    }
}

/// What a database or a backup of one holds.
#[derive(Debug)]
pub struct Contents {
    /// The files that a backup keeps; none in a database.
    pub files: Vec<KeptFile>,
    /// How many users there are.
    pub users: u64,
    /// How many nodes there are.
    pub nodes: u64,
    /// The policy in force; 0 for none.
    pub policy: u64,
    /// The latest time that the database tells of.
    pub latest: Option<String>,
}

/// A consistent copy of what this connection sees, in a file that is for its owner alone.
pub(super) async fn copy(inner: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    let operation = || format!("copy the database to {}", to.display());
    let text = to.to_str().ok_or_else(|| failed(operation(), "the name is not UTF-8"))?;
    // SQLite takes an empty file for one that it may fill, and would give a new one to everybody.
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to);
    made.map_err(|error| failed(operation(), error))?;
    let copied = sqlx::query("VACUUM INTO ?").bind(text).execute(inner).await;
    copied.map(drop).map_err(|error| failed(operation(), error))
}

/// The same of a database that no server has open.
pub async fn copy_closed(database: &Path, to: &Path) -> Result<(), StoreError> {
    let mut inner = lock(database).await?;
    let copied = copy(&mut inner, to).await;
    close(inner).await;
    copied
}

/// Makes sure that no server has the database open.
pub async fn is_free(database: &Path) -> Result<(), StoreError> {
    close(lock(database).await?).await;
    Ok(())
}

/// Adds these files to a copy: it is a backup from then on.
pub async fn seal(copy: &Path, files: &[KeptFile]) -> Result<(), StoreError> {
    let written = |error| failed(format!("write {}", copy.display()), error);
    let mut inner = SqliteConnectOptions::new().filename(copy).connect().await.map_err(written)?;
    let table = "CREATE TABLE backup_files (name TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT";
    sqlx::query(table).execute(&mut inner).await.map_err(written)?;
    for file in files {
        let query = sqlx::query("INSERT INTO backup_files (name, content) VALUES (?, ?)");
        query.bind(&file.name).bind(&file.content).execute(&mut inner).await.map_err(written)?;
    }
    inner.close().await.map_err(written)
}

/// Reads a backup, or a database that nobody has open, without changing it.
pub async fn read(file: &Path) -> Result<Contents, StoreError> {
    let wrong = |error: &dyn std::fmt::Display| failed(format!("read {}", file.display()), error);
    fs::File::open(file).map_err(|error| wrong(&error))?;
    let options = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
    let mut inner = options.connect().await.map_err(|error| wrong(&error))?;
    let contents = contents(&mut inner).await;
    close(inner).await;
    contents.map_err(|reason| wrong(&reason))
}

/// Says that a newer program wrote a database, if one did. Whoever has it open is not disturbed: what they did not yet move from
/// the log into the file, and tables never wait there for long, is not seen.
pub async fn written_by_newer(database: &Path) -> Result<Option<String>, StoreError> {
    let wrong = |error: &dyn std::fmt::Display| failed(format!("read {}", database.display()), error);
    let options = SqliteConnectOptions::new().filename(database).read_only(true).immutable(true);
    let mut inner = options.connect().await.map_err(|error| wrong(&error))?;
    let found = schema(&mut inner).await;
    close(inner).await;
    Ok(newer(found.map_err(|reason| wrong(&reason))?).map(|reason| format!("{}: {reason}", database.display())))
}

async fn schema(inner: &mut SqliteConnection) -> Result<i64, String> {
    let schema =
        sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations").fetch_one(inner).await;
    Ok(schema.map_err(|_| "this is no database of warren-coordinator".to_owned())?.unwrap_or_default())
}

async fn contents(inner: &mut SqliteConnection) -> Result<Contents, String> {
    let text = |error: sqlx::Error| error.to_string();
    let check: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *inner).await.map_err(text)?;
    if check != "ok" {
        return Err(format!("it is damaged: {check}"));
    }
    if let Some(reason) = newer(schema(inner).await?) {
        return Err(reason);
    }
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?";
    let has = async |inner: &mut SqliteConnection, name: &str| -> Result<bool, String> {
        sqlx::query_scalar::<_, i64>(tables).bind(name).fetch_one(inner).await.map(|n| n > 0).map_err(text)
    };
    let mut files = Vec::new();
    if has(inner, "backup_files").await? {
        let rows = sqlx::query("SELECT name, content FROM backup_files ORDER BY name");
        for row in rows.fetch_all(&mut *inner).await.map_err(text)? {
            files.push(KeptFile { name: row.try_get(0).map_err(text)?, content: row.try_get(1).map_err(text)? });
        }
    }
    let number = async |inner: &mut SqliteConnection, sql: &'static str| -> Result<u64, String> {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(inner).await.map(i64::unsigned_abs).map_err(text)
    };
    let users = number(inner, "SELECT count(*) FROM users").await?;
    let nodes = number(inner, "SELECT count(*) FROM nodes").await?;
    let policy = match has(inner, "policies").await? {
        true => number(inner, "SELECT coalesce(max(version), 0) FROM policies").await?,
        false => 0,
    };
    // All are times in UTC of one spelling, whose order is that of their text up to the second.
    let latest =
        sqlx::query_scalar("SELECT max(at) FROM (SELECT created AS at FROM nodes UNION SELECT last_seen FROM nodes)");
    let latest = latest.fetch_one(&mut *inner).await.map_err(text)?;
    Ok(Contents { files, users, nodes, policy, latest })
}

/// Makes a database of a backup, in a file that is for its owner alone; what the backup keeps besides is not in it.
pub async fn unseal(backup: &Path, to: &Path) -> Result<(), StoreError> {
    let written = |error: &dyn std::fmt::Display| failed(format!("write {}", to.display()), error);
    let copied = (|| {
        let mut from = fs::File::open(backup)?;
        let mut target = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to)?;
        std::io::copy(&mut from, &mut target)
    })();
    copied.map_err(|error| written(&error))?;
    let mut inner = SqliteConnectOptions::new().filename(to).connect().await.map_err(|error| written(&error))?;
    for sql in ["DROP TABLE IF EXISTS backup_files", "VACUUM"] {
        sqlx::query(sql).execute(&mut inner).await.map_err(|error| written(&error))?;
    }
    inner.close().await.map_err(|error| written(&error))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(|error| written(&error))
}

async fn lock(database: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(database)
        .locking_mode(SqliteLockingMode::Exclusive)
        .busy_timeout(LOCK_WAIT);
    let mut inner = options.connect().await.map_err(|error| unusable(database, "open", &error))?;
    for sql in ["BEGIN EXCLUSIVE", "COMMIT"] {
        if let Err(error) = sqlx::query(sql).execute(&mut inner).await {
            close(inner).await;
            return Err(unusable(database, "open", &error));
        }
    }
    Ok(inner)
}

async fn close(inner: SqliteConnection) {
    if let Err(error) = inner.close().await {
        tracing::debug!(%error, "closing a database");
    }
}
