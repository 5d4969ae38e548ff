//! One open SQLite file: opened, written to, and proven after something failed.
//!
//! Nothing is known of a connection once a statement of it failed: SQLite rolls some transactions back by itself and
//! leaves others open, and whether a commit that failed is on disk is told by the disk alone. So a connection lives up
//! to its first failure. Transactions are begun and committed by their own statements, which nothing counts along; each
//! raises a serial number, by which the next connection sees whether the last commit arrived.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::AccessFlags;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row};

use super::StoreError;
use warren_shell::keep_private;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("store/migrations");

/// A connection of which no statement has failed yet.
#[derive(Debug)]
pub(super) struct Connection {
    inner: SqliteConnection,
    /// The number of the last commit that it found.
    found: u64,
    /// The number of the last commit; [`Connection::found`] before the first.
    serial: u64,
    /// The files that hold what is committed, as they were when they were opened.
    files: [(PathBuf, Identity); 2],
}

/// Which file it is, whatever its name: device and number.
type Identity = (u64, u64);

impl Connection {
    /// Opens the file, brings its tables up to date, and proves that it takes writes. Where a connection failed before,
    /// what that left behind is made whole.
    pub(super) async fn open(path: &Path, lock_wait: Duration) -> Result<Self, StoreError> {
        let name = path.display();
        let mut inner = connect(path, lock_wait).await?;
        let found = match prepare(&mut inner, path).await {
            Ok(found) => found,
            Err(error) => {
                // Whoever tries again gets the lock.
                close(inner).await;
                return Err(error);
            }
        };
        let log = PathBuf::from(format!("{name}-wal"));
        let seen = identity(path).and_then(|file| Ok((file, identity(&log)?)));
        let (file, log_file) = seen.map_err(|error| failed(format!("look at the database {name}"), error))?;
        Ok(Self { inner, found, serial: found, files: [(path.to_owned(), file), (log, log_file)] })
    }

    /// The number of the last commit that this connection found when it was opened.
    pub(super) const fn found(&self) -> u64 {
        self.found
    }

    /// The number of the last commit.
    pub(super) const fn serial(&self) -> u64 {
        self.serial
    }

    /// Begins what [`Connection::commit`] ends.
    pub(super) async fn begin(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        execute(&mut self.inner, "BEGIN IMMEDIATE").await?;
        Ok(&mut self.inner)
    }

    /// Everything since [`Connection::begin`] is on disk when this returns.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        raise_serial(&mut self.inner).await?;
        execute(&mut self.inner, "COMMIT").await?;
        self.serial += 1;
        Ok(())
    }

    /// The connection, to read.
    pub(super) const fn reading(&mut self) -> &mut SqliteConnection {
        &mut self.inner
    }

    /// Whether the files are still those that we write to: what is written to a file that was removed or replaced is
    /// gone with the process.
    pub(super) fn still_there(&self) -> Result<(), StoreError> {
        for (path, was) in &self.files {
            let operation = || format!("write to the database: {}", path.display());
            match identity(path) {
                Ok(is) if is == *was => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(operation(), error)),
                Ok(_) | Err(_) => {
                    let reason = "the file was removed or replaced while it was open; `warren-coordinator backup FILE` \
                                  still saves what it held, to be restored after the server was stopped";
                    return Err(failed(operation(), reason));
                }
            }
        }
        Ok(())
    }

    /// Copies everything into a file of its own.
    pub(super) async fn copy(&mut self, to: &Path) -> Result<(), StoreError> {
        super::backup::copy(&mut self.inner, to).await
    }

    /// Lets go of the file, log folded in where the disk allows that.
    pub(super) async fn close(self) {
        close(self.inner).await;
    }
}

/// Makes an empty file, readable for its owner alone, where there is none.
pub(super) fn make_file(path: &Path) -> Result<(), StoreError> {
    let made = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path);
    let made = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let log = PathBuf::from(format!("{}-wal", path.display()));
            return [path, &log].into_iter().try_for_each(|file| {
                keep_private(file).map_err(|error| failed(format!("open the database {}", path.display()), error))
            });
        }
        // The name has to survive a crash like the content.
        made => made.and_then(|_| fs::File::open(directory_of(path))?.sync_all()),
    };
    made.map_err(|error| failed(format!("make the database {}", path.display()), error))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

async fn connect(path: &Path, lock_wait: Duration) -> Result<SqliteConnection, StoreError> {
    // SQLite's words for this are of no use to anybody.
    for (place, access) in [(path, AccessFlags::R_OK | AccessFlags::W_OK), (directory_of(path), AccessFlags::W_OK)] {
        let may = nix::unistd::access(place, access);
        may.map_err(|error| failed(format!("open the database {}", path.display()), error.desc()))?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .locking_mode(SqliteLockingMode::Exclusive)
        .foreign_keys(true)
        .busy_timeout(lock_wait);
    options.connect().await.map_err(|error| unusable(path, "open", &error))
}

/// A connection to a file that cannot be written to: to read what is committed, and its number. Tables of an older
/// version are no use so.
pub(super) async fn open_to_read(path: &Path, lock_wait: Duration) -> Result<(SqliteConnection, u64), StoreError> {
    let mut inner = connect(path, lock_wait).await?;
    let looked = async {
        let schema = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut inner).await;
        let schema: i64 = schema.map_err(|error| unusable(path, "read", &error))?;
        if schema != newest_schema() {
            let reason = format!("its schema is {schema}, this program's {}", newest_schema());
            return Err(failed(format!("read the database {}", path.display()), reason));
        }
        serial(&mut inner).await
    };
    match looked.await {
        Ok(serial) => Ok((inner, serial)),
        Err(error) => {
            close(inner).await;
            Err(error)
        }
    }
}

/// Brings tables up to date and what an earlier connection committed from the log into the file, and writes as much
/// as a command does; gives the number of the last commit.
#[expect(clippy::wildcard_enum_match_arm, reason = "one of the library's many errors means a newer schema")]
async fn prepare(inner: &mut SqliteConnection, path: &Path) -> Result<u64, StoreError> {
    let name = path.display();
    MIGRATIONS.run_direct(None, inner, false).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => failed(
            format!("open the database {name}"),
            newer(version).unwrap_or_else(|| format!("this program has no schema {version}")),
        ),
        error => unusable(path, "upgrade", &error),
    })?;
    fold_in(inner, path).await?;
    let found = serial(inner).await?;
    execute(inner, "BEGIN IMMEDIATE").await?;
    // Without a number: where a later step fails, the next connection still sees how far the last one's commits came.
    execute(inner, "UPDATE proof SET filler = randomblob(49152)").await?;
    execute(inner, "COMMIT").await?;
    // Gives the room back: the next commits fit into what this one took.
    fold_in(inner, path).await?;
    Ok(found)
}

/// Copies what is in the log into the file, and empties the log. A log whose last flush failed is read from memory, and
/// may be nowhere else: what is copied from it and flushed is on disk.
async fn fold_in(inner: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(inner).await;
    let is_busy = row.and_then(|row| row.try_get::<i64, _>(0)).map_err(|error| unusable(path, "write to", &error))?;
    if is_busy == 0 { Ok(()) } else { Err(StoreError::InUse(path.display().to_string())) }
}

/// Says that a newer program wrote a database with this schema, if one did.
pub(super) fn newer(schema: i64) -> Option<String> {
    let known = newest_schema();
    (schema > known).then(|| format!("a newer warren-coordinator wrote it (schema {schema}, this one knows {known})"))
}

/// The newest schema that this program knows.
fn newest_schema() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

async fn serial(inner: &mut SqliteConnection) -> Result<u64, StoreError> {
    let row = sqlx::query("SELECT serial FROM commits").fetch_one(inner).await;
    let serial = row.and_then(|row| row.try_get::<i64, _>(0)).map_err(|error| failed("read the database", error))?;
    Ok(serial.unsigned_abs())
}

async fn raise_serial(inner: &mut SqliteConnection) -> Result<(), StoreError> {
    execute(inner, "UPDATE commits SET serial = serial + 1").await
}

async fn execute(inner: &mut SqliteConnection, sql: &'static str) -> Result<(), StoreError> {
    let done = sqlx::query(sql).execute(inner).await;
    done.map(drop).map_err(|error| failed("write to the database", error))
}

pub(super) async fn close(inner: SqliteConnection) {
    // Its own error is of no interest: what is not folded in stays in the log.
    if let Err(error) = sqlx::Connection::close(inner).await {
        tracing::debug!(%error, "closing the database");
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

pub(super) fn unusable(path: &Path, operation: &str, error: &dyn Display) -> StoreError {
    let (name, text) = (path.display().to_string(), error.to_string());
    match text.contains("database is locked") {
        true => StoreError::InUse(name),
        false => failed(format!("{operation} the database {name}"), text),
    }
}

pub(super) fn failed(operation: impl Into<String>, error: impl Display) -> StoreError {
    StoreError::Failed { operation: operation.into(), reason: error.to_string() }
}
