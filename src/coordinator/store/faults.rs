//! The SQLite store on disks that fail: full, read-only, with errors at any write. Whatever happens, what was acknowledged
//! is what a crash at that moment leaves, and nothing else.
//!
//! Each test runs itself a second time where it owns a small file system: a tmpfs of its own mount namespace.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::conformance::keep;
use super::samples::user;
use super::tests::{ledger, now, register, says};
use super::*;
use warren_core::registry::{Actor, Config, Records, State};
use warren_core::types::{MachinePublic, NodeId, Timestamp};

const DISK: &str = "WARREN_TEST_DISK";
const PAGE: usize = 4096;

/// Runs `body` on a file system of one mebibyte: in a child, by the same test.
fn on_a_small_disk(test: &str, body: impl AsyncFnOnce(Disk)) {
    if let Some(path) = std::env::var_os(DISK) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body(Disk(path.into())));
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$WARREN_TEST_DISK\" || exit 77; trap '' XFSZ; exec \"$0\" \"$@\"";
    let mut child = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        child.args(["--user", "--map-root-user"]);
    }
    let test = format!("store::faults::{test}");
    child.args(["--mount", "--", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    let output = child.args(["--exact", &test, "--nocapture"]).env(DISK, directory.path()).output();
    let output = output.expect("unshare, of util-linux");
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) || told.contains("unshare: ") {
        eprintln!("SKIPPED {test}: this host lets nobody mount: {told}");
        return;
    }
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

struct Disk(PathBuf);

impl Disk {
    fn database(&self) -> PathBuf {
        self.0.join("coordinator.sqlite")
    }

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.database()).await.unwrap()
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves so many pages free.
    fn fill(&self, free: usize) {
        let free_now = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let pages = usize::try_from(free_now.blocks_available()).unwrap().saturating_sub(free);
        let mut ballast = fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        ballast.write_all(&vec![1; pages * PAGE]).unwrap();
    }

    /// Fills the disk until commits fail: what folding the log in gives back is taken too.
    async fn starve(&self, ledger: &mut Ledger<SqliteStore>, key: &str) {
        for machine in 100.. {
            self.fill(0);
            let refused = register(ledger, machine, key).await.is_err();
            if refused && !ledger.store().is_sound() {
                return;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn remount(&self, flags: MsFlags) {
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
    }

    /// What a coordinator would find that were started after a crash at this moment.
    async fn after_a_crash(&self) -> Records {
        let elsewhere = tempfile::tempdir().unwrap();
        for name in ["coordinator.sqlite", "coordinator.sqlite-wal"] {
            if let Ok(bytes) = fs::read(self.0.join(name)) {
                fs::write(elsewhere.path().join(name), bytes).unwrap();
            }
        }
        records_in(&elsewhere.path().join("coordinator.sqlite")).await
    }
}

async fn records_in(path: &Path) -> Records {
    let mut store = SqliteStore::open(path).await.unwrap();
    let records = store.load().await.unwrap();
    store.close().await;
    records
}

/// What is acknowledged, and no more, is on disk. What nodes say of themselves may come later.
async fn assert_acknowledged(state: &State, disk: &Disk, when: &str) {
    let kept = disk.after_a_crash().await;
    let users: Vec<_> = state.users().cloned().collect();
    let keys: Vec<_> = state.keys().cloned().collect();
    assert_eq!((&kept.users, &kept.keys), (&users, &keys), "{when}");
    let identity =
        |record: &warren_core::registry::NodeRecord| (record.id, record.key, record.ipv4, record.label.clone());
    let nodes: Vec<_> = state.nodes().map(|node| identity(node.record)).collect();
    assert_eq!(kept.nodes.iter().map(identity).collect::<Vec<_>>(), nodes, "{when}");
}

#[test]
fn after_a_full_disk_what_is_acknowledged_is_on_disk_again() {
    on_a_small_disk("after_a_full_disk_what_is_acknowledged_is_on_disk_again", async |disk| {
        let (mut ledger, key) = ledger(disk.open().await, true).await;
        register(&mut ledger, 1, &key).await.unwrap();
        disk.starve(&mut ledger, &key).await;
        let mut at = now();
        for port in 1..=5 {
            assert!(register(&mut ledger, 2, &key).await.is_err());
            ledger.state_mut().update(MachinePublic::from_bytes([1; 32]), &says(1, port), at).unwrap();
            ledger.pass(at).await;
            at += Duration::from_secs(5);
            ledger.pass(at).await;
        }
        assert!(ledger.fault().unwrap().to_string().contains("full"), "{:?}", ledger.fault());
        // The running network goes on.
        ledger.state_mut().open(NodeId(1), warren_core::types::CapabilityVersion::CURRENT, at).unwrap();

        disk.free();
        let again = ledger.poll_timeout().unwrap().max(at + Duration::from_secs(5));
        ledger.pass(again).await;
        assert_eq!((ledger.fault(), ledger.state().unsaved()), (None, 0), "without anybody's asking");
        for machine in 2..=9 {
            assert_eq!(register(&mut ledger, machine, &key).await.unwrap(), "");
            assert_acknowledged(ledger.state(), &disk, &format!("machine {machine}")).await;
        }
        let ports = |records: &Records| records.nodes[0].status.endpoints[0].port();
        assert_eq!(ports(&disk.after_a_crash().await), 5);
    });
}

#[test]
fn a_disk_that_is_full_after_any_page_loses_and_doubles_nothing() {
    on_a_small_disk("a_disk_that_is_full_after_any_page_loses_and_doubles_nothing", async |disk| {
        let (mut ledger, key) = ledger(disk.open().await, true).await;
        let (mut refused, mut machine) = (0, 0);
        for free in 0..24 {
            for _ in 0..3 {
                disk.fill(free);
                machine += 1;
                refused += u32::from(register(&mut ledger, machine, &key).await.is_err());
            }
            disk.free();
            let fresh = ledger.try_run(&Actor::COORDINATOR, now(), move |by| {
                by.create_user(format!("u{free}").parse()?, String::new())
            });
            fresh.await.unwrap();
            assert_acknowledged(ledger.state(), &disk, &format!("{free} pages were free")).await;
        }
        assert!(refused > 3, "{refused}");
        let addresses: std::collections::BTreeSet<_> = ledger.state().nodes().map(|node| node.record.ipv4).collect();
        assert_eq!(addresses.len(), ledger.state().nodes().count());
    });
}

/// A limit on the size of files is an error of the disk, as far as SQLite can tell.
#[test]
fn an_error_at_any_write_loses_and_doubles_nothing() {
    on_a_small_disk("an_error_at_any_write_loses_and_doubles_nothing", async |disk| {
        let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, getrlimit(Resource::RLIMIT_FSIZE).unwrap().1);
        let (mut ledger, key) = ledger(disk.open().await, true).await;
        let mut refused = 0;
        for step in 0..60 {
            let log = fs::metadata(disk.0.join("coordinator.sqlite-wal")).unwrap().len();
            limit(log + step * 701).unwrap();
            let done = register(&mut ledger, u8::try_from(step).unwrap(), &key).await;
            limit(u64::MAX).unwrap();
            refused += u32::from(done.is_err());
            ledger.pass(now() + Duration::from_secs(60 * (step + 1))).await;
            assert_eq!(ledger.fault(), None);
            assert_acknowledged(ledger.state(), &disk, &format!("step {step}, {done:?}")).await;
        }
        assert!(refused > 5, "{refused}");
    });
}

#[test]
fn a_disk_that_turns_read_only_is_told_of_and_taken_up_again() {
    on_a_small_disk("a_disk_that_turns_read_only_is_told_of_and_taken_up_again", async |disk| {
        let (mut ledger, key) = ledger(disk.open().await, true).await;
        // The failure that makes a kernel turn a file system read-only.
        disk.starve(&mut ledger, &key).await;
        disk.free();
        disk.remount(MsFlags::MS_RDONLY);
        assert!(register(&mut ledger, 1, &key).await.is_err());
        let fault = ledger.examined(now()).await.unwrap().to_string();
        assert!(fault.contains("Read-only file system"), "{fault}");

        disk.remount(MsFlags::empty());
        assert_eq!(register(&mut ledger, 1, &key).await.unwrap(), "");
        assert_eq!(ledger.fault(), None);
        assert_acknowledged(ledger.state(), &disk, "at the end").await;

        let (store, saved) = ledger.shutdown(now()).await;
        saved.unwrap();
        store.unwrap().close().await;
        disk.remount(MsFlags::MS_RDONLY);
        let error = SqliteStore::open(&disk.database()).await.unwrap_err().to_string();
        assert!(error.contains("coordinator.sqlite") && error.contains("Read-only file system"), "{error}");
    });
}

#[tokio::test]
async fn a_database_that_is_removed_or_replaced_while_it_is_open_is_an_error() {
    for name in ["coordinator.sqlite", "coordinator.sqlite-wal"] {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk(directory.path().to_owned());
        let mut store = disk.open().await;
        keep(&mut store, &[Change::User(user(1, "ada"))]).await.unwrap();
        fs::remove_file(disk.0.join(name)).unwrap();
        for _ in 0..2 {
            let error = keep(&mut store, &[Change::User(user(2, "bob"))]).await.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("removed or replaced"), "{error}");
            assert_eq!(store.load().await.unwrap().users.len(), 1, "what is there can still be read");
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk(directory.path().to_owned());
    let mut store = disk.open().await;
    assert_eq!(written_by_newer(&disk.database()).await.unwrap(), None, "a server has it open");
    store
        .run_sql(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9000, 'later', TRUE, x'00', 0)",
        )
        .await;
    store.close().await;
    let error = SqliteStore::open(&disk.database()).await.unwrap_err().to_string();
    assert!(error.contains("a newer warren-coordinator wrote it (schema 9000, this one knows "), "{error}");
    let found = written_by_newer(&disk.database()).await.unwrap().unwrap();
    assert!(found.contains("coordinator.sqlite") && found.contains("schema 9000"), "{found}");
    fs::write(disk.database(), "no database").unwrap();
    written_by_newer(&disk.database()).await.unwrap_err();
}

/// A store whose commits arrive although they seem to fail, as where the last flush fails.
struct Deceiving {
    kept: Vec<Change>,
    sound: bool,
    deceives: bool,
}

impl Store for Deceiving {
    async fn load(&mut self) -> Result<Records, StoreError> {
        Ok(Records::default())
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        assert!(self.sound, "nothing may be committed before it is known what is kept");
        self.kept.extend_from_slice(&batch.changes);
        self.sound = !self.deceives;
        if self.sound { Ok(()) } else { Err(connection::failed("write", "I/O error")) }
    }

    async fn read_journal(&mut self, _: &JournalQuery) -> Result<Vec<JournalRecord>, StoreError> {
        Ok(Vec::new())
    }

    fn is_sound(&self) -> bool {
        self.sound
    }

    async fn prove(&mut self) -> Result<Proven, StoreError> {
        let was_sound = std::mem::replace(&mut self.sound, true);
        Ok(if was_sound { Proven::AsTold } else { Proven::WithTheLast })
    }
}

#[tokio::test]
async fn a_commit_that_failed_and_arrived_counts_before_anything_else_is_decided() {
    let store = Deceiving { kept: Vec::new(), sound: true, deceives: false };
    let (mut ledger, key) = ledger(store, false).await;
    ledger.store_mut().deceives = true;
    assert!(register(&mut ledger, 1, &key).await.is_err());
    assert_eq!(ledger.state().nodes().count(), 0);
    ledger.store_mut().deceives = false;
    let second = register(&mut ledger, 2, &key).await.unwrap();
    assert!(second.contains("used already"), "{second}");
    assert_eq!(register(&mut ledger, 1, &key).await.unwrap(), "", "the machine that had it is in");
    assert_eq!(ledger.state().nodes().count(), 1);
}

/// Takes everything but one node.
struct Picky;

impl Store for Picky {
    async fn load(&mut self) -> Result<Records, StoreError> {
        Ok(Records::default())
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let is_bad = |change: &Change| match change {
            Change::NodeReport(report) => report.id == NodeId(1) && !report.status.endpoints.is_empty(),
            _ => false,
        };
        match batch.changes.iter().any(is_bad) {
            true => Err(connection::failed("keep node 1", "constraint failed")),
            false => Ok(()),
        }
    }

    async fn read_journal(&mut self, _: &JournalQuery) -> Result<Vec<JournalRecord>, StoreError> {
        Ok(Vec::new())
    }

    fn is_sound(&self) -> bool {
        true
    }

    async fn prove(&mut self) -> Result<Proven, StoreError> {
        Ok(Proven::AsTold)
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_kept_takes_nothing_else_along() {
    let (mut ledger, key) = ledger(Picky, true).await;
    for machine in 1..=3 {
        register(&mut ledger, machine, &key).await.unwrap();
    }
    for machine in 1..=3 {
        ledger.state_mut().update(MachinePublic::from_bytes([machine; 32]), &says(machine, 7), now()).unwrap();
    }
    assert_eq!(register(&mut ledger, 4, &key).await.unwrap(), "", "a command does not wait for it");
    let at: Timestamp = now() + Duration::from_secs(5);
    ledger.pass(now()).await;
    ledger.pass(at).await;
    assert_eq!(ledger.state().unsaved(), 1, "nor do the reports of others");
    assert!(ledger.fault().unwrap().to_string().contains("node 1"), "and it is told of: {:?}", ledger.fault());
}

#[tokio::test]
async fn health_is_asked_of_the_disk_where_nothing_was_written_lately() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk(directory.path().to_owned());
    let mut ledger = Ledger::open(disk.open().await, Config::default(), now()).await.unwrap();
    fs::remove_file(disk.database()).unwrap();
    assert_eq!(ledger.examined(now()).await, None, "it was written to a moment ago");
    let fault = ledger.examined(now() + Duration::from_secs(31)).await.unwrap().to_string();
    assert!(fault.contains("removed or replaced"), "{fault}");
}
