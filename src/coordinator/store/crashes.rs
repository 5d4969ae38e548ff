//! Crashes at every write of every command: nothing acknowledged is lost, nothing is there in part, nothing is given
//! twice.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::tests::{ledger, now, register, says};
use super::*;
use warren_core::registry::{Actor, Config, KeyId, Life, NewKey, Records, State, WithNodes};
use warren_core::types::Role;
use warren_core::types::{CapabilityVersion, MachinePublic, NodeId, UserId};
use warren_core::wire::control::RegisterRequest;

const DATABASE: &str = "coordinator.sqlite";

/// Calls `done` after each command of a network's life, with how many came before.
async fn every_command(store: SqliteStore, mut done: impl FnMut(usize, &State)) -> Ledger<SqliteStore> {
    let (mut ledger, key) = ledger(store, true).await;
    let mut count = 0;
    let mut acknowledge = |state: &State| {
        done(count, state);
        count += 1;
    };
    macro_rules! command {
        ($decide:expr) => {
            ledger.try_run(&Actor::COORDINATOR, now(), $decide).await.unwrap();
            acknowledge(ledger.state());
        };
    }
    acknowledge(ledger.state());
    command!(|by| by.create_user("bob".parse()?, "Bob".to_owned()));
    command!(|by| by.rename_user(UserId(2), "rob".parse()?));
    command!(|by| by.set_role(UserId(2), Role::Admin));
    command!(|by| by.suspend_user(UserId(2)));
    command!(|by| by.restore_user(UserId(2)));
    let wish =
        NewKey { user: UserId(1), reusable: false, ephemeral: true, tags: Vec::new(), readmits: false, lifetime: None };
    let one_off =
        ledger.try_run(&Actor::COORDINATOR, now(), move |by| by.create_key(wish.clone(), [8; 32])).await.unwrap();
    acknowledge(ledger.state());
    for machine in 1..=3 {
        register(&mut ledger, machine, &key).await.unwrap();
        acknowledge(ledger.state());
    }
    register(&mut ledger, 4, one_off.text.expose()).await.unwrap();
    acknowledge(ledger.state());
    let waits = RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key: warren_core::types::NodePublic::from_bytes([5; 32]),
        ..RegisterRequest::default()
    };
    let machine = MachinePublic::from_bytes([5; 32]);
    let again = waits.clone();
    command!(move |by| Ok(by.register(machine, &again, [5; 32])));
    let code = ledger.state().pending_list().next().unwrap().code.clone();
    command!(move |by| by.reject(&code));
    ledger.pass(now() + Duration::from_secs(3600)).await;
    acknowledge(ledger.state());
    command!(move |by| Ok(by.register(machine, &waits, [6; 32])));
    let code = ledger.state().pending_list().next().unwrap().code.clone();
    command!(move |by| by.approve(&code, UserId(2), &[], [6; 32]));
    command!(|by| by.rename_node(NodeId(1), "door".parse().unwrap()));
    command!(|by| by.set_tags(NodeId(2), &["tag:web".parse()?]));
    command!(|by| by.move_node(NodeId(2), UserId(2)));
    command!(|by| by.approve_routes(NodeId(2), &["10.0.0.0/8".parse().unwrap()]));
    command!(|by| by.expire_node(NodeId(3)));
    command!(|by| by.delete_node(NodeId(3)));
    command!(|by| by.set_policy("{}", "ada", None));
    command!(|by| by.set_policy("{\"acls\": []}", "ada", None));
    command!(|by| by.extend_node(NodeId(1), Life::For(Duration::from_secs(60))));
    command!(|by| by.expire_key(KeyId(1), WithNodes::LogOut));
    command!(|by| by.delete_key(KeyId(1), WithNodes::Stay));
    ledger.state_mut().update(MachinePublic::from_bytes([1; 32]), &says(1, 9), now()).unwrap();
    ledger.pass(now()).await;
    ledger.pass(now() + Duration::from_secs(5)).await;
    acknowledge(ledger.state());
    // The ephemeral node has not come back.
    ledger.pass(now() + Duration::from_secs(3600)).await;
    acknowledge(ledger.state());
    ledger
}

/// Everything that a command can change.
fn facts(state: &State) -> Records {
    Records {
        users: state.users().cloned().collect(),
        keys: state.keys().cloned().collect(),
        nodes: state.nodes().map(|node| node.record.as_ref().clone()).collect(),
        freed: state.freed().collect(),
        policies: state.policies().map(|policy| policy.as_ref().clone()).collect(),
        pending: state.pending_list().cloned().collect(),
        rejected: state.rejected().collect(),
        sessions: state.sessions().cloned().collect(),
        settings: state.settings().clone(),
        ..Records::default()
    }
}

async fn found_in(path: &Path) -> Records {
    let mut store = SqliteStore::open(path).await.unwrap();
    let records = store.load().await.unwrap();
    let all = JournalQuery { limit: JournalQuery::MOST, ..JournalQuery::default() };
    let journal = store.read_journal(&all).await.unwrap();
    assert!(journal.iter().map(|record| record.n).eq(1..=records.revision), "a journal without gaps");
    store.close().await;
    Records { revision: 0, counters: Records::default().counters, ..records }
}

/// The log is only ever written at its end, so whatever a crash leaves is a beginning of it.
#[tokio::test]
async fn whatever_part_of_the_log_a_crash_leaves_is_the_state_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join(DATABASE), directory.path().join("coordinator.sqlite-wal"));
    let mut acknowledged = Vec::new();
    let store = SqliteStore::open(&file).await.unwrap();
    let ledger = every_command(store, |_, state| {
        acknowledged.push((fs::metadata(&log).unwrap().len(), facts(state)));
    })
    .await;
    let (whole, base) = (fs::read(&log).unwrap(), fs::read(&file).unwrap());
    assert!(acknowledged.is_sorted_by_key(|(length, _)| *length) && acknowledged.len() > 15);
    drop(ledger);

    let first = usize::try_from(acknowledged[0].0).unwrap();
    // Frames are 4120 bytes long: each is cut at its end, within its head and within its page.
    for cut in (first..=whole.len()).step_by(1373) {
        let crashed = tempfile::tempdir().unwrap();
        fs::write(crashed.path().join(DATABASE), &base).unwrap();
        fs::write(crashed.path().join("coordinator.sqlite-wal"), &whole[..cut]).unwrap();
        let found = found_in(&crashed.path().join(DATABASE)).await;
        let last = acknowledged.iter().rposition(|(length, _)| *length <= cut as u64).unwrap();
        let next = (last + 1).min(acknowledged.len() - 1);
        // A command may commit more than once; between its commits is what neither has.
        let is_between = found.nodes.len().abs_diff(acknowledged[last].1.nodes.len()) <= 1;
        let is_it = found == acknowledged[last].1 || found == acknowledged[next].1;
        assert!(is_it && is_between, "cut at {cut} of {}: {found:?}", whole.len());
    }
}

/// The test runs itself again under `strace`, which kills it at its first write, its second, and so on.
#[test]
fn whoever_is_killed_at_any_write_has_lost_nothing_that_it_acknowledged() {
    const WRITE_TO: &str = "WARREN_TEST_KILLED_IN";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(directory) = std::env::var_os(WRITE_TO) {
        let directory = std::path::PathBuf::from(directory);
        let store = runtime.block_on(SqliteStore::open(&directory.join(DATABASE))).unwrap();
        let mut acknowledged = fs::File::create(directory.join("acknowledged")).unwrap();
        let ledger = runtime.block_on(every_command(store, |count, _| writeln!(acknowledged, "{count}").unwrap()));
        let (store, saved) = runtime.block_on(ledger.shutdown(now()));
        saved.unwrap();
        runtime.block_on(store.unwrap().close());
        return;
    }
    let mut states = Vec::new();
    let whole = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&whole.path().join(DATABASE)).await.unwrap();
        every_command(store, |_, state| states.push(facts(state))).await;
    });
    for write in (1..).step_by(3) {
        let directory = tempfile::tempdir().unwrap();
        let inject = format!("inject=pwrite64,fdatasync,fsync,ftruncate,unlink:signal=KILL:when={write}");
        let child = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=pwrite64,fdatasync,fsync,ftruncate,unlink",
                "-e",
                &inject,
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "store::crashes::whoever_is_killed_at_any_write_has_lost_nothing_that_it_acknowledged"])
            .env(WRITE_TO, directory.path())
            .output()
            .expect("run strace, which tests/vm/setup.sh installs");
        let acknowledged = fs::read_to_string(directory.path().join("acknowledged")).unwrap_or_default();
        let found = runtime.block_on(found_in(&directory.path().join(DATABASE)));
        let count = acknowledged.lines().count();
        let is_it = match count {
            0 => found.nodes.is_empty(),
            count => found == states[count - 1] || states.get(count).is_some_and(|next| found == *next),
        };
        let addresses: BTreeSet<_> = found.nodes.iter().map(|node| node.ipv4).collect();
        assert!(is_it && addresses.len() == found.nodes.len(), "write {write}, {count} acknowledged: {found:?}");
        runtime.block_on(goes_on(&directory.path().join(DATABASE)));
        if child.status.success() {
            assert!(write > 60, "only {write} writes were tried");
            return;
        }
    }
}

/// A coordinator that is started on what the crash left gives nothing twice.
async fn goes_on(path: &Path) {
    let mut ledger = Ledger::open(SqliteStore::open(path).await.unwrap(), Config::default(), now()).await.unwrap();
    let before: BTreeSet<_> = ledger.state().nodes().map(|node| node.record.ipv4).collect();
    let user =
        ledger.try_run(&Actor::COORDINATOR, now(), |by| by.create_user("new".parse()?, String::new())).await.unwrap();
    let wish =
        NewKey { user: user.id, reusable: false, ephemeral: false, tags: Vec::new(), readmits: false, lifetime: None };
    let key = ledger.try_run(&Actor::COORDINATOR, now(), move |by| by.create_key(wish.clone(), [9; 32])).await.unwrap();
    assert_eq!(register(&mut ledger, 99, key.text.expose()).await.unwrap(), "");
    let after: BTreeSet<_> = ledger.state().nodes().map(|node| node.record.ipv4).collect();
    assert_eq!(after.len(), before.len() + 1);
    let (store, saved) = ledger.shutdown(now()).await;
    saved.unwrap();
    store.unwrap().close().await;
}

/// The test runs itself again under `strace`, which lets flushes fail: what they were to flush may be on disk or not.
#[test]
fn flushes_that_fail_lose_nothing_that_was_acknowledged_and_keep_nothing_that_was_not() {
    const WRITE_TO: &str = "WARREN_TEST_FLUSHES_FAIL_IN";
    const TEST: &str = "flushes_that_fail_lose_nothing_that_was_acknowledged_and_keep_nothing_that_was_not";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(directory) = std::env::var_os(WRITE_TO) {
        return runtime.block_on(go_on_through_failures(Path::new(&directory)));
    }
    // Counted anew for each connection, whose opening takes fewer.
    for when in ["8+2", "9+3", "10+5", "11+7", "12+9"] {
        let directory = tempfile::tempdir().unwrap();
        let calls = directory.path().join("calls");
        runtime.block_on(async { SqliteStore::open(&directory.path().join(DATABASE)).await.unwrap().close().await });
        let inject = format!("inject=fdatasync,fsync:error=EIO:when={when}");
        let child = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fdatasync,fsync", "-e", &inject, "-o"])
            .arg(&calls)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("store::crashes::{TEST}"), "--nocapture"])
            .env(WRITE_TO, directory.path())
            .output()
            .expect("run strace, which tests/vm/setup.sh installs");
        let told = fs::read_to_string(directory.path().join("believed"));
        let told = told.unwrap_or_else(|_| panic!("{when}: {}", String::from_utf8_lossy(&child.stderr)));
        let (is_known, believed) = told.split_once('\n').unwrap();
        assert!(fs::read_to_string(calls).unwrap().contains("(INJECTED)"), "{when}: nothing failed");
        let found = runtime.block_on(found_in(&directory.path().join(DATABASE)));
        let mut names: Vec<String> = found.users.iter().map(|user| user.name.to_string()).collect();
        // Where the flushes of the last look failed too, nobody can know about the last command.
        if is_known == "false" && names.len() > believed.split_whitespace().count() {
            names.pop();
        }
        assert_eq!(names.join(" "), believed, "{when}");
    }
}

/// Makes users, whether that works or not; writes down who is believed to be there, and is gone without a farewell.
async fn go_on_through_failures(directory: &Path) {
    let store = SqliteStore::open(&directory.join(DATABASE)).await.unwrap();
    let mut ledger = Ledger::open(store, Config::default(), now()).await.unwrap();
    for number in 0..40 {
        let made = ledger.try_run(&Actor::COORDINATOR, now(), move |by| {
            by.create_user(format!("u{number}").parse()?, String::new())
        });
        let _ = made.await;
    }
    // Whoever asks next finds out what a failure left; where flushes fail for good, that cannot be.
    let last = ledger.try_run(&Actor::COORDINATOR, now(), |by| by.set_role(UserId(1), Role::Member)).await;
    let believed: Vec<String> = ledger.state().users().map(|user| user.name.to_string()).collect();
    fs::write(directory.join("believed"), format!("{}\n{}", last.is_ok(), believed.join(" "))).unwrap();
    std::process::exit(0);
}
