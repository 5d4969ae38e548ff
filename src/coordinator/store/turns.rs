//! Whose turn it is at the store: who waits for it and who does not, and what happens where somebody else was faster.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::tests::{ledger, now, register, says};
use super::*;
use warren_core::registry::{Actor, Commands, Config, NewKey, RefusalKind, State, limit};
use warren_core::types::Role;
use warren_core::types::{MachinePublic, UserId};

/// Several stores on one memory.
#[derive(Clone)]
struct Memory(Arc<Mutex<(State, u64)>>);

impl Memory {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((State::new(Config::default()), 0))))
    }
}

impl Store for Memory {
    async fn load(&mut self) -> Result<Records, StoreError> {
        let kept = self.0.lock().unwrap();
        Ok(Records {
            revision: kept.1,
            users: kept.0.users().cloned().collect(),
            keys: kept.0.keys().cloned().collect(),
            nodes: kept.0.nodes().map(|node| node.record.as_ref().clone()).collect(),
            policies: kept.0.policies().map(|policy| policy.as_ref().clone()).collect(),
            ..Records::default()
        })
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut kept = self.0.lock().unwrap();
        if !batch.audits.is_empty() && batch.revision != kept.1 {
            return Err(StoreError::Conflict("somebody was faster".to_owned()));
        }
        kept.1 = batch.last().max(kept.1);
        kept.0.apply(batch.changes.clone(), now());
        Ok(())
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
async fn a_lost_race_is_decided_again_on_what_the_other_wrote() {
    let memory = Memory::new();
    let (mut one, key) = ledger(memory.clone(), false).await;
    let mut two = Ledger::open(memory.clone(), Config::default(), now()).await.unwrap();
    // Each decides on what it knows, which is not what the other wrote since.
    let create = |name: &'static str| move |by: &Commands<'_>| by.create_user(name.parse()?, String::new());
    one.try_run(&Actor::COORDINATOR, now(), create("bob")).await.unwrap();
    let eve = two.try_run(&Actor::COORDINATOR, now(), create("eve")).await.unwrap();
    assert_eq!(eve.id, UserId(3), "the number was given to somebody else meanwhile");
    let taken = one.try_run(&Actor::COORDINATOR, now(), create("eve")).await.unwrap_err();
    assert!(matches!(&taken, CommandError::Refused(refusal) if refusal.kind() == RefusalKind::Conflict), "{taken:?}");

    assert_eq!(register(&mut one, 1, &key).await.unwrap(), "");
    let late = register(&mut two, 2, &key).await.unwrap();
    assert!(late.contains("used already"), "{late}");
    let names = |ledger: &Ledger<Memory>| ledger.state().users().map(|user| user.name.to_string()).collect::<Vec<_>>();
    assert_eq!((names(&one), names(&two)), (names(&two), vec!["ada".to_owned(), "bob".into(), "eve".into()]));
    assert_eq!(two.state().nodes().count(), 1, "and the node that the other let in is known here");
}

/// A disk that takes its time.
struct Slow {
    memory: Memory,
    go_on: Arc<Notify>,
    is_slow: bool,
}

impl Store for Slow {
    async fn load(&mut self) -> Result<Records, StoreError> {
        self.memory.load().await
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.is_slow {
            self.go_on.notified().await;
        }
        self.memory.commit(batch).await
    }

    async fn read_journal(&mut self, query: &JournalQuery) -> Result<Vec<JournalRecord>, StoreError> {
        self.memory.read_journal(query).await
    }

    fn is_sound(&self) -> bool {
        true
    }

    async fn prove(&mut self) -> Result<Proven, StoreError> {
        Ok(Proven::AsTold)
    }
}

type Answer = oneshot::Receiver<Result<warren_core::registry::UserRecord, CommandError>>;

#[tokio::test]
async fn a_slow_disk_delays_its_own_answer_alone() {
    let go_on = Arc::new(Notify::new());
    let slow = Slow { memory: Memory::new(), go_on: Arc::clone(&go_on), is_slow: false };
    let (mut ledger, key) = ledger(slow, true).await;
    register(&mut ledger, 1, &key).await.unwrap();
    ledger.store_mut().is_slow = true;
    let submit = |ledger: &mut Ledger<Slow>, role: Role| -> Answer {
        let (job, answered) = job(Actor::COORDINATOR, move |by| by.set_role(UserId(1), role));
        ledger.submit(job, None, now());
        answered
    };
    let mut waits = submit(&mut ledger, Role::ItAdmin);
    let mut follows = submit(&mut ledger, Role::Admin);
    assert!(waits.try_recv().is_err() && follows.try_recv().is_err());
    // What changes nothing is answered as things are, and nodes are heard.
    assert_eq!(submit(&mut ledger, Role::Member).try_recv().unwrap().unwrap().role, Role::Member);
    ledger.state_mut().update(MachinePublic::from_bytes([1; 32]), &says(1, 7), now()).unwrap();
    ledger.handle_timeout(now());
    assert_eq!(ledger.complaint(now()), None);
    let later = now() + Duration::from_secs(11);
    assert!(ledger.complaint(later).unwrap().contains("more than ten seconds"));

    for (answered, role) in [(&mut waits, Role::ItAdmin), (&mut follows, Role::Admin)] {
        go_on.notify_one();
        let written = ledger.written().await;
        ledger.handle_written(written, now());
        assert_eq!(answered.try_recv().unwrap().unwrap().role, role, "one after the other");
    }
    assert_eq!(ledger.state().unsaved(), 0, "what the node said rode along");
}

#[tokio::test]
async fn a_disk_that_does_not_answer_fills_no_memory() {
    let slow = Slow { memory: Memory::new(), go_on: Arc::default(), is_slow: false };
    let (mut ledger, _) = ledger(slow, true).await;
    ledger.store_mut().is_slow = true;
    let mut submit = |number: usize| {
        let create = move |by: &Commands<'_>| by.create_user(format!("u{number}").parse()?, String::new());
        let (job, answered) = job(Actor::COORDINATOR, create);
        ledger.submit(job, None, now());
        answered
    };
    // One is at the disk, the others wait.
    let mut waiting: Vec<Answer> = (0..=super::ledger::QUEUE).map(&mut submit).collect();
    assert!(waiting.iter_mut().all(|answered| answered.try_recv().is_err()));
    assert_eq!(submit(9_999).try_recv().unwrap(), Err(CommandError::Busy));
}

#[tokio::test]
async fn the_oldest_entries_of_the_journal_give_way() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("coordinator.sqlite")).await.unwrap();
    let most = limit::JOURNAL.most;
    assert_eq!(most, 1_000_000);
    store.run_sql("UPDATE revision SET n = 1000000").await;
    store
        .run_sql(
            "INSERT INTO journal SELECT n, n, '2026-01-01T00:00:00Z', 'account', '0', 'root', 'socket', NULL, 'set-role',
             'update', 'user', '1', 'ada', '{}', '{}' FROM (SELECT 1 AS n UNION SELECT 2 UNION SELECT 3)",
        )
        .await;
    let mut ledger = Ledger::open(store, Config::default(), now()).await.unwrap();
    ledger.try_run(&Actor::COORDINATOR, now(), |by| by.create_user("ada".parse()?, String::new())).await.unwrap();
    ledger.try_run(&Actor::COORDINATOR, now(), |by| by.set_role(UserId(1), Role::Owner)).await.unwrap();
    let (answer, answered) = oneshot::channel();
    ledger.read_journal(JournalQuery { limit: 9, ..JournalQuery::default() }, answer, now());
    ledger.settle(now()).await;
    let kept: Vec<u64> = answered.await.unwrap().unwrap().iter().map(|entry| entry.n).collect();
    assert_eq!(kept, [3, 1_000_001, 1_000_002]);
}

#[tokio::test]
async fn what_an_actor_does_is_in_the_journal_and_what_is_refused_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("coordinator.sqlite")).await.unwrap();
    let mut ledger = Ledger::open(store, Config::default(), now()).await.unwrap();
    let root = Actor::account(0, "root".to_owned());
    let ada = ledger.try_run(&root, now(), |by| by.create_user("ada".parse()?, String::new())).await.unwrap();
    ledger.try_run(&root, now(), |by| by.create_user("ada".parse()?, String::new())).await.unwrap_err();
    let wish =
        NewKey { user: ada.id, reusable: true, ephemeral: false, tags: Vec::new(), readmits: false, lifetime: None };
    let key = ledger.try_run(&root, now(), move |by| by.create_key(wish.clone(), [7; 32])).await.unwrap();
    register(&mut ledger, 1, key.text.expose()).await.unwrap();
    let (answer, answered) = oneshot::channel();
    ledger.read_journal(JournalQuery { limit: 9, ..JournalQuery::default() }, answer, now());
    ledger.settle(now()).await;
    let told = answered.await.unwrap().unwrap();
    let lines: Vec<String> = told
        .iter()
        .map(|entry| format!("{} {}: {} {} {}", entry.n, entry.actor, entry.command, entry.action, entry.object))
        .collect();
    assert_eq!(
        lines,
        [
            "1 account root: create-user create user ada",
            "2 account root: create-key create key 1",
            "3 coordinator: register create node node",
            "4 coordinator: register update key 1",
        ]
    );
    let text = serde_json::to_string(&told).unwrap();
    let secret = key.text.expose().rsplit('-').next().unwrap();
    assert!(!text.contains(secret) && !text.contains("secret"), "{text}");
}
