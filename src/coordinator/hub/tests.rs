use std::process::Command;

use super::*;
use crate::store::{Batch, Ledger, Proven, Store};
use crate::{clock, ending};
use warren_core::registry::{Config, Records};
use warren_core::wire::admin::JournalRecord;
use warren_shell::{FATAL, log_to_stderr, vital};

/// Its disk's driver has a mistake.
struct Panicking;

impl Store for Panicking {
    async fn load(&mut self) -> Result<Records, StoreError> {
        Ok(Records::default())
    }

    #[allow(clippy::panic, reason = "what is tried is a panic")]
    async fn commit(&mut self, _: &Batch) -> Result<(), StoreError> {
        panic!("as a test wants it")
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

/// The test runs itself again, as a coordinator.
#[test]
fn a_registry_that_panics_takes_the_program_along() {
    const CASE: &str = "WARREN_TEST_REGISTRY";
    if std::env::var_os(CASE).is_some() {
        log_to_stderr("info").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ledger = Ledger::open(Panicking, Config::default(), clock::now()).await.unwrap();
            let (hub, task) = Task::new(ledger, Arc::default());
            let (_end, ending) = ending::channel();
            tokio::spawn(vital("registry", task.run(ending)));
            let create = |by: &Commands<'_>| by.create_user("ada".parse()?, String::new());
            // Whoever asked would be told to come again, for ever.
            let _ = hub.command(Actor::COORDINATOR, create).await;
            std::future::pending::<()>().await;
        });
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::tests::a_registry_that_panics_takes_the_program_along", "--nocapture"])
        .env(CASE, "1")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FATAL.into()), "{log}");
    assert!(log.contains("the registry panicked"), "{log}");
}
