//! The SQLite store against the conformance tests, against crashes, and joined to a state.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::conformance::{self, Backend, keep};
use super::connection::MIGRATIONS;
use super::samples::{at, bare_node, user};
use super::*;
use warren_core::registry::{
    Actor, Commands, Config, Counters, NewKey, NodeRecord, Output, Registered, Settings, State, UserStatus,
};
use warren_core::types::{CapabilityVersion, MachinePublic, NodeId, NodePublic, Timestamp, UserId};
use warren_core::wire::control::{MapRequest, RegisterAuth, RegisterRequest};

struct File(TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("coordinator.sqlite")
    }
}

impl Backend for File {
    type Store = SqliteStore;

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.path()).await.unwrap()
    }

    async fn close(&self, store: SqliteStore) {
        store.close().await;
    }
}

#[tokio::test]
async fn sqlite_conforms() {
    conformance::all(File::new).await;
}

#[tokio::test]
async fn a_second_coordinator_cannot_open_the_database() {
    let file = File::new();
    let first = file.open().await;
    let second = SqliteStore::open_within(&file.path(), Duration::from_millis(50)).await;
    let error = second.unwrap_err();
    assert_eq!(error, StoreError::InUse(file.path().display().to_string()));
    file.close(first).await;
    let third = SqliteStore::open_within(&file.path(), Duration::from_millis(50)).await;
    file.close(third.unwrap()).await;
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new();
    let store = file.open().await;
    let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    file.close(store).await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error_that_names_it() {
    let file = File::new();
    std::fs::write(file.path(), "x".repeat(4096)).unwrap();
    let error = SqliteStore::open(&file.path()).await.unwrap_err().to_string();
    assert!(error.contains("coordinator.sqlite") && error.contains("not a database"), "{error}");
}

#[tokio::test]
async fn a_damaged_row_is_left_out_and_the_rest_is_read() {
    let file = File::new();
    let mut store = file.open().await;
    let nodes = [1, 2].map(|id| Change::Node(Arc::new(bare_node(id))));
    keep(&mut store, &[Change::User(user(1, "ada"))]).await.unwrap();
    keep(&mut store, &nodes).await.unwrap();
    store.run_sql("UPDATE nodes SET node_key = 'nodekey:xyz' WHERE id = 1").await;
    assert_eq!(store.load().await.unwrap().nodes, [bare_node(2)]);
    file.close(store).await;
}

/// As a release left it that took any name.
#[tokio::test]
async fn users_of_an_old_database_have_one_form_of_their_names_once_it_is_opened() {
    let file = File::new();
    let mut store = file.open().await;
    let nodes = [1, 2].map(|id| Change::Node(Arc::new(NodeRecord { user: Some(UserId(id.into())), ..bare_node(id) })));
    keep(&mut store, &[Change::User(user(1, "me")), Change::User(user(2, "x")), Change::User(user(3, "y"))])
        .await
        .unwrap();
    keep(&mut store, &nodes).await.unwrap();
    store.run_sql("UPDATE users SET name = 'me@' WHERE id = 2").await;
    store.run_sql("UPDATE users SET name = 'tag:web' WHERE id = 3").await;
    let ledger = Ledger::open(store, Config::default(), at(0)).await.unwrap();
    let names = |state: &State| state.users().map(|user| user.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(ledger.state()), ["me", "tag-web"]);
    assert!(ledger.state().nodes().all(|node| node.record.user == Some(UserId(1))));
    let (store, saved) = ledger.shutdown(at(1)).await;
    saved.unwrap();
    file.close(store.unwrap()).await;
    let again = Ledger::open(file.open().await, Config::default(), at(2)).await.unwrap();
    assert_eq!(names(again.state()), ["me", "tag-web"], "and on disk");
}

/// As the last release with a user behind every node left it.
#[tokio::test]
async fn nodes_of_an_old_database_are_all_there_once_it_is_opened() {
    use sqlx::{ConnectOptions, Connection};
    let file = File::new();
    let of_then = MIGRATIONS.iter().filter(|migration| migration.version <= 4).cloned().collect::<Vec<_>>();
    let migrations = sqlx::migrate::Migrator { migrations: of_then.into(), ..sqlx::migrate::Migrator::DEFAULT };
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file.path()).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    migrations.run_direct(None, &mut connection, false).await.unwrap();
    let rows = "INSERT INTO users VALUES (1, 'ada', '', '2026-01-01T00:00:00Z', 'owner');
        INSERT INTO nodes VALUES (3, 'n3', 1, 'mkey:0303030303030303030303030303030303030303030303030303030303030303',
        'nodekey:0303030303030303030303030303030303030303030303030303030303030303', NULL, '100.64.0.3', 'fd7a:115c:a1e0::3',
        'web-3', 0, '[]', 0, '2026-01-01T00:00:00Z', NULL, NULL, '[\"10.0.0.0/8\"]',
        'discokey:0000000000000000000000000000000000000000000000000000000000000000', '[]', 0, 0, '[]', '{}', 1)";
    sqlx::raw_sql(rows).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let mut store = file.open().await;
    let created = "2026-01-01T00:00:00Z".parse().unwrap();
    let approved_routes = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(
        store.load().await.unwrap().nodes,
        [NodeRecord { created, logged_out: true, approved_routes, ..bare_node(3) }]
    );
    file.close(store).await;
}

/// As the last release left it in which people did not sign in.
#[tokio::test]
async fn what_an_old_database_held_is_all_there_and_nobody_lost_or_got_a_right() {
    use sqlx::{ConnectOptions, Connection};
    let file = File::new();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file.path()).create_if_missing(true);
    let mut connection = options.foreign_keys(false).connect().await.unwrap();
    sqlx::raw_sql(include_str!("old/schema_6.sql")).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let ledger = Ledger::open(file.open().await, Config::default(), at(0)).await.unwrap();
    let state = ledger.state();
    let users: Vec<_> = state.users().map(|user| (user.name.as_str(), user.role.name(), user.status)).collect();
    assert_eq!(users, [("ada", "member", UserStatus::Active), ("rob", "admin", UserStatus::Active)]);
    let nodes: Vec<_> =
        state.nodes().map(|node| (node.record.label.to_string(), node.record.ipv4.to_string())).collect();
    let named = |name: &str, address: &str| (name.to_owned(), address.to_owned());
    assert_eq!(nodes, [named("door", "100.64.0.1"), named("node-1", "100.64.0.2"), named("node-4", "100.64.0.5")]);
    assert!(state.nodes().all(|node| node.record.approved && !node.record.expiry_disabled));
    assert!(state.keys().all(|key| key.pre_approved && key.revoked.is_none() && key.creator.is_none()));
    assert_eq!((state.settings(), state.freed().count(), state.policies().count()), (&Settings::default(), 2, 2));
    let (store, saved) = ledger.shutdown(at(1)).await;
    saved.unwrap();
    let mut store = store.unwrap();
    let all = JournalQuery { limit: JournalQuery::MOST, ..JournalQuery::default() };
    assert_eq!(store.read_journal(&all).await.unwrap().len(), 27, "the journal goes on where it was");
    file.close(store).await;
}

/// The test runs itself a second time as the writer, and kills that.
#[test]
fn what_was_committed_survives_kill_9() {
    const WRITE_TO: &str = "WARREN_TEST_WRITE_TO";
    const ENOUGH: u64 = 40;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if let Some(path) = std::env::var_os(WRITE_TO) {
        runtime.block_on(write_until_killed(Path::new(&path)));
    }
    let file = File::new();
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::what_was_committed_survives_kill_9", "--nocapture"])
        .env(WRITE_TO, file.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut committed = lines.filter_map(|line| line.strip_prefix("committed ")?.parse::<u64>().ok());
    let killed_at = committed.find(|number| *number >= ENOUGH).unwrap();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let last = committed.last().unwrap_or(killed_at);

    let records = runtime.block_on(async {
        let mut store = file.open().await;
        let records = store.load().await.unwrap();
        file.close(store).await;
        records
    });
    let users: Vec<u64> = records.users.iter().map(|user| user.id.0).collect();
    assert!(users.len() as u64 >= last, "{last} were acknowledged, {} are there", users.len());
    assert!(users.iter().copied().eq(1..=users.len() as u64), "without a gap: {users:?}");
    assert_eq!(records.counters.user, users.len() as u64, "a transaction is there as a whole or not at all");
}

async fn write_until_killed(path: &Path) {
    let mut store = SqliteStore::open(path).await.unwrap();
    for number in 1.. {
        let counters = Counters { user: number, ..Counters::default() };
        let changes = [Change::Counters(counters), Change::User(user(number, &format!("user-{number}")))];
        keep(&mut store, &changes).await.unwrap();
        println!("committed {number}");
        std::io::stdout().flush().unwrap();
    }
}

// ---- joined to a state ----

pub(super) fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn asks(machine: u8, key: &str) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key: NodePublic::from_bytes([machine; 32]),
        auth: Some(RegisterAuth { auth_key: key.to_owned() }),
        ..RegisterRequest::default()
    }
}

pub(super) fn says(machine: u8, port: u16) -> MapRequest {
    MapRequest {
        version: CapabilityVersion::CURRENT,
        node_key: NodePublic::from_bytes([machine; 32]),
        endpoints: vec![([192, 0, 2, 1], port).into()],
        ..MapRequest::default()
    }
}

pub(super) async fn register<S: Store>(ledger: &mut Ledger<S>, machine: u8, key: &str) -> Result<String, StoreError> {
    let request = asks(machine, key);
    let machine_key = MachinePublic::from_bytes([machine; 32]);
    let register = move |by: &Commands<'_>| Ok(by.register(machine_key, &request, [machine; 32]));
    match ledger.try_run(&Actor::COORDINATOR, now(), register).await {
        Ok(Registered::Answer(answer)) => Ok(answer.error),
        Err(CommandError::Store(error)) => Err(error),
        other => panic!("not an answer: {other:?}"),
    }
}

/// A ledger with a user and a key of theirs.
pub(super) async fn ledger<S: Store>(store: S, reusable: bool) -> (Ledger<S>, String) {
    let mut ledger = Ledger::open(store, Config::default(), now()).await.unwrap();
    let user =
        ledger.try_run(&Actor::COORDINATOR, now(), |by| by.create_user("ada".parse()?, String::new())).await.unwrap();
    let wish = NewKey { user: user.id, reusable, ephemeral: false, tags: Vec::new(), readmits: false, lifetime: None };
    let key = ledger.try_run(&Actor::COORDINATOR, now(), move |by| by.create_key(wish.clone(), [7; 32])).await.unwrap();
    (ledger, key.text.expose().to_owned())
}

fn facts(state: &State) -> Vec<NodeRecord> {
    state.nodes().map(|node| node.record.as_ref().clone()).collect()
}

#[tokio::test]
async fn a_state_comes_back_as_it_was() {
    let file = File::new();
    let (mut ledger, key) = ledger(file.open().await, true).await;
    for machine in 1..=3 {
        assert_eq!(register(&mut ledger, machine, &key).await.unwrap(), "");
    }
    let two = NodeId(2);
    ledger.state_mut().update(MachinePublic::from_bytes([1; 32]), &says(1, 4), now()).unwrap();
    ledger.try_run(&Actor::COORDINATOR, now(), move |by| by.delete_node(two)).await.unwrap();
    ledger.state_mut().open(NodeId(1), CapabilityVersion::CURRENT, now()).unwrap();
    let mut kept = facts(ledger.state());
    // It was online when the coordinator stopped.
    kept[0].last_seen = Some(now());
    let (store, saved) = ledger.shutdown(now()).await;
    saved.unwrap();
    file.close(store.unwrap()).await;

    let mut again = Ledger::open(file.open().await, Config::default(), now()).await.unwrap();
    assert_eq!(facts(again.state()), kept);
    assert_eq!(register(&mut again, 4, &key).await.unwrap(), "", "the key is good after a restart");
    let fourth = again.state().find_node("4").unwrap().record;
    assert_eq!(fourth.ipv4.to_string(), "100.64.0.4", "the deleted node's address is not given again");
}

#[tokio::test]
async fn of_many_machines_with_one_one_off_key_one_gets_in() {
    let file = File::new();
    let (mut ledger, key) = ledger(file.open().await, false).await;
    let (asking, mut asked) = mpsc::channel::<(u8, oneshot::Sender<String>)>(16);
    let owned_key = key.clone();
    let owner = tokio::spawn(async move {
        while let Some((machine, answer)) = asked.recv().await {
            answer.send(register(&mut ledger, machine, &owned_key).await.unwrap()).unwrap();
        }
        ledger
    });
    let mut machines = Vec::new();
    for machine in 1..=16 {
        let asking = asking.clone();
        machines.push(tokio::spawn(async move {
            let (answer, answered) = oneshot::channel();
            asking.send((machine, answer)).await.unwrap();
            answered.await.unwrap()
        }));
    }
    drop(asking);
    let mut admitted = 0;
    for machine in machines {
        match machine.await.unwrap().as_str() {
            "" => admitted += 1,
            error => assert!(error.contains("used already"), "{error}"),
        }
    }
    assert_eq!((admitted, owner.await.unwrap().state().nodes().count()), (1, 1));
}

// ---- when things are saved ----

/// Counts commits, and fails on demand.
#[derive(Default)]
struct Counting {
    commits: Vec<usize>,
    fails: bool,
}

impl Store for Counting {
    async fn load(&mut self) -> Result<Records, StoreError> {
        Ok(Records::default())
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.fails {
            return Err(StoreError::Failed { operation: "write".to_owned(), reason: "disk is full".to_owned() });
        }
        self.commits.push(batch.changes.len());
        Ok(())
    }

    async fn read_journal(&mut self, _: &JournalQuery) -> Result<Vec<JournalRecord>, StoreError> {
        Ok(Vec::new())
    }

    fn is_sound(&self) -> bool {
        !self.fails
    }

    async fn prove(&mut self) -> Result<Proven, StoreError> {
        keep(self, &[]).await.map(|()| Proven::AsTold)
    }
}

#[tokio::test]
async fn what_a_node_says_is_saved_within_five_seconds_or_with_the_next_commit() {
    let (mut ledger, key) = ledger(Counting::default(), true).await;
    register(&mut ledger, 1, &key).await.unwrap();
    let machine = MachinePublic::from_bytes([1; 32]);
    let commits = |ledger: &Ledger<Counting>| ledger.store().commits.len();
    ledger.pass(now()).await;
    let before = commits(&ledger);

    ledger.state_mut().update(machine, &says(1, 1), now()).unwrap();
    ledger.pass(now()).await;
    assert_eq!(commits(&ledger), before, "not at once");
    let at = ledger.poll_timeout().unwrap();
    assert!(at <= now() + Duration::from_secs(5));
    let at = now() + Duration::from_secs(5);
    ledger.pass(at).await;
    assert_eq!(commits(&ledger), before + 1);
    ledger.pass(at).await;
    assert_eq!((commits(&ledger), ledger.poll_timeout()), (before + 1, None), "and only once");

    ledger.state_mut().update(machine, &says(1, 2), at).unwrap();
    ledger.try_run(&Actor::COORDINATOR, at, |by| by.create_user("bob".parse()?, String::new())).await.unwrap();
    assert_eq!(ledger.store().commits.last(), Some(&3), "the node, the counters and the user, in one transaction");
}

#[tokio::test]
async fn a_failed_save_is_tried_again_after_a_pause() {
    let (mut ledger, key) = ledger(Counting::default(), true).await;
    register(&mut ledger, 1, &key).await.unwrap();
    ledger.store_mut().fails = true;
    ledger.state_mut().update(MachinePublic::from_bytes([1; 32]), &says(1, 1), now()).unwrap();
    ledger.pass(now()).await;
    let at = now() + Duration::from_secs(5);
    ledger.pass(at).await;
    assert!(ledger.fault().is_some());
    assert_eq!(ledger.poll_timeout(), Some(at + Duration::from_secs(5)), "no hot loop");

    ledger.store_mut().fails = false;
    ledger.pass(at + Duration::from_secs(5)).await;
    assert_eq!((ledger.fault(), ledger.state().unsaved()), (None, 0));
}

#[tokio::test]
async fn an_ephemeral_node_is_deleted_only_when_the_disk_agrees() {
    let mut ledger = Ledger::open(Counting::default(), Config::default(), now()).await.unwrap();
    let user =
        ledger.try_run(&Actor::COORDINATOR, now(), |by| by.create_user("ada".parse()?, String::new())).await.unwrap();
    let wish =
        NewKey { user: user.id, reusable: false, ephemeral: true, tags: Vec::new(), readmits: false, lifetime: None };
    let key = ledger.try_run(&Actor::COORDINATOR, now(), move |by| by.create_key(wish.clone(), [7; 32])).await.unwrap();
    register(&mut ledger, 1, key.text.expose()).await.unwrap();
    ledger.store_mut().fails = true;
    let mut at = now() + Duration::from_secs(3600);
    ledger.pass(at).await;
    assert_eq!(ledger.state().nodes().count(), 1);
    at = ledger.poll_timeout().unwrap();
    ledger.store_mut().fails = false;
    ledger.pass(at).await;
    assert_eq!(ledger.state().nodes().count(), 0);
}

#[tokio::test]
async fn a_command_that_fails_to_commit_changes_nothing() {
    let (mut ledger, key) = ledger(Counting::default(), false).await;
    ledger.store_mut().fails = true;
    assert!(register(&mut ledger, 1, &key).await.is_err());
    assert_eq!(ledger.state().nodes().count(), 0);
    assert!(ledger.state_mut().poll_output().is_none_or(|output| !matches!(output, Output::Send { .. })));
    ledger.store_mut().fails = false;
    assert_eq!(register(&mut ledger, 1, &key).await.unwrap(), "", "the key is not used up");
    assert_eq!(ledger.state().users().next().unwrap().id, UserId(1));
}
